//! MergeMedia: new files from recorded ones, played by FFmpeg.

use bywash_testkit::{Bucket, Media, Receiver, Server, Setup, eventually, secs};
use serde_json::Value;

use crate::object::{played, recorded, recording};

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

/// Asks for a merge; how long its result plays.
fn merged(server: &Server, receiver: &Receiver, params: &[(&str, &str)]) -> f64 {
    let task = ask(server, params);
    let told = composed(receiver, &task);
    assert_eq!(told["code"], "0", "{told}");
    let state = server.ok("DescribeMediaTask", &[("Vendor", "Tencent"), ("TaskId", &task)])["Tencent"].clone();
    assert_eq!((&state["Status"], &state["FileId"]), (&"FINISH".into(), &told["file_id"]), "{state}");
    played(told["replay_url"].as_str().expect("a text"))
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
        let got = merged(&server, &receiver, params);
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
