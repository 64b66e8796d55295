//! More than there is room for: what is over the limit gets less, and only that.

use std::thread;
use std::time::{Duration, Instant};

use bywash_testkit::publisher::{Flow, Pace, dial};
use bywash_testkit::rtmp::{Amf, Message};
use bywash_testkit::sink::{latencies, quantile};
use bywash_testkit::{Machine, Manner, Publisher, Receiver, Server, Setup, Sink, eventually, secs, stays};

#[test]
fn a_slow_target_skips_to_keyframes_in_one_session() {
    let machine = Machine::watch();
    let (slow, good) = (Sink::start(Manner::Slow(300_000)), Sink::start(Manner::Take));
    let server = Server::start(Setup::server("publish.buffer = \"4MiB\""));
    let publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    // 9 Mbit/s into a target that takes 2.4.
    let _flow = Flow::start(vec![publisher], Pace { picture: 30_000, ..Pace::FULL });
    server.relay("show", &slow.url("show"));
    server.relay("show", &good.url("show"));
    good.wait_for("show", secs(5));
    let dropped =
        || server.rule("show", &slow.url("show")).expect("the rule")["FramesDropped"].as_u64().expect("a number");
    eventually("frames are skipped", secs(30), || (dropped() > 100).then_some(()));
    thread::sleep(secs(6));
    assert_eq!(slow.sessions().len(), 1, "slow is not gone");
    let arrivals = slow.session("show").expect("a session").arrivals;
    let media: Vec<_> = arrivals.iter().filter(|it| !it.is_header()).collect();
    let mut leaps = 0;
    for pair in media.windows(2).filter(|pair| pair[1].count() != pair[0].count() + 1) {
        leaps += 1;
        let place = media.iter().position(|it| it.count() == pair[1].count()).expect("it is there");
        let next = media[place..].iter().find(|it| it.kind == 9).expect("a picture follows");
        assert!(next.is_key(), "after a leap the next picture is a keyframe");
        assert!(pair[1].timestamp >= pair[0].timestamp);
    }
    assert!(leaps > 0, "it leapt");
    let late = latencies(&good.session("show").expect("a session").arrivals, |from, to| machine.ran(from, to));
    assert!(quantile(&late, 0.95) < 250.0, "the good one is late: p95 {} ms", quantile(&late, 0.95));
}

#[test]
fn a_burst_of_beginnings_and_ends_loses_nothing() {
    let receiver = Receiver::start();
    let server = Server::start(Setup {
        server: "publish.grace = \"500ms\"".into(),
        app: format!("callback.stream = {:?}", receiver.url()),
        ..Setup::default()
    });
    let names: Vec<String> = (0..60).map(|n| format!("s{n}")).collect();
    let publishers = names.iter().map(|name| Publisher::connect(&server.rtmp(name)).expect("it is taken")).collect();
    let flow = Flow::start(publishers, Pace::SMALL);
    eventually("60 beginnings", secs(15), || (receiver.taken().len() == 60).then_some(()));
    drop(flow);
    eventually("60 ends", secs(15), || (receiver.taken().len() == 120).then_some(()));
    stays("no more", secs(1), || receiver.taken().len() == 120);
    for name in &names {
        assert_eq!(receiver.of("stream_create", name).len(), 1, "{name}");
        assert_eq!(receiver.of("stream_close", name).len(), 1, "{name}");
    }
}

#[test]
fn one_connection_too_many_is_refused_and_the_others_stay() {
    let sink = Sink::start(Manner::Take);
    let server = Server::start(Setup::server("rtmp.max_connections = 3"));
    server.relay("show", &sink.url("show"));
    let _flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::SMALL);
    sink.wait_for("show", secs(5));
    let held = [dial(&server.rtmp("x")), dial(&server.rtmp("x"))];
    thread::sleep(Duration::from_millis(200));
    assert!(Publisher::connect(&server.rtmp("more")).is_err());
    drop(held);
    eventually("room again", secs(3), || Publisher::connect(&server.rtmp("more")).ok());
    assert_eq!(sink.sessions().len(), 1);
}

#[test]
fn a_call_too_many_is_told_so_and_the_next_second_is_new() {
    let server = Server::start(Setup::default());
    let codes: Vec<_> = (0..60).map(|_| server.call("DescribeStreams", &[])["Code"].clone()).collect();
    assert!(codes.iter().any(|code| *code == 30002 || *code == 6), "{codes:?}");
    assert!(codes.iter().filter(|code| **code == 0).count() >= 20);
    server.ok("DescribeStreams", &[]);
}

#[test]
fn a_publisher_that_falls_silent_makes_room_for_its_return() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    server.relay("show", &sink.url("show"));
    let flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::SMALL);
    sink.wait_for("show", secs(5));
    // The network is gone without a goodbye: the connection stays open and nothing comes.
    let silent = flow.stop();
    let since = Instant::now();
    let again = eventually("the name is free", secs(25), || Publisher::connect(&server.rtmp("show")).ok());
    let had = sink.pictures("show");
    let _flow = Flow::start(vec![again], Pace::SMALL);
    eventually("it is relayed", secs(3), || (sink.pictures("show") > had).then_some(()));
    assert_eq!(sink.sessions().len(), 1, "back after {:?}, in the same session", since.elapsed());
    drop(silent);
}

#[test]
fn a_publish_that_comes_byte_by_byte_is_as_good() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    server.relay("show", &sink.url("show"));
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    publisher.begin(false).expect("it is taken");
    // Each byte in a segment of its own, in chunks of one byte where the message allows.
    publisher.bytes(&Message::control(1, 1).chunks(4096)).expect("it is taken");
    for n in 0..12 {
        let mut payload = vec![0x55; 60];
        payload[..10].copy_from_slice(&[
            if n == 0 { 0x17 } else { 0x27 },
            1,
            0,
            0,
            0,
            0,
            0,
            0,
            51,
            if n == 0 { 0x65 } else { 0x41 },
        ]);
        let message = Message { kind: 9, timestamp: n * 40, stream: 1, payload };
        for byte in message.chunks(1) {
            publisher.bytes(&[byte]).expect("the publish goes on");
        }
    }
    eventually("all of it is relayed", secs(5), || (sink.pictures("show") >= 11).then_some(()));
    let arrivals = sink.session("show").expect("a session").arrivals;
    assert!(arrivals.iter().filter(|it| it.kind == 9 && !it.is_header()).all(|it| it.size == 60));
}

#[test]
fn enhanced_hevc_passes_whole() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    server.relay("show", &sink.url("show"));
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    let metadata = [Amf::text("@setDataFrame"), Amf::text("onMetaData"), Amf::object(&[("videocodecid", "hvc1")])];
    publisher.raw(18, 0, Message::command(1, &metadata).payload).expect("it is taken");
    // An HEVC configuration record as x265 writes it (320×180, Main), after the enhanced header.
    let record = "0101600000009000000000003cf000fcfdf8f800000f03200001001840010c01ffff0160000003009000000300000300\
                  3c959409210001002b42010101600000030090000003000003003ca00a080c1f3e595952930bc05a0200000300020000\
                  0300321022000100064401c073c189";
    let mut header = b"\x90hvc1".to_vec();
    header.extend((0..record.len() / 2).map(|n| u8::from_str_radix(&record[2 * n..2 * n + 2], 16).expect("hex")));
    publisher.raw(9, 0, header.clone()).expect("it is taken");
    for n in 0..40_u32 {
        let mut payload = vec![if n % 20 == 0 { 0x91 } else { 0xa1 }];
        payload.extend(b"hvc1\0\0\0\0\0\0\x20");
        payload.extend([if n % 20 == 0 { 0x26 } else { 0x02 }, 1]);
        payload.resize(13 + 31, 0x55);
        publisher.raw(9, n * 40, payload).expect("the publish goes on");
        thread::sleep(Duration::from_millis(40));
    }
    let arrivals = eventually("pictures arrive", secs(5), || {
        sink.session("show").map(|it| it.arrivals).filter(|it| it.len() > 20)
    });
    assert_eq!(arrivals[0].head[..5], *b"\x90hvc1");
    assert_eq!(arrivals[0].head[5..24], header[5..24], "its record is as it came");
    assert!(arrivals[1..].iter().all(|it| it.head[1..5] == *b"hvc1"));
}
