//! MP4 that is whole at any moment: written as fragments, finished into an ordinary file by adding tables.
//!
//! ```text
//! offset  being written                       finished
//! 0       ftyp                                ftyp
//! 32      free, 16 bytes                      mdat with a 64-bit size up to F
//! 48      moov (no samples, mvex)             its payload: all that was here before
//!         moof mdat  moof mdat  …
//! F                                           moov (all samples, edit lists)
//! ```
//!
//! Media is written once: finishing adds one box behind it and changes 16 bytes before it. Finishing and repairing
//! are one function, [`finish`], which believes the fragments and nothing else.
//!
//! Invariant: whenever a writer is killed, the file plays up to its last whole fragment. The first 8 bytes of a box that
//! is being added are zeros, which every reader takes for the end, until all of it is there.

mod boxes;
mod finish;
mod fragment;
mod table;

use bytes::Bytes;

pub use self::finish::finish;
use self::fragment::Parts;
pub(super) use self::{
    boxes::{Head, MOVIE_TIMESCALE, fragmented_moov, moov, packet_ticks, rate},
    finish::{read, scan},
    fragment::Fragments,
    table::{Edit, Part, Table},
};
use super::Write;
use crate::{Frame, Tracks};

/// `iso6` is what the unfinished file is, `avc1` what old readers look for.
pub(super) const FTYP: &[u8; 32] = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso6mp41avc1";
/// Becomes the head of the one `mdat`.
const PLACEHOLDER: &[u8; 16] = b"\0\0\0\x10free\0\0\0\0\0\0\0\0";

/// Writes a file as fragments. Tracks are those it began with: a change of codec, parameter sets, rate or size begins a new file,
/// because no form of change within a file plays everywhere.
#[derive(Debug)]
pub struct Writer {
    fragments: Fragments,
    end: u64,
}

impl Writer {
    /// Begins a file. The first of the writes must be whole before any other: repair needs it.
    pub fn new(tracks: &Tracks, out: &mut Vec<Write>) -> Writer {
        let fragments = Fragments::new(tracks);
        let head = [&FTYP[..], PLACEHOLDER, &fragmented_moov(&fragments.heads())].concat();
        let end = head.len() as u64;
        out.extend([Write::At(0, vec![head.into()]), Write::Sync]);
        Writer { fragments, end }
    }

    /// Takes a frame, and writes a fragment now and then. The times of a track must rise; a frame of a track that the file did not
    /// begin with is passed over.
    pub fn push(&mut self, frame: &Frame, out: &mut Vec<Write>) {
        if self.fragments.push(frame) {
            let parts = self.fragments.cut();
            self.commit(parts, out);
        }
    }

    /// Writes what is left. [`finish`] follows.
    pub fn flush(mut self, out: &mut Vec<Write>) {
        let parts = self.fragments.flush();
        self.commit(parts, out);
    }

    fn commit(&mut self, parts: Option<Parts>, out: &mut Vec<Write>) {
        let Some(mut parts) = parts else { return };
        let start = self.end;
        self.end += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let word = withhold(&mut parts);
        out.extend([Write::At(start, parts), Write::Sync, Write::At(start, vec![word])]);
    }
}

/// Puts zeros in the place of the first 8 bytes; gives what was there.
fn withhold(parts: &mut Vec<Bytes>) -> Bytes {
    let word = parts[0].split_to(8);
    parts.insert(0, Bytes::from_static(&[0; 8]));
    word
}
