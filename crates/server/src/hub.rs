//! Live streams: a publisher writes frames, any number of readers follow.
//!
//! The frames of a stream sit in one ring that all its readers share; a reader is only a place in it. So a frame is
//! stored once however many outputs there are, a late reader starts at the newest keyframe without a cache of its
//! own, and a slow reader loses its own place but never slows the publisher or another reader.
//!
//! Everything happens once a picture, not once a frame: readers are woken for a picture and take the sound that
//! rides along.
//!
//! Invariant: [`Publisher::push`] waits for nobody, and the ring never holds more than its limit in bytes.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Instant;

use bywash_media::timeline::Timeline;
use bywash_media::{Frame, Join, Kind, StreamKey, Time, Tracks};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::live;

/// How much sound may wait for a picture, in media time. Where no picture comes, this is the delay.
const HOLD: Time = Time::from_millis(50);

/// How far before the newest sound a reader of sound alone begins, at the most.
const STEP_BACK: Time = Time::from_millis(500);

/// Pictures that one read takes at the most, in bytes: a reader far behind shares the thread with the others.
const BATCH: usize = 512 * 1024;

/// What a reader that is woken takes at once, in media time: of what it holds itself it cannot skip anything.
const BATCH_TIME: Time = Time::from_millis(500);

/// Where no picture came for so long, a reader begins with the sound, and its pictures with the next keyframe.
const PICTURELESS: Time = Time::from_millis(10_000);

/// What each frame costs beside its payload, about.
const FRAME_OVERHEAD: usize = 96;

/// All streams that are live, or whose publisher may yet come back.
pub struct Hub {
    streams: Mutex<HashMap<StreamKey, Stream>>,
    live: Arc<live::Live>,
    limit: usize,
}

/// What a reader sees next.
#[derive(Clone, Debug)]
pub enum Event {
    /// The tracks of all frames that follow, until the next such event. The first thing that a reader sees.
    Tracks(Arc<Tracks>),
    /// The next frame.
    Frame(Frame),
    /// The reader fell behind and now stands at a later keyframe, or waits for one.
    Lagged {
        /// Frames that it missed.
        frames: u64,
    },
}

/// One live stream, for whoever wants to read it.
#[derive(Clone)]
pub struct Stream {
    shared: Arc<Shared>,
}

/// The only writer of a stream. Dropping it leaves the stream waiting for the next one; [`Hub::end`] ends it.
pub struct Publisher {
    shared: Arc<Shared>,
    timeline: Timeline,
    held_since: Option<Time>,
    /// Pictures before the first keyframe decode to nothing, and are not taken.
    keyframe_seen: bool,
    rate: FrameRate,
    /// Whom to wake next; empty between two calls.
    wakers: Vec<Waker>,
}

/// What a reader came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// More may come.
    Open,
    /// The stream has ended, and all is read out.
    Ended,
    /// The next frame has tracks that do not fit.
    Unfit,
}

/// A reader's place in a stream.
pub struct Reader {
    shared: Arc<Shared>,
    slot: usize,
    tracks: Option<Arc<Tracks>>,
    /// Nothing is passed on before the next frame that decoding can begin with.
    waits_for_start: bool,
    /// When the frame was that it began with. Sound from before comes later than that, and belongs to nothing.
    began: Time,
    /// Of its pictures.
    join: Join,
    max_lag: Time,
}

struct Shared {
    ring: Mutex<Ring>,
    published: AtomicBool,
    /// The timeline between two publishers of the same stream.
    timeline: Mutex<Option<Timeline>>,
    origin: Instant,
    live: Arc<live::Stream>,
    ended: CancellationToken,
    /// A reader would rather begin at a new keyframe than at an old one, or has none to begin at.
    keyframe_wanted: Notify,
    tracks_set: Notify,
}

#[derive(Default)]
struct Ring {
    frames: VecDeque<Stored>,
    /// The number of `frames[0]`.
    first: u64,
    /// The newest frame that decoding can begin with, if the ring still has it.
    start: Option<u64>,
    /// When the newest picture was.
    pictured: Option<Time>,
    bytes: usize,
    limit: usize,
    /// Tracks, each with the number of the first frame that they hold for; the first entry holds for `frames[0]`.
    tracks: VecDeque<(u64, Arc<Tracks>)>,
    /// Of each reader; what all have read is let go at the next keyframe.
    places: Vec<Option<Place>>,
    ended: bool,
}

/// A frame in the ring.
struct Stored {
    frame: Frame,
    /// A reader can begin here: a keyframe, or sound without pictures.
    start: bool,
}

/// Where a reader stands.
struct Place {
    /// The number of its next frame.
    next: u64,
    /// It waits for that. It is kept here, and not in a channel, since who adds a frame or looks for one holds the ring anyway.
    waker: Option<Waker>,
}

impl Hub {
    /// A hub whose streams may hold `limit` bytes each.
    pub fn new(live: Arc<live::Live>, limit: usize) -> Hub {
        Hub { streams: Mutex::default(), live, limit }
    }

    /// The writer of `key`: of a new stream, or of one that waits for its publisher. `None` while another holds it.
    pub fn publish(&self, key: &StreamKey, info: live::Stream, now: Instant) -> Option<Publisher> {
        let mut streams = self.streams();
        if let Some(stream) = streams.get(key) {
            let publisher = stream.publish(now)?;
            *stream.shared.live.publisher.write().expect("no holder panics") = info.publisher();
            return Some(publisher);
        }
        let info = Arc::new(info);
        self.live.stream_started(key.clone(), info.clone());
        streams.entry(key.clone()).or_insert(stream(info, self.limit, now)).publish(now)
    }

    /// Ends a stream: readers get what is left, then the end.
    pub fn end(&self, key: &StreamKey) {
        let Some(stream) = self.streams().remove(key) else { return };
        self.live.stream_ended(key);
        stream.end();
    }

    /// A stream that is live or waits for its publisher.
    pub fn get(&self, key: &StreamKey) -> Option<Stream> {
        self.streams().get(key).cloned()
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<StreamKey, Stream>> {
        self.streams.lock().expect("no holder panics")
    }
}

fn stream(live: Arc<live::Stream>, limit: usize, now: Instant) -> Stream {
    let shared = Shared {
        ring: Mutex::new(Ring { limit, ..Ring::default() }),
        published: AtomicBool::new(false),
        timeline: Mutex::new(None),
        origin: now,
        live,
        ended: CancellationToken::new(),
        keyframe_wanted: Notify::new(),
        tracks_set: Notify::new(),
    };
    Stream { shared: Arc::new(shared) }
}

impl Stream {
    /// A stream beside this one that no key leads to, for who makes its frames of this one's. They are on this one's line:
    /// its publisher stamps none.
    pub fn beside(&self) -> (Publisher, Stream) {
        let live = live::Stream::new(self.shared.live.publisher().protocol, String::new(), self.shared.live.since_ms);
        let limit = self.shared.ring().limit;
        let stream = stream(Arc::new(live), limit, self.shared.origin);
        let publisher = stream.publish(self.shared.origin).expect("nobody else knows it");
        (publisher, stream)
    }

    /// Ends the stream: readers get what is left, then the end.
    pub fn end(&self) {
        let mut wakers = Vec::new();
        let mut ring = self.shared.ring();
        ring.ended = true;
        ring.take_wakers(&mut wakers);
        drop(ring);
        self.shared.ended.cancel();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the stream has ended.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.is_cancelled()
    }

    /// Whether a publisher holds it.
    pub fn is_published(&self) -> bool {
        self.shared.published.load(Ordering::Acquire)
    }

    /// Whether the two are one.
    pub fn is(&self, other: &Stream) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    fn publish(&self, now: Instant) -> Option<Publisher> {
        if self.shared.published.swap(true, Ordering::AcqRel) {
            return None;
        }
        let timeline = match self.shared.timeline.lock().expect("no holder panics").take() {
            Some(mut timeline) => {
                timeline.resume(self.shared.elapsed(now));
                timeline
            }
            None => Timeline::new(),
        };
        Some(Publisher {
            shared: self.shared.clone(),
            timeline,
            held_since: None,
            keyframe_seen: false,
            rate: FrameRate::default(),
            wakers: Vec::new(),
        })
    }

    /// A reader that starts at the newest keyframe, or at the next where there is none; of sound alone up to half a second back,
    /// as far as the ring still has it. Once it is more than `max_lag` behind, it skips to the newest keyframe.
    pub fn read(&self, max_lag: Time) -> Reader {
        self.read_from(Ring::beginning, max_lag)
    }

    /// A reader for who has read up to a frame of this time, of this stream or of one on the same line: it starts where decoding can begin
    /// for that frame, as far as the ring still has it, else as soon behind it as it can; with no time as [`Stream::read`] does.
    pub fn read_since(&self, since: Option<Time>, max_lag: Time) -> Reader {
        let place = |ring: &Ring| since.and_then(|since| ring.start_of(since)).unwrap_or_else(|| ring.beginning());
        self.read_from(place, max_lag)
    }

    fn read_from(&self, place: impl Fn(&Ring) -> u64, max_lag: Time) -> Reader {
        let mut ring = self.shared.ring();
        let place = place(&ring);
        let slot = ring.take_slot(place);
        self.shared.live.outputs.fetch_add(1, Ordering::Relaxed);
        self.want_keyframe();
        Reader {
            shared: self.shared.clone(),
            slot,
            tracks: None,
            waits_for_start: true,
            began: Time::ZERO,
            join: Join::default(),
            max_lag,
        }
    }

    /// The tracks as they are now.
    pub fn tracks(&self) -> Arc<Tracks> {
        self.shared.ring().tracks.back().map(|(_, tracks)| tracks.clone()).unwrap_or_default()
    }

    /// Comes once the tracks are such; not at the end of a stream whose tracks never were.
    pub async fn tracks_are(&self, such: impl Fn(&Tracks) -> bool) {
        loop {
            let set = self.shared.tracks_set.notified();
            if such(&self.tracks()) {
                return;
            }
            set.await;
        }
    }

    /// When the newest frame of a kind was, if the ring still has one.
    pub fn newest(&self, kind: Kind) -> Option<Time> {
        let ring = self.shared.ring();
        ring.frames.iter().rev().find(|it| it.frame.track == kind).map(|it| it.frame.dts)
    }

    /// Asks the publisher for a keyframe, if it is of those that make them on demand.
    pub fn want_keyframe(&self) {
        self.shared.keyframe_wanted.notify_one();
    }

    /// Comes when the stream has ended.
    pub fn ended(&self) -> WaitForCancellationFuture<'_> {
        self.shared.ended.cancelled()
    }

    /// The stream's counters.
    pub fn live(&self) -> &Arc<live::Stream> {
        &self.shared.live
    }
}

impl Publisher {
    /// Where on the stream's line a frame belongs that its publisher stamped `raw_ms` (32 bits that wrap).
    pub fn stamp(&mut self, track: Kind, raw_ms: u32, now: Instant) -> Time {
        self.timeline.stamp(track, raw_ms, self.shared.elapsed(now))
    }

    /// Sets the tracks of the frames that follow.
    pub fn set_tracks(&mut self, tracks: Tracks) {
        let tracks = Arc::new(tracks);
        *self.shared.live.tracks.write().expect("no holder panics") = tracks.clone();
        self.shared.ring().set_tracks(tracks);
        self.shared.tracks_set.notify_waiters();
    }

    /// Adds a frame. Readers are woken for a picture; sound alone waits for [`HOLD`] of it.
    pub fn push(&mut self, frame: Frame) {
        let picture = frame.track == Kind::Video;
        if picture && !self.keyframe_seen {
            if !frame.key {
                return;
            }
            self.keyframe_seen = true;
        }
        if picture {
            self.rate.count(&frame, &self.shared.live);
        }
        let due = picture || frame.dts - *self.held_since.get_or_insert(frame.dts) >= HOLD;
        self.shared.live.bytes.add(frame.payload.len() as u64);
        let mut ring = self.shared.ring();
        ring.push(frame);
        if due {
            self.held_since = None;
            ring.take_wakers(&mut self.wakers);
        }
        drop(ring);
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// Wakes the readers for whatever waits.
    pub fn flush(&mut self) {
        self.held_since = None;
        self.shared.ring().take_wakers(&mut self.wakers);
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// Measures the stream's rate; to be called about once a second.
    pub fn measure(&self) {
        self.shared.live.bytes.measure(Instant::now());
    }

    /// Comes when a reader wants a keyframe.
    pub async fn keyframe_wanted(&self) {
        self.shared.keyframe_wanted.notified().await;
    }

    /// Whether sound waits for a picture.
    pub fn holds(&self) -> bool {
        self.held_since.is_some()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let timeline = std::mem::take(&mut self.timeline);
        *self.shared.timeline.lock().expect("no holder panics") = Some(timeline);
        self.shared.published.store(false, Ordering::Release);
        self.flush();
    }
}

impl Reader {
    /// Moves what is ready to `batch`; waits until there is something. False once the stream has ended and is read out.
    pub async fn ready(&mut self, batch: &mut Vec<Event>) -> bool {
        self.ready_while(batch, |_| true).await != Stop::Ended
    }

    /// Does what [`Reader::ready`] does as long as tracks fit: of what has others nothing is taken.
    pub async fn ready_while(&mut self, batch: &mut Vec<Event>, fits: impl Fn(&Tracks) -> bool) -> Stop {
        poll_fn(|cx| match self.take(batch, Some(cx.waker()), &fits) {
            Stop::Unfit => Poll::Ready(Stop::Unfit),
            _ if !batch.is_empty() => Poll::Ready(Stop::Open),
            Stop::Ended => Poll::Ready(Stop::Ended),
            Stop::Open => Poll::Pending,
        })
        .await
    }

    /// Moves what is ready to `batch`, up to half a megabyte of pictures; true if the stream has ended and this was the last of it. For
    /// who looks at its own times and need not be woken for each picture.
    pub fn drain(&mut self, batch: &mut Vec<Event>) -> bool {
        self.drain_while(batch, |_| true) == Stop::Ended
    }

    /// Does what [`Reader::drain`] does as long as tracks fit: of what has others nothing is taken.
    pub fn drain_while(&mut self, batch: &mut Vec<Event>, fits: impl Fn(&Tracks) -> bool) -> Stop {
        self.take(batch, None, &fits)
    }

    /// When the next frame is, if it is there.
    pub fn next_time(&self) -> Option<Time> {
        let ring = self.shared.ring();
        let next = ring.places[self.slot].as_ref()?.next;
        Some(ring.frames.get(next.saturating_sub(ring.first) as usize)?.frame.dts)
    }

    /// Does what [`Reader::drain_while`] does; `waker` hears of more where there was nothing.
    fn take(&mut self, batch: &mut Vec<Event>, waker: Option<&Waker>, fits: &impl Fn(&Tracks) -> bool) -> Stop {
        let mut guard = self.shared.ring();
        let ring = &mut *guard;
        let place = ring.places[self.slot].as_ref();
        let mut next = place.expect("a reader holds its slot until it is dropped").next;

        if let Some(frames) = ring.skip(&mut next, self.max_lag) {
            self.waits_for_start = true;
            self.shared.keyframe_wanted.notify_one();
            batch.push(Event::Lagged { frames });
        }
        let (mut bytes, mut first, mut unfit) = (0, None, false);
        let most = waker.map(|_| BATCH_TIME);
        let mut tracks_at = ring.tracks.partition_point(|(from, _)| *from <= next);
        while next < ring.next() && bytes < BATCH {
            let Stored { frame, start } = ring.at(next);
            if most.is_some_and(|most| frame.dts - *first.get_or_insert(frame.dts) > most) && !batch.is_empty() {
                break;
            }
            while ring.tracks.get(tracks_at).is_some_and(|(from, _)| *from <= next) {
                tracks_at += 1;
            }
            let tracks = tracks_at.checked_sub(1).map(|at| &ring.tracks[at].1);
            let told = self.tracks.as_ref().zip(tracks).is_some_and(|(told, tracks)| Arc::ptr_eq(told, tracks));
            unfit = !told && (*start || !self.waits_for_start) && tracks.is_some_and(|tracks| !fits(tracks));
            if unfit {
                break;
            }
            next += 1;
            let Some(tracks) = tracks else { continue };
            if self.waits_for_start {
                if !start {
                    continue;
                }
                (self.waits_for_start, self.began, self.join) = (false, frame.dts, Join::default());
            }
            let in_time = match frame.track {
                Kind::Audio => frame.dts >= self.began,
                Kind::Video => self.join.takes(frame),
            };
            if !in_time {
                continue;
            }
            if !told {
                self.tracks = Some(tracks.clone());
                batch.push(Event::Tracks(tracks.clone()));
            }
            bytes += frame.payload.len();
            batch.push(Event::Frame(frame.clone()));
        }
        let ended = ring.ended && next == ring.next();
        let waker = waker.filter(|_| batch.is_empty() && !ended && !unfit).cloned();
        ring.places[self.slot] = Some(Place { next, waker });
        match (ended, unfit) {
            (_, true) => Stop::Unfit,
            (true, false) => Stop::Ended,
            (false, false) => Stop::Open,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.ring().places[self.slot] = None;
        self.shared.live.outputs.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().expect("no holder panics")
    }

    fn elapsed(&self, now: Instant) -> Time {
        Time::from_nanos(now.saturating_duration_since(self.origin).as_nanos() as i64)
    }
}

impl Ring {
    /// The number that the next frame will have.
    fn next(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Where a new reader begins. Sound alone can be begun anywhere, so it is with what another reader has yet to take or has taken
    /// this moment: who begins a stream in several steps misses nothing of it.
    fn beginning(&self) -> u64 {
        let Some(start) = self.start else { return self.next() };
        let Some((from, _)) = self.tracks.back().filter(|_| self.at(start).frame.track == Kind::Audio) else {
            return start;
        };
        let near = |it: &Stored| it.start && self.at(start).frame.dts - it.frame.dts <= STEP_BACK;
        (self.first.max(*from)..start).rev().take_while(|number| near(self.at(*number))).last().unwrap_or(start)
    }

    /// Where decoding begins for a frame of this time, or the first place behind it; `None` if the ring has neither.
    fn start_of(&self, time: Time) -> Option<u64> {
        let starts = || (self.first..).zip(&self.frames).filter(|(_, it)| it.start);
        let last = starts().take_while(|(_, it)| it.frame.dts <= time).last().or_else(|| starts().next());
        last.map(|(number, _)| number)
    }

    fn take_slot(&mut self, next: u64) -> usize {
        let place = Place { next, waker: None };
        match self.places.iter().position(Option::is_none) {
            Some(slot) => {
                self.places[slot] = Some(place);
                slot
            }
            None => {
                self.places.push(Some(place));
                self.places.len() - 1
            }
        }
    }

    /// Moves the wakers of all readers that wait to `wakers`, to be woken once the ring is let go.
    fn take_wakers(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.places.iter_mut().flatten().filter_map(|place| place.waker.take()));
    }

    fn at(&self, number: u64) -> &Stored {
        &self.frames[(number - self.first) as usize]
    }

    fn set_tracks(&mut self, tracks: Arc<Tracks>) {
        let next = self.next();
        if let Some((_, unused)) = self.tracks.pop_back_if(|(from, _)| *from == next) {
            self.bytes -= size(&unused);
        }
        self.bytes += size(&tracks);
        self.tracks.push_back((next, tracks));
    }

    fn push(&mut self, frame: Frame) {
        let Some((_, tracks)) = self.tracks.back() else { return };
        let start = match frame.track {
            Kind::Video => frame.key,
            Kind::Audio => tracks.video.is_none() || self.pictured.is_none_or(|last| frame.dts - last > PICTURELESS),
        };
        if start {
            self.start = Some(self.next());
            self.let_go();
        }
        if frame.track == Kind::Video {
            self.pictured = Some(frame.dts);
        }
        self.bytes += frame.payload.len() + FRAME_OVERHEAD;
        self.frames.push_back(Stored { frame, start });
        while self.bytes > self.limit && self.frames.len() > 1 {
            self.drop_oldest();
        }
    }

    /// Drops what every reader has read and no late reader would start with.
    fn let_go(&mut self) {
        let start = self.start.unwrap_or(self.first);
        let slowest = self.places.iter().flatten().map(|place| place.next).min().unwrap_or(start);
        while self.first < start.min(slowest) && !self.frames.is_empty() {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.frames.pop_front().expect("callers see a frame");
        self.bytes -= oldest.frame.payload.len() + FRAME_OVERHEAD;
        self.first += 1;
        self.start = self.start.filter(|start| *start >= self.first);
        while self.tracks.get(1).is_some_and(|(from, _)| *from <= self.first) {
            let (_, unused) = self.tracks.pop_front().expect("there are two");
            self.bytes -= size(&unused);
        }
    }

    /// Moves a reader on that has lost its place or is more than `max_lag` behind: to the newest frame that decoding
    /// can begin with, or past the end if the ring has none. Says how many frames it missed.
    fn skip(&self, next: &mut u64, max_lag: Time) -> Option<u64> {
        let lost = *next < self.first;
        let behind = || {
            let at = self.frames.get((*next - self.first) as usize)?;
            Some(self.frames.back()?.frame.dts - at.frame.dts)
        };
        let late = !lost && behind().is_some_and(|lag| lag > max_lag);
        let to = self.start.unwrap_or(self.next());
        // A late reader that already stands behind the newest keyframe gains nothing by a skip.
        if !lost && (!late || self.start.is_none_or(|start| start <= *next)) {
            return None;
        }
        let missed = to - *next;
        *next = to;
        Some(missed)
    }
}

/// What tracks take, in bytes. There are no more of them than frames.
fn size(tracks: &Tracks) -> usize {
    [&tracks.video, &tracks.audio].into_iter().flatten().map(|track| track.config.len()).sum()
}

/// Counts the pictures between keyframes.
#[derive(Default)]
struct FrameRate {
    since: Option<Time>,
    pictures: i64,
}

impl FrameRate {
    fn count(&mut self, frame: &Frame, live: &live::Stream) {
        let since = *self.since.get_or_insert(frame.dts);
        let span = (frame.dts - since).as_millis();
        if frame.key && span >= 500 {
            let milli = self.pictures * 1_000_000 / span;
            live.frame_rate_milli.store(milli as u64, Ordering::Relaxed);
            *self = FrameRate { since: Some(frame.dts), pictures: 0 };
        }
        self.pictures += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;
    use bytes::Bytes;
    use bywash_media::{Codec, Format, Track};

    const LAG: Time = Time::from_millis(1_000_000);

    fn tracks(kinds: &str) -> Tracks {
        let mut tracks = Tracks::default();
        if kinds.contains('v') {
            let format = Format::Video { width: 16, height: 16 };
            tracks.set(Track { codec: Codec::H264, config: Bytes::from_static(b"v"), format });
        }
        if kinds.contains('a') {
            let format = Format::Audio { sample_rate: 48_000, channels: 2 };
            tracks.set(Track { codec: Codec::Aac, config: Bytes::from_static(b"a"), format });
        }
        tracks
    }

    fn hub(limit_in_frames: usize) -> Hub {
        // Their tracks have a byte each.
        Hub::new(Arc::default(), limit_in_frames * (FRAME_OVERHEAD + 1) + 8)
    }

    fn info() -> live::Stream {
        live::Stream::new("RTMP", String::new(), 0)
    }

    fn key() -> StreamKey {
        StreamKey::published(1, "s").unwrap()
    }

    /// Plays `script` into a ring of three one-byte frames; says what the newest reader saw, frames by their number.
    ///
    /// V and A set tracks with and without pictures; K keyframe, p other picture, a sound; R a reader joins,
    /// `.` it takes what is ready; P the publisher leaves and another comes; E the stream ends.
    async fn check(script: &str, want: &str) {
        let hub = hub(3);
        let mut publisher = hub.publish(&key(), info(), Instant::now());
        let stream = hub.get(&key()).unwrap();
        let mut readers: Vec<Reader> = Vec::new();
        let mut got = String::new();
        let mut n = 0;
        for step in script.chars().chain(['E', '.']) {
            match step {
                'V' => publisher.as_mut().unwrap().set_tracks(tracks("va")),
                'A' => publisher.as_mut().unwrap().set_tracks(tracks("a")),
                'K' | 'p' | 'a' => {
                    let track = if step == 'a' { Kind::Audio } else { Kind::Video };
                    publisher.as_mut().unwrap().push(Frame {
                        track,
                        dts: Time::from_millis(n),
                        cts: Time::ZERO,
                        key: step != 'p',
                        payload: Bytes::from_static(b"x"),
                    });
                    n += 1;
                }
                'R' => readers.push(stream.read(LAG)),
                'P' => {
                    publisher = None;
                    publisher = hub.publish(&key(), info(), Instant::now()).or(publisher);
                }
                'E' => hub.end(&key()),
                '.' => {
                    let mut batch = Vec::new();
                    if let Some(reader) = readers.last_mut() {
                        reader.drain(&mut batch);
                    }
                    for event in batch {
                        got += &match event {
                            Event::Tracks(tracks) if tracks.video.is_some() => "v".to_owned(),
                            Event::Tracks(_) => "a".to_owned(),
                            Event::Frame(frame) => frame.dts.as_millis().to_string(),
                            Event::Lagged { frames } => format!("[-{frames}]"),
                        };
                    }
                }
                _ => unreachable!("{step}"),
            }
        }
        assert_eq!(got, want, "{script}");
    }

    #[tokio::test]
    async fn a_reader_starts_at_the_newest_keyframe() {
        check("VKpKpR", "v23").await;
    }

    #[tokio::test]
    async fn a_reader_before_the_first_keyframe_waits_for_it_with_its_pictures_and_not_with_the_sound() {
        check("VRappKp", "v034").await;
        check("VRa.apKp", "v0134").await;
    }

    #[tokio::test]
    async fn a_slow_reader_skips_to_a_keyframe_and_is_told() {
        check("VKpR.pKpp", "v01[-1]345").await;
    }

    #[tokio::test]
    async fn a_stream_without_a_second_keyframe_is_bounded_and_its_lagging_reader_waits_for_one() {
        check("VKR.pppp.ppKp", "v0[-4][-2]78").await;
    }

    #[tokio::test]
    async fn sound_alone_starts_anywhere() {
        check("AaaaRa", "a23").await;
        // What the first reader has yet to take is there for the second.
        check("AaR.aaRa", "a0a123").await;
    }

    #[tokio::test]
    async fn pictures_that_begin_later_are_announced_in_their_place() {
        check("AaR.aVaKp", "a0[-2]v34").await;
        check("AaR.a.Va.K.p", "a01v234").await;
    }

    #[tokio::test]
    async fn a_publisher_that_comes_back_goes_on_in_the_same_stream() {
        check("VKR.pPpKp.", "v0134").await;
    }

    #[tokio::test]
    async fn a_second_publisher_is_refused_while_the_first_is_there() {
        let hub = hub(3);
        let first = hub.publish(&key(), info(), Instant::now());
        assert!(hub.publish(&key(), info(), Instant::now()).is_none());
        drop(first);
        assert!(hub.publish(&key(), info(), Instant::now()).is_some());
    }

    #[tokio::test]
    async fn what_all_have_read_is_let_go_at_the_next_keyframe() {
        let hub = hub(1000);
        let mut publisher = hub.publish(&key(), info(), Instant::now()).unwrap();
        publisher.set_tracks(tracks("v"));
        let mut reader = hub.get(&key()).unwrap().read(LAG);
        for n in 0..100 {
            let payload = Bytes::from_static(b"x");
            let dts = Time::from_millis(n);
            publisher.push(Frame { track: Kind::Video, dts, cts: Time::ZERO, key: n % 10 == 0, payload });
            let mut batch = Vec::new();
            reader.ready(&mut batch).await;
            assert!(reader.shared.ring().frames.len() <= 11, "one group, and the keyframe that ends it");
        }
    }

    #[tokio::test]
    async fn a_reader_that_is_late_by_its_limit_skips() {
        let hub = hub(1000);
        let mut publisher = hub.publish(&key(), info(), Instant::now()).unwrap();
        publisher.set_tracks(tracks("v"));
        let mut reader = hub.get(&key()).unwrap().read(Time::from_millis(50));
        for n in 0..100 {
            let payload = Bytes::from_static(b"x");
            let dts = Time::from_millis(n);
            publisher.push(Frame { track: Kind::Video, dts, cts: Time::ZERO, key: n % 10 == 0, payload });
        }
        let mut batch = Vec::new();
        reader.drain(&mut batch);
        assert!(matches!(batch[0], Event::Lagged { frames: 90 }), "{:?}", batch[0]);
        assert_eq!(batch.len(), 12);
    }

    /// Publishes sound (`a`), keyframes (`K`) and other pictures (`p`), each at its time and shown so much later, into a stream of both; a
    /// reader that comes at `join`, before the frame of that number, is given those at `want`.
    fn check_times(frames: &[(char, i64, i64)], join: usize, want: &[i64]) {
        let hub = hub(1000);
        let mut publisher = hub.publish(&key(), info(), Instant::now()).unwrap();
        publisher.set_tracks(tracks("va"));
        let mut reader = None;
        for (number, (what, dts, cts)) in frames.iter().enumerate() {
            if number == join {
                reader = Some(hub.get(&key()).unwrap().read(LAG));
            }
            let track = if *what == 'a' { Kind::Audio } else { Kind::Video };
            let [dts, cts] = [*dts, *cts].map(Time::from_millis);
            publisher.push(Frame { track, dts, cts, key: *what != 'p', payload: Bytes::from_static(b"x") });
        }
        let mut batch = Vec::new();
        reader.unwrap_or_else(|| hub.get(&key()).unwrap().read(LAG)).drain(&mut batch);
        let times: Vec<_> = batch
            .iter()
            .filter_map(|it| if let Event::Frame(it) = it { Some(it.dts.as_millis()) } else { None })
            .collect();
        assert_eq!(times, want, "{frames:?}");
    }

    #[tokio::test]
    async fn pictures_that_are_shown_before_the_keyframe_that_a_reader_begins_with_are_not_given_to_it() {
        // An open group: its keyframe is decoded before two pictures that need the group before.
        let open = [('K', 0, 80), ('p', 40, 80), ('K', 80, 120), ('p', 120, 0), ('p', 160, 0), ('p', 200, 80)];
        check_times(&open, 0, &[0, 40, 80, 120, 160, 200]);
        check_times(&open, 6, &[80, 200]);
    }

    #[tokio::test]
    async fn where_no_pictures_come_a_reader_begins_with_sound_and_its_pictures_with_a_keyframe() {
        let pause = [
            ('K', 0, 0),
            ('p', 40, 0),
            ('a', 10_000, 0),
            ('a', 10_041, 0),
            ('a', 10_060, 0),
            ('p', 10_080, 0),
            ('K', 10_120, 0),
        ];
        check_times(&pause[..3], 3, &[0, 40, 10_000]);
        check_times(&pause, 4, &[10_041, 10_060, 10_120]);
    }

    #[tokio::test]
    async fn tracks_that_change_with_each_frame_are_bounded() {
        let hub = Hub::new(Arc::default(), 10_000);
        let mut publisher = hub.publish(&key(), info(), Instant::now()).unwrap();
        for n in 0..100 {
            let mut large = Tracks::default();
            let format = Format::Video { width: n, height: 16 };
            large.set(Track { codec: Codec::H264, config: vec![n as u8; 1000].into(), format });
            publisher.set_tracks(large);
            let dts = Time::from_millis(n.into());
            publisher.push(Frame {
                track: Kind::Audio,
                dts,
                cts: Time::ZERO,
                key: true,
                payload: Bytes::from_static(b"x"),
            });
        }
        let stream = hub.get(&key()).unwrap();
        let ring = stream.shared.ring();
        assert!(ring.bytes <= 10_000 && ring.tracks.len() <= 10, "{} of {}", ring.bytes, ring.tracks.len());
    }

    #[tokio::test]
    async fn sound_that_belongs_before_a_readers_first_picture_is_not_given_to_it() {
        let hub = hub(1000);
        let mut publisher = hub.publish(&key(), info(), Instant::now()).unwrap();
        publisher.set_tracks(tracks("va"));
        let mut reader = hub.get(&key()).unwrap().read(LAG);
        for (track, ms) in [(Kind::Video, 100), (Kind::Audio, 60), (Kind::Audio, 99), (Kind::Audio, 120)] {
            let payload = Bytes::from_static(b"x");
            publisher.push(Frame { track, dts: Time::from_millis(ms), cts: Time::ZERO, key: true, payload });
        }
        let mut batch = Vec::new();
        reader.drain(&mut batch);
        let times: Vec<_> =
            batch.iter().filter_map(|it| if let Event::Frame(it) = it { Some(it.dts) } else { None }).collect();
        assert_eq!(times, [100, 120].map(Time::from_millis));
    }

    #[tokio::test]
    async fn sound_rides_with_the_picture_and_never_waits_longer_than_its_hold() {
        let hub = hub(1000);
        let mut publisher = hub.publish(&key(), info(), Instant::now()).unwrap();
        publisher.set_tracks(tracks("va"));
        let stream = hub.get(&key()).unwrap();
        let mut push = |kind, ms| {
            let dts = Time::from_millis(ms);
            publisher.push(Frame { track: kind, dts, cts: Time::ZERO, key: true, payload: Bytes::from_static(b"x") });
        };
        let mut reader = stream.read(LAG);
        let waker = Arc::new(Woken::default());
        let is_ready = |reader: &mut Reader| {
            let (mut batch, waker) = (Vec::new(), waker.clone().into());
            pin!(reader.ready(&mut batch)).poll(&mut Context::from_waker(&waker)).is_ready()
        };
        for (kind, ms, wakes) in [
            (Kind::Video, 0, true),
            (Kind::Audio, 10, false),
            (Kind::Audio, 30, false),
            (Kind::Video, 33, true),
            (Kind::Audio, 40, false),
            (Kind::Audio, 89, false),
            (Kind::Audio, 90, true),
        ] {
            while is_ready(&mut reader) {}
            push(kind, ms);
            assert_eq!(waker.0.swap(false, Ordering::Relaxed), wakes, "{kind:?} at {ms} ms");
        }
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
