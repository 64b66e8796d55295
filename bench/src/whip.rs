//! A WHIP stream that is relayed with its sound as AAC, and the parts that nobody could leave out, measured alone: what they take of a
//! thread, in milliseconds for each second of the stream. Once each by itself, the sockets in real time and the rest in one go; and once all
//! four as the packets come, which is what a program would cost that did nothing else.

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
use str0m::crypto::{AeadAes128GcmCipher, from_feature_flags};

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
    let sockets = in_real_time(&[5; PACKET], &vec![vec![5; 240]; packets.len()], |_| ());
    let (mut seal, mut open) = ciphers();
    let picture = sealed(&mut *seal, &[3; PACKET]);
    let sound: Vec<_> = packets.iter().map(|packet| sealed(&mut *seal, packet)).collect();
    let (mut decoder, mut plain, mut pcm, mut out) =
        (decoder(&track).expect("it is Opus"), Vec::new(), Vec::new(), Vec::new());
    let mut feed = Feed::new(encoder(Codec::Aac, 128_000).expect("a default build"));
    let real_time = in_real_time(&picture, &sound, |datagram| {
        plain.resize(datagram.len() - TAG, 0);
        open.decrypt(&IV, &[&HEADER], datagram, &mut plain).expect("it opens");
        if plain.len() < PACKET {
            pcm.clear();
            out.clear();
            decoder.decode(&plain, &mut pcm).expect("a packet of ours");
            feed.push(&pcm, &mut out);
        }
    });
    json!({
        "srtp_ms": srtp, "opus_ms": opus, "aac_ms": aac, "sockets_ms": sockets, "bare_ms": srtp + opus + aac + sockets,
        "real_time_ms": real_time,
    })
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

/// What SRTP adds to a packet, and what this one is encrypted with.
const TAG: usize = 16;
const IV: [u8; 12] = [1; 12];
const HEADER: [u8; 20] = [2; 20];

type Cipher = Box<dyn AeadAes128GcmCipher>;

/// Which seals, and which opens.
fn ciphers() -> (Cipher, Cipher) {
    let aead = from_feature_flags().srtp_provider.aead_aes_128_gcm();
    (aead.create_cipher([7; 16], true), aead.create_cipher([7; 16], false))
}

fn sealed(seal: &mut dyn AeadAes128GcmCipher, plain: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; plain.len() + TAG];
    seal.encrypt(&IV, &HEADER, plain, &mut sealed).expect("it seals");
    sealed
}

/// Opens as many packets as the stream has.
fn srtp(packets_of_sound: usize) {
    let (mut seal, mut open) = ciphers();
    let mut packet = |size: usize| (sealed(&mut *seal, &vec![3; size]), vec![0; size]);
    let (pictures, sound) = (packet(PACKET), packet(240));
    for (count, (sealed, mut plain)) in [(packets_of_pictures() * SECONDS, pictures), (packets_of_sound, sound)] {
        for _ in 0..count {
            open.decrypt(&IV, &[&HEADER], &sealed, &mut plain).expect("it opens");
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

/// Takes a stream's packets from a socket as they come, does to each what is to be done, and writes its messages to another.
fn in_real_time(picture: &[u8], sound: &[Vec<u8>], mut work: impl FnMut(&[u8])) -> f64 {
    let (from, to) =
        (UdpSocket::bind("127.0.0.1:0").expect("a socket"), UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    from.connect(to.local_addr().expect("it is bound")).expect("loopback");
    // The last packet may be lost where this thread stood still for long.
    to.set_read_timeout(Some(Duration::from_secs(1))).expect("a second");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let mut out = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("loopback");
    let (mut drain, _) = listener.accept().expect("loopback");
    let each = packets_of_pictures() / Pace::FULL.frame_rate as usize;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; 64 << 10];
            while drain.read(&mut buffer).is_ok_and(|read| read > 0) {}
        });
        scope.spawn(move || {
            let begin = Instant::now();
            let rate = Pace::FULL.frame_rate;
            // A picture's packets come together, and sound between.
            let pictures = (0..SECONDS as u32 * rate).map(|n| (n * 1_000_000 / rate, None));
            let sound = sound.iter().enumerate().map(|(n, packet)| (n as u32 * 20_000, Some(packet)));
            let mut all: Vec<_> = pictures.chain(sound).collect();
            all.sort_by_key(|(due, _)| *due);
            for (due, sound) in all {
                thread::sleep((begin + Duration::from_micros(due.into())).saturating_duration_since(Instant::now()));
                match sound {
                    Some(packet) => drop(from.send(packet)),
                    None => (0..each).for_each(|_| drop(from.send(picture))),
                }
            }
            let _ = from.send(&[]);
        });
        let cost = cost(|| {
            let (mut datagram, mut message, mut taken) = ([0; 2048], vec![0; Pace::FULL.picture], 0);
            while let Ok(length @ 1..) = to.recv(&mut datagram) {
                work(&datagram[..length]);
                taken += usize::from(length == picture.len());
                // What has come of the sound goes with the picture.
                if taken == each {
                    taken = 0;
                    message[0] = datagram[0];
                    out.write_all(&message).expect("it is drained");
                }
            }
        });
        drop(out);
        cost
    })
}
