//! Makes what runs equal to what the rows say, and writes down what happened.
//!
//! One task looks after all streams. Publishers ask it for a place; actions, publishers that leave and relays whose state changes leave a word in the
//! [`Inbox`]. It answers by the same few steps whether a call, a publish, a crash or a restart was the cause.
//!
//! Invariant: only this module starts and stops relays and recordings. A change of state and the callbacks that it owes
//! are one transaction; where the store fails, what happened is kept and written later, and what runs goes on.

mod record;
#[cfg(test)]
mod tests;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::ready;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bywash_media::{Environment, StreamKey};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, info_span, warn};

use crate::callback::{self, Close};
use crate::clock::{unix_ms, until};
use crate::config::Apps;
use crate::hub::{self, Hub};
use crate::lane::Lane;
use crate::live;
use crate::output::record::Note;
use crate::output::relay::{self, Relay, Wish};
use crate::rendition::Renditions;
use crate::store::{self, File, Origin, Reason, Record, Rule, Session, State, Status, Store, Tx};
use crate::vendor::{self, Target};

use self::record::Recording;

pub use self::record::Settings as RecordSettings;

/// How long a failing store is left alone before it is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// How long a relay or a recording is left alone whose task has failed, which is a fault of ours.
const REST: Duration = Duration::from_secs(5);

/// How long a count of retries may wait to be written; a change of state does not wait.
const LAZY: Duration = Duration::from_secs(1);

/// How many servers a stream may come through before a relay of it is refused as a loop.
const HOPS: usize = 8;

/// How long closed streams and old sequences are remembered at the least.
const HISTORY: Duration = Duration::from_secs(24 * 3600);

/// What plan works with.
pub struct Parts {
    /// The rows.
    pub store: Store,
    /// The streams.
    pub hub: Arc<Hub>,
    /// Counters of relays.
    pub live: Arc<live::Live>,
    /// The apps.
    pub apps: Arc<Apps>,
    /// What relays read where a target needs other sound.
    pub renditions: Arc<Renditions>,
    /// How relays connect.
    pub relay: Arc<ArcSwap<relay::Settings>>,
    /// How long a stream waits for a publisher that dropped.
    pub grace: Arc<ArcSwap<Duration>>,
    /// What addresses in callbacks begin with.
    pub public_url: String,
    /// Likewise for RTMP: `rtmp://host:port`.
    pub rtmp_base: String,
    /// What recordings have in common.
    pub record: RecordSettings,
}

/// Asks plan for things. Clone is a pointer.
#[derive(Clone)]
pub struct Plan {
    inbox: Arc<Inbox>,
    requests: mpsc::Sender<Request>,
    marker: u64,
}

/// A publisher that asks for its stream.
#[derive(Clone)]
pub struct Arrival {
    /// The stream.
    pub key: StreamKey,
    /// `RTMP`, `WHIP`.
    pub protocol: &'static str,
    /// The publisher's address.
    pub address: SocketAddr,
    /// The `userId` of its token or address; may be empty.
    pub user: String,
    /// Marks of the servers that the stream has come through.
    pub trace: Vec<String>,
    /// The thread that the stream and its outputs will run on.
    pub lane: Lane,
}

/// Why a publisher is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another publisher holds the id.
    #[error("the stream id is being published already")]
    Occupied,
    /// ForbidRTCStream.
    #[error("the stream is forbidden")]
    Forbidden,
    /// The stream has come from here.
    #[error("the stream comes from this very server: a relay loop")]
    Loop,
    /// SIGTERM.
    #[error("the server is shutting down")]
    Draining,
}

/// A publisher's hold on its stream. Dropped without [`Hold::leave`], the publisher counts as lost.
pub struct Hold {
    /// The stream's writer.
    pub publisher: hub::Publisher,
    /// Cancelled when the publisher must go: forbidden, or the server stops.
    pub cut: CancellationToken,
    word: Word,
}

/// How a publisher left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It said that it ends.
    Finished,
    /// The connection broke.
    Lost,
    /// It was silent for too long.
    Silent,
}

impl From<Leave> for Close {
    fn from(how: Leave) -> Close {
        match how {
            Leave::Finished => Close::Normal,
            Leave::Lost => Close::TcpDrop,
            Leave::Silent => Close::Heartbeat,
        }
    }
}

impl Hold {
    /// The first frame is there: the codec of the pictures is known (stream_attr's `cid`).
    pub fn began(&self, cid: i64) {
        let word = &self.word;
        word.inbox.put(|news| {
            news.began.insert(word.key.clone(), (word.number, cid));
        });
    }

    /// Says how the publisher left.
    pub fn leave(mut self, how: Leave) {
        self.word.how = how;
    }
}

/// Says on drop, after the publisher has let go of the stream, that it left.
struct Word {
    inbox: Arc<Inbox>,
    key: StreamKey,
    number: u64,
    how: Leave,
}

impl Drop for Word {
    fn drop(&mut self) {
        self.inbox.put(|news| news.left.push((self.key.clone(), self.number, self.how)));
    }
}

enum Request {
    Publish(Box<Arrival>, oneshot::Sender<Result<Hold, Refusal>>),
    Reload,
    Drain(oneshot::Sender<()>),
}

/// Words left for plan. Bounded: at most one entry for each stream, publisher and relay, and a few for each recording.
#[derive(Default)]
struct Inbox {
    news: Mutex<News>,
    come: Notify,
    /// Why the store took nothing the last time; empty if it did.
    trouble: Mutex<String>,
}

#[derive(Default)]
struct News {
    woken: BTreeSet<StreamKey>,
    left: Vec<(StreamKey, u64, Leave)>,
    began: BTreeMap<StreamKey, (u64, i64)>,
    /// The latest status of a relay, by the relay's number.
    statuses: BTreeMap<u64, Status>,
    /// What recordings have to tell, by their numbers and in order. A recording waits for the answer before it tells of other files.
    recordings: Vec<(u64, Note)>,
}

impl Inbox {
    fn put(&self, add: impl FnOnce(&mut News)) {
        add(&mut self.lock());
        self.come.notify_one();
    }

    fn take(&self) -> News {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().expect("no holder panics")
    }
}

impl Plan {
    /// Puts the rows right after what ended the last run, then starts plan. The future is its work; it ends once drained.
    /// An error where nothing can be read; what cannot be written is written later.
    pub async fn start(parts: Parts) -> Result<(Plan, impl Future<Output = ()>), store::Error> {
        let (mut keeper, asked) = Keeper::new(parts);
        keeper.recover().await?;
        Ok((keeper.plan.clone(), keeper.run(asked)))
    }

    /// May this publisher have its stream?
    pub async fn publish(&self, arrival: Arrival) -> Result<Hold, Refusal> {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Publish(Box::new(arrival), reply)).await.is_err() {
            return Err(Refusal::Draining);
        }
        answer.await.unwrap_or(Err(Refusal::Draining))
    }

    /// The rows of this stream have changed.
    pub fn wake(&self, key: StreamKey) {
        self.inbox.put(|news| {
            news.woken.insert(key);
        });
    }

    /// The apps or the settings have changed.
    pub async fn reload(&self) {
        let _ = self.requests.send(Request::Reload).await;
    }

    /// Takes no more publishers, ends every stream and waits until its relays have said goodbye and all is written.
    pub async fn drain(&self) {
        let (reply, done) = oneshot::channel();
        if self.requests.send(Request::Drain(reply)).await.is_ok() {
            let _ = done.await;
        }
    }

    /// Why nothing can be written now, if so.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.inbox.trouble.lock().expect("no holder panics");
        Some(trouble.clone()).filter(|trouble| !trouble.is_empty())
    }

    /// What marks a stream as having come through this server under this key.
    fn mark(&self, key: &StreamKey) -> String {
        let mut hasher = DefaultHasher::new();
        (self.marker, key).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

/// A stream id that is live, or whose rows say so.
struct Place {
    session: Session,
    /// The rows do not know the session yet.
    unwritten: bool,
    /// stream_create is owed, with the next write if the rows do not know the session yet, and with it stream_close.
    announced: bool,
    recreate: bool,
    /// `None` after a restart, until its publisher comes back.
    stream: Option<Live>,
    /// When the stream ends if nobody publishes it; none while somebody does.
    ends_at: Option<Instant>,
    /// The address of the app's default target as it was when the stream was sent there; see [`Keeper::put_default_rule`].
    default_target: Option<String>,
    /// How it ended then.
    close: Close,
}

/// A stream in the hub.
struct Live {
    stream: hub::Stream,
    lane: Lane,
    trace: String,
    /// The publisher that holds it.
    number: u64,
    cut: CancellationToken,
}

/// A relay that runs.
struct Running {
    key: StreamKey,
    address: String,
    masked: String,
    /// Taken away when the rule is.
    wish: Option<watch::Sender<Wish>>,
    task: tokio::task::Id,
    /// What the rows and the customer know.
    told: Status,
    /// It has said goodbye.
    ended: bool,
}

impl Running {
    fn has_told(&self, status: &Status) -> bool {
        (self.told.state, self.told.reason) == (status.state, status.reason)
    }
}

/// What ran when the server stopped.
struct Stopped {
    rules: Vec<Rule>,
    records: Vec<Record>,
}

impl Stopped {
    /// Notes that none of it runs, and owes what is to be told of that.
    async fn note(&self, tx: &mut Tx, apps: &Apps) -> Result<(), store::Error> {
        const WHY: &str = "the server stopped";
        let now_ms = unix_ms();
        for rule in &self.rules {
            let mut status = Status::new(State::None, Reason::ServerError);
            (status.state_ms, status.last_error) = (now_ms, WHY.into());
            let noted = tx.rule_note(&rule.key, &rule.address, &status).await?;
            if let Some(app) = apps.get(rule.key.app()).filter(|_| noted) {
                let masked = masked(&rule.url);
                tx.owe(callback::relay_state(&app, &rule.key, &masked, &status, now_ms), now_ms).await?;
            }
        }
        record::note_stopped(tx, apps, &self.records, WHY).await
    }
}

struct Keeper {
    parts: Parts,
    plan: Plan,
    places: HashMap<StreamKey, Place>,
    /// By number, so that a word from an older relay of the same address is known as such.
    relays: HashMap<u64, Running>,
    running: JoinSet<()>,
    /// Relays and recordings whose tasks have failed, by their addresses and ids, and when they are started again.
    resting: BTreeMap<(StreamKey, String), Instant>,
    /// Live streams that are to be compared with their rows,
    woken: BTreeSet<StreamKey>,
    /// and those whose turn it is. Who is woken again and again comes after all that were woken before.
    turn: Vec<StreamKey>,
    /// Recordings are to be looked for that are over.
    settle: bool,
    /// What the last run left running, until the rows say that it does not run.
    stopped: Mutex<Option<Arc<Stopped>>>,
    /// Statuses that wait to be written.
    pending: BTreeMap<u64, Status>,
    /// Streams whose rows could not be read or written.
    unwritten: BTreeSet<StreamKey>,
    /// Recordings that run, by number.
    recordings: BTreeMap<u64, Recording>,
    /// What they have told and the rows do not know yet.
    words: Vec<(u64, Note)>,
    /// Those that finish files that a stop has cut.
    finishing: JoinSet<()>,
    /// When a recording's time may be over, or the store is asked again for such.
    due_at: Option<Instant>,
    numbers: u64,
    write_at: Option<Instant>,
    drained: Option<oneshot::Sender<()>>,
}

impl Keeper {
    fn new(parts: Parts) -> (Keeper, mpsc::Receiver<Request>) {
        let (requests, asked) = mpsc::channel(256);
        let keeper = Keeper {
            parts,
            plan: Plan { inbox: Arc::default(), requests, marker: rand::random() },
            places: HashMap::new(),
            relays: HashMap::new(),
            running: JoinSet::new(),
            resting: BTreeMap::new(),
            woken: BTreeSet::new(),
            turn: Vec::new(),
            settle: false,
            stopped: Mutex::default(),
            pending: BTreeMap::new(),
            unwritten: BTreeSet::new(),
            recordings: BTreeMap::new(),
            words: Vec::new(),
            finishing: JoinSet::new(),
            due_at: None,
            numbers: 0,
            write_at: None,
            drained: None,
        };
        (keeper, asked)
    }

    /// Publishers and moments that have come go before what calls have changed, of which each turn does a little: however much of
    /// it there is, a publisher waits for one stream's rows and not for all.
    async fn run(mut self, mut asked: mpsc::Receiver<Request>) {
        let mut tidied = Instant::now();
        loop {
            let quiet = self.relays.is_empty() && self.pending.is_empty();
            if self.drained.is_some() && quiet && self.recordings.is_empty() && self.words.is_empty() {
                break;
            }
            let wake_at = self.next_deadline();
            let more = self.settle || !self.woken.is_empty() || !self.turn.is_empty();
            tokio::select! { biased;
                () = until(wake_at) => self.on_time().await,
                Some(ended) = self.running.join_next_with_id() => self.task_ended(ended).await,
                Some(_) = self.finishing.join_next() => {}
                Some(request) = asked.recv() => match request {
                    Request::Publish(arrival, reply) => {
                        // A publisher that has gone meanwhile drops its hold, which says so.
                        let _ = reply.send(self.publish(*arrival).await);
                    }
                    Request::Reload => {
                        self.readdress().await;
                        self.end_strays().await;
                        self.woken.extend(self.places.keys().cloned());
                    }
                    Request::Drain(reply) => {
                        self.drained = Some(reply);
                        self.drain().await;
                    }
                },
                () = self.plan.inbox.come.notified() => self.read_inbox().await,
                () = ready(()), if more => {}
            }
            self.take_turn().await;
            if tidied.elapsed() > HISTORY / 24 {
                tidied = Instant::now();
                self.tidy().await;
            }
        }
        if let Some(reply) = self.drained.take() {
            let _ = reply.send(());
        }
    }

    /// After a start: nothing runs, whatever the rows say. Streams that were live wait for their publishers.
    async fn recover(&mut self) -> Result<(), store::Error> {
        self.readdress().await;
        let grace = **self.parts.grace.load();
        let look = async |tx: &mut Tx| {
            let stopped = Stopped { rules: tx.rules_running().await?, records: tx.records_running().await? };
            Ok((tx.streams_open().await?, tx.files_open().await?, stopped))
        };
        let (sessions, files, stopped) = self.read(look).await?;
        for session in sessions {
            info!(stream = %session.key, "was live when the server stopped; waiting for its publisher");
            let place = Place {
                unwritten: false,
                announced: true,
                recreate: true,
                stream: None,
                ends_at: Some(Instant::now() + grace),
                // It was sent there already, and a call may have put an end to that.
                default_target: self.default_target(&session.key).map(|it| it.address()),
                close: Close::TcpDrop,
                session,
            };
            self.places.insert(place.session.key.clone(), place);
        }
        for file in files {
            self.finish_cut(File { interrupted: true, ..file });
        }
        self.settle = true;
        *self.lock_stopped() = Some(Arc::new(stopped));
        self.write_stopped().await;
        Ok(())
    }

    /// The configuration may have changed: callbacks that are not delivered yet go to where their apps take them now.
    async fn readdress(&self) {
        let apps = self.parts.apps.all();
        let written = self
            .write(async |tx| {
                for app in &apps {
                    for environment in [Environment::Production, Environment::Test] {
                        tx.outbox_readdress(app, environment).await?;
                    }
                }
                Ok(())
            })
            .await;
        if let Err(error) = written {
            error!(%error, "callbacks that wait still go to where they went before");
        }
    }

    async fn publish(&mut self, arrival: Arrival) -> Result<Hold, Refusal> {
        if self.drained.is_some() {
            return Err(Refusal::Draining);
        }
        let key = arrival.key.clone();
        let mark = self.plan.mark(&key);
        if arrival.trace.contains(&mark) || arrival.trace.len() >= HOPS {
            return Err(Refusal::Loop);
        }
        // The last publisher's leaving may still be in the inbox.
        self.read_inbox().await;
        let now = Instant::now();
        let now_ms = unix_ms();
        let read = self.read(async |tx| Ok((tx.forbidden(&key).await?, tx.stream_next_seq(&key).await?))).await;
        let (forbidden, seq) = match read {
            Ok(read) => read,
            Err(error) => {
                // Better a live stream that is written down late than none.
                error!(stream = %key, %error, "cannot read whether the stream is forbidden; publishing goes on");
                (false, now_ms)
            }
        };
        if forbidden {
            return Err(Refusal::Forbidden);
        }
        let since_ms = self.places.get(&key).map_or(now_ms, |place| place.session.created_ms);
        let info = live::Stream::new(arrival.protocol, arrival.address.to_string(), since_ms);
        let publisher = self.parts.hub.publish(&key, info, now).ok_or(Refusal::Occupied)?;
        let stream = self.parts.hub.get(&key).expect("it was just published");

        self.numbers += 1;
        let number = self.numbers;
        let cut = CancellationToken::new();
        let trace = [arrival.trace.as_slice(), &[mark]].concat().join(",");
        let live = Live { stream, lane: arrival.lane, trace, number, cut: cut.clone() };
        match self.places.get_mut(&key) {
            Some(place) => {
                info!(stream = %key, from = %arrival.address, "publisher is back");
                // The same stream goes on, and a customer who has heard of it hears so: stream_create with `recreate`.
                place.recreate |= place.announced && !place.unwritten;
                (place.announced, place.unwritten) = (false, true);
                (place.stream, place.ends_at) = (Some(live), None);
                let session = &mut place.session;
                session.user_id = arrival.user;
                session.protocol = arrival.protocol.to_owned();
                session.publisher = arrival.address.to_string();
            }
            None => {
                info!(stream = %key, from = %arrival.address, protocol = arrival.protocol, "stream begins");
                let session = Session {
                    key: key.clone(),
                    sid: store::stream::sid(now_ms),
                    seq,
                    user_id: arrival.user,
                    protocol: arrival.protocol.to_owned(),
                    publisher: arrival.address.to_string(),
                    codec: 0,
                    created_ms: now_ms,
                    closed_ms: 0,
                };
                let place = Place {
                    session,
                    unwritten: true,
                    announced: false,
                    recreate: false,
                    stream: Some(live),
                    ends_at: None,
                    default_target: None,
                    close: Close::TcpDrop,
                };
                self.places.insert(key.clone(), place);
            }
        }
        self.write_session(&key).await;
        self.make_so(&key).await;
        Ok(Hold { publisher, cut, word: Word { inbox: self.plan.inbox.clone(), key, number, how: Leave::Lost } })
    }

    async fn read_inbox(&mut self) {
        let news = self.plan.inbox.take();
        for (key, (number, cid)) in news.began {
            if self.holds(&key, number) {
                self.announce(&key, cid).await;
            }
        }
        for (key, number, how) in news.left {
            if self.holds(&key, number) {
                self.left(&key, how).await;
            }
        }
        let mut urgent = false;
        for (number, status) in news.statuses {
            let Some(relay) = self.relays.get(&number) else { continue };
            urgent |= !relay.has_told(&status);
            self.pending.insert(number, status);
        }
        self.words.extend(news.recordings);
        self.write_words().await;
        if urgent {
            self.write_statuses().await;
        } else if !self.pending.is_empty() {
            self.write_at.get_or_insert(Instant::now() + LAZY);
        }
        // Nothing runs for a stream that is not live, and when it is published its rows are read. But its recordings may be over.
        self.settle |= !news.woken.is_empty();
        let live = news.woken.into_iter().filter(|key| self.is_live(key)).collect::<Vec<_>>();
        self.woken.extend(live);
    }

    fn is_live(&self, key: &StreamKey) -> bool {
        self.places.get(key).is_some_and(|place| place.stream.is_some())
    }

    /// Whether this publisher is the one that holds the stream now.
    fn holds(&self, key: &StreamKey, number: u64) -> bool {
        self.places.get(key).and_then(|place| place.stream.as_ref()).is_some_and(|live| live.number == number)
    }

    async fn left(&mut self, key: &StreamKey, how: Leave) {
        let grace = **self.parts.grace.load();
        let Some(place) = self.places.get_mut(key) else { return };
        place.close = how.into();
        // A publisher that says goodbye does not come back in a moment.
        if how == Leave::Finished || grace.is_zero() || self.drained.is_some() {
            self.end(key, how.into()).await;
        } else {
            info!(stream = %key, ?how, grace_ms = grace.as_millis() as u64, "publisher is gone; waiting for it");
            place.ends_at = Some(Instant::now() + grace);
        }
    }

    /// Ends a stream: its outputs finish what they have, and the customer is told.
    async fn end(&mut self, key: &StreamKey, close: Close) {
        self.parts.hub.end(key);
        let Some(place) = self.places.remove(key) else { return };
        info!(stream = %key, ?close, "stream ends");
        let now_ms = unix_ms();
        let end = async |tx: &mut Tx| {
            if place.unwritten {
                self.open(tx, &place, now_ms).await?;
            }
            tx.stream_close(key, now_ms).await?;
            tx.rules_delete_default(key).await?;
            tx.records_close_default(key, now_ms).await?;
            // Who hears that it ends has heard that it began; of a publisher that never sent a thing nobody hears.
            if let Some(app) = self.parts.apps.get(key.app()).filter(|_| place.announced || place.recreate) {
                tx.owe(callback::stream_close(&app, &place.session, close, now_ms), now_ms).await?;
            }
            Ok(())
        };
        if let Err(error) = self.write(end).await {
            error!(stream = %key, %error, "cannot write that the stream ended; trying again");
            // It waits as a stream that nobody publishes, and ends again when the store is back.
            let ends_at = Some(Instant::now() + STORE_RETRY);
            self.places.insert(key.clone(), Place { stream: None, ends_at, close, ..place });
        }
    }

    /// Owes stream_create, once.
    async fn announce(&mut self, key: &StreamKey, cid: i64) {
        let Some(place) = self.places.get_mut(key) else { return };
        if place.announced {
            return;
        }
        place.session.codec = cid;
        place.announced = true;
        place.unwritten = true;
        self.write_session(key).await;
    }

    /// Writes a session that the rows do not know, or not as it is; says whether they do now.
    async fn write_session(&mut self, key: &StreamKey) -> bool {
        let Some(place) = self.places.get(key).filter(|place| place.unwritten) else { return true };
        let now_ms = unix_ms();
        let written = self.write(async |tx| self.open(tx, place, now_ms).await).await;
        match written {
            Ok(()) => {
                if let Some(place) = self.places.get_mut(key) {
                    place.unwritten = false;
                }
                true
            }
            Err(error) => {
                error!(stream = %key, %error, "cannot write that the stream is live; trying again");
                self.later(key);
                false
            }
        }
    }

    /// Writes a session, and owes stream_create if the customer is to hear of it.
    async fn open(&self, tx: &mut Tx, place: &Place, now_ms: i64) -> Result<(), store::Error> {
        let session = &place.session;
        tx.stream_open(session).await?;
        let Some(app) = self.parts.apps.get(session.key.app()).filter(|_| place.announced) else { return Ok(()) };
        let (http, rtmp) = (&self.parts.public_url, &self.parts.rtmp_base);
        tx.owe(callback::stream_create(&app, http, rtmp, session, place.recreate, now_ms), now_ms).await
    }

    fn later(&mut self, key: &StreamKey) {
        self.unwritten.insert(key.clone());
        self.write_later();
    }

    fn write_later(&mut self) {
        self.write_at.get_or_insert(Instant::now() + STORE_RETRY);
    }

    /// Does the next part of what calls have changed.
    async fn take_turn(&mut self) {
        if self.turn.is_empty() {
            self.turn.extend(std::mem::take(&mut self.woken));
        }
        if let Some(key) = self.turn.pop() {
            self.make_so(&key).await;
        }
        if self.settle {
            self.settle_recordings().await;
        }
    }

    async fn make_so(&mut self, key: &StreamKey) {
        if let Err(error) = self.reconcile(key).await {
            error!(stream = %key, %error, "cannot read what should run; trying again");
            self.later(key);
        }
    }

    /// Makes the relays and recordings of a live stream equal to its rows.
    async fn reconcile(&mut self, key: &StreamKey) -> Result<(), store::Error> {
        if !self.is_live(key) {
            return Ok(());
        }
        let app = self.parts.apps.get(key.app());
        self.put_default_rule(key).await?;
        let (forbidden, rules) = self.read(async |tx| Ok((tx.forbidden(key).await?, tx.rules_of(key).await?))).await?;
        if forbidden {
            info!(stream = %key, "stream is forbidden: its publisher is cut");
            self.cut(key);
            self.end(key, Close::Kicked).await;
            return Ok(());
        }

        let mut extra: BTreeMap<String, u64> = self
            .relays
            .iter()
            .filter(|(_, relay)| relay.key == *key && relay.wish.is_some())
            .map(|(number, relay)| (relay.address.clone(), *number))
            .collect();
        for rule in rules {
            let target = match Target::parse(rule.url.expose()) {
                Ok(target) => target,
                Err(error) => {
                    error!(stream = %key, error, "a stored rule does not parse");
                    continue;
                }
            };
            let cdn = app.as_ref().map(|app| app.cdn.clone()).unwrap_or_default();
            let wish = Wish {
                takes_opus: vendor::names(&cdn.enhanced_targets, &target),
                wants_sound: vendor::names(&cdn.silent_audio, &target),
                target,
                push: cdn.push,
                retry_asked: rule.retry_asked,
            };
            match extra.remove(&rule.address) {
                Some(number) => {
                    let relay = &self.relays[&number];
                    // The row of a rule that was deleted and put again does not know that its relay goes on.
                    if relay.told.state != State::None && !relay.has_told(&rule.status) {
                        self.pending.entry(number).or_insert_with(|| relay.told.clone());
                        self.write_at = Some(Instant::now());
                    }
                    let Some(wished) = &relay.wish else { continue };
                    wished.send_if_modified(|old| {
                        let same = old.retry_asked == wish.retry_asked
                            && old.target.url() == wish.target.url()
                            && old.push == wish.push
                            && (old.takes_opus, old.wants_sound) == (wish.takes_opus, wish.wants_sound);
                        *old = wish;
                        !same
                    });
                }
                None => self.start_relay(key, rule.address, wish),
            }
        }
        for number in extra.values() {
            self.relays.get_mut(number).expect("it is one of ours").wish = None;
        }
        self.reconcile_recordings(key, app.as_deref()).await
    }

    /// ZEGO's "default relay": every stream goes to the app's default target. It is sent there once, so that a call can put an end to it,
    /// and again where the configuration names another.
    async fn put_default_rule(&mut self, key: &StreamKey) -> Result<(), store::Error> {
        let target = self.default_target(key);
        let address = target.as_ref().map(Target::address);
        let Some(before) = self.places.get(key).map(|it| &it.default_target).filter(|it| **it != address) else {
            return Ok(());
        };
        self.write(async |tx| {
            if before.is_some() {
                tx.rules_delete_default(key).await?;
            }
            let Some((target, address)) = target.as_ref().zip(address.as_ref()) else { return Ok(()) };
            match tx.rule(key, address).await? {
                Some(_) => Ok(()),
                None => tx.rule_put(key, address, target.url(), Origin::Default, unix_ms()).await,
            }
        })
        .await?;
        if let Some(place) = self.places.get_mut(key) {
            place.default_target = address;
        }
        Ok(())
    }

    /// Where the stream goes by its app's configuration alone.
    fn default_target(&self, key: &StreamKey) -> Option<Target> {
        let app = self.parts.apps.get(key.app())?;
        let url = app.cdn.default_target.as_ref().filter(|_| app.cdn.relay_everything)?;
        Target::parse(&format!("{}/{}", url.trim_end_matches('/'), key.id())).ok()
    }

    /// Streams of apps that are configured no more end: nobody could stop them by a call.
    async fn end_strays(&mut self) {
        let keys: Vec<_> = self.places.keys().filter(|key| self.parts.apps.get(key.app()).is_none()).cloned().collect();
        for key in keys {
            warn!(stream = %key, "its app is configured no more: the stream ends");
            self.cut(&key);
            self.end(&key, Close::Kicked).await;
        }
    }

    /// Sends the publisher of a stream away.
    fn cut(&self, key: &StreamKey) {
        if let Some(live) = self.places.get(key).and_then(|place| place.stream.as_ref()) {
            live.cut.cancel();
        }
    }

    fn start_relay(&mut self, key: &StreamKey, address: String, wish: Wish) {
        let Some(live) = self.places.get(key).and_then(|place| place.stream.as_ref()) else { return };
        // The one before it, of a rule deleted and put again, says goodbye first.
        if self.rests(key, &address) || self.relays.values().any(|relay| relay.key == *key && relay.address == address)
        {
            return;
        }
        self.numbers += 1;
        let number = self.numbers;
        let (masked, public) = (wish.target.masked(), wish.target.public(key.id()));
        let counters = Arc::new(live::Relay { target: public.clone(), ..live::Relay::default() });
        self.parts.live.relay_started(key.clone(), address.clone(), counters.clone());
        let (wish, wished) = watch::channel(wish);
        let inbox = self.plan.inbox.clone();
        let relay = Relay {
            id: key.id().to_owned(),
            stream: live.stream.clone(),
            wish: wished,
            lane: live.lane.clone(),
            renditions: self.parts.renditions.clone(),
            settings: self.parts.relay.clone(),
            live: counters,
            trace: live.trace.clone(),
            note: Box::new(move |status| inbox.put(|news| drop(news.statuses.insert(number, status)))),
            span: info_span!("relay", stream = %key, target = public),
        };
        let task = self.running.spawn_on(relay.run(), live.lane.handle()).id();
        let (told, wish) = (Status::default(), Some(wish));
        self.relays.insert(number, Running { key: key.clone(), address, masked, wish, task, told, ended: false });
    }

    /// Whether a relay or a recording is not to be started yet.
    fn rests(&self, key: &StreamKey, name: &str) -> bool {
        self.resting.contains_key(&(key.clone(), name.to_owned()))
    }

    async fn task_ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let task = ended.as_ref().map_or_else(tokio::task::JoinError::id, |(task, ())| *task);
        match self.recordings.iter().find(|(_, recording)| recording.task == task).map(|(number, _)| *number) {
            Some(number) => self.recording_ended(number, ended.err()).await,
            None => self.relay_ended(task, ended),
        }
    }

    /// A relay's last word is in the inbox by now, if it is not written already, unless its task failed.
    fn relay_ended(&mut self, task: tokio::task::Id, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let Some(number) = self.relays.iter().find(|(_, relay)| relay.task == task).map(|(number, _)| *number) else {
            return;
        };
        let last = self.plan.inbox.lock().statuses.remove(&number);
        let status = match (ended, last) {
            (Ok(_), last) => last,
            (Err(error), _) => {
                let relay = &self.relays[&number];
                error!(stream = %relay.key, %error, "a relay's task failed; it is started again");
                self.resting.insert((relay.key.clone(), relay.address.clone()), Instant::now() + REST);
                let mut status = Status::new(State::None, Reason::ServerError);
                (status.state_ms, status.last_error) = (unix_ms(), "internal error".into());
                Some(status)
            }
        };
        self.relays.get_mut(&number).expect("it was found").ended = true;
        self.pending.extend(status.map(|status| (number, status)));
        if self.pending.contains_key(&number) {
            self.write_at = Some(Instant::now());
        } else {
            self.forget_relay(number);
        }
    }

    /// Writes the statuses that wait, and owes relay_state for those that changed.
    async fn write_statuses(&mut self) {
        let batch: Vec<_> = self
            .pending
            .iter()
            .filter_map(|(number, status)| {
                let relay = self.relays.get(number)?;
                let app = self.parts.apps.get(relay.key.app()).filter(|_| !relay.has_told(status));
                Some((relay.key.clone(), relay.address.clone(), relay.masked.clone(), status.clone(), app))
            })
            .collect();
        let now_ms = unix_ms();
        let written = self
            .write(async |tx| {
                for (key, address, masked, status, app) in &batch {
                    tx.rule_note(key, address, status).await?;
                    if let Some(app) = app {
                        tx.owe(callback::relay_state(app, key, masked, status, now_ms), now_ms).await?;
                    }
                }
                Ok(())
            })
            .await;
        if let Err(error) = written {
            error!(%error, "cannot write the state of relays; trying again");
            return self.write_later();
        }
        for (number, status) in std::mem::take(&mut self.pending) {
            let Some(relay) = self.relays.get_mut(&number) else { continue };
            relay.told = status;
            if relay.ended {
                self.forget_relay(number);
            }
        }
    }

    fn forget_relay(&mut self, number: u64) {
        let Some(relay) = self.relays.remove(&number) else { return };
        self.parts.live.relay_ended(&relay.key, &relay.address);
        // A rule that was put again while this relay said goodbye starts now.
        self.plan.wake(relay.key);
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        let over = |place: &Place| place.ends_at.is_some_and(|at| at <= now);
        let ended: Vec<_> = self.places.iter().filter(|(_, place)| over(place)).map(|(key, _)| key.clone()).collect();
        for key in ended {
            let close = self.places[&key].close;
            self.end(&key, close).await;
        }
        let rested = self.resting.extract_if(.., |_, at| *at <= now);
        self.woken.extend(rested.map(|((key, _), _)| key));
        if self.write_at.is_some_and(|at| at <= now) {
            self.write_at = None;
            self.write_what_waits().await;
        }
        if self.due_at.is_some_and(|at| at <= now) {
            (self.due_at, self.settle) = (None, true);
        }
    }

    async fn write_what_waits(&mut self) {
        self.woken.extend(self.unwritten.iter().cloned());
        if !self.write_stopped().await {
            return;
        }
        // A store that does not take one takes none.
        while let Some(key) = self.unwritten.pop_first() {
            if !self.write_session(&key).await {
                break;
            }
        }
        if !self.pending.is_empty() {
            self.write_statuses().await;
        }
        self.write_words().await;
    }

    /// Writes what the last run left running, if that has to be written yet; says whether it is.
    async fn write_stopped(&mut self) -> bool {
        if self.lock_stopped().is_none() {
            return true;
        }
        // That goes before whatever is written.
        let written = self.write(async |_| Ok(())).await;
        if let Err(error) = &written {
            error!(%error, "cannot write that nothing runs yet; trying again");
            self.write_later();
        }
        written.is_ok()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let ends = self.places.values().filter_map(|place| place.ends_at).min();
        let rested = self.resting.values().min().copied();
        [ends, rested, self.write_at, self.due_at].into_iter().flatten().min()
    }

    async fn drain(&mut self) {
        let keys: Vec<_> = self.places.keys().cloned().collect();
        for key in keys {
            self.cut(&key);
            self.end(&key, Close::TcpDrop).await;
            // What cannot be written now is found by the next start.
            self.places.remove(&key);
        }
    }

    async fn tidy(&self) {
        let before_ms = unix_ms() - HISTORY.as_millis() as i64;
        let history = self.parts.apps.all().iter().filter_map(|app| app.stream_history).max().unwrap_or_default();
        let closed_before_ms = before_ms.min(unix_ms() - history.as_millis() as i64);
        let tidied = self
            .write(async |tx| {
                tx.streams_forget(closed_before_ms).await?;
                tx.records_forget(before_ms).await?;
                tx.sequences_forget(before_ms).await
            })
            .await;
        if let Err(error) = tidied {
            warn!(%error, "cannot forget old rows");
        }
    }

    async fn read<T>(&self, ask: impl AsyncFnOnce(&mut Tx) -> Result<T, store::Error>) -> Result<T, store::Error> {
        ask(&mut self.parts.store.read().await?).await
    }

    /// What the last run left running goes first: later a relay of the same rule may have told that it runs.
    async fn write<T>(&self, change: impl AsyncFnOnce(&mut Tx) -> Result<T, store::Error>) -> Result<T, store::Error> {
        let written = async {
            let stopped = self.lock_stopped().clone();
            let mut tx = self.parts.store.begin().await?;
            if let Some(stopped) = &stopped {
                stopped.note(&mut tx, &self.parts.apps).await?;
            }
            let made = change(&mut tx).await?;
            tx.commit().await?;
            *self.lock_stopped() = None;
            Ok(made)
        }
        .await;
        let trouble = written.as_ref().err().map(store::Error::to_string).unwrap_or_default();
        *self.plan.inbox.trouble.lock().expect("no holder panics") = trouble;
        written
    }

    fn lock_stopped(&self) -> MutexGuard<'_, Option<Arc<Stopped>>> {
        self.stopped.lock().expect("no holder panics")
    }
}

fn masked(url: &crate::secret::Secret) -> String {
    Target::parse(url.expose()).map_or_else(|_| "***".to_owned(), |target| target.masked())
}
