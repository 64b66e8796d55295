//! Recordings: every file is judged by others, and what is told of it is held against what was published.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use bywash_media::codec::{self, nal};
use bywash_media::mux::flv::{frame_head, track_body};
use bywash_media::{Codec, Frame, Kind, Time};
use bywash_testkit::flv::{self, Tag};
use bywash_testkit::media::{Judged, judge};
use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::{
    Machine, Manner, Media, Publisher, Receiver, Scratch, Server, Setup, Sink, eventually, secs, stays,
};

use super::crash::Disk;
use super::sound;

const ALL: &str = r#"["mp4", "m3u8", "flv", "aac", "mp3"]"#;

/// A server that records as Tencent in these formats and tells `receiver` all.
fn recording(receiver: &Receiver, formats: &str, server: &str) -> Server {
    Server::start(Setup { server: server.into(), app: told(receiver, formats), ..Setup::default() })
}

/// The app's lines of one that records as Tencent in these formats and tells `receiver` all.
pub fn told(receiver: &Receiver, formats: &str) -> String {
    let url = receiver.url();
    format!("callback.record = {url:?}\ncallback.state = {url:?}\nrecord.Tencent.formats = {formats}")
}

/// Messages of a publish in order: kind, milliseconds, body.
pub type Clip = Vec<(u8, i64, Vec<u8>)>;

/// The tags of `media` from its beginning to `end`, in milliseconds.
pub fn clip(media: Media, end: i64) -> Clip {
    let (tags, _) = flv::tags(&media.file());
    let tags = tags.into_iter().filter(|tag| matches!(tag.kind, 8 | 9) && tag.timestamp < end);
    tags.map(|tag: Tag| (tag.kind, tag.timestamp, tag.body)).collect()
}

/// Whether a message is media, in the legacy form or the enhanced one.
pub fn is_frame((kind, _, body): &(u8, i64, Vec<u8>)) -> bool {
    let enhanced = if *kind == 9 { body[0] & 0x80 != 0 } else { body[0] >> 4 == 9 };
    if enhanced { body[0] & 15 != 0 } else { body[1] != 0 }
}

/// H.264 as it is, and Opus.
fn with_opus(end: i64) -> Clip {
    let mut clip = clip(Media::VideoOnly, end);
    let (head, packets) = sound::opus();
    clip.push((8, 0, head));
    clip.extend(packets.into_iter().map(|(at, body)| (8, i64::from(at), body)).filter(|it| it.1 < end));
    clip.sort_by_key(|it| it.1);
    clip
}

/// H.265 of this size that ffmpeg encodes, with the sound of [`Media::Plain`].
pub fn with_hevc(size: &str, end: i64) -> Clip {
    let x265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:bframes=0:keyint=25"];
    let (record, raw) = encoded(size, end, &[&x265[..], &["-tag:v", "hvc1"]].concat(), b"hvcC", "a.hevc");
    let mut pictures: Vec<Vec<u8>> = Vec::new();
    let units = nal::from_annex_b(&raw);
    for unit in nal::nals(&units, 4).filter(|unit| codec::h265::is_slice(unit)) {
        if unit[2] & 0x80 != 0 {
            pictures.push(Vec::new());
        }
        let picture = pictures.last_mut().expect("a first slice");
        picture.extend((unit.len() as u32).to_be_bytes());
        picture.extend(unit);
    }
    enhanced(Codec::H265, record, pictures, end)
}

/// AV1 of this size that ffmpeg encodes, with the sound of [`Media::Plain`].
pub fn with_av1(size: &str, end: i64) -> Clip {
    let aom = ["-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", "-g", "25", "-b:v", "300k"];
    let (record, ivf) = encoded(size, end, &aom, b"av1C", "a.ivf");
    let (mut pictures, mut rest) = (Vec::new(), &ivf[32..]);
    while let Some((head, more)) = rest.split_at_checked(12) {
        let size = u32::from_le_bytes(*head.first_chunk().expect("12 bytes")) as usize;
        let (unit, more) = more.split_at(size);
        // RTMP leaves temporal delimiters out.
        pictures.push(unit.strip_prefix(&[0x12, 0]).unwrap_or(unit).to_vec());
        rest = more;
    }
    enhanced(Codec::Av1, record, pictures, end)
}

/// Pictures that ffmpeg encodes with these arguments: the record in an MP4's box of this name, and all of them in a raw file.
fn encoded(size: &str, end: i64, args: &[&str], name: &[u8; 4], raw: &str) -> (Vec<u8>, Vec<u8>) {
    let dir = Scratch::new();
    let file = |name: &str| dir.join(name);
    let run = |args: &[&str], out: &str| {
        let done = Command::new("ffmpeg").args(["-v", "error", "-y"]).args(args).arg(file(out)).status();
        assert!(done.is_ok_and(|it| it.success()), "ffmpeg makes {out}; run `make setup`");
    };
    let seconds = format!("testsrc2=s={size}:r=25:d={},format=yuv420p", end / 1000);
    run(&[&["-f", "lavfi", "-i", &seconds][..], args].concat(), "a.mp4");
    run(&["-i", file("a.mp4").to_str().expect("UTF-8"), "-c", "copy"], raw);
    let mp4 = std::fs::read(file("a.mp4")).expect("made just now");
    let at = mp4.windows(4).position(|it| it == name).expect("a record");
    let size = u32::from_be_bytes(*mp4[at - 4..].first_chunk().expect("a size")) as usize;
    (mp4[at + 4..at - 4 + size].to_vec(), std::fs::read(file(raw)).expect("made just now"))
}

/// A publish of these pictures, 25 a second with a key picture each second, and the sound of [`Media::Plain`].
fn enhanced(codec: Codec, record: Vec<u8>, pictures: Vec<Vec<u8>>, end: i64) -> Clip {
    let track = codec::track(codec, record.into()).expect("it is an encoder's");
    let mut all: Clip = vec![(9, 0, track_body(&track).expect("it has a header").to_vec())];
    for (payload, n) in pictures.into_iter().zip(0..) {
        let (dts, cts, key) = (Time::from_millis(40 * n), Time::ZERO, n % 25 == 0);
        let frame = Frame { track: Kind::Video, dts, cts, key, payload: payload.into() };
        all.push((9, 40 * n, [&frame_head(codec, &frame)[..], &frame.payload].concat()));
    }
    all.extend(clip(Media::Plain, end).into_iter().filter(|it| it.0 == 8));
    all.sort_by_key(|it| it.1);
    all
}

/// Publishes a clip in real time; `at` tells how far it is. False if the server went away.
pub fn publish(server: &str, clip: &Clip, at: &AtomicI64) -> bool {
    let mut publisher = eventually("it is taken", secs(20), || Publisher::connect(server).ok());
    let (begin, first) = (Instant::now(), clip[0].1);
    for (kind, time, body) in clip {
        let due = begin + Duration::from_millis((time - first) as u64);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if publisher.raw(*kind, *time as u32, body.clone()).is_err() {
            return false;
        }
        at.store(*time, Relaxed);
    }
    true
}

/// A stream and what should come of it.
struct Case {
    name: &'static str,
    /// Published one after the other, each over a connection of its own.
    clips: Vec<Clip>,
    /// Files of each format but m3u8, which has one.
    files: usize,
}

#[test]
fn every_kind_of_stream_becomes_whole_files_in_every_format() {
    const END: i64 = 4_000;
    let case = |name, clip| Case { name, clips: vec![clip], files: 1 };
    let plain = clip(Media::Plain, 5_000);
    let late_sound = plain.iter().filter(|it| it.0 == 9 || it.1 >= 3_000 || !is_frame(it)).cloned().collect();
    let pictures =
        |media, from, end| clip(media, end).into_iter().filter(move |it| it.0 == 9 && (it.1 >= from || !is_frame(it)));
    // Another size in mid-stream, the sound going on.
    let smaller = pictures(Media::Smaller, 2_000, END).map(|(kind, at, body)| (kind, at.max(2_000), body));
    let sound = clip(Media::Plain, END).into_iter().filter(|it| it.0 == 8);
    let mut resized: Clip = sound.chain(pictures(Media::Plain, 0, 2_000)).chain(smaller).collect();
    resized.sort_by_key(|it| it.1);
    let rest = |it: &(u8, i64, Vec<u8>)| it.1 >= 2_000 || !is_frame(it);
    let cases = vec![
        case("plain", clip(Media::Plain, END)),
        case("opus", with_opus(END)),
        case("hevc", with_hevc("320x180", END)),
        case("sound", clip(Media::AudioOnly, END)),
        case("pictures", clip(Media::VideoOnly, END)),
        case("b-frames", clip(Media::BFrames, END)),
        case("late-sound", late_sound),
        Case { files: 2, ..case("resized", resized) },
        Case {
            clips: vec![clip(Media::Plain, 2_000), clip(Media::Plain, END).into_iter().filter(rest).collect()],
            ..case("dropped", Vec::new())
        },
    ];
    let receiver = Receiver::start();
    let server = recording(&receiver, ALL, "publish.grace = \"2s\"\nrecord.segment = \"1s\"");
    // One call takes them all.
    let names: Vec<_> = cases.iter().map(|case| ("StreamId[]", case.name)).collect();
    server.ok("StartCDNRecord", &[&names[..], &[("Vendor", "Tencent")]].concat());
    thread::scope(|scope| {
        for case in &cases {
            let address = server.rtmp(case.name);
            scope.spawn(move || {
                for clip in &case.clips {
                    assert!(publish(&address, clip, &AtomicI64::new(0)), "{}: the publish goes on", case.name);
                }
            });
        }
    });
    for case in &cases {
        server.wait_recording(case.name, "waiting", secs(15));
        let files = wait_for_files(&server, &receiver, case);
        for (key, told, found) in files {
            check(case, &key, told, &found);
        }
    }
    assert_eq!(parts(&server.media()), Vec::<String>::new());
}

/// All files of a case once they are told of, judged.
fn wait_for_files(server: &Server, receiver: &Receiver, case: &Case) -> Vec<(String, f64, Judged)> {
    let has = |kind| case.clips.iter().flatten().any(|it| it.0 == kind);
    let pictures = if has(9) || has(8) { 2 * case.files + 1 } else { 0 };
    let sound = if has(8) { 2 * case.files } else { 0 };
    let files = server.wait_recorded(receiver, case.name, pictures + sound, secs(10));
    let judged = files.into_iter().filter(|it| {
        // This ffmpeg is older than enhanced FLV.
        let strange = case.name == "hevc" && it.key.ends_with(".flv");
        if strange {
            let (tags, len) = flv::tags(&it.path);
            assert_eq!(len as u64, std::fs::metadata(&it.path).expect("it is there").len());
            assert!(tags.iter().filter(|tag| tag.kind == 9).count() > 90);
        }
        !strange
    });
    judged.map(|it| (it.key, it.duration, judge(&it.path))).collect()
}

fn check(case: &Case, key: &str, told: f64, found: &Judged) {
    let about = format!("{key} ({}): told {told}, found {found:?}", case.name);
    let of = |kind: u8| {
        let frames = case.clips.iter().flatten().filter(move |it| it.0 == kind && is_frame(it));
        frames.map(|it| it.1).collect::<Vec<_>>()
    };
    let (pictures, sound) = (of(9), of(8));
    let all_pictures = key.ends_with("m3u8") || case.files == 1;
    if key.ends_with(".aac") || key.ends_with(".mp3") {
        assert!(found.video.is_none() && found.audio.is_some(), "{about}");
    } else if all_pictures {
        let count = |track: Option<(usize, f64)>| track.map_or(0, |(count, _)| count);
        assert_eq!(count(found.video), pictures.len(), "pictures: {about}");
        let opus = case.name == "opus";
        // TS packs several packets of sound into one.
        if !opus && !key.ends_with("m3u8") {
            assert_eq!(count(found.audio), sound.len(), "sound: {about}");
        }
        // A/V start: within a packet of sound.
        if let (Some((_, video)), Some((_, audio)), false) = (found.video, found.audio, opus) {
            let b_frames = if case.name == "b-frames" { 80 } else { 0 };
            let want = (pictures[0] + b_frames - sound[0]) as f64 / 1000.0;
            assert!((video - audio - want).abs() < 0.03, "A/V {} is not {want}: {about}", video - audio);
        }
    }
    let ends = [pictures.last().map(|it| it + 40), sound.last().map(|it| it + 21)];
    let begins = [pictures.first(), sound.first()];
    if case.files == 1 && case.clips.len() == 1 && !key.ends_with(".aac") && !key.ends_with(".mp3") {
        let span = ends.into_iter().flatten().max().unwrap_or(0) - begins.into_iter().flatten().min().unwrap_or(&0);
        assert!((told - span as f64 / 1000.0).abs() <= 0.045, "not {span} ms: {about}");
        // ffprobe does not know how long the last picture of a list or an FLV file is.
        assert!((found.duration - told).abs() <= 0.1, "{about}");
    }
}

/// Names below `folder` that say that they are not whole.
fn parts(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let below = entries.flat_map(|entry| {
        let path = entry.path();
        let own = path.to_str().filter(|it| it.ends_with(".part")).map(str::to_owned);
        own.into_iter().chain(if path.is_dir() { parts(&path) } else { Vec::new() }).collect::<Vec<_>>()
    });
    below.collect()
}

#[test]
fn a_kill_leaves_whole_files_that_are_told_of_once() {
    let rounds = if std::env::var_os("BYWASH_SOAK").is_some() { 50 } else { 3 };
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let (machine, receiver) = (Machine::watch(), Receiver::start());
    let mut server = recording(&receiver, ALL, "publish.grace = \"1s\"\nrecord.segment = \"1s\"");
    for name in NAMES {
        server.record(name);
    }
    let clip = Arc::new(clip(Media::BFrames, 20_000));
    let mut dice = std::process::id();
    let mut known = 0;
    for round in 0..rounds {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at: [Arc<AtomicI64>; 4] = Default::default();
        let publishers = NAMES.map(|name| {
            let n = NAMES.iter().position(|it| *it == name).expect("one of them");
            let (address, clip, at) = (server.rtmp(name), clip.clone(), at[n].clone());
            thread::spawn(move || publish(&address, &clip, &at))
        });
        eventually("all are on air", secs(10), || at.iter().all(|at| at.load(Relaxed) > 1_500).then_some(()));
        thread::sleep(Duration::from_millis(u64::from(dice >> 16) % 2_000));
        let (sent, killed) = (at.each_ref().map(|at| at.load(Relaxed)), Instant::now());
        server = server.kill_9_and_start();
        // What it could not take or write by then for want of a core.
        let away = machine.away(killed - secs(1), killed).as_secs_f64();
        publishers.into_iter().for_each(|it| drop(it.join()));
        known += 5 * NAMES.len();
        let told = || NAMES.map(|name| server.recorded(&receiver, name));
        let all = eventually("every file is told of", secs(15), || {
            Some(told()).filter(|it| it.iter().map(Vec::len).sum::<usize>() >= known)
        });
        for (files, sent) in all.iter().zip(sent) {
            let mut keys: Vec<_> = files.iter().map(|it| &it.key).collect();
            keys.dedup();
            assert_eq!(keys.len(), 5 * (round + 1), "each once: {keys:?}");
            for file in &files[5 * round..] {
                assert!(file.interrupted, "{file:?}");
                let found = judge(&file.path);
                let lost = sent as f64 / 1000.0 - file.duration;
                println!("round {round}: {} lost {lost:.3} s", file.key);
                assert!(lost <= 1.0 + away, "lost {lost} s of {file:?}: {found:?}");
            }
        }
        assert_eq!(parts(&server.media()), Vec::<String>::new());
    }
    let more = || NAMES.map(|name| receiver.of("record", name).len()).into_iter().sum::<usize>();
    stays("nothing is told of twice", secs(1), || more() == known);
}

#[test]
fn a_recording_is_armed_until_it_is_stopped_or_its_time_is_over() {
    let receiver = Receiver::start();
    let server = recording(&receiver, r#"["mp4"]"#, "publish.grace = \"500ms\"");
    let [short, long] = [2_000, 6_000].map(|ms| clip(Media::Plain, ms));
    let send = |name: &str, clip| assert!(publish(&server.rtmp(name), clip, &AtomicI64::new(0)));
    let on_air = |name: &str| send(name, &short);

    // Before it is live, and again at each publish.
    let task = server.record("show");
    assert_eq!(server.recording("show")["State"], "waiting");
    for n in 1..=2 {
        on_air("show");
        server.wait_recorded(&receiver, "show", n, secs(5));
        server.wait_recording("show", "waiting", secs(5));
    }
    assert_eq!(server.record("show"), task, "a second call is the same recording");
    // Stopped in the middle, and then no more.
    thread::scope(|scope| {
        scope.spawn(|| send("show", &long));
        server.wait_recording("show", "recording", secs(5));
        thread::sleep(secs(1));
        server.stop_record("show");
        server.wait_recording("show", "ended", secs(3));
    });
    on_air("show");
    let files = server.wait_recorded(&receiver, "show", 3, secs(5));
    assert!((0.5..5.9).contains(&files[2].duration), "{files:?}");
    for file in &files {
        judge(&file.path);
    }
    receiver.wait("record_state", "show", secs(5), |it| it["state"] == "ended");
    let states = receiver.of("record_state", "show");
    let states: Vec<_> = states.iter().filter(|it| it["task_id"] == *task).map(|it| it["state"].clone()).collect();
    for (state, count) in [("recording", 3), ("waiting", 2), ("ended", 1)] {
        assert_eq!(states.iter().filter(|it| *it == state).count(), count, "{states:?}");
    }

    // EndTime.
    let machine = Machine::watch();
    let _publishing = Media::Plain.publish(&server.rtmp("timed"));
    eventually("it is live", secs(10), || {
        (server.ok("DescribeStreams", &[("StreamId", "timed")])["Streams"][0]["VideoCodec"] == "H.264").then_some(())
    });
    let begin = Instant::now();
    let end = (bywash_testkit::server::now_ms() / 1000 + 3).to_string();
    server.ok("StartCDNRecord", &[("StreamId[]", "timed"), ("Vendor", "Tencent"), ("EndTime", &end)]);
    server.wait_recording("timed", "ended", secs(8));
    let file = eventually("its file", secs(3), || server.recorded(&receiver, "timed").pop());
    let end_ms = end.parse::<f64>().expect("a number") * 1000.0;
    // What could not be sent before comes all at once.
    let away = machine.away(begin, Instant::now()).as_secs_f64();
    assert!(file.duration < 3.5 + away && bywash_testkit::server::now_ms() as f64 >= end_ms, "{file:?}");
    judge(&file.path);
}

#[test]
fn a_recording_that_is_stopped_has_as_much_mp3_as_other_sound() {
    let receiver = Receiver::start();
    let server = recording(&receiver, r#"["aac", "mp3"]"#, "");
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    server.record("show");
    server.wait_recording("show", "recording", secs(5));
    thread::sleep(secs(2));
    server.stop_record("show");
    let files = server.wait_recorded(&receiver, "show", 2, secs(5));
    let [aac, mp3] = [0, 1].map(|n| files[n].duration);
    assert!((mp3 - aac).abs() < 0.05, "{files:?}");
}

#[test]
fn a_recording_that_is_stopped_before_its_first_file_begins_has_recorded() {
    let receiver = Receiver::start();
    let server = recording(&receiver, r#"["flv", "aac", "mp3"]"#, "");
    // Sound alone waits for pictures, and files for both.
    let mut sound = clip(Media::Plain, 4_000);
    sound.retain(|it| it.0 == 8);
    let at = AtomicI64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| publish(&server.rtmp("show"), &sound, &at));
        eventually("sound", secs(5), || (at.load(Relaxed) > 1_000).then_some(()));
        server.record("show");
        thread::sleep(Duration::from_millis(800));
        assert_eq!(server.recording("show")["State"], "waiting");
        server.stop_record("show");
        server.wait_recording("show", "ended", secs(5));
    });
    server.wait_recorded(&receiver, "show", 3, secs(5));
    assert!(server.recording("show")["StartTime"].as_i64() > Some(0), "{}", server.recording("show"));
    let states = eventually("its end", secs(3), || Some(receiver.of("record_state", "show")).filter(|it| it.len() > 1));
    let states: Vec<_> = states.iter().map(|it| it["state"].clone()).collect();
    assert_eq!(states, ["recording", "ended"]);
}

#[test]
fn sigterm_finishes_and_tells_of_every_recording() {
    let receiver = Receiver::start();
    let server = Server::start(Setup {
        app: told(&receiver, r#"["mp4", "m3u8"]"#) + "\nrecord.Tencent.record_everything = true",
        ..Setup::default()
    });
    let publishing = ["a", "b"].map(|name| Media::Plain.publish(&server.rtmp(name)));
    for name in ["a", "b"] {
        server.wait_recording(name, "recording", secs(5));
    }
    thread::sleep(secs(2));
    let (code, took, stopped) = server.terminate();
    assert!(code == 0 && took < secs(8), "exit {code} after {took:?}");
    drop(publishing);
    let server = stopped.start_again();
    for name in ["a", "b"] {
        for file in server.wait_recorded(&receiver, name, 2, secs(5)) {
            assert!(!file.interrupted && file.duration > 1.5, "{file:?}");
            judge(&file.path);
        }
        assert_eq!(server.recording(name)["State"], "ended", "nobody has called for it");
    }
    assert_eq!(parts(&server.media()), Vec::<String>::new());
}

#[test]
fn sound_that_cannot_be_decoded_becomes_no_silent_mp3_and_the_recording_says_why() {
    let mut clip = clip(Media::Plain, 3_000);
    let head = clip.iter_mut().find(|it| it.0 == 8 && !is_frame(it)).expect("a header");
    // AAC-LC, 48 kHz, 5.1.
    head.2 = vec![0xaf, 0, 0x11, 0xb0];
    let receiver = Receiver::start();
    let server = recording(&receiver, r#"["mp4", "mp3"]"#, "publish.grace = \"0s\"");
    server.record("surround");
    assert!(publish(&server.rtmp("surround"), &clip, &AtomicI64::new(0)));
    server.wait_recording("surround", "waiting", secs(15));
    let error = server.recording("surround")["LastError"].clone();
    assert!(error.as_str().is_some_and(|it| it.contains("cannot decode this AAC sound")), "{error}");
    let files =
        eventually("its file", secs(5), || Some(server.recorded(&receiver, "surround")).filter(|it| !it.is_empty()));
    let ends: Vec<_> = files.iter().map(|it| it.path.extension()).collect();
    assert_eq!(ends, [Some("mp4".as_ref())]);
}

#[test]
fn a_stream_that_is_recorded_without_a_call_stays_stopped_until_it_is_published_again() {
    let receiver = Receiver::start();
    let server = Server::start(Setup {
        server: "publish.grace = \"0s\"".into(),
        app: told(&receiver, r#"["flv"]"#) + "\nrecord.Tencent.record_everything = true",
        ..Setup::default()
    });
    let tasks = || server.ok("DescribeCDNRecords", &[])["Total"].as_i64().expect("a number");
    let publishing = Media::Plain.publish(&server.rtmp("s"));
    server.wait_recording("s", "recording", secs(5));
    server.ok("StopCDNRecord", &[("StreamId", "s"), ("Vendor", "Tencent")]);
    server.wait_recording("s", "ended", secs(5));
    stays("it is not recorded again", secs(2), || tasks() == 1);
    drop(publishing);
    eventually("the stream is over", secs(5), || (server.ok("DescribeStreams", &[])["Total"] == 0).then_some(()));
    let _publishing = Media::Plain.publish(&server.rtmp("s"));
    server.wait_recording("s", "recording", secs(5));
    assert_eq!(tasks(), 2);
}

#[test]
fn a_hundred_recordings_that_end_at_once_are_all_there() {
    let receiver = Receiver::start();
    let server = Server::start(Setup {
        server: "publish.grace = \"500ms\"".into(),
        app: told(&receiver, r#"["mp4", "m3u8"]"#) + "\nrecord.Tencent.record_everything = true",
        ..Setup::default()
    });
    let names: Vec<String> = (0..100).map(|n| format!("s{n}")).collect();
    let publishers = names.iter().map(|name| Publisher::connect(&server.rtmp(name)).expect("it is taken")).collect();
    let flow = Flow::start(publishers, Pace::SMALL);
    let states = |state: &str| {
        let taken = receiver.taken();
        taken.iter().filter(|it| it["event"] == "record_state" && it["state"] == state).count()
    };
    eventually("all are recorded", secs(30), || (states("recording") == 100).then_some(()));
    thread::sleep(secs(2));
    let before = server.process().rss();
    drop(flow);
    let files = || receiver.taken().iter().filter(|it| it["event"] == "record").count();
    eventually("200 files", secs(40), || (files() == 200).then_some(()));
    let grown = server.process().rss().saturating_sub(before);
    assert!(grown < 100 << 20, "{} MiB more", grown >> 20);
    for name in &names {
        let files = server.recorded(&receiver, name);
        assert_eq!(files.len(), 2, "{name}: {files:?}");
        assert!(files.iter().all(|it| it.duration > 1.0 && it.path.is_file()), "{files:?}");
    }
    assert_eq!(parts(&server.media()), Vec::<String>::new());
}

#[test]
fn a_full_disk_pauses_recordings_and_nothing_else() {
    let Some(disk) = Disk::mount(64) else {
        eprintln!("SKIPPED: no file system can be mounted here; run as root to test a full disk");
        return;
    };
    let (receiver, sink) = (Receiver::start(), Sink::start(Manner::Take));
    let server = Server::start(Setup {
        server: "record.low_water = \"3MiB\"".into(),
        app: told(&receiver, r#"["mp4"]"#),
        data_dir: Some(disk.0.join("data")),
        ..Setup::default()
    });
    server.record("show");
    server.relay("show", &sink.url("show"));
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    server.wait_recording("show", "recording", secs(5));
    thread::sleep(secs(1));
    std::fs::write(disk.0.join("filler"), vec![1; 61 << 20]).expect("there is room");
    server.wait_recording("show", "paused", secs(5));
    let paused = receiver.wait("record_state", "show", secs(3), |it| it["state"] == "paused");
    assert!(paused["reason"].as_str().is_some_and(|it| it.starts_with("disk full")), "{paused}");
    let file = |n: usize| eventually("a file", secs(8), || server.recorded(&receiver, "show").get(n).cloned());
    assert!(file(0).duration > 0.5);
    judge(&disk.0.join("data/media").join(file(0).key));
    let had = sink.pictures("show");
    eventually("the relay goes on", secs(2), || (sink.pictures("show") > had + 10).then_some(()));
    disk.free();
    server.wait_recording("show", "recording", secs(12));
    thread::sleep(secs(1));
    server.stop_record("show");
    judge(&disk.0.join("data/media").join(file(1).key));
    assert_eq!(sink.sessions().len(), 1);
}

/// A disk of its own that can be made to stall; it is unmounted when dropped.
struct Stalling(Scratch);

/// A disk stalls until this is dropped, which is to be before the server is: a process cannot end while it waits for its disk.
struct Stall<'a>(&'a Stalling);

impl Stalling {
    fn mount() -> Option<Stalling> {
        let dir = Scratch::new();
        let (image, at) = (dir.join("image"), dir.join("disk"));
        let run = |program: &str, args: &[&Path]| {
            Command::new(program).args(args).output().is_ok_and(|it| it.status.success())
        };
        std::fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).ok()?;
        std::fs::create_dir(&at).ok()?;
        let made = run("mkfs.ext4", &[Path::new("-q"), &image])
            && run("mount", &[Path::new("-o"), Path::new("loop"), &image, &at]);
        made.then_some(Stalling(dir))
    }

    fn at(&self) -> std::path::PathBuf {
        self.0.join("disk")
    }

    fn stall(&self) -> Stall<'_> {
        let _ = Command::new("fsfreeze").arg("-f").arg(self.at()).output();
        Stall(self)
    }
}

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(self.0.at()).output();
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at()).status();
    }
}

#[test]
fn a_disk_that_stalls_for_seconds_costs_the_recording_nothing_and_nobody_else_a_thing() {
    let Some(disk) = Stalling::mount() else {
        eprintln!("SKIPPED: no disk can be mounted here; run as root to test one that stalls");
        return;
    };
    let (receiver, sink) = (Receiver::start(), Sink::start(Manner::Take));
    let dir = Scratch::new();
    let data = dir.join("data");
    std::fs::create_dir_all(&data).expect("a folder");
    std::os::unix::fs::symlink(disk.at(), data.join("media")).expect("a link");
    let server = Server::start(Setup {
        server: "publish.grace = \"500ms\"".into(),
        app: told(&receiver, r#"["mp4"]"#),
        data_dir: Some(data),
        ..Setup::default()
    });
    server.record("show");
    server.relay("show", &sink.url("show"));
    let publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    // More than may wait for the disk: 10 Mbit/s.
    let flow = Flow::start(vec![publisher], Pace { picture: 36_000, ..Pace::FULL });
    server.wait_recording("show", "recording", secs(5));
    thread::sleep(secs(1));
    let stall = disk.stall();
    let begin = Instant::now();
    for _ in 0..5 {
        let had = sink.pictures("show");
        eventually("the relay goes on", Duration::from_millis(700), || (sink.pictures("show") > had).then_some(()));
        thread::sleep(Duration::from_millis(700));
    }
    let stalled = begin.elapsed();
    drop(stall);
    thread::sleep(secs(1));
    drop(flow);
    let file = eventually("its file", secs(10), || server.recorded(&receiver, "show").pop());
    let found = std::fs::metadata(disk.at().join(&file.key)).expect("it is there").len();
    let pictures = sink.pictures("show");
    println!("stalled for {stalled:?}: {} s, {found} bytes, {pictures} pictures relayed", file.duration);
    assert!(file.duration > stalled.as_secs_f64() + 1.5, "{file:?}");
    assert!(found > pictures as u64 * 36_000 / 2, "nothing is missing");
}

/// Rows and files are on one disk mostly.
#[test]
fn streams_begin_come_back_and_are_relayed_while_the_disk_of_the_rows_stalls() {
    let Some(disk) = Stalling::mount() else {
        eprintln!("SKIPPED: no disk can be mounted here; run as root to test one that stalls");
        return;
    };
    let (receiver, sink) = (Receiver::start(), Sink::start(Manner::Take));
    let everything = "record.Huawei.formats = [\"flv\"]\nrecord.Huawei.record_everything = true";
    let app = format!("{}\ncallback.stream = {:?}\n{everything}", told(&receiver, r#"["mp4"]"#), receiver.url());
    let server = Server::start(Setup {
        server: "publish.grace = \"2s\"".into(),
        app,
        data_dir: Some(disk.at().join("data")),
        ..Setup::default()
    });
    server.record("old");
    server.relay("old", &sink.url("old"));
    server.relay("new", &sink.url("new"));
    server.relay("gone", &sink.url("gone"));
    let publish = |id: &str| {
        let publisher = Publisher::connect(&server.rtmp(id)).expect("it is taken");
        Flow::start(vec![publisher], Pace::FULL)
    };
    let goes_on = |id: &str| {
        let had = sink.pictures(id);
        eventually(&format!("{id} is relayed"), secs(2), || (sink.pictures(id) > had + 5).then_some(()));
    };
    let old = publish("old");
    server.wait_recording("old", "recording", secs(5));
    goes_on("old");

    let (stall, begin) = (disk.stall(), Instant::now());
    let new = publish("new");
    goes_on("new");
    drop(old);
    let old = publish("old");
    goes_on("old");
    let gone = publish("gone");
    goes_on("gone");
    drop(gone);
    thread::sleep(secs(6));
    let state =
        |id: &str| server.call("DescribeRTCStreamState", &[("StreamId", id), ("Sequence", "1")])["Code"].clone();
    assert_eq!(state("gone"), 41004);
    let gone = publish("gone");
    goes_on("gone");
    let third = publish("third");
    goes_on("old");
    goes_on("new");
    assert_eq!(receiver.of("stream_create", "new"), [] as [serde_json::Value; 0], "nothing of it is durable");
    let (status, why) = server.get("/ready").expect("an answer");
    assert!(status == 503 && why.contains("busy"), "{status} {why}");
    let rule = server.rule("new", &sink.url("new")).expect("it is there");
    assert_eq!(rule["State"], 2, "{rule}");
    assert_eq!((state("third"), state("gone")), (0.into(), 0.into()));
    drop(stall);
    for id in ["new", "third"] {
        receiver.wait_any("stream_create", id);
    }
    drop((old, new, third, gone));
    let file = |id: &str, format: &str| {
        let found = || server.recorded(&receiver, id).into_iter().find(|it| it.key.ends_with(format));
        eventually(&format!("the {format} of {id}"), secs(10), found)
    };
    file("old", "mp4");
    file("old", "flv");
    // It was recorded from its beginning, long before its row was there.
    let (new, stalled) = (file("new", "flv").duration, begin.elapsed().as_secs_f64());
    assert!(new > 6.0, "{new} s of {stalled} s");
}
