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

/// The longest record, in bytes. Those of encoders have some hundred, and files and players read theirs whole.
const RECORD_MAX: usize = 64 << 10;

/// The track that `config`, the record of `codec` (see [`Track::config`]), describes.
///
/// A record whose NAL lengths are shorter than 4 bytes is rewritten to say 4, as [`Frame`](crate::Frame) has them.
/// For MP3, which has no record, `config` is a packet.
pub fn track(codec: Codec, config: Bytes) -> Result<Track, Error> {
    if config.len() > RECORD_MAX {
        return Err(Error::Malformed("codec record: longer than 64 KiB"));
    }
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

/// In what two tracks differ so that frames of one cannot go on behind those of the other; `None` where records differ in nothing that
/// a decoder goes by, as those of one encoder do that came through different containers.
pub(crate) fn difference(one: &Track, other: &Track) -> Option<&'static str> {
    if one == other {
        return None;
    }
    if one.codec != other.codec {
        return Some("codec");
    }
    match (one.format, other.format) {
        _ if one.codec == Codec::Aac => aac::difference(&one.config, &other.config),
        (Format::Audio { sample_rate: a, .. }, Format::Audio { sample_rate: b, .. }) if a != b => Some("sample rate"),
        (Format::Audio { channels: a, .. }, Format::Audio { channels: b, .. }) if a != b => Some("channels"),
        (Format::Video { .. }, _) if one.format != other.format => Some("size"),
        _ if matches!(one.codec, Codec::H264 | Codec::H265) => {
            let sets = |track: &Track| nal::Sets::parse(track.codec, &track.config);
            let same = sets(one).zip(sets(other)).is_some_and(|(one, other)| one.same(&other));
            (!same).then_some("parameter sets")
        }
        _ => Some("codec record"),
    }
}

/// The `codecs` parameter of a track (RFC 6381; ISO/IEC 14496-15 annex E; AV1 ISOBMFF §5), as HLS and browsers want it;
/// `None` for a record that is cut off.
pub fn parameter(track: &Track) -> Option<String> {
    let record = &track.config;
    Some(match track.codec {
        Codec::H264 => format!("avc1.{:02X}{:02X}{:02X}", record.get(1)?, record.get(2)?, record.get(3)?),
        Codec::H265 => h265::parameter(record)?,
        Codec::Av1 => {
            let (head, depth) = (record.get(1)?, record.get(2)?);
            let tier = if depth & 0x80 == 0 { 'M' } else { 'H' };
            let bits = match depth >> 5 & 3 {
                3 => 12,
                2 => 10,
                _ => 8,
            };
            format!("av01.{}.{:02}{tier}.{bits:02}", head >> 5, head & 0x1f)
        }
        Codec::Aac => format!("mp4a.40.{}", aac::announced_type(record)?),
        Codec::Mp3 => "mp4a.40.34".into(),
        Codec::Opus => "opus".into(),
    })
}

/// Whether decoding can begin at this frame.
pub fn is_key(codec: Codec, payload: &[u8]) -> bool {
    match codec {
        Codec::H264 => h264::is_key(payload),
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

/// Whether a NAL unit is the first slice of its picture; `None` if it is no slice. Of H.264 and H.265.
pub fn is_first_slice(codec: Codec, unit: &[u8]) -> Option<bool> {
    // first_mb_in_slice 0 is one set bit (H.264 §7.3.3); first_slice_segment_in_pic_flag is a bit (H.265 §7.3.6.1).
    unit.get(slice_header(codec, unit)?).map(|byte| byte & 0x80 != 0)
}

/// Whether a NAL unit is a slice that has a header and nothing else. Of H.264 and H.265.
pub fn is_empty_slice(codec: Codec, unit: &[u8]) -> bool {
    slice_header(codec, unit).is_some_and(|length| unit.len() <= length)
}

/// How long the header of a NAL unit is that is a slice.
fn slice_header(codec: Codec, unit: &[u8]) -> Option<usize> {
    match codec {
        Codec::H264 if h264::is_slice(unit) => Some(1),
        Codec::H265 if h265::is_slice(unit) => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_that_is_a_header_alone_is_told() {
        for (codec, nal, want) in [
            (Codec::H264, &[0x65][..], true),
            (Codec::H264, &[0x41, 0x9a], false),
            // The end of a sequence is a header, and needs no more.
            (Codec::H264, &[0x0a], false),
            (Codec::H265, &[0x26, 0x01], true),
            (Codec::H265, &[0x26, 0x01, 0xaf], false),
            (Codec::H265, &[0x48, 0x01], false),
        ] {
            assert_eq!(is_empty_slice(codec, nal), want, "{nal:x?}");
        }
    }

    #[test]
    fn tracks_differ_in_what_a_decoder_goes_by_alone() {
        let check = |codec, one: &[u8], other: &[u8], want: Option<&str>| {
            let [one, other] = [one, other].map(|config| track(codec, Bytes::copy_from_slice(config)).unwrap());
            assert_eq!((difference(&one, &other), difference(&other, &one)), (want, want), "{codec} {one:?} {other:?}");
        };
        // What FFmpeg tells, and what ADTS does: that there is no SBR, and nothing of it.
        check(Codec::Aac, &[0x11, 0x88, 0x56, 0xe5, 0x00], &[0x11, 0x88], None);
        check(Codec::Aac, &[0x13, 0x10, 0x56, 0xe5, 0x98], &[0x13, 0x10], Some("sample rate"));
        check(Codec::Aac, &[0x13, 0x10, 0x56, 0xe5, 0x98], &[0x2b, 0x11, 0x88, 0x00], None);
        check(Codec::Aac, &[0x11, 0x88], &[0x11, 0x90], Some("channels"));
        check(Codec::Aac, &[0x11, 0x90], &[0x12, 0x10], Some("sample rate"));
        check(Codec::Aac, &[0x11, 0x90], &[0x11, 0x94], Some("frame length"));
        check(Codec::Aac, &[0x11, 0x90], &[0x09, 0x90], Some("object type"));
        check(Codec::Mp3, &[0xff, 0xfb, 0x90, 0x44], &[0xff, 0xfb, 0x92, 0x44], None);
        check(Codec::Mp3, &[0xff, 0xfb, 0x90, 0x44], &[0xff, 0xfb, 0x94, 0x44], Some("sample rate"));
        check(Codec::Mp3, &[0xff, 0xfb, 0x90, 0x44], &[0xff, 0xfb, 0x90, 0xc4], Some("channels"));
        let rebuilt = nal::Sets::parse(Codec::H265, h265::tests::RECORD_360).unwrap().record().unwrap();
        check(Codec::H265, h265::tests::RECORD_360, &rebuilt, None);
        let mut other = rebuilt.to_vec();
        *other.last_mut().unwrap() ^= 0x20;
        check(Codec::H265, &rebuilt, &other, Some("parameter sets"));
        let size = |width| Format::Video { width, height: 360 };
        let [one, other] =
            [640, 480].map(|width| Track { codec: Codec::Av1, config: Bytes::new(), format: size(width) });
        assert_eq!(difference(&one, &other), Some("size"));
    }

    #[test]
    fn a_track_has_the_name_that_browsers_know_it_by() {
        let check = |codec, config: &[u8], want: &str| {
            let format = Format::Video { width: 0, height: 0 };
            let track = Track { codec, config: Bytes::copy_from_slice(config), format };
            assert_eq!(parameter(&track).as_deref(), Some(want));
        };
        check(Codec::H264, b"\x01\x64\x00\x1e\xff", "avc1.64001E");
        check(Codec::H265, h265::tests::RECORD_360, "hvc1.1.6.L63.90");
        check(Codec::Av1, av1::tests::RECORD_360, "av01.0.01M.08");
        check(Codec::Av1, b"\x81\x28\xc0\x00", "av01.1.08H.10");
        check(Codec::Aac, &[0x11, 0x90], "mp4a.40.2");
        check(Codec::Aac, &[0x2b, 0x11, 0x88, 0x00], "mp4a.40.5");
        check(Codec::Mp3, b"", "mp4a.40.34");
        check(Codec::Opus, b"", "opus");
        let cut = Track {
            codec: Codec::H264,
            config: Bytes::from_static(b"\x01"),
            format: Format::Video { width: 0, height: 0 },
        };
        assert_eq!(parameter(&cut), None);
    }
}
