//! RFC 4571: a datagram over TCP is its length in 16 bits and its bytes.
//!
//! Invariant: no more than one datagram of [`DATAGRAM_MAX`] is ever waited for.

use bytes::{Buf, Bytes, BytesMut};

/// The longest datagram that WebRTC sends, with room to spare.
pub const DATAGRAM_MAX: usize = 4096;

/// The peer sends something else than framed WebRTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a datagram of {0} bytes")]
pub struct TooLong(pub usize);

/// The next whole datagram of what has come in.
pub fn take(input: &mut BytesMut) -> Result<Option<Bytes>, TooLong> {
    let Some(length) = input.first_chunk::<2>().map(|it| usize::from(u16::from_be_bytes(*it))) else {
        return Ok(None);
    };
    if length > DATAGRAM_MAX {
        return Err(TooLong(length));
    }
    if input.len() < 2 + length {
        return Ok(None);
    }
    input.advance(2);
    Ok(Some(input.split_to(length).freeze()))
}

/// The head of a datagram of `length` bytes.
pub fn head(length: usize) -> [u8; 2] {
    (length.min(DATAGRAM_MAX) as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in pieces of every size; says which datagrams come out.
    fn check(input: &[u8], want: Result<&[&[u8]], TooLong>) {
        for piece in 1..=input.len() {
            let mut buffer = BytesMut::new();
            let mut got = Vec::new();
            let read = input.chunks(piece).try_for_each(|part| {
                buffer.extend_from_slice(part);
                while let Some(datagram) = take(&mut buffer)? {
                    got.push(datagram);
                }
                Ok(())
            });
            let got: Vec<&[u8]> = got.iter().map(|it| &it[..]).collect();
            assert_eq!(read.map(|()| &got[..]), want, "in pieces of {piece}");
        }
    }

    #[test]
    fn datagrams_come_out_as_they_went_in_however_tcp_cuts_them() {
        check(&[0, 1, 7, 0, 0, 0, 2, 8, 9, 0, 3, 1], Ok(&[&[7], &[], &[8, 9]]));
    }

    #[test]
    fn what_is_no_webrtc_is_refused_at_its_length() {
        check(b"GET / HTTP/1.1\r\n", Err(TooLong(0x4745)));
    }
}
