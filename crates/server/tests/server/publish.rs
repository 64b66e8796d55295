//! Who may publish, from what, and what the server says to a publisher.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use bywash_testkit::media::judge;
use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::rtmp::Message;
use bywash_testkit::server::{PUBLISH_KEY, publish_query};
use bywash_testkit::{
    Manner, Media, Nginx, Process, Publisher, Receiver, Scratch, Server, Setup, Sink, eventually, media, secs, stays,
};

use super::client::Client;
use super::record;

#[test]
fn forbidden_stream_is_cut_and_refused() {
    let receiver = Receiver::start();
    let server = Server::start(Setup::app(format!("callback.stream = {:?}", receiver.url())));
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    publisher.begin(false).expect("it is taken");
    let other = Flow::start(vec![Publisher::connect(&server.rtmp("other")).expect("it is taken")], Pace::SMALL);
    receiver.wait_any("stream_create", "show");
    server.ok("ForbidRTCStream", &[("StreamId", "show")]);
    eventually("the publisher is cut", secs(2), || publisher.heard().closed.then_some(()));
    assert_eq!(receiver.wait_any("stream_close", "show")["type"], "3");
    let server = server.kill_9_and_start();
    assert!(Publisher::connect(&server.rtmp("show")).is_err(), "refused, after a restart as well");
    server.ok("ResumeRTCStream", &[("StreamId", "show")]);
    assert!(Publisher::connect(&server.rtmp("show")).is_ok(), "taken again");
    drop(other);
}

#[test]
fn publish_token_is_demanded() {
    let server = Server::start(Setup::app("publish_auth = \"token\""));
    let table = [
        ("none", String::new(), false),
        ("wrong key", publish_query("show", "another key", 60), false),
        ("expired", publish_query("show", PUBLISH_KEY, -60), false),
        ("of another stream", publish_query("other", PUBLISH_KEY, 60), false),
        ("good", publish_query("show", PUBLISH_KEY, 60), true),
    ];
    for (what, query, good) in table {
        let taken = Publisher::connect(&server.rtmp(&format!("show?{query}")));
        assert_eq!(taken.is_ok(), good, "{what}: {:?}", taken.err());
    }
}

#[test]
fn unknown_apps_and_bad_names_are_refused() {
    let server = Server::start(Setup::default());
    let port = server.rtmp_port();
    let app = bywash_testkit::server::APP;
    for path in [format!("{}/show", app + 1), "live/show".into(), format!("{app}/a%2e%2e"), format!("{app}/a b")] {
        assert!(Publisher::connect(&format!("rtmp://127.0.0.1:{port}/{path}")).is_err(), "{path}");
    }
    let long = "n".repeat(300);
    assert!(Publisher::connect(&server.rtmp(&long)).is_err());
}

#[test]
fn acks_and_pings_are_answered() {
    let server = Server::start(Setup::default());
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    publisher.bytes(&Message::control(5, 50_000).chunks(4096)).expect("it is taken");
    publisher.begin(false).expect("it is taken");
    for n in 0..100 {
        publisher.video(n * 40, n % 25 == 0, 8_000).expect("the publish goes on");
    }
    publisher.bytes(&Message::ping().chunks(4096)).expect("the publish goes on");
    let heard = eventually("acknowledgements and a pong", secs(3), || {
        let heard = publisher.heard();
        (heard.acknowledged > 700_000 && heard.pongs == 1).then_some(heard)
    });
    assert!(heard.acknowledged < 900_000, "no more than was sent: {}", heard.acknowledged);
}

#[test]
fn a_live_stream_is_described() {
    let server = Server::start(Setup::default());
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    let stream = eventually("the stream shows", secs(5), || {
        let data = server.ok("DescribeStreams", &[("StreamId", "show")]);
        data["Streams"].get(0).filter(|it| it["Bitrate"].as_u64() > Some(0)).cloned()
    });
    assert_eq!((&stream["Width"], &stream["Height"]), (&320.into(), &180.into()), "{stream}");
    assert_eq!((&stream["SampleRate"], &stream["Channels"]), (&48_000.into(), &2.into()), "{stream}");
    assert_eq!(server.call("DescribeRTCStreamState", &[("StreamId", "show")])["Code"], 0);
    assert_eq!(server.call("DescribeRTCStreamState", &[("StreamId", "none")])["Code"], 41004);
    let nodes = server.ok("RTMPDispatchV2", &[("StreamId", "show"), ("Type", "push")]);
    assert!(nodes[0].as_str().is_some_and(|it| it.ends_with(&format!("/{}/show", bywash_testkit::server::APP))));
}

#[test]
fn librtmp_publishes() {
    let scratch = Scratch::new();
    let program = scratch.join("librtmp_publish");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/librtmp_publish.c");
    let built = Command::new("cc").arg("-o").arg(&program).arg(source).arg("-lrtmp").status();
    assert!(built.is_ok_and(|status| status.success()), "cc and librtmp; run `make setup`");
    let (cdn, server) = (Nginx::start(), Server::start(Setup::default()));
    server.relay("show", &cdn.url("show"));
    let mut librtmp = Command::new(&program);
    librtmp.arg(server.rtmp("show")).arg(Media::Plain.file()).stdout(Stdio::null());
    let _publishing = Process::start(&mut librtmp);
    media::assert_clean(&cdn.wait_for("show", 100));
}

#[test]
fn rtmpdump_plays_what_is_published() {
    let (server, scratch) = (Server::start(Setup::default()), Scratch::new());
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    server.wait_live("show", secs(5));
    let file = scratch.join("played.flv");
    let mut rtmpdump = Command::new("rtmpdump");
    rtmpdump.args(["-q", "--live", "-r", &server.rtmp("show"), "-o"]).arg(&file);
    let playing = Process::start(rtmpdump.stdin(Stdio::null()).stderr(Stdio::null()));
    eventually("the player gets media", secs(10), || (bywash_testkit::flv::tags(&file).0.len() > 100).then_some(()));
    drop(playing);
    media::assert_clean(&file);
}

#[test]
fn a_quiet_publisher_is_dropped_and_the_others_stay() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    server.relay("show", &sink.url("show"));
    let _flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::SMALL);
    sink.wait_for("show", secs(5));
    // A connection that opens and says nothing.
    let silent = bywash_testkit::publisher::dial(&server.rtmp("x")).expect("a connection");
    silent.set_read_timeout(Some(secs(30))).expect("a socket of ours");
    let waiting = thread::spawn(move || std::io::Read::read(&mut &silent, &mut [0; 8]));
    eventually("the silent one is dropped", secs(20), || waiting.is_finished().then_some(()));
    assert!(waiting.join().expect("no panic").is_ok_and(|n| n == 0));
    stays("the stream goes on", Duration::from_millis(300), || !sink.session("show").expect("a session").closed);
}

#[test]
fn what_ffmpeg_publishes_in_newer_codecs_is_recorded() {
    let receiver = Receiver::start();
    let server = Server::start(Setup::app(record::told(&receiver, r#"["mp4"]"#)));
    let clients = [("hevc", "libx265", "libopus"), ("av1", "libsvtav1", "aac"), ("avc", "libx264", "libopus")];
    let clients = clients.map(|(stream, pictures, sound)| {
        server.record(stream);
        (stream, Client::ffmpeg(&server.rtmp(stream), &["flv", pictures, sound]))
    });
    for (stream, client) in clients {
        client.wait("pictures 90");
        client.end();
        receiver.wait_any("record", stream);
        let [file] = &server.recorded(&receiver, stream)[..] else { panic!("one file of {stream}") };
        let found = judge(&file.path);
        let ((pictures, shown), (sounds, heard)) =
            found.video.zip(found.audio).unwrap_or_else(|| panic!("{file:?} has not both tracks: {found:?}"));
        assert!(pictures >= 90 && sounds >= 120 && file.duration > 2.9, "{stream}: {found:?}");
        assert!((shown - heard).abs() < 0.05, "{stream}: {found:?}");
    }
}
