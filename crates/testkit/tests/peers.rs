//! The peers against each other and against nginx and ffmpeg: a wrong judge would condemn a good server.

use std::process::Command;
use std::time::Duration;

use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::{
    Machine, Manner, Media, Nginx, Publisher, Sink, Unanswered, eventually, media, port, secs, sink, stays,
};

#[test]
fn what_ffmpeg_publishes_nginx_records_clean() {
    let nginx = Nginx::start();
    for (media, name) in [(Media::Plain, "plain"), (Media::AudioOnly, "audio")] {
        let publishing = media.publish(&nginx.url(name));
        let file = nginx.wait_for(name, 60);
        drop(publishing);
        let (pictures, packets) = media::count(&media::assert_clean(&file));
        assert_eq!(pictures > 20, media == Media::Plain);
        assert!(packets > 20);
        assert_eq!(nginx.sessions(name), 1);
    }
}

#[test]
fn nginx_and_the_sink_take_our_publisher() {
    let (machine, nginx, sink) = (Machine::watch(), Nginx::start(), Sink::start(Manner::Take));
    let both = [nginx.url("one"), sink.url("one")].map(|url| Publisher::connect(&url).expect("it is taken"));
    let flow = Flow::start(both.into(), Pace::FULL);
    sink.wait_for("one", secs(5));
    nginx.wait_for("one", 60);
    drop(flow);
    let session = sink.session("one").expect("a session");
    assert_eq!(session.app, "live");
    assert!(session.arrivals[0].is_header() && session.arrivals[1].is_header());
    let counts: Vec<u32> = session.arrivals.iter().filter(|it| !it.is_header()).map(|it| it.count()).collect();
    assert!(counts.windows(2).all(|pair| pair[1] == pair[0] + 1));
    let p50 = sink::quantile(&sink::latencies(&session.arrivals, |from, to| machine.ran(from, to)), 0.5);
    assert!(p50 < 20.0, "p50 {p50} ms");
}

#[test]
fn an_unanswered_port_leaves_a_connect_hanging() {
    let unanswered = Unanswered::start();
    let at = ([127, 0, 0, 1], unanswered.port).into();
    let error = std::net::TcpStream::connect_timeout(&at, secs(1)).expect_err("no answer");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_sink_misbehaves_as_told() {
    let sink = Sink::start(Manner::Refuse("NetStream.Publish.BadName"));
    let refusal = Publisher::connect(&sink.url("one")).err().expect("a refusal");
    assert!(refusal.to_string().contains("BadName"));
    for manner in [Manner::Deaf, Manner::BlackHole] {
        sink.set(Manner::Take);
        let flow = Flow::start(vec![Publisher::connect(&sink.url("one")).expect("it is taken")], Pace::SMALL);
        sink.wait_for("one", secs(5));
        sink.set(manner);
        std::thread::sleep(Duration::from_millis(300));
        let had = sink.pictures("one");
        stays("nothing is read", secs(1), || sink.pictures("one") == had);
        sink.set(Manner::Close);
        let ended = eventually("the session ends", secs(3), || sink.session("one").filter(|it| it.closed));
        assert!(!ended.unpublished);
        drop(flow);
    }
    sink.shut();
    assert!(Publisher::connect(&sink.url("one")).is_err());
    sink.set(Manner::Take);
    sink.open();
    assert!(Publisher::connect(&sink.url("one")).is_ok());
}

#[test]
fn test_programs_side_by_side_have_ports_of_their_own() {
    const ME: &str = "test_programs_side_by_side_have_ports_of_their_own";
    let own: Vec<u16> = (0..300).map(|_| port()).collect();
    println!("ports {own:?}");
    if std::env::var_os("BYWASH_TEST_PORTS").is_some() {
        return;
    }
    let mut other = Command::new(std::env::current_exe().expect("a running program"));
    let other = other.args([ME, "--exact", "--nocapture"]).env("BYWASH_TEST_PORTS", "1").output().expect("it runs");
    let told = String::from_utf8_lossy(&other.stdout);
    let list = told.split_once("ports [").and_then(|(_, rest)| rest.split_once(']')).expect("a list").0;
    let theirs: Vec<u16> = list.split(", ").map(|port| port.parse().expect("a port")).collect();
    assert_eq!(theirs.len(), 300);
    assert!(theirs.iter().all(|port| !own.contains(port)), "{own:?} {theirs:?}");
    assert!((1..own.len()).all(|n| !own[n..].contains(&own[n - 1])), "{own:?}");
}
