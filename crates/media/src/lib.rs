//! Frames, tracks, codecs and containers.
//!
//! Pure: no clock, socket, file or runtime. Time comes in as an argument, bytes go in and out.

pub mod codec;
pub mod frame;
pub mod mux;
pub mod playlist;
pub mod sync;
pub mod timeline;
pub mod transcode;

pub use frame::{Codec, Environment, Format, Frame, Join, Kind, StreamKey, Time, Track, Tracks};
pub use sync::Sync;
pub use timeline::Timeline;
pub use transcode::Transcoder;

/// Why bytes from a publisher or a file could not be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A codec that bywash does not carry. It will not change: refuse the publisher and say why.
    #[error("codec {0} is not supported; send H.264, H.265 or AV1 pictures and AAC, MP3 or Opus sound")]
    Codec(String),
    /// These bytes are lost; the next may be good.
    #[error("malformed {0}")]
    Malformed(&'static str),
}
