//! What must hold for what publishers send, on any bytes at all.

use bytes::Bytes;
use bywash_media::codec::{self, h264, h265, nal, opus};
use bywash_media::mux::flv;
use bywash_media::{Codec, Kind, Time, Timeline};

/// FLV tag bodies, and the same bytes as a file.
pub fn flv_tag(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    let (mut reader, mut items) = (flv::Reader::new(), Vec::new());
    let _ = reader.video(&body, &mut items);
    let _ = reader.audio(&body, &mut items);
    let Ok(file) = flv::Demuxer::new(body) else { return };
    for tag in file.flatten() {
        let _ = match tag.kind {
            flv::TagKind::Audio => reader.audio(&tag.body, &mut items),
            _ => reader.video(&tag.body, &mut items),
        };
    }
}

/// Enhanced RTMP bodies, several through one reader, so that changes of track are reached.
pub fn enhanced_tag(data: &[u8]) {
    let (mut reader, mut items) = (flv::Reader::new(), Vec::new());
    for part in data.split(|&byte| byte == 0xfe) {
        let Some((&head, rest)) = part.split_first() else { continue };
        let _ = reader.video(&[&[head | 0x80], rest].concat().into(), &mut items);
        let _ = reader.audio(&[&[0x90 | head & 15], rest].concat().into(), &mut items);
    }
}

/// Codec records and frames.
pub fn codec_config(data: &[u8]) {
    for codec in [Codec::H264, Codec::H265, Codec::Av1, Codec::Aac, Codec::Mp3, Codec::Opus] {
        let _ = codec::track(codec, Bytes::copy_from_slice(data));
        codec::is_key(codec, data);
    }
    for length_size in 1..=4 {
        let _ = nal::normalize(Bytes::copy_from_slice(data), length_size);
    }
    let _ = (h264::Sps::parse(data), h265::Sps::parse(data), opus::duration(data));
}

/// Timestamps: each track's line only rises, whatever the publisher's clocks do.
pub fn timeline(data: &[u8]) {
    let (mut line, mut arrival, mut last) = (Timeline::new(), 0i64, [-1i64; 2]);
    for step in data.chunks_exact(6) {
        arrival += i64::from(step[1]);
        if step[0] & 0x82 == 0x82 {
            line.resume(Time::from_millis(arrival));
        }
        let track = usize::from(step[0] & 1);
        let raw = u32::from_le_bytes([step[2], step[3], step[4], step[5]]);
        let dts = line.stamp([Kind::Video, Kind::Audio][track], raw, Time::from_millis(arrival)).as_millis();
        assert!(dts > last[track], "{dts} after {}", last[track]);
        last[track] = dts;
    }
}
