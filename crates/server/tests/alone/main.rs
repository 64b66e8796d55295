//! What measures time: one at a time, with the machine to itself.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bywash_testkit::flv::Tag;
use bywash_testkit::media::assert_clean;
use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::sink::{latencies, quantile};
use bywash_testkit::{
    Browser, Flock, Forwarder, Machine, Manner, Media, Nginx, Publisher, Server, Setup, Sink, Unanswered, Way, alone,
    eventually, rtc, secs,
};

use client::Client;

#[allow(dead_code, reason = "the other test program has more kinds")]
#[path = "../server/client.rs"]
mod client;

/// 150 calls at 30 a second: the 99th percentile of what they took as far as the machine was there, in milliseconds.
fn call_p99(machine: &Machine, server: &Server) -> f64 {
    let call = |n: u32| {
        let called = Instant::now();
        let action = if n.is_multiple_of(2) { "DescribeStreams" } else { "DescribeCDNTransferRules" };
        let answer = server.call(action, &[]);
        assert!(answer["Code"] == 0, "{answer}");
        let answered = Instant::now();
        // What was late is not made up for: there are limits on the calls of a second.
        thread::sleep((secs(1) / 30).saturating_sub(called.elapsed()));
        (called, answered)
    };
    let calls: Vec<_> = (0..150).map(call).collect();
    let ms = |from, to| machine.ran(from, to).as_secs_f64() * 1e3;
    let mut all: Vec<f64> = calls.iter().map(|(called, answered)| ms(*called, *answered)).collect();
    all.sort_by(f64::total_cmp);
    println!("{} calls, p50 {:.1} ms, p99 {:.1} ms", all.len(), quantile(&all, 0.5), quantile(&all, 0.99));
    quantile(&all, 0.99)
}

/// Calls are answered within 50 ms. Where a machine stands still, what waits meanwhile has to be made up for, which takes a while too:
/// that comes and goes, but a slow server stays slow.
fn assert_calls_are_fast(machine: &Machine, server: &Server) {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|p99| *p99 >= 50.0) {
        assert!(seen.len() < 3, "p99 in ms: {seen:?}");
        seen.push(call_p99(machine, server));
    }
}

#[test]
fn one_black_holed_target_leaves_the_others_real_time() {
    let (_alone, machine) = (alone(), Machine::watch());
    let server = Server::start(Setup::default());
    let sinks = [(); 3].map(|()| Sink::start(Manner::Take));
    let _flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::FULL);
    for sink in &sinks {
        server.relay("show", &sink.url("show"));
    }
    sinks.iter().for_each(|sink| sink.wait_for("show", secs(5)));
    sinks[1].set(Manner::Deaf);
    sinks[2].set(Manner::BlackHole);
    let from = Instant::now();
    thread::sleep(secs(15));
    let session = sinks[0].session("show").expect("a session");
    let arrivals: Vec<_> = session.arrivals.into_iter().filter(|it| it.at > from && !it.is_header()).collect();
    let counts: Vec<u32> = arrivals.iter().map(|it| it.count()).collect();
    assert!(counts.windows(2).all(|pair| pair[1] == pair[0] + 1), "every message arrives, in order");
    assert!(arrivals.len() > 15 * 70, "{} messages", arrivals.len());
    let late = latencies(&arrivals, |from, to| machine.ran(from, to));
    assert!(quantile(&late, 0.5) < 10.0 && quantile(&late, 0.95) < 100.0, "p95 {} ms", quantile(&late, 0.95));
    assert_eq!(sinks[0].sessions().len(), 1);
}

#[test]
fn api_is_fast_while_targets_hang() {
    let (_alone, machine) = (alone(), Machine::watch());
    let server = Server::start(Setup::default());
    let (silent, unanswered) = (Sink::start(Manner::Silent), Unanswered::start());
    let names: Vec<String> = (0..5).map(|n| format!("show{n}")).collect();
    let publishers = names.iter().map(|name| Publisher::connect(&server.rtmp(name)).expect("it is taken")).collect();
    let _flow = Flow::start(publishers, Pace::SMALL);
    for name in &names {
        for n in 0..5 {
            server.relay(name, &silent.url(&format!("{name}-{n}")));
            server.relay(name, &format!("rtmp://127.0.0.1:{}/live/{name}-{n}", unanswered.port));
        }
    }
    eventually("they hang", secs(5), || (silent.connects().len() >= 25).then_some(()));
    assert_calls_are_fast(&machine, &server);
}

#[test]
fn nothing_to_do_costs_nothing() {
    let _alone = alone();
    let server = Server::start(Setup::default());
    thread::sleep(secs(1));
    let before = server.process().cpu();
    thread::sleep(secs(5));
    let used = server.process().cpu() - before;
    assert!(used < Duration::from_millis(10), "{used:?} in five idle seconds");
}

#[test]
fn scale_300_publishers_200_hanging_targets() {
    let (_alone, machine) = (alone(), Machine::watch());
    let server = Server::start(Setup::default());
    let (good, silent) = (Sink::start(Manner::Take), Sink::start(Manner::Silent));
    let names: Vec<String> = (0..300).map(|n| format!("s{n}")).collect();
    let publishers = names.iter().map(|name| Publisher::connect(&server.rtmp(name)).expect("it is taken")).collect();
    let _flow = Flow::start(publishers, Pace::SMALL);
    // Ten good targets, and twenty streams with ten hanging ones each.
    for name in &names[..10] {
        server.relay(name, &good.url(name));
    }
    for name in &names[10..30] {
        for n in 0..10 {
            server.relay(name, &silent.url(&format!("{name}-{n}")));
        }
    }
    eventually("they hang", secs(10), || (silent.connects().len() >= 200).then_some(()));
    let from = Instant::now();
    assert_calls_are_fast(&machine, &server);
    thread::sleep(secs(5));
    for name in &names[..10] {
        let session = good.session(name).expect("a session");
        let arrivals: Vec<_> = session.arrivals.into_iter().filter(|it| it.at > from).collect();
        let counts: Vec<u32> = arrivals.iter().filter(|it| !it.is_header()).map(|it| it.count()).collect();
        assert!(counts.len() > 9 * 15 && counts.windows(2).all(|pair| pair[1] == pair[0] + 1), "{name} lost frames");
        // A busy machine delays a few, or all for a moment; a server that cannot keep up delays ever more.
        let late = |of| latencies(of, |from, to| machine.ran(from, to));
        let p95 = quantile(&late(&arrivals[..]), 0.95);
        let end = arrivals.rchunks(30).take(3).map(|of| quantile(&late(of), 0.5)).fold(f64::INFINITY, f64::min);
        assert!(p95 < 250.0 && end < 100.0, "{name}: p95 {p95} ms, at the end {end} ms");
    }
    // A rate is measured from one look to the next.
    server.ok("DescribeStreams", &[("PageSize", "1000")]);
    thread::sleep(secs(2));
    let data = server.ok("DescribeStreams", &[("PageSize", "1000")]);
    assert_eq!(data["Total"], 300);
    let streams = data["Streams"].as_array().expect("a list");
    let slow: Vec<_> = streams.iter().filter(|it| it["Bitrate"].as_u64() < Some(60_000)).collect();
    assert!(slow.is_empty(), "{} streams are not taken in real time: {:?}", slow.len(), slow.first());
}

#[test]
fn scale_of_webrtc_without_a_picture_lost() {
    let (_alone, machine) = (alone(), Machine::watch());
    let soak = std::env::var_os("BYWASH_SOAK").is_some();
    let (idle, busy, span) = if soak { (100, 50, secs(30)) } else { (20, 10, secs(8)) };
    let (server, sink) = (Server::start(Setup::default()), Sink::start(Manner::Take));
    let names: Vec<String> = (0..busy).map(|n| format!("s{n}")).collect();
    names.iter().for_each(|name| server.relay(name, &sink.url(name)));
    let silent: Vec<String> = (0..idle).map(|n| server.whip(&format!("i{n}"))).collect();
    let silent = Flock::start(&silent, None);
    // 25 pictures a second: 300 kbit/s.
    let pace = Pace { frame_rate: 25, picture: 1250, audio: 0, group: 50 };
    let opus = Arc::new([vec![0xfc, 0xff, 0xfe]]);
    let addresses: Vec<String> = names.iter().map(|name| server.whip(name)).collect();
    let flock = Flock::start(&addresses, Some(rtc::Media { pace, opus }));
    names.iter().for_each(|name| sink.wait_for(name, secs(20)));
    let from = Instant::now();
    thread::sleep(span);
    let mut late = Vec::new();
    for name in &names {
        let session = sink.session(name).expect("a session");
        let arrivals: Vec<_> = session.arrivals.into_iter().filter(|it| it.at > from && it.kind == 9).collect();
        let counts: Vec<u32> = arrivals.iter().filter(|it| !it.is_header()).map(|it| it.count()).collect();
        let all = counts.len() as u64 > 22 * span.as_secs() && counts.windows(2).all(|pair| pair[1] == pair[0] + 1);
        assert!(all, "{name} lost pictures: {counts:?}");
        late.extend(latencies(&arrivals, |from, to| machine.ran(from, to)));
    }
    late.sort_by(f64::total_cmp);
    println!("{} pictures, p50 {:.1} ms, p99 {:.1} ms", late.len(), quantile(&late, 0.5), quantile(&late, 0.99));
    let (_, page) = server.get("/metrics").expect("metrics");
    for line in ["bywash_webrtc_dropped_total 0".to_owned(), format!("bywash_webrtc_publishers {}", idle + busy)] {
        assert!(page.lines().any(|it| it == line), "no {line} in {page}");
    }
    assert_eq!((silent.ended(), flock.ended()), (0, 0));
}

const BAD: Way = Way { loss: 0.05, delay: Duration::from_millis(50), jitter: Duration::from_millis(20) };

/// A bad way to the server's WebRTC port.
fn bad_network(server: &Server) -> Forwarder {
    Forwarder::start(server.webrtc_port(), BAD, 1)
}

#[test]
fn a_player_behind_a_bad_network_goes_on_decoding() {
    assert_plays_on("");
}

#[test]
fn a_player_without_rtx_behind_a_bad_network_goes_on_decoding() {
    assert_plays_on(
        "const add = RTCPeerConnection.prototype.addTransceiver;
        RTCPeerConnection.prototype.addTransceiver = function (kind, init) {
          const added = add.call(this, kind, init);
          const { codecs } = RTCRtpReceiver.getCapabilities(kind);
          added.setCodecPreferences(codecs.filter((it) => !/rtx/i.test(it.mimeType)));
          return added;
        };",
    );
}

/// A browser, in which `script` runs first, plays on behind a bad network: all pictures reach it whole, and it shows them while the
/// machine is there.
#[track_caller]
fn assert_plays_on(script: &str) {
    let (_alone, machine) = (alone(), Machine::watch());
    let (server, browser) = (Server::start(Setup::default()), Browser::start());
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    let forwarder = bad_network(&server);
    let script = forwarder.detour() + script;
    let page = browser.open(&format!("{}&auto=play", server.page("play", "show")), &script);
    page.wait("at('state').textContent === 'Playing.'", secs(20));
    let numbers = || {
        let told = page.eval(
            "session.numbers('inbound-rtp').then(({ video: it }) => it ? [it.framesReceived, it.framesDecoded,
              it.totalFreezesDuration, it.nackCount, it.timestamp / 1000] : [])",
        );
        [0, 1, 2, 3, 4].map(|n| told[n].as_f64().unwrap_or(0.0))
    };
    // The player learns in its first seconds how long a picture that was sent again takes, and plays so much later.
    eventually("ten seconds of pictures", secs(40), || (numbers()[0] > 250.0).then_some(()));
    let (begin, before) = (Instant::now(), numbers());
    thread::sleep(secs(20));
    let (after, end) = (numbers(), Instant::now());
    let (lost, nacks) = (forwarder.lost(), after[3]);
    let [received, decoded, frozen, _, took] = [0, 1, 2, 3, 4].map(|n| after[n] - before[n]);
    let ran = machine.ran(begin, end).as_secs_f64().min(took);
    println!(
        "{lost} datagrams lost, {nacks} asked for again; in {took:.1} s {received} pictures came, {decoded} were shown, {frozen:.2} s \
         frozen; the machine was there {ran:.1} s"
    );
    assert!(lost > 30 && nacks > 0.0, "{lost} datagrams lost, {nacks} asked for again");
    assert!(received > 25.0 * 0.9 * took, "{received} pictures in {took} s");
    assert!(decoded > 25.0 * 0.9 * ran && frozen < 0.1 * took + (took - ran), "{decoded} shown, {frozen} s frozen");
}

/// Without help nothing comes whole by such a line: sound loses a quarter, and what is sent again of the pictures the rest.
#[test]
fn a_player_whose_line_is_too_narrow_hears_all_and_sees_some() {
    let (_alone, machine) = (alone(), Machine::watch());
    let (server, browser) = (Server::start(Setup::default()), Browser::start());
    let way = Way { loss: 0.0, delay: Duration::from_millis(20), jitter: Duration::ZERO };
    // 500 kbit/s with their sound, with a keyframe each second and each ten.
    let players = [("show", Media::Plain), ("few", Media::FewKeyframes)].map(|(stream, media)| {
        let publishing = media.publish(&server.rtmp(stream));
        let forwarder = Forwarder::start(server.webrtc_port(), way, 1);
        let page = browser.open(&format!("{}&auto=play", server.page("play", stream)), &forwarder.detour());
        page.wait("at('state').textContent === 'Playing.'", secs(20));
        (page, forwarder, publishing)
    });
    let numbers = || {
        players.each_ref().map(|(page, ..)| {
            let told = page.eval(
                "session.numbers('inbound-rtp').then(({ video, audio }) =>
                  [video.framesDecoded, audio.totalSamplesReceived, audio.concealedSamples, video.keyFramesDecoded])",
            );
            [0, 1, 2, 3].map(|n| told[n].as_f64().expect("a number"))
        })
    };
    // Pictures, the share of the sound that was made up, and keyframes, of each player in so many seconds.
    let look = |seconds| {
        let (before, begin) = (numbers(), Instant::now());
        thread::sleep(secs(seconds));
        let (after, away) = (numbers(), machine.away(begin, Instant::now()).as_secs_f64());
        let came = [0, 1].map(|player| {
            let [pictures, samples, made_up, keys] = [0, 1, 2, 3].map(|n| after[player][n] - before[player][n]);
            println!("{pictures} pictures in {seconds} s, {keys} of them keyframes, {:.3} of the sound made up, away {away:.1}", made_up / samples);
            (pictures, made_up / samples, keys)
        });
        (came, away)
    };
    thread::sleep(secs(3));
    players.iter().for_each(|(_, forwarder, _)| forwarder.narrow(Some(400_000)));
    // What it takes is found out.
    look(30);
    let ([(pictures, lost, _), (few, few_lost, keys)], away) = look(20);
    assert!(lost < 0.05 + away / 20.0, "{lost} of the sound was made up");
    // More is lost each time that more is tried.
    assert!(few_lost < 0.15 + away / 20.0, "{few_lost} of the sound was made up where keyframes are few");
    assert!(pictures > 100.0 - 25.0 * away, "{pictures} of 500 pictures");
    // Where keyframes are few it takes longer to find out, and the last one does not go out again and again while the player waits for the next.
    assert!(few > 12.0 - 25.0 * away && keys < 4.0, "{few} pictures, {keys} keyframes");
    let (_, metrics) = server.get("/metrics").expect("metrics");
    assert!(!metrics.contains("bywash_webrtc_left_out_total 0\n"), "it counts what was left out");
}

#[test]
fn a_browser_behind_a_bad_network_is_relayed_without_freezes_and_holes() {
    let (_alone, machine) = (alone(), Machine::watch());
    let (nginx, server, browser) = (Nginx::start(), Server::start(Setup::default()), Browser::start());
    let forwarder = bad_network(&server);
    server.relay("cam", &nginx.url("cam"));
    let page = browser.open(&format!("{}&auto=camera", server.page("publish", "cam")), &forwarder.detour());
    let begin = Instant::now();
    page.wait("at('state').textContent === 'Live.'", secs(20));
    nginx.wait_for("cam", 20);
    thread::sleep(secs(30));
    let (lost, end) = (forwarder.lost(), Instant::now());
    // All that it has sent by then arrives while it goes on with sound alone.
    let sent = page.eval(
        "(async () => {
          await session.pc.getSenders().find((it) => it.track?.kind === 'video').replaceTrack(null);
          await new Promise((done) => setTimeout(done, 2000));
          return (await session.numbers('outbound-rtp')).video.framesSent;
        })()",
    );
    page.eval("at('stop').click()");
    let tags = only_recording(&nginx, "cam");
    let (sent, came) = (sent.as_u64().expect("a number"), times(&tags, 9).len() as u64);
    println!("{came} of {sent} pictures came");
    assert!(came * 10 > sent * 9, "{came} of {sent} pictures came");
    assert_flows(lost, &tags, machine.away(begin, end));
}

/// OBS sends lost packets again as they were, not by RTX, and makes no keyframe when asked.
#[test]
fn what_obs_publishes_by_is_relayed_from_behind_a_bad_network_without_freezes_and_holes() {
    let (_alone, machine) = (alone(), Machine::watch());
    let (nginx, server) = (Nginx::start(), Server::start(Setup::default()));
    let forwarder = bad_network(&server);
    server.relay("show", &nginx.url("show"));
    let client = Client::obs(&server.whip("show"), &["h264", &forwarder.port().to_string()]);
    client.wait("connected");
    assert_flows_half_a_minute(&machine, client, &forwarder, &nginx);
}

/// FFmpeg sends a keyframe's packets all at once, and lost ones again by RTX; it makes no keyframe when asked.
#[test]
fn ffmpeg_is_relayed_from_behind_a_bad_network_without_freezes_and_holes() {
    let (_alone, machine) = (alone(), Machine::watch());
    let public = format!("webrtc.public_addresses = [\"{}\"]", Forwarder::PUBLIC);
    let (nginx, server) = (Nginx::start(), Server::start(Setup::server(&public)));
    let forwarder = Forwarder::public(server.webrtc_port(), BAD, 1);
    server.relay("show", &nginx.url("show"));
    let client = Client::ffmpeg(&server.whip("show"), &["whip", "libx264", "libopus", "4000"]);
    assert_flows_half_a_minute(&machine, client, &forwarder, &nginx);
}

/// Lets the client publish `show` for that long.
#[track_caller]
fn assert_flows_half_a_minute(machine: &Machine, client: Client, forwarder: &Forwarder, nginx: &Nginx) {
    let begin = Instant::now();
    nginx.wait_for("show", 20);
    thread::sleep(secs(30));
    let (lost, end) = (forwarder.lost(), Instant::now());
    client.end();
    assert_flows(lost, &only_recording(nginx, "show"), machine.away(begin, end));
}

/// What arrived at the CDN in its one session.
#[track_caller]
fn only_recording(nginx: &Nginx, stream: &str) -> Vec<Tag> {
    let recordings = nginx.recordings(stream);
    assert_eq!(recordings.len(), 1, "one session");
    assert_clean(&recordings[0])
}

/// The decode times of the pictures (9) or the sound (8), in milliseconds.
fn times(tags: &[Tag], kind: u8) -> Vec<i64> {
    tags.iter().filter(|it| it.kind == kind && it.is_frame()).map(|it| it.timestamp).collect()
}

/// Half a minute of which `lost` datagrams were lost, and in which the machine was not there for as long as `away`, has pictures nearly
/// all the time, and sound all the time.
#[track_caller]
fn assert_flows(lost: u64, tags: &[Tag], away: Duration) {
    let gaps = |times: &[i64]| times.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
    let pictures = times(tags, 9);
    let length = pictures[pictures.len() - 1] - pictures[0];
    // A picture that stays for more than 150 ms longer than one of 20 a second should.
    let frozen: i64 = gaps(&pictures).into_iter().filter(|gap| *gap > 200).sum();
    println!("{lost} datagrams lost; of {length} ms {frozen} frozen, the machine not there for {away:.1?}");
    assert!(lost > 50 && length > 25_000, "{lost} datagrams lost in {length} ms");
    assert!(frozen < length / 20 + away.as_millis() as i64, "of {length} ms {frozen} frozen");
    let hole = gaps(&times(tags, 8)).into_iter().max().unwrap_or(i64::MAX);
    assert!(hole < 50, "a hole of {hole} ms in the sound");
}
