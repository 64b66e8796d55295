//! Recordings that are cut by their interval. The shortest that a configuration may have is five minutes of a publisher's real
//! time, so these run the server in their own process, with an interval of three seconds.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicI64;
use std::thread;
use std::time::Duration;

use bywash::app;
use bywash::config::Config;
use bywash_testkit::media::{Judged, judge};
use bywash_testkit::server::{APP, CALLBACK_SECRET, SERVER_SECRET, recorded};
use bywash_testkit::{Media, Receiver, Recorded, Scratch, eventually, flv, secs};
use tokio::runtime::Runtime;

use crate::record::{Clip, clip, is_frame, publish};

const INTERVAL: Duration = Duration::from_secs(3);

/// A server that records every stream in all formats and cuts files each [`INTERVAL`].
struct Cutting {
    runtime: Runtime,
    server: Option<app::Server>,
    receiver: Receiver,
    dir: Scratch,
}

impl Cutting {
    fn start() -> Cutting {
        let (dir, receiver) = (Scratch::new(), Receiver::start());
        let text = format!(
            r#"
            data_dir = {:?}
            http.listen = "127.0.0.1:0"
            rtmp.listen = "127.0.0.1:0"
            webrtc.listen = "127.0.0.1:{}"
            publish.grace = "500ms"
            record.segment = "1s"
            [[app]]
            id = {APP}
            server_secret = "{SERVER_SECRET}"
            callback_secret = "{CALLBACK_SECRET}"
            callback.record = {:?}
            record.Tencent.formats = ["mp4", "m3u8", "flv", "aac", "mp3"]
            record.Tencent.record_everything = true
            "#,
            dir.join("data"),
            bywash_testkit::port(),
            receiver.url(),
        );
        let file = dir.join("bywash.toml");
        std::fs::write(&file, text).expect("a configuration file");
        let mut config = Config::load(Some(&file), [], &[]).expect("a good configuration");
        config.apps.iter_mut().flat_map(|app| app.record.values_mut()).for_each(|it| it.interval = INTERVAL);
        let runtime = Runtime::new().expect("a runtime");
        let server = runtime.block_on(app::Server::start(config)).expect("it starts");
        Cutting { runtime, server: Some(server), receiver, dir }
    }

    /// Publishes a clip; gives its files by their ends once there are `each` of each end in `cut`, and one playlist.
    fn files(&self, stream: &str, clip: &Clip, cut: &[&str], each: usize) -> impl Fn(&str) -> Vec<Recorded> {
        let rtmp = self.server.as_ref().expect("it runs").rtmp;
        assert!(publish(&format!("rtmp://{rtmp}/{APP}/{stream}"), clip, &AtomicI64::new(0)), "the publish goes on");
        let media = self.dir.join("data/media");
        let files = eventually("all files are told of", secs(10), || {
            Some(recorded(&media, &self.receiver, stream)).filter(|it| it.len() > cut.len() * each)
        });
        assert_eq!(files.len(), cut.len() * each + 1, "{files:?}");
        move |end| files.iter().filter(|it| it.key.ends_with(end)).cloned().collect()
    }
}

impl Drop for Cutting {
    fn drop(&mut self) {
        self.server.take().into_iter().for_each(|it| self.runtime.block_on(it.stop()));
    }
}

/// Bodies of media of one kind, in order.
fn bodies(clip: &Clip, kind: u8) -> Vec<&[u8]> {
    clip.iter().filter(|it| it.0 == kind && is_frame(it)).map(|it| &it.2[..]).collect()
}

/// Whether the first picture of a file is a key picture.
fn begins_with_key(path: &Path) -> bool {
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args(["-v", "error", "-select_streams", "v", "-show_entries", "packet=flags", "-of", "csv=p=0"]);
    let told = ffprobe.args(["-read_intervals", "%+#1"]).arg(path).stdin(Stdio::null()).output();
    told.expect("ffprobe; run `make setup`").stdout.starts_with(b"K")
}

/// That the files of one end hold so many pictures and packets of sound together, and each lasts an interval, or at the end what is
/// left of `span`; up to a packet of sound at each end, and what they count `beside` that.
fn check(files: &[Recorded], judged: &[Judged], (pictures, sound): (usize, usize), span: f64, beside: f64) {
    let sum = |of: fn(&Judged) -> Option<(usize, f64)>| judged.iter().filter_map(of).map(|it| it.0).sum::<usize>();
    assert_eq!((sum(|it| it.video), sum(|it| it.audio)), (pictures, sound), "{files:?} {judged:?}");
    for (n, (file, judged)) in files.iter().zip(judged).enumerate() {
        let interval = INTERVAL.as_secs_f64();
        let want = if n + 1 < files.len() { interval } else { span - interval * n as f64 };
        assert!((file.duration - want).abs() < 0.045 + beside, "{file:?} is not {want} s");
        // ffprobe does not know how long the last picture of an FLV file is.
        assert!((judged.duration - file.duration).abs() < 0.1, "{file:?} {judged:?}");
        assert!(judged.video.is_none() || begins_with_key(&file.path), "{file:?}");
    }
}

#[test]
fn a_stream_is_cut_at_key_pictures_without_a_gap_and_without_an_overlap() {
    let cutting = Cutting::start();
    let run = |stream: &str, media| {
        let clip = clip(media, 10_000);
        let (pictures, sound) = (bodies(&clip, 9), bodies(&clip, 8));
        // Pictures are shown two later than they are sent.
        let frames = clip.iter().filter(|it| is_frame(it));
        let times = frames.map(|it| if it.0 == 9 { it.1 + 80..it.1 + 120 } else { it.1..it.1 + 21 });
        let (begin, end) = times.fold((i64::MAX, 0), |(begin, end), it| (it.start.min(begin), it.end.max(end)));
        let span = (end - begin) as f64 / 1000.0;
        let files = cutting.files(stream, &clip, &[".mp4", ".flv", ".aac", ".mp3"], 4);
        let judged = |files: &[Recorded]| files.iter().map(|it| judge(&it.path)).collect::<Vec<_>>();

        let counts = (pictures.len(), sound.len());
        // FLV counts from when its first picture is decoded.
        for (end, beside) in [(".mp4", 0.0), (".flv", if pictures.is_empty() { 0.0 } else { 0.08 })] {
            check(&files(end), &judged(&files(end)), counts, span, beside);
        }
        let tags = files(".flv").into_iter().flat_map(|it| flv::tags(&it.path).0);
        let kept: Clip = tags.filter(|it| it.kind < 18).map(|it| (it.kind, it.timestamp, it.body)).collect();
        assert!(bodies(&kept, 9) == pictures, "{stream}: every picture once, in order");
        assert!(bodies(&kept, 8) == sound, "{stream}: every packet of sound once, in order");
        let aac = judged(&files(".aac"));
        assert_eq!(aac.iter().filter_map(|it| it.audio).map(|it| it.0).sum::<usize>(), sound.len());
        let mp3 = judged(&files(".mp3")).iter().map(|it| it.duration).collect::<Vec<_>>();
        assert!((mp3.iter().sum::<f64>() - span).abs() < 0.1, "{mp3:?} of {span} s");
        assert!(mp3[1..3].iter().all(|it| (it - INTERVAL.as_secs_f64()).abs() < 0.05), "{mp3:?}");

        let list: PathBuf = files("m3u8").remove(0).path;
        let text = std::fs::read_to_string(&list).expect("a playlist");
        assert!(text.ends_with("#EXT-X-ENDLIST\n") && !text.contains("DISCONTINUITY"), "{text}");
        assert_eq!(judge(&list).video.map_or(0, |it| it.0), pictures.len());
    };
    thread::scope(|scope| {
        scope.spawn(|| run("b-frames", Media::BFrames));
        scope.spawn(|| run("sound", Media::AudioOnly));
    });
}
