//! Recorded files in a bucket, and under their addresses.

use std::path::Path;
use std::process::Command;

use bywash_testkit::{Bucket, Media, Publisher, Receiver, Server, Setup, eventually, secs, stays};
use serde_json::Value;

/// The app's lines of one that records in these formats and tells `receiver`.
pub fn recording(receiver: &Receiver, formats: &str) -> String {
    let url = receiver.url();
    format!("callback.record = {url:?}\ncallback.compose = {url:?}\n[app.record.Tencent]\nformats = {formats}\n")
}

/// Records `media` under `stream` for so long; gives the `record` callbacks of its `files` files.
pub fn recorded(
    server: &Server,
    receiver: &Receiver,
    stream: &str,
    media: Media,
    span: u64,
    files: usize,
) -> Vec<Value> {
    record(server, stream, media, span);
    announced(receiver, stream, files)
}

fn record(server: &Server, stream: &str, media: Media, span: u64) {
    server.ok("StartCDNRecord", &[("StreamId[]", stream), ("Vendor", "Tencent")]);
    let publisher = media.publish(&server.rtmp(stream));
    eventually("it records", secs(10), || {
        let tasks = server.ok("DescribeCDNRecords", &[("StreamId", stream)]);
        (tasks["Tasks"][0]["State"] == "recording").then_some(())
    });
    std::thread::sleep(secs(span));
    drop(publisher);
    server.ok("StopCDNRecord", &[("StreamId[]", stream), ("Vendor", "Tencent")]);
}

pub fn announced(receiver: &Receiver, stream: &str, files: usize) -> Vec<Value> {
    eventually("the files are announced", secs(30), || {
        Some(receiver.of("record", stream)).filter(|them| them.len() == files)
    })
}

/// How long FFmpeg plays what is at `url`, in seconds; it must decode all of it without a word.
pub fn played(url: &str) -> f64 {
    // In the file's own time base: FFmpeg complains of what it rounds to the same picture itself.
    let how = ["-vsync", "passthrough", "-enc_time_base", "-1", "-f", "null", "-"];
    let decode = Command::new("ffmpeg").args(["-v", "error", "-xerror", "-i", url]).args(how).output().unwrap();
    let told = String::from_utf8_lossy(&decode.stderr);
    assert!(decode.status.success() && told.is_empty(), "{url}: {told}");
    let probe = ["-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", url];
    let told = Command::new("ffprobe").args(probe).output().unwrap();
    String::from_utf8_lossy(&told.stdout).trim().parse().unwrap_or_else(|_| panic!("{url} has no duration"))
}

/// The path of an address of ours.
pub fn path(url: &str) -> String {
    let (_, rest) = url.split_once("//").unwrap();
    rest[rest.find('/').unwrap()..].to_owned()
}

pub fn files_below(folder: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().to_string_lossy().into_owned()),
            }
        }
    }
    found
}

fn url_of(callback: &Value) -> &str {
    callback["replay_url"].as_str().expect("a text")
}

#[test]
fn a_recording_is_played_from_its_address_in_whole_and_in_parts() {
    let receiver = Receiver::start();
    let server = Server::start(Setup::app(recording(&receiver, r#"["mp4", "m3u8", "flv"]"#)));
    let files = recorded(&server, &receiver, "show", Media::Plain, 7, 3);
    for file in &files {
        let span = played(url_of(file));
        assert!((5.0..12.0).contains(&span), "{}: {span}", url_of(file));
    }

    let of = |end: &str| path(files.iter().map(url_of).find(|url| url.ends_with(end)).expect("a file of this format"));
    let (mp4, list) = (of(".mp4"), of(".m3u8"));
    let ask =
        |method: &str, path: &str, headers: &[&str]| server.request(method, path, headers, b"").expect("an answer");
    let (code, head, _) = ask("HEAD", &mp4, &["Origin: http://player.example"]);
    assert_eq!(code, 200);
    for line in ["content-type: video/mp4", "accept-ranges: bytes", "access-control-allow-origin: *", "cache-control: "]
    {
        assert!(head.contains(line), "{line}: {head}");
    }
    let field = |name: &str| head.lines().find_map(|it| it.strip_prefix(name)).expect("a header").trim().to_owned();
    let (size, etag): (u64, _) = (field("content-length:").parse().unwrap(), field("etag:"));

    let (code, head, body) = ask("GET", &mp4, &["Range: bytes=4-7"]);
    assert_eq!((code, body.as_str()), (206, "ftyp"));
    assert!(head.contains(&format!("content-range: bytes 4-7/{size}")), "{head}");
    assert_eq!(ask("GET", &mp4, &[&format!("Range: bytes={size}-")]).0, 416);
    assert_eq!(ask("GET", &mp4, &[&format!("If-None-Match: {etag}")]).0, 304);
    assert_eq!(ask("OPTIONS", &mp4, &["Access-Control-Request-Method: GET"]).0, 204);

    let (code, head, text) = ask("GET", &list, &[]);
    assert!(code == 200 && head.contains("application/vnd.apple.mpegurl"), "{head}");
    let segment = text.lines().find(|line| line.ends_with(".ts")).expect("a segment");
    let (code, head, _) = ask("HEAD", &list.replace("index.m3u8", segment), &[]);
    assert!(code == 200 && head.contains("video/mp2t"), "{head}");

    for wrong in [
        "/media/".to_owned(),
        "/media/../bywash.db".to_owned(),
        "/media/%2e%2e/bywash.db".to_owned(),
        "/media/%2fetc/passwd".to_owned(),
        mp4.replace(".mp4", ".mp4.part"),
        list.replace("index.m3u8", "..%2f..%2f..%2fbywash.db"),
        list.replace("/index.m3u8", ""),
    ] {
        assert_eq!(ask("GET", &wrong, &[]).0, 404, "{wrong}");
    }

    let folder = server.media();
    let named = |file: &Value| {
        let extra: Value = serde_json::from_str(file["extra_params"].as_str().expect("a text")).expect("JSON");
        extra["FileID"].as_str().expect("a text").to_owned()
    };
    let ids: Vec<_> = files.iter().map(named).collect();
    let mut call: Vec<_> = ids.iter().map(|id| ("FileId[]", id.as_str())).collect();
    call.push(("Vendor", "Tencent"));
    server.ok("DeleteMedia", &call);
    assert_eq!(ask("GET", &mp4, &[]).0, 404);
    assert_eq!(ask("GET", &list.replace("index.m3u8", segment), &[]).0, 404);
    eventually("nothing is left", secs(10), || std::fs::read_dir(&folder).ok()?.next().is_none().then_some(()));
}

#[test]
fn a_search_gives_the_tag_that_the_address_has() {
    let receiver = Receiver::start();
    let vendor = ("Vendor", "Huawei");
    let server = Server::start(Setup::app(recording(&receiver, r#"["mp4", "m3u8"]"#).replace("Tencent", vendor.1)));
    server.ok("StartCDNRecord", &[("StreamId[]", "show"), vendor]);
    let publisher = Media::Plain.publish(&server.rtmp("show"));
    server.wait_recording("show", "recording", secs(10));
    std::thread::sleep(secs(3));
    drop(publisher);
    server.ok("StopCDNRecord", &[("StreamId[]", "show"), vendor]);
    announced(&receiver, "show", 2);
    let keys = || server.ok("SearchMedia", &[vendor])["Huawei"]["Keys"].as_array().expect("a list").clone();
    let mp4 = keys().iter().filter_map(|it| it["Key"].as_str()).find(|it| it.ends_with(".mp4")).expect("it").to_owned();
    server.ok("MergeMedia", &[vendor, ("InputFileId[]", &mp4), ("InputFileId[]", &mp4)]);
    eventually("the merge is over", secs(30), || (keys().len() == 3).then_some(()));
    for file in keys() {
        let at = path(file["MediaUrl"].as_str().expect("an address"));
        let (_, head, _) = server.request("HEAD", &at, &[], b"").expect("an answer");
        let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag");
        assert!(file["ETag"] == tag && tag.len() > 30, "{file} {tag}");
    }
}

#[test]
fn a_stream_may_be_called_anything_that_it_may_be_called() {
    let receiver = Receiver::start();
    let server = Server::start(Setup::app(recording(&receiver, r#"["mp4", "m3u8"]"#)));
    let longest = "z".repeat(256);
    for stream in [&longest[..], "index.m3u8", "a.part"] {
        for file in recorded(&server, &receiver, stream, Media::Plain, 2, 2) {
            assert!(played(url_of(&file)) > 1.0, "{file}");
        }
    }
}

#[test]
fn signed_addresses_expire_and_open_one_recording_with_its_segments() {
    let receiver = Receiver::start();
    let app = recording(&receiver, r#"["m3u8", "mp4"]"#);
    let server = Server::start(Setup { app, ..Setup::server("record.url_ttl = \"1m\"") });
    let files = recorded(&server, &receiver, "show", Media::Plain, 3, 2);
    for file in &files {
        assert!(played(url_of(file)) > 1.0, "{}", url_of(file));
        let path = path(url_of(file));
        let parts: Vec<_> = path.splitn(4, '/').collect();
        let get = |path: &str| server.request("GET", path, &["Range: bytes=0-1"], b"").expect("an answer");
        assert_eq!(get(&path).0, 206);
        let (code, head, told) = get(&format!("/media/{}", parts[3]));
        assert!(
            code == 403 && told.contains("not signed") && head.contains("access-control-allow-origin: *"),
            "{told}"
        );
        let (code, _, told) = get(&path.replacen(parts[2], &format!("{}0", &parts[2][..parts[2].len() - 1]), 1));
        assert!(code == 403 || parts[2].ends_with('0'), "{told}");
        let (code, _, told) = get(&path.replacen(parts[2], &format!("1{}", &parts[2][10..]), 1));
        assert!(code == 403 && told.contains("wrong"), "{told}");
    }
}

/// A server whose bucket is away, and that has recorded some seconds of `show` to an MP4 and an HLS playlist.
fn recorded_without(bucket: &mut Bucket, receiver: &Receiver, seconds: u64) -> Server {
    bucket.down();
    let app = recording(receiver, r#"["mp4", "m3u8"]"#);
    let server = Server::start(Setup { app, ..Setup::server(bucket.setup()) });
    record(&server, "show", Media::Plain, seconds);
    eventually("the files are closed", secs(15), || are_closed(&server.media()).then_some(()));
    server
}

/// Whether the MP4, the playlist and a segment are there under their final names.
fn are_closed(media: &Path) -> bool {
    files_below(media).iter().filter(|it| !it.contains(".part")).count() > 2
}

#[test]
fn a_bucket_that_is_away_loses_nothing_and_files_are_announced_once_it_has_them() {
    let (mut bucket, receiver) = (Bucket::start(), Receiver::start());
    let server = recorded_without(&mut bucket, &receiver, 7);
    let folder = server.media();
    let whole = || are_closed(&folder);
    stays("they wait here unannounced", secs(3), || receiver.of("record", "show").is_empty() && whole());
    let server = server.kill_9_and_start();
    stays("and through kill -9", secs(2), || receiver.of("record", "show").is_empty() && whole());

    bucket.up();
    let files = announced(&receiver, "show", 2);
    eventually("the local copies go", secs(10), || files_below(&folder).is_empty().then_some(()));
    assert!(bucket.objects().iter().any(|(key, _)| key.ends_with("/index.m3u8")), "{:?}", bucket.objects());
    for file in &files {
        let span = played(url_of(file));
        assert!((5.0..12.0).contains(&span), "{}: {span}", url_of(file));
    }
    let mp4 = path(files.iter().map(url_of).find(|url| url.ends_with(".mp4")).expect("an MP4"));
    let (code, head, body) = server.request("GET", &mp4, &["Range: bytes=4-7"], b"").expect("an answer");
    assert!((code, body.as_str()) == (206, "ftyp") && head.contains("content-range: bytes 4-7/"), "{head}");

    let keys = files.iter().map(|file| path(url_of(file)).replacen("/media/", "", 1)).collect::<Vec<_>>();
    let mut call: Vec<_> = keys.iter().map(|key| ("FileId[]", key.as_str())).collect();
    call.push(("Vendor", "Tencent"));
    server.ok("DeleteMedia", &call);
    eventually("nothing is left", secs(10), || bucket.objects().is_empty().then_some(()));
    assert_eq!(receiver.of("record", "show").len(), 2, "each is announced once");
}

#[test]
fn files_that_waited_for_a_bucket_that_is_no_more_are_announced_as_they_are() {
    let (mut bucket, receiver) = (Bucket::start(), Receiver::start());
    let server = recorded_without(&mut bucket, &receiver, 2);
    let media = server.media();
    let config = server.config();
    let (code, _, stopped) = server.terminate();
    assert_eq!(code, 0);
    assert!(receiver.of("record", "show").is_empty());
    let text = std::fs::read_to_string(&config).expect("a configuration file");
    std::fs::write(&config, text.replace(&bucket.setup(), "")).expect("it can be written");
    let _server = stopped.start_again();
    for file in announced(&receiver, "show", 2) {
        assert!(played(url_of(&file)) > 1.0, "{}", url_of(&file));
    }
    assert!(are_closed(&media), "they stay where they are");
}

#[test]
fn an_upload_goes_on_behind_the_parts_that_the_bucket_has_after_kill_9() {
    let (bucket, receiver) = (Bucket::start(), Receiver::start());
    let app = recording(&receiver, r#"["flv"]"#);
    let server = Server::start(Setup { app, ..Setup::server(bucket.setup()) });
    server.ok("StartCDNRecord", &[("StreamId[]", "show"), ("Vendor", "Tencent")]);
    let mut publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    publisher.begin(false).expect("it is taken");
    for n in 0..60 {
        publisher.video(n * 40, n % 25 == 0, 1 << 20).expect("the publish goes on");
        std::thread::sleep(std::time::Duration::from_millis(40));
    }
    server.ok("StopCDNRecord", &[("StreamId[]", "show"), ("Vendor", "Tencent")]);

    let notes = server.config().with_file_name("data").join("upload");
    let note = || {
        let entry = std::fs::read_dir(&notes).ok()?.flatten().next()?;
        Some((entry.path(), std::fs::read_to_string(entry.path()).ok()?))
    };
    // Two lines of what it is, then one for each part.
    let begin = std::time::Instant::now();
    let (at, before) = loop {
        if let Some((at, text)) = note().filter(|(_, text)| text.lines().count() >= 4) {
            bucket.process().signal("STOP");
            break (at, text);
        }
        assert!(begin.elapsed() < secs(60), "no upload in parts");
        std::thread::yield_now();
    };
    assert!(receiver.of("record", "show").is_empty());
    let stopped = server.kill_9();
    let kept = std::fs::read_to_string(&at).expect("the note outlives the server");
    assert!(kept.starts_with(&before));
    bucket.process().signal("CONT");
    let server = stopped.start_again();
    let files = announced(&receiver, "show", 1);
    let told = server.output();
    let went_on = told.lines().find(|it| it.contains("the upload goes on")).unwrap_or_else(|| panic!("{told}"));
    let parts = kept.lines().count() - 2;
    assert!(went_on.contains(&format!("\"parts\":{parts}")), "{went_on} {kept}");
    eventually("the note goes", secs(10), || (!at.exists()).then_some(()));
    let objects = bucket.objects();
    assert_eq!(objects.len(), 1, "{objects:?}");
    let (code, head, _) = server.request("HEAD", &path(url_of(&files[0])), &[], b"").expect("an answer");
    assert!(code == 200 && head.contains(&format!("content-length: {}", objects[0].1)), "{head}");
    assert!(objects[0].1 > 40 << 20, "{objects:?}");
}
