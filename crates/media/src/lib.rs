//! Frames, tracks, codecs and containers.
//!
//! Pure: no clock, socket, file or runtime. Time comes in as an argument, bytes go in and out.

pub mod frame;

pub use frame::{Codec, Environment, Format, Frame, Kind, StreamKey, Time, Track, Tracks};
