//! Sends the callbacks that are owed. The only sender.
//!
//! A loop takes what is due from the outbox, makes one attempt each, and writes down what came of it. A receiver that hangs
//! keeps its own callbacks waiting. Where so many begin to hang at once that they have every place, others wait for
//! one timeout: after it those that hang share half of the places.
//!
//! Invariant: a row is pending until an answer to it has been written down. So a crash repeats a callback and
//! never loses one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use prometheus_client::metrics::counter::Counter;
use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::clock::unix_ms;
use crate::config::{CallbackFormat, CallbackLimits};
use crate::store::{Callback, Delivery, Error, Store};
use crate::tls;

/// Waits in seconds after the first, second … failed attempt (ZEGO); one more failure and it is given up.
const RETRIES: [i64; 5] = [2, 4, 8, 16, 32];

/// Attempts at once: in all, to one URL of an app, and to all URLs that did not answer the last one.
const AT_ONCE: usize = 64;
const AT_ONCE_PER_RECEIVER: usize = 4;
const AT_ONCE_UNANSWERED: usize = AT_ONCE / 2;

/// Callbacks taken from the outbox in one look, in all and for one URL of an app.
const LOOK_MAX: i64 = 1024;
const LOOK_MAX_PER_RECEIVER: i64 = 64;

/// How long attempts under way at the stop may still take.
const DRAIN: Duration = Duration::from_secs(2);

/// A notification may get lost with the call that would have given it; the rows are looked through anyway.
const LOOK: Duration = Duration::from_secs(60);

/// How soon a failing store is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// How long what was delivered, or given up, can still be listed and sent again; and how often that is looked at.
const DELIVERED_KEPT_MS: i64 = 24 * 3_600_000;
const DEAD_KEPT_MS: i64 = 30 * DELIVERED_KEPT_MS;
const FORGET: Duration = Duration::from_secs(3600);

/// An answer's body is of no interest; reading a short one to its end lets the connection serve again.
const ANSWER_MAX: usize = 64 * 1024;

/// Sends callbacks until `stop`, then ends within seconds; what is not delivered by then stays in the outbox.
pub async fn run(store: Store, limits: CallbackLimits, counters: Counters, stop: CancellationToken) {
    run_by(unix_ms, store, limits, counters, stop).await;
}

/// [`run`] by another clock.
async fn run_by(
    now_ms: impl Fn() -> i64,
    store: Store,
    limits: CallbackLimits,
    counters: Counters,
    stop: CancellationToken,
) {
    let mut sender = Sender::new(store.clone(), &limits, counters);
    let mut failing = false;
    while !stop.is_cancelled() {
        let turn = sender.turn(now_ms()).await;
        if let Err(e) = &turn
            && !failing
        {
            warn!(error = %e, "callbacks wait for the store");
        }
        failing = turn.is_err();
        let wait = if failing { STORE_RETRY } else { sender.wait(now_ms()) };
        tokio::select! {
            () = stop.cancelled() => {}
            () = store.outbox_ready().notified() => sender.look = true,
            () = sleep(wait) => sender.look = true,
            Some((id, answer)) = sender.attempts.next() => sender.end(id, answer, now_ms()),
        }
    }
    let until = Instant::now() + DRAIN;
    while let Ok(Some((id, answer))) = timeout_at(until, sender.attempts.next()).await {
        sender.end(id, answer, now_ms());
    }
    if let Err(e) = sender.write_down(now_ms()).await {
        warn!(error = %e, "callbacks just delivered will be delivered again");
    }
}

/// What came of the attempts.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Answered with a 2xx.
    pub delivered: Counter,
    /// Not answered, or not with a 2xx; tried again.
    pub failed: Counter,
    /// Given up after the last attempt.
    pub dead: Counter,
}

struct Sender {
    store: Store,
    counters: Counters,
    client: Client,
    /// There may be more due in the outbox than in `due`.
    look: bool,
    look_from: Instant,
    /// Callbacks taken from the outbox that wait for their receiver.
    due: VecDeque<Callback>,
    next_due_ms: Option<i64>,
    /// Callbacks whose attempt is not written down yet, by id.
    under_way: HashMap<i64, Callback>,
    attempts: FuturesUnordered<BoxFuture<'static, (i64, Answer)>>,
    /// URLs whose last attempt got no answer. There are no more of them than the configuration has.
    unanswered: HashSet<String>,
    /// Attempts that have ended, to be written down.
    ended: Vec<Callback>,
    forget_at: Instant,
}

impl Sender {
    fn new(store: Store, limits: &CallbackLimits, counters: Counters) -> Sender {
        Sender {
            store,
            counters,
            client: client(limits),
            look: true,
            look_from: Instant::now(),
            due: VecDeque::new(),
            next_due_ms: None,
            under_way: HashMap::new(),
            attempts: FuturesUnordered::new(),
            unanswered: HashSet::new(),
            ended: Vec::new(),
            forget_at: Instant::now(),
        }
    }

    /// Writes down what has ended and begins what is due. What cannot be written down, on a full disk, stays under
    /// way: that bounds what a crash would repeat.
    async fn turn(&mut self, now_ms: i64) -> Result<(), Error> {
        let written = self.write_down(now_ms).await;
        if self.look && Instant::now() >= self.look_from {
            self.take_due(now_ms).await?;
        }
        for _ in 0..self.due.len() {
            let callback = self.due.pop_front().expect("counted above");
            if self.may_begin(&callback) {
                self.attempts.push(attempt(self.client.clone(), callback.clone()).boxed());
                self.under_way.insert(callback.id, callback);
            } else {
                self.due.push_back(callback);
            }
        }
        written
    }

    async fn take_due(&mut self, now_ms: i64) -> Result<(), Error> {
        let began = Instant::now();
        let mut tx = self.store.read().await?;
        let due = tx.outbox_due(now_ms, LOOK_MAX_PER_RECEIVER, LOOK_MAX).await?;
        self.next_due_ms = tx.outbox_next_due(now_ms).await?;
        self.due = due.into_iter().filter(|it| !self.under_way.contains_key(&it.id)).collect();
        self.look = false;
        // Behind a long queue a look is work; it may not become all the work there is.
        self.look_from = Instant::now() + 4 * began.elapsed();
        Ok(())
    }

    /// How long nothing needs to be done unless an attempt ends or a callback is added.
    fn wait(&self, now_ms: i64) -> Duration {
        if self.look {
            return self.look_from.saturating_duration_since(Instant::now());
        }
        let next_due = self.next_due_ms.map(|due_ms| Duration::from_millis((due_ms - now_ms).max(0) as u64));
        next_due.map_or(LOOK, |it| it.min(LOOK))
    }

    fn may_begin(&self, callback: &Callback) -> bool {
        let to_receiver = || self.under_way.values().filter(|it| same_receiver(it, callback));
        let same_stream = |it: &Callback| it.environment == callback.environment && it.stream == callback.stream;
        let unanswered = |it: &&Callback| self.unanswered.contains(&it.url);
        self.under_way.len() < AT_ONCE
            && (!unanswered(&callback) || self.under_way.values().filter(unanswered).count() < AT_ONCE_UNANSWERED)
            && to_receiver().count() < AT_ONCE_PER_RECEIVER
            && !to_receiver().any(same_stream)
    }

    /// Takes an answer in, and those that came together with it.
    fn end(&mut self, id: i64, answer: Answer, now_ms: i64) {
        let mut next = Some((id, answer));
        while let Some((id, answer)) = next {
            let callback = self.under_way[&id].clone();
            // What waited behind it may be due now, or did not fit into the last look.
            self.look |= !self.due.iter().any(|it| same_receiver(it, &callback));
            match answer.0 {
                0 => self.unanswered.insert(callback.url.clone()),
                _ => self.unanswered.remove(&callback.url),
            };
            let judged = judge(callback, answer, now_ms);
            match judged.state {
                Delivery::Delivered => self.counters.delivered.inc(),
                Delivery::Pending => self.counters.failed.inc(),
                Delivery::Dead => self.counters.dead.inc(),
            };
            self.ended.push(judged);
            next = self.attempts.next().now_or_never().flatten();
        }
    }

    async fn write_down(&mut self, now_ms: i64) -> Result<(), Error> {
        let forget = Instant::now() >= self.forget_at;
        if self.ended.is_empty() && !forget {
            return Ok(());
        }
        let mut tx = self.store.begin().await?;
        for it in &self.ended {
            tx.outbox_note(&self.under_way[&it.id], it).await?;
        }
        if forget {
            tx.outbox_forget(now_ms - DELIVERED_KEPT_MS, now_ms - DEAD_KEPT_MS).await?;
        }
        tx.commit().await?;
        for it in self.ended.drain(..) {
            self.under_way.remove(&it.id);
        }
        if forget {
            self.forget_at = Instant::now() + FORGET;
        }
        Ok(())
    }
}

fn same_receiver(a: &Callback, b: &Callback) -> bool {
    a.app == b.app && a.url == b.url
}

/// The HTTP status, 0 if none came, and what is wrong with it.
type Answer = (i64, Result<(), String>);

/// One attempt. What it says of an error does not show the URL, which may hold a secret.
async fn attempt(client: Client, callback: Callback) -> (i64, Answer) {
    let content_type = match callback.format {
        CallbackFormat::Json => "application/json",
        CallbackFormat::Form => "application/x-www-form-urlencoded",
    };
    let request = client.post(&callback.url).header(CONTENT_TYPE, content_type).body(callback.body);
    let answer = match request.send().await {
        Ok(mut response) => {
            let status = response.status();
            let mut read = 0;
            while let Ok(Some(chunk)) = response.chunk().await
                && read + chunk.len() <= ANSWER_MAX
            {
                read += chunk.len();
            }
            let result = if status.is_success() { Ok(()) } else { Err(format!("answered {status}")) };
            (i64::from(status.as_u16()), result)
        }
        Err(e) if e.is_timeout() => (0, Err("no answer in time".into())),
        Err(e) => {
            let e = e.without_url();
            let mut cause: &dyn std::error::Error = &e;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            (0, Err(cause.to_string()))
        }
    };
    (callback.id, answer)
}

/// What an answer makes of a callback.
fn judge(callback: Callback, (status, result): Answer, now_ms: i64) -> Callback {
    let wait = usize::try_from(callback.attempts).ok().and_then(|n| RETRIES.get(n));
    let (state, due_ms) = match (&result, wait) {
        (Ok(()), _) => (Delivery::Delivered, now_ms),
        (Err(_), Some(seconds)) => (Delivery::Pending, now_ms + 1000 * seconds),
        (Err(_), None) => (Delivery::Dead, now_ms),
    };
    let last_error = result.err().unwrap_or_default();
    let Callback { id, app, event, stream, .. } = &callback;
    match state {
        Delivery::Dead => warn!(id, app, event, stream, last_error, "callback given up"),
        _ => debug!(id, app, event, stream, last_error, "callback sent"),
    }
    Callback { state, attempts: callback.attempts + 1, due_ms, last_status: status, last_error, ..callback }
}

/// Receivers are reached directly, whatever proxy the environment names: most are in the same network.
fn client(limits: &CallbackLimits) -> Client {
    let none = reqwest::redirect::Policy::none();
    let tls = tls::client(Vec::new()).expect("roots that do not parse are passed over");
    let client = Client::builder().redirect(none).no_proxy().timeout(limits.timeout).tls_backend_preconfigured(tls);
    client.build().expect("nothing is left that can fail")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode, Uri};
    use bywash_media::Environment;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::callback::Owed;
    use crate::store::tests::Dir;
    use crate::store::{Page, Rearm};

    /// A receiver on a real socket. The first part of a path says what it answers: a status, `once` for a 500
    /// and then 200s, or `hang` for nothing.
    struct Receiver {
        base: String,
        /// `path content-type body` of each callback, when it came.
        came: mpsc::UnboundedReceiver<String>,
        task: JoinHandle<()>,
    }

    type Seen = Arc<(mpsc::UnboundedSender<String>, AtomicUsize)>;

    impl Receiver {
        async fn new() -> Receiver {
            let (tell, came) = mpsc::unbounded_channel();
            let seen: Seen = Arc::new((tell, AtomicUsize::new(0)));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let base = format!("http://{}", listener.local_addr().unwrap());
            let router = axum::Router::new().fallback(Receiver::answer).with_state(seen);
            let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
            Receiver { base, came, task }
        }

        async fn answer(
            State(seen): State<Seen>,
            uri: Uri,
            headers: HeaderMap,
            body: String,
        ) -> impl axum::response::IntoResponse {
            let content_type = headers["content-type"].to_str().unwrap();
            seen.0.send(format!("{} {content_type} {body}", uri.path())).ok();
            let status = match &uri.path()[1..] {
                "hang" => std::future::pending().await,
                "once" if seen.1.fetch_add(1, Ordering::Relaxed) == 0 => 500,
                "once" => 200,
                status => status.parse().unwrap(),
            };
            (StatusCode::from_u16(status).unwrap(), [("location", "/200")])
        }

        async fn next(&mut self) -> String {
            tokio::time::timeout(Duration::from_secs(10), self.came.recv()).await.expect("a callback comes").unwrap()
        }
    }

    impl Drop for Receiver {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    /// A running sender whose clock is ours.
    struct World {
        store: Store,
        clock: Arc<AtomicI64>,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl World {
        fn new(store: Store, timeout: Duration) -> World {
            let (clock, stop) = (Arc::new(AtomicI64::new(1000)), CancellationToken::new());
            let read = clock.clone();
            let now_ms = move || read.load(Ordering::Relaxed);
            let task = tokio::spawn(run_by(
                now_ms,
                store.clone(),
                CallbackLimits { timeout },
                Counters::default(),
                stop.clone(),
            ));
            World { store, clock, stop, task }
        }

        /// Sets the clock and has the sender look at it.
        fn at(&self, now_ms: i64) {
            self.clock.store(now_ms, Ordering::Relaxed);
            self.store.outbox_ready().notify_one();
        }

        /// The callback as it stands after `attempts`.
        async fn after(&self, id: i64, attempts: i64) -> Callback {
            for _ in 0..1000 {
                let mut tx = self.store.read().await.unwrap();
                let page = Page { number: 0, size: 100 };
                let (_, rows) = tx.outbox_page(7, Environment::Production, None, page).await.unwrap();
                if let Some(row) = rows.into_iter().find(|it| it.id == id && it.attempts == attempts) {
                    return row;
                }
                drop(tx);
                sleep(Duration::from_millis(5)).await;
            }
            panic!("no attempt {attempts} is written down");
        }

        async fn stopped(self) {
            self.stop.cancel();
            self.task.await.unwrap();
        }
    }

    async fn owe(store: &Store, app: u32, stream: &str, url: String) -> i64 {
        let owed = Owed {
            app,
            environment: Environment::Production,
            event: "stream_create",
            stream: stream.into(),
            url,
            format: if app == 7 { CallbackFormat::Json } else { CallbackFormat::Form },
            body: format!("body of {stream}"),
        };
        let mut tx = store.begin().await.unwrap();
        let id = tx.outbox_add(&owed, 1000).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// One attempt to `path`, or to a closed port; the state after it, the status and what the error begins with.
    async fn check(path: &str, state: Delivery, status: i64, error: &str) {
        let dir = Dir::new();
        let receiver = Receiver::new().await;
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let base = if path == "/closed" { format!("http://{closed}") } else { receiver.base.clone() };
        let world = World::new(dir.open().await, Duration::from_millis(if path == "/hang" { 50 } else { 5000 }));
        let id = owe(&world.store, 7, "a", format!("{base}{path}?key=hidden")).await;
        let row = world.after(id, 1).await;
        assert_eq!((row.state, row.last_status), (state, status), "{path}: {}", row.last_error);
        assert!(row.last_error.starts_with(error) && !row.last_error.contains("hidden"), "{path}: {}", row.last_error);
        world.stopped().await;
    }

    #[tokio::test]
    async fn any_2xx_delivers_and_all_else_is_tried_again() {
        check("/200", Delivery::Delivered, 200, "").await;
        check("/204", Delivery::Delivered, 204, "").await;
        check("/302", Delivery::Pending, 302, "answered 302").await;
        check("/404", Delivery::Pending, 404, "answered 404").await;
        check("/503", Delivery::Pending, 503, "answered 503").await;
        check("/hang", Delivery::Pending, 0, "no answer in time").await;
        check("/closed", Delivery::Pending, 0, "Connection refused").await;
    }

    #[tokio::test]
    async fn five_more_attempts_follow_at_zegos_distances_and_then_it_is_given_up_until_armed_again() {
        let dir = Dir::new();
        let mut receiver = Receiver::new().await;
        let world = World::new(dir.open().await, Duration::from_secs(5));
        let id = owe(&world.store, 7, "a", format!("{}/500", receiver.base)).await;
        let mut now_ms = 1000;
        for (attempts, seconds) in (1..).zip([2, 4, 8, 16, 32]) {
            assert_eq!(receiver.next().await, "/500 application/json body of a");
            let row = world.after(id, attempts).await;
            assert_eq!((row.state, row.due_ms), (Delivery::Pending, now_ms + 1000 * seconds));
            now_ms = row.due_ms;
            world.at(now_ms);
        }
        receiver.next().await;
        assert_eq!(world.after(id, 6).await.state, Delivery::Dead);

        world.at(now_ms + 1_000_000);
        let mut tx = world.store.begin().await.unwrap();
        assert_eq!(tx.outbox_retry(7, Environment::Production, Rearm::Dead, now_ms).await.unwrap(), 1);
        tx.commit().await.unwrap();
        receiver.next().await;
        assert_eq!(world.after(id, 1).await.state, Delivery::Pending);
        assert!(receiver.came.is_empty());
        world.stopped().await;
    }

    #[tokio::test]
    async fn one_that_is_armed_again_while_it_is_under_way_is_sent_once_more() {
        let dir = Dir::new();
        let mut receiver = Receiver::new().await;
        let world = World::new(dir.open().await, Duration::from_secs(1));
        let id = owe(&world.store, 7, "a", format!("{}/hang", receiver.base)).await;
        receiver.next().await;
        let mut tx = world.store.begin().await.unwrap();
        tx.outbox_retry(7, Environment::Production, Rearm::Ids(&[id]), 1001).await.unwrap();
        tx.commit().await.unwrap();
        world.at(1001);
        receiver.next().await;
        assert_eq!(world.after(id, 1).await.due_ms, 3001);
        world.stopped().await;
    }

    #[tokio::test]
    async fn a_stream_s_callbacks_come_in_order_over_a_failure() {
        let dir = Dir::new();
        let mut receiver = Receiver::new().await;
        let world = World::new(dir.open().await, Duration::from_secs(5));
        let url = format!("{}/once", receiver.base);
        let first = owe(&world.store, 7, "a", url.clone()).await;
        world.after(first, 1).await;
        let second = owe(&world.store, 7, "a", url).await;
        world.at(3000);
        assert_eq!(world.after(second, 1).await.state, Delivery::Delivered);
        assert_eq!(world.after(first, 2).await.state, Delivery::Delivered);
        for _ in 0..3 {
            receiver.next().await;
        }
        world.stopped().await;
    }

    #[tokio::test]
    async fn a_hanging_receiver_delays_its_own_apps_callbacks_only_and_not_the_stop() {
        let dir = Dir::new();
        let mut receiver = Receiver::new().await;
        let store = dir.open().await;
        let world = World::new(store.clone(), Duration::from_secs(60));
        for n in 0..100 {
            owe(&store, 7, &n.to_string(), format!("{}/hang", receiver.base)).await;
        }
        for n in 0..10 {
            owe(&store, 8, &n.to_string(), format!("{}/200", receiver.base)).await;
        }
        let mut came = Vec::new();
        while came.iter().filter(|it| it == &"/200 application/x-www-form-urlencoded").count() < 10 {
            came.push(receiver.next().await.split(" body").next().unwrap().to_owned());
        }
        let hanging = came.iter().filter(|it| it == &"/hang application/json").count();
        assert_eq!(hanging, AT_ONCE_PER_RECEIVER, "{came:?}");

        let asked = Instant::now();
        world.stopped().await;
        assert!(asked.elapsed() < DRAIN + Duration::from_secs(1));
        let mut tx = store.read().await.unwrap();
        let page = Page { number: 0, size: 1000 };
        let (_, rows) = tx.outbox_page(7, Environment::Production, None, page).await.unwrap();
        assert!(rows.len() == 100 && rows.iter().all(|it| it.state == Delivery::Pending && it.attempts == 0));
        assert_eq!(tx.outbox_page(8, Environment::Production, Some(Delivery::Delivered), page).await.unwrap().0, 10);
    }

    #[tokio::test]
    async fn receivers_that_hang_leave_half_of_the_places_to_others_after_one_timeout() {
        let dir = Dir::new();
        let receiver = Receiver::new().await;
        let store = dir.open().await;
        let hanging = AT_ONCE / AT_ONCE_PER_RECEIVER;
        for n in 0..AT_ONCE {
            owe(&store, 7, &n.to_string(), format!("{}/hang?{}", receiver.base, n % hanging)).await;
        }
        let limits = CallbackLimits { timeout: Duration::from_secs(600) };
        let mut sender = Sender::new(store.clone(), &limits, Counters::default());
        sender.turn(1000).await.unwrap();
        assert_eq!(sender.under_way.len(), AT_ONCE);

        let ids: Vec<_> = sender.under_way.keys().copied().collect();
        sender.attempts.clear();
        for id in ids {
            sender.end(id, (0, Err("no answer in time".into())), 1000);
        }
        for n in 0..hanging {
            owe(&store, 8, &n.to_string(), format!("{}/200?{n}", receiver.base)).await;
        }
        (sender.look, sender.look_from) = (true, Instant::now());
        sender.turn(3000).await.unwrap();
        let of = |app: u32| sender.under_way.values().filter(|it| it.app == app).count();
        assert_eq!((of(7), of(8)), (AT_ONCE_UNANSWERED, hanging));

        // One that answers again has all of its places again.
        let (id, url) = sender.under_way.iter().find(|it| it.1.app == 7).map(|(id, it)| (*id, it.url.clone())).unwrap();
        sender.end(id, (200, Ok(())), 3000);
        assert!(!sender.unanswered.contains(&url) && sender.unanswered.len() == hanging - 1);
    }

    #[tokio::test]
    async fn a_queue_longer_than_a_look_empties() {
        let dir = Dir::new();
        let mut receiver = Receiver::new().await;
        let store = dir.open().await;
        let total = 3 * LOOK_MAX_PER_RECEIVER;
        for n in 0..total {
            // Two of each stream, one behind the other.
            owe(&store, 7, &(n / 2).to_string(), format!("{}/200", receiver.base)).await;
        }
        let world = World::new(store, Duration::from_secs(5));
        for _ in 0..total {
            receiver.next().await;
        }
        world.after(total, 1).await;
        world.stopped().await;
        assert!(receiver.came.is_empty());
    }

    #[tokio::test]
    async fn what_is_owed_at_the_stop_is_sent_after_the_next_start() {
        let dir = Dir::new();
        let mut receiver = Receiver::new().await;
        let store = dir.open().await;
        owe(&store, 7, "a", format!("{}/200", receiver.base)).await;
        store.close().await;
        let stop = CancellationToken::new();
        let limits = CallbackLimits { timeout: Duration::from_secs(5) };
        let task = tokio::spawn(run(dir.open().await, limits, Counters::default(), stop.clone()));
        assert_eq!(receiver.next().await, "/200 application/json body of a");
        stop.cancel();
        task.await.unwrap();
    }
}
