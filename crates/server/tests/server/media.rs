//! What publishers do to their timelines and codecs, and what the CDN sees of it.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use bywash_testkit::publisher::{Flow, Pace, smaller_sequence_header};
use bywash_testkit::sink::Arrival;
use bywash_testkit::{Manner, Media, Process, Publisher, Scratch, Server, Setup, Sink, eventually, media, secs};

/// Publishes three seconds of 25 pictures and 50 audio packets a second whose timestamps `bend` has changed; gives
/// what the CDN got of them.
fn relayed(bend: impl Fn(u32) -> u32) -> Vec<Arrival> {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    server.relay("show", &sink.url("show"));
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    publisher.begin(true).expect("it is taken");
    for n in 0..75 {
        let time = n * 40;
        publisher.video(bend(time), n % 25 == 0, 2000).expect("the publish goes on");
        publisher.audio(bend(time), 300).expect("the publish goes on");
        thread::sleep(Duration::from_millis(20));
        publisher.audio(bend(time + 20), 300).expect("the publish goes on");
        thread::sleep(Duration::from_millis(20));
    }
    eventually("the pictures arrive", secs(5), || (sink.pictures("show") >= 70).then_some(()));
    sink.session("show").expect("a session").arrivals
}

#[test]
fn one_bad_timestamp_is_repaired_at_the_entry() {
    type Bend = fn(u32) -> u32;
    let table: [(&str, Bend); 5] = [
        ("none", |time| time),
        ("one an hour ahead", |time| if time == 1000 { time + 3_600_000 } else { time }),
        ("one back at zero", |time| if time == 1000 { 0 } else { time }),
        ("all an hour ahead from there on", |time| if time >= 1000 { time + 3_600_000 } else { time }),
        ("all anew from there on", |time| if time >= 1000 { time - 1000 } else { time }),
    ];
    thread::scope(|scope| {
        for (what, bend) in table {
            scope.spawn(move || {
                let arrivals = relayed(bend);
                for kind in [8, 9] {
                    let of_kind = arrivals.iter().filter(|it| it.kind == kind && !it.is_header());
                    let times: Vec<u32> = of_kind.map(|it| it.timestamp).collect();
                    for pair in times.windows(2) {
                        let step = i64::from(pair[1]) - i64::from(pair[0]);
                        assert!((0..1000).contains(&step), "{what}: kind {kind} steps by {step} ms");
                    }
                }
            });
        }
    });
}

#[test]
fn a_timeline_that_begins_near_the_end_of_32_bits_goes_on() {
    let arrivals = relayed(|time| 0xffff_fa00_u32.wrapping_add(time));
    let times: Vec<u32> = arrivals.iter().filter(|it| it.kind == 9 && !it.is_header()).map(|it| it.timestamp).collect();
    assert!(times.windows(2).all(|pair| (0..500).contains(&pair[1].wrapping_sub(pair[0]))), "{times:?}");
}

#[test]
fn new_sps_becomes_new_sequence_header() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    server.relay("show", &sink.url("show"));
    let publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    let flow = Flow::start(vec![publisher], Pace::SMALL);
    sink.wait_for("show", secs(5));
    let mut publisher = flow.stop().remove(0);
    publisher.raw(9, 60_000, smaller_sequence_header()).expect("the publish goes on");
    for n in 0..30 {
        publisher.video(60_000 + n * 40, n == 0, 1000).expect("the publish goes on");
        thread::sleep(Duration::from_millis(40));
    }
    let arrivals = eventually("the new header arrives", secs(3), || {
        let arrivals = sink.session("show")?.arrivals;
        (arrivals.iter().filter(|it| it.kind == 9 && it.is_header()).count() == 2).then_some(arrivals)
    });
    let want = smaller_sequence_header();
    let at = arrivals.iter().rposition(|it| it.kind == 9 && it.is_header()).expect("it came");
    // From the AVC record on: the composition time before it is no one's concern.
    assert_eq!(arrivals[at].head[5..], want[5..24]);
    let next = eventually("a picture follows", secs(3), || {
        let arrivals = sink.session("show")?.arrivals;
        arrivals[at + 1..].iter().find(|it| it.kind == 9).copied()
    });
    assert!(next.is_key(), "the first picture after it is a keyframe");
    assert_eq!(sink.sessions().len(), 1, "in the same session");
}

#[test]
fn metadata_of_the_publisher_reaches_nobody_as_media() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    server.relay("show", &sink.url("show"));
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    for garbage in [vec![], vec![2], vec![8, 255, 255, 255, 255], b"\x02\x00\x0aonMetaData\x03".to_vec()] {
        publisher.raw(18, 0, garbage).expect("the publish goes on");
    }
    publisher.raw(9, 0, vec![]).expect("the publish goes on");
    publisher.raw(8, 0, vec![0xaf]).expect("the publish goes on");
    let _flow = Flow::start(vec![publisher], Pace::FULL);
    sink.wait_for("show", secs(5));
}

#[test]
fn an_ffmpeg_that_comes_late_finds_the_tracks_and_waits_for_no_other() {
    let (server, dir) = (Server::start(Setup::default()), Scratch::new());
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    let sink = Sink::start(Manner::Take);
    server.relay("show", &sink.url("show"));
    // What comes from here on is well behind the beginning.
    eventually("two seconds go by", secs(15), || (sink.pictures("show") > 50).then_some(()));
    let (played, target) = (server.rtmp("show"), format!("rtmp://127.0.0.1:{}/live/show", bywash_testkit::port()));
    for input in [&["-i", &played][..], &["-listen", "1", "-i", &target]] {
        let file = dir.join("taken.mkv");
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-y", "-t", "2"]).args(input).args(["-c", "copy"]).arg(&file);
        let mut taking = Process::start(ffmpeg.stdin(Stdio::null()));
        if input.contains(&"-listen") {
            server.relay("show", &target);
        }
        let code = eventually("it has taken its two seconds", secs(20), || taking.exit_code());
        let judged = media::judge(&file);
        assert!(code == 0 && judged.video.is_some() && judged.audio.is_some(), "{input:?}: {code} {judged:?}");
    }
}
