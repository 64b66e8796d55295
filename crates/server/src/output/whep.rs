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
use str0m::{Event, IceConnectionState, RtcError};
use tracing::info;

use crate::hub::{self, Stream};
use crate::lane::Lane;
use crate::output::source::Source;
use crate::rendition::{Renditions, Sound};
use crate::webrtc::{Peer, Turn};

/// How long a session may take from its answer to its media connection.
const ESTABLISH: Duration = Duration::from_secs(15);

/// How far a player may fall behind before it skips to a keyframe.
const MAX_LAG: Time = Time::from_millis(2_000);

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
    waiting: VecDeque<Frame>,
    /// When the last picture that went out is shown.
    shown: Option<Time>,
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
        let mut source = None;
        let mut beats = lane.beats();
        let since = Instant::now();
        let mut batch = Vec::new();
        loop {
            while let Some(event) = peer.poll()? {
                match event {
                    Event::Connected => source = Some(begin()?),
                    Event::IceConnectionStateChange(IceConnectionState::Disconnected) if source.is_some() => {
                        return Ok(());
                    }
                    Event::Closed => return Ok(()),
                    Event::MediaAdded(added) if added.direction.is_sending() => {
                        peer.repair(added.mid);
                        match added.kind {
                            MediaKind::Video => self.video = self.video.or(Some(added.mid)),
                            MediaKind::Audio => self.audio = self.audio.or(Some(added.mid)),
                        }
                    }
                    Event::KeyframeRequest(_) => source.iter().for_each(Source::want_keyframe),
                    _ => {}
                }
            }
            if let Some(frame) = self.waiting.pop_front() {
                self.send(peer, &frame, Instant::now())?;
                continue;
            }
            if peer.feed()? {
                continue;
            }
            tokio::select! {
                turn = peer.turn() => if let Turn::End(_) = turn? { return Ok(()) },
                more = ready(&mut source, &mut batch) => {
                    for event in batch.drain(..) {
                        match event {
                            hub::Event::Tracks(tracks) => self.tracks = tracks,
                            // A change of tracks is told by the parameter sets of the keyframe that follows it.
                            hub::Event::Frame(frame) => {
                                let packed = self.packed(frame);
                                self.waiting.extend(packed);
                            }
                            hub::Event::Lagged { .. } => {}
                        }
                    }
                    if !more? {
                        return Ok(());
                    }
                }
                () = &mut beats => {
                    if source.is_none() && since.elapsed() > ESTABLISH {
                        info!("no media connection in time");
                        return Ok(());
                    }
                }
            }
        }
    }

    /// A frame as RTP carries it: pictures as Annex B, with the parameter sets before each keyframe. `None` for other codecs and for
    /// pictures that step back.
    fn packed(&mut self, frame: Frame) -> Option<Frame> {
        let track = self.tracks.get(frame.track)?;
        match track.codec {
            Codec::Opus => Some(frame),
            Codec::H264 => {
                let next = self.shown.map_or(Time::ZERO, |last| last + Time::from_millis(1));
                let shown = match frame.dts + frame.cts {
                    early if early < next && !frame.key => return None,
                    // What follows needs it. Another encoder may reorder less than the last one.
                    shown => shown.max(next),
                };
                self.shown = Some(shown);
                let sets = nal::Sets::parse(Codec::H264, &track.config).filter(|_| frame.key);
                let sets = sets.iter().flat_map(|sets| sets.iter());
                let mut payload = Vec::with_capacity(frame.payload.len() + 128);
                for unit in sets.chain(nal::nals(&frame.payload, 4)) {
                    payload.extend_from_slice(&[0, 0, 0, 1]);
                    payload.extend_from_slice(unit);
                }
                Some(Frame { cts: shown - frame.dts, payload: payload.into(), ..frame })
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
        let shown = frame.dts + frame.cts;
        let made = self.made(shown, now);
        let ticks = shown.as_ticks(clock.get()).max(0) as u64;
        peer.write(mid, pt, made, MediaTime::new(ticks, clock), Arc::from(&frame.payload[..]))
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

    /// Packs pictures written `<decoded>+<later shown>`, `K` before keyframes; compares when those that go out are shown.
    fn check(script: &str, want: &[i64]) {
        let mut tracks = Tracks::default();
        let format = Format::Video { width: 16, height: 16 };
        tracks.set(Track { codec: Codec::H264, config: Bytes::new(), format });
        let mut output = Output { tracks: Arc::new(tracks), ..Output::default() };
        let picture = |step: &str| {
            let (dts, cts) = step.trim_start_matches('K').split_once('+').expect("two times");
            let [dts, cts] = [dts, cts].map(|ms| Time::from_millis(ms.parse().expect("milliseconds")));
            let payload = Bytes::from_static(&[0, 0, 0, 1, 0x41]);
            Frame { track: Kind::Video, dts, cts, key: step.starts_with('K'), payload }
        };
        let sent = script.split(' ').filter_map(|step| output.packed(picture(step)));
        let shown: Vec<_> = sent.map(|frame| (frame.dts + frame.cts).as_millis()).collect();
        assert_eq!(shown, want, "{script}");
    }

    #[test]
    fn pictures_go_out_in_the_order_they_are_shown_in_and_those_that_step_back_do_not() {
        check("K0+0 40+0 80+0 K120+0 160+0", &[0, 40, 80, 120, 160]);
        check("K0+80 40+160 80+40 120+0 160+160 200+40 240+0 K280+80", &[80, 200, 320, 360]);
        // An open group of pictures: what is shown before its first picture comes behind that.
        check("K0+80 K40+160 80+40 120+0 160+80", &[80, 200, 240]);
        // Another encoder that does not reorder.
        check("K0+80 40+160 K80+0 120+0 160+0 200+0 240+0", &[80, 200, 201, 240]);
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
