//! Containers: reader and writer of each as mirror halves.
//!
//! A recording is written as it goes and finished once, after its last frame or after a crash alike: `finish` of each
//! format reads what is on disk, never what a writer remembers, and says what to change.
//!
//! Invariant: nothing here touches a file. A caller carries out [`Write`]s, in their order, and answers [`Source`].

use std::io;

use bytes::Bytes;

use crate::Time;

pub mod adts;
mod clock;
pub mod flv;
pub mod fmp4;
pub mod merge;
pub mod mp3;
pub mod mp4;
mod parts;
pub mod ts;

pub use self::clock::Clock;
pub use self::parts::Parts;

/// One change to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts these bytes, one part behind the other, at this offset. It may be the file's end.
    At(u64, Vec<Bytes>),
    /// What was written before is on the disk before what comes after. Only power loss needs it: a process that is
    /// killed leaves all its writes to the kernel.
    Sync,
    /// Cuts the file to this length.
    Truncate(u64),
}

/// A file that can be read anywhere.
pub trait Source {
    /// How long the file is, in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` with what the file has from `at` on; an error if it ends before that.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl Source for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let rest = usize::try_from(at).ok().and_then(|at| self.get(at..));
        let found = rest.and_then(|rest| rest.get(..buf.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(found);
        Ok(())
    }
}

/// What makes a file whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// The changes. None if the file is whole already. Killed among them, the file can be finished again, to the same bytes.
    pub writes: Vec<Write>,
    /// How long the file is afterwards, in bytes.
    pub len: u64,
    /// How long it plays.
    pub duration: Time,
}

impl Finish {
    /// Of a file of `size` bytes that only needs to lose what follows its first `len`; `None` if nothing is left.
    fn cut(size: u64, len: u64, duration: Time) -> Option<Finish> {
        let writes = if len < size { vec![Write::Truncate(len)] } else { Vec::new() };
        (len > 0).then_some(Finish { writes, len, duration })
    }
}

/// What a frame of a file without index says of itself.
struct Packet {
    /// Bytes, its header included.
    len: usize,
    samples: u32,
    sample_rate: u32,
}

/// The end of the last whole frame of a file that is nothing but frames, `head` bytes of which tell what [`Packet`] they are of.
fn last_whole<S: Source + ?Sized>(
    file: &S,
    head: usize,
    mut parse: impl FnMut(&[u8]) -> Option<Packet>,
) -> io::Result<Option<Finish>> {
    const WINDOW: u64 = 1 << 16;
    let size = file.size();
    let mut window = Vec::new();
    let (mut start, mut at, mut duration) = (0, 0, Time::ZERO);
    // Samples are counted apart for each rate, so that rounding does not add up.
    let (mut samples, mut rate) = (0i64, 1);
    while at + head as u64 <= size {
        if at + head as u64 > start + window.len() as u64 {
            start = at;
            window.resize(WINDOW.min(size - at) as usize, 0);
            file.read_at(start, &mut window)?;
        }
        let Some(packet) = parse(&window[(at - start) as usize..]) else { break };
        if at + packet.len as u64 > size {
            break;
        }
        if packet.sample_rate != rate {
            duration = duration + Time::from_ticks(samples, rate);
            (samples, rate) = (0, packet.sample_rate);
        }
        samples += i64::from(packet.samples);
        at += packet.len as u64;
    }
    Ok(Finish::cut(size, at, duration + Time::from_ticks(samples, rate)))
}
