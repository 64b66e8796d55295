//! What must hold for RTMP parsers on any bytes at all.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use bywash_rtmp::amf::{self, Value};
use bywash_rtmp::chunk::{Limits, Raw, Reader};
use bywash_rtmp::{Client, Error, Kind, Server, client, handshake, server};

/// A server that accepts everything. The first byte says how the rest is cut, and whether it
/// begins with a handshake of its own.
pub fn server(data: &[u8]) {
    let now = Instant::now();
    let mut server = Server::new(server::Config::default(), now, 1);
    let mut out = VecDeque::new();
    for piece in pieces(data) {
        let result = server.handle_input(now, &piece);
        while let Some(event) = server.poll_event() {
            if matches!(event, server::Event::Publish(_) | server::Event::Play(_)) {
                server.accept();
            }
        }
        server.send(Kind::Video, 0, b"head", &Bytes::from_static(b"payload"), &mut out);
        while server.poll_output().is_some() {}
        if result.is_err() {
            return;
        }
    }
    server.end_play(now);
    if let Some(at) = server.poll_timeout() {
        let _ = server.handle_timeout(at);
    }
}

/// A client against a server that says anything.
pub fn client(data: &[u8]) {
    let now = Instant::now();
    let mut client = Client::new(client::Config::default(), now, 1);
    let mut out = VecDeque::new();
    for piece in pieces(data) {
        let result = client.handle_input(now, &piece);
        while client.poll_event().is_some() {}
        client.send(Kind::Video, 0, b"head", &Bytes::from_static(b"payload"), &mut out);
        while client.poll_output().is_some() {}
        if result.is_err() {
            return;
        }
    }
    client.finish();
}

/// The same messages and the same error for any split.
pub fn chunk(data: &[u8]) {
    let whole = read(data, data.len().max(1));
    assert_eq!(whole, read(data, 1));
    assert_eq!(whole, read(data, 7));
}

/// Not a byte more or less than a handshake is taken, on either side.
pub fn handshake(data: &[u8]) {
    for step in [1, 1000, data.len().max(1)] {
        let mut output = VecDeque::new();
        let mut server = handshake::Server::new(1);
        let mut client = handshake::Client::new(1, &mut output);
        exact(data, step, |input| server.read(input, &mut output));
        exact(data, step, |input| client.read(input, &mut output));
    }
}

/// What was read is written in a form that reads the same.
pub fn amf(data: &[u8]) {
    let values: Vec<Value> = amf::decode(data).map_while(Result::ok).collect();
    let encoded = amf::encode(&values);
    let again: Result<Vec<Value>, Error> = amf::decode(&encoded).collect();
    // Bytes are compared, for a NaN is not equal to itself.
    assert_eq!(amf::encode(&again.expect("what we write we read")), encoded);
}

fn pieces(data: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let (mode, rest) = data.split_first().unwrap_or((&0, &[]));
    let greeting = match mode & 1 {
        0 => [&[3][..], &[0; 3072]].concat(),
        _ => Vec::new(),
    };
    let step = 1 + (*mode as usize >> 1) * 20;
    std::iter::once(greeting).chain(rest.chunks(step).map(<[u8]>::to_vec))
}

fn read(data: &[u8], step: usize) -> (Vec<Raw>, Result<(), Error>) {
    let mut reader = Reader::new(Limits { message: 100_000, unfinished: 150_000, streams: 8 });
    let mut got = Vec::new();
    for mut piece in data.chunks(step) {
        loop {
            match reader.read(&mut piece) {
                Ok(Some(raw)) => got.push(raw),
                Ok(None) => break,
                Err(e) => return (got, Err(e)),
            }
        }
        assert!(piece.is_empty());
    }
    (got, Ok(()))
}

fn exact(data: &[u8], step: usize, mut read: impl FnMut(&mut &[u8]) -> Result<bool, Error>) {
    let mut taken = 0;
    for piece in data.chunks(step) {
        let mut rest = piece;
        let Ok(done) = read(&mut rest) else { return };
        taken += piece.len() - rest.len();
        assert_eq!(done, taken == 3073);
        if done {
            return;
        }
        assert!(rest.is_empty());
    }
}
