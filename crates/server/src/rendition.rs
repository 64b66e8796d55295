//! Renditions: a stream again, with its sound in another codec.
//!
//! A rendition is a [`hub::Stream`] whose publisher reads the source: pictures pass by pointer, as does sound that is
//! right already; other sound is transcoded. It begins with the first output that asks for it and ends with the last.
//!
//! Invariant: the times of a rendition's sound rise, and pictures never wait for it.

use std::ops::Deref;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bywash_media::transcode::{self, Transcoder};
use bywash_media::{Codec, Frame, Kind, Time, Tracks};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, info, info_span, warn};

use crate::hub::{self, Event, Publisher};
use crate::lane::Lane;

/// How far a rendition may fall behind its source before it skips to a keyframe.
const MAX_LAG: Time = Time::from_millis(8_000);

/// How far sound may come behind the pictures before it is taken not to come: at least, and at the most.
const PATIENCE: (Time, Time) = (Time::from_millis(300), Time::from_millis(3_000));

/// The same where there are no pictures to go by, in time that passes.
const PATIENCE_ALONE: Duration = Duration::from_secs(1);

/// The sound that an output needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sound {
    /// As CDNs take it: AAC and MP3 pass, other sound becomes AAC.
    Aac {
        /// Bits a second where it is encoded.
        bit_rate: u32,
        /// Opus passes too.
        takes_opus: bool,
        /// A stream of pictures alone is given silence.
        silence: bool,
    },
    /// As WebRTC takes it: Opus passes, AAC becomes Opus.
    Opus {
        /// Bits a second where it is encoded.
        bit_rate: u32,
    },
}

impl Sound {
    /// Whether a stream with these tracks is right as it is.
    pub fn fits(self, tracks: &Tracks) -> bool {
        match (self, &tracks.audio) {
            (Sound::Aac { silence, .. }, None) => !silence || tracks.video.is_none(),
            (Sound::Opus { .. }, None) => true,
            (_, Some(track)) => self.takes(track.codec),
        }
    }

    /// Whether sound of this codec is right as it is.
    pub fn takes(self, codec: Codec) -> bool {
        match self {
            Sound::Aac { takes_opus, .. } => takes_opus || codec != Codec::Opus,
            Sound::Opus { .. } => codec == Codec::Opus,
        }
    }

    /// Whether this build can make it.
    pub fn check(self) -> Result<(), transcode::Error> {
        self.encoder().map(drop)
    }

    fn encoder(self) -> Result<Box<dyn transcode::AudioEncoder>, transcode::Error> {
        match self {
            Sound::Aac { bit_rate, .. } => transcode::encoder(Codec::Aac, bit_rate),
            Sound::Opus { bit_rate } => transcode::encoder(Codec::Opus, bit_rate),
        }
    }
}

/// All renditions that run, so that outputs share them.
#[derive(Default)]
pub struct Renditions {
    running: Mutex<Vec<Weak<Running>>>,
}

/// An output's hold on a rendition; the last one that is dropped ends it.
#[derive(Clone)]
pub struct Rendition(Arc<Running>);

struct Running {
    source: hub::Stream,
    sound: Sound,
    stream: hub::Stream,
    _task: AbortOnDropHandle<()>,
}

impl Deref for Rendition {
    type Target = hub::Stream;
    fn deref(&self) -> &hub::Stream {
        &self.0.stream
    }
}

impl Renditions {
    /// The rendition of `source` with this sound; one that runs, or a new one on `lane`, which is the source's. An error
    /// says what this build cannot do.
    pub fn of(&self, source: &hub::Stream, sound: Sound, lane: &Lane) -> Result<Rendition, transcode::Error> {
        let mut running = self.running.lock().expect("no holder panics");
        running.retain(|one| one.strong_count() > 0);
        let same = |one: &Arc<Running>| one.sound == sound && one.source.is(source);
        if let Some(one) = running.iter().filter_map(Weak::upgrade).find(same) {
            return Ok(Rendition(one));
        }
        let (publisher, stream) = source.beside();
        let twin = Twin::new(publisher, sound)?;
        let run = run(source.clone(), stream.clone(), twin, lane.clone()).instrument(info_span!("rendition", ?sound));
        let task = AbortOnDropHandle::new(lane.spawn(run));
        let one = Arc::new(Running { source: source.clone(), sound, stream, _task: task });
        running.push(Arc::downgrade(&one));
        Ok(Rendition(one))
    }
}

/// Follows `source` to its end.
async fn run(source: hub::Stream, stream: hub::Stream, mut twin: Twin, lane: Lane) {
    info!("rendition begins");
    let _end = End(stream);
    let mut reader = source.read(MAX_LAG);
    let mut seat = lane.sit();
    let mut batch = Vec::new();
    loop {
        tokio::select! { biased;
            more = reader.ready(&mut batch) => {
                if !more {
                    break;
                }
                for event in batch.drain(..) {
                    twin.take(event, Instant::now());
                }
            }
            () = seat.sweep() => twin.sweep(Instant::now()),
        }
    }
    twin.finish();
    info!("rendition ends with its source");
}

/// Ends the stream however its task ends.
struct End(hub::Stream);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The work, without waiting.
struct Twin {
    publisher: Publisher,
    sound: Sound,
    transcoder: Transcoder,
    /// The source's tracks.
    tracks: Arc<Tracks>,
    /// The source's sound goes through the transcoder.
    transcodes: bool,
    /// When the source began, by its pictures; and its newest.
    pictures: Option<(Time, Time)>,
    /// How far its sound comes behind its pictures.
    behind: Time,
    /// The newest sound of the source, and when it came.
    heard: Option<(Time, Instant)>,
    /// The newest sound that went out.
    said: Option<Time>,
    /// Scratch.
    made: Vec<Frame>,
}

impl Twin {
    fn new(publisher: Publisher, sound: Sound) -> Result<Twin, transcode::Error> {
        Ok(Twin {
            publisher,
            sound,
            transcoder: Transcoder::new(sound.encoder()?),
            tracks: Arc::default(),
            transcodes: false,
            pictures: None,
            behind: PATIENCE.0,
            heard: None,
            said: None,
            made: Vec::new(),
        })
    }

    fn take(&mut self, event: Event, now: Instant) {
        match event {
            Event::Tracks(tracks) => self.follow(tracks),
            Event::Lagged { frames } => warn!(frames, "rendition too slow: skipped to a keyframe"),
            Event::Frame(frame) if frame.track == Kind::Video => {
                let (begun, _) = *self.pictures.get_or_insert((frame.dts, frame.dts));
                self.pictures = Some((begun, frame.dts));
                // Sound that is missing goes before the picture that tells so: the picture wakes the readers for both.
                self.fill(begun, frame.dts);
                self.publisher.push(frame);
            }
            Event::Frame(frame) => {
                if let Some((_, newest)) = self.pictures {
                    self.behind = self.behind.max(newest - frame.dts).min(PATIENCE.1);
                }
                self.heard = Some((frame.dts, now));
                match self.transcodes {
                    true => {
                        self.transcoder.push(&frame, &mut self.made);
                        self.say();
                    }
                    false => self.pass(frame),
                }
            }
        }
    }

    /// Takes the source's tracks over; the sound's in the codec that it will have.
    fn follow(&mut self, tracks: Arc<Tracks>) {
        let audio = tracks.audio.as_ref();
        let changed = self.tracks.audio.as_ref() != audio;
        let mut ours = (*tracks).clone();
        let fits = self.sound.fits(&tracks) && (audio.is_some() || !self.transcodes);
        if fits {
            self.transcodes = false;
        } else {
            if changed || !self.transcodes {
                if let Err(error) = self.transcoder.set_source(audio.map(|track| &**track)) {
                    warn!(%error, "its sound is left out");
                }
            }
            self.transcodes = true;
            ours.set(self.transcoder.track());
        }
        self.tracks = tracks;
        self.publisher.set_tracks(ours);
    }

    /// Where pictures are at `newest`, fills what sound is missing by now.
    fn fill(&mut self, begun: Time, newest: Time) {
        let patience = if self.tracks.audio.is_some() { self.behind } else { Time::ZERO };
        if self.transcodes && newest - patience >= begun {
            self.transcoder.fill(newest - patience, &mut self.made);
            self.say();
        }
    }

    /// Without pictures the time that passes tells what is missing.
    fn sweep(&mut self, now: Instant) {
        if self.tracks.video.is_none()
            && self.transcodes
            && let Some((heard, at)) = self.heard
            && let Some(passed) = now.saturating_duration_since(at).checked_sub(PATIENCE_ALONE)
        {
            self.transcoder.fill(heard + Time::from_nanos(passed.as_nanos() as i64), &mut self.made);
            self.say();
        }
        if self.publisher.holds() && self.tracks.video.is_none() {
            self.publisher.flush();
        }
    }

    fn finish(&mut self) {
        self.transcoder.finish(&mut self.made);
        self.say();
    }

    /// Publishes what the transcoder has made.
    fn say(&mut self) {
        let mut made = std::mem::take(&mut self.made);
        for frame in made.drain(..) {
            self.pass(frame);
        }
        self.made = made;
    }

    /// Publishes sound; where codecs change, the first packets may lie before the last ones of the old.
    fn pass(&mut self, frame: Frame) {
        if self.said.is_none_or(|said| frame.dts > said) {
            self.said = Some(frame.dts);
            self.publisher.push(frame);
        }
    }
}
