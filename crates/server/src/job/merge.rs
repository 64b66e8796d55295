//! Merges: new files from pieces of recorded ones, without coding anything anew but sound that is to become MP3.
//!
//! A job's row is its journal: killed before its result is told of in it, it begins anew and writes the same file. Inputs that are
//! in the bucket are fetched for the time of the merge.
//!
//! Invariant: a result's row, its job's end and its callback are one transaction; where results go to the bucket, it comes after
//! the upload's.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use bywash_media::Tracks;
use bywash_media::mux::merge;
use futures_util::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::make::Source;
use crate::callback;
use crate::clock::unix_ms;
use crate::config::{Apps, Format};
use crate::object::{self, Bucket, Objects, Urls};
use crate::segment::{Folder, Whole};
use crate::space::Room;
use crate::store::{About, File, FileState, Job, JobState, Merge, Part, Store, file};

mod make;

/// How often it is looked for jobs if nobody tells of one.
const LOOK: Duration = Duration::from_secs(60);

/// Jobs that are looked at in one turn.
const LOOK_MAX: i64 = 100;

/// How often progress is noted, and how long to wait for a store that fails.
const NOTE: Duration = Duration::from_secs(1);

/// Waits after a failure that may pass: this, then twice as long each time; so many attempts in all.
const RETRY: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 8;

/// Bytes that a job may fetch from the bucket.
const FETCH_MAX: i64 = 64 << 30;

/// Codes of the `compose` callback (ZEGO).
const DONE: &str = "0";
const BAD_SOURCE: &str = "60000";
const INTERNAL: &str = "70000";

/// What the job works with.
#[derive(Clone)]
pub struct Merges {
    /// Where jobs and files are told.
    pub store: Store,
    /// Where the files' bytes are.
    pub objects: Objects,
    /// Whose callbacks are owed.
    pub apps: Arc<Apps>,
    /// Under which addresses.
    pub urls: Urls,
    /// Where results are written.
    pub folder: Folder,
    /// What of the disk is left for recordings.
    pub room: Room,
    /// Jobs at once.
    pub max: usize,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// It will fail again.
    #[error("{0}")]
    Unfit(String),
    /// It may pass.
    #[error("{0:#}")]
    Passing(#[from] anyhow::Error),
}

impl From<merge::Error> for Failure {
    fn from(error: merge::Error) -> Failure {
        match error {
            merge::Error::Unfit(why) => Failure::Unfit(why),
            merge::Error::Io(error) => Failure::Passing(error.into()),
        }
    }
}

impl From<crate::store::Error> for Failure {
    fn from(error: crate::store::Error) -> Failure {
        Failure::Passing(error.into())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Passing(error.into())
    }
}

/// Merges until `stop`. What is not done by then begins anew at the next start.
pub async fn run(merges: Merges, stop: CancellationToken) {
    // Nobody is at work yet: what is here is of a process that was killed.
    tokio::fs::remove_dir_all(merges.objects.scratch()).await.ok();
    let mut work = merges.store.work();
    let (mut busy, mut under_way) = (HashSet::new(), FuturesUnordered::new());
    loop {
        let due = async { merges.store.read().await?.jobs_due(LOOK_MAX).await };
        let due = due.await.unwrap_or_else(|error| {
            warn!(%error, "merges wait for the store");
            Vec::new()
        });
        for job in due {
            if under_way.len() < merges.max && busy.insert(job.id.clone()) {
                let merges = merges.clone();
                under_way.push(async move { merges.attempts(job).await });
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = work.changed() => if changed.is_err() { return },
            Some(id) = under_way.next() => drop(busy.remove::<String>(&id)),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl Merges {
    /// Brings a job to its end; gives its id.
    async fn attempts(&self, mut job: Job) -> String {
        let mut wait = RETRY;
        for attempt in 1.. {
            let failure = match self.attempt(&mut job).await {
                Ok(()) => break,
                Err(failure) => failure,
            };
            self.tidy(&job).await;
            let code = match &failure {
                Failure::Unfit(_) => BAD_SOURCE,
                Failure::Passing(_) if attempt >= ATTEMPTS => INTERNAL,
                Failure::Passing(error) => {
                    warn!(job = job.id, again_in = ?wait, "merge: {error:#}");
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                    continue;
                }
            };
            warn!(job = job.id, code, "merge given up: {failure}");
            if let Err(error) = self.discard(&job).await {
                warn!(job = job.id, "what a merge has written stays: {error}");
            }
            (job.code, job.message, job.file) = (code.into(), failure.to_string(), String::new());
            while let Err(error) = self.end(&mut job, None).await {
                warn!(job = job.id, "the end of a merge is not written: {error}");
                tokio::time::sleep(NOTE).await;
            }
            return job.id;
        }
        self.tidy(&job).await;
        job.id
    }

    /// Deletes what was needed on the way: not before the disk has it back may the store be able to write.
    async fn tidy(&self, job: &Job) {
        tokio::fs::remove_dir_all(self.objects.scratch().join(&job.id)).await.ok();
    }

    async fn attempt(&self, job: &mut Job) -> Result<(), Failure> {
        if job.file.is_empty() {
            job.state = JobState::Processing;
            self.note(job).await?;
            let file = self.make(job).await?;
            let mut tx = self.store.begin().await?;
            tx.file_open(&file).await?;
            // Only once it is committed there is a result.
            let mut with = Job { file: file.id.clone(), ..job.clone() };
            if file.state == FileState::Ready {
                return self.end_by(tx, &mut with, Some(&file)).await;
            }
            tx.job_note(&with).await?;
            tx.commit().await?;
            *job = with;
        }
        let mut work = self.store.work();
        loop {
            let file = self.store.read().await?.file(job.app, job.environment, &job.file).await?;
            match file.as_ref().map(|file| file.state) {
                Some(FileState::Ready) => return self.end(job, file.as_ref()).await,
                Some(FileState::Stored) => drop(tokio::time::timeout(LOOK, work.changed()).await),
                _ => return Err(Failure::Unfit("the result was deleted before it was there".into())),
            }
        }
    }

    /// Deletes what attempts have written, if there is no row of it: of one that was killed, or whose result could not be told of.
    async fn discard(&self, job: &Job) -> Result<(), Failure> {
        let one = self.store.read().await?.file(job.app, job.environment, &job.request.parts[0].file).await?;
        if let Some(one) = one.filter(|_| job.file.is_empty()) {
            let (folder, key, format) = (self.folder.clone(), key(job, &one), job.request.format);
            tokio::task::spawn_blocking(move || folder.remove(&key, format)).await.context("delete")??;
        }
        Ok(())
    }

    async fn note(&self, job: &Job) -> Result<(), Failure> {
        let mut tx = self.store.begin().await?;
        tx.job_note(job).await?;
        Ok(tx.commit().await?)
    }

    async fn end(&self, job: &mut Job, file: Option<&File>) -> Result<(), Failure> {
        let tx = self.store.begin().await?;
        self.end_by(tx, job, file).await
    }

    /// Writes that the job is over, with this result, or without.
    async fn end_by(&self, mut tx: crate::store::Tx, job: &mut Job, file: Option<&File>) -> Result<(), Failure> {
        job.ended_ms = unix_ms();
        let mut url = String::new();
        let app = self.apps.get(job.app);
        match file {
            Some(file) => {
                (job.state, job.progress, job.code, job.message) =
                    (JobState::Finished, 100, DONE.into(), String::new());
                url = app.as_ref().map_or(url, |app| self.urls.replay(app, &file.path, job.ended_ms));
            }
            None => job.state = JobState::Failed,
        }
        tx.job_note(job).await?;
        if let Some(app) = &app {
            tx.owe(callback::compose(app, &url, job, job.ended_ms), job.ended_ms).await?;
        }
        tx.commit().await?;
        info!(job = job.id, code = job.code, "merge is over");
        Ok(())
    }

    /// Makes the result, and says what it is.
    async fn make(&self, job: &mut Job) -> Result<File, Failure> {
        let (mut files, mut fetched) = (BTreeMap::new(), 0);
        for part in &job.request.parts {
            let found = self.store.read().await?.file(job.app, job.environment, &part.file).await?;
            let there = found.filter(|it| matches!(it.state, FileState::Stored | FileState::Ready));
            let file = there.ok_or_else(|| Failure::Unfit(format!("there is no file {}", part.file)))?;
            files.insert(part.file.clone(), file);
        }
        let mut sources = BTreeMap::new();
        for (id, file) in &files {
            let mut path = self.objects.local(&file.path);
            if !tokio::fs::try_exists(&path).await? {
                let Some(bucket) = self.objects.bucket() else {
                    return Err(Failure::Unfit(format!("the bytes of file {id} are gone")));
                };
                fetched += file.size;
                if fetched > FETCH_MAX {
                    return Err(Failure::Unfit("the inputs are too large to be fetched from the bucket".into()));
                }
                path = self.fetch(bucket, file, &self.objects.scratch().join(&job.id).join(id)).await?;
            }
            sources.insert(id.clone(), Source { path, format: file.format, begin_ms: file.begin_ms });
        }

        let one = &files[&job.request.parts[0].file];
        let begin_ms = one.begin_ms + job.request.parts[0].begin_ms;
        let (format, path) = (job.request.format, key(job, one));
        let (percent, cancelled) = (Arc::new(AtomicI64::new(0)), Cancel::default());
        let merging = make::Merging {
            request: job.request.clone(),
            bytes: expected(&job.request, &files),
            sources,
            room: self.room,
            looked: Cell::default(),
            folder: self.folder.clone(),
            scratch: self.objects.scratch().join(&job.id),
            key: path.clone(),
            percent: percent.clone(),
            cancelled: cancelled.0.clone(),
        };
        let mut making = tokio::task::spawn_blocking(move || merging.run());
        let made = loop {
            match tokio::time::timeout(NOTE, &mut making).await {
                Ok(made) => break made.context("merge")??,
                Err(_) => {
                    let now = percent.load(Relaxed);
                    if now != job.progress {
                        job.progress = now;
                        // A note is not worth the merge, whose thread another attempt would meet in the same file.
                        if let Err(error) = self.note(job).await {
                            warn!(job = job.id, "the progress of a merge is not written: {error}");
                        }
                    }
                }
            }
        };
        let (Whole { size, duration, .. }, tracks) = made;
        // Of segments that were copied we know what was known before.
        let mut about = if tracks == Tracks::default() { one.about.clone() } else { About::of(format, &tracks) };
        about.frame_rate_milli = if about.video_codec.is_empty() { 0 } else { one.about.frame_rate_milli };
        let now_ms = unix_ms();
        let file = File {
            id: file::file_id(),
            key: one.key.clone(),
            vendor: job.vendor,
            record: String::new(),
            format,
            path,
            state: if self.objects.bucket().is_some() { FileState::Stored } else { FileState::Ready },
            interrupted: false,
            begin_ms,
            end_ms: begin_ms,
            duration_ms: 0,
            size: 0,
            etag: String::new(),
            about,
            name: job.request.name.clone(),
            created_ms: now_ms,
            updated_ms: now_ms,
            expire_ms: job.request.expire_ms,
        };
        Ok(file.whole(size, duration.as_ticks(1000)))
    }

    /// Copies a file from the bucket into `folder`; gives where it is.
    async fn fetch(&self, bucket: &Bucket, file: &File, folder: &Path) -> Result<PathBuf, Failure> {
        tokio::fs::create_dir_all(folder).await?;
        self.room.holds(folder, file.size as u64)?;
        let path = bucket.path(&file.path);
        let objects: Vec<_> = bucket.objects(&file.path).try_collect().await.context("list the bucket")?;
        for object in objects {
            let mut out = tokio::fs::File::create(folder.join(object.filename().unwrap_or_default())).await?;
            let mut bytes = bucket.store.get(&object).await.context("fetch from the bucket")?.into_stream();
            while let Some(chunk) = bytes.try_next().await.context("fetch from the bucket")? {
                self.room.holds(folder, chunk.len() as u64)?;
                out.write_all(&chunk).await?;
            }
            out.flush().await?;
        }
        Ok(folder.join(path.filename().unwrap_or_default()))
    }
}

/// About how many bytes the result of a merge has.
fn expected(merge: &Merge, files: &BTreeMap<String, File>) -> u64 {
    /// Bytes a millisecond of the fastest MP3, 320 kbit/s.
    const MP3_MAX: i64 = 40;
    let piece = |part: &Part| {
        let file = &files[&part.file];
        let length = (part.end_ms.unwrap_or(i64::MAX).min(file.duration_ms) - part.begin_ms).max(0);
        let share = i128::from(file.size) * i128::from(length) / i128::from(file.duration_ms.max(1));
        let most = if merge.format == Format::Mp3 { MP3_MAX.saturating_mul(length) } else { i64::MAX };
        (share as i64).min(most) as u64
    };
    merge.parts.iter().map(piece).sum()
}

/// The key of a job's result, at each attempt the same. `one` is its first input.
fn key(job: &Job, one: &File) -> String {
    // What of a TaskId differs from others: `<appid>-EditMedia-<random>tt0`, or all of it.
    let name = job.id.rsplit('-').next().unwrap_or(&job.id);
    object::key(&one.key, job.created_ms, name.get(..12).unwrap_or(name), 1, job.request.format)
}

/// Tells the thread of a merge that nobody waits for it any more.
#[derive(Default)]
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
