//! A socket with what waits to be written to it.
//!
//! One future, [`Wire::turn`], writes what waits and reads what came, whichever goes first; everything that it has done is
//! in the `Wire`, so it may be dropped at any await and called again.
//!
//! Invariant: bytes leave in the order they were queued, and `queued()` is what the socket has not taken yet. A peer that takes nothing
//! is not read on: what it makes us say is bounded.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that one read takes. Publishers send pictures of some ten kilobytes; one read takes a whole one.
const READ: usize = 128 * 1024;

/// What a peer may say, in bytes, beyond what it takes of ours while something waits for it.
const AHEAD: usize = 64 * 1024;

/// Pieces in one `writev`: a picture, its header and the sound that rides along, and then some.
const PIECES: usize = 32;

thread_local! {
    /// Every connection of a thread reads into the same place: an engine keeps no more of it than a partial message.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// A socket, and the pieces that wait for it.
pub struct Wire<S> {
    socket: S,
    out: VecDeque<Bytes>,
    taken: u64,
    /// The socket took all, and may hold some of it itself: TLS does.
    unflushed: bool,
    /// Bytes read, less bytes written, since nothing waited to be written; not below 0.
    ahead: usize,
}

/// What a turn did.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Bytes came and were handed on.
    Read,
    /// All that was queued is with the socket.
    Flushed,
    /// The peer has closed its side.
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Nothing waits yet.
    pub fn new(socket: S) -> Wire<S> {
        Wire { socket, out: VecDeque::new(), taken: 0, unflushed: false, ahead: 0 }
    }

    /// The socket.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// Where to put what is to be written.
    pub fn out(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.out
    }

    /// Whether something waits to be written.
    pub fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// Bytes that wait to be written.
    pub fn queued(&self) -> usize {
        self.out.iter().map(Bytes::len).sum()
    }

    /// Bytes that the socket has taken since the beginning.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Writes what waits and reads what came; returns after the first of them. `input` gets what came.
    pub async fn turn<E: From<io::Error>>(&mut self, mut input: impl FnMut(&[u8]) -> Result<(), E>) -> Result<Turn, E> {
        poll_fn(|cx| {
            if self.is_idle() && !self.unflushed {
                self.ahead = 0;
            } else if self.poll_flush(cx)?.is_ready() {
                return Poll::Ready(Ok(Turn::Flushed));
            } else if self.ahead > AHEAD {
                return Poll::Pending;
            }
            SCRATCH.with_borrow_mut(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf))?;
                Poll::Ready(match buf.filled() {
                    [] => Ok(Turn::Closed),
                    bytes => {
                        self.ahead += bytes.len();
                        input(bytes).map(|()| Turn::Read)
                    }
                })
            })
        })
        .await
    }

    /// Writes all that waits, and reads nothing.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Writes all that waits, then closes our side; the peer's may still be read.
    pub async fn shut_down(&mut self) -> io::Result<()> {
        self.flush().await?;
        poll_fn(|cx| Pin::new(&mut self.socket).poll_shutdown(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            self.unflushed = true;
            let mut slices = [IoSlice::new(&[]); PIECES];
            let count = self.out.len().min(PIECES);
            for (slice, piece) in slices.iter_mut().zip(&self.out) {
                *slice = IoSlice::new(piece);
            }
            let mut written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += written as u64;
            self.ahead = self.ahead.saturating_sub(written);
            while written > 0 {
                let piece = self.out.front_mut().expect("no more is written than there was");
                let step = written.min(piece.len());
                written -= step;
                match step == piece.len() {
                    true => drop(self.out.pop_front()),
                    false => piece.advance(step),
                }
            }
            // A piece may be empty: a message without a payload.
            while self.out.front().is_some_and(Bytes::is_empty) {
                self.out.pop_front();
            }
        }
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_queued_arrives_whole_and_in_order_through_a_narrow_pipe() {
        let (ours, mut theirs) = tokio::io::duplex(7);
        let mut wire = Wire::new(ours);
        let mut want = Vec::new();
        for n in 0..100u8 {
            let piece = vec![n; usize::from(n) % 23];
            want.extend_from_slice(&piece);
            wire.out().push_back(piece.into());
        }
        let reader = tokio::spawn(async move {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).await.unwrap();
            got
        });
        assert_eq!(wire.turn::<io::Error>(|_| Ok(())).await.unwrap(), Turn::Flushed);
        assert_eq!((wire.queued(), wire.taken()), (0, want.len() as u64));
        wire.shut_down().await.unwrap();
        drop(wire);
        assert_eq!(reader.await.unwrap(), want);
    }

    #[tokio::test]
    async fn it_reads_while_the_peer_takes_nothing() {
        let (ours, mut theirs) = tokio::io::duplex(4);
        let mut wire = Wire::new(ours);
        wire.out().push_back(Bytes::from_static(b"much too long for the pipe"));
        theirs.write_all(b"hi").await.unwrap();
        let mut got = Vec::new();
        let turn = wire.turn::<io::Error>(|bytes| {
            got.extend_from_slice(bytes);
            Ok(())
        });
        let turn = turn.await.unwrap();
        assert_eq!((turn, got.as_slice()), (Turn::Read, &b"hi"[..]));
        drop(theirs);
        assert!(wire.turn::<io::Error>(|_| Ok(())).await.is_err(), "a broken pipe is told");
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_not_read_for_ever() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let mut wire = Wire::new(ours);
        let (flood, mut read) = (vec![1; 16 * AHEAD], 0);
        let sending = tokio::spawn(async move {
            let sent = theirs.write_all(&flood).await.is_ok();
            (theirs, sent)
        });
        let mut read_on = async |wire: &mut Wire<_>| {
            let turn = wire.turn::<io::Error>(|bytes| {
                read += bytes.len();
                Ok(())
            });
            let turn = tokio::time::timeout(std::time::Duration::from_millis(50), turn).await;
            wire.out().push_back(Bytes::from_static(&[2; 100]));
            turn.is_ok()
        };
        while read_on(&mut wire).await {}
        assert!((AHEAD..2 * AHEAD).contains(&read), "{read}");
        assert!(!sending.is_finished());
    }
}
