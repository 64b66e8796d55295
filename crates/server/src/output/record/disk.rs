//! Where a recording's files are written: on threads that may block, by whichever of them is free.
//!
//! A recording leaves its turns in an inbox and puts itself in a line. One thread serves the line as long as none waits there for
//! long: recordings that look at their streams together wake it once for all. Where the disk is slow others help, each with another
//! recording.
//!
//! Invariant: what waits for the disk is bounded, in bytes and turns for each recording and in threads for all. A disk that stalls keeps the
//! recording waiting and nobody else.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bywash_media::Time;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;
use tracing::{Span, error, warn};

use super::take::{Op, Opening};
use super::{Note, Say};
use crate::segment::{Change, Folder, Whole, Writer};
use crate::store::File;

/// What one recording may have waiting for the disk, in bytes. A disk that is slower keeps it behind in the stream's ring.
const QUEUE: usize = 1 << 20;

/// The same in turns, each what one look at the ring gave: many small ones cost memory beside their bytes.
const TURNS: usize = 64;

/// Threads that write, of all recordings: eighty syncs a second on a disk that takes a tenth of one for each. Each thread has memory
/// of its own.
const WRITERS: usize = 8;

/// How long a recording stands in the line before another thread comes to help.
const PATIENCE: Duration = Duration::from_millis(20);

/// Files that are finished at once: an MP4's tables take some 20 bytes of memory a frame.
static FINISHERS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(4));

/// How long a file that cannot be finished is left alone before it is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The recordings of this process that have something to write.
static LINE: Mutex<Line> = Mutex::new(Line { waiting: VecDeque::new(), writers: 0 });

struct Line {
    /// Each stands here once, since when.
    waiting: VecDeque<(Instant, Arc<Files>)>,
    /// Threads that serve it.
    writers: usize,
}

/// The recording's end of it.
pub struct Disk {
    files: Arc<Files>,
    room: Arc<Semaphore>,
}

struct Files {
    folder: Folder,
    say: Say,
    span: Span,
    runtime: Handle,
    inbox: Mutex<Inbox>,
    trouble: Mutex<Option<String>>,
    finishing: TaskTracker,
}

#[derive(Default)]
struct Inbox {
    turns: VecDeque<(Vec<Job>, OwnedSemaphorePermit)>,
    /// It stands in the line, or is served.
    queued: bool,
    /// By their numbers; who is served has them.
    open: HashMap<u32, Open>,
}

/// What is done with files, in this order.
enum Job {
    Open(Vec<(u32, File)>),
    Change(u32, Change),
    Close(u32, u32, Time),
}

/// A file that is being written.
struct Open {
    file: File,
    /// None where writing has failed: what is on the disk is all there will be.
    writer: Option<Writer>,
}

impl Disk {
    /// Nothing is written yet. What may block does so on threads of `runtime`.
    pub fn new(runtime: Handle, folder: Folder, say: Say, span: Span) -> Disk {
        let (inbox, trouble, finishing) = Default::default();
        let files = Files { folder, say, span, runtime, inbox, trouble, finishing };
        Disk { files: Arc::new(files), room: Arc::new(Semaphore::new(QUEUE)) }
    }

    /// Hands operations over, once there is room for them and files that are to be begun have their rows.
    pub async fn send(&self, ops: Vec<Op>) {
        if ops.is_empty() {
            return;
        }
        let (mut jobs, mut bytes) = (Vec::with_capacity(ops.len()), 0);
        for op in ops {
            jobs.push(match op {
                Op::Open(openings) => Job::Open(self.rows(openings).await),
                Op::Change(file, change) => {
                    bytes += change.len();
                    Job::Change(file, change)
                }
                Op::Close(file, rate, lasted) => Job::Close(file, rate, lasted),
            });
        }
        let room = self.room.clone().acquire_many_owned(bytes.clamp(QUEUE / TURNS, QUEUE) as u32).await;
        self.files.take((jobs, room.expect("it is never closed")));
    }

    async fn rows(&self, openings: Vec<Opening>) -> Vec<(u32, File)> {
        let (put, rows) = oneshot::channel();
        let numbers: Vec<_> = openings.iter().map(|it| it.file).collect();
        (self.files.say)(Note::Open(openings, put));
        // Without an answer plan is gone: then nothing is recorded any more.
        numbers.into_iter().zip(rows.await.unwrap_or_default()).collect()
    }

    /// What went wrong since it was last asked.
    pub fn trouble(&self) -> Option<String> {
        self.files.trouble().take()
    }

    /// Waits until all that was handed over is done and every file is whole and told. Gives what went wrong last.
    pub async fn end(self) -> Option<String> {
        let _all = self.room.acquire_many(QUEUE as u32).await;
        let open = std::mem::take(&mut self.files.inbox().open);
        open.into_values().for_each(|open| self.files.close(open, 0, Time::ZERO));
        self.files.finishing.close();
        self.files.finishing.wait().await;
        self.trouble()
    }
}

impl Files {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("no holder panics")
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().expect("no holder panics")
    }

    /// Puts a turn into the inbox, and the recording into the line if it is not there; sees to it that the line moves.
    fn take(self: &Arc<Files>, turn: (Vec<Job>, OwnedSemaphorePermit)) {
        let mut inbox = self.inbox();
        inbox.turns.push_back(turn);
        let queued = std::mem::replace(&mut inbox.queued, true);
        drop(inbox);
        let mut line = line();
        if !queued {
            line.waiting.push_back((Instant::now(), self.clone()));
        }
        let short = |since: &Instant| match line.writers {
            0 => true,
            writers => writers < WRITERS && since.elapsed() >= PATIENCE,
        };
        if line.waiting.front().is_some_and(|(since, _)| short(since)) {
            line.writers += 1;
            self.runtime.spawn_blocking(serve);
        }
    }

    /// Does what is in the inbox.
    fn work(&self) {
        let mut inbox = self.inbox();
        let mut open = std::mem::take(&mut inbox.open);
        while let Some((jobs, _room)) = inbox.turns.pop_front() {
            drop(inbox);
            jobs.into_iter().for_each(|job| self.carry_out(job, &mut open));
            inbox = self.inbox();
        }
        (inbox.open, inbox.queued) = (open, false);
    }

    fn carry_out(&self, job: Job, open: &mut HashMap<u32, Open>) {
        match job {
            Job::Open(files) => {
                for (number, file) in files {
                    let writer = self.folder.create(&file.path, file.format);
                    let writer = writer.map_err(|error| self.note(&file.path, &error)).ok();
                    open.insert(number, Open { file, writer });
                }
            }
            Job::Change(number, change) => {
                let Some(Open { file, writer }) = open.get_mut(&number) else { return };
                if let Some(Err(error)) = writer.as_mut().map(|writer| writer.apply(change)) {
                    *writer = None;
                    self.note(&file.path, &error);
                }
            }
            Job::Close(number, rate, lasted) => {
                if let Some(open) = open.remove(&number) {
                    self.close(open, rate, lasted);
                }
            }
        }
    }

    fn note(&self, path: &str, error: &io::Error) {
        error!(parent: &self.span, path, %error, "cannot write");
        *self.trouble() = Some(format!("cannot write: {error}"));
    }

    fn close(&self, Open { mut file, writer }: Open, rate: u32, lasted: Time) {
        file.about.frame_rate_milli = if file.about.video_codec.is_empty() { 0 } else { rate };
        // Else the file tells what came to the disk.
        if writer.is_some() {
            file.end_ms = file.begin_ms + lasted.as_millis();
        }
        let (folder, say, span) = (self.folder.clone(), self.say.clone(), self.span.clone());
        let finish = async move {
            drop(writer);
            say(finish(&folder, file, &span).await);
        };
        self.finishing.spawn_on(finish, &self.runtime);
    }
}

fn line() -> MutexGuard<'static, Line> {
    LINE.lock().expect("no holder panics")
}

/// Writes for whoever stands in the line, until nobody does.
fn serve() {
    loop {
        let mut line = line();
        let Some((_, files)) = line.waiting.pop_front() else {
            line.writers -= 1;
            return;
        };
        drop(line);
        if catch_unwind(AssertUnwindSafe(|| files.work())).is_err() {
            // A bug of ours, which the log has. Its files are finished at the next start.
            *files.trouble() = Some("writing failed".into());
            let mut inbox = files.inbox();
            inbox.turns.clear();
            inbox.queued = false;
        }
    }
}

/// Makes a file whole, be it after its last frame or after a crash, and tries until that can be done; gives what there is to tell
/// of it.
pub async fn finish(folder: &Folder, file: File, span: &Span) -> Note {
    loop {
        let (folder, path, format) = (folder.clone(), file.path.clone(), file.format);
        match finished(move || folder.finish(&path, format)).await {
            Ok(None) => return Note::Nothing(file.id),
            Ok(Some(Whole { size, duration, span })) => {
                let end_ms = file.end_ms.max(file.begin_ms + span.as_millis());
                let file = File { end_ms, ..file };
                return Note::Whole(Box::new(file.whole(size, duration.as_ticks(1000))));
            }
            Err(error) => {
                warn!(parent: span, path = file.path, %error, "cannot finish a file; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// What came of finishing, in its turn. A panic, which is a bug of ours, is an error like others: told, and tried again.
async fn finished(finish: impl FnOnce() -> io::Result<Option<Whole>> + Send + 'static) -> io::Result<Option<Whole>> {
    let _turn = FINISHERS.acquire().await.expect("it is never closed");
    tokio::task::spawn_blocking(finish).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finishing_that_panics_is_an_error_and_the_next_file_has_its_turn() {
        for _ in 0..2 * FINISHERS.available_permits() {
            let error = finished(|| panic!("of this test")).await.unwrap_err();
            assert!(error.to_string().contains("of this test"), "{error}");
        }
        assert_eq!(finished(|| Ok(None)).await.unwrap(), None);
    }
}
