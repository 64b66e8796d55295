//! Sends the callbacks that are owed. The only sender.
//!
//! A loop takes what is due from the outbox, makes one attempt each, and writes down what came of it. One app's
//! receiver that hangs keeps its own callbacks waiting and nobody else's.
//!
//! Invariant: a row is pending until an answer to it has been written down. So a crash repeats a callback and
//! never loses one.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::{CallbackFormat, CallbackLimits};
use crate::store::{Callback, Delivery, Error, Store};

/// Waits in seconds after the first, second … failed attempt (ZEGO); one more failure and it is given up.
const RETRIES: [i64; 5] = [2, 4, 8, 16, 32];

/// Attempts at once, in all and to one URL of an app.
const AT_ONCE: usize = 64;
const AT_ONCE_PER_RECEIVER: usize = 4;

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
pub async fn run(store: Store, limits: CallbackLimits, stop: CancellationToken) {
    let now_ms = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    run_by(now_ms, store, limits, stop).await;
}

/// [`run`] by another clock.
async fn run_by(now_ms: impl Fn() -> i64, store: Store, limits: CallbackLimits, stop: CancellationToken) {
    let mut sender = Sender {
        store: store.clone(),
        client: client(&limits),
        under_way: HashMap::new(),
        attempts: FuturesUnordered::new(),
        ended: Vec::new(),
        forget_at: Instant::now(),
    };
    while !stop.is_cancelled() {
        let wait = match sender.turn(now_ms()).await {
            Ok(Some(due_ms)) => Duration::from_millis((due_ms - now_ms()).max(0) as u64).min(LOOK),
            Ok(None) => LOOK,
            Err(e) => {
                warn!(error = %e, "callbacks wait for the store");
                STORE_RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = store.outbox_ready().notified() => {}
            () = sleep(wait) => {}
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

struct Sender {
    store: Store,
    client: Client,
    /// Callbacks whose attempt is not written down yet, by id.
    under_way: HashMap<i64, Callback>,
    attempts: FuturesUnordered<BoxFuture<'static, (i64, Answer)>>,
    /// Attempts that have ended, to be written down.
    ended: Vec<Callback>,
    forget_at: Instant,
}

impl Sender {
    /// Writes down what has ended and begins what is due; when more will be due.
    async fn turn(&mut self, now_ms: i64) -> Result<Option<i64>, Error> {
        self.write_down(now_ms).await?;
        if self.under_way.len() == AT_ONCE {
            return Ok(None);
        }
        let mut tx = self.store.read().await?;
        // As many again as may be under way, which are among the due.
        let due = tx.outbox_due(now_ms, 2 * AT_ONCE_PER_RECEIVER as i64, 2 * AT_ONCE as i64).await?;
        let next_due_ms = tx.outbox_next_due(now_ms).await?;
        drop(tx);
        for callback in due {
            if self.may_begin(&callback) {
                self.attempts.push(attempt(self.client.clone(), callback.clone()).boxed());
                self.under_way.insert(callback.id, callback);
            }
        }
        Ok(next_due_ms)
    }

    fn may_begin(&self, callback: &Callback) -> bool {
        let same_receiver = |it: &&Callback| it.app == callback.app && it.url == callback.url;
        let same_stream = |it: &Callback| it.environment == callback.environment && it.stream == callback.stream;
        let receiver = || self.under_way.values().filter(same_receiver);
        self.under_way.len() < AT_ONCE
            && receiver().count() < AT_ONCE_PER_RECEIVER
            && !receiver().any(same_stream)
    }

    /// Takes an answer in, and those that came together with it.
    fn end(&mut self, id: i64, answer: Answer, now_ms: i64) {
        let mut next = Some((id, answer));
        while let Some((id, answer)) = next {
            let callback = self.under_way[&id].clone();
            self.ended.push(judge(callback, answer, now_ms));
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
            tx.outbox_note(it.id, it.state, it.attempts, it.due_ms, it.last_status, &it.last_error).await?;
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

fn client(limits: &CallbackLimits) -> Client {
    let builder = || {
        let none = reqwest::redirect::Policy::none();
        Client::builder().redirect(none).no_proxy().timeout(limits.timeout)
    };
    let client = builder().build().or_else(|e| {
        warn!(error = %e, "no roots to verify receivers by: callbacks to https:// will fail");
        builder().tls_certs_only([]).build()
    });
    client.expect("without the machine's roots nothing is left that can fail")
}
