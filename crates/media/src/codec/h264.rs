//! H.264: the `avcC` record, the sequence parameter set and the IDR test.

use bytes::Bytes;

use super::bits::Bits;
use super::nal;

const IDR: u8 = 5;
const SEI: u8 = 6;
const SPS: u8 = 7;
const PPS: u8 = 8;

/// The most of a unit that is looked at for the fields read here. What lies behind is of no interest.
const HEAD: usize = 4096;

/// Whether decoding can begin at a frame: an IDR picture, or an open group of pictures, whose first picture is coded by itself and
/// told to be whole at once by a recovery point (H.264 §D.2.8).
pub(super) fn is_key(frame: &[u8]) -> bool {
    let units = || nal::nals(frame, 4);
    let mut slices = units().filter(|unit| is_slice(unit));
    units().any(|unit| unit_type(unit) == Some(IDR))
        || recovery_point(frame) == Some(0) && slices.next().is_some_and(is_intra) && slices.all(is_intra)
}

/// After how many pictures decoding is whole that begins at this frame, if a recovery point tells (H.264 §D.2.8): 0 at an open group of
/// pictures, more where pictures are refreshed bit by bit.
pub(crate) fn recovery_point(frame: &[u8]) -> Option<u32> {
    const RECOVERY_POINT: u32 = 6;
    let units = nal::nals(frame, 4).take_while(|unit| !is_slice(unit)).filter(|unit| unit_type(unit) == Some(SEI));
    // One is within the first units; it is not looked for in a thousand.
    units.take(16).find_map(|unit| {
        let bytes = nal::unescape(&unit[1..], HEAD);
        let mut rest = &bytes[..];
        loop {
            let (kind, after) = sei_number(rest)?;
            let (size, body) = sei_number(after)?;
            if kind == RECOVERY_POINT {
                return Bits::new(body).ue();
            }
            rest = body.get(size as usize..)?;
        }
    })
}

/// A payload type or size of an SEI message, and what follows it (H.264 §7.3.2.3.1).
fn sei_number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let full = bytes.iter().take_while(|&&byte| byte == 0xff).count();
    Some((255 * full as u32 + u32::from(*bytes.get(full)?), &bytes[full + 1..]))
}

/// Whether a slice needs no other picture (H.264 table 7-6: 2 and 7 are I, 4 and 9 SI).
fn is_intra(slice: &[u8]) -> bool {
    let head = nal::unescape(&slice[1..], 16);
    let mut bits = Bits::new(&head);
    let kind = bits.ue().and_then(|_| bits.ue());
    kind.is_some_and(|kind| matches!(kind % 5, 2 | 4))
}

/// Whether a NAL unit is a part of a picture (H.264 table 7-1).
pub fn is_slice(nal: &[u8]) -> bool {
    unit_type(nal).is_some_and(|unit| (1..=IDR).contains(&unit))
}

fn unit_type(nal: &[u8]) -> Option<u8> {
    Some(nal.first()? & 0x1f)
}

/// The NAL type and id of a parameter set; `None` for other units.
pub(super) fn set_id(nal: &[u8]) -> Option<(u8, u32)> {
    let unit = unit_type(nal)?;
    let before_id = match unit {
        SPS => 4,
        PPS => 1,
        _ => return None,
    };
    let head = nal::unescape(nal, 16);
    Some((unit, Bits::new(head.get(before_id..)?).ue()?))
}

/// The parameter sets of an `avcC` record (ISO/IEC 14496-15 §5.3.3.1).
pub(super) fn record_sets(record: &[u8]) -> Option<Vec<&[u8]>> {
    let mut rest = record.get(5..)?;
    let mut sets = Vec::new();
    for mask in [0x1f, 0xff] {
        let (&count, after) = rest.split_first()?;
        rest = nal::record_nals(after, (count & mask).into(), &mut sets)?;
    }
    Some(sets)
}

/// The `avcC` record of these parameter sets; `None` without at least one of each type.
pub(super) fn build_record(sets: &nal::Sets) -> Option<Bytes> {
    let first = sets.of(SPS).next()?;
    sets.of(PPS).next()?;
    let mut out = vec![1, *first.get(1)?, *first.get(2)?, *first.get(3)?, 0xff];
    for (unit, reserved) in [(SPS, 0xe0), (PPS, 0)] {
        out.push(reserved | sets.of(unit).count() as u8);
        for set in sets.of(unit) {
            out.extend_from_slice(&(set.len() as u16).to_be_bytes());
            out.extend_from_slice(set);
        }
    }
    // ISO/IEC 14496-15 asks for these four bytes at all but the oldest profiles.
    if let Some(sps) = Sps::parse(first).filter(|_| !matches!(first[1], 66 | 77 | 88)) {
        out.extend([0xfc | sps.chroma, 0xf8 | sps.luma_depth, 0xf8 | sps.chroma_depth, 0]);
    }
    Some(out.into())
}

/// What a sequence parameter set says (H.264 §7.3.2.1.1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sps {
    /// Pixels a row, after cropping.
    pub width: u32,
    /// Rows, after cropping.
    pub height: u32,
    chroma: u8,
    luma_depth: u8,
    chroma_depth: u8,
}

impl Sps {
    /// From a NAL unit with its header byte.
    pub fn parse(nal: &[u8]) -> Option<Sps> {
        if unit_type(nal)? != SPS {
            return None;
        }
        let bytes = nal::unescape(nal, HEAD);
        let profile = *bytes.get(1)?;
        let mut bits = Bits::new(bytes.get(4..)?);
        bits.ue()?;
        let (mut chroma, mut planes, mut luma_depth, mut chroma_depth) = (1, false, 0, 0);
        if matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
            chroma = bits.ue().filter(|&it| it <= 3)?;
            planes = chroma == 3 && bits.flag()?;
            luma_depth = bits.ue().filter(|&it| it <= 6)?;
            chroma_depth = bits.ue().filter(|&it| it <= 6)?;
            bits.skip(1)?;
            if bits.flag()? {
                skip_scaling_matrix(&mut bits, if chroma == 3 { 12 } else { 8 })?;
            }
        }
        bits.ue()?;
        match bits.ue()? {
            0 => {
                bits.ue()?;
            }
            1 => {
                bits.skip(1)?;
                bits.se()?;
                bits.se()?;
                for _ in 0..bits.ue().filter(|&it| it <= 255)? {
                    bits.se()?;
                }
            }
            _ => {}
        }
        bits.ue()?;
        bits.skip(1)?;
        let columns = u64::from(bits.ue()?) + 1;
        let units = u64::from(bits.ue()?) + 1;
        let frames_only = bits.flag()?;
        let fields = if frames_only { 1 } else { 2 };
        bits.skip(if frames_only { 1 } else { 2 })?;
        let (crop_x, crop_y) = crop(&mut bits)?;
        let (unit_x, unit_y) = match chroma {
            1 if !planes => (2, 2 * fields),
            2 if !planes => (2, fields),
            _ => (1, fields),
        };
        let size = |whole: u64, cut: u64| u16::try_from(whole.checked_sub(cut)?).ok().map(u32::from);
        Some(Sps {
            width: size(columns * 16, crop_x * unit_x)?,
            height: size(units * 16 * fields, crop_y * unit_y)?,
            chroma: chroma as u8,
            luma_depth: luma_depth as u8,
            chroma_depth: chroma_depth as u8,
        })
    }
}

fn skip_scaling_matrix(bits: &mut Bits, lists: usize) -> Option<()> {
    for list in 0..lists {
        if !bits.flag()? {
            continue;
        }
        let (mut last, mut next) = (8, 8);
        for _ in 0..if list < 6 { 16 } else { 64 } {
            if next != 0 {
                next = (last + bits.se()?.rem_euclid(256)) % 256;
            }
            if next != 0 {
                last = next;
            }
        }
    }
    Some(())
}

/// What is cut off left and right together, and above and below, in crop units.
fn crop(bits: &mut Bits) -> Option<(u64, u64)> {
    if !bits.flag()? {
        return Some((0, 0));
    }
    let mut sum = || Some(u64::from(bits.ue()?) + u64::from(bits.ue()?));
    Some((sum()?, sum()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Codec;
    use crate::codec::nal::Sets;

    const HIGH_360: &[u8] =
        b"\x67\x64\x00\x1e\xac\xd9\x40\xa0\x2f\xf9\x70\x11\x00\x00\x03\x00\x01\x00\x00\x03\x00\x32\x0f\x16\x2d\x96";
    const HIGH_1080: &[u8] =
        b"\x67\x64\x00\x28\xac\xd9\x40\x78\x02\x27\xe5\xc0\x44\x00\x00\x03\x00\x04\x00\x00\x03\x00\xc8\x3c\x60\xc6\x58";
    /// Without cropping and VUI.
    const BASELINE: &[u8] = b"\x67\x42\x00\x0a\xf8\x41\xa2";
    const PPS_0: &[u8] = b"\x68\xeb\xe3\xcb\x22\xc0";

    fn check(sps: &[u8], width: u32, height: u32) {
        let got = Sps::parse(sps).unwrap();
        assert_eq!((got.width, got.height), (width, height));
    }

    #[test]
    fn the_picture_size_is_that_after_cropping() {
        check(HIGH_360, 640, 360);
        check(HIGH_1080, 1920, 1080);
        check(BASELINE, 128, 96);
    }

    #[test]
    fn a_cut_sps_is_no_size() {
        for end in 0..10 {
            assert_eq!(Sps::parse(&HIGH_1080[..end]), None, "{end}");
        }
    }

    #[test]
    fn a_record_built_from_sets_parses_to_the_same_sets() {
        let mut sets = Sets::new(Codec::H264);
        assert!(sets.absorb(HIGH_360));
        assert_eq!(sets.record(), None);
        assert!(sets.absorb(PPS_0));
        let record = sets.record().unwrap();
        assert_eq!(record[..6], [1, 0x64, 0, 0x1e, 0xff, 0xe1]);
        assert_eq!(record[record.len() - 4..], [0xfd, 0xf8, 0xf8, 0]);
        let mut again = Sets::parse(Codec::H264, &record).unwrap();
        assert_eq!((again.record(), again.size(), again.length_size()), (Some(record), Some((640, 360)), 4));
        assert!(!again.absorb(HIGH_360) && !again.absorb(b"\x65\x88"));
        assert!(again.absorb(HIGH_1080));
        assert_eq!(again.size(), Some((1920, 1080)));
    }

    #[test]
    fn decoding_begins_at_an_idr_picture_or_an_open_group_of_pictures() {
        // I slices begin with the bits 1 011 or 1 0001000, P slices with 1 1.
        const UNREGISTERED: &[u8] = &[0x06, 5, 2, 1, 2, 0x80];
        const AT_ONCE: &[u8] = &[0x06, 5, 2, 1, 2, 6, 1, 0xc4, 0x80];
        const BIT_BY_BIT: &[u8] = &[0x06, 6, 2, 0x1a, 0x40, 0x80];
        let check = |units: &[&[u8]], key, recovery| {
            let frame = nal::join(units.iter().copied());
            assert_eq!((is_key(&frame), recovery_point(&frame)), (key, recovery), "{units:x?}");
        };
        check(&[&[0x65, 0x88]], true, None);
        check(&[&[0x67, 1], &[0x25, 0x88]], true, None);
        check(&[&[0x41, 0x9a]], false, None);
        check(&[&[0x41, 0xb0]], false, None);
        check(&[UNREGISTERED, &[0x41, 0xb0]], false, None);
        check(&[AT_ONCE, &[0x41, 0xb0]], true, Some(0));
        check(&[&[0x67, 1], UNREGISTERED, AT_ONCE, &[0x41, 0x88, 0x80], &[0x41, 0x33]], true, Some(0));
        check(&[AT_ONCE, &[0x41, 0xb0], &[0x41, 0x9a]], false, Some(0));
        check(&[BIT_BY_BIT, &[0x41, 0x9a]], false, Some(12));
        check(&[&[0x41, 0xb0], AT_ONCE], false, None);
        check(&[AT_ONCE], false, Some(0));
        check(&[&[0x06, 0xff], &[0x06], &[0x41, 0xb0]], false, None);
        check(&[], false, None);
    }
}
