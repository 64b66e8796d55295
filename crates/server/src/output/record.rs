//! Recording: one stream into the files of one task, as long as it is wished and the stream lives.
//!
//! A recorder reads the stream on its lane a few times a second, makes changes of files of what it read ([`take`]) and hands them
//! to the disk ([`disk`]). What happens to files it says in [`Note`]s; plan writes them down.
//!
//! Invariant: nothing on the lane waits for a disk but the recorder itself, which then falls behind in the ring.

mod disk;
mod take;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bywash_media::Time;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Span, info, warn};

use self::disk::Disk;
use self::take::{Input, Op, Take};
use crate::clock::unix_ms;
use crate::config::Format;
use crate::hub::{self, Event};
use crate::lane::Lane;
use crate::live;
use crate::output::source::{Drained, Source};
use crate::rendition::{Renditions, Sound};
use crate::segment::Folder;
use crate::store::{File, RecordState, RecordStatus};
use crate::sys;

pub use self::disk::finish;
pub use self::take::{Opening, Settings};

/// How far a recording may fall behind before it skips to a keyframe, if the ring holds that much.
const MAX_LAG: Time = Time::from_millis(60_000);

/// How long a recording waits after the disk refused a write before it begins files again.
const REST: Duration = Duration::from_secs(5);

/// How long a recording that is wished no more waits for sound that is still being encoded.
const LAST_SOUND: Duration = Duration::from_secs(1);

/// How long this process keeps freed memory once it has recorded. What recordings free is not what they take next, and lies unused
/// until then: half a megabyte of each in ten seconds.
const KEEP: Duration = Duration::from_secs(3);

/// What a recording has to tell.
#[derive(Debug)]
pub enum Note {
    /// Files are to be begun: their rows come first. They are the answer.
    Open(Vec<Opening>, oneshot::Sender<Vec<File>>),
    /// A file is whole, and all is known of it.
    Whole(Box<File>),
    /// The file with this id had no media: nothing is left of it but the row.
    Nothing(String),
    /// The recording is in another state.
    State(State),
}

/// A recording's state, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The state; after the last frame [`Waiting`](RecordState::Waiting).
    pub state: RecordState,
    /// Why, in words.
    pub reason: String,
    /// What went wrong; empty if nothing.
    pub last_error: String,
}

/// Where words go. It must not block.
pub type Say = Arc<dyn Fn(Note) + Send + Sync>;

/// One recording, ready to run.
pub struct Recorder {
    /// What to record.
    pub stream: hub::Stream,
    /// Formats and lengths.
    pub settings: Settings,
    /// Bits a second of sound that is encoded.
    pub bit_rate: u32,
    /// Cancelled when it is wished no more.
    pub stop: CancellationToken,
    /// Where it runs.
    pub lane: Lane,
    /// What to read where files need other sound.
    pub renditions: Arc<Renditions>,
    /// Where files are.
    pub folder: Folder,
    /// Why nothing may be written now, if so.
    pub full: watch::Receiver<Option<Arc<str>>>,
    /// Where the disk's work runs.
    pub runtime: Handle,
    /// Counters.
    pub live: Arc<live::Recording>,
    /// Where words go.
    pub say: Say,
    /// What the log tells is told of this.
    pub span: Span,
}

/// What a stretch of recording has told.
#[derive(Default)]
struct Told {
    /// That it records.
    records: bool,
    /// The files that were begun before it.
    files: u32,
}

/// Why a stretch of recording ended.
enum End {
    /// The stream is over, or the recording is wished no more.
    Done,
    /// Nothing can be written for now.
    Pause(String),
    /// It cannot be done.
    Failed(String),
}

impl Recorder {
    /// Runs until the stream ends or the recording is wished no more, and all its files are whole.
    pub async fn run(mut self) {
        sys::keep_freed_memory(KEEP);
        let mut last_error = self.leave_out_what_cannot_be_made();
        let disk = Disk::new(self.runtime.clone(), self.folder.clone(), self.say.clone(), self.span.clone());
        let mut take = Take::new(self.settings.clone());
        loop {
            let mut told = Told { files: take.begun(), ..Told::default() };
            let full = self.full.borrow_and_update().clone();
            let end = match full {
                Some(reason) => End::Pause(reason.to_string()),
                None => self.follow(&mut take, &disk, &mut told, &mut last_error).await,
            };
            // It may begin the first files: with what was held until its tracks were known.
            take.close();
            disk.send(take.flush()).await;
            self.tell(&take, &mut told, false, &last_error);
            match end {
                End::Done => break,
                End::Failed(error) => {
                    last_error = error;
                    self.say(RecordState::Failed, &last_error, &last_error);
                    tokio::select! {
                        () = self.stop.cancelled() => {}
                        () = self.stream.ended() => {}
                    }
                    break;
                }
                End::Pause(reason) => {
                    warn!(parent: &self.span, reason, "recording pauses");
                    last_error.clone_from(&reason);
                    self.say(RecordState::Paused, &reason, &last_error);
                    if !self.rest().await {
                        break;
                    }
                    // Of files that were closed meanwhile: what begins now does not fail for that.
                    disk.trouble();
                }
            }
        }
        if let Some(error) = disk.end().await {
            last_error = error;
        }
        info!(parent: &self.span, "recording ended");
        self.say(RecordState::Waiting, "", &last_error);
    }

    /// Formats that this build has no encoder for; what is said of them.
    fn leave_out_what_cannot_be_made(&mut self) -> String {
        if !self.settings.formats.contains(&Format::Mp3) {
            return String::new();
        }
        let Err(error) = Sound::Mp3 { bit_rate: self.bit_rate }.check() else { return String::new() };
        warn!(parent: &self.span, %error, "no MP3 is recorded");
        self.settings.formats.retain(|format| *format != Format::Mp3);
        error.to_string()
    }

    /// Waits until writing may be tried again; false if there is no need.
    async fn rest(&mut self) -> bool {
        let rest = async {
            tokio::time::sleep(REST).await;
            let _ = self.full.wait_for(Option::is_none).await;
        };
        tokio::select! { biased;
            () = self.stop.cancelled() => false,
            () = self.stream.ended() => false,
            () = rest => true,
        }
    }

    fn say(&self, state: RecordState, reason: &str, last_error: &str) {
        let (reason, last_error) = (reason.to_owned(), last_error.to_owned());
        let told = State { state, reason: reason.clone(), last_error: last_error.clone() };
        *self.live.status.lock().expect("no holder panics") =
            RecordStatus { state, reason, last_error, state_ms: unix_ms(), begun_ms: 0 };
        (self.say)(Note::State(told));
    }

    /// Says once of each stretch that it records, when files are begun; and again that it does, or waits, where there is `news`.
    fn tell(&self, take: &Take, told: &mut Told, news: bool, last_error: &str) {
        let begins = !told.records && take.begun() > told.files;
        if begins {
            info!(parent: &self.span, "recording");
        }
        told.records |= begins;
        if begins || news {
            let state = if told.records { RecordState::Recording } else { RecordState::Waiting };
            self.say(state, "", last_error);
        }
    }

    /// Records until something ends it.
    async fn follow(&mut self, take: &mut Take, disk: &Disk, told: &mut Told, last_error: &mut String) -> End {
        let bit_rate = self.bit_rate;
        if self.settings.formats.is_empty() {
            return End::Failed(last_error.clone());
        }
        let aac = Sound::Aac { bit_rate, takes_opus: false, silence: false };
        // Without an encoder files get Opus, as far as they have a form for it.
        let aac = if aac.check().is_ok() { aac } else { Sound::Aac { bit_rate, takes_opus: true, silence: false } };
        let mp3 = self.settings.formats.contains(&Format::Mp3).then_some(Sound::Mp3 { bit_rate });
        let begin = |sound| Source::begin(&self.stream, sound, MAX_LAG, &self.renditions, &self.lane);
        let (mut main, mut mp3) = match (begin(aac), mp3.map(begin).transpose()) {
            (Ok(main), Ok(mp3)) => (main, mp3.map(Source::sound_alone)),
            (Err(error), _) | (_, Err(error)) => return End::Failed(error.to_string()),
        };
        let mut sweeps = self.lane.sweeps();
        let mut batch = Vec::new();
        let (mut waits, mut trouble) = (false, None);
        loop {
            let stopped = tokio::select! { biased;
                () = self.stop.cancelled() => true,
                () = &mut sweeps => false,
            };
            let now = Instant::now();
            let mut ended = match self.read(&mut main, Input::Main, take, &mut batch, disk, now).await {
                Ok(ended) => ended,
                Err(end) => return end,
            };
            if let Some(mp3) = &mut mp3 {
                match self.read(mp3, Input::Mp3, take, &mut batch, disk, now).await {
                    Ok(mp3_ended) => ended &= mp3_ended,
                    Err(end) => return end,
                }
            }
            take.look(now);
            disk.send(take.flush()).await;
            let waited = std::mem::replace(&mut waits, take.wants_key());
            if waits && !waited {
                main.want_keyframe();
            }
            let was = std::mem::replace(&mut trouble, main.trouble().or_else(|| mp3.as_ref()?.trouble()));
            let troubled = trouble.as_ref().filter(|_| trouble != was);
            if let Some(error) = troubled {
                *last_error = error.to_string();
            }
            self.tell(take, told, troubled.is_some(), last_error);
            if let Some(mp3) = mp3.as_mut().filter(|_| stopped && !ended) {
                take.stop();
                let until = Instant::now() + LAST_SOUND;
                let mut ended = false;
                while !ended && take.awaits_sound() && mp3.trouble().is_none() && Instant::now() < until {
                    (&mut sweeps).await;
                    ended = match self.read(mp3, Input::Mp3, take, &mut batch, disk, Instant::now()).await {
                        Ok(ended) => ended,
                        Err(end) => return end,
                    };
                }
            }
            if ended || stopped {
                return End::Done;
            }
            if let Some(error) = disk.trouble() {
                return End::Pause(error);
            }
            if let Some(reason) = &*self.full.borrow() {
                return End::Pause(reason.to_string());
            }
        }
    }

    /// Takes all that a source has; true if that was the last.
    async fn read(
        &self,
        source: &mut Source,
        input: Input,
        take: &mut Take,
        batch: &mut Vec<Event>,
        disk: &Disk,
        now: Instant,
    ) -> Result<bool, End> {
        loop {
            let Drained { ended, switched } = source.drain(batch).map_err(|error| End::Failed(error.to_string()))?;
            if switched && input == Input::Main && !take.writes() {
                // Nothing is written yet: all of it can be read again with the sound that is right.
                batch.clear();
                take.forget();
                source.again();
                continue;
            }
            if batch.is_empty() {
                return Ok(ended);
            }
            if let (Input::Main, Some(Event::Frame(newest))) = (input, batch.last()) {
                take.set_clock(newest.dts, unix_ms());
            }
            for event in batch.drain(..) {
                match (input, event) {
                    (Input::Main, Event::Tracks(tracks)) => take.set_tracks(tracks, now),
                    (Input::Main, Event::Lagged { frames }) => {
                        self.live.frames_skipped.fetch_add(frames, Ordering::Relaxed);
                        warn!(parent: &self.span, frames, "disk too slow: skipped to a keyframe");
                        take.skip();
                    }
                    (Input::Main, Event::Frame(frame)) => {
                        self.live.bytes.fetch_add(frame.payload.len() as u64, Ordering::Relaxed);
                        take.push(input, frame, now);
                    }
                    (Input::Mp3, Event::Frame(frame)) => take.push(input, frame, now),
                    (Input::Mp3, Event::Tracks(_) | Event::Lagged { .. }) => {}
                }
            }
            let ops = take.flush();
            let full = ops.iter().any(|op| matches!(op, Op::Change(..)));
            disk.send(ops).await;
            if ended {
                return Ok(true);
            }
            if full {
                // Others have their turn on the lane.
                tokio::task::yield_now().await;
            }
        }
    }
}
