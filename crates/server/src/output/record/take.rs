//! From frames to changes of files: all formats of a recording in one pass, without waiting and without a disk.
//!
//! A file has the tracks that it began with. Where they change, all files are cut and begin anew; of HLS the same list goes on behind
//! a discontinuity, as long as its kind of segments can carry them and it has as many. Cuts are at key frames, of sound where pictures
//! pause, and sound that comes behind the cut but belongs before it goes there. Where only the sound changes, new files begin with it at
//! once and the old ones go on with the pictures up to the next key frame; HLS waits for that.
//!
//! Invariant: nothing is opened before the tracks are known, or have had time to become so; a change of the sound costs no picture.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bywash_media::mux::{Clock, Parts, adts, flv, fmp4, mp4, ts};
use bywash_media::playlist::Segment;
use bywash_media::{Codec, Frame, Join, Kind, Time, Tracks};

use crate::config::Format;
use crate::segment::Change;
use crate::store::About;

/// How long the other track may take where a stream begins with one, and the first picture where it begins with sound.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long tracks must be left unchanged before files begin with them: changes come in bursts.
const SETTLE: Duration = Duration::from_millis(300);

/// What is held in memory meanwhile, in bytes.
const HELD_MAX: usize = 8 << 20;

/// How far sound may come behind the pictures and still find the file before a cut open.
const LATE: Time = Time::from_millis(3_000);

/// Sound that lies so far behind all that came is not the end of it.
const HOLE: Time = Time::from_millis(100);

/// How much of a stream is gathered for one write. Each goes to another thread; what a kill costs is less than with an MP4's fragments.
const GATHER: Time = Time::from_millis(400);

/// The same in bytes, whatever the frames say of time.
const GATHER_MAX: usize = 256 << 10;

/// MPEG-TS is gathered in pieces of so many bytes; a larger picture has one of its own.
const PIECE: usize = 64 << 10;

/// What is to be done with files, in this order.
#[derive(Debug)]
pub enum Op {
    /// These begin together.
    Open(Vec<Opening>),
    /// One of them changes.
    Change(u32, Change),
    /// One of them is over. Tells its pictures in 1000 seconds, and how long it took to come, gaps and all.
    Close(u32, u32, Time),
}

/// A file that is to be begun.
#[derive(Clone, Debug)]
pub struct Opening {
    /// By which number the operations that follow name it.
    pub file: u32,
    /// How it is written.
    pub format: Format,
    /// When its first frame came, Unix milliseconds.
    pub begin_ms: i64,
    /// What will be in it.
    pub about: About,
}

/// What is recorded, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The formats, each once.
    pub formats: Vec<Format>,
    /// How long a file becomes, HLS excepted.
    pub interval: Time,
    /// How long a segment of HLS becomes.
    pub segment: Time,
}

/// Where a frame comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The stream, or its rendition with AAC.
    Main,
    /// The sound of its rendition with MP3.
    Mp3,
}

/// The files of a recording.
pub struct Take {
    settings: Settings,
    /// The tracks that the files in hand began with, or will.
    tracks: Tracks,
    /// What the stream has now.
    present: Arc<Tracks>,
    held: Option<Held>,
    files: Option<Files>,
    endings: Vec<Ending>,
    hls: Option<Hls>,
    gap: Gap,
    /// Decoding cannot go on before the next key frame.
    waits_for_key: bool,
    /// When the last picture was decoded, or the files began.
    pictured: Time,
    /// The newest sound, by [`Input`].
    heard: [Option<Time>; 2],
    /// All has come but MP3 of the sound that has.
    stopped: bool,
    next: u32,
    /// Unix milliseconds less milliseconds of the stream's line.
    wall_ms: i64,
    out: Vec<Op>,
}

/// What may lie before the next frame, as HLS is to mark it. Sound that was still being encoded when its publisher went comes behind the
/// word of the next one, and belongs before the gap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    /// Nothing.
    None,
    /// A gap, if the times tell of one.
    Perhaps,
    /// The pictures are others, or some are missing.
    Sure,
}

/// Frames that wait for tracks to settle.
struct Held {
    frames: Vec<(Input, Frame)>,
    bytes: usize,
    until: Instant,
    /// All is there with the first picture.
    pictures_wanted: bool,
    /// Their tracks are not those of the files.
    others: bool,
}

impl Held {
    fn until(until: Instant) -> Held {
        Held { frames: Vec::new(), bytes: 0, until, pictures_wanted: false, others: false }
    }
}

impl Take {
    /// Nothing is written yet.
    pub fn new(settings: Settings) -> Take {
        Take {
            settings,
            tracks: Tracks::default(),
            present: Arc::default(),
            held: None,
            files: None,
            endings: Vec::new(),
            hls: None,
            gap: Gap::None,
            waits_for_key: false,
            pictured: Time::ZERO,
            heard: [None; 2],
            stopped: false,
            next: 0,
            wall_ms: 0,
            out: Vec::new(),
        }
    }

    /// Whether files are being written.
    pub fn writes(&self) -> bool {
        self.files.as_ref().is_some_and(|files| !files.muxes.is_empty()) || self.hls.is_some()
    }

    /// How many files have been begun.
    pub fn begun(&self) -> u32 {
        self.next
    }

    /// The stream's newest frame was of this time when the wall clock was so.
    pub fn set_clock(&mut self, newest: Time, now_ms: i64) {
        let offset = now_ms - newest.as_millis();
        if !self.writes() || offset < self.wall_ms {
            self.wall_ms = offset;
        }
    }

    /// Of the frames that follow.
    pub fn set_tracks(&mut self, tracks: Arc<Tracks>, now: Instant) {
        let kinds = [Kind::Video, Kind::Audio];
        let new = |kind| tracks.get(kind).filter(|new| self.tracks.get(kind) != Some(new));
        let changed = kinds.map(|kind| new(kind).is_some());
        // A publisher that comes back tells of its tracks one by one, too.
        let more_may_come = kinds.iter().any(|kind| self.tracks.get(*kind).is_some() && tracks.get(*kind).is_none());
        if changed != [false; 2] || !self.writes() && self.held.is_none() {
            let begins = !self.writes();
            let held = self.held.get_or_insert_with(|| Held::until(now));
            // What was held of a track that is another now cannot be decoded with it. MP3 needs no track.
            held.frames.retain(|(input, frame)| {
                *input == Input::Mp3 || !changed[frame.track as usize] || self.tracks.get(frame.track).is_none()
            });
            let both = kinds.iter().all(|kind| tracks.get(*kind).is_some());
            held.others = true;
            held.until = now + if begins { PATIENCE } else { SETTLE };
            held.pictures_wanted = begins && both;
            self.waits_for_key |= changed[Kind::Video as usize];
        } else {
            // The publisher is another one, or a track has gone: what there is goes on. One that begins tells of its tracks one by one.
            let stays = |kind| self.present.get(kind).is_none_or(|track| tracks.get(kind) == Some(track));
            let more = tracks != self.present && kinds.into_iter().all(stays);
            self.gap = self.gap.max(if more { Gap::Perhaps } else { Gap::Sure });
            match &mut self.held {
                Some(held) if !more_may_come => held.until = held.until.min(now + SETTLE),
                None if more_may_come => self.held = Some(Held::until(now + PATIENCE)),
                _ => {}
            }
        }
        for kind in kinds {
            if let Some(track) = tracks.get(kind) {
                self.tracks.set((**track).clone());
            }
        }
        self.present = tracks;
    }

    /// Frames are missing.
    pub fn skip(&mut self) {
        (self.gap, self.waits_for_key) = (Gap::Sure, self.present.video.is_some());
    }

    /// Takes a frame.
    pub fn push(&mut self, input: Input, frame: Frame, now: Instant) {
        if self.stopped && input == Input::Main {
            return;
        }
        if frame.track == Kind::Audio {
            self.heard[input as usize] = Some(frame.dts);
            if self.stopped && self.heard[Input::Main as usize].is_none_or(|last| frame.dts > last) {
                return;
            }
        }
        if self.waits_for_key && frame.track == Kind::Video {
            if !frame.key {
                return;
            }
            self.waits_for_key = false;
        }
        match &mut self.held {
            Some(held) => {
                if held.pictures_wanted && frame.track == Kind::Video {
                    held.until = now;
                }
                held.bytes += frame.payload.len();
                held.frames.push((input, frame));
                self.look(now);
            }
            None => self.write(input, &frame),
        }
    }

    /// Begins files whose tracks have had their time; to be called now and then.
    pub fn look(&mut self, now: Instant) {
        let ready = |held: &Held| held.until <= now || held.bytes >= HELD_MAX;
        // MP3 may still be of the tracks before.
        let begins = |held: &Held| main(&held.frames).next().is_some();
        if let Some(held) = self.held.take_if(|held| ready(held) && begins(held)) {
            self.begin(held);
        }
    }

    /// Nothing more is taken but MP3 of sound that has come.
    pub fn stop(&mut self) {
        if let Some(held) = self.held.take() {
            self.begin(held);
        }
        self.stopped = true;
    }

    /// Whether MP3 is missing of sound that has come.
    pub fn awaits_sound(&self) -> bool {
        let [main, mp3] = self.heard;
        let open = self.files.iter().any(|files| files.muxes.iter().any(|it| matches!(it.mux, Mux::Mp3)));
        open && main.is_some_and(|main| mp3.is_none_or(|mp3| mp3 < main))
    }

    /// Closes everything: the next frame begins anew.
    pub fn close(&mut self) {
        self.stop();
        for files in self.endings.drain(..).map(|it| it.files).chain(self.files.take()) {
            files.close(&mut self.out);
        }
        if let Some(hls) = self.hls.take() {
            hls.close(&mut self.out);
        }
        self.forget();
    }

    /// Nothing has come yet, and nothing is written: what is held comes again.
    pub fn forget(&mut self) {
        (self.held, self.tracks, self.present) = (None, Tracks::default(), Arc::default());
        (self.gap, self.waits_for_key) = (Gap::None, false);
        (self.heard, self.stopped) = ([None; 2], false);
    }

    /// What is to be done by now.
    pub fn flush(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.out)
    }

    /// Whether a cut waits for a key frame of the pictures that are being written.
    pub fn wants_key(&self) -> bool {
        self.endings.iter().any(|it| it.pictures)
    }

    /// Files with the tracks as they are, from what was held on; those in hand go on if they have the same.
    fn begin(&mut self, held: Held) {
        let mut frames = held.frames;
        if !held.others {
            return self.write_all(&frames);
        }
        let gap = self.files.as_ref().and_then(|files| files.gap(&frames));
        if let (Some(files), Some(begin)) = (&self.files, gap) {
            let last: Vec<_> = frames.extract_if(.., |(_, frame)| frame.dts < begin).collect();
            self.tracks = files.tracks.clone();
            self.write_all(&last);
            // Other tracks mark it.
            self.gap = Gap::None;
        }
        // Behind a gap all is new.
        let mut main = main(&frames);
        let first = if gap.is_some() { main.min_by_key(|frame| frame.dts) } else { main.next() };
        let Some(first) = first else { return };
        self.tracks = (*self.present).clone();
        self.cut(first);
        self.pictured = first.dts;
        self.write_all(&frames);
    }

    /// Ends the files in hand and begins others with `first`. HLS goes on if it can. Where only the sound is another one, pictures that
    /// go on do so in what there is, up to the next key frame.
    fn cut(&mut self, first: &Frame) {
        let at = first.dts;
        let leads = self.leads(first);
        let go_on =
            |tracks: &Tracks, join: &Join, now: &Tracks| !leads && join.has_begun() && tracks.video == now.video;
        let hls_waits = self.hls.as_ref().is_some_and(|hls| go_on(&hls.tracks, &hls.join, &self.tracks));
        let opened = self.open(at, |format| format != Format::M3u8 || !hls_waits);
        let (hls, files): (Vec<_>, Vec<_>) = opened.into_iter().partition(|&(_, format)| format == Format::M3u8);
        if !hls_waits {
            self.turn(at, hls.first().map(|&(file, _)| file));
        }
        if let Some(files) = self.files.take() {
            let pictures = go_on(&files.tracks, &files.join, &self.tracks);
            let sound = files.tracks.audio.is_some() && files.tracks.audio == self.tracks.audio;
            // Its sound is late by the coding, and goes on whatever it is made of.
            let mp3 = files.muxes.iter().any(|it| matches!(it.mux, Mux::Mp3));
            self.endings.push(Ending { files, at: at + first.cts, pictures, sound: [sound, mp3] });
        }
        let muxes = files.into_iter().map(|(file, format)| Muxing::new(file, format, &self.tracks, &mut self.out));
        let (muxes, tracks) = (muxes.collect(), self.tracks.clone());
        let (join, rate, clocks, mp3) = Default::default();
        self.files = Some(Files { begun: at, tracks, muxes, join, rate, clocks, mp3 });
    }

    /// Opens a file of each format that the tracks as they are have one in; of HLS if its list cannot go on.
    fn open(&mut self, at: Time, wanted: impl Fn(Format) -> bool) -> Vec<(u32, Format)> {
        let goes_on = self.hls.as_ref().is_some_and(|hls| hls.carries(&self.tracks));
        let opens = |format| has(format, &self.tracks) && wanted(format) && !(goes_on && format == Format::M3u8);
        let formats = self.settings.formats.iter().copied().filter(|&format| opens(format));
        let opened: Vec<_> = (self.next + 1..).zip(formats).collect();
        self.next += opened.len() as u32;
        let begin_ms = at.as_millis() + self.wall_ms;
        let opening = |&(file, format)| Opening { file, format, begin_ms, about: About::of(format, &self.tracks) };
        if !opened.is_empty() {
            self.out.push(Op::Open(opened.iter().map(opening).collect()));
        }
        opened
    }

    /// HLS goes on with the tracks as they are: in the file that was opened for it at `at`, or in its list.
    fn turn(&mut self, at: Time, opened: Option<u32>) {
        match (&mut self.hls, opened) {
            (_, Some(file)) => {
                let old = self.hls.replace(Hls::new(file, at, &self.tracks));
                old.into_iter().for_each(|old| old.close(&mut self.out));
            }
            (Some(hls), None) if hls.tracks != self.tracks => hls.restart(&self.tracks, &mut self.out),
            (_, None) => {}
        }
    }

    /// Whether no picture came for so long that files do not wait for one.
    fn paused(&self, at: Time) -> bool {
        at - self.pictured >= self.settings.segment + self.settings.segment
    }

    /// Whether files and segments can begin with a frame.
    fn leads(&self, frame: &Frame) -> bool {
        let leading = frame.track == Kind::Video || self.present.video.is_none() || self.paused(frame.dts);
        leading && frame.key
    }

    fn write_all(&mut self, frames: &[(Input, Frame)]) {
        frames.iter().for_each(|(input, frame)| self.write(*input, frame));
    }

    fn write(&mut self, input: Input, frame: &Frame) {
        let awaited = self.endings.iter().any(|it| it.sound[Input::Mp3 as usize]);
        let from_before = |files: &Files| frame.dts < files.begun && !awaited;
        if input == Input::Mp3 && self.files.as_ref().is_some_and(from_before) {
            return;
        }
        if frame.track == Kind::Video {
            self.pictured = frame.dts;
        }
        let leads = input == Input::Main && self.leads(frame);
        if leads && self.files.as_ref().is_some_and(|files| frame.dts - files.begun >= self.settings.interval) {
            self.tracks = (*self.present).clone();
            self.cut(frame);
        }
        let paused = self.paused(frame.dts);
        let mut taken = false;
        for ending in &mut self.endings {
            taken = taken || ending.take(input, frame, &mut self.out);
        }
        for ending in self.endings.extract_if(.., |it| it.is_over(frame.dts, paused)) {
            ending.files.close(&mut self.out);
        }
        if let Some(files) = self.files.as_mut().filter(|_| !taken) {
            files.push(input, frame, &mut self.out);
        }
        if input == Input::Main {
            self.write_hls(frame, leads);
        }
    }

    fn write_hls(&mut self, frame: &Frame, leads: bool) {
        let Some(hls) = &self.hls else { return };
        let waits = hls.tracks != self.tracks;
        if waits && leads {
            let opened = self.open(frame.dts, |format| format == Format::M3u8);
            self.turn(frame.dts, opened.first().map(|&(file, _)| file));
            self.gap = Gap::None;
        } else if waits && frame.track == Kind::Audio {
            // Sound that the list has no form for.
            return;
        }
        let Some(hls) = &mut self.hls else { return };
        let jumps = || Clock::end(&hls.clocks).is_some_and(|end| frame.dts - end > HOLE);
        let is_behind = match self.gap {
            Gap::None => false,
            Gap::Perhaps => jumps(),
            Gap::Sure => frame.track == Kind::Video || jumps(),
        };
        if frame.key && is_behind {
            self.gap = Gap::None;
            let tracks = hls.tracks.clone();
            hls.restart(&tracks, &mut self.out);
        }
        hls.push(frame, leads, self.settings.segment, self.wall_ms, &mut self.out);
    }
}

/// What comes from the stream itself.
fn main(frames: &[(Input, Frame)]) -> impl Iterator<Item = &Frame> {
    frames.iter().filter(|(input, _)| *input == Input::Main).map(|(_, frame)| frame)
}

/// Whether a file of this format can be made of these tracks.
fn has(format: Format, tracks: &Tracks) -> bool {
    let sound = tracks.audio.as_ref();
    match format {
        Format::Aac => sound.is_some_and(|it| it.codec == Codec::Aac && adts::Header::new(&it.config).is_some()),
        Format::Mp3 => sound.is_some(),
        Format::Mp4 | Format::Flv | Format::M3u8 => sound.is_some() || tracks.video.is_some(),
    }
}

/// Files that began together.
struct Files {
    begun: Time,
    tracks: Tracks,
    muxes: Vec<Muxing>,
    /// Of the pictures, whatever the files began with.
    join: Join,
    rate: Rate,
    /// Of what was pushed, by kind; of MP3 beside it.
    clocks: [Clock; 2],
    mp3: Clock,
}

/// Files before a cut, as long as something that belongs to them may come.
struct Ending {
    files: Files,
    /// When the first picture behind the cut is shown: sound that is heard by then is heard with the pictures before it.
    at: Time,
    /// Whether pictures are awaited: up to a key frame, with which those of the files behind the cut begin.
    pictures: bool,
    /// Whether sound is, by [`Input`].
    sound: [bool; 2],
}

impl Ending {
    /// Takes a frame if it belongs to these files; after the first that does not, none of its kind is awaited.
    fn take(&mut self, input: Input, frame: &Frame, out: &mut Vec<Op>) -> bool {
        let (awaited, belongs) = match frame.track {
            Kind::Video => (&mut self.pictures, !frame.key),
            Kind::Audio => (&mut self.sound[input as usize], frame.dts < self.at),
        };
        *awaited &= belongs;
        let takes = *awaited;
        if takes {
            self.files.push(input, frame, out);
        }
        takes
    }

    /// Whether nothing is awaited any more.
    fn is_over(&mut self, now: Time, pictures_pause: bool) -> bool {
        self.pictures &= !pictures_pause;
        !self.pictures && (self.sound == [false; 2] || now - self.at > LATE)
    }
}

/// One file.
struct Muxing {
    file: u32,
    mux: Mux,
    /// What the next [`Change::Append`] will have.
    parts: Parts,
    /// The time of the first frame in it.
    since: Option<Time>,
}

enum Mux {
    Mp4(mp4::Writer),
    Flv(flv::file::Writer),
    Adts(adts::Header),
    Mp3,
}

impl Files {
    fn push(&mut self, input: Input, frame: &Frame, out: &mut Vec<Op>) {
        if frame.track == Kind::Video {
            if !self.join.takes(frame) {
                return;
            }
            self.rate.count(frame.dts);
        }
        match input {
            Input::Main => self.clocks[frame.track as usize].tick(frame.dts),
            Input::Mp3 => self.mp3.tick(frame.dts),
        }
        self.muxes.iter_mut().for_each(|it| it.push(input, frame, out));
    }

    /// Where frames begin behind a gap, if sound comes first that goes on where the files end: it was still being encoded when its
    /// publisher went.
    fn gap(&self, frames: &[(Input, Frame)]) -> Option<Time> {
        let mut times: Vec<_> = main(frames).map(|frame| (frame.dts, frame.track)).collect();
        times.sort_by_key(|(dts, _)| *dts);
        let mut end = Clock::end(&self.clocks)?;
        for (dts, track) in times {
            if dts - end > HOLE {
                return Some(dts);
            }
            if track == Kind::Video {
                break;
            }
            end = end.max(dts);
        }
        None
    }

    fn close(self, out: &mut Vec<Op>) {
        let rate = self.rate.milli();
        for mut muxing in self.muxes {
            muxing.flush(out);
            let Muxing { file, mux, .. } = muxing;
            let clocks = match mux {
                Mux::Mp4(_) | Mux::Flv(_) => self.clocks,
                Mux::Adts(_) => [Clock::default(), self.clocks[Kind::Audio as usize]],
                Mux::Mp3 => [Clock::default(), self.mp3],
            };
            if let Mux::Mp4(writer) = mux {
                let mut writes = Vec::new();
                writer.flush(&mut writes);
                out.push(Op::Change(file, Change::Put(writes)));
            }
            out.push(Op::Close(file, rate, Clock::end(&clocks).unwrap_or(self.begun) - self.begun));
        }
    }
}

impl Muxing {
    fn new(file: u32, format: Format, tracks: &Tracks, out: &mut Vec<Op>) -> Muxing {
        let (mut parts, mut writes) = (Parts::default(), Vec::new());
        let sound = || tracks.audio.as_ref().and_then(|it| adts::Header::new(&it.config));
        let mux = match format {
            Format::Flv => Mux::Flv(flv::file::Writer::new(tracks, &mut parts)),
            Format::Aac => sound().map_or(Mux::Mp3, Mux::Adts),
            Format::Mp3 => Mux::Mp3,
            Format::Mp4 | Format::M3u8 => Mux::Mp4(mp4::Writer::new(tracks, &mut writes)),
        };
        if !writes.is_empty() {
            out.push(Op::Change(file, Change::Put(writes)));
        }
        Muxing { file, mux, parts, since: None }
    }

    fn push(&mut self, input: Input, frame: &Frame, out: &mut Vec<Op>) {
        match (&mut self.mux, input) {
            (Mux::Mp3, Input::Mp3) => self.parts.share(&frame.payload),
            (Mux::Mp3, Input::Main) | (_, Input::Mp3) => {}
            (Mux::Mp4(writer), Input::Main) => {
                let mut writes = Vec::new();
                writer.push(frame, &mut writes);
                if !writes.is_empty() {
                    out.push(Op::Change(self.file, Change::Put(writes)));
                }
            }
            (Mux::Flv(writer), Input::Main) => writer.push(frame, &mut self.parts),
            (Mux::Adts(header), Input::Main) => {
                if frame.track == Kind::Audio
                    && let Some(head) = header.frame(frame.payload.len())
                {
                    self.parts.copy(&head);
                    self.parts.share(&frame.payload);
                }
            }
        }
        if !self.parts.is_empty() && is_due(&mut self.since, frame, self.parts.len()) {
            self.flush(out);
        }
    }

    fn flush(&mut self, out: &mut Vec<Op>) {
        self.since = None;
        if !self.parts.is_empty() {
            out.push(Op::Change(self.file, Change::Append(self.parts.take())));
        }
    }
}

/// Whether what has been gathered since then is to be written, `frame` being the last of it.
fn is_due(since: &mut Option<Time>, frame: &Frame, bytes: usize) -> bool {
    frame.dts - *since.get_or_insert(frame.dts) >= GATHER || bytes >= GATHER_MAX
}

/// The playlist and its segments. A stretch of segments has the same tracks and no gap; a segment's name tells its stretch.
struct Hls {
    file: u32,
    /// When it was opened, and when its last segment ended.
    span: (Time, Time),
    tracks: Tracks,
    mux: Segments,
    parts: Vec<Bytes>,
    /// What comes behind them, of MPEG-TS: pieces of one size are memory that is used again.
    piece: Vec<u8>,
    /// The time of the first frame in `parts` and `piece`.
    since: Option<Time>,
    stretch: u32,
    number: u32,
    /// When the segment began; none is open otherwise.
    begun: Option<Time>,
    /// Of what was pushed, by kind.
    clocks: [Clock; 2],
    /// Of the pictures with these tracks.
    join: Join,
    rate: Rate,
}

enum Segments {
    Ts(ts::Writer),
    Fmp4(fmp4::Writer),
}

impl Segments {
    /// Behind those that have counted so far.
    fn new(tracks: &Tracks, counters: ts::Counters) -> Segments {
        match ts::Writer::going_on(tracks, counters) {
            Some(writer) => Segments::Ts(writer),
            None => Segments::Fmp4(fmp4::Writer::new(tracks)),
        }
    }
}

impl Hls {
    fn new(file: u32, at: Time, tracks: &Tracks) -> Hls {
        Hls {
            file,
            span: (at, at),
            tracks: tracks.clone(),
            mux: Segments::new(tracks, ts::Counters::default()),
            parts: Vec::new(),
            piece: Vec::new(),
            since: None,
            stretch: 0,
            number: 0,
            begun: None,
            clocks: Default::default(),
            join: Join::default(),
            rate: Rate::default(),
        }
    }

    /// Whether the list can go on with these tracks: its segments stay of one kind, and have pictures and sound or not as before, for
    /// players take what a list begins with for what it has.
    fn carries(&self, tracks: &Tracks) -> bool {
        let has = |tracks: &Tracks| (tracks.video.is_some(), tracks.audio.is_some());
        has(&self.tracks) == has(tracks)
            && matches!(self.mux, Segments::Ts(_))
                == matches!(Segments::new(tracks, ts::Counters::default()), Segments::Ts(_))
    }

    /// Ends the segment where its frames end; a new stretch follows.
    fn restart(&mut self, tracks: &Tracks, out: &mut Vec<Op>) {
        self.end(tracks, out);
        if self.tracks != *tracks {
            self.join = Join::default();
        }
        (self.tracks, self.stretch, self.clocks) = (tracks.clone(), self.stretch + 1, Default::default());
    }

    fn push(&mut self, frame: &Frame, leads: bool, target: Time, wall_ms: i64, out: &mut Vec<Op>) {
        if frame.track == Kind::Video && !self.join.takes(frame) {
            return;
        }
        if self.begun.is_some_and(|begun| leads && frame.dts - begun >= target) {
            self.next(frame, wall_ms, out);
        } else {
            if self.begun.is_none() {
                if let Segments::Fmp4(writer) = &self.mux {
                    let init = Change::Beside(format!("{}.mp4", self.stretch), writer.init());
                    out.push(Op::Change(self.file, init));
                }
                self.begin(frame.dts, wall_ms, out);
            }
            self.mux(frame);
        }
        let gathered = self.piece.len() + self.parts.iter().map(Bytes::len).sum::<usize>();
        if is_due(&mut self.since, frame, gathered) {
            self.flush(out);
        }
        self.clocks[frame.track as usize].tick(frame.dts);
        if frame.track == Kind::Video {
            self.rate.count(frame.dts);
        }
    }

    /// Ends the segment before `frame` and begins the next with it.
    fn next(&mut self, frame: &Frame, wall_ms: i64, out: &mut Vec<Op>) {
        let begun = self.begun.unwrap_or(frame.dts);
        match &mut self.mux {
            Segments::Ts(writer) => writer.end(&mut self.piece),
            Segments::Fmp4(writer) => {
                writer.push(frame, &mut self.parts);
                writer.cut(&mut self.parts);
            }
        }
        self.flush(out);
        out.push(Op::Change(self.file, Change::End(frame.dts - begun)));
        self.begin(frame.dts, wall_ms, out);
        if let Segments::Ts(_) = self.mux {
            self.mux(frame);
        }
    }

    fn begin(&mut self, at: Time, wall_ms: i64, out: &mut Vec<Op>) {
        let (end, map) = match &self.mux {
            Segments::Ts(_) => ("ts", None),
            Segments::Fmp4(_) => ("m4s", Some(format!("{}.mp4", self.stretch))),
        };
        let segment = Segment {
            uri: format!("{}-{}.{end}", self.stretch, self.number),
            duration: Time::ZERO,
            wall_ms: at.as_millis() + wall_ms,
            // The first of a stretch.
            discontinuity: self.clocks.iter().all(|it| it.last().is_none()),
            map,
        };
        self.number += 1;
        self.begun = Some(at);
        out.push(Op::Change(self.file, Change::Begin(segment)));
        if let Segments::Ts(writer) = &mut self.mux {
            writer.start(&mut self.piece);
        }
    }

    fn mux(&mut self, frame: &Frame) {
        match &mut self.mux {
            Segments::Ts(writer) => {
                let room = ts::room(frame.payload.len());
                if self.piece.capacity() - self.piece.len() < room {
                    let next = Vec::with_capacity(room.max(PIECE));
                    self.parts.push(std::mem::replace(&mut self.piece, next).into());
                }
                writer.push(frame, &mut self.piece);
            }
            Segments::Fmp4(writer) => writer.push(frame, &mut self.parts),
        }
    }

    /// Ends the segment; what follows has these tracks.
    fn end(&mut self, next: &Tracks, out: &mut Vec<Op>) {
        let mut counters = ts::Counters::default();
        if let Segments::Ts(writer) = &mut self.mux {
            writer.end(&mut self.piece);
            counters = writer.counters();
        }
        if let Segments::Fmp4(writer) = std::mem::replace(&mut self.mux, Segments::new(next, counters)) {
            writer.flush(&mut self.parts);
        }
        let Some(begun) = self.begun.take() else { return };
        self.flush(out);
        let end = Clock::end(&self.clocks).unwrap_or(begun);
        self.span.1 = end;
        out.push(Op::Change(self.file, Change::End(end - begun)));
    }

    fn flush(&mut self, out: &mut Vec<Op>) {
        self.since = None;
        self.parts.push(std::mem::take(&mut self.piece).into());
        self.parts.retain(|part| !part.is_empty());
        if !self.parts.is_empty() {
            out.push(Op::Change(self.file, Change::Append(std::mem::take(&mut self.parts))));
        }
    }

    fn close(mut self, out: &mut Vec<Op>) {
        self.end(&Tracks::default(), out);
        let (begun, end) = self.span;
        out.push(Op::Close(self.file, self.rate.milli(), end - begun));
    }
}

/// Counts pictures.
#[derive(Default)]
struct Rate {
    pictures: i128,
    span: Option<(Time, Time)>,
}

impl Rate {
    fn count(&mut self, at: Time) {
        self.pictures += 1;
        self.span = Some((self.span.map_or(at, |(first, _)| first), at));
    }

    /// Pictures in 1000 seconds.
    fn milli(&self) -> u32 {
        let Some((first, last)) = self.span.filter(|(first, last)| last > first) else { return 0 };
        ((self.pictures - 1) * 1_000_000_000_000 / i128::from((last - first).as_nanos())) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use bywash_media::codec;

    const LARGE: &str = "0142c01fffe100176742c01fda014016ec0440000003004000000f03c60ca801000468ce0fc8";
    const SMALL: &str = "0142c01effe100196742c01eda0280bfe5c044000003000400000300f03c58ba8001000468ce0fc8";

    /// `L` large pictures, `S` small ones, `a` sound, `b` other sound.
    fn tracks(of: &str) -> Arc<Tracks> {
        let mut tracks = Tracks::default();
        for letter in of.chars() {
            let (codec, config) = match letter {
                'L' => (Codec::H264, LARGE),
                'S' => (Codec::H264, SMALL),
                'b' => (Codec::Aac, "1210"),
                _ => (Codec::Aac, "1190"),
            };
            tracks.set(codec::track(codec, hex::decode(config).unwrap().into()).unwrap());
        }
        Arc::new(tracks)
    }

    /// What is in a file that was written so: in FLV pictures and packets of sound, in HLS pictures, each segment's beginning with a keyframe;
    /// in a file of sound hundreds of bytes.
    fn content(format: Format, changes: &[Change]) -> String {
        let bytes = |change: &Change| if let Change::Append(parts) = change { parts.concat() } else { Vec::new() };
        match format {
            Format::Mp4 => String::new(),
            Format::Flv => {
                let file = changes.iter().flat_map(bytes).collect::<Vec<_>>();
                let (mut rest, mut count) = (&file[13..], [0, 0]);
                while let [kind, a, b, c, ..] = *rest {
                    if kind != 18 && rest[12] == 1 {
                        count[usize::from(kind == 8)] += 1;
                    }
                    rest = &rest[15 + u32::from_be_bytes([0, a, b, c]) as usize..];
                }
                format!(":{}+{}", count[0], count[1])
            }
            Format::M3u8 => {
                let segments = changes.split(|change| matches!(change, Change::Begin(_)));
                let pictures = segments.map(|segment| {
                    let bytes: Vec<_> = segment.iter().flat_map(bytes).collect();
                    let first = |packet: &&[u8]| packet[1] & 0x5f == 0x41 && packet[2] == 0;
                    let mut pictures = bytes.chunks(188).filter(first).peekable();
                    assert!(pictures.peek().is_none_or(|it| it[5] & 0x40 != 0), "no keyframe");
                    pictures.count()
                });
                format!(":{}", pictures.sum::<usize>())
            }
            Format::Aac | Format::Mp3 => format!(":{}", changes.iter().map(Change::len).sum::<usize>() / 100),
        }
    }

    /// Publishes what `script` says, with 25 pictures and 50 packets a second and a keyframe each second, sound being `behind` the pictures by
    /// so many milliseconds, and MP3 100 behind the sound: `L`, `S`, `a` and their like set tracks, a number is so many milliseconds of their frames, `!` frames that are missing,
    /// after `~` pictures are shown 80 ms after they are decoded, after `^` keyframes 100 ms, and so behind the next two, after `=` they pause, and after the next go on,
    /// `_` so many milliseconds in which nobody publishes, `&` so many of sound that goes on where it was. Tells
    /// the files that are opened (`+`) and closed (`-`, with their [`content`]), and HLS's segments with their milliseconds.
    fn check(formats: &[Format], behind: i64, script: &str, want: &str) {
        let (interval, segment) = (Time::from_millis(2_000), Time::from_millis(1_000));
        let mut take = Take::new(Settings { formats: formats.to_vec(), interval, segment });
        let (begin, mut at, mut has, mut shown) = (Instant::now(), 0, tracks(""), Time::ZERO);
        let (mut paused, mut open_groups) = (false, false);
        let mut ops = Vec::new();
        for word in script.split(' ') {
            let now = begin + Duration::from_millis(at as u64);
            match word.parse::<i64>() {
                Ok(span) => {
                    for ms in (at..at + span).step_by(20) {
                        let now = begin + Duration::from_millis(ms as u64);
                        let frame = |track, ms, key, len: usize| Frame {
                            track,
                            dts: Time::from_millis(ms),
                            cts: match track {
                                Kind::Video if key && open_groups => Time::from_millis(100),
                                Kind::Video => shown,
                                Kind::Audio => Time::ZERO,
                            },
                            key,
                            payload: vec![if key { 0x65 } else { 0x41 }; len].into(),
                        };
                        if has.video.is_some() && ms % 40 == 0 && !paused {
                            take.push(Input::Main, frame(Kind::Video, ms, ms % 1_000 == 0, 50), now);
                        }
                        if has.audio.is_some() && ms >= behind {
                            take.push(Input::Main, frame(Kind::Audio, ms - behind, true, 93), now);
                        }
                        if has.audio.is_some() && ms >= behind + 100 {
                            take.push(Input::Mp3, frame(Kind::Audio, ms - behind - 100, true, 100), now);
                        }
                        take.look(now);
                        ops.extend(take.flush());
                    }
                    at += span;
                }
                Err(_) if word == "!" => take.skip(),
                Err(_) if word.starts_with('_') => at += word[1..].parse::<i64>().unwrap(),
                Err(_) if word.starts_with('&') => {
                    let (last, span) = (take.heard[0].unwrap(), word[1..].parse::<i64>().unwrap());
                    for dts in (20..=span).step_by(20).map(|ms| last + Time::from_millis(ms)) {
                        let payload = vec![0x41; 93].into();
                        let frame = Frame { track: Kind::Audio, dts, cts: Time::ZERO, key: true, payload };
                        take.push(Input::Main, frame, now);
                    }
                }
                Err(_) if word == "=" => paused = !paused,
                Err(_) if word == "^" => open_groups = true,
                Err(_) if word == "~" => shown = Time::from_millis(80),
                Err(_) => {
                    has = tracks(word);
                    take.set_tracks(has.clone(), now);
                }
            }
        }
        take.close();
        ops.extend(take.flush());
        let (mut got, mut files) = (Vec::new(), std::collections::HashMap::new());
        for op in ops {
            match op {
                Op::Open(openings) => {
                    for Opening { file, format, .. } in openings {
                        got.push(format!("+{file}"));
                        files.insert(file, (format, Vec::new()));
                    }
                }
                Op::Change(file, change) => {
                    match &change {
                        Change::Begin(segment) => {
                            got.push(format!("{}{}", if segment.discontinuity { "!" } else { "" }, segment.uri));
                        }
                        Change::End(duration) => got.push(format!("{}ms", duration.as_millis())),
                        _ => {}
                    }
                    files.get_mut(&file).unwrap().1.push(change);
                }
                Op::Close(file, ..) => {
                    let (format, changes) = &files[&file];
                    got.push(format!("-{file}{}", content(*format, changes)));
                }
            }
        }
        assert_eq!(got.join(" "), want, "{script}");
    }

    #[test]
    fn files_are_cut_at_keyframes_and_sound_goes_where_it_belongs() {
        check(&[Format::Mp4], 0, "La 5000", "+1 +2 -1 +3 -2 -3");
        // 2 s are 100 packets, though the last ones come when the next file has begun.
        check(&[Format::Aac], 100, "La 5000", "+1 +2 -1:100 +3 -2:100 -3:45");
        // It belongs to the pictures that are shown with it.
        check(&[Format::Aac], 100, "La ~ 5000", "+1 +2 -1:104 +3 -2:100 -3:41");
        // Without sound there is no file of sound.
        check(&[Format::Aac, Format::Mp4], 0, "L 3000", "+1 +2 -1 -2");
    }

    #[test]
    fn no_mp3_is_lost_at_a_cut_whatever_becomes_of_the_sound_that_it_is_made_of() {
        // At the end 100 ms have not come.
        check(&[Format::Mp3], 0, "La 4000", "+1 +2 -1:100 -2:95");
        check(&[Format::Mp3], 0, "La 1000 Lb 1000", "+1 +2 -1:50 -2:45");
        check(&[Format::Mp3], 0, "La 1000 Sb 1000", "+1 +2 -1:50 -2:45");
        check(&[Format::Mp3], 100, "a 1700 b 1000", "+1 +2 -1:80 -2:45");
        // It changes again before files have begun.
        check(&[Format::Mp3], 0, "La 1000 Lb 100 La 900", "+1 +2 -1:50 -2:45");
    }

    #[test]
    fn whoever_stops_waits_for_mp3_of_the_sound_that_has_come_and_takes_no_more() {
        let (interval, segment) = (Time::from_millis(2_000), Time::from_millis(1_000));
        let mut take = Take::new(Settings { formats: vec![Format::Mp3], interval, segment });
        let now = Instant::now();
        let push = |take: &mut Take, input, ms: i64| {
            let payload = vec![0; 100].into();
            let dts = Time::from_millis(ms);
            take.push(input, Frame { track: Kind::Audio, dts, cts: Time::ZERO, key: true, payload }, now);
        };
        take.set_tracks(tracks("a"), now);
        (0..500).step_by(20).for_each(|ms| push(&mut take, Input::Main, ms));
        (0..400).step_by(20).for_each(|ms| push(&mut take, Input::Mp3, ms));
        assert_eq!(take.begun(), 0);
        take.stop();
        assert!(take.begun() == 1 && take.awaits_sound());
        push(&mut take, Input::Main, 500);
        (400..600).step_by(20).for_each(|ms| push(&mut take, Input::Mp3, ms));
        assert!(!take.awaits_sound());
        take.close();
        let changes = take.flush().into_iter().filter_map(|op| match op {
            Op::Change(_, change) => Some(change),
            _ => None,
        });
        assert_eq!(content(Format::Mp3, &changes.collect::<Vec<_>>()), ":25");
    }

    #[test]
    fn every_file_is_told_to_end_with_its_last_frame_whatever_gaps_it_has() {
        let formats = vec![Format::M3u8, Format::Mp4, Format::Flv, Format::Aac, Format::Mp3];
        let (interval, segment) = (Time::from_millis(60_000), Time::from_millis(1_000));
        let mut take = Take::new(Settings { formats, interval, segment });
        let now = Instant::now();
        // It goes for ten seconds.
        for begin in [0, 11_000] {
            take.set_tracks(tracks("La"), now);
            for ms in (begin..begin + 1_000).step_by(20) {
                let frame = |track| {
                    let (dts, key) = (Time::from_millis(ms), track == Kind::Audio || ms == begin);
                    Frame { track, dts, cts: Time::ZERO, key, payload: vec![0x65; 50].into() }
                };
                if ms % 40 == 0 {
                    take.push(Input::Main, frame(Kind::Video), now);
                }
                take.push(Input::Main, frame(Kind::Audio), now);
                take.push(Input::Mp3, frame(Kind::Audio), now);
            }
        }
        take.close();
        let spans = take.flush().into_iter().filter_map(|op| match op {
            Op::Close(_, _, span) => Some(span.as_millis()),
            _ => None,
        });
        assert_eq!(spans.collect::<Vec<_>>(), [12_000; 5]);
    }

    #[test]
    fn whoever_comes_back_with_one_track_before_the_other_begins_no_file_of_one_alone() {
        // The interval has passed, and a new file begins all the same: once.
        let both = [Format::Flv, Format::M3u8];
        let sound_first = "+1 +2 !0-0.ts +3 -1:25+50 1000ms !1-1.ts -3:25+55 1100ms -2:50";
        check(&both, 0, "La 1000 _2900 a 100 La 1000", sound_first);
        let pictures_first = "+1 +2 !0-0.ts +3 1000ms !1-1.ts -1:25+50 1000ms 1-2.ts -3:28+50 120ms -2:53";
        check(&both, 0, "La 1000 _3000 L 100 La 1000", pictures_first);
        // It has not, and the other does not come.
        check(&[Format::Flv], 0, "La 1000 _100 a 700", "+1 -1:25+85");
    }

    #[test]
    fn sound_that_was_still_being_encoded_ends_the_file_before_the_gap_behind_which_pictures_are_others() {
        let both = [Format::Flv, Format::M3u8];
        let want = "+1 +2 !0-0.ts +3 560ms !1-1.ts -1:14+28 -3:25+50 1000ms -2:39";
        check(&both, 60, "La 560 _440 Sa &60 1000", want);
        check(&both, 60, "La 560 _6440 Sa &60 1000", want);
        // One track after the other.
        let pictures_first = "+1 +2 !0-0.ts +3 560ms !1-1.ts -1:14+28 -3:25+48 1000ms -2:39";
        check(&both, 60, "La 560 _6440 S &60 40 Sa 960", pictures_first);
        let sound_first = "+1 +2 !0-0.ts +3 560ms -1:14+28 !1-1.ts -3:25+53 1120ms -2:39";
        check(&both, 60, "La 560 _6380 a &60 60 Sa 1000", sound_first);
    }

    #[test]
    fn hls_goes_on_over_cuts_and_gaps() {
        let plain = "+1 !0-0.ts 1000ms 0-1.ts 1000ms 0-2.ts 1000ms -1:75";
        check(&[Format::M3u8], 0, "La 3000", plain);
        check(&[Format::M3u8], 0, "La 1000 ! 1000", "+1 !0-0.ts 1000ms !1-1.ts 1000ms -1:50");
        // The publisher is another one, with the same tracks.
        check(&[Format::M3u8], 0, "La 1000 La 1000", "+1 !0-0.ts 1000ms !1-1.ts 1000ms -1:50");
        check(&[Format::M3u8], 0, "La 1000 Sa 1000", "+1 !0-0.ts 1000ms !1-1.ts 1000ms -1:50");
    }

    #[test]
    fn sound_that_was_still_being_encoded_belongs_before_the_gap_which_hls_marks_once() {
        let once = "+1 !0-0.ts 520ms !1-1.ts 1000ms -1:38";
        check(&[Format::M3u8], 60, "La 500 _500 La &60 1000", once);
        // The publisher that comes back tells of one track after the other.
        check(&[Format::M3u8], 60, "La 500 _500 L &60 40 La 960", once);
        check(&[Format::M3u8], 60, "La 500 _440 a &60 60 La 1000", "+1 !0-0.ts 520ms !1-1.ts 1120ms -1:38");
        // A gap that is filled with silence.
        check(&[Format::M3u8], 60, "La 500 _440 a &440 60 La 1000", "+1 !0-0.ts 940ms !1-1.ts 1000ms -1:38");
        // Sound alone.
        check(&[Format::M3u8], 60, "a 560 _440 a &60 1000", "+1 !0-0.ts 560ms !1-1.ts 1000ms -1:0");
    }

    #[test]
    fn a_list_has_pictures_and_sound_from_its_beginning_or_not_at_all() {
        check(
            &[Format::M3u8],
            0,
            "L 3000 La 2000",
            "+1 !0-0.ts 1000ms 0-1.ts 1000ms 0-2.ts +2 1000ms -1:75 !0-0.ts 1000ms 0-1.ts 1000ms -2:50",
        );
        check(
            &[Format::M3u8],
            0,
            "a 3000 La 2000",
            "+1 !0-0.ts 1000ms 0-1.ts 1000ms 0-2.ts +2 1000ms -1:0 !0-0.ts 1000ms 0-1.ts 1000ms -2:50",
        );
    }

    #[test]
    fn sound_is_cut_where_pictures_pause() {
        let hls = "+1 !0-0.ts 2960ms 0-1.ts 1000ms 0-2.ts 1000ms 0-3.ts 1000ms 0-4.ts 1040ms 0-5.ts 1000ms -1:75";
        check(&[Format::M3u8], 0, "La 1000 = 5000 = 2000", hls);
        check(&[Format::Mp4], 0, "La 1000 = 5000 = 2000", "+1 +2 -1 +3 -2 +4 -3 -4");
        // A pause that is shorter than two segments.
        check(&[Format::M3u8], 0, "La 1000 = 1900 = 1100", "+1 !0-0.ts 3000ms 0-1.ts 1000ms -1:52");
    }

    #[test]
    fn a_file_begins_without_the_pictures_that_need_what_was_before_its_keyframe() {
        check(&[Format::Flv], 0, "La ^ 4000", "+1 +2 -1:48+105 -2:48+95");
        // HLS goes on, and so does who decodes it.
        check(&[Format::M3u8], 0, "L ^ 2000", "+1 !0-0.ts 1000ms 0-1.ts 1000ms -1:48");
    }

    #[test]
    fn no_picture_is_lost_where_only_the_sound_changes() {
        // The new file begins with the sound, the old one has the pictures up to the keyframe.
        check(&[Format::Flv], 0, "L 2400 La 2600", "+1 +2 -1:50+0 +3 -2:25+0 -3:50+130");
        check(&[Format::Flv], 0, "La 2400 Lb 2600", "+1 +2 -1:50+100 +3 -2:25+20 -3:50+130");
        check(&[Format::Flv], 0, "La 2400 Lb 360 La 2240", "+1 +2 -1:50+100 +3 +4 -3:0+18 -2:25+20 -4:50+112");
        // None comes, and no keyframe.
        check(&[Format::Flv], 0, "La 400 Lb 200 = 5000", "+1 +2 +3 -1:15+20 -2:0+108 +4 -3:0+100 -4:0+52");
        // Other pictures cannot go on in it.
        check(&[Format::Flv], 0, "La 2400 Lb 360 Sb 2240", "+1 +2 -1:50+100 +3 +4 -3:0+18 -2:19+20 -4:50+112");
        // HLS has the new sound from the keyframe on.
        check(
            &[Format::M3u8],
            0,
            "L 2400 La 2600",
            "+1 !0-0.ts 1000ms 0-1.ts 1000ms 0-2.ts +2 1000ms -1:75 !0-0.ts 1000ms 0-1.ts 1000ms -2:50",
        );
        check(
            &[Format::M3u8],
            0,
            "La 2400 Lb 2600",
            "+1 !0-0.ts 1000ms 0-1.ts 1000ms 0-2.ts 1000ms !1-3.ts 1000ms 1-4.ts 1000ms -1:125",
        );
        check(
            &[Format::M3u8],
            0,
            "La 2400 Sb 2600",
            "+1 !0-0.ts 1000ms 0-1.ts 1000ms 0-2.ts 400ms !1-3.ts 1600ms 1-4.ts 1000ms -1:110",
        );
    }

    #[test]
    fn tracks_have_their_time_to_come_and_to_settle() {
        check(&[Format::Flv], 0, "L 200 La 800", "+1 -1:25+40");
        check(&[Format::Flv], 0, "L 2000 La 2000", "+1 +2 -1:50+0 -2:50+100");
        check(&[Format::Flv], 0, "La 1000 Sa 100 La 100 Sa 1800", "+1 +2 -1:25+50 -2:25+100");
        // Nothing but sound, and what is too short for anything.
        check(&[Format::Aac], 0, "a 1000", "+1 -1:50");
        check(&[Format::Mp4], 0, "La 0", "");
    }
}
