//! WebRTC and RTMP clients of other people's making, run by the scripts beside this.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bywash_testkit::{Process, Scratch, Server, eventually, secs};

/// One of them, until it is dropped.
pub struct Client {
    process: Process,
    dir: Scratch,
}

impl Client {
    /// aiortc, by `whip.py`.
    pub fn aiortc(url: &str, options: &[&str]) -> Client {
        Client::run(&venv(), "whip.py", url, options)
    }

    /// GStreamer, which only the system's Python knows, by `gst.py`.
    pub fn gstreamer(url: &str, codec: &str) -> Client {
        Client::run(Path::new("/usr/bin/python3"), "gst.py", url, &[codec])
    }

    /// FFmpeg 8, by `ffmpeg.py`; what `options` are is told there.
    pub fn ffmpeg(url: &str, options: &[&str]) -> Client {
        Client::run(&venv(), "ffmpeg.py", url, options)
    }

    /// FFmpeg 8 as a player of enhanced RTMP that says it takes these codecs; prints which come.
    pub fn player(url: &str, takes: &str) -> Client {
        Client::run(&venv(), "ffmpeg.py", url, &["play", takes])
    }

    /// libdatachannel as OBS drives it, by `obs.mjs`; what `options` are behind the folder of modules is told there.
    pub fn obs(url: &str, options: &[&str]) -> Client {
        let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/publishers/node_modules");
        assert!(modules.is_dir(), "libdatachannel is not installed; run `make setup`");
        let options = [&[modules.to_str().expect("a UTF-8 path")], options].concat();
        Client::run(Path::new("node"), "obs.mjs", url, &options)
    }

    fn run(interpreter: &Path, script: &str, url: &str, options: &[&str]) -> Client {
        let (root, dir) = (Path::new(env!("CARGO_MANIFEST_DIR")), Scratch::new());
        let output = || std::fs::OpenOptions::new().create(true).append(true).open(dir.join("said")).expect("a file");
        let mut command = Command::new(interpreter);
        command.arg(root.join("tests/server").join(script)).arg(url).args(options);
        let process = Process::start(command.stdin(Stdio::piped()).stdout(output()).stderr(output()));
        Client { process, dir }
    }

    /// aiortc as a publisher that is connected.
    pub fn publish(server: &Server, stream: &str, options: &[&str]) -> Client {
        let client = Client::aiortc(&server.whip(stream), options);
        client.wait("connected");
        client
    }

    /// What it has printed.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.dir.join("said")).unwrap_or_default()
    }

    /// Waits for a line.
    #[track_caller]
    pub fn wait(&self, word: &str) {
        let begin = Instant::now();
        while !self.said().lines().any(|line| line == word) {
            assert!(begin.elapsed() < secs(30), "not {word}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends in order, by DELETE; gives what it has printed.
    pub fn end(mut self) -> String {
        drop(self.process.child().stdin.take());
        eventually("the client ends", secs(10), || self.process.exit_code());
        self.said()
    }
}

fn venv() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python");
    assert!(python.is_file(), "aiortc and FFmpeg 8 are not installed; run `make setup`");
    python
}
