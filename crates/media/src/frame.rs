//! The nouns that flow through bywash: [`Frame`], [`Track`], [`Time`], [`StreamKey`].
//!
//! A frame is one coded picture or one audio packet in the form that RTMP, FLV and MP4 take as
//! it is: H.264 and H.265 length-prefixed (AVCC) with 4-byte lengths, AAC raw access units, Opus
//! and MP3 packets, AV1 temporal units of OBUs with size fields. Parameter sets travel out of band, in the
//! [`Track`]; a change in mid-stream is a new track.
//!
//! Invariant: [`Time`] is media time. Wall clock and `Instant` are other types and nothing here
//! converts between them.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;

use bytes::Bytes;

/// Media time in nanoseconds, on the one line that all tracks of a stream share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(i64);

impl Time {
    /// The start of the line.
    pub const ZERO: Time = Time(0);

    /// From whole milliseconds, the unit of RTMP and FLV.
    pub const fn from_millis(ms: i64) -> Time {
        Time(ms.saturating_mul(1_000_000))
    }

    /// From nanoseconds.
    pub const fn from_nanos(ns: i64) -> Time {
        Time(ns)
    }

    /// From `ticks` of a clock that runs at `rate` Hz, rounded to the nearest nanosecond.
    pub const fn from_ticks(ticks: i64, rate: u32) -> Time {
        let exact = ticks as i128 * 1_000_000_000;
        Time(div_round(exact, rate as i128) as i64)
    }

    /// Whole milliseconds, rounded down.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Nanoseconds.
    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// Ticks of a clock that runs at `rate` Hz, rounded to the nearest.
    pub const fn as_ticks(self, rate: u32) -> i64 {
        div_round(self.0 as i128 * rate as i128, 1_000_000_000) as i64
    }
}

const fn div_round(n: i128, d: i128) -> i128 {
    (n + d / 2).div_euclid(d)
}

impl Add for Time {
    type Output = Time;
    fn add(self, other: Time) -> Time {
        Time(self.0.saturating_add(other.0))
    }
}

impl Sub for Time {
    type Output = Time;
    fn sub(self, other: Time) -> Time {
        Time(self.0.saturating_sub(other.0))
    }
}

/// Picture or sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Pictures.
    Video,
    /// Sound.
    Audio,
}

/// A codec that bywash carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// H.264 / AVC.
    H264,
    /// H.265 / HEVC.
    H265,
    /// AV1.
    Av1,
    /// AAC (MPEG-4 audio).
    Aac,
    /// MP3 (MPEG-1/2 layer III).
    Mp3,
    /// Opus.
    Opus,
}

impl Codec {
    /// Whether the codec is one of pictures or of sound.
    pub const fn kind(self) -> Kind {
        match self {
            Codec::H264 | Codec::H265 | Codec::Av1 => Kind::Video,
            Codec::Aac | Codec::Mp3 | Codec::Opus => Kind::Audio,
        }
    }

    /// The name that people and API answers use.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::H264 => "H.264",
            Codec::H265 => "H.265",
            Codec::Av1 => "AV1",
            Codec::Aac => "AAC",
            Codec::Mp3 => "MP3",
            Codec::Opus => "Opus",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One track of a stream: a codec and the record that a decoder needs before the first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// The codec.
    pub codec: Codec,
    /// `avcC`, `hvcC` or `av1C` record, AudioSpecificConfig, or `OpusHead` body (RFC 7845 §5.1 with its magic); empty for MP3.
    pub config: Bytes,
    /// What the record says of the pictures or the sound; zeros where it is silent.
    pub format: Format,
}

/// What a track's record says of its pictures or its sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Picture size in pixels.
    Video {
        /// Pixels a row, after cropping.
        width: u32,
        /// Rows, after cropping.
        height: u32,
    },
    /// Sound.
    Audio {
        /// Samples a second, in Hz.
        sample_rate: u32,
        /// Channels.
        channels: u8,
    },
}

/// The tracks of a stream at one moment. Either may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracks {
    /// The picture track.
    pub video: Option<Arc<Track>>,
    /// The sound track.
    pub audio: Option<Arc<Track>>,
}

impl Tracks {
    /// The track of one kind.
    pub fn get(&self, kind: Kind) -> Option<&Arc<Track>> {
        match kind {
            Kind::Video => self.video.as_ref(),
            Kind::Audio => self.audio.as_ref(),
        }
    }

    /// Puts `track` in its kind's place; says whether that changed anything.
    pub fn set(&mut self, track: Track) -> bool {
        let slot = match track.codec.kind() {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
        };
        if slot.as_deref() == Some(&track) {
            return false;
        }
        *slot = Some(Arc::new(track));
        true
    }
}

/// One coded picture or audio packet. `clone` copies a pointer, not the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The track it belongs to.
    pub track: Kind,
    /// Decoding time.
    pub dts: Time,
    /// Composition offset: presentation time less decoding time; never negative.
    pub cts: Time,
    /// Whether decoding can begin here. Always true of sound.
    pub key: bool,
    /// The coded bytes.
    pub payload: Bytes,
}

/// Pictures of whoever begins in the midst of a stream: from a key frame on, without those that are shown before it. Such need what was
/// decoded before; an open group of pictures has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Join {
    /// When the key frame is shown.
    shown: Option<Time>,
}

impl Join {
    /// Whether a picture can be decoded, the next in the order of decoding.
    pub fn takes(&mut self, picture: &Frame) -> bool {
        let shown = picture.dts + picture.cts;
        (picture.key || self.has_begun()) && shown >= *self.shown.get_or_insert(shown)
    }

    /// Whether the key frame has come.
    pub fn has_begun(&self) -> bool {
        self.shown.is_some()
    }
}

/// Production and test streams are two namespaces of one app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Environment {
    /// Streams that audiences see.
    Production,
    /// Streams whose ids begin with `zegotest-<AppId>-`.
    Test,
}

/// Names one stream: app, environment and stream id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey {
    app: u32,
    environment: Environment,
    id: Arc<str>,
}

/// The longest stream id, in bytes (ZEGO: RTMPDispatchV2).
pub const STREAM_ID_MAX: usize = 256;

impl StreamKey {
    /// What a stream id is, for who has given something else.
    pub const RULE: &str = "1 to 256 of A-Z a-z 0-9 - _ ., but no dots alone";

    /// The key that an API call names with its own `environment`; `None` if `id` is not a stream id
    /// (see [`RULE`](Self::RULE)). A test stream's id carries its prefix, see [`test_prefix`](Self::test_prefix).
    pub fn parse(app: u32, environment: Environment, id: &str) -> Option<StreamKey> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        let fits = (1..=STREAM_ID_MAX).contains(&id.len()) && id.bytes().all(allowed);
        // "." and ".." are also names of folders.
        if !fits || id.bytes().all(|c| c == b'.') {
            return None;
        }
        if environment == Environment::Test && !id.starts_with(&Self::test_prefix(app)) {
            return None;
        }
        Some(StreamKey { app, environment, id: id.into() })
    }

    /// The key of a stream published or played under `id`: the prefix decides the environment.
    pub fn published(app: u32, id: &str) -> Option<StreamKey> {
        let environment = match id.starts_with(&Self::test_prefix(app)) {
            true => Environment::Test,
            false => Environment::Production,
        };
        Self::parse(app, environment, id)
    }

    /// What every stream id of the test environment begins with.
    pub fn test_prefix(app: u32) -> String {
        format!("zegotest-{app}-")
    }

    /// The app.
    pub fn app(&self) -> u32 {
        self.app
    }

    /// The namespace.
    pub fn environment(&self) -> Environment {
        self.environment
    }

    /// The stream id as publishers and callers write it, prefix included.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_and_90_khz_ticks_convert_without_drift() {
        for ms in [0, 1, 33, 40, 3_600_000, 86_400_000_000] {
            assert_eq!(Time::from_millis(ms).as_ticks(90_000), ms * 90);
            assert_eq!(Time::from_ticks(ms * 90, 90_000).as_millis(), ms);
        }
        assert_eq!(Time::from_millis(-1).as_millis(), -1);
    }

    #[test]
    fn a_stream_id_is_checked_once_at_the_edge() {
        let parse = |id: &str| StreamKey::parse(7, Environment::Production, id).is_some();
        assert!(parse("rtc01") && parse("a-b_c.d") && parse(&"x".repeat(256)));
        for bad in ["", ".", "..", "a/b", "a b", "流", "a\0", &"x".repeat(257)] {
            assert!(!parse(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_prefix_decides_the_environment_of_a_published_stream() {
        let test = StreamKey::published(7, "zegotest-7-a").unwrap();
        assert_eq!(test.environment(), Environment::Test);
        assert_eq!(test, StreamKey::parse(7, Environment::Test, "zegotest-7-a").unwrap());
        let other = StreamKey::published(7, "zegotest-8-a").unwrap();
        assert_eq!(other.environment(), Environment::Production);
        assert_eq!(StreamKey::parse(7, Environment::Test, "a"), None);
    }
}
