//! WHIP in: a WebRTC session publishes a stream.
//!
//! The engine gives whole access units; here they become frames. Decoding order is sending order.
//!
//! Invariant: no picture goes out that needs one which was lost. After a loss pictures wait for the next keyframe, which is
//! asked for; sound goes on.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use bywash_media::codec::{self, nal, opus};
use bywash_media::sync::Sync;
use bywash_media::{Codec, Format, Frame, Kind, Time, Track, Tracks};
use str0m::media::{MediaAdded, MediaData, MediaKind, Mid, Rid, SenderFeedback};
use str0m::{Event, RtcError};
use tracing::{debug, info, warn};

use crate::clock::until;
use crate::lane::Lane;
use crate::plan::{Hold, Leave};
use crate::webrtc::gather::BEAT_MAX;
use crate::webrtc::offer::Offer;
use crate::webrtc::{Peer, Turn};

/// How long a session may take from its answer to its first media connection.
const ESTABLISH: Duration = Duration::from_secs(15);

/// How long a session that the client has ended goes on: what it sent before may lie in the kernel for a beat.
const LEAVING: Duration = BEAT_MAX.saturating_add(Duration::from_millis(20));

/// How long stream_create waits for the codec of the pictures.
const UNKNOWN_CODEC: Duration = Duration::from_secs(2);

/// The least time between two requests for a keyframe.
const REQUEST: Duration = Duration::from_millis(500);

/// A simulcast layer of which nothing has come for so long has ended.
const SILENT: Duration = Duration::from_millis(1_500);

/// Simulcast layers that are looked at.
const LAYERS_MAX: usize = 6;

/// Carries a session from its answer to its end.
pub async fn run(mut peer: Peer, hold: Hold, lane: Lane, keyframe_interval: Duration) {
    let mut ingest = Ingest::new(hold, keyframe_interval, peer.offer());
    let how = match ingest.take_in(&mut peer, &lane).await {
        Ok(how) => how,
        Err(error) => {
            info!(%error, "session ended");
            Leave::Lost
        }
    };
    let how = if ingest.connected || how == Leave::Finished { how } else { Leave::Absent };
    peer.close();
    info!(?how, "publisher leaves");
    // Before the session's place is free: who waits for that finds the stream free as well.
    ingest.hold.leave(how);
}

/// A publish under way.
struct Ingest {
    hold: Hold,
    sync: Sync,
    origin: Instant,
    tracks: Tracks,
    /// The sections that are taken: of each kind the first in which something comes.
    video: Option<Mid>,
    audio: Option<Mid>,
    layers: Vec<Layer>,
    /// The layer that goes out.
    best: usize,
    connected: bool,
    /// stream_create may go out, and does once a picture has told its codec.
    began: bool,
    pictures: bool,
    /// Parameter sets of the offer, by payload type.
    told: Vec<(u8, Vec<Bytes>)>,
    keyframes: Keyframes,
    /// A picture came since the last beat.
    seen: bool,
    flowing: bool,
}

/// Pictures of one simulcast layer; of the only one, where there is no simulcast.
struct Layer {
    rid: Option<Rid>,
    codec: Codec,
    sets: nal::Sets,
    track: Option<Track>,
    /// No picture is good before the next keyframe: none has come yet, or one was lost since.
    broken: bool,
    heard: Instant,
}

/// When the publisher is asked for a keyframe.
struct Keyframes {
    interval: Duration,
    wanted: bool,
    asked: Option<Instant>,
    came: Option<Instant>,
}

impl Ingest {
    fn new(hold: Hold, keyframe_interval: Duration, offer: &Offer) -> Ingest {
        Ingest {
            hold,
            sync: Sync::new(),
            origin: Instant::now(),
            tracks: Tracks::default(),
            video: None,
            audio: None,
            layers: Vec::new(),
            best: 0,
            connected: false,
            began: false,
            pictures: offer.video,
            told: offer.parameter_sets.clone(),
            keyframes: Keyframes { interval: keyframe_interval, wanted: false, asked: None, came: None },
            seen: false,
            flowing: false,
        }
    }

    /// Feeds the publisher's frames to the hub until it ends.
    async fn take_in(&mut self, peer: &mut Peer, lane: &Lane) -> Result<Leave, RtcError> {
        let mut beats = lane.beats();
        let cut = self.hold.cut.clone();
        let mut cut = std::pin::pin!(cut.cancelled());
        let mut leaves = None;
        loop {
            while let Some(event) = self.poll(peer)? {
                if let Some(how) = self.event(event) {
                    return Ok(how);
                }
            }
            if !self.flowing && self.hold.publisher.holds() {
                self.hold.publisher.flush();
            }
            if self.ask_for_keyframe(peer) || peer.feed()? {
                continue;
            }
            tokio::select! {
                turn = peer.turn() => match turn? {
                    Turn::Went => {}
                    Turn::End(true) => leaves = leaves.or(Some(Instant::now() + LEAVING)),
                    // Another is to take its place, since nothing has come from it for a while.
                    Turn::End(false) => return Ok(Leave::Silent),
                },
                () = until(leaves) => return Ok(Leave::Finished),
                () = &mut cut => return Ok(Leave::Lost),
                () = self.hold.publisher.keyframe_wanted() => self.keyframes.wanted = true,
                () = &mut beats => {
                    self.beat();
                    if !self.connected && self.origin.elapsed() > ESTABLISH {
                        info!("no media connection in time");
                        return Ok(Leave::Absent);
                    }
                    if self.connected && peer.is_lost(Instant::now()) {
                        return Ok(Leave::Silent);
                    }
                }
            }
        }
    }

    /// What the engine tells next. A picture that it can make nothing of is as good as lost, whoever sent it, and no reason to end.
    fn poll(&mut self, peer: &mut Peer) -> Result<Option<Event>, RtcError> {
        loop {
            match peer.poll() {
                Err(RtcError::Packet(mid, _, error)) => {
                    debug!(%error, "packets of no use");
                    self.damaged(mid);
                }
                told => return told,
            }
        }
    }

    /// Something of a section is lost, and the engine does not say so with what comes next.
    fn damaged(&mut self, mid: Mid) {
        if self.video == Some(mid) {
            self.layers.iter_mut().for_each(|layer| layer.broken = true);
            self.keyframes.wanted = true;
        }
    }

    fn event(&mut self, event: Event) -> Option<Leave> {
        match event {
            Event::Connected => {
                info!("connected");
                self.connected = true;
            }
            Event::Closed => return Some(Leave::Finished),
            Event::MediaAdded(added) => self.media_added(&added),
            Event::MediaData(data) => self.media(data),
            Event::SenderFeedback(feedback) => self.report(&feedback),
            _ => {}
        }
        None
    }

    fn media_added(&mut self, added: &MediaAdded) {
        if !added.direction.is_receiving() {
            return;
        }
        let slot = match added.kind {
            MediaKind::Video => &mut self.video,
            MediaKind::Audio => &mut self.audio,
        };
        slot.get_or_insert(added.mid);
    }

    fn report(&mut self, feedback: &SenderFeedback) {
        let info = &feedback.sender_info;
        let (track, rate) = match feedback.mid {
            mid if Some(mid) == self.video => (Kind::Video, VIDEO_RATE),
            mid if Some(mid) == self.audio => (Kind::Audio, AUDIO_RATE),
            _ => return,
        };
        // Layers of a simulcast have clocks that begin apart: that of the layer which goes out counts.
        if track == Kind::Video && self.layers.get(self.best).is_some_and(|best| best.rid != feedback.rid) {
            return;
        }
        let since = info.ntp_time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ntp = Time::from_nanos(since.as_nanos() as i64);
        self.sync.report(track, rate, info.rtp_time.numer() as u32, ntp, self.elapsed(feedback.received_at));
    }

    fn media(&mut self, data: MediaData) {
        let codec = match data.params.spec().codec {
            str0m::format::Codec::H264 => Codec::H264,
            str0m::format::Codec::H265 => Codec::H265,
            str0m::format::Codec::Av1 => Codec::Av1,
            str0m::format::Codec::Opus => Codec::Opus,
            _ => return,
        };
        match codec.kind() {
            Kind::Video if Some(data.mid) == self.video => self.picture(codec, data),
            Kind::Audio if Some(data.mid) == self.audio => self.sound(data),
            _ => {}
        }
    }

    fn sound(&mut self, data: MediaData) {
        if data.data.is_empty() {
            return;
        }
        if self.tracks.audio.is_none() {
            let head = opus::Head { channels: 2, pre_skip: 0, source_rate: AUDIO_RATE, gain: 0 };
            let format = Format::Audio { sample_rate: AUDIO_RATE, channels: 2 };
            self.set_track(Track { codec: Codec::Opus, config: head.build(), format });
        }
        if !self.pictures {
            self.begin();
        }
        self.push(Kind::Audio, AUDIO_RATE, true, &data, Bytes::copy_from_slice(&data.data));
    }

    fn picture(&mut self, codec: Codec, data: MediaData) {
        let Some(at) = self.layer(codec, data.rid) else { return };
        let layer = &mut self.layers[at];
        layer.heard = data.network_time;
        let told = self.told.iter().find(|(pt, _)| *pt == *data.pt).map_or(&[][..], |(_, sets)| sets);
        let picture = layer.take(&data.data, data.contiguous, told);
        if layer.broken && (at == self.best || layer.track.is_none()) {
            self.keyframes.wanted = true;
        }
        let Some(picture) = picture else { return };
        if picture.key && at != self.best && self.is_better(at) {
            debug!(rid = ?data.rid, "layer taken");
            self.best = at;
            self.sync.restart(Kind::Video);
        }
        if at != self.best {
            return;
        }
        if picture.key {
            self.keyframes.came = Some(Instant::now());
            self.keyframes.wanted = false;
            if let Some(track) = self.layers[at].track.clone() {
                self.set_track(track);
            }
        }
        self.begin();
        (self.seen, self.flowing) = (true, true);
        self.push(Kind::Video, VIDEO_RATE, picture.key, &data, picture.payload);
    }

    /// The layer of a picture, which may be a new one.
    fn layer(&mut self, codec: Codec, rid: Option<Rid>) -> Option<usize> {
        match self.layers.iter().position(|layer| layer.rid == rid) {
            Some(at) if self.layers[at].codec == codec => Some(at),
            Some(at) => {
                self.layers[at] = Layer::new(rid, codec);
                Some(at)
            }
            None if self.layers.len() < LAYERS_MAX => {
                self.layers.push(Layer::new(rid, codec));
                Some(self.layers.len() - 1)
            }
            None => None,
        }
    }

    /// Whether a layer has larger pictures than that which goes out, or that one has fallen silent.
    fn is_better(&self, at: usize) -> bool {
        let best = &self.layers[self.best];
        !best.flows() || self.layers[at].pixels() > best.pixels()
    }

    /// The layer that is to begin anew where a keyframe is wanted: that which goes out; but if that one has fallen silent, the largest
    /// that flows, and if another of which nothing is known yet could be larger, that one.
    fn wanted(&self) -> Option<&Layer> {
        let best = self.layers.get(self.best)?;
        let mut flowing = self.layers.iter().filter(|layer| layer.flows());
        let other = match best.flows() {
            true if best.broken => None,
            true => flowing.find(|layer| layer.track.is_none()),
            false => flowing.max_by_key(|layer| layer.pixels()),
        };
        Some(other.unwrap_or(best))
    }

    fn set_track(&mut self, track: Track) {
        let (codec, format) = (track.codec, track.format);
        if self.tracks.set(track) {
            info!(%codec, ?format, "track");
            self.hold.publisher.set_tracks(self.tracks.clone());
        }
    }

    fn push(&mut self, track: Kind, rate: u32, key: bool, data: &MediaData, payload: Bytes) {
        let line = self.sync.stamp(track, rate, data.time.numer() as u32, self.elapsed(data.network_time));
        let dts = self.hold.publisher.stamp(track, line.dts.as_millis() as u32, data.network_time);
        self.hold.publisher.push(Frame { track, dts, cts: line.cts, key, payload });
    }

    /// Asks for a keyframe if one is due, and the last was asked for long enough ago; true if that gave the engine work.
    fn ask_for_keyframe(&mut self, peer: &mut Peer) -> bool {
        let Some(mid) = self.video.filter(|_| self.keyframes.due(Instant::now())) else { return false };
        let Some(rid) = self.wanted().map(|layer| layer.rid) else { return false };
        self.keyframes.asked = Some(Instant::now());
        peer.request_keyframe(mid, rid)
    }

    /// Where no picture came between two beats, no sound is held back for one; and another layer may have to step in.
    fn beat(&mut self) {
        self.flowing = std::mem::take(&mut self.seen);
        let best = self.layers.get(self.best);
        if best.is_some_and(|best| !best.flows()) && self.layers.iter().any(Layer::flows) {
            self.keyframes.wanted = true;
        }
        if self.connected && self.origin.elapsed() > UNKNOWN_CODEC {
            self.begin();
        }
        self.hold.publisher.measure();
    }

    fn begin(&mut self) {
        if std::mem::replace(&mut self.began, true) {
            return;
        }
        // As for RTMP: 3 is H.265, and 0 stands for all else.
        let h265 = self.tracks.video.as_ref().is_some_and(|track| track.codec == Codec::H265);
        self.hold.began(if h265 { 3 } else { 0 });
    }

    fn elapsed(&self, at: Instant) -> Time {
        Time::from_nanos(at.saturating_duration_since(self.origin).as_nanos() as i64)
    }
}

/// RTP clocks of the pictures and of Opus, in Hz (RFC 6184 §8.2.1, RFC 7587 §4.1).
const VIDEO_RATE: u32 = 90_000;
const AUDIO_RATE: u32 = 48_000;

/// A picture in the form of the hub.
struct Picture {
    payload: Bytes,
    key: bool,
}

impl Layer {
    fn new(rid: Option<Rid>, codec: Codec) -> Layer {
        Layer { rid, codec, sets: nal::Sets::new(codec), track: None, broken: true, heard: Instant::now() }
    }

    /// Whether its pictures still come.
    fn flows(&self) -> bool {
        self.heard.elapsed() <= SILENT
    }

    fn pixels(&self) -> u64 {
        match self.track.as_ref().map(|track| track.format) {
            Some(Format::Video { width, height }) => u64::from(width) * u64::from(height),
            _ => 0,
        }
    }

    /// Takes an access unit in, which follows the last one if `contiguous`; gives its picture, if that can be decoded. The
    /// parameter sets of a keyframe become the layer's track; until one has had them, those that were told with the offer.
    fn take(&mut self, unit: &[u8], contiguous: bool, told: &[Bytes]) -> Option<Picture> {
        let (payload, from_start, contiguous) = match self.codec {
            Codec::Av1 => (Bytes::copy_from_slice(&unit[codec::av1::delimiter_len(unit)..]), true, contiguous),
            codec => {
                let payload = nal::from_annex_b(unit);
                let from_start = nal::nals(&payload, 4).find_map(|unit| codec::is_first_slice(codec, unit));
                // A fragment can be of nothing, and what it makes is none.
                let whole = nal::nals(&payload, 4).all(|unit| !codec::is_empty_slice(codec, unit));
                (payload, from_start == Some(true) && whole, contiguous && whole)
            }
        };
        let key = codec::is_key(self.codec, &payload);
        let picture = !payload.is_empty() && codec::is_picture(self.codec, &payload);
        // Parameter sets may come in an access unit of their own.
        if key || !picture {
            self.absorb(&payload);
        }
        if key && self.track.is_none() && !told.is_empty() {
            self.absorb(&nal::join(told.iter().map(|set| &set[..])));
        }
        if key {
            // One that begins with its own first slice mends a gap before it; without parameter sets nothing could decode it.
            self.broken = !(contiguous || from_start) || self.track.is_none();
        } else if !contiguous {
            self.broken = true;
        }
        (picture && !self.broken).then_some(Picture { payload, key })
    }

    fn absorb(&mut self, payload: &[u8]) {
        if self.codec == Codec::Av1 {
            let record = codec::av1::record(payload).and_then(|record| codec::track(Codec::Av1, record).ok());
            self.track = record.or(self.track.take());
            return;
        }
        let changed = nal::nals(payload, 4).fold(false, |changed, unit| self.sets.absorb(unit) | changed);
        if let (true, Some(record)) = (changed || self.track.is_none(), self.sets.record()) {
            match codec::track(self.codec, record) {
                Ok(track) => self.track = Some(track),
                Err(error) => warn!(%error, "parameter sets of no use"),
            }
        }
    }
}

impl Keyframes {
    fn due(&self, now: Instant) -> bool {
        let passed = |at: Option<Instant>, span| at.is_none_or(|at| now.duration_since(at) >= span);
        let old = self.came.is_some() && passed(self.came, self.interval);
        (self.wanted || old) && passed(self.asked, REQUEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETS: &[u8] = b"\0\0\0\x01\x67\x42\xc0\x0b\xd9\x05\x06\x94\x84\0\0\x03\0\x04\0\0\x03\0\xf0\x3c\x50\xaa\x80\0\0\0\x01\x68\xce\x3c\x80";

    /// Feeds access units to a layer: `s` parameter sets, `I` a whole keyframe without them, `i` one without its first slice, `p` another
    /// picture, `x` one that is a header alone; `!` says that something was lost before the next one. Says which go on.
    fn check(script: &str, want: &str) {
        check_told(&[], script, want);
    }

    fn check_told(told: &[Bytes], script: &str, want: &str) {
        let mut layer = Layer::new(None, Codec::H264);
        let (mut got, mut contiguous) = (String::new(), true);
        for step in script.chars() {
            let unit: &[u8] = match step {
                's' => SETS,
                'I' => b"\0\0\0\x01\x65\x88\x84\0\0\0\x01\x65\x21\x11",
                'i' => b"\0\0\0\x01\x65\x21\x11",
                'p' => b"\0\0\0\x01\x41\x9a\x11",
                'x' => b"\0\0\0\x01\x41",
                _ => {
                    contiguous = false;
                    continue;
                }
            };
            let taken = layer.take(unit, std::mem::replace(&mut contiguous, true), told);
            assert_eq!(taken.as_ref().is_some_and(|it| it.key), taken.is_some() && step == 'I', "{script}");
            got.extend(taken.map(|_| step));
        }
        assert_eq!(got, want, "{script}");
    }

    #[test]
    fn nothing_goes_on_that_needs_what_was_lost() {
        check("sIppIp", "IppIp");
        check("ppsIp", "Ip");
        check("sIp!ppIp", "IpIp");
        check("sIp!IppIp", "IpIppIp");
        check("sIp!ipIp", "IpIp");
        check("sIp!spIp", "IpIp");
        check("IpsIp", "Ip");
        check("sIpxpIp", "IpIp");
    }

    #[test]
    fn parameter_sets_of_the_offer_count_until_others_come() {
        let told: Vec<_> = nal::nals(&nal::from_annex_b(SETS), 4).map(Bytes::copy_from_slice).collect();
        check_told(&told, "pIpp", "Ipp");
        check_told(&told[..1], "pIpp", "");
        check_told(&told[..1], "IpsIp", "Ip");
        check_told(&[Bytes::from_static(b"\x67"), Bytes::new()], "IpsIp", "Ip");
    }

    #[test]
    fn a_keyframe_is_asked_for_when_wanted_or_due_but_seldom() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (interval, asked, came) = (Duration::from_secs(4), Some(at(1000)), Some(at(1000)));
        let check = |wanted, asked, came, ms, want| {
            let keyframes = Keyframes { interval, wanted, asked, came };
            assert_eq!(keyframes.due(at(ms)), want, "{wanted} {ms}");
        };
        check(false, None, None, 9000, false);
        check(true, None, None, 0, true);
        check(true, asked, None, 1499, false);
        check(true, asked, None, 1500, true);
        check(false, asked, came, 4999, false);
        check(false, asked, came, 5000, true);
    }
}
