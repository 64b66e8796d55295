//! Makes what runs equal to what the rows say, and writes down what happened.
//!
//! One task looks after all streams. Publishers ask it for a place; actions, publishers that leave and relays whose state changes leave a word in the
//! [`Inbox`]. It answers by the same few steps whether a call, a publish, a crash or a restart was the cause.
//!
//! It waits for no disk: what happened is noted in its ledger, which is written beside all else.
//!
//! Invariant: only this module starts and stops relays and recordings. A change of state and the callbacks that it owes
//! are one transaction; where the store fails or stalls, what happened is kept and written later, and what runs goes on.

mod ledger;
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
use bywash_media::StreamKey;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, info_span, warn};

use crate::callback::Close;
use crate::clock::{unix_ms, until};
use crate::config::Apps;
use crate::hub::{self, Hub};
use crate::lane::Lane;
use crate::live;
use crate::output::record::Note;
use crate::output::relay::{self, Relay, Wish};
use crate::rendition::Renditions;
use crate::secret::Secret;
use crate::store::{self, File, Origin, Reason, Rule, Session, State, Status, Store, Tx};
use crate::vendor::{self, Target};

use self::ledger::{Desk, Due, Ended, Entry, Ledger};
use self::record::Recording;

pub use self::record::Settings as RecordSettings;

/// How long a relay or a recording is left alone whose task has failed, which is a fault of ours.
const REST: Duration = Duration::from_secs(5);

/// How long a count of retries may wait to be written; a change of state does not wait.
const LAZY: Duration = Duration::from_secs(1);

/// How many servers a stream may come through before a relay of it is refused as a loop.
const HOPS: usize = 8;

/// How long closed streams and old sequences are remembered at the least.
const HISTORY: Duration = Duration::from_secs(24 * 3600);

/// How many ends of a stream may wait to be written, about. Who comes then takes the last of them back, and the stream goes on.
const ENDS: usize = 3;

/// How long a publisher waits at most until its stream is in the rows.
const PATIENCE: Duration = Duration::from_millis(500);

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
    /// It was let in, and its media never came.
    Absent,
}

impl Leave {
    /// How a stream has ended whose last publisher left so; one that never came is not it.
    fn close(self) -> Option<Close> {
        match self {
            Leave::Finished => Some(Close::Normal),
            Leave::Lost => Some(Close::TcpDrop),
            Leave::Silent => Some(Close::Heartbeat),
            Leave::Absent => None,
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
    /// The rows do not know the session, or not as it is, and that is noted.
    unwritten: bool,
    /// Its publisher has sent something.
    announced: bool,
    /// stream_create is owed with the next write of the session.
    owes_create: bool,
    /// The `userId` of the last one that is written or on its way.
    heard: Option<String>,
    /// `None` after a restart, until its publisher comes back.
    stream: Option<Live>,
    /// When the stream ends if nobody publishes it; none while somebody does.
    ends_at: Option<Instant>,
    /// The app's default target as it was when the stream was sent there; see [`Keeper::put_default_rule`].
    default: Option<Target>,
    /// The rows know that, and a call may have put an end to it.
    default_written: bool,
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
    /// Until when the stream would have waited, had that one not come.
    waited: Option<Instant>,
}

/// A relay that runs.
struct Running {
    key: StreamKey,
    address: String,
    url: Secret,
    counters: Arc<live::Relay>,
    /// Taken away when the rule is.
    wish: Option<watch::Sender<Wish>>,
    task: tokio::task::Id,
    /// What the rows and the customer know.
    told: Status,
    /// A status is to be written soon,
    noted: bool,
    /// or is on its way.
    on_its_way: bool,
    /// It has said goodbye.
    ended: bool,
}

impl Running {
    fn has_told(&self, status: &Status) -> bool {
        (self.told.state, self.told.reason) == (status.state, status.reason)
    }
}

/// A publisher that is taken and not told yet.
struct Greeting {
    hold: Hold,
    reply: oneshot::Sender<Result<Hold, Refusal>>,
    /// It is told once this transaction is over,
    after: u64,
    /// or at this time.
    at: Instant,
}

struct Keeper {
    parts: Parts,
    plan: Plan,
    ledger: Ledger,
    greetings: Vec<Greeting>,
    desk: Arc<Desk>,
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
    /// Recordings are to be looked for that are over,
    settle: bool,
    /// once what was found is written.
    settling: bool,
    /// Statuses that wait to be written.
    pending: BTreeMap<u64, Status>,
    /// Sessions whose end is not written yet, by their streams and `seq`.
    ending: BTreeSet<(StreamKey, i64)>,
    /// Recordings that run, by number.
    recordings: BTreeMap<u64, Recording>,
    /// Those that finish files that a stop has cut.
    finishing: JoinSet<()>,
    /// When a recording's time may be over, or the store is asked again for such.
    due_at: Option<Instant>,
    numbers: u64,
    /// When counts of retries are written.
    counts_at: Option<Instant>,
    drained: Option<oneshot::Sender<()>>,
}

impl Keeper {
    fn new(parts: Parts) -> (Keeper, mpsc::Receiver<Request>) {
        let (requests, asked) = mpsc::channel(256);
        let desk = Desk {
            store: parts.store.clone(),
            apps: parts.apps.clone(),
            urls: parts.record.urls.clone(),
            bucket: parts.record.bucket,
            public_url: parts.public_url.clone(),
            rtmp_base: parts.rtmp_base.clone(),
        };
        let keeper = Keeper {
            parts,
            ledger: Ledger::default(),
            greetings: Vec::new(),
            desk: Arc::new(desk),
            plan: Plan { inbox: Arc::default(), requests, marker: rand::random() },
            places: HashMap::new(),
            relays: HashMap::new(),
            running: JoinSet::new(),
            resting: BTreeMap::new(),
            woken: BTreeSet::new(),
            turn: Vec::new(),
            settle: false,
            settling: false,
            pending: BTreeMap::new(),
            ending: BTreeSet::new(),
            recordings: BTreeMap::new(),
            finishing: JoinSet::new(),
            due_at: None,
            numbers: 0,
            counts_at: None,
            drained: None,
        };
        (keeper, asked)
    }

    /// Publishers and moments that have come go before what calls have changed, of which each turn does a little: however much of
    /// it there is, a publisher waits for one stream's rows and not for all.
    async fn run(mut self, mut asked: mpsc::Receiver<Request>) {
        let mut tidied = Instant::now();
        while !self.is_over() {
            self.write_down();
            let wake_at = self.next_deadline();
            let more = self.may_settle() || !self.woken.is_empty() || !self.turn.is_empty();
            tokio::select! { biased;
                () = until(wake_at) => self.on_time(),
                Some(written) = self.ledger.written() => self.written(written),
                Some(ended) = self.running.join_next_with_id() => self.task_ended(ended),
                Some(_) = self.finishing.join_next() => {}
                Some(request) = asked.recv() => match request {
                    Request::Publish(arrival, reply) => {
                        match self.publish(*arrival).await {
                            Ok(hold) => self.greet(hold, reply),
                            refused => drop(reply.send(refused)),
                        }
                    }
                    Request::Reload => {
                        self.ledger.note(Entry::Readdress);
                        self.end_strays();
                        self.woken.extend(self.places.keys().cloned());
                    }
                    Request::Drain(reply) => {
                        self.drained = Some(reply);
                        self.drain();
                    }
                },
                () = self.plan.inbox.come.notified() => self.read_inbox(),
                () = ready(()), if more => {}
            }
            self.take_turn().await;
            if tidied.elapsed() > HISTORY / 24 {
                tidied = Instant::now();
                self.tidy();
            }
        }
        if let Some(reply) = self.drained.take() {
            let _ = reply.send(());
        }
    }

    fn is_over(&self) -> bool {
        let quiet = self.drained.is_some() && self.relays.is_empty() && self.recordings.is_empty();
        quiet && (self.ledger.is_empty() || self.ledger.can_be_left())
    }

    /// Until all is written, or the store refuses.
    async fn write_all(&mut self) {
        self.write_down();
        while let Some(written) = self.ledger.written().await {
            self.written(written);
            self.write_down();
        }
    }

    /// After a start: nothing runs, whatever the rows say. Streams that were live wait for their publishers.
    async fn recover(&mut self) -> Result<(), store::Error> {
        let grace = **self.parts.grace.load();
        let look = async |tx: &mut Tx| {
            let stopped = Entry::Stopped(tx.relays_running().await?, tx.records_running().await?);
            Ok((tx.streams_open().await?, tx.rules_default().await?, tx.files_open().await?, stopped))
        };
        let (sessions, rules, files, stopped) = self.read(look).await?;
        for session in sessions {
            info!(stream = %session.key, "was live when the server stopped; waiting for its publisher");
            let place = Place {
                unwritten: false,
                announced: session.heard,
                owes_create: false,
                heard: session.heard.then(|| session.user_id.clone()),
                stream: None,
                ends_at: Some(Instant::now() + grace),
                // It was sent there already, or a call has put an end to that.
                default: match rules.iter().find(|rule| rule.key == session.key) {
                    Some(rule) => Target::parse(rule.url.expose()).ok(),
                    None => self.default_target(&session.key),
                },
                default_written: true,
                close: Close::TcpDrop,
                session,
            };
            self.places.insert(place.session.key.clone(), place);
        }
        for file in files {
            self.finish_cut(File { interrupted: true, ..file });
        }
        self.settle = true;
        self.ledger.note(stopped);
        self.ledger.note(Entry::Readdress);
        self.write_all().await;
        Ok(())
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
        self.read_inbox();
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
        let ends = self.ending.range((key.clone(), 0)..=(key.clone(), i64::MAX));
        let (ends, last) = ends.fold((0, 0), |(ends, _), (_, seq)| (ends + 1, *seq));
        let seq = seq.max(last + 1);
        if ends >= ENDS {
            self.take_back_end(&key);
        }
        let since_ms = self.places.get(&key).map_or(now_ms, |place| place.session.created_ms);
        let info = live::Stream::new(arrival.protocol, arrival.address.to_string(), since_ms);
        let publisher = self.parts.hub.publish(&key, info, now).ok_or(Refusal::Occupied)?;
        let stream = self.parts.hub.get(&key).expect("it was just published");

        self.numbers += 1;
        let number = self.numbers;
        let cut = CancellationToken::new();
        let trace = [arrival.trace.as_slice(), &[mark]].concat().join(",");
        let waited = self.places.get(&key).and_then(|place| place.ends_at);
        let live = Live { stream, lane: arrival.lane, trace, number, cut: cut.clone(), waited };
        match self.places.get(&key) {
            Some(_) => {
                info!(stream = %key, from = %arrival.address, "publisher is back");
                self.tell_of_who_is_taken_over(&key);
                let place = self.places.get_mut(&key).expect("it was found");
                // The same stream goes on, and a customer who has heard of it hears so: stream_create with `recreate`.
                (place.announced, place.owes_create) = (false, false);
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
                    heard: false,
                    created_ms: now_ms,
                    closed_ms: 0,
                };
                let place = Place {
                    session,
                    unwritten: false,
                    announced: false,
                    owes_create: false,
                    heard: None,
                    stream: Some(live),
                    ends_at: None,
                    default: None,
                    default_written: true,
                    close: Close::TcpDrop,
                };
                self.places.insert(key.clone(), place);
            }
        }
        self.note_session(&key);
        self.make_so(&key).await;
        Ok(Hold { publisher, cut, word: Word { inbox: self.plan.inbox.clone(), key, number, how: Leave::Lost } })
    }

    /// Answers a publisher once its stream is in the rows, so that a call that follows finds it there; or soon, where the store is slow.
    fn greet(&mut self, hold: Hold, reply: oneshot::Sender<Result<Hold, Refusal>>) {
        let after = self.ledger.next();
        self.greetings.push(Greeting { hold, reply, after, at: Instant::now() + PATIENCE });
        self.answer();
    }

    /// Answers the publishers who have waited for long enough.
    fn answer(&mut self) {
        let (done, refused, now) = (self.ledger.done(), self.ledger.is_refused(), Instant::now());
        for greeting in self.greetings.extract_if(.., |it| it.after <= done || refused || it.at <= now) {
            // One that has gone meanwhile drops its hold, which says so.
            let _ = greeting.reply.send(Ok(greeting.hold));
        }
    }

    /// What is still to be told of the publisher that held a stream last is told as it was.
    fn tell_of_who_is_taken_over(&mut self, key: &StreamKey) {
        let owes = self.places.get(key).is_some_and(|place| place.owes_create);
        if !owes || self.ledger.taken_over(key) >= ENDS {
            return;
        }
        let waits = self.ledger.take_back_session(key);
        if let Some(entry) = waits.and_then(|due| self.entry(due)) {
            self.ledger.note(entry);
        }
    }

    fn read_inbox(&mut self) {
        let news = self.plan.inbox.take();
        for (key, (number, cid)) in news.began {
            if self.holds(&key, number) {
                self.announce(&key, cid);
            }
        }
        for (key, number, how) in news.left {
            if self.holds(&key, number) {
                self.left(&key, how);
            }
        }
        for (number, status) in news.statuses {
            self.note_status(number, status);
        }
        for (number, word) in news.recordings {
            self.note_word(number, word);
        }
        // Nothing runs for a stream that is not there, and when it is published its rows are read. But its recordings may be over.
        self.settle |= !news.woken.is_empty();
        self.woken.extend(news.woken.into_iter().filter(|key| self.places.contains_key(key)));
    }

    /// A change of state is written at once, counts a little later.
    fn note_status(&mut self, number: u64, status: Status) {
        let Some(relay) = self.relays.get_mut(&number) else { return };
        let news = !relay.has_told(&status) || relay.on_its_way;
        self.pending.insert(number, status);
        if !news {
            self.counts_at.get_or_insert(Instant::now() + LAZY);
        } else if !std::mem::replace(&mut relay.noted, true) {
            self.ledger.note_that(Due::Status(number));
        }
    }

    fn is_live(&self, key: &StreamKey) -> bool {
        self.places.get(key).is_some_and(|place| place.stream.is_some())
    }

    /// Whether this publisher is the one that holds the stream now.
    fn holds(&self, key: &StreamKey, number: u64) -> bool {
        self.places.get(key).and_then(|place| place.stream.as_ref()).is_some_and(|live| live.number == number)
    }

    fn left(&mut self, key: &StreamKey, how: Leave) {
        let grace = **self.parts.grace.load();
        let Some(place) = self.places.get_mut(key) else { return };
        place.close = how.close().unwrap_or(place.close);
        let now = Instant::now();
        let waits = match how {
            // A publisher that says goodbye does not come back in a moment.
            Leave::Finished => None,
            // Whoever was there before may still come back.
            Leave::Absent => place.stream.as_ref().and_then(|live| live.waited),
            Leave::Lost | Leave::Silent => Some(now + grace).filter(|_| !grace.is_zero()),
        };
        if let Some(until) = waits.filter(|_| self.drained.is_none()) {
            let grace_ms = until.saturating_duration_since(now).as_millis() as u64;
            info!(stream = %key, ?how, grace_ms, "publisher is gone; waiting for it");
            place.ends_at = Some(until);
        } else {
            let close = place.close;
            self.end(key, close);
        }
    }

    /// Ends a stream: its outputs finish what they have, and the customer is told.
    fn end(&mut self, key: &StreamKey, close: Close) {
        self.parts.hub.end(key);
        let Some(place) = self.places.remove(key) else { return };
        info!(stream = %key, ?close, "stream ends");
        self.ledger.take_back_session(key);
        self.ledger.take_back_default(key);
        let ends = self.ending.range((key.clone(), 0)..=(key.clone(), i64::MAX)).count();
        if ends >= 2 * ENDS && place.unwritten && place.heard.is_none() {
            return warn!(stream = %key, "what became of the stream cannot be written: nobody is told of it");
        }
        let at_ms = unix_ms();
        self.parts.live.stream_closing(key, at_ms);
        self.ending.insert((key.clone(), place.session.seq));
        self.ledger.note(Entry::End(Box::new(Ended {
            session: place.session,
            unwritten: place.unwritten,
            create: place.owes_create,
            heard: place.heard,
            close,
            at_ms,
        })));
    }

    /// Makes of the last end of a stream that waits to be written a stream that nobody publishes.
    fn take_back_end(&mut self, key: &StreamKey) {
        let Some(ended) = self.ledger.take_back_end(key) else { return };
        let Ended { session, unwritten, create, heard, close, at_ms } = *ended;
        self.parts.live.stream_closed(key, at_ms);
        self.ending.remove(&(key.clone(), session.seq));
        let place = Place {
            session,
            unwritten: false,
            announced: create || heard.is_some(),
            owes_create: create,
            heard,
            stream: None,
            ends_at: None,
            default: None,
            default_written: true,
            close,
        };
        self.places.insert(key.clone(), place);
        if unwritten {
            self.note_session(key);
        }
    }

    /// Owes stream_create, once.
    fn announce(&mut self, key: &StreamKey, cid: i64) {
        let Some(place) = self.places.get_mut(key) else { return };
        if place.announced {
            return;
        }
        place.session.codec = cid;
        (place.announced, place.owes_create) = (true, true);
        self.note_session(key);
    }

    /// Has a session written as it is by then.
    fn note_session(&mut self, key: &StreamKey) {
        let Some(place) = self.places.get_mut(key) else { return };
        if !std::mem::replace(&mut place.unwritten, true) {
            self.ledger.note_that(Due::Session(key.clone()));
        }
    }

    /// Does the next part of what calls have changed.
    async fn take_turn(&mut self) {
        if self.turn.is_empty() {
            self.turn.extend(std::mem::take(&mut self.woken));
        }
        if let Some(key) = self.turn.pop() {
            self.make_so(&key).await;
        }
        if self.may_settle() {
            self.settle_recordings().await;
        }
    }

    fn may_settle(&self) -> bool {
        self.settle && !self.settling
    }

    /// The rows still have what a publish of this stream that is over has left.
    fn is_ending(&self, key: &StreamKey) -> bool {
        self.ending.range((key.clone(), 0)..).next().is_some_and(|(ending, _)| ending == key)
    }

    async fn make_so(&mut self, key: &StreamKey) {
        if let Err(error) = self.reconcile(key).await {
            error!(stream = %key, %error, "cannot read what should run; trying again");
            self.resting.insert((key.clone(), String::new()), Instant::now() + ledger::RETRY);
        }
    }

    /// Makes the relays and recordings of a live stream equal to its rows.
    async fn reconcile(&mut self, key: &StreamKey) -> Result<(), store::Error> {
        if !self.places.contains_key(key) {
            return Ok(());
        }
        let app = self.parts.apps.get(key.app());
        self.put_default_rule(key);
        let (forbidden, mut rules) =
            self.read(async |tx| Ok((tx.forbidden(key).await?, tx.rules_of(key).await?))).await?;
        if forbidden {
            info!(stream = %key, "stream is forbidden: its publisher is cut");
            self.cut(key);
            self.end(key, Close::Kicked);
            return Ok(());
        }
        if !self.is_live(key) {
            return Ok(());
        }
        self.add_default_rule(key, &mut rules);

        let mut extra: BTreeMap<String, u64> = self
            .relays
            .iter()
            .filter(|(_, relay)| relay.key == *key && relay.wish.is_some() && !relay.ended)
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
                    let knows = relay.told.state == State::None || relay.has_told(&rule.status);
                    if !knows && !relay.on_its_way && !self.pending.contains_key(&number) {
                        self.pending.insert(number, relay.told.clone());
                        self.counts_at = Some(Instant::now());
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
    fn put_default_rule(&mut self, key: &StreamKey) {
        let target = self.default_target(key);
        let address = |target: &Option<Target>| target.as_ref().map(Target::address);
        let other = |it: &&mut Place| it.stream.is_some() && address(&it.default) != address(&target);
        let Some(place) = self.places.get_mut(key).filter(other) else { return };
        (place.default, place.default_written) = (target.clone(), false);
        self.ledger.note(Entry::DefaultRule(key.clone(), target));
    }

    /// What the rows say of the default target, or will say once they are written.
    fn add_default_rule(&self, key: &StreamKey, rules: &mut Vec<Rule>) {
        let Some(place) = self.places.get(key).filter(|it| !it.default_written || self.is_ending(key)) else { return };
        rules.retain(|rule| rule.origin != Origin::Default);
        let Some(target) = &place.default else { return };
        let address = target.address();
        if !rules.iter().any(|rule| rule.address == address) {
            let (key, url, origin) = (key.clone(), target.url().clone(), Origin::Default);
            rules.push(Rule { key, address, url, origin, created_ms: 0, retry_asked: 0, status: Status::default() });
        }
    }

    /// Where the stream goes by its app's configuration alone.
    fn default_target(&self, key: &StreamKey) -> Option<Target> {
        let app = self.parts.apps.get(key.app())?;
        let url = app.cdn.default_target.as_ref().filter(|_| app.cdn.relay_everything)?;
        Target::parse(&format!("{}/{}", url.trim_end_matches('/'), key.id())).ok()
    }

    /// Streams of apps that are configured no more end, and those of an environment that their app has no more: nobody could stop them
    /// by a call.
    fn end_strays(&mut self) {
        let apps = &self.parts.apps;
        let has = |key: &&StreamKey| apps.get(key.app()).is_some_and(|app| app.environment.has(key.environment()));
        let keys: Vec<_> = self.places.keys().filter(|key| !has(key)).cloned().collect();
        for key in keys {
            warn!(stream = %key, "its app or environment is configured no more: the stream ends");
            self.cut(&key);
            self.end(&key, Close::Kicked);
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
        if self.rests(key, &address) {
            return;
        }
        let same = |(_, relay): &(&u64, &Running)| relay.key == *key && relay.address == address;
        let before: BTreeMap<u64, bool> =
            self.relays.iter().filter(same).map(|(at, relay)| (*at, relay.ended)).collect();
        // The one before it, of a rule deleted and put again, says goodbye first.
        if before.values().any(|ended| !ended) {
            return;
        }
        // Where what they told cannot be written, some of it is left out.
        if before.len() >= ENDS
            && let Some(number) = before.keys().next()
        {
            self.pending.remove(number);
            self.relays.remove(number);
        }
        self.numbers += 1;
        let number = self.numbers;
        let (url, public) = (wish.target.url().clone(), wish.target.public(key.id()));
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
            live: counters.clone(),
            trace: live.trace.clone(),
            note: Box::new(move |status| inbox.put(|news| drop(news.statuses.insert(number, status)))),
            span: info_span!("relay", stream = %key, target = public),
        };
        let task = self.running.spawn_on(relay.run(), live.lane.handle()).id();
        let (told, wish) = (Status::default(), Some(wish));
        let relay = Running {
            key: key.clone(),
            address,
            url,
            counters,
            wish,
            task,
            told,
            noted: false,
            on_its_way: false,
            ended: false,
        };
        self.relays.insert(number, relay);
    }

    /// Whether a relay or a recording is not to be started yet.
    fn rests(&self, key: &StreamKey, name: &str) -> bool {
        self.resting.contains_key(&(key.clone(), name.to_owned()))
    }

    fn task_ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let task = ended.as_ref().map_or_else(tokio::task::JoinError::id, |(task, ())| *task);
        match self.recordings.iter().find(|(_, recording)| recording.task == task).map(|(number, _)| *number) {
            Some(number) => self.recording_ended(number, ended.err()),
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
        if let Some(status) = status {
            self.note_status(number, status);
        }
        // Who comes after it waits for that.
        self.counts_at = self.pending.contains_key(&number).then(Instant::now).or(self.counts_at);
        // A rule that was put again while this relay said goodbye, or whose stream is back, starts now.
        self.plan.wake(self.relays[&number].key.clone());
        self.forget_relay_that_has_told(number);
    }

    fn forget_relay_that_has_told(&mut self, number: u64) {
        let has_told = |relay: &Running| relay.ended && !relay.on_its_way;
        if self.relays.get(&number).is_some_and(has_told) && !self.pending.contains_key(&number) {
            self.forget_relay(number);
        }
    }

    fn forget_relay(&mut self, number: u64) {
        let Some(relay) = self.relays.remove(&number) else { return };
        self.parts.live.relay_ended(&relay.key, &relay.address, &relay.counters);
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        let over = |place: &Place| place.ends_at.is_some_and(|at| at <= now);
        let ended: Vec<_> = self.places.iter().filter(|(_, place)| over(place)).map(|(key, _)| key.clone()).collect();
        for key in ended {
            let close = self.places[&key].close;
            self.end(&key, close);
        }
        self.answer();
        let rested = self.resting.extract_if(.., |_, at| *at <= now);
        self.woken.extend(rested.map(|((key, _), _)| key));
        if self.due_at.is_some_and(|at| at <= now) {
            (self.due_at, self.settle) = (None, true);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let ends = self.places.values().filter_map(|place| place.ends_at).min();
        let rested = self.resting.values().min().copied();
        let write_at = self.ledger.next_write(self.counts_at);
        let greeting = self.greetings.iter().map(|greeting| greeting.at).min();
        [ends, rested, write_at, self.due_at, greeting].into_iter().flatten().min()
    }

    fn drain(&mut self) {
        let keys: Vec<_> = self.places.keys().cloned().collect();
        for key in keys {
            self.cut(&key);
            self.end(&key, Close::TcpDrop);
        }
        // What cannot be written then is found by the next start.
        self.ledger.try_now();
    }

    fn tidy(&mut self) {
        let before_ms = unix_ms() - HISTORY.as_millis() as i64;
        let history = self.parts.apps.all().iter().filter_map(|app| app.stream_history).max().unwrap_or_default();
        let closed_before_ms = before_ms.min(unix_ms() - history.as_millis() as i64);
        self.ledger.note(Entry::Forget(closed_before_ms, before_ms));
    }

    async fn read<T>(&self, ask: impl AsyncFnOnce(&mut Tx) -> Result<T, store::Error>) -> Result<T, store::Error> {
        ask(&mut self.parts.store.read().await?).await
    }
}

fn masked(url: &Secret) -> String {
    Target::parse(url.expose()).map_or_else(|_| "***".to_owned(), |target| target.masked())
}
