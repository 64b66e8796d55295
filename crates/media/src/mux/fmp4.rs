//! fMP4 for HLS (RFC 8216 §3.3): one initialization section, and segments of fragments behind it.
//!
//! Invariant: of its track, a segment begins with the frame that was pushed last before [`Writer::cut`], so with a key frame if that
//! was one; and with nothing of the other track that is more than a second older.

use std::io;

use bytes::Bytes;

use super::mp4::{FTYP, Fragments, Head, fragmented_moov, scan};
use super::{Finish, Source};
use crate::{Error, Frame, Tracks};

/// Writes the segments of one initialization section. A change of tracks needs another, behind a discontinuity.
#[derive(Debug)]
pub struct Writer {
    fragments: Fragments,
}

impl Writer {
    /// For a stream with these tracks.
    pub fn new(tracks: &Tracks) -> Writer {
        Writer { fragments: Fragments::new(tracks) }
    }

    /// For a stream with these tracks that goes on behind another: its times are those of the frames, none of which is before zero.
    pub fn going_on(tracks: &Tracks) -> Writer {
        Writer { fragments: Fragments::going_on(tracks) }
    }

    /// The initialization section, for `EXT-X-MAP`.
    pub fn init(&self) -> Bytes {
        [&FTYP[..], &fragmented_moov(&self.fragments.heads())].concat().into()
    }

    /// Takes a frame; appends fragments to `out` now and then, each as a list of parts. The times of a track must rise.
    pub fn push(&mut self, frame: &Frame, out: &mut Vec<Bytes>) {
        if self.fragments.push(frame) {
            out.extend(self.fragments.cut().into_iter().flatten());
        }
    }

    /// Appends the rest of a segment to `out`: everything before the last frame of each track. The next segment begins with these. Of
    /// a track that pauses the last frame ends this one.
    pub fn cut(&mut self, out: &mut Vec<Bytes>) {
        out.extend(self.fragments.end().into_iter().flatten());
    }

    /// Appends all that is left to `out`: the end of the last segment.
    pub fn flush(mut self, out: &mut Vec<Bytes>) {
        out.extend(self.fragments.flush().into_iter().flatten());
    }
}

/// What makes a torn segment whole: the cut behind its last whole fragment. `None` if there is none.
pub fn finish<S: Source + ?Sized>(init: &[u8], segment: &S) -> io::Result<Option<Finish>> {
    let heads = heads(init).ok_or_else(|| io::Error::other(Error::Malformed("initialization section")))?;
    let scan = scan(segment, 0, Some(heads))?;
    Ok(Finish::cut(segment.size(), scan.end, scan.duration()))
}

/// The tracks that an initialization section tells.
fn heads(init: &[u8]) -> Option<Vec<Head>> {
    let moov = init.get(FTYP.len()..)?;
    Head::parse_all(moov.get(8..)?).filter(|heads| &moov[4..8] == b"moov" && !heads.is_empty())
}
