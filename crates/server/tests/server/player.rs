//! Recordings in a browser: hls.js and Chromium's own players, from a page of another origin.

use std::sync::atomic::AtomicI64;

use bywash_testkit::media::judge;
use bywash_testkit::players::{Players, parse, play};
use bywash_testkit::{Browser, Media, Receiver, Server, Setup, eventually, secs};

use crate::record::{Clip, clip, publish, told, with_av1};

/// Publishes a clip to a server that records in `formats`, and plays each file that comes of it.
fn check(clip: &Clip, formats: &str, files: usize) {
    let receiver = Receiver::start();
    let server = Server::start(Setup {
        server: "publish.grace = \"500ms\"\nrecord.segment = \"1s\"".into(),
        app: told(&receiver, formats),
        ..Setup::default()
    });
    server.record("show");
    assert!(publish(&server.rtmp("show"), clip, &AtomicI64::new(0)), "the publish goes on");
    let files = eventually("the files", secs(40), || {
        Some(server.recorded(&receiver, "show")).filter(|them| them.len() == files)
    });
    let (players, browser) = (Players::start(), Browser::start());
    let page = players.open(&browser);
    let urls = receiver.of("record", "show");
    for file in files {
        let url = urls.iter().filter_map(|it| it["replay_url"].as_str()).find(|url| url.ends_with(&file.key));
        let url = url.expect("its address");
        let kind = if file.key.ends_with(".mp3") { "audio" } else { "video" };
        let span = play(&page, url, kind);
        assert!((span - file.duration).abs() < 0.1, "{url} plays {span} s of {}", file.duration);
        if !file.key.ends_with(".mp4") {
            continue;
        }
        let found = parse(&page, url);
        assert_eq!(found["fragmented"], false, "{found}");
        let boxes = found["boxes"].as_array().expect("a list");
        assert!(boxes.iter().any(|it| it == "moov") && !boxes.iter().any(|it| it == "moof"), "{found}");
        let (judged, tracks) = (judge(&file.path), found["tracks"].as_array().expect("a list"));
        let mut samples: Vec<_> = tracks.iter().map(|it| it["samples"].as_u64().expect("a number") as usize).collect();
        let mut counted: Vec<_> = [judged.video, judged.audio].into_iter().flatten().map(|it| it.0).collect();
        samples.sort_unstable();
        counted.sort_unstable();
        assert_eq!(samples, counted, "{found}");
        assert!(tracks.iter().all(|it| it["samples"] == it["whole"]), "{found}");
    }
}

#[test]
fn a_browser_plays_what_was_recorded_of_h264_and_aac() {
    check(&clip(Media::BFrames, 5_000), r#"["m3u8", "mp4", "mp3"]"#, 3);
}

#[test]
fn a_browser_plays_what_was_recorded_of_av1() {
    check(&with_av1(5_000), r#"["m3u8", "mp4"]"#, 2);
}
