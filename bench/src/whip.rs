//! A WHIP stream that is relayed with its sound as AAC, and the parts that nobody could leave out, measured alone: what they take of a
//! thread, in milliseconds for each second of the stream.

use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use bywash_media::transcode::{CHANNELS, Feed, RATE, decoder, encoder};
use bywash_media::{Codec, Track};
use bywash_testkit::publisher::Pace;
use serde_json::{Value, json};
use str0m::crypto::from_feature_flags;

/// Bytes of a packet of pictures.
const PACKET: usize = 1_150;

/// Seconds of media that each part is given.
const SECONDS: usize = 5;

/// How often its packets are decrypted.
const SRTP_TIMES: u32 = 100;

/// Packets of Opus, 20 ms each, of something between music and speech.
pub fn opus() -> (Track, Vec<Vec<u8>>) {
    let encoder = encoder(Codec::Opus, 96_000).expect("every build has it");
    let (track, mut feed, mut packets) = (encoder.track(), Feed::new(encoder), Vec::new());
    let sample = |n: usize| {
        let at = n as f32 / RATE as f32;
        let swell = 0.6 + 0.4 * (at * 27.0).sin();
        0.2 * swell
            * [220.0, 277.0, 330.0, 880.0].map(|hz: f32| (at * hz * std::f32::consts::TAU).sin()).iter().sum::<f32>()
    };
    let pcm: Vec<f32> = (0..SECONDS * RATE as usize).flat_map(|n| [sample(n); CHANNELS]).collect();
    feed.push(&pcm, &mut packets);
    (track, packets.iter().map(|it| it.to_vec()).collect())
}

/// The parts, by the names of the report.
pub fn bare() -> Value {
    let (track, packets) = opus();
    // A thread's clock ticks in milliseconds: one time is too short for it.
    let srtp = cost(|| (0..SRTP_TIMES).for_each(|_| srtp(packets.len()))) / f64::from(SRTP_TIMES);
    let mut pcm = Vec::new();
    let opus = cost(|| {
        let mut decoder = decoder(&track).expect("it is Opus");
        packets.iter().for_each(|packet| decoder.decode(packet, &mut pcm).expect("a packet of ours"));
    });
    let aac = cost(|| {
        let (mut feed, mut out) = (Feed::new(encoder(Codec::Aac, 128_000).expect("a default build")), Vec::new());
        pcm.chunks(960 * CHANNELS).for_each(|pcm| feed.push(pcm, &mut out));
        black_box(out);
    });
    let sockets = sockets();
    json!({ "srtp_ms": srtp, "opus_ms": opus, "aac_ms": aac, "sockets_ms": sockets, "bare_ms": srtp + opus + aac + sockets })
}

/// Milliseconds of this thread for each second of media.
fn cost(work: impl FnOnce()) -> f64 {
    let begin = used();
    work();
    (used() - begin) / SECONDS as f64
}

/// What this thread has used, kernel and all, in milliseconds.
fn used() -> f64 {
    // The count is brought up to date at the kernel's ticks, of 4 ms, and when a thread gives way.
    thread::yield_now();
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0) / 1e6
}

/// Opens as many packets as the stream has.
fn srtp(packets_of_sound: usize) {
    let aead = from_feature_flags().srtp_provider.aead_aes_128_gcm();
    let (mut seal, mut open) = (aead.create_cipher([7; 16], true), aead.create_cipher([7; 16], false));
    let (iv, header) = ([1; 12], [2; 20]);
    let mut packet = |size: usize| {
        let (plain, mut sealed) = (vec![3; size], vec![0; size + 16]);
        seal.encrypt(&iv, &header, &plain, &mut sealed).expect("it seals");
        (sealed, plain)
    };
    let (pictures, sound) = (packet(PACKET), packet(240));
    for (count, (sealed, mut plain)) in [(packets_of_pictures() * SECONDS, pictures), (packets_of_sound, sound)] {
        for _ in 0..count {
            open.decrypt(&iv, &[&header], &sealed, &mut plain).expect("it opens");
            black_box(&plain);
        }
    }
}

/// In a second.
fn packets_of_pictures() -> usize {
    let pace = Pace::FULL;
    let (rate, group) = (pace.frame_rate as usize, pace.group as usize);
    let of = |bytes: usize| bytes.div_ceil(PACKET);
    (of(pace.picture) * (group - 1) + of(6 * pace.picture)) * rate / group
}

/// Takes a stream's packets from a socket as they come and writes its messages to another, in real time; nothing else.
fn sockets() -> f64 {
    let (from, to) =
        (UdpSocket::bind("127.0.0.1:0").expect("a socket"), UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    from.connect(to.local_addr().expect("it is bound")).expect("loopback");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let mut out = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("loopback");
    let (mut drain, _) = listener.accept().expect("loopback");
    let draining = thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while drain.read(&mut buffer).is_ok_and(|read| read > 0) {}
    });
    let sending = thread::spawn(move || {
        let (begin, packet) = (Instant::now(), [5; PACKET]);
        let pace = Pace::FULL;
        let each = (packets_of_pictures() / pace.frame_rate as usize) as u32;
        // A picture's packets come together, and sound between.
        let pictures = (0..SECONDS as u32 * pace.frame_rate).map(|n| (n * 1_000_000 / pace.frame_rate, each));
        let sound = (0..SECONDS as u32 * 50).map(|n| (n * 20_000, 0));
        let mut all: Vec<_> = pictures.chain(sound).collect();
        all.sort_unstable();
        for (due, count) in all {
            thread::sleep((begin + Duration::from_micros(due.into())).saturating_duration_since(Instant::now()));
            (0..count).for_each(|_| drop(from.send(&packet)));
            if count == 0 {
                let _ = from.send(&packet[..240]);
            }
        }
        let _ = from.send(&[]);
    });
    let cost = cost(|| {
        let (mut datagram, mut picture, mut taken) = ([0; 2048], vec![0; Pace::FULL.picture], 0);
        let each = packets_of_pictures() / Pace::FULL.frame_rate as usize;
        while let Ok(length @ 1..) = to.recv(&mut datagram) {
            taken += usize::from(length == PACKET);
            // What has come of the sound goes with the picture.
            if taken == each {
                taken = 0;
                picture[0] = datagram[0];
                out.write_all(&picture).expect("it is drained");
            }
        }
    });
    drop(out);
    sending.join().expect("it does not panic");
    draining.join().expect("it does not panic");
    cost
}
