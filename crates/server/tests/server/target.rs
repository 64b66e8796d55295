//! Targets that are slow, gone, deceiving or encrypted.

use std::thread;
use std::time::Instant;

use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::server::now_ms;
use bywash_testkit::tls::Tls;
use bywash_testkit::{
    Machine, Manner, Media, Names, Nginx, Publisher, Receiver, Server, Setup, Sink, eventually, media, secs, stays,
};

fn live(server: &Server, pace: Pace) -> Flow {
    Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], pace)
}

#[test]
fn a_stalled_target_is_bounded_and_retried() {
    let sink = Sink::start(Manner::Take);
    let server = Server::start(Setup::server("publish.buffer = \"4MiB\"\nrelay.stall_timeout = \"4s\""));
    let url = sink.url("show");
    let _flow = live(&server, Pace { picture: 40_000, ..Pace::FULL });
    server.relay("show", &url);
    sink.wait_for("show", secs(5));
    let before = server.process().rss();
    sink.set(Manner::Deaf);
    let mut most = before;
    // 11 Mbit/s for ten seconds: 14 MB come in while nothing goes out.
    stays("memory is bounded", secs(10), || {
        most = most.max(server.process().rss());
        most < before + (16 << 20)
    });
    let rule = server.rule("show", &url).expect("the rule");
    assert_ne!(rule["State"], 2, "{rule}");
    assert!(sink.connects().len() > 1, "it is tried again");
    sink.set(Manner::Take);
    server.wait_state("show", &url, 2, secs(20));
    assert!(server.rule("show", &url).expect("the rule")["Retries"].as_i64() > Some(0));
}

#[test]
fn a_chatty_target_is_answered_and_wakes_nobody() {
    let (sink, server) = (Sink::start(Manner::Chatty), Server::start(Setup::default()));
    let url = sink.url("show");
    let _flow = live(&server, Pace::FULL);
    server.relay("show", &url);
    server.wait_state("show", &url, 2, secs(5));
    let pongs = || sink.session("show").expect("it is taken").pongs;
    let pings_answered = pongs();
    let waits = server.process().waits("media-0");
    thread::sleep(secs(6));
    let woken = server.process().waits("media-0") - waits;
    // 30 pictures a second and some ticks; 77 messages a second are acknowledged.
    assert!((30..6 * 50).contains(&woken), "woken {woken} times in 6 s");
    eventually("pings are answered", secs(5), || (pongs() >= pings_answered + 3).then_some(()));

    let begin = std::time::Instant::now();
    sink.set(Manner::Close);
    let rule = eventually("the end shows", secs(2), || server.rule("show", &url).filter(|rule| rule["State"] != 2));
    assert!(begin.elapsed() < secs(1), "that it closes is seen at once: {rule}");
}

#[test]
fn pongs_are_no_relay() {
    let (sink, server) = (Sink::start(Manner::Chatty), Server::start(Setup::default()));
    let url = sink.url("show");
    let mut silent = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    silent.begin(false).expect("it is taken");
    server.relay("show", &url);
    let pongs = || sink.session("show").map_or(0, |it| it.pongs);
    eventually("a ping is answered", secs(5), || (pongs() > 0).then_some(()));
    stays("nothing is relayed", secs(3), || {
        let rule = server.rule("show", &url).expect("the rule");
        rule["State"] != 2 && rule["BytesSent"] == 0
    });
    let _flow = Flow::start(vec![silent], Pace::SMALL);
    server.wait_state("show", &url, 2, secs(5));
}

#[test]
fn a_silent_name_server_delays_only_who_asks_it() {
    let machine = Machine::watch();
    let (names, sink) = (Names::start(), Sink::start(Manner::Take));
    let resolver = Some(names.file());
    let server = Server::start(Setup { resolver, ..Setup::server("relay.connect_timeout = \"2s\"") });
    server.relay("show", &sink.url("show"));
    let named = |n| format!("rtmp://cdn-{n}.example:{}/live/show-{n}", sink.port());
    (0..20).for_each(|n| server.relay("show", &named(n)));
    let _flow = live(&server, Pace::FULL);
    sink.wait_for("show", secs(5));
    let rule = eventually("the failure shows", secs(8), || {
        server.rule("show", &named(7)).filter(|rule| rule["UpdateReason"] != 0)
    });
    assert_eq!(rule["UpdateReason"], 2, "{rule}");
    assert!(rule["LastError"].as_str().is_some_and(|it| it.contains("cdn-7.example was not resolved")), "{rule}");
    let (before, begin) = (sink.pictures("show"), Instant::now());
    stays("the others are real-time", secs(3), || {
        let asked = Instant::now();
        server.call("DescribeStreams", &[]);
        machine.ran(asked, Instant::now()) < secs(1)
    });
    let (came, away) = (sink.pictures("show") - before, machine.away(begin, Instant::now()).as_secs_f64());
    assert!(came as f64 >= 80.0 - 30.0 * away, "{came} pictures in 3 s, the machine not there for {away}");
    names.answer();
    (0..20).for_each(|n| sink.wait_for(&format!("show-{n}"), secs(20)));
}

#[test]
fn status_tells_the_truth() {
    let (sink, receiver) = (Sink::start(Manner::Silent), Receiver::start());
    let server = Server::start(Setup {
        server: "relay.stall_timeout = \"3s\"".into(),
        app: format!("callback.state = {:?}", receiver.url()),
        ..Setup::default()
    });
    let url = sink.url("show");
    let _flow = live(&server, Pace::FULL);
    server.relay("show", &url);
    let state = || server.rule("show", &url).expect("the rule")["State"].clone();
    stays("an open socket is no relay", secs(3), || state() != 2);
    sink.set(Manner::Take);
    server.wait_state("show", &url, 2, secs(20));
    let callback = receiver.wait("relay_state", "show", secs(5), |it| it["state"] == "2");
    assert!(callback["url"].as_str().is_some_and(|it| it.starts_with(&url)), "{callback}");
    sink.set(Manner::BlackHole);
    eventually("no acknowledgement: no longer relaying", secs(6), || (state() != 2).then_some(()));
    let told = |it: &serde_json::Value| it["state"] != "2" && it["update_reason"] != "0";
    let callback = receiver.wait("relay_state", "show", secs(5), told);
    assert!(callback["last_error"].as_str().is_some_and(|it| !it.is_empty()), "{callback}");
    sink.set(Manner::Take);
    server.wait_state("show", &url, 2, secs(20));
    let back = || receiver.of("relay_state", "show").last().is_some_and(|it| it["state"] == "2");
    eventually("the return is told", secs(5), || back().then_some(()));
}

#[test]
fn refusals_back_off() {
    let server = Server::start(Setup::default());
    let code = "NetStream.Publish.BadName";
    let sinks = [Manner::Refuse(code), Manner::Regret(code)].map(Sink::start);
    let _flow = live(&server, Pace::SMALL);
    for sink in &sinks {
        server.relay("show", &sink.url("show"));
        eventually("it is tried", secs(3), || (!sink.connects().is_empty()).then_some(()));
    }
    thread::sleep(secs(8));
    for sink in sinks {
        let connects = sink.connects();
        assert!(connects.len() <= 3, "{} connects in 8 s", connects.len());
        let rule = server.rule("show", &sink.url("show")).expect("the rule");
        assert_eq!(rule["UpdateReason"], 5, "{rule}");
    }
}

#[test]
fn a_push_refused_by_hanging_up_is_tried_with_the_backup_key() {
    for late in [false, true] {
        let sink = Sink::start(Manner::Checks { key: "the backup key", late });
        let push = r#"host = "127.0.0.1", vendor = "Tencent", key = "the main key", backup_key = "the backup key""#;
        let server = Server::start(Setup::app(format!("cdn.push = [{{ {push} }}]")));
        let _flow = live(&server, Pace::SMALL);
        server.relay("show", &sink.url("show"));
        sink.wait_for("show", secs(10));
        assert_eq!((sink.connects().len(), sink.sessions().len()), (2, 1), "late: {late}");
    }
}

#[test]
fn a_target_that_hangs_up_whenever_it_took_the_stream_is_tried_slowly() {
    let (sink, server) = (Sink::start(Manner::Checks { key: "a key", late: true }), Server::start(Setup::default()));
    let url = sink.url("show");
    let _flow = live(&server, Pace::SMALL);
    server.relay("show", &url);
    let tried = |rule: &serde_json::Value| rule["Retries"] == 3;
    let rule = eventually("it is tried", secs(10), || server.rule("show", &url).filter(tried));
    let waits = |rule: &serde_json::Value| rule["NextRetryTime"].as_i64().expect("a time") - now_ms();
    // Twice soon, and then not.
    assert_eq!(sink.connects().len(), 3);
    assert!(waits(&rule) > 15_000, "{rule}");
    assert!(rule["LastError"].as_str().is_some_and(|it| it.contains("3 times in a row")), "{rule}");

    // One that is away was no refusal.
    sink.shut();
    server.ok("RetryCDNTransferRule", &[("StreamId", "show"), ("CDNUrl", &url)]);
    let away = |rule: &serde_json::Value| rule["UpdateReason"] == 2;
    let rule = eventually("it is away", secs(5), || server.rule("show", &url).filter(away));
    assert!(waits(&rule) < 4_000, "{rule}");
    sink.open();
    sink.set(Manner::Take);
    sink.wait_for("show", secs(5));
}

#[test]
fn the_end_of_a_relay_shows_while_the_target_is_seen_off() {
    let (sink, receiver) = (Sink::start(Manner::Take), Receiver::start());
    let server = Server::start(Setup {
        server: "publish.grace = \"0s\"".into(),
        app: format!("callback.state = {:?}", receiver.url()),
        ..Setup::default()
    });
    let flow = live(&server, Pace::SMALL);
    server.relay("show", &sink.url("show"));
    server.wait_state("show", &sink.url("show"), 2, secs(5));
    // It does not close, however long we wait for that.
    sink.set(Manner::Deaf);
    let begin = now_ms();
    drop(flow);
    let told = receiver.wait("relay_state", "show", secs(5), |it| it["state"] == "0");
    let at: i64 = told["state_time"].as_str().and_then(|it| it.parse().ok()).expect("a time");
    assert!(at - begin < 900, "told {} ms after the end", at - begin);
}

#[test]
fn a_relay_to_ourselves_is_refused() {
    let server = Server::start(Setup::default());
    let port = server.rtmp_port();
    let _flow = live(&server, Pace::SMALL);
    let app = bywash_testkit::server::APP;
    for host in ["127.0.0.1", "localhost", "127.1"] {
        let url = format!("rtmp://{host}:{port}/{app}/show");
        let answer = server.call("CreatCDNTransferRule", &[("StreamId", "show"), ("CDNUrl", &url)]);
        if answer["Code"] == 0 {
            // A name may lead anywhere; what it led to is seen when it is connected to.
            stays("no loop", secs(3), || server.rule("show", &url).is_some_and(|rule| rule["State"] != 2));
            server.unrelay("show", &url);
        } else {
            assert_eq!(answer["Code"], 30001, "{answer}");
        }
    }
}

#[test]
fn private_targets_are_refused_unless_allowed() {
    let sink = Sink::start(Manner::Take);
    let server = Server::start(Setup::server("relay.retry = { first = \"1s\", max = \"2s\" }").public_only());
    let _flow = live(&server, Pace::SMALL);
    for host in ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254"] {
        let url = format!("rtmp://{host}:{}/live/show", sink.port());
        let answer = server.call("CreatCDNTransferRule", &[("StreamId", "show"), ("CDNUrl", &url)]);
        assert!(answer["Code"] == 0 || answer["Code"] == 30001, "{answer}");
    }
    stays("nobody is called", secs(3), || sink.connects().is_empty());
    for url in ["http://example.com/live/x", "rtmp://example.com/", "file:///etc/passwd", "rtmp://u:p@example.com/a/b"]
    {
        let answer = server.call("CreatCDNTransferRule", &[("StreamId", "show"), ("CDNUrl", url)]);
        assert_eq!(answer["Code"], 30001, "{url}: {answer}");
    }
}

#[test]
fn rtmps_target() {
    let cdn = Nginx::start();
    let tls = Tls::start("localhost", cdn.port());
    let server = Server::start(Setup::server(format!("relay.ca_file = {:?}", tls.roots())));
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    server.relay("show", &tls.url("localhost", "show"));
    media::assert_clean(&cdn.wait_for("show", 100));
    server.wait_state("show", &tls.url("localhost", "show"), 2, secs(5));
}

#[test]
fn a_self_signed_certificate_is_trusted_if_it_is_named() {
    let cdn = Nginx::start();
    let tls = Tls::self_signed("localhost", cdn.port());
    let server = Server::start(Setup::server(format!("relay.ca_file = {:?}", tls.roots())));
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    server.relay("show", &tls.url("localhost", "show"));
    media::assert_clean(&cdn.wait_for("show", 100));
    let other_name = tls.url("127.0.0.1", "show");
    server.relay("show", &other_name);
    let refused = || server.rule("show", &other_name).filter(|rule| rule["UpdateReason"] != 0);
    let rule = eventually("another name is refused", secs(6), refused);
    assert!(rule["LastError"].as_str().is_some_and(|it| it.contains("certificate")), "{rule}");
}

#[test]
fn wrong_certificate_is_refused() {
    let cdn = Nginx::start();
    let other_name = Tls::start("other.example", cdn.port());
    let other_root = Tls::start("localhost", cdn.port());
    let server = Server::start(Setup::server(format!("relay.ca_file = {:?}", other_name.roots())));
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    for tls in [&other_name, &other_root] {
        let url = tls.url("localhost", "show");
        server.relay("show", &url);
        let rule = eventually("the refusal shows", secs(6), || {
            server.rule("show", &url).filter(|rule| rule["UpdateReason"] != 0)
        });
        assert_eq!(rule["UpdateReason"], 2, "{rule}");
        assert!(rule["LastError"].as_str().is_some_and(|it| it.contains("certificate")), "{rule}");
    }
    assert_eq!(cdn.sessions("show"), 0);
}
