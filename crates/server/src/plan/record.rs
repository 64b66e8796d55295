//! Recordings, as plan runs them: rows against recorders, and files from row to callback.
//!
//! A file's row is there before the file, and says Open until it is whole. So after a crash the rows that say so are the list of what
//! is to be finished, and each file is announced in the transaction that says that it is whole: once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bywash_media::{StreamKey, Time};
use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, info_span};

use super::ledger::{Desk, Entry, RETRY};
use super::{Keeper, REST};
use crate::callback;
use crate::clock::unix_ms;
use crate::config::{self, App, Vendor};
use crate::hub;
use crate::live;
use crate::object::{self, Urls};
use crate::output::record::{self, Note, Opening, Recorder, State};
use crate::segment::Folder;
use crate::space::Space;
use crate::store::{self, File, FileState, Origin, Record, RecordState, RecordStatus, Tx};

/// How long plan trusts a clock that somebody may set.
const CLOCK: Duration = Duration::from_secs(60);

/// Recordings of one stream under one name at once: each that is over waits until what it has told is written.
const WAITING: usize = 8;

/// How many recordings are ended in one transaction, about.
const AT_ONCE: usize = 100;

/// What recordings have in common.
pub struct Settings {
    /// Where files are written.
    pub folder: Folder,
    /// The room on its disk.
    pub space: Space,
    /// The addresses of files.
    pub urls: Urls,
    /// Files go to a bucket once they are whole, and are told of then.
    pub bucket: bool,
    /// How long a segment of HLS becomes.
    pub segment: Duration,
    /// Bits a second of sound that is encoded.
    pub bit_rate: u32,
}

/// Whose files a recording makes.
#[derive(Clone)]
pub(super) struct Whose {
    key: StreamKey,
    /// The task's.
    pub(super) id: String,
    vendor: Vendor,
}

/// A recording that runs.
pub(super) struct Recording {
    whose: Whose,
    stream: hub::Stream,
    /// Taken away when the recording is wished no more.
    wish: Option<DropGuard>,
    /// It is wished, but its app has no section of its vendor any more.
    disowned: bool,
    pub(super) task: tokio::task::Id,
    /// The task is over,
    ended: bool,
    /// and this much of what it has told is not written yet.
    unwritten: usize,
    /// The row of its task is not written yet.
    pub(super) unborn: bool,
}

impl Keeper {
    /// Finishes a file that a stop has cut, beside all else. Its row says Open until then, so another stop takes nothing away.
    pub(super) fn finish_cut(&mut self, file: File) {
        let (folder, inbox) = (self.parts.record.folder.clone(), self.plan.inbox.clone());
        self.finishing.spawn(async move {
            let span = info_span!("record", stream = %file.key, task = file.record);
            let path = file.path.clone();
            let word = record::finish(&folder, file, &span).await;
            info!(parent: &span, path, whole = matches!(word, Note::Whole(_)), "finished what a stop had cut");
            inbox.put(|news| news.recordings.push((0, word)));
        });
    }

    /// Makes the recordings of a live stream equal to its rows.
    pub(super) async fn reconcile_recordings(
        &mut self,
        key: &StreamKey,
        app: Option<&App>,
    ) -> Result<(), store::Error> {
        if let Some(app) = app {
            self.put_default_records(app, key).await?;
        }
        let ending = self.is_ending(key);
        let mut wished = self.read(async |tx| tx.records_wished_of(key).await).await?;
        // What was recorded by itself of the publish that is over is over, and what is due, whether its row says so or not.
        let now_ms = unix_ms();
        let is_over = |record: &Record| match record.origin {
            Origin::Default if ending => true,
            _ => record.end_ms > 0 && record.end_ms <= now_ms,
        };
        wished.retain(|record| !is_over(record));
        for recording in self.recordings.values_mut().filter(|it| it.whose.key == *key) {
            let is_wished = recording.unborn || wished.iter().any(|record| record.id == recording.whose.id);
            let has_section = app.is_some_and(|app| app.record.contains_key(recording.whose.vendor.name()));
            recording.disowned = is_wished && !has_section;
            // Without its section no call could stop it.
            if !is_wished || !has_section {
                recording.wish = None;
            }
        }
        for record in wished {
            let runs =
                |it: &Recording| it.whose.id == record.id && it.wish.is_some() && !it.ended && !it.stream.has_ended();
            if !self.recordings.values().any(runs) {
                self.start_recording(record, app);
            }
        }
        Ok(())
    }

    /// Every stream is recorded where the app says so, unless that was stopped during this publish.
    async fn put_default_records(&mut self, app: &App, key: &StreamKey) -> Result<(), store::Error> {
        let Some(begun_ms) = self.places.get(key).map(|place| place.session.created_ms) else { return Ok(()) };
        let ending = self.is_ending(key);
        let names = app.record.iter().filter(|(_, record)| record.record_everything).map(|(name, _)| name);
        for vendor in names.filter_map(|name| Vendor::named(name)) {
            let same = |it: &Recording| it.whose.key == *key && it.whose.vendor == vendor;
            if self.recordings.values().any(|it| same(it) && it.unborn && !it.stream.has_ended()) {
                continue;
            }
            let known = async |tx: &mut Tx| {
                let wished = tx.record_wished(key, vendor).await?;
                // What the publish left that is over goes with the end of it.
                let is_wished = wished.is_some_and(|record| !ending || record.origin != Origin::Default);
                Ok(is_wished || tx.record_stopped(key, vendor, begun_ms).await?)
            };
            if self.read(known).await? {
                continue;
            }
            let record = Record {
                id: store::record::task_id(),
                key: key.clone(),
                vendor,
                origin: Origin::Default,
                created_ms: unix_ms(),
                end_ms: 0,
                closed_ms: 0,
                status: RecordStatus { state_ms: unix_ms(), ..RecordStatus::default() },
            };
            // It begins with the stream, not with its row, which comes before any file's.
            if let Some(number) = self.start_recording(record.clone(), Some(app)) {
                self.ledger.note(Entry::Record(Box::new(record)));
                self.recordings.get_mut(&number).expect("it was just begun").unborn = true;
            }
        }
        Ok(())
    }

    /// Gives the number of the recording, if it has begun.
    fn start_recording(&mut self, record: Record, app: Option<&App>) -> Option<u64> {
        let same = |it: &&Recording| it.whose.key == record.key && it.whose.vendor == record.vendor;
        if self.rests(&record.key, &record.id) || self.recordings.values().filter(same).count() >= WAITING {
            return None;
        }
        let live = self.places.get(&record.key).and_then(|place| place.stream.as_ref())?;
        let Some(wanted) = app.and_then(|app| app.record.get(record.vendor.name())) else {
            // One that still ends says so itself, behind its files.
            let ends = self.recordings.values().any(|it| it.whose.id == record.id);
            if record.status.state != RecordState::Failed && !ends {
                self.ledger.note(Entry::RecordState(record.id, no_section(String::new())));
            }
            return None;
        };
        self.numbers += 1;
        let number = self.numbers;
        let stop = CancellationToken::new();
        let counters = Arc::new(live::Recording { task: record.id.clone(), ..live::Recording::default() });
        self.parts.live.recording_started(number, record.key.clone(), counters.clone());
        let inbox = self.plan.inbox.clone();
        let mut formats = Vec::new();
        for format in &wanted.formats {
            if !formats.contains(format) {
                formats.push(*format);
            }
        }
        let settings = &self.parts.record;
        let recorder = Recorder {
            stream: live.stream.clone(),
            settings: record::Settings { formats, interval: time(wanted.interval), segment: time(settings.segment) },
            bit_rate: settings.bit_rate,
            stop: stop.clone(),
            lane: live.lane.clone(),
            renditions: self.parts.renditions.clone(),
            folder: settings.folder.clone(),
            full: settings.space.watch(),
            runtime: Handle::current(),
            live: counters,
            say: Arc::new(move |word| inbox.put(|news| news.recordings.push((number, word)))),
            span: info_span!("record", stream = %record.key, task = record.id),
        };
        let task = self.running.spawn_on(recorder.run(), live.lane.handle()).id();
        let whose = Whose { key: record.key, id: record.id, vendor: record.vendor };
        let (stream, wish) = (live.stream.clone(), Some(stop.drop_guard()));
        let (ended, unborn, disowned) = Default::default();
        let recording = Recording { whose, stream, wish, disowned, task, ended, unwritten: 0, unborn };
        self.recordings.insert(number, recording);
        Some(number)
    }

    /// The row of a recording is written, or that of another one was there.
    pub(super) fn record_written(&mut self, record: Record) {
        for recording in self.recordings.values_mut().filter(|it| it.whose.id == record.id) {
            recording.unborn = false;
        }
        self.plan.wake(record.key);
    }

    /// A recording's last word is in the inbox by now, unless its task failed.
    pub(super) fn recording_ended(&mut self, number: u64, failed: Option<JoinError>) {
        if let Some(error) = failed {
            error!(%error, "a recording's task failed; it is started again");
            let state =
                State { state: RecordState::Waiting, reason: String::new(), last_error: "internal error".into() };
            self.plan.inbox.put(|news| news.recordings.push((number, Note::State(state))));
            if let Some(Recording { whose, .. }) = self.recordings.get(&number) {
                self.resting.insert((whose.key.clone(), whose.id.clone()), Instant::now() + REST);
            }
        }
        if let Some(recording) = self.recordings.get_mut(&number) {
            recording.ended = true;
        }
        self.read_inbox();
        self.forget_recording_that_has_told(number);
    }

    /// What recordings tell is written in the order in which they tell it. Of two of one task the newer one knows its state.
    pub(super) fn note_word(&mut self, number: u64, mut word: Note) {
        let whose = self.recordings.get(&number).map(|it| it.whose.clone());
        if let (Note::State(_), Some(Whose { id, .. })) = (&word, &whose) {
            let newest = self.recordings.iter().rfind(|(_, it)| it.whose.id == *id);
            if newest.is_some_and(|(newest, _)| *newest != number) {
                return;
            }
        }
        if let Some(recording) = self.recordings.get_mut(&number) {
            recording.unwritten += 1;
            if let Note::State(state) = &mut word
                && state.state == RecordState::Waiting
                && recording.disowned
            {
                *state = no_section(std::mem::take(&mut state.last_error));
            }
        }
        self.ledger.note(Entry::Word(number, whose, word));
    }

    /// What a recording has told is written.
    pub(super) fn word_written(&mut self, number: u64) {
        if let Some(recording) = self.recordings.get_mut(&number) {
            recording.unwritten -= 1;
        }
        self.forget_recording_that_has_told(number);
    }

    fn forget_recording_that_has_told(&mut self, number: u64) {
        let has_told = |it: &Recording| it.ended && it.unwritten == 0;
        if !self.recordings.get(&number).is_some_and(has_told) {
            return;
        }
        let Some(recording) = self.recordings.remove(&number) else { return };
        self.parts.live.recording_ended(number);
        // A stream that came back meanwhile is recorded on; a recording that is over says so.
        self.plan.wake(recording.whose.key);
    }

    /// Ends recordings whose time is over, says of those that nothing runs for that they are, and looks when the next one's time is.
    pub(super) async fn settle_recordings(&mut self) {
        self.settle = false;
        match self.settle_some().await {
            Ok(due_at) => self.due_at = due_at,
            Err(error) => {
                error!(%error, "cannot read which recordings are over; trying again");
                self.due_at = Some(Instant::now() + RETRY);
            }
        }
    }

    async fn settle_some(&mut self) -> Result<Option<Instant>, store::Error> {
        let now_ms = unix_ms();
        // Those that still run say it themselves, and may be all that the store gives.
        let limit = AT_ONCE + self.recordings.len();
        let look = async |tx: &mut Tx| {
            let due = tx.records_due(now_ms, AT_ONCE as i64).await?;
            Ok((due, tx.records_over(limit as i64).await?, tx.record_next_due().await?))
        };
        let (due, mut over, next_ms) = self.read(look).await?;
        over.retain(|record| !self.recordings.values().any(|it| it.whose.id == record.id));
        if !due.is_empty() || !over.is_empty() {
            // They stop now, however long that takes to write.
            for recording in self.recordings.values_mut() {
                if due.iter().any(|record| record.id == recording.whose.id) {
                    recording.wish = None;
                }
            }
            self.settling = true;
            self.ledger.note(Entry::Over(due, over));
            return Ok(None);
        }
        let wait = next_ms.map(|at| Duration::from_millis((at - unix_ms()).max(0) as u64).min(CLOCK));
        Ok(wait.map(|wait| Instant::now() + wait))
    }
}

impl Desk {
    /// A file is whole: its row says so, and its callback is owed, once.
    pub(super) async fn close(&self, tx: &mut Tx, mut file: File) -> Result<(), store::Error> {
        let now_ms = unix_ms();
        let app = self.apps.get(file.key.app());
        let keep = app.as_ref().and_then(|app| app.record.get(file.vendor.name())?.keep);
        file.state = if self.bucket { FileState::Stored } else { FileState::Ready };
        (file.created_ms, file.updated_ms) = (now_ms, now_ms);
        file.expire_ms = keep.map_or(0, |keep| now_ms + keep.as_millis() as i64);
        let was_open = tx.file_close(&file).await?;
        if let (true, FileState::Ready, Some(app)) = (was_open, file.state, app) {
            let url = self.urls.replay(&app, &file.path, now_ms);
            tx.owe(callback::record(&app, &url, &file, now_ms), now_ms).await?;
        }
        Ok(())
    }
}

/// Puts the rows of files that begin together.
pub(super) async fn open(tx: &mut Tx, whose: &Whose, openings: &[Opening]) -> Result<Vec<File>, store::Error> {
    let number = tx.record_next_number(&whose.id).await?;
    let mut files = Vec::with_capacity(openings.len());
    for opening in openings {
        let now_ms = unix_ms();
        let file = File {
            id: store::file::file_id(),
            key: whose.key.clone(),
            vendor: whose.vendor,
            record: whose.id.clone(),
            format: opening.format,
            path: {
                let task = whose.id.get(..12).unwrap_or(&whose.id);
                object::key(&whose.key, opening.begin_ms, task, number, opening.format)
            },
            state: FileState::Open,
            interrupted: false,
            begin_ms: opening.begin_ms,
            end_ms: opening.begin_ms,
            duration_ms: 0,
            size: 0,
            etag: String::new(),
            about: opening.about.clone(),
            name: whose.key.id().to_owned(),
            created_ms: now_ms,
            updated_ms: now_ms,
            expire_ms: 0,
        };
        tx.file_open(&file).await?;
        files.push(file);
    }
    Ok(files)
}

/// What is said of a recording whose app has no section of its vendor any more.
fn no_section(last_error: String) -> State {
    let reason = "the app has no recording of this vendor any more".into();
    State { state: RecordState::Failed, reason, last_error }
}

/// Notes a recording's state, and owes the callback where that is another one.
pub(super) async fn note(tx: &mut Tx, apps: &config::Apps, id: &str, state: &State) -> Result<(), store::Error> {
    let Some(mut record) = tx.record(id).await? else { return Ok(()) };
    let now_ms = unix_ms();
    let over = state.state == RecordState::Waiting && record.closed_ms > 0;
    let next = if over { RecordState::Ended } else { state.state };
    let status = &mut record.status;
    let changed = (status.state, &status.reason) != (next, &state.reason);
    if next == RecordState::Recording && status.begun_ms == 0 {
        // What was held back is begun by the stop at the latest.
        status.begun_ms = if record.closed_ms > 0 { now_ms.min(record.closed_ms) } else { now_ms };
    }
    if changed {
        status.state_ms = now_ms;
    }
    (status.state, status.reason, status.last_error) = (next, state.reason.clone(), state.last_error.clone());
    tx.record_note(id, &record.status).await?;
    if let Some(app) = apps.get(record.key.app()).filter(|_| changed) {
        tx.owe(callback::record_state(&app, &record, now_ms), now_ms).await?;
    }
    Ok(())
}

/// Notes that nothing records these.
pub(super) async fn note_stopped(
    tx: &mut Tx,
    apps: &config::Apps,
    records: &[Record],
    why: &str,
) -> Result<(), store::Error> {
    for record in records {
        let reason = if record.closed_ms > 0 { String::new() } else { why.to_owned() };
        let last_error = record.status.last_error.clone();
        note(tx, apps, &record.id, &State { state: RecordState::Waiting, reason, last_error }).await?;
    }
    Ok(())
}

fn time(span: Duration) -> Time {
    Time::from_nanos(span.as_nanos() as i64)
}
