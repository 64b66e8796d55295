//! The bodies of the fuzz targets on real sessions with some bytes changed: nothing panics, and
//! what they assert holds.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use bywash_rtmp::{Client, Kind, Server, amf, client, server};
use proptest::prelude::*;

#[path = "../../../fuzz/src/rtmp.rs"]
mod target;

/// All bytes of a publish, those of the client and those of the server.
fn session() -> (Vec<u8>, Vec<u8>) {
    let now = Instant::now();
    let config = client::Config { stream: "s?k=v".into(), chunk_size: 200, ..client::Config::default() };
    let mut client = Client::new(config, now, 1);
    let mut server = Server::new(server::Config::default(), now, 2);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut sent = VecDeque::new();
    loop {
        let mut moved = false;
        while let Some(bytes) = client.poll_output().or_else(|| sent.pop_front()) {
            server.handle_input(now, &bytes).unwrap();
            up.extend_from_slice(&bytes);
            moved = true;
        }
        while let Some(event) = server.poll_event() {
            if let server::Event::Publish(_) = event {
                server.accept();
            }
        }
        while let Some(bytes) = server.poll_output() {
            client.handle_input(now, &bytes).unwrap();
            down.extend_from_slice(&bytes);
            moved = true;
        }
        if client.poll_event() == Some(client::Event::Publishing) {
            for (kind, timestamp) in [(Kind::Data, 0), (Kind::Video, 0xff_fff0), (Kind::Audio, 0x100_0000)] {
                let payload = Bytes::from(vec![2; 500]);
                client.send(kind, timestamp, b"head", &payload, &mut sent);
                client.send(kind, timestamp + 40, b"head", &payload, &mut sent);
            }
        } else if !moved {
            return (up, down);
        }
    }
}

/// `bytes` with edits of `(place, value, how)`: a byte is changed, put in or taken out.
fn edited(bytes: &[u8], edits: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (place, value, how) in edits {
        match how {
            _ if bytes.is_empty() => bytes.push(*value),
            0 => bytes.insert(place.index(bytes.len()), *value),
            1 => drop(bytes.remove(place.index(bytes.len()))),
            _ => {
                let at = place.index(bytes.len());
                bytes[at] = *value;
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_input_makes_an_engine_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..6_u8), 0..6),
        mode: u8,
    ) {
        let (up, down) = session();
        // Behind the handshake is where the parsers are.
        let (up_greeting, up_chunks) = up.split_at(3073);
        let (down_greeting, down_chunks) = down.split_at(3073);
        let (up_chunks, down_chunks) = (edited(up_chunks, &edits), edited(down_chunks, &edits));
        target::server(&[&[mode & !1], &up_chunks[..]].concat());
        target::client(&[&[mode & !1], &down_chunks[..]].concat());
        target::server(&[&[mode | 1], up_greeting, &up_chunks].concat());
        target::client(&[&[mode | 1], down_greeting, &down_chunks].concat());
        target::chunk(&up_chunks);
        target::chunk(&down_chunks);
        target::handshake(&edited(&up, &edits));

        let object = amf::object([("a", 1.0.into()), ("b", amf::Value::StrictArray(vec!["c".into()]))]);
        let values = [object, amf::Value::EcmaArray(vec![("d".into(), amf::Value::Null)]), "e".into()];
        target::amf(&edited(&amf::encode(&values), &edits));
    }

    #[test]
    fn noise_is_refused_in_peace(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        target::server(&noise);
        target::client(&noise);
        target::chunk(&noise);
        target::handshake(&noise);
        target::amf(&noise);
    }
}
