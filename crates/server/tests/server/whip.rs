//! WebRTC publishers and players of other people's making, and HTTP as it should not be spoken.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bywash_testkit::publisher::Pace;
use bywash_testkit::server::{APP, PUBLISH_KEY, publish_query};
use bywash_testkit::{
    Flock, Machine, Manner, Media, Nginx, Process, Receiver, Scratch, Server, Setup, Sink, eventually, flv, media, rtc,
    secs,
};

use crate::client::Client;
use crate::enhanced::{av1_decodes, h265_decodes};

#[test]
fn whip_is_relayed_and_told_of() {
    let receiver = Receiver::start();
    let (cdn, server) = (Nginx::start(), Server::start(Setup::app(format!("callback.stream = {:?}", receiver.url()))));
    server.relay("show", &cdn.url("show"));
    let client = Client::publish(&server, "show", &["--video-only"]);
    let recorded = cdn.wait_for("show", 150);
    let created = receiver.wait_any("stream_create", "show");
    assert!(created["stream_attr"].to_string().contains("cid"), "{created:?}");
    let described = server.ok("DescribeStreams", &[("StreamId", "show")]);
    assert_eq!(
        (&described["Streams"][0]["Protocol"], &described["Streams"][0]["VideoCodec"]),
        (&"WHIP".into(), &"H.264".into())
    );
    let told = |line: &str| server.get("/metrics").is_ok_and(|(_, page)| page.lines().any(|it| it == line));
    assert!(told("bywash_webrtc_publishers 1") && told("bywash_webrtc_dropped_total 0"));
    client.end();
    assert_eq!(receiver.wait_any("stream_close", "show")["type"], "0");
    assert!(told("bywash_webrtc_publishers 0") && told("bywash_webrtc_players 0"));
    media::assert_clean(&recorded);
}

#[test]
fn ffmpeg_is_relayed_by_whip() {
    assert_relayed(|url| Client::ffmpeg(url, &["whip", "libx264", "libopus"]), "pictures 30");
}

/// What a client publishes arrives at a CDN, and its end ends the stream.
#[track_caller]
fn assert_relayed(publish: impl FnOnce(&str) -> Client, begun: &str) {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::default()));
    server.relay("show", &cdn.url("show"));
    let client = publish(&server.whip("show"));
    client.wait(begun);
    let recorded = cdn.wait_for("show", 300);
    client.end();
    eventually("DELETE ends the stream", secs(5), || {
        server.ok("DescribeStreams", &[])["Streams"].as_array()?.is_empty().then_some(())
    });
    let (pictures, sounds) = media::count(&media::assert_clean(&recorded));
    assert!(pictures > 50 && sounds > 80, "{pictures} pictures, {sounds} packets of sound");
}

/// What else is legal, or is not and comes all the same: streams that nothing in the offer or their packets names, packets that are none of
/// H.264, parameter sets that are in the offer alone, and two streams of pictures in turns, each with numbers of its own.
#[test]
fn whatever_form_a_client_publishes_in_its_pictures_go_on() {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::default()));
    let clients = ["bare", "damaged", "told", "switching"].map(|form| {
        server.relay(form, &cdn.url(form));
        (form, Client::publish(&server, form, &[&format!("--{form}")]))
    });
    // At least twelve seconds.
    let recorded = clients.each_ref().map(|(form, _)| {
        cdn.wait_for(form, 100);
        eventually("enough has come", secs(60), || {
            cdn.recordings(form).pop().filter(|recording| flv::tags(recording).0.len() > 1_000)
        })
    });
    for ((form, client), recorded) in clients.into_iter().zip(recorded) {
        client.end();
        let tags = media::assert_clean(&recorded);
        let (pictures, sounds) = media::count(&tags);
        assert!(pictures > 200 && sounds > 400, "{form}: {pictures} pictures, {sounds} packets of sound");
        let times: Vec<_> =
            tags.iter().filter(|tag| tag.kind == 9 && tag.is_frame()).map(|tag| tag.timestamp).collect();
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest < Some(3_000), "{form}: pictures stood still for {longest:?} ms");
    }
    let log = server.output();
    let warned: Vec<_> = log.lines().filter(|line| line.contains("decrypt")).collect();
    assert!(warned.is_empty(), "{warned:?}");
}

#[test]
fn an_rtmp_player_hears_a_webrtc_stream_in_what_it_takes() {
    let server = Server::start(Setup::default());
    let client = Client::ffmpeg(&server.whip("show"), &["whip", "libx264", "libopus"]);
    client.wait("pictures 30");
    let dir = Scratch::new();
    let mut player = Command::new("ffmpeg");
    player.args(["-v", "error", "-i", &server.rtmp("show"), "-t", "3", "-c", "copy"]).arg(dir.join("played.flv"));
    assert!(player.stdin(Stdio::null()).status().expect("ffmpeg; run `make setup`").success());
    let tags = media::assert_clean(&dir.join("played.flv"));
    let (pictures, sounds) = media::count(&tags);
    assert!(pictures > 60 && sounds > 100, "{pictures} pictures, {sounds} packets of sound");
    assert!(tags.iter().filter(|tag| tag.kind == 8).all(|tag| tag.body[0] >> 4 == 10), "AAC");

    for (takes, codec) in [("hvc1", "aac"), ("Opus", "opus")] {
        let heard = Client::player(&server.rtmp("show"), takes);
        heard.wait(&format!("h264 {codec}"));
    }
    client.end();
}

/// Pages do that: `RTCPeerConnection.close`, then DELETE.
#[test]
fn who_has_closed_the_connection_may_still_delete_the_session() {
    let server = Server::start(Setup::default());
    let publisher = Client::publish(&server, "show", &["--close-first"]);
    let player = Client::aiortc(&server.whep("show"), &["--play", "--close-first"]);
    player.wait("connected");
    for client in [player, publisher] {
        let said = client.end();
        assert!(said.lines().any(|line| line == "deleted"), "{said}");
    }
}

#[test]
fn gstreamer_is_relayed_in_h264() {
    assert_relayed(|url| Client::gstreamer(url, "H264"), "connected");
}

/// GStreamer sends no ICE check for 25 s once it is connected.
#[test]
fn clients_that_check_nothing_stay_while_their_media_and_reports_come_and_go_with_them() {
    let server = Server::start(Setup { everywhere: true, ..Setup::server("publish.grace = \"1s\"") });
    let sink = Sink::start(Manner::Keep);
    server.relay("show", &sink.url("show"));
    let client = Client::gstreamer(&server.whip("show"), "H264");
    client.wait("connected");
    let player = Client::gstreamer(&server.whep("show"), "play");
    player.wait("connected");
    let played =
        || player.said().lines().rev().find_map(|line| line.strip_prefix("packets ")?.parse().ok()).unwrap_or(0);
    let begin = Instant::now();
    while begin.elapsed() < secs(24) {
        let had: (usize, u64) = (sink.pictures("show"), played());
        eventually("pictures come", secs(10), || (sink.pictures("show") > had.0 && played() > had.1).then_some(()));
    }
    assert_eq!(sink.sessions().len(), 1);
    drop(client);
    eventually("the stream ends", secs(30), || {
        server.ok("DescribeStreams", &[])["Streams"].as_array()?.is_empty().then_some(())
    });
}

#[test]
fn gstreamer_is_relayed_in_h265_to_a_target_that_takes_it() {
    let (sink, server) = (Sink::start(Manner::Keep), Server::start(Setup::default()));
    server.relay("show", &sink.url("show"));
    let client = Client::gstreamer(&server.whip("show"), "H265");
    client.wait("connected");
    eventually("pictures", secs(20), || (sink.pictures("show") > 60).then_some(()));
    assert_eq!(server.ok("DescribeStreams", &[("StreamId", "show")])["Streams"][0]["VideoCodec"], "H.265");
    client.end();
    h265_decodes(&sink.session("show").expect("a session").kept);
}

#[test]
fn what_obs_publishes_by_is_relayed_in_h264() {
    assert_relayed(|url| Client::obs(url, &["h264"]), "connected");
}

#[test]
fn what_obs_publishes_by_is_relayed_in_h265_and_av1_to_a_target_that_takes_them() {
    let (sink, server) = (Sink::start(Manner::Keep), Server::start(Setup::default()));
    for (codec, name) in [("h265", "H.265"), ("av1", "AV1")] {
        server.relay(codec, &sink.url(codec));
        let client = Client::obs(&server.whip(codec), &[codec]);
        client.wait("connected");
        eventually("pictures", secs(20), || (sink.pictures(codec) > 60).then_some(()));
        assert_eq!(server.ok("DescribeStreams", &[("StreamId", codec)])["Streams"][0]["VideoCodec"], name);
        client.end();
    }
    h265_decodes(&sink.session("h265").expect("a session").kept);
    av1_decodes(&sink.session("av1").expect("a session").kept);
}

#[test]
fn a_whip_publisher_that_vanishes_comes_back_into_the_same_cdn_session() {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::server("publish.grace = \"30s\"")));
    server.relay("show", &cdn.url("show"));
    let client = Client::publish(&server, "show", &["--video-only"]);
    cdn.wait_for("show", 60);
    drop(client);
    // Its session is not known to be dead for seconds: until it has been silent for a while it keeps its place.
    let client = eventually("it is taken again", secs(20), || {
        let again = Client::aiortc(&server.whip("show"), &["--video-only"]);
        let said = eventually("taken or refused", secs(15), || {
            let said = again.said();
            (said.contains("connected") || said.contains("409")).then_some(said)
        });
        said.contains("connected").then_some(again)
    });
    let before = cdn.recordings("show").len();
    let tags = bywash_testkit::flv::tags(&cdn.recordings("show")[0]).0.len();
    let recorded = cdn.wait_for("show", tags + 60);
    assert_eq!((before, cdn.sessions("show")), (1, 1));
    client.end();
    media::assert_clean(&recorded);
}

#[test]
fn an_rtmp_publisher_takes_the_place_of_a_silent_whip_session() {
    let server = Server::start(Setup::default());
    let begin = Instant::now();
    assert_eq!(post(&server, "show", "", &offer()).expect("an answer").0, 201);
    let plays = || server.ok("DescribeStreams", &[("StreamId", "show")])["Streams"][0]["VideoCodec"] == "H.264";
    assert!(!plays());
    let _publishing = eventually("it is taken", secs(20), || {
        let mut publishing = Media::Plain.publish(&server.rtmp("show"));
        eventually("taken or refused", secs(10), || (plays() || publishing.exit_code().is_some()).then_some(()));
        plays().then_some(publishing)
    });
    // Such a session ends by itself, but later.
    assert!(begin.elapsed() < secs(14), "{:?}", begin.elapsed());
}

#[test]
fn a_forbidden_whip_publisher_is_cut_and_refused() {
    let server = Server::start(Setup::default());
    let client = Client::publish(&server, "show", &["--video-only"]);
    server.ok("ForbidRTCStream", &[("StreamId", "show")]);
    client.wait("closed");
    let (status, _, body) = post(&server, "show", "", &offer()).expect("an answer");
    assert_eq!((status, body.contains("forbidden")), (403, true), "{body}");
}

#[test]
fn what_was_sent_just_before_delete_arrives() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    let names: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
    names.iter().for_each(|name| server.relay(name, &sink.url(name)));
    let addresses: Vec<String> = names.iter().map(|name| server.whip(name)).collect();
    let pace = Pace { frame_rate: 25, picture: 1250, audio: 0, group: 50 };
    let media = rtc::Media { pace, opus: Arc::new([vec![0xfc, 0xff, 0xfe]]) };
    let flock = Flock::start(&addresses, Some(media));
    names.iter().for_each(|name| sink.wait_for(name, secs(20)));
    let sent = flock.delete();
    let arrived = |name: &String| {
        let mut pictures = sink.session(name)?.arrivals.into_iter().filter(|it| it.kind == 9 && !it.is_header());
        Some(pictures.next_back()?.count() + 1)
    };
    let all = || names.iter().filter_map(arrived).collect::<Vec<_>>();
    eventually(&format!("{sent:?} pictures, not {:?}", all()), secs(5), || (all() == sent).then_some(()));
}

#[test]
fn whep_plays_what_rtmp_publishes() {
    let server = Server::start(Setup::default());
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    server.wait_live("show", secs(5));
    let player = Client::aiortc(&server.whep("show"), &["--play"]);
    player.wait("connected");
    eventually("pictures are decoded", secs(20), || pictures(&player).filter(|n| *n > 30));
    player.end();
}

/// Whoever publishes by RTMP makes no keyframe when asked, and here the next is up to ten seconds away.
#[test]
fn a_player_that_lost_a_picture_is_sent_the_newest_keyframe_again() {
    let (machine, server) = (Machine::watch(), Server::start(Setup::default()));
    let _publishing = Media::FewKeyframes.publish(&server.rtmp("show"));
    server.wait_live("show", secs(5));
    let player = Client::aiortc(&server.whep("show"), &["--play", "--ask"]);
    let begin = Instant::now();
    let took = eventually("a keyframe comes", secs(20), || {
        player.said().lines().find_map(|line| line.strip_prefix("keyframe after ")?.parse::<u32>().ok())
    });
    let away = machine.away(begin, Instant::now()).as_millis() as u32;
    // Sooner the publisher might still have made one.
    assert!((700..4_000 + away).contains(&took), "{took} ms, the machine was not there for {away}");
    let seen = pictures(&player).unwrap_or(0);
    eventually("pictures go on", secs(5), || pictures(&player).filter(|n| *n > seen + 50));
    player.end();
}

#[test]
fn a_player_can_keep_sound_and_pictures_together_by_the_sender_reports() {
    let server = Server::start(Setup::default());
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    server.wait_live("show", secs(5));
    let player = Client::aiortc(&server.whep("show"), &["--play"]);
    // A report tells of sound each five seconds.
    eventually("they agree", secs(20), || {
        let said = player.said();
        let apart = said.lines().rev().find_map(|line| line.strip_prefix("apart ")?.parse::<u32>().ok());
        apart.filter(|ms| *ms <= 40)
    });
    player.end();
}

#[test]
fn pictures_go_by_the_section_that_carries_them() {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::default()));
    server.relay("show", &cdn.url("show"));
    let client = Client::publish(&server, "show", &["--idle-first"]);
    let recorded = cdn.wait_for("show", 60);
    let player = Client::aiortc(&server.whep("show"), &["--play", "--idle-first"]);
    eventually("pictures are decoded", secs(20), || pictures(&player).filter(|n| *n > 30));
    player.end();
    client.end();
    let (pictures, _) = media::count(&media::assert_clean(&recorded));
    assert!(pictures > 20, "{pictures} pictures");
}

/// How many pictures a player has decoded, as it says.
fn pictures(player: &Client) -> Option<u32> {
    player.said().lines().rev().find_map(|line| line.strip_prefix("pictures ")?.split(' ').next()?.parse().ok())
}

/// What a browser offers, about.
fn offer() -> String {
    let session = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n";
    let transport = format!(
        "c=IN IP4 0.0.0.0\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdef01234567\r\na=fingerprint:sha-256 {}\r\na=setup:actpass\r\na=sendonly\r\na=rtcp-mux\r\n",
        ["AB"; 32].join(":")
    );
    let video =
        "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;profile-level-id=42e01f\r\na=rtcp-fb:96 nack pli\r\n";
    format!(
        "{session}m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n{transport}a=mid:0\r\na=rtpmap:111 opus/48000/2\r\n\
         m=video 9 UDP/TLS/RTP/SAVPF 96\r\n{transport}a=mid:1\r\n{video}"
    )
}

fn post(server: &Server, stream: &str, query: &str, body: &str) -> std::io::Result<(u16, String, String)> {
    let path = format!("/whip/v1/{APP}/{stream}?{query}");
    server.request("POST", &path, &["Content-Type: application/sdp"], body.as_bytes())
}

#[test]
fn whip_refuses_with_a_reason() {
    let server = Server::start(Setup::server("webrtc.max_sessions = 2"));
    let good = offer();
    let vp8 = good.replace("H264/90000", "VP8/90000");
    let mode2 = good.replace("packetization-mode=1;", "packetization-mode=2;");
    let many = good.clone() + &"m=video 9 UDP/TLS/RTP/SAVPF 96\r\n".repeat(500);
    let table = [
        ("no SDP", "hello".to_owned(), 400, "SDP"),
        ("nothing", String::new(), 400, "SDP"),
        ("not UTF-8 as sent", "v=0\0\u{1}".to_owned(), 406, "no sendonly"),
        ("a megabyte", "v=0\r\n".to_owned() + &"a=x\r\n".repeat(200_000), 413, "larger"),
        ("500 sections", many, 400, "16 media"),
        (
            "candidates without end",
            good.clone() + &"a=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\n".repeat(100),
            400,
            "64 cand",
        ),
        ("VP8 alone", vp8, 406, "VP8"),
        ("interleaved H.264", mode2, 406, "(H264) will do"),
        ("a player", good.replace("sendonly", "recvonly"), 406, "sendonly"),
        ("no credentials", good.replace("a=ice-", "a=x-"), 400, "ice-ufrag"),
        ("a short user", good.replace("ufrag:abcd", "ufrag:a"), 400, "4 to 256"),
        ("a short password", good.replace("pwd:0123456789abcdef", "pwd:"), 400, "22 to 256"),
        ("no connection wanted", good.replace("actpass", "holdconn"), 406, "holdconn"),
        ("no fingerprint", good.replace("a=fingerprint", "a=x"), 400, "fingerprint"),
        ("no mid", good.replace("a=mid:", "a=x:"), 406, "a=group:BUNDLE"),
    ];
    for (what, body, status, reason) in table {
        let begin = Instant::now();
        let (got, head, text) = post(&server, "show", "", &body).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((got, text.contains(reason)), (status, true), "{what}: {text}");
        assert!(head.contains("access-control-allow-origin: *") && begin.elapsed() < secs(2), "{what}: {head}");
    }
    let path = format!("/whip/v1/{APP}/show");
    let sdp = &["Content-Type: application/sdp"][..];
    let other = [
        ("PUT", path.clone(), sdp, 405),
        ("GET", format!("{path}/{}", "0".repeat(32)), sdp, 404),
        ("POST", path.clone(), &["Content-Type: text/plain"][..], 415),
        ("POST", format!("/whip/v1/{}/show", APP + 1), sdp, 404),
        ("POST", format!("/whip/v1/{APP}/a%20b"), sdp, 400),
        ("DELETE", format!("{path}/0123"), sdp, 404),
        ("DELETE", format!("{path}/{}", "0".repeat(32)), sdp, 404),
        ("POST", format!("/whep/v1/{APP}/none"), sdp, 406),
    ];
    for (method, path, headers, status) in other {
        let (got, _, text) = server.request(method, &path, headers, offer().as_bytes()).expect("an answer");
        assert_eq!(got, status, "{method} {path}: {text}");
    }
    assert_eq!(server.ok("DescribeStreams", &[("StreamId", "show")])["Total"], 0, "no refusal holds the stream");

    // Two are taken, though nothing ever comes of them; one more of the same stream or of any is not.
    assert_eq!(post(&server, "show", "", &good).expect("an answer").0, 201);
    let (status, _, text) = post(&server, "show", "", &good).expect("an answer");
    assert_eq!((status, text.contains("published already")), (409, true), "{text}");
    assert_eq!(post(&server, "other", "", &good).expect("an answer").0, 201);
    let (status, head, _) = post(&server, "third", "", &good).expect("an answer");
    assert_eq!((status, head.contains("retry-after")), (503, true), "{head}");
    eventually("sessions that never connect make room", secs(25), || {
        (post(&server, "third", "", &good).expect("an answer").0 == 201).then_some(())
    });
}

#[test]
fn whep_refuses_a_stream_of_which_nothing_could_be_heard() {
    let server = Server::start(Setup::default());
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-re", "-f", "lavfi", "-i", "sine", "-c:a", "libmp3lame", "-f", "flv"]);
    let _publishing = Process::start(ffmpeg.arg(server.rtmp("show")).stdin(Stdio::null()).stderr(Stdio::null()));
    let described = || server.ok("DescribeStreams", &[("StreamId", "show")]);
    eventually("its sound is known", secs(10), || (described()["Streams"][0]["AudioCodec"] == "MP3").then_some(()));
    let offer = offer().replace("sendonly", "recvonly");
    let path = format!("/whep/v1/{APP}/show");
    let answer = server.request("POST", &path, &["Content-Type: application/sdp"], offer.as_bytes());
    let (status, _, text) = answer.expect("an answer");
    assert_eq!((status, text.contains("MP3")), (406, true), "{text}");
}

#[test]
fn a_session_that_never_connects_ends_its_stream_with_it() {
    let server = Server::start(Setup::server("publish.grace = \"10m\""));
    assert_eq!(post(&server, "show", "", &offer()).expect("an answer").0, 201);
    let live = || server.ok("DescribeStreams", &[("StreamId", "show")])["Total"] == 1;
    assert!(live());
    eventually("the stream is gone", secs(40), || (!live()).then_some(()));
}

#[test]
fn whip_wants_its_token_as_a_bearer() {
    let server = Server::start(Setup::app("publish_auth = \"token\""));
    let query = publish_query("show", PUBLISH_KEY, 60);
    let (query, token) = query.split_once("&zgToken=").expect("the query ends in its token");
    let table = [
        ("none", None, query, 401),
        ("wrong", Some("Bearer 0123".to_owned()), query, 403),
        ("of another time", Some(format!("Bearer {token}")), "zgVer=v1&zgExpired=9&zgNonce=17", 403),
        ("good", Some(format!("Bearer {token}")), query, 201),
    ];
    for (what, authorization, query, status) in table {
        let authorization = authorization.map(|it| format!("Authorization: {it}"));
        let headers: Vec<&str> =
            ["Content-Type: application/sdp"].into_iter().chain(authorization.as_deref()).collect();
        let path = format!("/whip/v1/{APP}/show?{query}");
        let (got, head, text) = server.request("POST", &path, &headers, offer().as_bytes()).expect("an answer");
        assert_eq!(got, status, "{what}: {text}");
        assert_eq!(head.contains("www-authenticate: bearer"), status == 401, "{what}: {head}");
    }
}

#[test]
fn a_turn_password_is_told_only_to_who_may_publish() {
    let servers = "webrtc.ice_servers = [\"stun:stun.example.com\", \"turn:u:p@turn.example.com\"]";
    let closed = Setup { app: "publish_auth = \"token\"".into(), ..Setup::server(servers) };
    let query = publish_query("show", PUBLISH_KEY, 60);
    let (signed, token) = query.split_once("&zgToken=").expect("the query ends in its token");
    let bearer = format!("Authorization: Bearer {token}");
    let (open, closed) = (Server::start(Setup::server(servers)), Server::start(closed));
    for (server, query, headers, told) in [
        (&open, "", &[][..], true),
        (&closed, "", &[], false),
        (&closed, signed, &[], false),
        (&closed, signed, &[&*bearer], true),
        (&closed, &query, &[], true),
    ] {
        for path in [format!("/whip/v1/{APP}/show?{query}"), format!("/whip/v1/{APP}/show/0123?{query}")] {
            let (status, head, _) = server.request("OPTIONS", &path, headers, b"").expect("an answer");
            assert_eq!(
                (status, head.contains("stun:"), head.contains("credential")),
                (204, true, told),
                "{path}: {head}"
            );
        }
    }
    let elsewhere = open.request("OPTIONS", &format!("/whip/v1/{}/show", APP + 1), &[], b"").expect("an answer");
    assert!(!elsewhere.1.contains("credential"), "{}", elsewhere.1);
}

#[test]
fn a_whip_session_is_trickled_restarted_and_ended() {
    let server = Server::start(Setup::server(
        "webrtc.ice_servers = [\"stun:stun.example.com\", \"turn:u:p@turn.example.com?transport=tcp\"]",
    ));
    let (status, head, answer) = post(&server, "show", "", &offer()).expect("an answer");
    assert_eq!(status, 201, "{answer}");
    assert!(
        answer.contains("a=ice-lite") && answer.contains("stereo=1") && answer.contains(" tcptype passive"),
        "{answer}"
    );
    assert!(head.contains("link: <stun:stun.example.com>; rel=\"ice-server\""), "{head}");
    assert!(head.contains("username=\"u\"; credential=\"p\""), "{head}");
    let header = |head: &str, name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
        line.unwrap_or_else(|| panic!("{name} in {head}"))
    };
    // The head is in lower case here, which a tag is not; it is the ICE user.
    let user_of =
        |sdp: &str| sdp.lines().find_map(|line| line.strip_prefix("a=ice-ufrag:")).map(str::to_owned).expect("a user");
    let endpoint = format!("/whip/v1/{APP}/show");
    let (session, tag) = (header(&head, "location"), format!("\"{}\"", user_of(&answer)));
    let patch = |tag: &str, user: &str| {
        let tag = if tag.is_empty() { String::new() } else { format!("If-Match: {tag}") };
        let body = format!(
            "a=ice-ufrag:{user}\r\na=ice-pwd:0123456789abcdef01234567\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\n\
             a=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host\r\na=candidate:2 1 udp 1 a.local 9 typ host\r\n"
        );
        let headers = ["Content-Type: application/trickle-ice-sdpfrag", &tag];
        let headers = if tag.is_empty() { &headers[..1] } else { &headers };
        server.request("PATCH", &session, headers, body.as_bytes()).expect("an answer")
    };
    assert_eq!(patch(&tag, "abcd").0, 204);
    assert_eq!(patch("\"old\"", "abcd").0, 412);
    assert_eq!(patch(&format!("\"old\", {tag}"), "abcd").0, 204);
    assert_eq!(patch("", "abcd").0, 204, "candidates are known by their user");
    assert_eq!(patch("", "efgh").0, 428, "a restart is not");
    for (method, address) in [("GET", &session), ("HEAD", &session), ("GET", &endpoint), ("HEAD", &endpoint)] {
        let (status, head, body) = server.request(method, address, &[], b"").expect("an answer");
        assert_eq!((status, body.as_str()), (204, ""), "{method} {address}");
        assert!(!head.contains("content-length"), "RFC 9110 §8.6: {method} {address}: {head}");
    }
    let (status, _, fragment) = patch("*", "efgh");
    assert_eq!((status, fragment.contains("a=candidate:")), (200, true), "{fragment}");
    assert_ne!(user_of(&fragment), user_of(&answer));
    assert_eq!(patch(&tag, "efgh").0, 412);
    let (status, head, again) = patch("*", "efgh");
    let tag = format!("\"{}\"", user_of(&fragment));
    assert_eq!((status, &again), (200, &fragment), "who asks again has not heard the answer");
    assert!(head.contains(&tag.to_lowercase()), "{head}");
    assert_eq!(patch(&tag, "efgh").0, 204);
    for late in ["", "*", &tag] {
        assert_eq!(
            patch(late, "abcd").0,
            412,
            "what was sent before the restart and comes late restarts nothing: {late}"
        );
    }
    let (status, _, fragment) = patch(&tag, "ijkl");
    assert_eq!((status, fragment.matches("a=mid:").count()), (200, 1), "{fragment}");
    let options = server.request("OPTIONS", &session, &[], b"").expect("an answer");
    assert!(options.0 == 204 && options.1.contains("access-control-allow-methods: patch, delete"), "{}", options.1);
    assert_eq!(server.request("PATCH", &session, &["Content-Type: application/sdp"], b"").expect("an answer").0, 415);
    assert_eq!(server.request("DELETE", &session, &[], b"").expect("an answer").0, 200);
    eventually("the stream is gone", secs(5), || {
        (server.ok("DescribeStreams", &[("StreamId", "show")])["Total"] == 0).then_some(())
    });
    assert_eq!(server.request("DELETE", &session, &[], b"").expect("an answer").0, 404);
}

#[test]
fn who_asks_for_a_restart_of_ice_and_vanishes_is_gone() {
    let server = Server::start(Setup::server("publish.grace = \"1s\""));
    let client = Client::publish(&server, "show", &["--video-only"]);
    let said = client.said();
    let session = said.lines().find_map(|line| line.strip_prefix("session ")).expect("it tells");
    let headers = ["Content-Type: application/trickle-ice-sdpfrag", "If-Match: *"];
    let fragment = "a=ice-ufrag:efgh\r\na=ice-pwd:0123456789abcdef01234567\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\n";
    let (status, ..) = server.request("PATCH", session, &headers, fragment.as_bytes()).expect("an answer");
    assert_eq!(status, 200);
    drop(client);
    eventually("the stream ends", secs(40), || {
        server.ok("DescribeStreams", &[])["Streams"].as_array()?.is_empty().then_some(())
    });
}

/// A binding request to `user`, with an integrity that is none.
fn stun(user: &str) -> Vec<u8> {
    let mut attributes = [&[0, 6][..], &(user.len() as u16).to_be_bytes(), user.as_bytes()].concat();
    attributes.resize(attributes.len().next_multiple_of(4), 0);
    attributes.extend([0, 0x24, 0, 4, 0, 0, 0, 1, 0, 8, 0, 20]);
    attributes.extend([0; 20]);
    let length = (attributes.len() as u16).to_be_bytes();
    [&[0, 1][..], &length, &[0x21, 0x12, 0xa4, 0x42], &[7; 12], &attributes].concat()
}

#[test]
fn a_session_holds_few_tcp_connections() {
    let server = Server::start(Setup::default());
    let (status, _, answer) = post(&server, "show", "", &offer()).expect("an answer");
    assert_eq!(status, 201, "{answer}");
    let user = answer.lines().find_map(|line| line.strip_prefix("a=ice-ufrag:")).expect("a user");
    let stun = stun(&format!("{user}:abcd"));
    // RFC 4571.
    let framed = [&(stun.len() as u16).to_be_bytes()[..], &stun].concat();
    let mut all: Vec<TcpStream> = Vec::new();
    for _ in 0..8 {
        let mut tcp = TcpStream::connect(("127.0.0.1", server.webrtc_port())).expect("a connection");
        tcp.write_all(&framed).expect("it takes that");
        tcp.set_read_timeout(Some(Duration::from_millis(200))).expect("a time");
        all.push(tcp);
        std::thread::sleep(Duration::from_millis(50));
    }
    eventually("all but four are closed", secs(8), || {
        let closed = |mut tcp: &TcpStream| tcp.read(&mut [0; 100]).is_ok_and(|read| read == 0);
        let open: Vec<bool> = all.iter().map(|tcp| !closed(tcp)).collect();
        (open == [[false; 4], [true; 4]].concat()).then_some(())
    });
}

#[test]
fn floods_cost_bounded_memory_and_disturb_nobody() {
    let (cdn, server) = (Nginx::start(), Server::start(Setup::default()));
    server.relay("show", &cdn.url("show"));
    let client = Client::publish(&server, "show", &["--video-only"]);
    cdn.wait_for("show", 60);
    let before = server.process().rss();

    // STUN that names nobody's session, and noise, from many sources.
    let mut stun = stun("nobody:nix!");
    for source in 0..100u8 {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(("127.0.0.1", server.webrtc_port())).expect("an address");
        for n in 0..500u16 {
            stun[19] = n as u8;
            let noise: Vec<u8> = (0..200u16).map(|i| (i.wrapping_mul(n) ^ u16::from(source)) as u8).collect();
            let _ = socket.send(if n % 2 == 0 { &stun } else { &noise });
        }
    }
    // And TCP that says nothing, or something else.
    let silent: Vec<_> = (0..50).filter_map(|_| TcpStream::connect(("127.0.0.1", server.webrtc_port())).ok()).collect();
    let mut http = TcpStream::connect(("127.0.0.1", server.webrtc_port())).expect("a connection");
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it takes that");

    let tags = bywash_testkit::flv::tags(&cdn.recordings("show")[0]).0.len();
    let recorded = cdn.wait_for("show", tags + 60);
    let grown = server.process().rss().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more");
    drop(silent);
    client.end();
    assert_eq!(cdn.sessions("show"), 1);
    media::assert_clean(&recorded);
}
