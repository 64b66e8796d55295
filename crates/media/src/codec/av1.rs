//! AV1: the `av1C` record, the sequence header and where a temporal unit lets decoding begin.

use bytes::Bytes;

use super::bits::Bits;

const SEQUENCE_HEADER: u8 = 1;
const TEMPORAL_DELIMITER: u8 = 2;
const FRAME_HEADER: u8 = 3;
const FRAME: u8 = 6;

/// Picture width and height of an `av1C` record (AV1 ISOBMFF binding §2.3), zeros if it carries no sequence header;
/// `None` if it is no such record.
pub fn record_size(record: &[u8]) -> Option<(u32, u32)> {
    // A marker bit and version 1.
    if *record.first()? != 0x81 || record.len() < 4 {
        return None;
    }
    let header = obus(&record[4..]).find(|obu| obu.unit == SEQUENCE_HEADER);
    Some(header.and_then(|obu| Sequence::parse(obu.body)).map(|it| it.size).unwrap_or_default())
}

/// The `av1C` record (AV1 ISOBMFF binding §2.3) of a temporal unit; `None` if it has no sequence header.
pub fn record(unit: &[u8]) -> Option<Bytes> {
    let header = obus(unit).find(|obu| obu.unit == SEQUENCE_HEADER)?;
    let sequence = Sequence::parse(header.body)?;
    let mut record = vec![0x81, sequence.profile << 5 | sequence.level, sequence.tier << 7 | sequence.color, 0];
    // The record wants a size field, which RTP may leave out (AV1 RTP §4.4).
    record.push(SEQUENCE_HEADER << 3 | 2);
    record.push(u8::try_from(header.body.len()).ok().filter(|len| *len < 0x80)?);
    record.extend_from_slice(header.body);
    Some(record.into())
}

/// Whether two records say the same of their sequence. What else is in its header may differ between an encoder's record and its key
/// frames, and decoders go by these.
pub(crate) fn same_sequence(a: &[u8], b: &[u8]) -> bool {
    let sequence = |record: &[u8]| {
        let header = obus(record.get(4..)?).find(|obu| obu.unit == SEQUENCE_HEADER)?;
        Sequence::parse(header.body)
    };
    sequence(a) == sequence(b)
}

/// Whether the first picture of a temporal unit is a key frame that is shown.
///
/// A frame shown from an earlier one, which may be a key frame too, does not count: it needs that one.
pub fn is_key(unit: &[u8]) -> bool {
    const KEY_FRAME: u32 = 0;
    let Some(frame) = obus(unit).find(|obu| matches!(obu.unit, FRAME_HEADER | FRAME)) else {
        return false;
    };
    let mut bits = Bits::new(frame.body);
    let mut read = || Some((bits.flag()?, bits.u(2)?, bits.flag()?));
    read() == Some((false, KEY_FRAME, true))
}

/// How long the temporal delimiter is that a temporal unit begins with. FLV and MP4 do without it.
pub fn delimiter_len(unit: &[u8]) -> usize {
    match obus(unit).next() {
        Some(obu) if obu.unit == TEMPORAL_DELIMITER => obu.len,
        _ => 0,
    }
}

struct Obu<'a> {
    unit: u8,
    len: usize,
    body: &'a [u8],
}

/// The OBUs of a temporal unit (AV1 §5.3). One without a size field is the last.
fn obus(mut unit: &[u8]) -> impl Iterator<Item = Obu<'_>> {
    std::iter::from_fn(move || {
        let head = *unit.first()?;
        let (extended, sized) = (head & 4 != 0, head & 2 != 0);
        let mut body = unit.get(if extended { 2 } else { 1 }..)?;
        let mut rest: &[u8] = &[];
        if sized {
            let (size, after) = leb128(body)?;
            (body, rest) = after.split_at_checked(size)?;
        }
        let len = unit.len() - rest.len();
        unit = rest;
        Some(Obu { unit: head >> 3 & 15, len, body })
    })
}

fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(5).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

/// What a sequence header says (AV1 §5.5.1).
#[derive(PartialEq)]
struct Sequence {
    profile: u8,
    level: u8,
    tier: u8,
    /// Bit depth, monochrome and subsampling as `av1C` packs them.
    color: u8,
    size: (u32, u32),
}

impl Sequence {
    fn parse(body: &[u8]) -> Option<Sequence> {
        let mut bits = Bits::new(body);
        let profile = bits.u(3)? as u8;
        bits.skip(1)?;
        let (mut level, mut tier) = (0, 0);
        let reduced = bits.flag()?;
        if reduced {
            level = bits.u(5)? as u8;
        } else {
            let mut decoder_model = None;
            if bits.flag()? {
                bits.skip(64)?;
                if bits.flag()? {
                    bits.ue()?;
                }
                if bits.flag()? {
                    decoder_model = Some(bits.u(5)? as usize + 1);
                    bits.skip(42)?;
                }
            }
            let display_delay = bits.flag()?;
            for point in 0..bits.u(5)? + 1 {
                bits.skip(12)?;
                let of_point = bits.u(5)? as u8;
                let of_point = (of_point, if of_point > 7 { bits.u(1)? as u8 } else { 0 });
                if point == 0 {
                    (level, tier) = of_point;
                }
                if let Some(delay) = decoder_model
                    && bits.flag()?
                {
                    bits.skip(2 * delay + 1)?;
                }
                if display_delay && bits.flag()? {
                    bits.skip(4)?;
                }
            }
        }
        let (wide, high) = (bits.u(4)? + 1, bits.u(4)? + 1);
        let size = (bits.u(wide)? + 1, bits.u(high)? + 1);
        // A header cut short after the size is still good for it; 4:2:0 in 8 bits is what nearly all have.
        let color = color(&mut bits, profile, reduced).unwrap_or(0x0c);
        Some(Sequence { profile, level, tier, color, size })
    }
}

/// What follows the picture size, down to the color description (AV1 §5.5.1, §5.5.2).
fn color(bits: &mut Bits, profile: u8, reduced: bool) -> Option<u8> {
    if !reduced && bits.flag()? {
        bits.skip(7)?;
    }
    bits.skip(3)?;
    if !reduced {
        bits.skip(4)?;
        let order_hint = bits.flag()?;
        if order_hint {
            bits.skip(2)?;
        }
        let screen_content_tools = bits.flag()? || bits.flag()?;
        if screen_content_tools && !bits.flag()? {
            bits.skip(1)?;
        }
        if order_hint {
            bits.skip(3)?;
        }
    }
    bits.skip(3)?;

    let high_depth = bits.flag()?;
    let twelve_bit = profile == 2 && high_depth && bits.flag()?;
    let monochrome = profile != 1 && bits.flag()?;
    let described = if bits.flag()? { (bits.u(8)?, bits.u(8)?, bits.u(8)?) } else { (2, 2, 2) };
    const SRGB: (u32, u32, u32) = (1, 13, 0);
    let subsampling = match profile {
        _ if monochrome => (true, true),
        _ if described == SRGB => (false, false),
        profile => {
            bits.skip(1)?;
            match profile {
                0 => (true, true),
                1 => (false, false),
                _ if twelve_bit => {
                    let wide = bits.flag()?;
                    (wide, wide && bits.flag()?)
                }
                _ => (true, false),
            }
        }
    };
    let position = if subsampling == (true, true) && !monochrome { bits.u(2)? as u8 } else { 0 };
    let flag = |set, at: u8| u8::from(set) << at;
    Some(
        flag(high_depth, 6)
            | flag(twelve_bit, 5)
            | flag(monochrome, 4)
            | flag(subsampling.0, 3)
            | flag(subsampling.1, 2)
            | position,
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const RECORD_360: &[u8] = b"\x81\x01\x0c\x00\x0a\x0b\x00\x00\x00\x0c\xc4\xff\x67\x00\xbe\x00\x10";
    pub(crate) const RECORD_1080: &[u8] = b"\x81\x08\x0c\x00\x0a\x0b\x00\x00\x00\x42\xab\xbf\xc3\x70\x0b\xe0\x01";
    /// Of [`KEY_360`], which is of another encoder.
    pub(crate) const RECORD_OF_KEY: &[u8] = b"\x81\x01\x0c\x00\x0a\x0b\x00\x00\x00\x0c\xc4\xff\x67\x3e\xfe\x40\x10";
    pub(crate) const KEY_360: &[u8] = b"\x0a\x0b\x00\x00\x00\x0c\xc4\xff\x67\x3e\xfe\x40\x10\x32\x04\x14\x00\x23\x38";

    #[test]
    fn the_sequence_header_tells_the_picture_size() {
        assert_eq!(record_size(RECORD_360), Some((640, 360)));
        assert_eq!(record_size(RECORD_1080), Some((1920, 1080)));
        assert_eq!(record_size(b"\x81\x00\x00\x00"), Some((0, 0)));
        assert_eq!(record_size(b"\x01\x00\x00\x00"), None);
    }

    #[test]
    fn a_key_frame_brings_its_own_record() {
        // The two records above are of an encoder that writes them itself.
        let body = |record: &'static [u8]| record[4..].to_vec();
        assert_eq!(record(KEY_360).as_deref(), Some(RECORD_OF_KEY));
        for record in [RECORD_1080, RECORD_360] {
            assert_eq!(super::record(&body(record)).as_deref(), Some(record));
        }
        assert_eq!(super::record(&[0x32, 1, 0x10]), None);
    }

    #[test]
    fn decoding_begins_at_a_shown_key_frame() {
        assert!(is_key(KEY_360));
        let with = |frame_head| [0x12, 0, 0x32, 1, frame_head];
        assert!(is_key(&with(0x10)));
        for (head, why) in [(0x30, "inter"), (0x00, "hidden"), (0x80, "shown again"), (0x50, "intra only")] {
            assert!(!is_key(&with(head)), "{why}");
        }
        assert!(!is_key(&[]) && !is_key(&[0x12, 0]));
    }

    #[test]
    fn the_delimiter_is_measured() {
        assert_eq!(delimiter_len(&[0x12, 0, 0x32, 1, 0x10]), 2);
        assert_eq!(delimiter_len(KEY_360), 0);
    }
}
