//! MP3 files: the packets of a track, one behind the other.
//!
//! There is no `Xing` frame: players estimate from the bit rate, and no count can be wrong after a crash.

use std::io;

use super::{Finish, Packet, Source, last_whole};
use crate::codec::mp3::Header;

/// What makes a torn file whole: the cut behind its last whole frame. `None` if there is none.
pub fn finish<S: Source + ?Sized>(file: &S) -> io::Result<Option<Finish>> {
    last_whole(file, 4, |head| {
        let Header { sample_rate, samples, len, .. } = Header::parse(head)?;
        (len > 4).then_some(Packet { len: len.into(), samples: samples.into(), sample_rate })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_file_is_cut_behind_its_last_whole_frame() {
        let frame = |padded: bool| {
            let mut frame = vec![0; if padded { 418 } else { 417 }];
            frame[..4].copy_from_slice(&[0xff, 0xfb, if padded { 0x92 } else { 0x90 }, 0x44]);
            frame
        };
        let file = [frame(false), frame(true), frame(true)].concat();
        let check = |cut: usize, want: Option<(u64, i64)>| {
            let got = finish(&file[..cut]).unwrap().map(|it| (it.len, it.duration.as_ticks(44_100)));
            assert_eq!(got, want, "{cut}");
        };
        check(416, None);
        check(417, Some((417, 1152)));
        check(834, Some((417, 1152)));
        check(835, Some((835, 2304)));
        check(file.len(), Some((1253, 3456)));
    }
}
