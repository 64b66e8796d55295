//! What H.264 and H.265 share: NAL units and the parameter sets among them.
//!
//! Invariant: what [`normalize`] returns is whole NAL units, each behind a 4-byte length.

use bytes::{Bytes, BytesMut};

use super::{h264, h265};
use crate::Codec;

/// The NAL units of a frame whose lengths take `length_size` bytes. Ends before one that does not fit.
pub fn nals(mut payload: &[u8], length_size: usize) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (nal, rest) = split(payload, length_size)?;
        payload = rest;
        Some(nal)
    })
}

fn split(payload: &[u8], length_size: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = payload.split_at_checked(length_size)?;
    let length = length.iter().fold(0usize, |n, &byte| n << 8 | usize::from(byte));
    rest.split_at_checked(length)
}

/// A frame with 4-byte lengths, from one with `length_size` (1 to 4); without copying if it has them already.
///
/// What follows the last whole unit is cut off, and units of no bytes, with which some encoders pad, are left out: FFmpeg
/// takes no frame that has one. A frame that does not parse but begins with a start code is Annex B from a publisher that
/// forgot to convert, and is converted. `None` if nothing in it is whole.
pub fn normalize(payload: Bytes, length_size: usize) -> Option<Bytes> {
    let (mut whole, mut padding) = (0, 0);
    for nal in nals(&payload, length_size) {
        whole += length_size + nal.len();
        padding += if nal.is_empty() { length_size } else { 0 };
    }
    // Read as a length, a long start code is a unit of one byte, which no frame begins with;
    // a short one may be a true length.
    let annex_b = payload.starts_with(&[0, 0, 0, 1]) || whole == 0 && payload.starts_with(&[0, 0, 1]);
    if annex_b && whole < payload.len() {
        return Some(from_annex_b(&payload)).filter(|frame| !frame.is_empty());
    }
    if whole == padding {
        return None;
    }
    if length_size == 4 && padding == 0 {
        return Some(payload.slice(..whole));
    }
    Some(join(nals(&payload, length_size).filter(|nal| !nal.is_empty())))
}

/// The frame of `nals`, each behind a 4-byte length.
pub fn join<'a>(nals: impl Iterator<Item = &'a [u8]>) -> Bytes {
    let mut out = BytesMut::new();
    for nal in nals {
        out.extend_from_slice(&(nal.len() as u32).to_be_bytes());
        out.extend_from_slice(nal);
    }
    out.freeze()
}

/// A frame with 4-byte lengths from one with start codes (H.264 and H.265 Annex B).
pub fn from_annex_b(stream: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(stream.len() + 16);
    let mut rest = stream;
    while let Some(start) = start_code(rest) {
        rest = &rest[start + 3..];
        let end = start_code(rest).unwrap_or(rest.len());
        // Zeros before a start code belong to it: no NAL unit ends in a zero byte.
        let nal = without_zeros(&rest[..end]);
        if !nal.is_empty() {
            out.extend_from_slice(&(nal.len() as u32).to_be_bytes());
            out.extend_from_slice(nal);
        }
        rest = &rest[end..];
    }
    out.freeze()
}

/// Where the next `00 00 01` begins.
fn start_code(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, &[0, 0, 1])
}

fn without_zeros(nal: &[u8]) -> &[u8] {
    let end = nal.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    &nal[..end]
}

/// The parameter sets in force, in the order they came, each known by its NAL type and id.
#[derive(Clone, Debug)]
pub struct Sets {
    codec: Codec,
    length_size: usize,
    sets: Vec<(Id, Bytes)>,
}

/// NAL type and id of a parameter set.
pub(super) type Id = (u8, u32);

/// How many sets a stream may have: more than any encoder uses, few enough to fit each record.
const SETS_MAX: usize = 30;

impl Sets {
    /// None yet, of H.264 or H.265 with 4-byte lengths.
    pub fn new(codec: Codec) -> Sets {
        Sets { codec, length_size: 4, sets: Vec::new() }
    }

    /// Those of an `avcC` or `hvcC` record.
    pub fn parse(codec: Codec, record: &[u8]) -> Option<Sets> {
        let mut sets = Sets::new(codec);
        let length_at = record_length_at(codec);
        sets.length_size = usize::from(record.get(length_at)? & 3) + 1;
        let found = match codec {
            Codec::H264 => h264::record_sets(record)?,
            _ => h265::record_sets(record)?,
        };
        for nal in found {
            sets.absorb(nal);
        }
        Some(sets)
    }

    /// Whether the others are the same, in whatever order they came.
    pub(super) fn same(&self, other: &Sets) -> bool {
        self.sets.len() == other.sets.len() && self.sets.iter().all(|set| other.sets.contains(set))
    }

    /// How many bytes a NAL length takes in the frames, as the record said.
    pub fn length_size(&self) -> usize {
        self.length_size
    }

    /// Whether `nal` is a parameter set.
    pub fn has_kind_of(&self, nal: &[u8]) -> bool {
        self.id(nal).is_some()
    }

    /// Takes `nal` in if it is a parameter set; says whether that changed the sets.
    pub fn absorb(&mut self, nal: &[u8]) -> bool {
        let Some(id) = self.id(nal) else { return false };
        match self.sets.iter().position(|(known, _)| *known == id) {
            Some(at) if self.sets[at].1 == nal => return false,
            Some(at) => self.sets[at].1 = Bytes::copy_from_slice(nal),
            None if self.sets.len() >= SETS_MAX => return false,
            None => self.sets.push((id, Bytes::copy_from_slice(nal))),
        }
        true
    }

    /// The sets, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.sets.iter().map(|(_, set)| &**set)
    }

    /// The sets of one NAL type.
    pub(super) fn of(&self, unit: u8) -> impl Iterator<Item = &[u8]> {
        self.sets.iter().filter(move |(id, _)| id.0 == unit).map(|(_, set)| &**set)
    }

    /// The record of these sets, for frames with 4-byte lengths. `None` until each type has been seen.
    pub fn record(&self) -> Option<Bytes> {
        match self.codec {
            Codec::H264 => h264::build_record(self),
            _ => h265::build_record(self),
        }
    }

    /// Picture width and height, if a sequence parameter set tells them.
    pub fn size(&self) -> Option<(u32, u32)> {
        self.iter().find_map(|set| match self.codec {
            Codec::H264 => h264::Sps::parse(set).map(|sps| (sps.width, sps.height)),
            _ => h265::Sps::parse(set).map(|sps| (sps.width, sps.height)),
        })
    }

    /// NAL type and id; `None` for what is no parameter set or too long for a record.
    fn id(&self, nal: &[u8]) -> Option<Id> {
        if nal.len() > usize::from(u16::MAX) {
            return None;
        }
        match self.codec {
            Codec::H264 => h264::set_id(nal),
            _ => h265::set_id(nal),
        }
    }
}

/// The record with its NAL length set to 4 bytes, which [`normalize`] makes true of the frames.
pub(super) fn record_of_four(codec: Codec, record: Bytes) -> Bytes {
    let at = record_length_at(codec);
    match record.get(at) {
        Some(&byte) if byte & 3 != 3 => {
            let mut record = BytesMut::from(record);
            record[at] |= 3;
            record.freeze()
        }
        _ => record,
    }
}

/// Where a record keeps its NAL length size (ISO/IEC 14496-15 §5.3.3.1, §8.3.3.1).
fn record_length_at(codec: Codec) -> usize {
    match codec {
        Codec::H264 => 4,
        _ => 21,
    }
}

/// The first `most` bytes of a NAL unit without their emulation prevention bytes (H.264 §7.4.1.1).
pub(super) fn unescape(nal: &[u8], most: usize) -> Vec<u8> {
    let nal = &nal[..nal.len().min(most)];
    let mut out = Vec::with_capacity(nal.len());
    for (at, &byte) in nal.iter().enumerate() {
        if !(byte == 3 && at >= 2 && nal[at - 2..at] == [0, 0]) {
            out.push(byte);
        }
    }
    out
}

/// Reads `count` NAL units of a decoder configuration record, each behind its length in 16 bits; gives what follows them.
pub(super) fn record_nals<'a>(mut record: &'a [u8], count: u16, nals: &mut Vec<&'a [u8]>) -> Option<&'a [u8]> {
    for _ in 0..count {
        let (nal, rest) = split(record, 2)?;
        nals.push(nal);
        record = rest;
    }
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(payload: &[u8], length_size: usize, want: Option<&[u8]>) {
        let got = normalize(Bytes::copy_from_slice(payload), length_size);
        assert_eq!(got.as_deref(), want, "{payload:x?}");
    }

    #[test]
    fn every_length_size_becomes_four() {
        let four: &[u8] = &[0, 0, 0, 2, 0x65, 9, 0, 0, 0, 1, 0x41];
        check(&[2, 0x65, 9, 1, 0x41], 1, Some(four));
        check(&[0, 2, 0x65, 9, 0, 1, 0x41], 2, Some(four));
        check(&[0, 0, 2, 0x65, 9, 0, 0, 1, 0x41], 3, Some(four));
        check(four, 4, Some(four));
    }

    #[test]
    fn what_is_not_whole_is_cut_off() {
        check(&[0, 0, 0, 2, 0x65, 9, 0, 0, 0, 9, 1], 4, Some(&[0, 0, 0, 2, 0x65, 9]));
        check(&[0, 0, 0, 9, 0x65], 4, None);
        check(&[], 4, None);
    }

    #[test]
    fn padding_is_left_out() {
        check(&[0, 0, 0, 0, 0, 0, 0, 2, 0x65, 9, 0, 0, 0, 0, 0, 0, 0, 0], 4, Some(&[0, 0, 0, 2, 0x65, 9]));
        check(&[0, 1, 0x65, 0, 0], 2, Some(&[0, 0, 0, 1, 0x65]));
        check(&[0, 0, 0, 0], 4, None);
    }

    #[test]
    fn annex_b_sent_by_mistake_is_converted() {
        let stream = [0, 0, 0, 1, 0x67, 7, 0, 0, 0, 1, 0x68, 8, 0, 0, 1, 0x65, 0, 0, 3, 1, 0, 0];
        let want = [0, 0, 0, 2, 0x67, 7, 0, 0, 0, 2, 0x68, 8, 0, 0, 0, 5, 0x65, 0, 0, 3, 1];
        check(&stream, 4, Some(&want));
    }

    #[test]
    fn a_whole_frame_is_not_copied() {
        let payload = Bytes::from_static(&[0, 0, 0, 1, 0x65]);
        assert_eq!(normalize(payload.clone(), 4).unwrap().as_ptr(), payload.as_ptr());
    }
}
