//! Recordings are what went in, whenever the writer was killed: held against FFmpeg where it is installed.

mod files;
mod hls;
mod merge;
mod mp4;
mod source;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

use bywash_media::mux::{Finish, Source, Write};

/// A file in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk(pub Vec<u8>);

impl Disk {
    /// Does what the writes say.
    pub fn apply(&mut self, writes: &[Write]) {
        for write in writes {
            match write {
                Write::At(at, parts) => {
                    let at = *at as usize;
                    let bytes = parts.concat();
                    self.0.resize(self.0.len().max(at + bytes.len()), 0);
                    self.0[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                Write::Sync => {}
                Write::Truncate(len) => self.0.truncate(*len as usize),
            }
        }
    }

    /// Each state that a process killed among `writes` may leave: after every write, and within those that are long.
    pub fn states(&self, writes: &[Write]) -> Vec<Disk> {
        let mut now = self.clone();
        let mut states = vec![now.clone()];
        for write in writes {
            if let Write::At(at, parts) = write {
                let bytes = parts.concat();
                // A word of 8 aligned bytes is not torn.
                for part in [4, 8, 9, 60, bytes.len() / 2, bytes.len() - 1] {
                    if bytes.len() > 8 && part < bytes.len() {
                        let mut torn = now.clone();
                        torn.apply(&[Write::At(*at, vec![bytes[..part].to_vec().into()])]);
                        states.push(torn);
                    }
                }
            }
            now.apply(std::slice::from_ref(write));
            if *write != Write::Sync {
                states.push(now.clone());
            }
        }
        states
    }

    /// Finishes the file; `None` if there is nothing in it. What finishing promised is held against what came of it.
    pub fn finish(mut self, with: impl Fn(&[u8]) -> io::Result<Option<Finish>>) -> Option<(Disk, Finish)> {
        let done = with(&self.0).unwrap()?;
        self.apply(&done.writes);
        assert_eq!(self.0.len() as u64, done.len);
        let again = with(&self.0).unwrap().unwrap();
        assert_eq!((again.writes.len(), again.len, again.duration), (0, done.len, done.duration));
        Some((self, done))
    }
}

/// A file on the disk, for what is too large for memory.
pub struct OnDisk(pub RefCell<std::fs::File>);

impl Source for OnDisk {
    fn size(&self) -> u64 {
        self.0.borrow().metadata().unwrap().len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.0.borrow_mut();
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(buf)
    }
}

/// Numbers that look random and are the same in each run.
pub struct Dice(pub u64);

impl Dice {
    /// A number less than `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// Whether FFmpeg is here. Without it the tests that need it do nothing.
pub fn ffmpeg() -> bool {
    static HERE: LazyLock<bool> = LazyLock::new(|| Command::new("ffmpeg").arg("-version").output().is_ok());
    *HERE
}

/// A file of this name that only one test writes.
pub fn path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("recording");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

/// Runs FFmpeg's program on `file` between two lists of arguments; what it prints. It must have nothing to complain of.
pub fn run(program: &str, before: &[&str], file: &Path, after: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(["-v", "error"]).args(before).arg("-i").arg(file).args(after);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{command:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

/// The hash of each decoded frame, pictures first, then sound. FFmpeg must have nothing to complain of.
pub fn decoded(file: &Path) -> Vec<Vec<String>> {
    hashes(file, &["-vsync", "passthrough"])
}

/// The hash of each packet, likewise.
pub fn packets(file: &Path) -> Vec<Vec<String>> {
    hashes(file, &["-c", "copy"])
}

fn hashes(file: &Path, how: &[&str]) -> Vec<Vec<String>> {
    let how = [&["-map", "0:v?", "-map", "0:a?"], how, &["-f", "framemd5", "-"]].concat();
    let told = run("ffmpeg", &["-xerror", "-threads", "1"], file, &how);
    let mut streams = vec![Vec::new(); 2];
    for line in told.lines().filter(|line| !line.starts_with('#')) {
        let (stream, rest) = line.split_once(',').unwrap();
        let hash = rest.rsplit(',').next().unwrap();
        streams[stream.parse::<usize>().unwrap()].push(hash.trim().to_owned());
    }
    assert!(!streams[0].is_empty());
    streams
}

/// The hash of each decoded frame of a file that does not change.
pub fn decoded_source(file: &Path) -> Vec<Vec<String>> {
    static KNOWN: Mutex<BTreeMap<PathBuf, Vec<Vec<String>>>> = Mutex::new(BTreeMap::new());
    // Whoever else wants it waits for it.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(file.to_owned()).or_insert_with(|| decoded(file)).clone()
}

/// How long FFmpeg takes the file to be, and when it takes the packets of each stream to be shown; in seconds, ascending.
pub fn probe(file: &Path) -> (f64, Vec<Vec<f64>>) {
    let what = ["-show_entries", "format=duration:packet=stream_index,pts_time", "-of", "csv"];
    let (mut duration, mut streams) = (0.0, vec![Vec::new(); 2]);
    for line in run("ffprobe", &[], file, &what).lines() {
        match line.split(',').collect::<Vec<_>>()[..] {
            ["packet", stream, time, ..] => streams[stream.parse::<usize>().unwrap()].push(time.parse().unwrap()),
            ["format", time, ..] => duration = time.parse().unwrap(),
            _ => {}
        }
    }
    streams.iter_mut().for_each(|times: &mut Vec<f64>| times.sort_by(f64::total_cmp));
    (duration, streams)
}
