//! WHEP out: a WebRTC session plays a live stream, H.264 pictures and Opus sound.
//!
//! Any stream of H.264 pictures will do; one with other sound is played as its Opus twin. Of pictures that are shown in another
//! order than they are decoded in, those that would step back (B-frames) are left out: browsers show pictures as they come, and
//! give up at one that steps back until the next keyframe.
//!
//! Invariant: a player that takes nothing slows nobody; what it cannot take in time is lost to it alone. The times of its pictures rise.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bywash_media::codec::nal;
use bywash_media::{Codec, Frame, Kind, Time, Tracks, transcode};
use str0m::format::Codec as RtpCodec;
use str0m::media::{Frequency, MediaKind, MediaTime, Mid, Pt};
use str0m::{Event, RtcError};
use tracing::info;

use crate::clock::until;
use crate::hub::{self, Stream};
use crate::lane::Lane;
use crate::output::source::Source;
use crate::rendition::{Renditions, Sound};
use crate::webrtc::{Peer, Turn};

/// How long a session may take from its answer to its media connection.
const ESTABLISH: Duration = Duration::from_secs(15);

/// How long after its media connection a player is sent the first packet. Who has ended the handshake here has still to hear of that, and
/// what comes before is lost to most: with the parameter sets, all until the next keyframe.
const SETTLING: Duration = Duration::from_millis(50);

/// How far a player may fall behind before it skips to a keyframe.
const MAX_LAG: Time = Time::from_millis(2_000);

/// How much sound from before a player came it is sent: it plays all of it before what is live, and has to hurry then.
const SOUND_BACK: Time = Time::from_millis(100);

/// A keyframe that went out so lately may still be on its way to a player that asks for one.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// A publisher that makes keyframes on demand takes so long at the most: it is asked twice a second. After that the newest goes out again.
const MADE: Duration = Duration::from_millis(700);

/// How much faster than they were made pictures from before a player came go out, and how long that may take.
const CATCH_UP_SPEED: u32 = 2;
const CATCH_UP_MAX: Duration = Duration::from_secs(10);

/// Carries a session from its answer to its end.
pub async fn run(mut peer: Peer, stream: Stream, sound: Sound, renditions: Arc<Renditions>, lane: Lane) {
    info!("player joins");
    let begin = || Source::begin(&stream, sound, MAX_LAG, &renditions, &lane);
    if let Err(error) = Output::default().follow(&mut peer, begin, &lane).await {
        info!(%error, "session ended");
    }
    peer.close();
    info!("player leaves");
}

#[derive(Default)]
struct Output {
    tracks: Arc<Tracks>,
    /// The section of each kind: the first that asks for it.
    video: Option<Mid>,
    audio: Option<Mid>,
    /// What goes out now.
    waiting: VecDeque<Frame>,
    late: Late,
    wish: Wish,
    /// When the last picture that went out was to be shown, and when the player is told to show it.
    shown: Option<(Time, Time)>,
    /// Where on this host's clock the line of the stream begins, as far as is known: no frame was sent before its time.
    epoch: Option<Instant>,
}

impl Output {
    async fn follow(
        &mut self,
        peer: &mut Peer,
        begin: impl Fn() -> Result<Source, transcode::Error>,
        lane: &Lane,
    ) -> Result<(), Ended> {
        // Once the player is connected.
        let (mut source, mut begins) = (None, None);
        let mut beats = lane.beats();
        let since = Instant::now();
        let mut batch = Vec::new();
        loop {
            while let Some(event) = peer.poll()? {
                match event {
                    Event::Connected => begins = Some(Instant::now() + SETTLING),
                    Event::Closed => return Ok(()),
                    Event::MediaAdded(added) if added.direction.is_sending() => {
                        peer.play(added.mid, added.kind);
                        match added.kind {
                            MediaKind::Video => self.video = self.video.or(Some(added.mid)),
                            MediaKind::Audio => self.audio = self.audio.or(Some(added.mid)),
                        }
                    }
                    Event::KeyframeRequest(_) => {
                        source.iter().for_each(Source::want_keyframe);
                        self.wish.ask(Instant::now());
                    }
                    _ => {}
                }
            }
            if let Some((tracks, frame, late)) = self.late.next(Instant::now()) {
                let packed = self.packed(&tracks, frame, late);
                self.waiting.extend(packed);
            }
            if let Some(frame) = self.waiting.pop_front() {
                self.send(peer, &frame, Instant::now())?;
                continue;
            }
            if peer.feed()? {
                continue;
            }
            let late = self.late.due();
            let unanswered = self.wish.due().filter(|_| source.is_some() && late.is_none());
            tokio::select! {
                turn = peer.turn() => if let Turn::End(_) = turn? { return Ok(()) },
                more = ready(&mut source, &mut batch) => {
                    for event in batch.drain(..) {
                        match event {
                            hub::Event::Tracks(tracks) => self.tracks = tracks,
                            // A change of tracks is told by the parameter sets of the keyframe that follows it.
                            hub::Event::Frame(frame) => {
                                let tracks = self.tracks.clone();
                                let frame = self.late.pass(&tracks, frame, Instant::now());
                                let packed = frame.and_then(|frame| self.packed(&tracks, frame, Time::ZERO));
                                self.waiting.extend(packed);
                            }
                            hub::Event::Lagged { .. } => self.late = source.as_ref().map(Late::until).unwrap_or_default(),
                        }
                    }
                    if !more? {
                        return Ok(());
                    }
                }
                () = until(late) => {}
                () = until(unanswered) => {
                    let begun = begin()?;
                    self.late = Late { heard: self.late.heard, ..Late::until(&begun) };
                    self.wish = Wish::default();
                    source = Some(begun);
                }
                () = until(begins) => {
                    begins = None;
                    let begun = begin()?;
                    self.late = Late::until(&begun);
                    source = Some(begun);
                }
                () = &mut beats => {
                    if source.is_none() && since.elapsed() > ESTABLISH {
                        info!("no media connection in time");
                        return Ok(());
                    }
                    if source.is_some() && peer.is_lost(Instant::now()) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// A frame as RTP carries it: pictures as Annex B, with the parameter sets before each keyframe, and to be shown so much `late`. `None`
    /// for other codecs and for pictures that step back.
    fn packed(&mut self, tracks: &Tracks, frame: Frame, late: Time) -> Option<Frame> {
        let track = tracks.get(frame.track)?;
        match track.codec {
            Codec::Opus => Some(frame),
            Codec::H264 => {
                let shown = frame.dts + frame.cts;
                let told = match self.shown {
                    // What follows a keyframe needs it, and belongs behind it wherever that is.
                    Some((last, _)) if shown <= last && !frame.key => return None,
                    Some((_, last)) => (shown + late).max(last + Time::from_millis(1)),
                    None => shown + late,
                };
                self.shown = Some((shown, told));
                let sets = nal::Sets::parse(Codec::H264, &track.config).filter(|_| frame.key);
                let sets = sets.iter().flat_map(|sets| sets.iter());
                let mut payload = Vec::with_capacity(frame.payload.len() + 128);
                for unit in sets.chain(nal::nals(&frame.payload, 4)) {
                    payload.extend_from_slice(&[0, 0, 0, 1]);
                    payload.extend_from_slice(unit);
                }
                Some(Frame { cts: told - frame.dts, payload: payload.into(), ..frame })
            }
            _ => None,
        }
    }

    /// When on this host's clock a frame was made, for the sender reports: at the latest now, and on the same line as all others. A
    /// player keeps sound and pictures together by them.
    fn made(&mut self, shown: Time, now: Instant) -> Instant {
        let line = Duration::from_nanos(shown.as_nanos().max(0) as u64);
        let begun = now.checked_sub(line).unwrap_or(now);
        let epoch = self.epoch.map_or(begun, |epoch| epoch.min(begun));
        self.epoch = Some(epoch);
        epoch + line
    }

    fn send(&mut self, peer: &mut Peer, frame: &Frame, now: Instant) -> Result<(), RtcError> {
        let (mid, codec, clock) = match frame.track {
            Kind::Video => (self.video, RtpCodec::H264, Frequency::NINETY_KHZ),
            Kind::Audio => (self.audio, RtpCodec::Opus, Frequency::FORTY_EIGHT_KHZ),
        };
        let Some(mid) = mid else { return Ok(()) };
        let Some(pt) = payload_type(peer, mid, codec) else { return Ok(()) };
        if frame.track == Kind::Video && !peer.takes(frame.key, frame.payload.len()) {
            // It waits for a new keyframe; the last one again, and what followed, would be left out as well, and step back.
            self.wish.asked = None;
            return Ok(());
        }
        if frame.track == Kind::Video && frame.key {
            if self.wish.sent.is_none() {
                peer.lead(leading(&frame.payload));
            }
            self.wish = Wish { asked: None, sent: Some(now) };
        }
        let shown = frame.dts + frame.cts;
        let made = self.made(shown, now);
        let ticks = shown.as_ticks(clock.get()).max(0) as u64;
        peer.write(mid, pt, made, MediaTime::new(ticks, clock), Arc::from(&frame.payload[..]))
    }
}

/// How many packets of a keyframe, as Annex B, come before those of its slices: one of its parameter sets, and SEI. A browser throws away
/// slices that come before the parameter sets, and takes a picture for whole without what comes late of these.
fn leading(keyframe: &[u8]) -> usize {
    let units = nal::from_annex_b(keyframe);
    let kinds = nal::nals(&units, 4).filter_map(|unit| unit.first().map(|head| head & 0x1f));
    let before = kinds.take_while(|kind| !(1..=5).contains(kind));
    // An access unit delimiter (9) is not sent.
    1 + before.filter(|kind| !(7..=9).contains(kind)).count()
}

/// A player's wish for a keyframe, which it has when it lost a picture beyond repair.
#[derive(Default)]
struct Wish {
    asked: Option<Instant>,
    /// When the last keyframe went out since the player began, or began again.
    sent: Option<Instant>,
}

impl Wish {
    fn ask(&mut self, now: Instant) {
        if self.sent.is_none_or(|sent| now.saturating_duration_since(sent) >= ON_ITS_WAY) {
            self.asked.get_or_insert(now);
        }
    }

    /// When no publisher makes a keyframe for it any more, as those by RTMP never do.
    fn due(&self) -> Option<Instant> {
        self.asked.map(|asked| asked + MADE)
    }
}

/// Pictures that a player is sent late: it begins with a keyframe, and what has followed that lies behind what is live. All at once they
/// would be more than many a line takes, so they go out one by one, only faster than they were made; sound does not wait for them.
///
/// Each is to be shown when it goes out. By the times at which they were made the next keyframe, which comes before all that is live has
/// been caught up with, would lie seconds behind them, and browsers stand still for seconds before they show it.
#[derive(Default)]
struct Late {
    /// The newest picture as the player came.
    live: Option<Time>,
    /// Sound up to this does not go out: it is old, or already has.
    heard: Option<Time>,
    /// The first picture that waited, and since when.
    first: Option<(Time, Instant)>,
    pictures: VecDeque<(Arc<Tracks>, Frame)>,
}

impl Late {
    /// For who begins to read `source` now.
    fn until(source: &Source) -> Late {
        let heard = source.newest(Kind::Audio).map(|live| live - SOUND_BACK);
        Late { live: source.newest(Kind::Video), heard, ..Late::default() }
    }

    /// Gives back what goes out at once, and keeps what has to wait. Old sound is neither.
    fn pass(&mut self, tracks: &Arc<Tracks>, frame: Frame, now: Instant) -> Option<Frame> {
        if frame.track == Kind::Audio {
            let new = self.heard.is_none_or(|heard| frame.dts > heard);
            self.heard = self.heard.max(Some(frame.dts));
            return new.then_some(frame);
        }
        // Who has this needs nothing from before.
        if frame.key {
            self.pictures.clear();
        }
        if self.pictures.is_empty() && self.live.is_none_or(|live| frame.dts >= live) {
            return Some(frame);
        }
        self.first.get_or_insert((frame.dts, now));
        self.pictures.push_back((tracks.clone(), frame));
        None
    }

    /// When the next picture is to go.
    fn due(&self) -> Option<Instant> {
        let ((_, next), (first, since)) = (self.pictures.front()?, self.first?);
        let span = |to: Time| Duration::from_nanos((to - first).as_nanos().max(0) as u64);
        let behind = self.live.map_or(Duration::ZERO, span);
        // What is made in the meantime has to go in it as well.
        let takes = (behind / (CATCH_UP_SPEED - 1)).min(CATCH_UP_MAX);
        let share = takes.as_secs_f64() / (behind + takes).as_secs_f64().max(f64::EPSILON);
        Some(since + span(next.dts).mul_f64(share))
    }

    /// The next picture, if it is time, and how late that is: what is made when it goes out lies so far behind it.
    fn next(&mut self, now: Instant) -> Option<(Arc<Tracks>, Frame, Time)> {
        let due = self.due().filter(|due| *due <= now)?;
        let ((tracks, frame), (_, since)) = (self.pictures.pop_front()?, self.first?);
        let live = self.live.unwrap_or(frame.dts) + Time::from_nanos((due - since).as_nanos() as i64);
        let late = (live - frame.dts).max(Time::ZERO);
        Some((tracks, frame, late))
    }
}

/// What the client calls the codec.
fn payload_type(peer: &mut Peer, mid: Mid, codec: RtpCodec) -> Option<Pt> {
    let writer = peer.rtc().writer(mid)?;
    writer.payload_params().find(|params| params.spec().codec == codec).map(|params| params.pt())
}

async fn ready(source: &mut Option<Source>, batch: &mut Vec<hub::Event>) -> Result<bool, transcode::Error> {
    match source {
        Some(source) => source.ready(batch).await,
        None => std::future::pending().await,
    }
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Session(#[from] RtcError),
    #[error(transparent)]
    Sound(#[from] transcode::Error),
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use bywash_media::{Format, Track};

    use super::*;

    fn tracks() -> Arc<Tracks> {
        let mut tracks = Tracks::default();
        let format = Format::Video { width: 16, height: 16 };
        tracks.set(Track { codec: Codec::H264, config: Bytes::new(), format });
        Arc::new(tracks)
    }

    fn frame(track: Kind, ms: i64, key: bool) -> Frame {
        let payload = Bytes::from_static(&[0, 0, 0, 1, 0x41]);
        Frame { track, dts: Time::from_millis(ms), cts: Time::ZERO, key, payload }
    }

    /// Packs pictures written `<decoded>+<later shown>`, `K` before keyframes; compares when those that go out are shown.
    fn check(script: &str, want: &[i64]) {
        let (tracks, mut output) = (tracks(), Output::default());
        let picture = |step: &str| {
            let (dts, cts) = step.trim_start_matches('K').split_once('+').expect("two times");
            let [dts, cts] = [dts, cts].map(|ms| ms.parse().expect("milliseconds"));
            Frame { cts: Time::from_millis(cts), ..frame(Kind::Video, dts, step.starts_with('K')) }
        };
        let sent = script.split(' ').filter_map(|step| output.packed(&tracks, picture(step), Time::ZERO));
        let shown: Vec<_> = sent.map(|frame| (frame.dts + frame.cts).as_millis()).collect();
        assert_eq!(shown, want, "{script}");
    }

    #[test]
    fn pictures_go_out_in_the_order_they_are_shown_in_and_those_that_step_back_do_not() {
        check("K0+0 40+0 80+0 K120+0 160+0", &[0, 40, 80, 120, 160]);
        check("K0+80 40+160 80+40 120+0 160+160 200+40 240+0 K280+80", &[80, 200, 320, 360]);
        // An open group of pictures: what is shown before its first picture comes behind that.
        check("K0+80 K40+160 80+40 120+0 160+80", &[80, 200, 240]);
        // Another encoder that does not reorder: nothing that follows its keyframe steps back.
        check("K0+80 40+160 K80+0 120+0 160+0 200+0 240+0", &[80, 200, 201, 202, 203, 204, 240]);
    }

    /// A player comes as a stream with a picture and a packet each 20 ms, and a keyframe each `interval` ms, is `age` ms behind its first
    /// keyframe. Its pictures come late until `live` ms on, no more than `pace` of them within 100 ms; its sound never does.
    fn check_late(age: i64, interval: i64, live: i64, pace: usize) {
        let (tracks, begin, newest) = (tracks(), Instant::now(), Some(Time::from_millis(age)));
        let heard = newest.map(|newest| newest - SOUND_BACK);
        let mut late = Late { live: newest, heard, ..Late::default() };
        let made = |ms| [frame(Kind::Video, ms, ms % interval == 0), frame(Kind::Audio, ms, true)];
        let mut stream = (0..).step_by(20).flat_map(made).peekable();
        let (mut sent, mut next) = (Vec::new(), 0);
        for at in 0..2 * interval {
            let now = begin + Duration::from_millis(at as u64);
            let come = std::iter::from_fn(|| stream.next_if(|frame| frame.dts.as_millis() <= age + at));
            let pass = |frame| late.pass(&tracks, frame, now).map(|frame| (frame, Time::ZERO));
            let mut out: Vec<_> = come.filter_map(pass).collect();
            out.extend(std::iter::from_fn(|| late.next(now)).map(|(_, frame, late)| (frame, late)));
            for (frame, shift) in out {
                let ms = frame.dts.as_millis();
                let behind = age + at - ms;
                if frame.track == Kind::Audio {
                    assert!(behind <= SOUND_BACK.as_millis(), "sound of {ms} goes out {at} ms on");
                    continue;
                }
                assert!(ms == next || frame.key, "{ms} for {next}");
                let told = ms + shift.as_millis();
                assert!((age + at - 20..=age + at).contains(&told), "{ms} goes out {at} ms on, to be shown at {told}");
                next = ms + 20;
                if behind >= 20 {
                    sent.push(at);
                } else {
                    assert_eq!(late.due(), None, "a timer for who has caught up");
                }
            }
        }
        let within = |from: i64| sent.iter().filter(|at| (from..from + 100).contains(*at)).count();
        let most = sent.iter().map(|at| within(*at)).max();
        assert_eq!((sent.last(), most), (Some(&live), Some(pace)), "{age} of {interval}");
    }

    #[test]
    fn who_comes_late_hears_what_is_live_and_sees_soon_what_was_before_but_not_all_at_once() {
        check_late(400, 2_000, 380, 10);
        // The next keyframe needs nothing from before.
        check_late(1_500, 2_000, 490, 10);
        check_late(30_000, 60_000, 9_990, 20);
    }

    #[test]
    fn who_begins_again_at_a_keyframe_hears_each_packet_once_and_none_too_few() {
        let (tracks, now) = (tracks(), Instant::now());
        let heard = Some(Time::from_millis(960));
        let mut late = Late { live: Some(Time::from_millis(1_000)), heard, ..Late::default() };
        let mut pass = |ms| late.pass(&tracks, frame(Kind::Audio, ms, true), now).map(|frame| frame.dts.as_millis());
        let passed: Vec<_> = [900, 920, 940, 960, 980, 1_000].into_iter().filter_map(&mut pass).collect();
        assert_eq!(passed, [980, 1_000]);
    }

    #[test]
    fn what_is_before_the_slices_leads() {
        let unit = |kind: u8| [0, 0, 0, 1, kind, 1, 2];
        let keyframe = |kinds: &[u8]| kinds.iter().copied().flat_map(unit).collect::<Vec<_>>();
        assert_eq!(leading(&keyframe(&[0x67, 0x68, 0x65, 0x65])), 1);
        assert_eq!(leading(&keyframe(&[9, 0x67, 0x68, 6, 6, 0x65, 6])), 3);
    }

    /// A player is sent keyframes and asks for one at these milliseconds. Tells when the newest goes out again, if it does.
    fn check_wish(sent: &[u64], asked: &[u64], want: Option<u64>) {
        let (begin, mut wish) = (Instant::now(), Wish::default());
        let again = (0..5_000).find(|ms| {
            let now = begin + Duration::from_millis(*ms);
            if sent.contains(ms) {
                wish = Wish { asked: None, sent: Some(now) };
            }
            if asked.contains(ms) {
                wish.ask(now);
            }
            wish.due().is_some_and(|due| due <= now)
        });
        assert_eq!(again, want, "{sent:?} {asked:?}");
    }

    #[test]
    fn the_newest_keyframe_goes_out_again_where_the_publisher_makes_none() {
        check_wish(&[0], &[2_000, 2_500], Some(2_700));
        check_wish(&[], &[100], Some(800));
        // The publisher makes one.
        check_wish(&[0, 2_600], &[2_000, 2_500], None);
        // That which has just gone out is asked for, and then not any more, or still.
        check_wish(&[0], &[10, 250, 499], None);
        check_wish(&[0], &[250, 500], Some(1_200));
    }

    #[test]
    fn frames_are_told_to_be_made_on_one_line_and_never_later_than_they_go_out() {
        let (begin, mut output) = (Instant::now() + Duration::from_secs(100), Output::default());
        let mut lines = Vec::new();
        // Old pictures beside sound that is live, a packet that comes sooner after it was made than all before it, and others.
        for (at, ms) in [(0, 0), (5, 3_000), (20, 60), (1_000, 3_000), (1_000, 4_000), (1_500, 4_040), (1_510, 4_510)] {
            let now = begin + Duration::from_millis(at);
            let made = output.made(Time::from_millis(ms), now);
            assert!(made <= now, "{at} {ms}");
            lines.push(made - Duration::from_millis(ms as u64));
        }
        assert!(lines[1..].iter().all(|line| lines[1].duration_since(*line) <= Duration::from_millis(5)), "{lines:?}");
    }
}
