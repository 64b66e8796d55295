//! What must be known of each codec: its record, its picture size or sound, and where decoding can begin.
//!
//! Invariant: no function here panics on any input, and none of them does more work than the input is long.

pub mod aac;
pub mod av1;
mod bits;
pub mod h264;
pub mod h265;
pub mod mp3;
pub mod nal;
pub mod opus;

use bytes::Bytes;

use crate::{Codec, Error, Format, Track};

/// The track that `config`, the record of `codec` (see [`Track::config`]), describes.
///
/// A record whose NAL lengths are shorter than 4 bytes is rewritten to say 4, as [`Frame`](crate::Frame) has them.
/// For MP3, which has no record, `config` is a packet.
pub fn track(codec: Codec, config: Bytes) -> Result<Track, Error> {
    let size = |(width, height)| Format::Video { width, height };
    let (config, format) = match codec {
        Codec::H264 | Codec::H265 => {
            let sets = nal::Sets::parse(codec, &config).ok_or(Error::Malformed("avcC or hvcC record"))?;
            (nal::record_of_four(codec, config), size(sets.size().unwrap_or_default()))
        }
        Codec::Av1 => {
            let found = av1::record_size(&config).ok_or(Error::Malformed("av1C record"))?;
            (config, size(found))
        }
        Codec::Aac => {
            let asc = aac::Config::parse(&config).ok_or(Error::Malformed("AudioSpecificConfig"))?;
            (config, Format::Audio { sample_rate: asc.sample_rate, channels: asc.channels })
        }
        Codec::Opus => {
            let head = opus::Head::parse(&config).ok_or(Error::Malformed("OpusHead"))?;
            // Opus always decodes to 48 kHz; the rate in the head is that of the source.
            (config, Format::Audio { sample_rate: 48_000, channels: head.channels })
        }
        Codec::Mp3 => {
            let head = mp3::Header::parse(&config).ok_or(Error::Malformed("MP3 packet"))?;
            (Bytes::new(), Format::Audio { sample_rate: head.sample_rate, channels: head.channels })
        }
    };
    Ok(Track { codec, config, format })
}

/// Whether decoding can begin at this frame.
pub fn is_key(codec: Codec, payload: &[u8]) -> bool {
    match codec {
        Codec::H264 => nal::nals(payload, 4).any(h264::is_idr),
        Codec::H265 => nal::nals(payload, 4).any(h265::is_irap),
        Codec::Av1 => av1::is_key(payload),
        Codec::Aac | Codec::Mp3 | Codec::Opus => true,
    }
}

/// Whether there is a picture in the frame: some encoders send parameter sets or SEI in a frame of their own.
pub fn is_picture(codec: Codec, payload: &[u8]) -> bool {
    match codec {
        Codec::H264 => nal::nals(payload, 4).any(h264::is_slice),
        Codec::H265 => nal::nals(payload, 4).any(h265::is_slice),
        _ => true,
    }
}
