//! Recordings in a browser: hls.js and Chromium's own players, from a page of another origin.

use std::sync::atomic::AtomicI64;

use bywash_testkit::media::judge;
use bywash_testkit::players::{Players, parse, play, watch};
use bywash_testkit::{Browser, Media, Receiver, Recorded, Scratch, Server, Setup, secs};

use crate::record::{Clip, clip, publish, told, with_av1, with_hevc};

/// Publishes a clip to a server that records in `formats`; gives the server, and the files that come of it with their addresses.
fn recorded(clip: &Clip, formats: &str, files: usize) -> (Server, Vec<(Recorded, String)>) {
    let receiver = Receiver::start();
    let server = Server::start(Setup {
        server: "publish.grace = \"500ms\"\nrecord.segment = \"1s\"".into(),
        app: told(&receiver, formats),
        ..Setup::default()
    });
    server.record("show");
    assert!(publish(&server.rtmp("show"), clip, &AtomicI64::new(0)), "the publish goes on");
    let files = server.wait_recorded(&receiver, "show", files, secs(40));
    let urls = receiver.of("record", "show");
    let url = |file: &Recorded| {
        let url = urls.iter().filter_map(|it| it["replay_url"].as_str()).find(|url| url.ends_with(&file.key));
        url.expect("its address").to_owned()
    };
    let files = files.into_iter().map(|file| (file.clone(), url(&file))).collect();
    (server, files)
}

/// Publishes a clip to a server that records in `formats`, and plays each file that comes of it.
fn check(clip: &Clip, formats: &str, files: usize) {
    let (_server, files) = recorded(clip, formats, files);
    let (players, browser) = (Players::start(), Browser::start());
    let page = players.open(&browser);
    for (file, url) in &files {
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
    check(&with_av1("320x180", 5_000), r#"["m3u8", "mp4"]"#, 2);
}

/// Records six seconds of fMP4 segments whose pictures change their size after three, the sound going on, and has ffmpeg judge what
/// is before the change and what is behind it; gives the server and the list.
fn resized(encode: fn(&str, i64) -> Clip) -> (Server, Recorded, String) {
    const CHANGE: i64 = 3_000;
    let larger = encode("480x270", CHANGE).into_iter().filter(|it| it.0 == 9);
    let mut clip = encode("320x180", 2 * CHANGE);
    clip.retain(|it| it.0 == 8 || it.1 < CHANGE);
    clip.extend(larger.map(|(kind, at, body)| (kind, at + CHANGE, body)));
    clip.sort_by_key(|it| it.1);
    let (server, mut files) = recorded(&clip, r#"["m3u8"]"#, 1);
    let (file, url) = files.remove(0);
    let list = std::fs::read_to_string(&file.path).expect("a playlist");
    let count = |tag: &str| list.lines().filter(|line| line.starts_with(tag)).count();
    // A list of fMP4 begins with a map, and goes on with another behind the discontinuity.
    assert_eq!((count("#EXT-X-MAP:"), list.matches("#EXT-X-DISCONTINUITY\n").count()), (2, 1), "{list}");
    let (scratch, read) =
        (Scratch::new(), |name| std::fs::read(file.path.with_file_name(name)).expect("a file of the list"));
    let mut stretches: Vec<Vec<u8>> = Vec::new();
    for line in list.lines() {
        if let Some(map) = line.strip_prefix("#EXT-X-MAP:URI=") {
            stretches.push(read(map.trim_matches('"')));
        } else if line.ends_with(".m4s") {
            stretches.last_mut().expect("a map is before it").extend(read(line));
        }
    }
    for (n, stretch) in stretches.iter().enumerate() {
        let path = scratch.join(format!("{n}.mp4"));
        std::fs::write(&path, stretch).expect("a scratch file");
        assert_eq!(judge(&path).video.map(|it| it.0), Some(75), "stretch {n}: {list}");
    }
    assert!((file.duration - 6.0).abs() < 0.1, "{file:?}");
    (server, file, url)
}

#[test]
fn h265_that_changes_its_size_is_whole_on_both_sides() {
    // FFmpeg takes no other parameter sets from a second map, and Chromium here does not know H.265.
    resized(with_hevc);
}

#[test]
fn a_browser_plays_on_where_av1_changes_its_size() {
    let (_server, file, url) = resized(with_av1);
    assert_eq!(judge(&file.path).video.map(|it| it.0), Some(150));
    let (players, browser) = (Players::start(), Browser::start());
    let seen = watch(&players.open(&browser), &url);
    assert_eq!(seen.widths, [320, 480], "{seen:?}");
    assert!(seen.pictures.abs_diff(150) <= 2, "{seen:?}");
    assert!((seen.end - file.duration).abs() < 0.1, "{seen:?} {file:?}");
}
