//! Real media: made once by ffmpeg, published in real time by ffmpeg, judged by ffmpeg.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use crate::flv::{self, Tag};
use crate::{Process, Scratch};

/// What a stream consists of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Media {
    /// H.264 without B-frames, and AAC.
    Plain,
    /// H.264 with B-frames, and AAC.
    BFrames,
    /// H.264 alone.
    VideoOnly,
    /// AAC alone.
    AudioOnly,
}

impl Media {
    /// Two minutes of it as FLV, 320×180 at 25 pictures a second, a keyframe a second.
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
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-y", "-f", "lavfi", "-i", "testsrc2=s=320x180:r=25:d=120"]);
        ffmpeg.args(["-f", "lavfi", "-i", "sine=f=440:b=4:r=48000:d=120"]);
        if self != Media::AudioOnly {
            let b_frames = if self == Media::BFrames { "2" } else { "0" };
            ffmpeg.args(["-map", "0:v", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]);
            ffmpeg.args(["-g", "25", "-b:v", "400k", "-bf", b_frames]);
        }
        if self != Media::VideoOnly {
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
    ffmpeg.args(["-v", "error", "-xerror", "-i"]).arg(&whole).args(["-f", "null", "-"]);
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
