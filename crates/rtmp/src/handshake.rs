//! The opening exchange (spec 5.2), in its simple form and in the digest form of Flash Player 9.
//!
//! Wire: C0 (version) C1 (1536 bytes) C2 (1536), and S0 S1 S2 the other way. In the digest form C1
//! and S1 carry an HMAC over themselves at a place that they say, and S2 ends in one over C1's. It
//! proves nothing, since the keys are public, but Flash-era clients hang up without it.
//!
//! Invariant: exactly 3073 bytes are taken from the input and the rest is left for the chunk reader.

use std::collections::VecDeque;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::Error;

/// The answering side. A peer's C2 is not verified: every server tolerates a wrong one, and some
/// encoders send one.
pub struct Server {
    input: Input,
    random: Random,
}

impl Server {
    /// `seed` makes the random bytes of S1 and S2.
    pub fn new(seed: u64) -> Server {
        Server { input: Input::default(), random: Random(seed) }
    }

    /// Takes what it needs from `input` and puts the answer to `output`; true once finished.
    pub fn read(&mut self, input: &mut &[u8], output: &mut VecDeque<Bytes>) -> Result<bool, Error> {
        let Some(c1) = self.input.fill(input)? else {
            return Ok(self.input.is_full());
        };
        let mut answer = vec![VERSION; 1 + 2 * SIZE];
        self.random.fill(&mut answer[1..]);
        let (s1, s2) = answer[1..].split_at_mut(SIZE);
        match find_digest(c1, PLAYER_KEY) {
            Some((schema, digest)) => {
                s1[..8].copy_from_slice(b"\0\0\0\0\x04\x05\0\x01");
                sign(s1, schema, &SERVER_KEY[..36]);
                let (body, proof) = s2.split_at_mut(SIZE - DIGEST);
                proof.copy_from_slice(&hmac(&hmac(SERVER_KEY, &[&digest]), &[body]));
            }
            None => {
                s1[..8].fill(0);
                s2.copy_from_slice(c1);
            }
        }
        output.push_back(answer.into());
        self.input.done();
        self.read(input, output)
    }
}

/// The calling side. It sends the simple form, as OBS does, which every server accepts, and takes
/// an answer of either form.
pub struct Client {
    input: Input,
}

impl Client {
    /// Puts C0 and C1 to `output`; `seed` makes their random bytes.
    pub fn new(seed: u64, output: &mut VecDeque<Bytes>) -> Client {
        let mut hello = vec![VERSION; 1 + SIZE];
        hello[1..9].fill(0);
        Random(seed).fill(&mut hello[9..]);
        output.push_back(hello.into());
        Client { input: Input::default() }
    }

    /// Takes what it needs from `input` and puts the answer to `output`; true once finished.
    pub fn read(&mut self, input: &mut &[u8], output: &mut VecDeque<Bytes>) -> Result<bool, Error> {
        if let Some(s1) = self.input.fill(input)? {
            output.push_back(Bytes::copy_from_slice(s1));
            self.input.done();
            self.input.fill(input)?;
        }
        Ok(self.input.is_full())
    }
}

/// What another protocol's first byte says about the peer, for the text of the error.
pub(crate) fn guess(byte: u8) -> &'static str {
    match byte {
        0x06 | 0x08 => ", encrypted rtmpe is not supported",
        0x16 | 0x80 => ", the peer speaks tls to the plain port",
        b'A'..=b'Z' => ", the peer seems to speak http",
        b'<' => ", the peer asks for a flash policy file",
        _ => "",
    }
}

const VERSION: u8 = 3;
const SIZE: usize = 1536;
const DIGEST: usize = 32;

/// What comes in: version and first packet, which are kept, then a second one, which is only counted.
#[derive(Default)]
struct Input {
    versioned: bool,
    first: Vec<u8>,
    answered: bool,
    second: usize,
}

impl Input {
    /// The first packet once it is complete and until it is answered.
    fn fill(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, Error> {
        if !self.versioned {
            match take(input, 1) {
                [] => return Ok(None),
                [VERSION] => self.versioned = true,
                [other, ..] => return Err(Error::Version(*other)),
            }
        }
        if self.answered {
            self.second += take(input, SIZE - self.second).len();
            return Ok(None);
        }
        self.first.extend_from_slice(take(input, SIZE - self.first.len()));
        Ok((self.first.len() == SIZE).then_some(&self.first))
    }

    fn done(&mut self) {
        self.answered = true;
        self.first = Vec::new();
    }

    fn is_full(&self) -> bool {
        self.second == SIZE
    }
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (head, rest) = input.split_at(len.min(input.len()));
    *input = rest;
    head
}

/// Where the four bytes are that say where the digest is: two layouts of the same packet exist,
/// the second one since Flash Player 10.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Schema {
    At8 = 8,
    At772 = 772,
}

fn find_digest(packet: &[u8], key: &[u8]) -> Option<(Schema, [u8; DIGEST])> {
    [Schema::At8, Schema::At772].into_iter().find_map(|schema| {
        let digest = digest(packet, schema, key);
        let at = digest_at(packet, schema);
        (packet[at..at + DIGEST] == digest).then_some((schema, digest))
    })
}

fn sign(packet: &mut [u8], schema: Schema, key: &[u8]) {
    let at = digest_at(packet, schema);
    let digest = digest(packet, schema, key);
    packet[at..at + DIGEST].copy_from_slice(&digest);
}

fn digest(packet: &[u8], schema: Schema, key: &[u8]) -> [u8; DIGEST] {
    let at = digest_at(packet, schema);
    hmac(key, &[&packet[..at], &packet[at + DIGEST..]])
}

/// At most 772 + 4 + 727, so the digest ends within the packet.
fn digest_at(packet: &[u8], schema: Schema) -> usize {
    let at = schema as usize;
    let sum: usize = packet[at..at + 4].iter().map(|&b| b as usize).sum();
    at + 4 + sum % 728
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; DIGEST] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|it| mac.update(it));
    mac.finalize().into_bytes().into()
}

/// SplitMix64: the bytes only have to differ between connections.
struct Random(u64);

impl Random {
    fn fill(&mut self, out: &mut [u8]) {
        for word in out.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..word.len()]);
        }
    }
}

/// Its first 36 bytes sign S1, all of it makes the key of S2's proof.
const SERVER_KEY: &[u8; 68] = b"Genuine Adobe Flash Media Server 001\
    \xf0\xee\xc2\x4a\x80\x68\xbe\xe8\x2e\x00\xd0\xd1\x02\x9e\x7e\x57\
    \x6e\xec\x5d\x2d\x29\x80\x6f\xab\x93\xb8\xe6\x36\xcf\xeb\x31\xae";

/// Signs C1.
const PLAYER_KEY: &[u8; 30] = b"Genuine Adobe Flash Player 001";

#[cfg(test)]
mod tests {
    use super::*;

    /// A C0 C1 C2 of the given form with one byte of what follows, fed in pieces of `step` bytes;
    /// says what form the answer has.
    fn check(schema: Option<Schema>, step: usize, want: &str) {
        let mut hello = vec![VERSION; 1 + 2 * SIZE + 1];
        Random(7).fill(&mut hello[1..]);
        match schema {
            Some(schema) => sign(&mut hello[1..1 + SIZE], schema, PLAYER_KEY),
            None => hello[1..9].fill(0),
        }
        let (mut server, mut output) = (Server::new(1), VecDeque::new());
        let (mut done, mut left) = (false, 0);
        for piece in hello.chunks(step) {
            let mut piece = piece;
            if !done {
                done = server.read(&mut piece, &mut output).unwrap();
            }
            left += piece.len();
        }
        assert!(done && left == 1, "exactly the handshake is taken");

        let answer = output.pop_front().unwrap();
        assert_eq!((answer.len(), answer[0], output.len()), (1 + 2 * SIZE, VERSION, 0));
        let (s1, s2) = answer[1..].split_at(SIZE);
        let got = match find_digest(s1, &SERVER_KEY[..36]) {
            Some((schema, _)) => {
                let (_, c1_digest) = find_digest(&hello[1..1 + SIZE], PLAYER_KEY).unwrap();
                let key = hmac(SERVER_KEY, &[&c1_digest]);
                assert_eq!(s2[SIZE - DIGEST..], hmac(&key, &[&s2[..SIZE - DIGEST]]));
                format!("{schema:?}")
            }
            None => {
                assert_eq!(s2, &hello[1..1 + SIZE], "S2 echoes C1");
                "simple".to_owned()
            }
        };
        assert_eq!(got, want);
    }

    #[test]
    fn each_client_is_answered_in_its_own_form() {
        for step in [1, 7, 1536, 1537, 4000] {
            check(None, step, "simple");
            check(Some(Schema::At8), step, "At8");
            check(Some(Schema::At772), step, "At772");
        }
    }

    #[test]
    fn another_protocol_is_named() {
        for (byte, want) in [
            (0x16, "not rtmp: first byte is 0x16, the peer speaks tls to the plain port"),
            (b'G', "not rtmp: first byte is 0x47, the peer seems to speak http"),
            (6, "not rtmp: first byte is 0x06, encrypted rtmpe is not supported"),
            (0, "not rtmp: first byte is 0x00"),
        ] {
            let got = Server::new(0).read(&mut &[byte][..], &mut VecDeque::new()).unwrap_err();
            assert_eq!(got.to_string(), want);
        }
    }

    #[test]
    fn client_and_server_agree_at_any_split() {
        for step in [1, 100, 5000] {
            let (mut to_server, mut to_client) = (VecDeque::new(), VecDeque::new());
            let mut client = Client::new(1, &mut to_server);
            let mut server = Server::new(2);
            let (mut a, mut b) = (false, false);
            while let Some(bytes) = to_server.pop_front() {
                for mut piece in bytes.chunks(step) {
                    b |= server.read(&mut piece, &mut to_client).unwrap();
                }
                while let Some(bytes) = to_client.pop_front() {
                    for mut piece in bytes.chunks(step) {
                        a |= client.read(&mut piece, &mut to_server).unwrap();
                    }
                }
            }
            assert!(a && b);
        }
    }
}
