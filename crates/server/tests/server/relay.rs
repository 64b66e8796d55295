//! A stream goes to its CDN, and comes back to it after everything that can happen in between.

use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use bywash_testkit::flv::Tag;
use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::{Machine, Manner, Media, Nginx, Publisher, Server, Setup, Sink, eventually, media, secs, stays};

use crate::record::{clip, publish, with_hevc};

#[test]
fn relay_to_nginx_decodes_clean() {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::default()));
    let table = [Media::Plain, Media::BFrames, Media::VideoOnly, Media::AudioOnly];
    let publishing = table.map(|media| {
        let name = format!("{media:?}");
        let publishing = media.publish(&server.rtmp(&name));
        server.relay(&name, &cdn.url(&name));
        publishing
    });
    let files = table.map(|media| cdn.wait_for(&format!("{media:?}"), 120));
    for media in table {
        let name = format!("{media:?}");
        let rule = server.wait_state(&name, &cdn.url(&name), 2, secs(5));
        assert_eq!(rule["UpdateReason"], 0, "{rule}");
        assert!(rule["BytesSent"].as_u64() > Some(0), "{rule}");
    }
    drop(publishing);
    for (media, file) in table.into_iter().zip(files) {
        let (pictures, packets) = media::count(&media::assert_clean(&file));
        assert_eq!(pictures > 30, media != Media::AudioOnly, "{media:?}: {pictures} pictures");
        assert_eq!(packets > 30, media != Media::VideoOnly, "{media:?}: {packets} packets");
    }
}

#[test]
fn a_target_hears_of_a_stream_once_there_is_something_of_it() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    server.relay("show", &sink.url("show"));
    stays("no session at the target", secs(3), || sink.session("show").is_none());
    publisher.begin(false).expect("it is taken");
    publisher.video(0, true, 1000).expect("it is taken");
    eventually("the picture arrives", secs(5), || (sink.pictures("show") == 1).then_some(()));
}

#[test]
fn one_stream_goes_to_several_targets() {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::default()));
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    for name in ["a", "b", "c"] {
        server.relay("show", &cdn.url(name));
    }
    for name in ["a", "b", "c"] {
        media::assert_clean(&cdn.wait_for(name, 100));
    }
    server.unrelay("show", &cdn.url("b"));
    assert!(server.rule("show", &cdn.url("b")).is_none());
    let had = bywash_testkit::flv::tags(&cdn.recordings("a")[0]).0.len();
    cdn.wait_for("a", had + 50);
    assert_eq!(cdn.sessions("a"), 1);
}

#[test]
fn every_stream_goes_to_the_default_target_where_the_app_says_so() {
    let sink = Sink::start(Manner::Take);
    let base = sink.url("");
    let base = base.trim_end_matches('/');
    let server = Server::start(Setup::app(format!("cdn.default_target = \"{base}\"\ncdn.relay_everything = true")));
    let publisher = Publisher::connect(&server.rtmp("any")).expect("it is taken");
    let _flow = Flow::start(vec![publisher], Pace::SMALL);
    sink.wait_for("any", secs(5));
}

#[test]
fn a_default_relay_ends_by_a_call_or_a_reload_and_not_for_a_moment() {
    let (old, new) = (Sink::start(Manner::Take), Sink::start(Manner::Take));
    let base = |sink: &Sink| sink.url("").trim_end_matches('/').to_owned();
    let setup = Setup::app(format!("cdn.default_target = {:?}\ncdn.relay_everything = true", base(&old)));
    let server = Server::start(setup);
    let publish = |name| Flow::start(vec![Publisher::connect(&server.rtmp(name)).expect("it is taken")], Pace::SMALL);
    let _flows = ["a", "b"].map(publish);
    ["a", "b"].iter().for_each(|name| old.wait_for(name, secs(5)));
    let closed = |sink: &Sink, name: &str| sink.session(name).filter(|it| it.closed);
    server.unrelay("a", &old.url("a"));
    eventually("the call ends it", secs(5), || closed(&old, "a"));
    // What wakes the stream's plan does not bring it back.
    server.relay("a", &new.url("mine"));
    new.wait_for("mine", secs(5));
    stays("it is not there again", secs(2), || old.sessions().len() == 2 && server.rule("a", &old.url("a")).is_none());

    let config = std::fs::read_to_string(server.config()).expect("a configuration");
    let reload = |config: &str| {
        std::fs::write(server.config(), config).expect("a file of ours");
        server.process().signal("HUP");
    };
    reload(&config.replace(&base(&old), &base(&new)));
    ["a", "b"].iter().for_each(|name| new.wait_for(name, secs(5)));
    eventually("the old target is left", secs(5), || closed(&old, "b"));
    reload(&config.replace("relay_everything = true", "relay_everything = false"));
    ["a", "b"].iter().for_each(|name| drop(eventually("no default relay is left", secs(5), || closed(&new, name))));
    assert!(server.rule("a", &new.url("mine")).is_some_and(|rule| rule["State"] == 2), "a call's rule stays");
}

#[test]
fn a_rule_without_an_address_takes_the_default_target() {
    let sink = Sink::start(Manner::Take);
    let base = sink.url("");
    let server = Server::start(Setup::app(format!("cdn.default_target = {:?}", base.trim_end_matches('/'))));
    let publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    let _flow = Flow::start(vec![publisher], Pace::SMALL);
    server.ok("CreatCDNTransferRule", &[("StreamId", "show")]);
    sink.wait_for("show", secs(5));
}

#[test]
fn relay_survives_cdn_restart() {
    let (mut cdn, server, machine) = (Nginx::start(), Server::start(Setup::default()), Machine::watch());
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    server.relay("show", &cdn.url("show"));
    cdn.wait_for("show", 50);
    for outage in [secs(1), secs(5)] {
        let sessions = cdn.sessions("show");
        cdn.down();
        std::thread::sleep(outage);
        cdn.up();
        let up = Instant::now();
        eventually("the relay is back", secs(20), || (cdn.sessions("show") > sessions).then_some(()));
        let back = Instant::now();
        std::thread::sleep(secs(2));
        let after = machine.ran(up, back);
        assert!(after < secs(2), "back {after:?} after the CDN, outage {outage:?}");
    }
    for file in cdn.recordings("show") {
        media::assert_clean(&file);
    }
}

#[test]
fn cdn_drop_reconnects_and_second_publisher_is_refused() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    let _flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::SMALL);
    server.relay("show", &sink.url("show"));
    sink.wait_for("show", secs(5));
    let refusal = Publisher::connect(&server.rtmp("show")).err().expect("a second publisher is refused");
    assert!(refusal.to_string().contains("BadName"), "{refusal}");
    stays("one session", secs(1), || sink.sessions().len() == 1);
    sink.set(Manner::Close);
    eventually("the CDN drops it", secs(2), || sink.session("show").filter(|it| it.closed));
    sink.set(Manner::Take);
    sink.wait_for("show", secs(4));
    assert_eq!(sink.sessions().len(), 2, "one relay, come back once");
    let again = sink.session("show").expect("a session");
    let first = again.arrivals.iter().find(|it| !it.is_header()).expect("a picture");
    assert!(again.arrivals[0].is_header() && first.is_key(), "it begins with header and keyframe");
}

#[test]
fn publisher_blip_keeps_cdn_session() {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::default()));
    let publishing = Media::Plain.publish(&server.rtmp("show"));
    server.relay("show", &cdn.url("show"));
    cdn.wait_for("show", 150);
    drop(publishing);
    let away = Instant::now();
    std::thread::sleep(Duration::from_millis(500));
    let had = bywash_testkit::flv::tags(&cdn.recordings("show")[0]).0.len();
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    cdn.wait_for("show", had);
    let away = away.elapsed().as_millis() as i64;
    let file = cdn.wait_for("show", had + 150);
    assert_eq!(cdn.sessions("show"), 1, "the CDN saw one session");
    let tags = media::assert_clean(&file);
    let times: Vec<i64> = tags.iter().filter(|tag| tag.kind == 9 && tag.is_frame()).map(|tag| tag.timestamp).collect();
    let gap = times.windows(2).map(|pair| pair[1] - pair[0]).max().expect("pictures");
    assert!(gap < away + 1000, "the timeline leaps by {gap} ms, the publisher was away for {away} ms");
}

#[test]
fn a_publisher_that_stays_away_ends_the_cdn_session() {
    let sink = Sink::start(Manner::Take);
    let server = Server::start(Setup::server("publish.grace = \"1s\""));
    let flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::SMALL);
    server.relay("show", &sink.url("show"));
    sink.wait_for("show", secs(5));
    drop(flow);
    let ended = eventually("the session ends", secs(4), || sink.session("show").filter(|it| it.closed));
    assert!(ended.unpublished, "with FCUnpublish or deleteStream");
    server.wait_state("show", &sink.url("show"), 0, secs(2));
    let _flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::SMALL);
    eventually("the rule fires again", secs(5), || (sink.sessions().len() == 2).then_some(()));
}

#[test]
fn a_paused_cdn_gets_whole_pictures_afterwards() {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::default()));
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    server.relay("show", &cdn.url("show"));
    cdn.wait_for("show", 50);
    cdn.process().signal("STOP");
    std::thread::sleep(secs(4));
    cdn.process().signal("CONT");
    let had = bywash_testkit::flv::tags(cdn.recordings("show").last().expect("a file")).0.len();
    cdn.wait_for("show", had + 100);
    for file in cdn.recordings("show") {
        let tags = media::assert_clean(&file);
        assert!(tags.iter().any(Tag::is_frame));
    }
}

/// Publishes three seconds of sound, and pictures of this codec from `from` ms on, where a rule waits for them; gives what each connection
/// offered of enhanced RTMP, and whether it was ended in order.
fn offered(hevc: bool, from: i64) -> Vec<(bool, bool)> {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::server("publish.grace = \"0s\"")));
    server.relay("show", &sink.url("show"));
    let mut clip = if hevc { with_hevc("320x180", 3000) } else { clip(Media::Plain, 3000) };
    clip.iter_mut().filter(|it| it.0 == 9).for_each(|it| it.1 += from);
    clip.sort_by_key(|it| it.1);
    assert!(publish(&server.rtmp("show"), &clip, &AtomicI64::new(0)), "the publish goes on");
    assert!(sink.pictures("show") > 60, "{} pictures", sink.pictures("show"));
    assert_eq!(server.rule("show", &sink.url("show")).expect("the rule")["Retries"], 0);
    let sessions = sink.sessions();
    assert_eq!(sink.connects().len(), sessions.len());
    sessions.iter().map(|it| (it.fourcc.iter().any(|it| it == "hvc1"), it.unpublished)).collect()
}

#[test]
fn enhanced_rtmp_is_offered_to_a_target_that_gets_it_and_to_no_other() {
    assert_eq!(offered(true, 0).iter().map(|it| it.0).collect::<Vec<_>>(), [true]);
    assert_eq!(offered(false, 0).iter().map(|it| it.0).collect::<Vec<_>>(), [false]);
}

#[test]
fn a_stream_that_comes_to_need_enhanced_rtmp_goes_on_in_a_session_that_offers_it() {
    let offered = offered(true, 1500);
    assert_eq!(offered.iter().map(|it| it.0).collect::<Vec<_>>(), [false, true]);
    assert!(offered[0].1, "the first is ended in order");
}
