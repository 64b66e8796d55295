//! Where a recording's files are written: a task of its own, whose work is done on threads that may block.
//!
//! Invariant: what waits for the disk is bounded, in bytes and turns for each recording and in threads for all. A disk that stalls keeps the
//! recording waiting and nobody else.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use md5::{Digest, Md5};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{Span, error, warn};

use super::take::Op;
use super::{Note, Say};
use crate::segment::{Change, Folder, Whole, Writer};
use crate::store::File;

/// What one recording may have waiting for the disk, in bytes. A disk that is slower keeps it behind in the stream's ring.
const QUEUE: usize = 1 << 20;

/// The same in turns, each what one look at the ring gave: many small ones cost memory beside their bytes.
const TURNS: usize = 64;

/// Threads that write, of all recordings: eighty syncs a second on a disk that takes a tenth of one for each. Each thread has memory
/// of its own.
static WRITERS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(8));

/// Files that are finished at once: an MP4's tables take some 20 bytes of memory a frame.
static FINISHERS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(4));

/// How long a file that cannot be finished is left alone before it is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The recording's end of it.
pub struct Disk {
    jobs: mpsc::Sender<(Vec<Op>, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    trouble: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Disk {
    /// Starts the task on `runtime`.
    pub fn start(runtime: &Handle, folder: Folder, say: Say, span: Span) -> Disk {
        let (jobs, ordered) = mpsc::channel(TURNS);
        let trouble = Arc::<Mutex<Option<String>>>::default();
        let files =
            Files { folder, say, span, trouble: trouble.clone(), open: HashMap::new(), finishing: JoinSet::new() };
        let task = runtime.spawn(files.run(ordered));
        Disk { jobs, room: Arc::new(Semaphore::new(QUEUE)), trouble, task }
    }

    /// Hands operations over, once there is room for them.
    pub async fn send(&self, ops: Vec<Op>) {
        if ops.is_empty() {
            return;
        }
        let bytes: usize = ops.iter().map(|op| if let Op::Change(_, change) = op { change.len() } else { 0 }).sum();
        let room = self.room.clone().acquire_many_owned(bytes.min(QUEUE) as u32).await;
        let room = room.expect("it is never closed");
        // Its task ends after us, or has failed, which the end will tell.
        let _ = self.jobs.send((ops, room)).await;
    }

    /// What went wrong since it was last asked.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().expect("no holder panics").take()
    }

    /// Waits until all that was handed over is done and every file that was closed is whole and told.
    pub async fn end(self) -> Result<(), String> {
        drop(self.jobs);
        self.task.await.map_err(|error| error.to_string())
    }
}

struct Files {
    folder: Folder,
    say: Say,
    span: Span,
    trouble: Arc<Mutex<Option<String>>>,
    open: HashMap<u32, Open>,
    finishing: JoinSet<()>,
}

/// A file that is being written.
struct Open {
    file: File,
    /// None where writing has failed: what is on the disk is all there will be.
    writer: Option<Writer>,
}

impl Files {
    async fn run(mut self, mut jobs: mpsc::Receiver<(Vec<Op>, OwnedSemaphorePermit)>) {
        while let Some((ops, _room)) = jobs.recv().await {
            let mut changes = Vec::new();
            for op in ops {
                match op {
                    Op::Change(file, change) => changes.push((file, change)),
                    Op::Open(openings) => {
                        let (put, rows) = oneshot::channel();
                        let numbers: Vec<_> = openings.iter().map(|it| it.file).collect();
                        (self.say)(Note::Open(openings, put));
                        // Plan is gone: then nothing is recorded any more.
                        let files = rows.await.unwrap_or_default();
                        self.open(numbers.into_iter().zip(files).collect()).await;
                    }
                    Op::Close(file, rate) => {
                        self.write(std::mem::take(&mut changes)).await;
                        self.close(file, rate);
                    }
                }
            }
            self.write(changes).await;
        }
        for file in self.open.keys().copied().collect::<Vec<_>>() {
            self.close(file, 0);
        }
        while self.finishing.join_next().await.is_some() {}
    }

    async fn open(&mut self, files: Vec<(u32, File)>) {
        let folder = self.folder.clone();
        let create = move || {
            let create = |(number, file): (u32, File)| (number, folder.create(&file.path, file.format), file);
            files.into_iter().map(create).collect::<Vec<_>>()
        };
        for (number, writer, file) in on_disk(&WRITERS, create).await {
            let writer = writer.map_err(|error| self.note(&file.path, &error)).ok();
            self.open.insert(number, Open { file, writer });
        }
    }

    async fn write(&mut self, changes: Vec<(u32, Change)>) {
        if changes.is_empty() {
            return;
        }
        let mut open = std::mem::take(&mut self.open);
        let write = move || {
            let mut troubles = Vec::new();
            for (number, change) in changes {
                let Some(Open { file, writer }) = open.get_mut(&number) else { continue };
                if let Some(Err(error)) = writer.as_mut().map(|writer| writer.apply(change)) {
                    *writer = None;
                    troubles.push((file.path.clone(), error));
                }
            }
            (open, troubles)
        };
        let (open, troubles) = on_disk(&WRITERS, write).await;
        self.open = open;
        troubles.iter().for_each(|(path, error)| self.note(path, error));
    }

    fn note(&self, path: &str, error: &io::Error) {
        error!(parent: &self.span, path, %error, "cannot write");
        *self.trouble.lock().expect("no holder panics") = Some(format!("cannot write: {error}"));
    }

    fn close(&mut self, number: u32, rate: u32) {
        let Some(Open { mut file, writer }) = self.open.remove(&number) else { return };
        file.about.frame_rate_milli = if file.about.video_codec.is_empty() { 0 } else { rate };
        let (folder, say, span) = (self.folder.clone(), self.say.clone(), self.span.clone());
        self.finishing.spawn(async move {
            drop(writer);
            say(finish(&folder, file, &span).await);
        });
    }
}

/// Makes a file whole, be it after its last frame or after a crash, and tries until that can be done; gives what there is to tell
/// of it.
pub async fn finish(folder: &Folder, file: File, span: &Span) -> Note {
    loop {
        let (folder, path, format) = (folder.clone(), file.path.clone(), file.format);
        match on_disk(&FINISHERS, move || folder.finish(&path, format)).await {
            Ok(None) => return Note::Nothing(file.id),
            Ok(Some(whole)) => return Note::Whole(Box::new(known(file, whole))),
            Err(error) => {
                warn!(parent: span, path = file.path, %error, "cannot finish a file; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// What is known of a file once it is whole.
fn known(mut file: File, whole: Whole) -> File {
    file.size = whole.size as i64;
    file.duration_ms = whole.duration.as_ticks(1000);
    file.end_ms = file.begin_ms + file.duration_ms;
    file.about.bit_rate = (whole.size * 8000).checked_div(file.duration_ms as u64).unwrap_or(0);
    // A file does not change: what it is called and how long it is say which one it is.
    file.etag = hex::encode(Md5::digest(format!("{} {} {}", file.id, file.size, file.duration_ms)));
    file
}

/// Does what may block on one of the threads that `limit` allows.
async fn on_disk<T: Send + 'static>(limit: &'static Semaphore, work: impl FnOnce() -> T + Send + 'static) -> T {
    let _turn = limit.acquire().await.expect("it is never closed");
    tokio::task::spawn_blocking(work).await.expect("file work does not panic")
}
