//! MergeMedia: new files from recorded ones, played by FFmpeg.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicI64;

use bywash_testkit::{Bucket, Media, Receiver, Scratch, Server, Setup, eventually, flv, secs};
use serde_json::Value;

use crate::object::{announced, files_below, path, played, recorded, recording};
use crate::record::{Clip, publish};

/// FileId of the file with this end.
fn id(files: &[Value], end: &str) -> String {
    let file = files.iter().find(|it| it["replay_url"].as_str().is_some_and(|url| url.ends_with(end)));
    let extra = file.expect("a file of this format")["extra_params"].as_str().expect("a text").to_owned();
    let extra: Value = serde_json::from_str(&extra).expect("JSON");
    extra["FileID"].as_str().expect("a text").to_owned()
}

/// Asks for a merge; gives its TaskId.
fn ask(server: &Server, params: &[(&str, &str)]) -> String {
    let all = [&[("Vendor", "Tencent"), ("OutputFileName", "joined")], params].concat();
    server.ok("MergeMedia", &all)["Tencent"]["TaskId"].as_str().expect("a TaskId").to_owned()
}

/// The `compose` callback of a merge.
fn composed(receiver: &Receiver, task: &str) -> Value {
    eventually("the merge is over", secs(60), || {
        receiver.taken().into_iter().find(|it| it["event"] == "compose" && it["task_id"] == task)
    })
}

/// Asks for a merge; the address of its result.
fn merged(server: &Server, receiver: &Receiver, params: &[(&str, &str)]) -> String {
    let task = ask(server, params);
    let told = composed(receiver, &task);
    assert_eq!(told["code"], "0", "{told}");
    let state = server.ok("DescribeMediaTask", &[("Vendor", "Tencent"), ("TaskId", &task)])["Tencent"].clone();
    assert_eq!((&state["Status"], &state["FileId"]), (&"FINISH".into(), &told["file_id"]), "{state}");
    told["replay_url"].as_str().expect("a text").to_owned()
}

#[test]
fn recordings_and_pieces_of_them_become_one_file() {
    let receiver = Receiver::start();
    let server = Server::start(Setup::app(recording(&receiver, r#"["mp4", "flv", "m3u8", "mp3"]"#)));
    let one = recorded(&server, &receiver, "one", Media::Plain, 5, 4);
    let two = recorded(&server, &receiver, "two", Media::Plain, 5, 4);
    let span = |files: &[Value], end: &str| {
        played(files.iter().filter_map(|it| it["replay_url"].as_str()).find(|it| it.ends_with(end)).expect("a file"))
    };
    let check = |what: &str, params: &[(&str, &str)], want: f64, off: f64| {
        let got = played(&merged(&server, &receiver, params));
        assert!((got - want).abs() < off, "{what}: {got} {want}");
    };
    let sum = |end: &str| span(&one, end) + span(&two, end);

    let (a, b) = (id(&one, ".mp4"), id(&two, ".mp4"));
    check("MP4", &[("InputFileId[]", &a), ("InputFileId[]", &b)], sum(".mp4"), 0.1);
    check("MP4 to M3U8", &[("InputFileId[]", &a), ("InputFileId[]", &b), ("Format", "M3U8")], sum(".mp4"), 0.3);
    check("MP4 to MP3", &[("InputFileId[]", &a), ("InputFileId[]", &b), ("Format", "MP3")], sum(".mp4"), 0.3);
    let pieces = [
        ("Type", "1"),
        ("HandleMediaArgs.0.FileId", a.as_str()),
        ("HandleMediaArgs.0.StartTime", "1.2"),
        ("HandleMediaArgs.0.EndTime", "3.4"),
        ("HandleMediaArgs.1.FileId", b.as_str()),
        ("HandleMediaArgs.1.StartTime", "0.52"),
        ("HandleMediaArgs.1.EndTime", "2.52"),
    ];
    check("pieces", &pieces, 4.2, 0.06);

    let (a, b) = (id(&one, ".flv"), id(&two, ".mp4"));
    check("FLV and MP4", &[("InputFileId[]", &a), ("InputFileId[]", &b)], span(&one, ".flv") + span(&two, ".mp4"), 0.1);
    let (a, b) = (id(&one, ".m3u8"), id(&two, ".m3u8"));
    let both = [("InputFileId[]", a.as_str()), ("InputFileId[]", b.as_str()), ("Format", "M3U8")];
    check("M3U8", &both, sum(".m3u8"), 0.3);
    check("M3U8 to MP4", &both[..2], sum(".m3u8"), 0.3);
    let (a, b) = (id(&one, ".mp3"), id(&two, ".mp3"));
    let both = [("InputFileId[]", a.as_str()), ("InputFileId[]", b.as_str()), ("Format", "MP3")];
    check("MP3", &both, sum(".mp3"), 0.3);

    let found = server.ok("SearchMedia", &[("Vendor", "Tencent"), ("NamePrefix", "joined")]);
    assert_eq!(found["Tencent"]["TotalCount"], 8, "{found}");
    for file in found["Tencent"]["MediaInfoSet"].as_array().expect("a list") {
        let made = &file["TranscodeInfo"]["TranscodeSet"][0];
        assert!(made["Bitrate"].as_u64().is_some_and(|it| it > 10_000), "{made}");
        let pictures = &made["VideoStreamSet"][0];
        assert!(pictures.is_null() || pictures["Fps"].as_u64().is_some_and(|it| it > 10), "{made}");
    }
}

#[test]
fn sources_that_do_not_fit_together_fail_with_a_code_and_a_reason() {
    let receiver = Receiver::start();
    let server = Server::start(Setup::app(recording(&receiver, r#"["mp4"]"#)));
    let one = recorded(&server, &receiver, "one", Media::Plain, 2, 1);
    let two = recorded(&server, &receiver, "two", Media::AudioOnly, 2, 1);
    let (a, b) = (id(&one, ".mp4"), id(&two, ".mp4"));
    let told = composed(&receiver, &ask(&server, &[("InputFileId[]", &a), ("InputFileId[]", &b)]));
    assert_eq!((told["code"].as_str(), told["replay_url"].as_str()), (Some("60000"), Some("")), "{told}");
    assert!(told["message"].as_str().is_some_and(|it| it.contains("input 2 has AAC")), "{told}");
    let mut files = files_below(&server.media());
    files.retain(|it| !it.ends_with(".mp4"));
    assert!(files.is_empty() && files_below(&server.media()).len() == 2, "what it has written stays: {files:?}");
}

#[test]
fn a_merge_goes_on_after_kill_9_with_inputs_and_result_in_a_bucket() {
    let (mut bucket, receiver) = (Bucket::start(), Receiver::start());
    let app = recording(&receiver, r#"["mp4"]"#);
    let server = Server::start(Setup { app, ..Setup::server(bucket.setup()) });
    let one = recorded(&server, &receiver, "one", Media::Plain, 4, 1);
    let file = id(&one, ".mp4");
    bucket.down();
    let task = ask(&server, &[("InputFileId[]", &file), ("InputFileId[]", &file), ("InputFileId[]", &file)]);
    eventually("it is begun", secs(10), || {
        let state = server.ok("DescribeMediaTask", &[("Vendor", "Tencent"), ("TaskId", &task)]);
        (state["Tencent"]["Status"] == "PROCESSING").then_some(())
    });
    let _server = server.kill_9_and_start();
    bucket.up();
    let told = composed(&receiver, &task);
    assert_eq!(told["code"], "0", "{told}");
    let single = played(one[0]["replay_url"].as_str().expect("a text"));
    let got = played(told["replay_url"].as_str().expect("a text"));
    assert!((got - 3.0 * single).abs() < 0.1, "{got} {single}");
    let keys: Vec<_> = bucket.objects().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), 2, "{keys:?}");
}

/// Eight seconds of H.264 with three B-frames between others, some of them references, and a beep of 100 ms each half second.
fn beeping() -> Clip {
    let dir = Scratch::new();
    let file = dir.join("beeping.flv");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-f", "lavfi", "-i", "testsrc2=s=320x180:r=25:d=8,format=yuv420p"]);
    ffmpeg.args(["-f", "lavfi", "-i", "aevalsrc=0.5*sin(2000*PI*t)*lt(mod(t\\,0.5)\\,0.1):s=48000:d=8"]);
    ffmpeg.args(["-c:v", "libx264", "-preset", "medium", "-bf", "3", "-b_strategy", "0", "-g", "50"]);
    ffmpeg.args(["-x264-params", "b-pyramid=normal:scenecut=0", "-c:a", "aac", "-b:a", "128k"]).arg(&file);
    assert!(ffmpeg.status().is_ok_and(|it| it.success()), "ffmpeg makes {}; run `make setup`", file.display());
    flv::tags(&file).0.into_iter().filter(|it| it.kind < 18).map(|it| (it.kind, it.timestamp, it.body)).collect()
}

/// What ffmpeg shows of a file: when, and a hash of the picture.
fn shown(path: &Path) -> Vec<(f64, String)> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(path);
    let told = ffmpeg.args(["-map", "0:v", "-vsync", "passthrough", "-enc_time_base", "1:1000", "-f", "framemd5", "-"]);
    let told = told.output().expect("ffmpeg; run `make setup`");
    assert!(told.stderr.is_empty(), "{}: {}", path.display(), String::from_utf8_lossy(&told.stderr));
    let text = String::from_utf8(told.stdout).expect("a text");
    let fields = text.lines().filter(|it| !it.starts_with('#')).map(|it| it.split(',').map(str::trim).collect());
    let picture = |it: Vec<&str>| (it[2].parse::<f64>().expect("milliseconds") / 1000.0, it[5].to_owned());
    fields.map(picture).collect()
}

/// When the beeps of a file begin.
fn beeps(path: &Path) -> Vec<f64> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(path);
    ffmpeg.args(["-map", "0:a", "-af", "aresample=async=1:first_pts=0"]);
    ffmpeg.args(["-ac", "1", "-ar", "48000", "-f", "f32le", "-"]);
    let pcm = ffmpeg.output().expect("ffmpeg; run `make setup`").stdout;
    let pcm: Vec<_> = pcm.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]])).collect();
    let (mut found, mut quiet) = (Vec::new(), 0);
    for (n, sample) in pcm.iter().enumerate() {
        let loud = sample.abs() > 0.1;
        if loud && quiet > 4800 {
            found.push(n as f64 / 48_000.0);
        }
        quiet = if loud { 0 } else { quiet + 1 };
    }
    found
}

#[test]
fn pieces_of_a_stream_with_b_frames_show_what_was_asked_for_with_its_sound() {
    const PICTURE: f64 = 0.04;
    let receiver = Receiver::start();
    let server = Server::start(Setup {
        server: "publish.grace = \"500ms\"".into(),
        ..Setup::app(recording(&receiver, r#"["mp4", "flv"]"#))
    });
    server.record("show");
    assert!(publish(&server.rtmp("show"), &beeping(), &AtomicI64::new(0)), "the publish goes on");
    let files = announced(&receiver, "show", 2);
    let local = |url: &str| server.media().join(path(url).trim_start_matches("/media/"));
    let source = |end: &str| {
        let url = files.iter().filter_map(|it| it["replay_url"].as_str()).find(|it| it.ends_with(end));
        (id(&files, end), local(url.expect("a file of this format")))
    };
    // In the middle of groups and pictures, at a key picture, just before one, and from the beginning.
    let cuts = [vec![(1.3, 3.47)], vec![(2.0, 4.0)], vec![(3.93, 5.51), (0.0, 1.01), (1.97, 6.666)]];
    for (end, cuts) in [".mp4", ".flv"].into_iter().flat_map(|end| cuts.iter().map(move |it| (end, it))) {
        let (file, from) = source(end);
        let mut params = vec![("Type".to_owned(), "1".to_owned())];
        for (n, (begin, end)) in cuts.iter().enumerate() {
            let mut add = |name: &str, value: String| params.push((format!("HandleMediaArgs.{n}.{name}"), value));
            add("FileId", file.clone());
            add("StartTime", begin.to_string());
            add("EndTime", end.to_string());
        }
        let params: Vec<_> = params.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let result = local(&merged(&server, &receiver, &params));

        let (all, pictures) = (shown(&from), shown(&result));
        let (all_beeps, beeps) = (beeps(&from), beeps(&result));
        let about = format!("{cuts:?} of {end}: {pictures:.3?}, beeps {beeps:.3?} of {all_beeps:.3?}");
        let (mut line, mut place) = (0.0, 0);
        for (begin, end) in cuts {
            let of_piece: Vec<_> =
                pictures[place..].iter().take_while(|it| it.0 < line + end - begin - 0.001).collect();
            place += of_piece.len();
            // Where in the source a picture stands, and where it should here.
            let stands = |hash: &str| all.iter().find(|it| it.1 == hash).expect("a picture of the source").0;
            for (at, hash) in &of_piece {
                assert!((at - line - (stands(hash) - begin)).abs() < 0.003, "a picture at {at}: {about}");
            }
            let (first, last) = (stands(&of_piece[0].1), stands(&of_piece[of_piece.len() - 1].1));
            assert!(
                (first - begin).abs() < PICTURE && (last + PICTURE - end).abs() <= PICTURE,
                "{first} {last}: {about}"
            );
            let count = all.iter().filter(|it| it.0 >= first && it.0 <= last).count();
            assert_eq!(of_piece.len(), count, "{about}");
            for beep in all_beeps.iter().filter(|it| (begin + 0.12..end - 0.15).contains(*it)) {
                let want = line + beep - begin;
                // Behind a seam FFmpeg begins sound with a whole packet.
                let off = if line == 0.0 { 0.003 } else { 0.022 };
                assert!(beeps.iter().any(|it| (it - want).abs() < off), "no beep at {want}: {about}");
            }
            line += end - begin;
        }
        assert_eq!(place, pictures.len(), "{about}");
        assert!((played(result.to_str().expect("UTF-8")) - line).abs() <= PICTURE, "{line} s: {about}");
    }
}
