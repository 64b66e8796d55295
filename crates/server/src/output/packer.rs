//! Hub events in, RTMP messages out: what a relay and a player need alike.
//!
//! Invariant: every frame is preceded by the sequence header that it decodes with.

use std::sync::Arc;

use bytes::Bytes;
use bywash_media::mux::flv;
use bywash_media::{Codec, Format, Kind, Track, Tracks};
use bywash_rtmp::amf::{self, Value};
use bywash_rtmp::message;

use crate::hub::Event;

/// Makes messages of events; one for each receiver.
pub struct Packer {
    /// Publishing clients wrap their metadata in `@setDataFrame`; servers send it bare.
    wraps_metadata: bool,
    tracks: Arc<Tracks>,
    /// What the receiver has been given sequence headers of.
    sent: Tracks,
}

impl Packer {
    /// For a server that we publish to.
    pub fn to_server() -> Packer {
        Packer { wraps_metadata: true, tracks: Arc::default(), sent: Tracks::default() }
    }

    /// For a player.
    pub fn to_player() -> Packer {
        Packer { wraps_metadata: false, ..Packer::to_server() }
    }

    /// Hands the messages of one event to `send`: kind, timestamp in milliseconds, head, payload.
    pub fn pack(&mut self, event: &Event, mut send: impl FnMut(message::Kind, u32, &[u8], &Bytes)) {
        let frame = match event {
            Event::Tracks(tracks) => {
                self.tracks = tracks.clone();
                return;
            }
            Event::Lagged { .. } => return,
            Event::Frame(frame) => frame,
        };
        // RTMP's clock is 32 bits of milliseconds and wraps.
        let timestamp = frame.dts.as_millis() as u32;
        self.announce(timestamp, &mut send);
        if let Some(track) = self.tracks.get(frame.track) {
            send(kind(frame.track), timestamp, &flv::frame_head(track.codec, frame), &frame.payload);
        }
    }

    /// Sends metadata and the headers of the tracks that changed; these at the time of the first frame that needs them, metadata always at
    /// zero: FFmpeg takes it for subtitles elsewhere, and waits for more of them.
    fn announce(&mut self, timestamp: u32, send: &mut impl FnMut(message::Kind, u32, &[u8], &Bytes)) {
        if same(&self.sent.video, &self.tracks.video) && same(&self.sent.audio, &self.tracks.audio) {
            return;
        }
        send(message::Kind::Data, 0, &[], &self.metadata());
        for track in [Kind::Video, Kind::Audio] {
            let (old, new) = (self.sent.get(track), self.tracks.get(track));
            let Some(new) = new.filter(|new| old != Some(new)) else { continue };
            if let Some(body) = flv::track_body(new) {
                send(kind(track), timestamp, &[], &body);
            }
        }
        self.sent = (*self.tracks).clone();
    }

    fn metadata(&self) -> Bytes {
        let mut list = Vec::new();
        for track in [&self.tracks.video, &self.tracks.audio].into_iter().flatten() {
            describe(track, &mut list);
        }
        list.push(("encoder".to_owned(), Value::String(concat!("bywash ", env!("CARGO_PKG_VERSION")).to_owned())));
        let mut values = vec![Value::String("onMetaData".to_owned()), Value::EcmaArray(list)];
        if self.wraps_metadata {
            values.insert(0, Value::String("@setDataFrame".to_owned()));
        }
        amf::encode(&values)
    }
}

/// FLV's codec numbers for the legacy codecs, the FourCC as a big-endian number for the others (Enhanced RTMP, onMetaData).
fn describe(track: &Track, list: &mut Vec<(String, Value)>) {
    let id = match track.codec {
        Codec::H264 => 7.0,
        Codec::H265 => f64::from(u32::from_be_bytes(*b"hvc1")),
        Codec::Av1 => f64::from(u32::from_be_bytes(*b"av01")),
        Codec::Aac => 10.0,
        Codec::Mp3 => 2.0,
        Codec::Opus => f64::from(u32::from_be_bytes(*b"Opus")),
    };
    let mut add = |name: &str, value: f64| list.push((name.to_owned(), Value::Number(value)));
    match track.format {
        Format::Video { width, height } => {
            add("width", width.into());
            add("height", height.into());
            add("videocodecid", id);
        }
        Format::Audio { sample_rate, channels } => {
            add("audiosamplerate", sample_rate.into());
            add("audiosamplesize", 16.0);
            add("audiochannels", channels.into());
            list.push(("stereo".to_owned(), Value::Bool(channels == 2)));
            list.push(("audiocodecid".to_owned(), Value::Number(id)));
        }
    }
}

fn kind(track: Kind) -> message::Kind {
    match track {
        Kind::Video => message::Kind::Video,
        Kind::Audio => message::Kind::Audio,
    }
}

/// Tracks are compared by pointer first: this runs for each frame.
fn same(a: &Option<Arc<Track>>, b: &Option<Arc<Track>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        (a, b) => a.is_none() && b.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bywash_media::{Frame, Time};

    fn tracks(config: &'static str, audio: bool) -> Event {
        let mut tracks = Tracks::default();
        let format = Format::Video { width: 640, height: 360 };
        tracks.set(Track { codec: Codec::H264, config: Bytes::from_static(config.as_bytes()), format });
        if audio {
            let format = Format::Audio { sample_rate: 48_000, channels: 2 };
            tracks.set(Track { codec: Codec::Aac, config: Bytes::from_static(b"\x11\x90"), format });
        }
        Event::Tracks(Arc::new(tracks))
    }

    fn frame(track: Kind, ms: i64) -> Event {
        let dts = Time::from_millis(ms);
        Event::Frame(Frame { track, dts, cts: Time::ZERO, key: true, payload: Bytes::from_static(b"payload") })
    }

    #[test]
    fn a_header_precedes_the_first_frame_only_what_changed_is_sent_again_and_metadata_has_no_time() {
        let script = [
            tracks("one", true),
            frame(Kind::Video, 0),
            frame(Kind::Audio, 10),
            tracks("one", true),
            frame(Kind::Video, 40),
            tracks("two", true),
            tracks("three", true),
            frame(Kind::Audio, 41),
            frame(Kind::Video, 1 << 32),
        ];
        let mut packer = Packer::to_server();
        let mut got = Vec::new();
        for event in &script {
            packer.pack(event, |kind, timestamp, head, payload| {
                let what = if payload.ends_with(b"payload") { "frame" } else { "header" };
                assert_eq!(head.is_empty(), what == "header");
                got.push(format!("{kind:?} {what} {timestamp}"));
            });
        }
        let want = [
            "Data header 0",
            "Video header 0",
            "Audio header 0",
            "Video frame 0",
            "Audio frame 10",
            "Video frame 40",
            "Data header 0",
            "Video header 41",
            "Audio frame 41",
            "Video frame 0",
        ];
        assert_eq!(got, want);
    }
}
