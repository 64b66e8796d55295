//! What plan writes down: beside all else that it does, one transaction at a time, in the order in which it happened.
//!
//! Plan waits for no disk. It notes what is to be written; what was noted while one transaction was on its way goes into the next
//! together. What the store refuses is noted again, before what came later.
//!
//! Invariant: what has happened is noted or on its way until a commit has said that it is on the disk, and is written once.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bywash_media::{Environment, StreamKey};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tracing::{error, warn};

use super::record::{self, Whose};
use super::{ENDS, Keeper, Place, masked};
use crate::callback::{self, Close};
use crate::clock::unix_ms;
use crate::config::Apps;
use crate::object::Urls;
use crate::output::record::{Note, State as RecordingState};
use crate::secret::Secret;
use crate::store::{Error, File, Origin, Ran, Reason, Record, Session, State, Status, Store, Tx};
use crate::vendor::Target;

/// How long a failing store is left alone before it is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// How long a write may take before that is told.
const SLOW: Duration = Duration::from_secs(5);

/// What is to be written, and what is on its way.
#[derive(Default)]
pub(super) struct Ledger {
    /// In the order in which it happened.
    waiting: Vec<Due>,
    on_its_way: JoinSet<Written>,
    /// Transactions that have begun.
    begun: u64,
    /// The store has refused the last; not before this.
    retry_at: Option<Instant>,
}

/// What is to be written.
pub(super) enum Due {
    /// How the session of this stream is by then.
    Session(StreamKey),
    /// The status that waits of the relay with this number.
    Status(u64),
    /// What has happened, or should be.
    Entry(Entry),
}

/// What is written as it is.
pub(super) enum Entry {
    /// What the last run left running does not run.
    Stopped(Vec<Ran>, Vec<Record>),
    /// Callbacks that are not delivered yet go to where their apps take them now: the configuration may have changed.
    Readdress,
    /// A session that the rows do not know, or not as it is.
    Session(Box<Opened>),
    /// A stream has ended.
    End(Box<Ended>),
    /// A stream goes to its app's default target, or to none.
    DefaultRule(StreamKey, Option<Target>),
    /// How a relay goes.
    Status(Box<Told>),
    /// A stream is recorded because its app says so.
    Record(Box<Record>),
    /// The state of the recording with this id, which nothing runs for.
    RecordState(String, RecordingState),
    /// Something that the recording with this number has told.
    Word(u64, Option<Whose>, Note),
    /// The time of the first is over, and nothing runs for the second, which are over.
    Over(Vec<Record>, Vec<Record>),
    /// Publishes closed before the first and all else that was over before the second, in Unix milliseconds, are forgotten.
    Forget(i64, i64),
}

/// A session as it was when it was to be written.
pub(super) struct Opened {
    pub(super) session: Session,
    /// The publisher that held it.
    pub(super) number: u64,
    /// stream_create is owed,
    pub(super) create: bool,
    /// with `recreate` if it is not the session's first. The `userId` of the last one.
    pub(super) heard: Option<String>,
}

/// A session that is over.
pub(super) struct Ended {
    pub(super) session: Session,
    /// The rows do not know the session, or not as it is.
    pub(super) unwritten: bool,
    /// stream_create is still owed.
    pub(super) create: bool,
    /// The `userId` of the last one.
    pub(super) heard: Option<String>,
    pub(super) close: Close,
    pub(super) at_ms: i64,
}

/// How a relay goes, as it was when it was to be written.
pub(super) struct Told {
    pub(super) number: u64,
    pub(super) key: StreamKey,
    pub(super) address: String,
    pub(super) url: Secret,
    pub(super) status: Status,
    /// The customer has not heard that.
    pub(super) news: bool,
}

/// A transaction that is over: what it was to write, and of each what is to be answered, if it is written; and why not all of it is.
pub(super) type Written = (Vec<Entry>, Vec<Option<Vec<File>>>, Option<Error>);

/// What entries are written with.
pub(super) struct Desk {
    pub(super) store: Store,
    pub(super) apps: Arc<Apps>,
    pub(super) urls: Urls,
    pub(super) bucket: bool,
    pub(super) public_url: String,
    pub(super) rtmp_base: String,
}

impl Ledger {
    /// Notes what is to be written. What is of the same thing and waits already gives its place.
    pub(super) fn note(&mut self, entry: Entry) {
        let same = |due: &&mut Due| matches!(due, Due::Entry(other) if other.is_outdone_by(&entry));
        match self.waiting.iter_mut().find(same) {
            Some(place) => *place = Due::Entry(entry),
            None => self.waiting.push(Due::Entry(entry)),
        }
    }

    /// Notes that a session or a status waits, which the caller does once.
    pub(super) fn note_that(&mut self, due: Due) {
        self.waiting.push(due);
    }

    /// Takes back the session that waits to be written as it is by then.
    pub(super) fn take_back_session(&mut self, key: &StreamKey) -> Option<Due> {
        self.take_back(|due| matches!(due, Due::Session(waits) if waits == key))
    }

    /// Takes back the last end of a stream that waits.
    pub(super) fn take_back_end(&mut self, key: &StreamKey) -> Option<Box<Ended>> {
        match self.take_back(|due| matches!(due, Due::Entry(Entry::End(ended)) if ended.session.key == *key))? {
            Due::Entry(Entry::End(ended)) => Some(ended),
            _ => None,
        }
    }

    /// Takes back the default target of a stream that is over now.
    pub(super) fn take_back_default(&mut self, key: &StreamKey) {
        self.take_back(|due| matches!(due, Due::Entry(Entry::DefaultRule(of, _)) if of == key));
    }

    fn take_back(&mut self, such: impl Fn(&Due) -> bool) -> Option<Due> {
        let at = self.waiting.iter().rposition(such)?;
        Some(self.waiting.remove(at))
    }

    /// How many publishers of a stream that others have taken over wait to be told of.
    pub(super) fn taken_over(&self, key: &StreamKey) -> usize {
        taken_over(&self.waiting, key)
    }

    /// The number of the transaction that writes what is noted now.
    pub(super) fn next(&self) -> u64 {
        self.begun + 1
    }

    /// The last transaction that is over.
    pub(super) fn done(&self) -> u64 {
        self.begun - self.on_its_way.len() as u64
    }

    /// The store has refused the last transaction.
    pub(super) fn is_refused(&self) -> bool {
        self.retry_at.is_some()
    }

    /// All is written.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.on_its_way.is_empty()
    }

    /// The store refuses, and what waits is what the next start finds in the rows by itself.
    pub(super) fn can_be_left(&self) -> bool {
        let word = |due: &Due| matches!(due, Due::Entry(Entry::Word(..)));
        self.retry_at.is_some() && self.on_its_way.is_empty() && !self.waiting.iter().any(word)
    }

    /// The next transaction need not wait any longer.
    pub(super) fn try_now(&mut self) {
        self.retry_at = None;
    }

    /// When the next transaction begins, if something waits for it: for `counts_at`, or for the store to be tried again. One that is
    /// on its way is waited for first.
    pub(super) fn next_write(&self, counts_at: Option<Instant>) -> Option<Instant> {
        let waiting = !self.waiting.is_empty();
        let at = if waiting { self.retry_at } else { counts_at.max(counts_at.and(self.retry_at)) };
        at.filter(|_| self.on_its_way.is_empty())
    }

    /// A transaction that is over; `None` at once where none is on its way.
    pub(super) async fn written(&mut self) -> Option<Result<Written, JoinError>> {
        self.on_its_way.join_next().await
    }
}

fn taken_over(dues: &[Due], key: &StreamKey) -> usize {
    let such = |due: &&Due| matches!(due, Due::Entry(Entry::Session(opened)) if opened.session.key == *key);
    dues.iter().filter(such).count()
}

impl Entry {
    /// The stream whose life it is about.
    fn stream(&self) -> Option<&StreamKey> {
        match self {
            Entry::Session(opened) => Some(&opened.session.key),
            Entry::End(ended) => Some(&ended.session.key),
            Entry::DefaultRule(key, _) => Some(key),
            Entry::Record(record) => Some(&record.key),
            _ => None,
        }
    }

    /// Nothing is lost where only the other one is written.
    fn is_outdone_by(&self, other: &Entry) -> bool {
        match (self, other) {
            (Entry::Readdress, Entry::Readdress) | (Entry::Forget(..), Entry::Forget(..)) => true,
            (Entry::DefaultRule(key, _), Entry::DefaultRule(other, _)) => key == other,
            (Entry::RecordState(id, _), Entry::RecordState(other, _)) => id == other,
            _ => false,
        }
    }

    /// Writes it; gives the rows of the files that are to be begun.
    async fn write(&self, tx: &mut Tx, desk: &Desk) -> Result<Vec<File>, Error> {
        let now_ms = unix_ms();
        match self {
            Entry::Stopped(relays, records) => note_stopped(tx, &desk.apps, relays, records).await?,
            Entry::Readdress => {
                for app in desk.apps.all() {
                    for environment in [Environment::Production, Environment::Test] {
                        tx.outbox_readdress(&app, environment).await?;
                    }
                }
            }
            Entry::Session(opened) => {
                let Opened { session, create, heard, .. } = &**opened;
                desk.open(tx, session, *create, heard.is_some()).await?;
            }
            Entry::End(ended) => desk.end(tx, ended).await?,
            Entry::DefaultRule(key, target) => {
                tx.rules_delete_default(key).await?;
                if let Some(target) = target {
                    // What a call has put stays as it is.
                    let address = target.address();
                    if tx.rule(key, &address).await?.is_none() {
                        tx.rule_put(key, &address, target.url(), Origin::Default, now_ms).await?;
                    }
                }
            }
            Entry::Status(told) => {
                let Told { key, address, url, status, news, .. } = &**told;
                tx.relay_note(key, address, url, status).await?;
                if let Some(app) = desk.apps.get(key.app()).filter(|_| *news) {
                    tx.owe(callback::relay_state(&app, key, &masked(url), status, now_ms), now_ms).await?;
                }
            }
            Entry::Record(record) => {
                if tx.record_wished(&record.key, record.vendor).await?.is_none() {
                    tx.record_put(record).await?;
                }
            }
            Entry::RecordState(id, state) => record::note(tx, &desk.apps, id, state).await?,
            Entry::Word(_, whose, word) => match word {
                Note::Open(openings, _) => {
                    let Some(whose) = whose else { return Ok(Vec::new()) };
                    return record::open(tx, whose, openings).await;
                }
                Note::Whole(file) => desk.close(tx, (**file).clone()).await?,
                Note::Nothing(id) => tx.file_drop(id).await?,
                Note::State(state) => {
                    let Some(whose) = whose else { return Ok(Vec::new()) };
                    record::note(tx, &desk.apps, &whose.id, state).await?;
                }
            },
            Entry::Over(due, over) => {
                for record in due {
                    tx.record_close(&record.id, now_ms).await?;
                }
                record::note_stopped(tx, &desk.apps, over, "").await?;
            }
            Entry::Forget(closed_before_ms, before_ms) => {
                tx.streams_forget(*closed_before_ms).await?;
                tx.records_forget(*before_ms).await?;
                tx.sequences_forget(*before_ms).await?;
            }
        }
        Ok(Vec::new())
    }
}

impl Desk {
    /// Writes all of it, however long that takes.
    async fn write(&self, entries: Vec<Entry>) -> Written {
        let mut written = pin!(self.try_write(entries));
        loop {
            match timeout(SLOW, written.as_mut()).await {
                Ok(written) => return written,
                Err(_) => {
                    warn!("the database has not taken a write for {SLOW:?}: does its disk stand still?");
                    self.store.note_trouble(&Error::Busy);
                }
            }
        }
    }

    /// Writes all of it together; or, where one of it is at fault, each that can be written.
    async fn try_write(&self, entries: Vec<Entry>) -> Written {
        match self.transact(&entries).await {
            Ok(files) => (entries, files.into_iter().map(Some).collect(), None),
            Err(error) if entries.len() == 1 || matches!(error, Error::Full(_) | Error::Busy) => {
                let none = entries.iter().map(|_| None).collect();
                (entries, none, Some(error))
            }
            Err(mut error) => {
                let mut done = Vec::with_capacity(entries.len());
                let mut refused = BTreeSet::new();
                for entry in entries.chunks(1) {
                    // What happened to a stream is written in its order.
                    if entry[0].stream().is_some_and(|key| refused.contains(key)) {
                        done.push(None);
                        continue;
                    }
                    match self.transact(entry).await {
                        Ok(files) => done.extend(files.into_iter().map(Some)),
                        Err(why) => {
                            error = why;
                            done.push(None);
                            refused.extend(entry[0].stream());
                            // Later a relay of the same rule may tell that it runs.
                            if matches!(entry, [Entry::Stopped(..)]) {
                                break;
                            }
                        }
                    }
                }
                done.resize(entries.len(), None);
                (entries, done, Some(error))
            }
        }
    }

    async fn transact(&self, entries: &[Entry]) -> Result<Vec<Vec<File>>, Error> {
        let mut tx = self.store.begin().await?;
        let mut files = Vec::with_capacity(entries.len());
        for entry in entries {
            files.push(entry.write(&mut tx, self).await?);
        }
        tx.commit().await?;
        Ok(files)
    }
}

impl Desk {
    /// Writes a session, and owes stream_create, if the customer is to hear of it; `recreate` where it has heard of it before.
    async fn open(&self, tx: &mut Tx, session: &Session, create: bool, recreate: bool) -> Result<(), Error> {
        tx.stream_open(&Session { heard: create || recreate, ..session.clone() }).await?;
        let Some(app) = self.apps.get(session.key.app()).filter(|_| create) else { return Ok(()) };
        let (http, rtmp, now_ms) = (&self.public_url, &self.rtmp_base, unix_ms());
        tx.owe(callback::stream_create(&app, http, rtmp, session, recreate, now_ms), now_ms).await
    }

    async fn end(&self, tx: &mut Tx, ended: &Ended) -> Result<(), Error> {
        let Ended { session, unwritten, create, heard, close, at_ms } = ended;
        if *unwritten {
            self.open(tx, session, *create, heard.is_some()).await?;
        }
        tx.stream_close(&session.key, *at_ms).await?;
        tx.rules_delete_default(&session.key).await?;
        tx.records_close_default(&session.key, *at_ms).await?;
        // Who hears that it ends has heard that it began; of a publisher that never sent a thing nobody hears.
        let user = if *create { Some(&session.user_id) } else { heard.as_ref() };
        let Some((user_id, app)) = user.cloned().zip(self.apps.get(session.key.app())) else { return Ok(()) };
        let told = Session { user_id, ..session.clone() };
        tx.owe(callback::stream_close(&app, &told, *close, *at_ms), *at_ms).await
    }
}

/// Notes that none of what the last run left running runs, and owes what is to be told of that.
async fn note_stopped(tx: &mut Tx, apps: &Apps, relays: &[Ran], records: &[Record]) -> Result<(), Error> {
    const WHY: &str = "the server stopped";
    let now_ms = unix_ms();
    for Ran { key, address, url } in relays {
        let mut status = Status::new(State::None, Reason::ServerError);
        (status.state_ms, status.last_error) = (now_ms, WHY.into());
        let noted = tx.relay_note(key, address, url, &status).await?;
        if let Some(app) = apps.get(key.app()).filter(|_| noted) {
            tx.owe(callback::relay_state(&app, key, &masked(url), &status, now_ms), now_ms).await?;
        }
    }
    record::note_stopped(tx, apps, records, WHY).await
}

impl Keeper {
    /// Lets what waits be written, unless something is on its way or the store is left alone.
    pub(super) fn write_down(&mut self) {
        let now = Instant::now();
        if !self.ledger.on_its_way.is_empty() || self.ledger.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let waiting = std::mem::take(&mut self.ledger.waiting);
        let mut entries: Vec<_> = waiting.into_iter().filter_map(|due| self.entry(due)).collect();
        // Counts of retries go along with what is written anyway.
        if !entries.is_empty() || self.counts_at.is_some_and(|at| at <= now) {
            self.counts_at = None;
            let counts: Vec<_> = self.pending.keys().copied().collect();
            entries.extend(counts.into_iter().filter_map(|number| self.entry(Due::Status(number))));
        }
        if !entries.is_empty() {
            let desk = self.desk.clone();
            self.ledger.begun += 1;
            self.ledger.on_its_way.spawn(async move { desk.write(entries).await });
        }
    }

    /// What is to be written, as it is now.
    pub(super) fn entry(&mut self, due: Due) -> Option<Entry> {
        match due {
            Due::Session(key) => {
                let place = self.places.get_mut(&key).filter(|place| place.unwritten)?;
                place.unwritten = false;
                let create = std::mem::take(&mut place.owes_create);
                let number = place.stream.as_ref().map_or(0, |live| live.number);
                let session = place.session.clone();
                // Whatever is noted from now on is told after it.
                let heard = match create {
                    true => place.heard.replace(session.user_id.clone()),
                    false => place.heard.clone(),
                };
                Some(Entry::Session(Box::new(Opened { session, number, create, heard })))
            }
            Due::Status(number) => {
                let relay = self.relays.get_mut(&number)?;
                relay.noted = false;
                let status = self.pending.remove(&number)?;
                relay.on_its_way = true;
                let (key, address, url) = (relay.key.clone(), relay.address.clone(), relay.url.clone());
                let news = !relay.has_told(&status);
                Some(Entry::Status(Box::new(Told { number, key, address, url, status, news })))
            }
            Due::Entry(entry) => Some(entry),
        }
    }

    /// A transaction is over.
    pub(super) fn written(&mut self, written: Result<Written, JoinError>) {
        // It would be a fault of ours, and nobody knows what is written.
        let (entries, done, error) = written.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()));
        let mut again = Vec::new();
        for (entry, done) in entries.into_iter().zip(done) {
            match done {
                Some(files) => self.entry_written(entry, files),
                None => again.extend(self.entry_refused(entry, &again)),
            }
        }
        for due in std::mem::replace(&mut self.ledger.waiting, again) {
            match due {
                Due::Entry(entry) => self.ledger.note(entry),
                due => self.ledger.note_that(due),
            }
        }
        self.ledger.retry_at = error.as_ref().map(|_| Instant::now() + RETRY);
        self.answer();
        if let Some(error) = &error {
            error!(%error, waiting = self.ledger.waiting.len(), "cannot write what happened; trying again");
            self.parts.store.note_trouble(error);
        }
    }

    fn entry_written(&mut self, entry: Entry, files: Vec<File>) {
        match entry {
            Entry::End(ended) => {
                self.parts.live.stream_closed(&ended.session.key, ended.at_ms);
                self.ending.remove(&(ended.session.key.clone(), ended.session.seq));
                self.settle = true;
                // Who took its place meanwhile gets what the rows say.
                self.plan.wake(ended.session.key);
            }
            Entry::DefaultRule(key, target) => {
                let same = |place: &&mut Place| {
                    place.default.as_ref().map(Target::address) == target.as_ref().map(Target::address)
                };
                if let Some(place) = self.places.get_mut(&key).filter(same) {
                    place.default_written = true;
                }
                self.plan.wake(key);
            }
            Entry::Record(record) => self.record_written(*record),
            Entry::Status(told) => {
                let Some(relay) = self.relays.get_mut(&told.number) else { return };
                (relay.told, relay.on_its_way) = (told.status, false);
                self.forget_relay_that_has_told(told.number);
            }
            Entry::Word(number, _, word) => {
                if let Note::Open(_, reply) = word {
                    let _ = reply.send(files);
                }
                self.word_written(number);
            }
            Entry::Over(due, _) => {
                // There may be more of them, and these may be over now.
                (self.settling, self.settle) = (false, true);
                due.into_iter().for_each(|record| self.plan.wake(record.key));
            }
            Entry::Stopped(..) | Entry::Readdress | Entry::Session(_) | Entry::RecordState(..) | Entry::Forget(..) => {}
        }
    }

    /// What is to be written again of what the store has refused, besides what is `again` already.
    fn entry_refused(&mut self, entry: Entry, again: &[Due]) -> Option<Due> {
        match entry {
            Entry::Session(opened) => {
                let Opened { ref session, number, create, ref heard } = *opened;
                let holds = |place: &&mut Place| {
                    place.session.sid == session.sid && place.stream.as_ref().map_or(0, |live| live.number) == number
                };
                // What was to be told of who has been taken over, or of a stream that has ended, is told before that.
                let Some(place) = self.places.get_mut(&session.key).filter(holds) else {
                    let same = |place: &Place| place.session.sid == session.sid;
                    let goes_on = self.places.get(&session.key).is_some_and(same);
                    let is_left_out = goes_on && (!create || taken_over(again, &session.key) >= ENDS);
                    return (!is_left_out).then(|| Due::Entry(Entry::Session(opened)));
                };
                if create {
                    place.owes_create = true;
                    place.heard.clone_from(heard);
                }
                (!std::mem::replace(&mut place.unwritten, true)).then(|| Due::Session(session.key.clone()))
            }
            Entry::Status(told) => {
                let Told { number, status, .. } = *told;
                let relay = self.relays.get_mut(&number)?;
                relay.on_its_way = false;
                self.pending.entry(number).or_insert(status);
                (!std::mem::replace(&mut relay.noted, true)).then_some(Due::Status(number))
            }
            entry => Some(Due::Entry(entry)),
        }
    }
}
