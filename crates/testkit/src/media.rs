//! Real media: made once by ffmpeg, published in real time by ffmpeg, judged by ffmpeg.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;

use crate::flv::{self, Tag};
use crate::{Process, Scratch};

/// What a stream consists of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Media {
    /// H.264 without B-frames, and AAC.
    Plain,
    /// H.264 with B-frames, and AAC.
    BFrames,
    /// As [`Media::Plain`], with a keyframe each ten seconds.
    FewKeyframes,
    /// H.264 alone.
    VideoOnly,
    /// AAC alone.
    AudioOnly,
    /// As [`Media::VideoOnly`], of half the size.
    Smaller,
}

impl Media {
    /// Two minutes of it as FLV, 320×180 at 25 pictures a second, a keyframe a second where nothing else is said.
    pub fn file(self) -> PathBuf {
        static MAKING: Mutex<()> = Mutex::new(());
        let _one = MAKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let dir = std::env::current_exe().expect("a running program").with_file_name("testkit-media");
        let path = dir.join(format!("{self:?}.flv"));
        if path.is_file() {
            return path;
        }
        std::fs::create_dir_all(&dir).expect("a folder in the target folder");
        let part = dir.join(format!("{self:?}-{}.part", std::process::id()));
        let small = self == Media::Smaller;
        let size = if small { "testsrc2=s=160x90:r=25:d=120" } else { "testsrc2=s=320x180:r=25:d=120" };
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-y", "-f", "lavfi", "-i", size]);
        ffmpeg.args(["-f", "lavfi", "-i", "sine=f=440:b=4:r=48000:d=120"]);
        if self != Media::AudioOnly {
            let b_frames = if self == Media::BFrames { "2" } else { "0" };
            let interval = if self == Media::FewKeyframes { "250" } else { "25" };
            ffmpeg.args(["-map", "0:v", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]);
            ffmpeg.args(["-g", interval, "-b:v", "400k", "-bf", b_frames]);
        }
        if !matches!(self, Media::VideoOnly | Media::Smaller) {
            ffmpeg.args(["-map", "1:a", "-c:a", "aac", "-b:a", "64k", "-ac", "2"]);
        }
        let made = ffmpeg.args(["-f", "flv"]).arg(&part).stdin(Stdio::null()).status();
        assert!(made.is_ok_and(|status| status.success()), "ffmpeg makes {self:?}; run `make setup`");
        std::fs::rename(part, &path).expect("same folder");
        path
    }

    /// Publishes it in real time until dropped.
    pub fn publish(self, url: &str) -> Process {
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-re", "-stream_loop", "-1", "-i"]).arg(self.file());
        ffmpeg.args(["-c", "copy", "-f", "flv", url]);
        Process::start(ffmpeg.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
    }
}

/// Asserts that ffmpeg decodes the whole of an FLV file without a word, that its decode times never go back and
/// that its pictures begin with a keyframe; gives its tags. A last tag that is still being written does not count.
#[track_caller]
pub fn assert_clean(path: &Path) -> Vec<Tag> {
    let (tags, length) = flv::tags(path);
    assert!(tags.iter().any(Tag::is_frame), "no media in {}", path.display());
    flv::assert_monotonic(&tags);
    if let Some(first) = tags.iter().find(|tag| tag.kind == 9 && tag.is_frame()) {
        assert!(first.is_key(), "the first picture is no keyframe in {}", path.display());
    }
    let scratch = Scratch::new();
    let whole = scratch.join("whole.flv");
    let bytes = std::fs::read(path).expect("it was read just now");
    std::fs::write(&whole, &bytes[..length]).expect("a scratch file");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-xerror", "-i"]).arg(&whole);
    // A camera's pictures do not come evenly; ffmpeg otherwise counts time in what it guesses the frame rate to be.
    ffmpeg.args(["-enc_time_base:v", "1:1000", "-f", "null", "-"]);
    let judged = ffmpeg.stdin(Stdio::null()).output().expect("ffmpeg; run `make setup`");
    let words = String::from_utf8_lossy(&judged.stderr);
    assert!(judged.status.success() && words.is_empty(), "{} is not clean: {words}", path.display());
    tags
}

/// Pictures and audio packets among `tags`.
pub fn count(tags: &[Tag]) -> (usize, usize) {
    let frames = |kind| tags.iter().filter(|tag| tag.kind == kind && tag.is_frame()).count();
    (frames(9), frames(8))
}

/// What ffprobe finds in a file that ffmpeg decodes without a word.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// Seconds.
    pub duration: f64,
    /// Pictures, and when the first is shown.
    pub video: Option<(usize, f64)>,
    /// Packets of sound, and when the first is heard.
    pub audio: Option<(usize, f64)>,
}

/// Has ffmpeg decode the whole of a recorded file; panics if it complains.
#[track_caller]
pub fn judge(path: &Path) -> Judged {
    let mut ffmpeg = Command::new("ffmpeg");
    // The encoder's time base only lets frames of any distance pass.
    ffmpeg.args(["-v", "error", "-xerror", "-i"]).arg(path).args(["-enc_time_base:v", "1:1000", "-f", "null", "-"]);
    let judged = ffmpeg.stdin(Stdio::null()).output().expect("ffmpeg; run `make setup`");
    let words = String::from_utf8_lossy(&judged.stderr);
    assert!(judged.status.success() && words.is_empty(), "{} is not clean: {words}", path.display());
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args(["-v", "error", "-count_packets", "-of", "json", "-show_entries"]);
    ffprobe.arg("stream=codec_type,start_time,nb_read_packets:format=duration").arg(path);
    let told = ffprobe.stdin(Stdio::null()).output().expect("ffprobe; run `make setup`");
    let words = String::from_utf8_lossy(&told.stderr);
    assert!(words.is_empty(), "{}: {words}", path.display());
    let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    let number = |value: &Value| value.as_str().and_then(|it| it.parse::<f64>().ok()).unwrap_or_default();
    let mut found = Judged { duration: number(&told["format"]["duration"]), ..Judged::default() };
    for stream in told["streams"].as_array().into_iter().flatten() {
        let track = Some((number(&stream["nb_read_packets"]) as usize, number(&stream["start_time"])));
        match stream["codec_type"].as_str() {
            Some("video") => found.video = track,
            _ => found.audio = track,
        }
    }
    found
}
