//! ADTS: AAC frames that each tell what they are (ISO/IEC 14496-3 §1.A.2.2). A file is nothing but frames.

use std::io;

use bytes::Bytes;

use super::{Finish, Packet, Source, last_whole};
use crate::codec::aac;

/// How long a frame's header is: there is no CRC.
pub const HEAD: usize = 7;

/// What the frames of one track have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; HEAD],
}

impl Header {
    /// From a track's AudioSpecificConfig; `None` if ADTS has no number for its object type, rate or channels.
    pub fn new(config: &[u8]) -> Option<Header> {
        let asc = aac::Config::parse(config)?;
        let profile = asc.object_type.checked_sub(1).filter(|&it| it < 4)?;
        let rate = aac::RATES.iter().position(|&rate| rate == asc.core_rate)? as u8;
        let layout = Some(asc.layout).filter(|&it| it < 8 && asc.frame_length == 1024)?;
        // MPEG-4, no CRC; buffer fullness 0x7ff: the bit rate varies; one frame.
        let bytes = [0xff, 0xf1, profile << 6 | rate << 2 | layout >> 2, layout << 6, 0, 0x1f, 0xfc];
        Some(Header { bytes })
    }

    /// What goes before a frame of `len` bytes; `None` if that is more than the length field holds.
    pub fn frame(&self, len: usize) -> Option<[u8; HEAD]> {
        let whole = u16::try_from(len + HEAD).ok().filter(|&it| it < 1 << 13)?;
        let mut bytes = self.bytes;
        bytes[3] |= (whole >> 11) as u8;
        bytes[4] = (whole >> 3) as u8;
        bytes[5] |= (whole << 5) as u8;
        Some(bytes)
    }
}

/// What makes a torn file whole: the cut behind its last whole frame. `None` if there is none.
pub fn finish<S: Source + ?Sized>(file: &S) -> io::Result<Option<Finish>> {
    last_whole(file, HEAD, packet)
}

/// The length of a frame, its header included, and the AudioSpecificConfig that its header stands for.
pub(super) fn parse(head: &[u8]) -> Option<(usize, Bytes)> {
    let found = packet(head)?;
    let (profile, rate, layout) = (head[2] >> 6, head[2] >> 2 & 15, (head[2] & 1) << 2 | head[3] >> 6);
    let config = [(profile + 1) << 3 | rate >> 1, rate << 7 | layout << 3];
    Some((found.len, Bytes::copy_from_slice(&config)))
}

fn packet(head: &[u8]) -> Option<Packet> {
    let &[0xff, kind, rate, high, middle, low, blocks, ..] = head else { return None };
    let len = usize::from(high & 3) << 11 | usize::from(middle) << 3 | usize::from(low >> 5);
    let sample_rate = *aac::RATES.get(usize::from(rate >> 2 & 15))?;
    let samples = 1024 * (u32::from(blocks & 3) + 1);
    (kind & 0xf6 == 0xf0 && len > HEAD).then_some(Packet { len, samples, sample_rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_tells_what_the_configuration_does() {
        let check = |config: &[u8], len, want: Option<[u8; HEAD]>| {
            let got = Header::new(config).and_then(|it| it.frame(len));
            assert_eq!(got, want, "{config:x?} {len}");
            let back = got.and_then(|head| Header::new(&parse(&head)?.1));
            assert_eq!(back, got.and(Header::new(config)), "{config:x?}");
        };
        check(&[0x11, 0x90], 364, Some([0xff, 0xf1, 0x4c, 0x80, 0x2e, 0x7f, 0xfc]));
        check(&[0x12, 0x08], 0x1ff8, Some([0xff, 0xf1, 0x50, 0x43, 0xff, 0xff, 0xfc]));
        check(&[0x12, 0x08], 0x1ff9, None);
        // HE-AAC v2: what is told is the core, mono at half the rate.
        check(&[0xeb, 0x09, 0x88, 0x00], 1, Some([0xff, 0xf1, 0x58, 0x40, 0x01, 0x1f, 0xfc]));
        // A rate without a number; frames of 960 samples.
        check(&[0x17, 0x80, 0x5d, 0xc1, 0x10], 1, None);
        check(&[0x11, 0x94], 1, None);
    }

    #[test]
    fn a_torn_file_is_cut_behind_its_last_whole_frame() {
        let header = Header::new(&[0x11, 0x90]).unwrap();
        let frame = [&header.frame(300).unwrap()[..], &[7; 300]].concat();
        let file = frame.repeat(300);
        for cut in (0..file.len()).step_by(97) {
            let whole = cut / frame.len();
            let got = finish(&file[..cut]).unwrap().map(|it| (it.len, it.duration.as_ticks(48_000)));
            let want = (whole > 0).then_some((whole as u64 * 307, whole as i64 * 1024));
            assert_eq!(got, want, "{cut}");
        }
        assert_eq!(finish(&[0; 100][..]).unwrap(), None);
    }
}
