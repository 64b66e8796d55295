//! Sound on its way to CDNs: Opus becomes AAC without a hole and without moving, or stays what it is.

use std::f32::consts::TAU;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bywash_media::Codec;
use bywash_media::transcode::{Feed, encoder};
use bywash_testkit::flv::{self, Tag};
use bywash_testkit::sink::Arrival;
use bywash_testkit::{Manner, Media, Nginx, Publisher, Server, Setup, Sink, eventually, media, secs};

/// The seconds in which there is a tone of 440 Hz. The first two are for the relay to come up.
const TONES: [usize; 3] = [2, 4, 6];

/// What is published, in milliseconds, and at which of the publisher's times it begins.
const LENGTH: u32 = 8_000;
const BEGIN: u32 = 100;

/// Opus packets of the tones: the publisher's time, and the message.
pub(super) fn opus() -> (Vec<u8>, Vec<(u32, Vec<u8>)>) {
    let pcm: Vec<f32> = (0..LENGTH as usize * 48)
        .flat_map(|n| {
            let on = TONES.contains(&(n / 48_000));
            [if on { 0.25 * (TAU * 440.0 * (n % 48_000) as f32 / 48_000.0).sin() } else { 0.0 }; 2]
        })
        .collect();
    let encoder = encoder(Codec::Opus, 96_000).expect("every build has it");
    let (delay, head) = (encoder.delay(), encoder.track().config);
    let (mut feed, mut packets) = (Feed::new(encoder), Vec::new());
    feed.push(&pcm, &mut packets);
    let message = |kind: u8, body: &[u8]| [&[kind], &b"Opus"[..], body].concat();
    let at = |n: u32| (n * 960 + BEGIN * 48 - delay) / 48;
    let packets = packets.iter().enumerate().map(|(n, packet)| (at(n as u32), message(0x91, packet)));
    (message(0x90, &head), packets.collect())
}

/// Pictures of a real encoder, from a keyframe at 0 on.
fn pictures() -> Vec<Tag> {
    let (tags, _) = flv::tags(&Media::VideoOnly.file());
    tags.into_iter().filter(|tag| tag.kind == 9 && tag.timestamp < i64::from(LENGTH)).collect()
}

/// Publishes pictures, and `sound` with them, in real time.
fn publish(publisher: &mut Publisher, pictures: &[Tag], sound: &[(u32, Vec<u8>)]) {
    let pictures = pictures.iter().map(|tag| (9, tag.timestamp as u32 + BEGIN, &tag.body));
    let sound = sound.iter().map(|(at, body)| (8, *at, body));
    let mut all: Vec<_> = pictures.chain(sound).collect();
    all.sort_by_key(|(_, at, _)| *at);
    let begin = Instant::now();
    for (kind, at, body) in all {
        thread::sleep((begin + Duration::from_millis(at.into())).saturating_duration_since(Instant::now()));
        publisher.raw(kind, at, body.clone()).expect("the publish goes on");
    }
}

/// The left channel as ffmpeg hears it.
fn samples(path: &Path) -> Vec<f32> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(path).args(["-map", "0:a", "-af", "pan=mono|c0=c0", "-f", "f32le", "-"]);
    let out = ffmpeg.stdin(Stdio::null()).output().expect("ffmpeg; run `make setup`").stdout;
    out.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]])).collect()
}

/// The times of a file's sound; that they follow each other without a hole is part of it.
#[track_caller]
fn unbroken(tags: &[Tag]) -> Vec<i64> {
    let times: Vec<_> = tags.iter().filter(|it| it.kind == 8 && it.is_frame()).map(|it| it.timestamp).collect();
    for pair in times.windows(2) {
        assert!((21..=22).contains(&(pair[1] - pair[0])), "the sound breaks between {} and {} ms", pair[0], pair[1]);
    }
    times
}

fn loudness(pcm: &[f32]) -> f32 {
    (pcm.iter().map(|it| it * it).sum::<f32>() / pcm.len().max(1) as f32).sqrt()
}

#[test]
fn opus_reaches_a_cdn_as_aac_without_a_hole_and_in_its_place_and_an_enhanced_target_as_it_is() {
    let (cdn, sink) = (Nginx::start(), Sink::start(Manner::Take));
    let server = Server::start(Setup::app("cdn.enhanced_targets = [\"localhost\"]"));
    let enhanced = sink.url("show").replace("127.0.0.1", "localhost");
    server.relay("show", &cdn.url("show"));
    server.relay("show", &enhanced);

    let (head, mut packets) = opus();
    // Mute: nothing comes for most of a second. And three packets of a tone are lost.
    packets.retain(|(at, _)| !(3_200..4_000).contains(at) && !(6_600..6_660).contains(at));
    let pictures = pictures();
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    publisher.raw(8, 0, head).expect("it is taken");
    publish(&mut publisher, &pictures, &packets);
    drop(publisher);

    let file = cdn.wait_for("show", 100);
    eventually("the last picture arrives", secs(5), || {
        let (tags, _) = flv::tags(&file);
        (tags.iter().rev().find(|it| it.kind == 9)?.body == pictures.last()?.body).then_some(())
    });
    let tags = media::assert_clean(&file);
    let header = tags.iter().find(|it| it.kind == 8).expect("sound");
    assert_eq!(header.body[..4], [0xaf, 0, 0x11, 0x90], "AAC-LC, 48 kHz, stereo");
    let times = unbroken(&tags);

    // What the picture says of the publisher's clock against the file's.
    let first = tags.iter().find(|it| it.kind == 9 && it.is_frame()).expect("pictures");
    let published = pictures.iter().find(|it| it.body == first.body).expect("it is one of ours").timestamp;
    let at = |ms: i64| ((ms + first.timestamp - published - times[0]) * 48) as usize;
    let pcm = samples(&file);
    for second in TONES.map(|it| it as i64 * 1000) {
        let near = &pcm[at(second - 100)..at(second + 100)];
        let onset = near.iter().position(|it| it.abs() > 0.125).expect("a tone") as f32 / 48.0 - 100.0;
        println!("the tone at {second} ms is {onset:.1} ms off");
        assert!(onset.abs() <= 10.0, "the tone at {second} ms is {onset} ms off");
        let steady = &pcm[at(second + 50)..at(second + 450)];
        let crossings = steady.windows(2).filter(|pair| pair[0] < 0.0 && pair[1] >= 0.0).count();
        assert!((175..=177).contains(&crossings), "{crossings} periods in 0.4 s");
        assert!((loudness(steady) / 0.177 - 1.0).abs() < 0.05, "level {}", loudness(steady));
    }
    for silent in [3_300..3_900, 5_200..5_900] {
        assert!(loudness(&pcm[at(silent.start)..at(silent.end)]) < 0.001);
    }
    assert!(loudness(&pcm[at(6_500)..at(6_560)]) > 0.05, "what was lost is made up for");

    let arrivals: Vec<Arrival> = sink.session("show").expect("a session").arrivals;
    let got: Vec<_> = arrivals.iter().filter(|it| it.kind == 8 && it.head[0] == 0x91).collect();
    assert!(got.len() > 200, "{} packets of Opus", got.len());
    let whole = |body: &[u8]| (body.len() as u32, body[..24.min(body.len())].to_vec());
    for arrival in got {
        let head = arrival.head[..24.min(arrival.size as usize)].to_vec();
        assert!(packets.iter().any(|(_, body)| whole(body) == (arrival.size, head.clone())), "a packet of ours");
    }
}

/// `cargo test --no-default-features -p bywash --test server -- a_build_without`
#[test]
#[cfg(not(feature = "aac-fdk"))]
fn a_build_without_an_aac_encoder_says_so_and_relays_what_needs_none() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    let publishing = [Media::Plain.publish(&server.rtmp("plain")), Media::VideoOnly.publish(&server.rtmp("silent"))];
    let (head, packets) = opus();
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    publisher.raw(8, 0, head).expect("it is taken");
    for (at, body) in &packets[..20] {
        publisher.raw(8, *at, body.clone()).expect("it is taken");
    }
    eventually("Opus is known", secs(5), || {
        (server.ok("DescribeStreams", &[("StreamId", "show")])["Streams"][0]["AudioCodec"] == "Opus").then_some(())
    });
    ["show", "plain", "silent"].iter().for_each(|name| server.relay(name, &sink.url(name)));
    for name in ["plain", "silent"] {
        sink.wait_for(name, secs(10));
    }
    let rule = eventually("the rule says why", secs(10), || {
        server.rule("show", &sink.url("show")).filter(|rule| !rule["LastError"].as_str().unwrap_or_default().is_empty())
    });
    let why = rule["LastError"].as_str().unwrap_or_default();
    assert!(why.contains("this build has no AAC encoder (it has: Opus)"), "{rule}");
    assert!(rule["State"] == 1 && sink.session("show").is_none(), "{rule}");
    drop(publishing);
}

#[test]
fn a_target_that_wants_sound_gets_silence_where_there_is_none() {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::app("cdn.silent_audio = [\"localhost\"]")));
    let _publishing = Media::VideoOnly.publish(&server.rtmp("show"));
    server.relay("show", &cdn.url("plain"));
    server.relay("show", &cdn.url("silent").replace("127.0.0.1", "localhost"));
    let tags = media::assert_clean(&cdn.wait_for("plain", 100));
    assert_eq!(media::count(&tags).1, 0);
    let file = cdn.wait_for("silent", 200);
    let tags = media::assert_clean(&file);
    let times = unbroken(&tags);
    let last = tags.iter().rev().find(|it| it.kind == 9).expect("pictures").timestamp;
    assert!((0..200).contains(&(last - times[times.len() - 1])), "the silence keeps up with the pictures");
    assert!(loudness(&samples(&file)) == 0.0);
}
