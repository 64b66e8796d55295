//! H.265: the `hvcC` record, the sequence parameter set and the IRAP test.

use bytes::Bytes;

use super::bits::Bits;
use super::nal;

const BLA_W_LP: u8 = 16;
const CRA: u8 = 21;
const VPS: u8 = 32;
const SPS: u8 = 33;
const PPS: u8 = 34;

/// The most of a sequence parameter set that is looked at: no field read here lies behind it.
const HEAD: usize = 4096;

/// Whether a NAL unit is of an intra random access picture: BLA, IDR or CRA (H.265 §7.4.2.2).
pub fn is_irap(nal: &[u8]) -> bool {
    unit_type(nal).is_some_and(|unit| (16..=23).contains(&unit))
}

/// Whether a NAL unit is a part of a picture (H.265 table 7-1).
pub fn is_slice(nal: &[u8]) -> bool {
    unit_type(nal).is_some_and(|unit| unit < VPS)
}

/// Makes a CRA picture, with 4-byte lengths, a BLA picture (§7.4.2.2), as it must be where it does not follow what it was coded behind: a
/// new sequence begins there, and pictures that lead up to it and need earlier ones are passed over.
///
/// Not so an end of sequence in front: a CRA picture behind one drops what was decoded and not shown yet (§C.5.2.2).
pub fn break_link(payload: &mut [u8]) {
    let mut rest = payload;
    while let Some((length, units)) = std::mem::take(&mut rest).split_first_chunk_mut() {
        let Some((unit, next)) = units.split_at_mut_checked(u32::from_be_bytes(*length) as usize) else { return };
        if unit_type(unit) == Some(CRA) {
            unit[0] = unit[0] & 0x81 | BLA_W_LP << 1;
        }
        rest = next;
    }
}

fn unit_type(nal: &[u8]) -> Option<u8> {
    Some(nal.first()? >> 1 & 0x3f)
}

/// The NAL type and id of a parameter set; `None` for other units.
pub(super) fn set_id(nal: &[u8]) -> Option<(u8, u32)> {
    let unit = unit_type(nal)?;
    let id = match unit {
        VPS => u32::from(nal.get(2)? >> 4),
        SPS => parse_sps(nal)?.0,
        PPS => Bits::new(nal.get(2..)?).ue()?,
        _ => return None,
    };
    Some((unit, id))
}

/// The parameter sets of an `hvcC` record (ISO/IEC 14496-15 §8.3.3.1).
pub(super) fn record_sets(record: &[u8]) -> Option<Vec<&[u8]>> {
    let (&arrays, mut rest) = record.get(22..)?.split_first()?;
    let mut sets = Vec::new();
    for _ in 0..arrays {
        let count = u16::from_be_bytes([*rest.get(1)?, *rest.get(2)?]);
        rest = nal::record_nals(&rest[3..], count, &mut sets)?;
    }
    Some(sets)
}

/// The `hvcC` record of these parameter sets; `None` without at least one of each type.
pub(super) fn build_record(sets: &nal::Sets) -> Option<Bytes> {
    let sps = Sps::parse(sets.of(SPS).next()?)?;
    let mut out = vec![1];
    out.extend(sps.profile);
    // Spatial segmentation, parallelism and frame rate are left unknown.
    out.extend([0xf0, 0, 0xfc, 0xfc | sps.chroma, 0xf8 | sps.luma_depth, 0xf8 | sps.chroma_depth, 0, 0]);
    out.extend([sps.layers << 3 | u8::from(sps.nested) << 2 | 3, 3]);
    for unit in [VPS, SPS, PPS] {
        sets.of(unit).next()?;
        // Not marked complete: this publisher sends sets in band.
        out.push(unit);
        out.extend((sets.of(unit).count() as u16).to_be_bytes());
        for set in sets.of(unit) {
            out.extend((set.len() as u16).to_be_bytes());
            out.extend_from_slice(set);
        }
    }
    Some(out.into())
}

/// The `codecs` parameter of an `hvcC` record (ISO/IEC 14496-15 annex E.3).
pub(super) fn parameter(record: &[u8]) -> Option<String> {
    let &[head, c0, c1, c2, c3, ref constraints @ .., level] = record.get(1..13)?.first_chunk::<12>()?;
    let space = ["", "A", "B", "C"][usize::from(head >> 6)];
    let tier = if head & 0x20 == 0 { 'L' } else { 'H' };
    // From the lowest bit up, without the zeros in front.
    let compatible = u32::from_be_bytes([c0, c1, c2, c3]).reverse_bits();
    let mut out = format!("hvc1.{space}{}.{compatible:X}.{tier}{level}", head & 0x1f);
    let end = constraints.iter().rposition(|&it| it != 0).map_or(0, |last| last + 1);
    for byte in &constraints[..end] {
        out += &format!(".{byte:X}");
    }
    Some(out)
}

/// What a sequence parameter set says (H.265 §7.3.2.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sps {
    /// Pixels a row, after cropping.
    pub width: u32,
    /// Rows, after cropping.
    pub height: u32,
    profile: [u8; 12],
    layers: u8,
    nested: bool,
    chroma: u8,
    luma_depth: u8,
    chroma_depth: u8,
}

impl Sps {
    /// From a NAL unit with its two header bytes.
    pub fn parse(nal: &[u8]) -> Option<Sps> {
        (unit_type(nal)? == SPS).then(|| parse_sps(nal))?.map(|(_, sps)| sps)
    }
}

/// The set's id and the set.
fn parse_sps(nal: &[u8]) -> Option<(u32, Sps)> {
    let bytes = nal::unescape(nal, HEAD);
    let profile = *bytes.get(3..)?.first_chunk::<12>()?;
    let mut bits = Bits::new(bytes.get(2..)?);
    bits.skip(4)?;
    let sub_layers = bits.u(3)?;
    let nested = bits.flag()?;
    bits.skip(profile.len() * 8)?;
    skip_sub_layers(&mut bits, sub_layers)?;
    let id = bits.ue()?;
    let chroma = bits.ue().filter(|&it| it <= 3)?;
    let planes = chroma == 3 && bits.flag()?;
    let (columns, rows) = (bits.ue()?, bits.ue()?);
    let (mut cut_x, mut cut_y) = (0, 0);
    if bits.flag()? {
        let mut sum = || Some(u64::from(bits.ue()?) + u64::from(bits.ue()?));
        (cut_x, cut_y) = (sum()?, sum()?);
    }
    let (unit_x, unit_y) = match chroma {
        1 if !planes => (2, 2),
        2 if !planes => (2, 1),
        _ => (1, 1),
    };
    let size = |whole: u32, cut: u64| u16::try_from(u64::from(whole).checked_sub(cut)?).ok().map(u32::from);
    let mut depth = || bits.ue().filter(|&it| it <= 8).map(|it| it.min(7) as u8);
    let sps = Sps {
        width: size(columns, cut_x * unit_x)?,
        height: size(rows, cut_y * unit_y)?,
        profile,
        layers: sub_layers as u8 + 1,
        nested,
        chroma: chroma as u8,
        luma_depth: depth()?,
        chroma_depth: depth()?,
    };
    Some((id, sps))
}

/// Skips what `profile_tier_level` says of each sub-layer (H.265 §7.3.3).
fn skip_sub_layers(bits: &mut Bits, sub_layers: u32) -> Option<()> {
    if sub_layers == 0 {
        return Some(());
    }
    let mut length = 0;
    for _ in 0..sub_layers {
        length += if bits.flag()? { 88 } else { 0 };
        length += if bits.flag()? { 8 } else { 0 };
    }
    // The flags are padded to eight sub-layers.
    bits.skip(2 * (8 - sub_layers.min(8) as usize) + length)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Codec;
    use crate::codec::nal::Sets;

    pub(crate) const RECORD_360: &[u8] = b"\x01\x01\x60\x00\x00\x00\x90\x00\x00\x00\x00\x00\x3f\xf0\x00\xfc\xfd\xf8\xf8\x00\x00\x0f\x03\
        \xa0\x00\x01\x00\x18\x40\x01\x0c\x01\xff\xff\x01\x60\x00\x00\x03\x00\x90\x00\x00\x03\x00\x00\x03\x00\x3f\x95\x98\x09\
        \xa1\x00\x01\x00\x2a\x42\x01\x01\x01\x60\x00\x00\x03\x00\x90\x00\x00\x03\x00\x00\x03\x00\x3f\xa0\x05\x02\x01\x69\x65\x95\x9a\
        \x49\x32\xbc\x05\xa0\x20\x00\x00\x03\x00\x20\x00\x00\x03\x03\x21\
        \xa2\x00\x01\x00\x07\x44\x01\xc1\x72\xb4\x62\x40";
    pub(crate) const SPS_1080: &[u8] =
        b"\x42\x01\x01\x01\x60\x00\x00\x03\x00\x90\x00\x00\x03\x00\x00\x03\x00\x78\xa0\x03\xc0\x80\x10\xe5\
        \x96\x56\x69\x24\xca\xf0\x16\x80\x80\x00\x00\x03\x00\x80\x00\x00\x0c\x84";

    #[test]
    fn the_picture_size_is_that_after_cropping() {
        let sps = Sps::parse(SPS_1080).unwrap();
        assert_eq!((sps.width, sps.height), (1920, 1080));
        let sets = Sets::parse(Codec::H265, RECORD_360).unwrap();
        assert_eq!((sets.size(), sets.length_size()), (Some((640, 360)), 4));
    }

    #[test]
    fn a_record_built_from_sets_agrees_with_the_encoders() {
        let mut built = Sets::parse(Codec::H265, RECORD_360).unwrap().record().unwrap().to_vec();
        assert_eq!(built.len(), RECORD_360.len());
        // The encoder marks its arrays complete.
        let arrays = [23, 23 + 5 + 24, 23 + 5 + 24 + 5 + 42];
        arrays.iter().for_each(|&at| built[at] |= 0x80);
        assert_eq!(built, RECORD_360);
    }

    #[test]
    fn a_picture_that_follows_others_than_it_was_coded_behind_says_so() {
        let check = |payload: &[u8], want: &[u8]| {
            let mut got = payload.to_vec();
            break_link(&mut got);
            assert_eq!(got, want);
        };
        // A prefix SEI and two slices; of another layer and temporal id.
        check(
            b"\0\0\0\x02\x4e\x01\0\0\0\x03\x2a\x01\x2a\0\0\0\x02\x2b\x0a",
            b"\0\0\0\x02\x4e\x01\0\0\0\x03\x20\x01\x2a\0\0\0\x02\x21\x0a",
        );
        for same in [&b"\0\0\0\x02\x26\x01"[..], b"\0\0\0\x02\x02\x01", b"\0\0\0\x03\x2a\x01", b"\0\0\0\0", b""] {
            check(same, same);
        }
    }

    #[test]
    fn each_random_access_picture_is_a_key() {
        assert!(is_irap(&[19 << 1, 1]) && is_irap(&[20 << 1, 1]) && is_irap(&[21 << 1, 1]));
        for other in [&[1 << 1, 1][..], &[VPS << 1, 1], &[39 << 1, 1], &[]] {
            assert!(!is_irap(other), "{other:x?}");
        }
    }
}
