//! Our client publishes to our server over a wire that cuts the bytes anywhere.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bywash_rtmp::{Client, Kind, Message, Server, client, server};

/// Publishes `messages` of `(kind, timestamp, head, payload)` sizes over a wire that cuts by `seed`,
/// in chunks of `chunk_size`; they must arrive byte-identical.
fn check(seed: u64, chunk_size: u32, messages: &[(Kind, u32, usize, usize)]) {
    let mut pair = Pair::new(seed, chunk_size);
    pair.exchange();
    let Some(server::Event::Publish(request)) = pair.server.poll_event() else { panic!("no publish") };
    assert_eq!((&request.app[..], &request.name[..], &request.query[..]), ("app", "stream", "key=value"));
    assert_eq!(request.fourcc, ["hvc1"]);
    pair.server.accept();
    pair.exchange();
    assert_eq!(pair.client.poll_event(), Some(client::Event::Publishing));

    let mut want = Vec::new();
    for &(kind, timestamp, head, payload) in messages {
        let body: Vec<u8> = (0..head + payload).map(|_| pair.random.next() as u8).collect();
        let payload = Bytes::copy_from_slice(&body[head..]);
        pair.client.send(kind, timestamp, &body[..head], &payload, &mut pair.sent);
        want.push(server::Event::Message(Message { kind, timestamp, body: body.into() }));
        pair.exchange();
    }
    pair.client.finish();
    pair.exchange();
    want.push(server::Event::Unpublish);
    let got: Vec<_> = std::iter::from_fn(|| pair.server.poll_event()).collect();
    assert!(got == want, "seed {seed}, chunks of {chunk_size}, {messages:?}");
}

struct Pair {
    client: Client,
    server: Server,
    /// Media on its way to the server.
    sent: VecDeque<Bytes>,
    now: Instant,
    random: Random,
}

impl Pair {
    fn new(seed: u64, chunk_size: u32) -> Pair {
        let now = Instant::now();
        let config = client::Config {
            app: "app".into(),
            stream: "stream?key=value".into(),
            tc_url: "rtmp://127.0.0.1/app".into(),
            fourcc: &["hvc1"],
            chunk_size,
            ..client::Config::default()
        };
        Pair {
            client: Client::new(config, now, seed),
            server: Server::new(server::Config { chunk_size, ..server::Config::default() }, now, seed),
            sent: VecDeque::new(),
            now,
            random: Random(seed),
        }
    }

    /// Carries bytes both ways until there are none.
    fn exchange(&mut self) {
        loop {
            self.now += Duration::from_millis(1);
            let mut up: Vec<u8> = Vec::new();
            while let Some(bytes) = self.client.poll_output() {
                up.extend_from_slice(&bytes);
            }
            self.sent.drain(..).for_each(|it| up.extend_from_slice(&it));
            for piece in self.random.cut(&up) {
                self.server.handle_input(self.now, piece).unwrap();
            }
            let mut down: Vec<u8> = Vec::new();
            while let Some(bytes) = self.server.poll_output() {
                down.extend_from_slice(&bytes);
            }
            for piece in self.random.cut(&down) {
                self.client.handle_input(self.now, piece).unwrap();
            }
            if up.is_empty() && down.is_empty() {
                return;
            }
        }
    }
}

/// Xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Short pieces at first, where headers are, then longer ones.
    fn cut<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let most = if pieces.len() < 40 { 8 } else { 5000 };
            let (piece, rest) = bytes.split_at(bytes.len().min(1 + self.below(most)));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}

#[test]
fn frames_of_any_size_arrive_byte_identical() {
    for seed in 1..20 {
        let mut random = Random(seed);
        let chunk_size = [1, 64, 128, 4096, 60_000, 1 << 24][random.below(6)];
        let mut timestamp = 0;
        let messages: Vec<_> = (0..30)
            .map(|n| {
                timestamp += random.below(50) as u32;
                let kind = [Kind::Audio, Kind::Video, Kind::Data][random.below(3)];
                let most = if n % 10 == 0 && chunk_size > 1 { 200_000 } else { 3000 };
                (kind, timestamp, 1 + random.below(10), random.below(most))
            })
            .collect();
        check(seed, chunk_size, &messages);
    }
}

#[test]
fn timestamps_around_the_24_bit_edge_and_the_wrap_arrive() {
    for (seed, from) in [(1, 0xff_ffff_u32), (2, 0xffff_ffff), (3, 0x7fff_ffff), (4, 0)] {
        for step in [0, 1, 23, 40, 0xff_ffff, 0x100_0000] {
            let messages: Vec<_> =
                (0..6_u32).map(|n| (Kind::Video, from.wrapping_sub(2 * step).wrapping_add(n * step), 5, 300)).collect();
            check(seed, 128, &messages);
        }
    }
}

#[test]
fn a_refusal_reaches_the_client() {
    let mut pair = Pair::new(1, 128);
    pair.exchange();
    pair.server.reject(Instant::now(), "NetStream.Publish.BadName", "already publishing");
    pair.exchange();
    assert_eq!(
        pair.client.poll_event(),
        Some(client::Event::Rejected {
            code: "NetStream.Publish.BadName".into(),
            description: "already publishing".into(),
            class: client::Class::BadName,
        })
    );
}
