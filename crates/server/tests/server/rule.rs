//! Rules are data: whatever the order of calls, they say what runs.

use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::{Manner, Publisher, Server, Setup, Sink, eventually, secs, stays};

fn live(server: &Server, name: &str) -> Flow {
    Flow::start(vec![Publisher::connect(&server.rtmp(name)).expect("it is taken")], Pace::SMALL)
}

#[test]
fn rule_set_before_live_fires_on_publish() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    let url = sink.url("show");
    server.relay("show", &url);
    server.relay("show", &url);
    server.unrelay("show", &url);
    server.relay("show", &format!("{url}?newer=1"));
    assert_eq!(server.rules("show").len(), 1);
    assert_eq!(server.rule("show", &url).expect("the rule")["State"], 0);
    assert!(sink.connects().is_empty());
    let _flow = live(&server, "show");
    sink.wait_for("show", secs(5));
    server.wait_state("show", &url, 2, secs(5));
    server.relay("show", &url);
    stays("one session", secs(2), || sink.sessions().len() == 1);
    assert_eq!(sink.sessions()[0].name, "show?newer=1");
}

#[test]
fn rules_survive_kill_9() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    server.relay("show", &sink.url("kept"));
    server.relay("show", &sink.url("deleted"));
    server.unrelay("show", &sink.url("deleted"));
    let flow = live(&server, "show");
    sink.wait_for("kept", secs(5));
    let server = server.kill_9_and_start();
    drop(flow);
    let rules = server.rules("show");
    assert_eq!(rules.len(), 1, "{rules:?}");
    assert_eq!(rules[0]["State"], 0, "nothing runs before the stream returns: {}", rules[0]);
    let _flow = live(&server, "show");
    sink.wait_for("kept", secs(5));
    server.wait_state("show", &sink.url("kept"), 2, secs(5));
    assert!(sink.session("deleted").is_none());
}

#[test]
fn delete_always_works() {
    let server = Server::start(Setup::default());
    let table = [Manner::Take, Manner::Silent, Manner::Refuse("NetStream.Publish.BadName"), Manner::Close];
    let sinks = table.map(Sink::start);
    let away = Sink::start(Manner::Take);
    away.shut();
    let _flow = live(&server, "show");
    for sink in sinks.iter().chain([&away]) {
        server.relay("show", &sink.url("show"));
    }
    sinks[0].wait_for("show", secs(5));
    for sink in sinks[1..].iter() {
        eventually("each was tried", secs(5), || (!sink.connects().is_empty()).then_some(()));
    }
    for sink in sinks.iter().chain([&away]) {
        server.unrelay("show", &sink.url("show"));
    }
    assert!(server.rules("show").is_empty());
    eventually("the running one ends", secs(2), || sinks[0].session("show").filter(|it| it.closed && it.unpublished));
    let none_runs = || server.get("/metrics").expect("metrics").1.lines().any(|it| it == "bywash_relays 0");
    eventually("none runs", secs(2), || none_runs().then_some(()));
    // What was on its way has come.
    std::thread::sleep(secs(1));
    let had = sinks.each_ref().map(|sink| sink.connects().len());
    stays("nobody is called again", secs(5), || sinks.each_ref().map(|sink| sink.connects().len()) == had);
    server.unrelay("show", &away.url("show"));
}

#[test]
fn clear_takes_the_waiting_and_leaves_the_running() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    let waiting = Sink::start(Manner::Silent);
    let _flow = live(&server, "show");
    server.relay("show", &sink.url("show"));
    server.relay("show", &waiting.url("show"));
    server.relay("other", &sink.url("other"));
    server.wait_state("show", &sink.url("show"), 2, secs(5));
    server.ok("ClearCDNTransferRule", &[("StreamId", "show")]);
    assert_eq!(server.rules("show").len(), 1);
    assert_eq!(server.rules("other").len(), 1);
    sink.wait_for("show", secs(2));
}

#[test]
fn retry_connects_now() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    let url = sink.url("show");
    sink.set(Manner::Refuse("NetStream.Publish.BadName"));
    let _flow = live(&server, "show");
    server.relay("show", &url);
    let refused =
        eventually("the refusal shows", secs(5), || server.rule("show", &url).filter(|rule| rule["UpdateReason"] == 5));
    assert!(refused["NextRetryTime"].as_i64() > Some(0), "{refused}");
    assert!(refused["LastError"].as_str().is_some_and(|it| it.contains("BadName")), "{refused}");
    sink.set(Manner::Take);
    server.ok("RetryCDNTransferRule", &[("StreamId", "show"), ("CDNUrl", &url)]);
    sink.wait_for("show", secs(2));
}
