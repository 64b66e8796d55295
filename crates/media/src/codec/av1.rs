//! AV1: the `av1C` record, the sequence header and where a temporal unit lets decoding begin.

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
    Some(header.and_then(|obu| sequence_size(obu.body)).unwrap_or_default())
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

/// Width and height of a sequence header (AV1 §5.5.1).
fn sequence_size(body: &[u8]) -> Option<(u32, u32)> {
    let mut bits = Bits::new(body);
    bits.skip(4)?;
    let reduced = bits.flag()?;
    if reduced {
        bits.skip(5)?;
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
        for _ in 0..bits.u(5)? + 1 {
            bits.skip(12)?;
            if bits.u(5)? > 7 {
                bits.skip(1)?;
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
    Some((bits.u(wide)? + 1, bits.u(high)? + 1))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const RECORD_360: &[u8] = b"\x81\x01\x0c\x00\x0a\x0b\x00\x00\x00\x0c\xc4\xff\x67\x00\xbe\x00\x10";
    pub(crate) const KEY_360: &[u8] = b"\x0a\x0b\x00\x00\x00\x0c\xc4\xff\x67\x3e\xfe\x40\x10\x32\x04\x14\x00\x23\x38";

    #[test]
    fn the_sequence_header_tells_the_picture_size() {
        assert_eq!(record_size(RECORD_360), Some((640, 360)));
        let full_hd = b"\x81\x08\x0c\x00\x0a\x0b\x00\x00\x00\x42\xab\xbf\xc3\x70\x0b\xe0\x01";
        assert_eq!(record_size(full_hd), Some((1920, 1080)));
        assert_eq!(record_size(b"\x81\x00\x00\x00"), Some((0, 0)));
        assert_eq!(record_size(b"\x01\x00\x00\x00"), None);
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
