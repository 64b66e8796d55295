//! Deletes: files whose time is over, and those that DeleteMedia named.
//!
//! A file in state Deleting is the order to do so; nobody is given it any more. Its bytes go first, then its row,
//! so that a crash leaves the order and never bytes without a row.
//!
//! Invariant: a row goes only when nothing of its file is left, here or in the bucket.

use std::time::Duration;

use futures_util::StreamExt;
use object_store::ObjectStore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::unix_ms;
use crate::object::Objects;
use crate::store::{File, Store};

/// How often it is looked for what could not be deleted before. When the time of a file is over it is looked at once.
const LOOK: Duration = Duration::from_secs(30);

/// Files whose rows go in one transaction, and deletions at once.
const BATCH: i64 = 200;
const AT_ONCE: usize = 8;

/// How long it may be told what came of a recording without files, or of a merge.
const TOLD_MS: i64 = 30 * 86_400_000;

/// Deletes until `stop`.
pub async fn run(store: Store, objects: Objects, stop: CancellationToken) {
    let mut work = store.work();
    let mut after = None;
    loop {
        let again = async {
            let again = turn(&store, &objects, unix_ms(), &mut after).await?;
            Ok(if again { Duration::ZERO } else { rest(&store).await? })
        };
        let again = again.await.unwrap_or_else(|error: crate::store::Error| {
            warn!(%error, "deletions wait for the store");
            LOOK
        });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = work.changed(), if !again.is_zero() => if changed.is_err() { return },
            () = tokio::time::sleep(again) => {}
        }
    }
}

/// How long there is nothing to do, if nothing changes.
async fn rest(store: &Store) -> Result<Duration, crate::store::Error> {
    let next = store.read().await?.next_expiry().await?;
    Ok(next.map_or(LOOK, |at| Duration::from_millis(at.saturating_sub(unix_ms()).max(0) as u64).min(LOOK)))
}

/// Deletes a batch of those behind `after`, which moves on, so that what cannot be deleted holds up nothing else; says whether
/// there may be more that can be.
async fn turn(
    store: &Store,
    objects: &Objects,
    now_ms: i64,
    after: &mut Option<File>,
) -> Result<bool, crate::store::Error> {
    let told_ms = now_ms - TOLD_MS;
    // A look waits for nobody, and nearly always there is nothing to write.
    if store.read().await?.anything_over(now_ms, told_ms).await? {
        let mut tx = store.begin().await?;
        let expired = tx.files_expire(now_ms).await?;
        tx.records_forget(told_ms).await?;
        tx.jobs_forget(told_ms).await?;
        tx.commit().await?;
        if expired > 0 {
            info!(expired, "files whose time is over");
        }
    }
    let files = store.read().await?.files_deleting(after.as_ref(), BATCH).await?;
    *after = files.last().filter(|_| files.len() == BATCH as usize).cloned();
    let one = async |file: File| match delete(objects, &file).await {
        Ok(()) => Some(file.id),
        Err(error) => {
            warn!(file = file.path, "not deleted, will be tried again: {error:#}");
            None
        }
    };
    let found = files.len();
    let gone: Vec<_> = futures_util::stream::iter(files).map(one).buffer_unordered(AT_ONCE).collect().await;
    let gone: Vec<_> = gone.into_iter().flatten().collect();
    if !gone.is_empty() {
        let mut tx = store.begin().await?;
        for id in &gone {
            tx.file_drop(id).await?;
        }
        tx.commit().await?;
    }
    Ok(gone.len() == found && after.is_some())
}

async fn delete(objects: &Objects, file: &File) -> anyhow::Result<()> {
    objects.remove_local(&file.path).await?;
    let Some(bucket) = objects.bucket() else { return Ok(()) };
    let mut deleted = bucket.store.delete_stream(bucket.objects(&file.path));
    while let Some(one) = deleted.next().await {
        match one {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Format, Vendor};
    use crate::store::FileState;
    use crate::store::tests::{Dir, file, key};

    fn ready(id: &str) -> File {
        File { state: FileState::Ready, size: 5, ..file("show", id) }
    }

    /// Keeps files with an id, a format and when they expire; what is left of them at `now_ms` on the disk and as rows, after
    /// those of `deleted` were deleted by a call.
    async fn check(files: &[(&str, Format, i64)], deleted: &[&str], now_ms: i64, want: &[&str]) {
        let (rows, data) = (Dir::new(), Dir::new());
        let store = rows.open().await;
        let objects = Objects::new(&config::Media::default(), data.path()).unwrap();
        for &(id, format, expire_ms) in files {
            let path = crate::object::key(&key("show"), 0, id, 1, format);
            let at = objects.local(&path);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::fs::write(&at, "media").unwrap();
            if format == Format::M3u8 {
                std::fs::write(at.with_file_name("0.ts"), "media").unwrap();
            }
            let mut tx = store.begin().await.unwrap();
            tx.file_open(&File { path, format, expire_ms, ..ready(id) }).await.unwrap();
            tx.commit().await.unwrap();
        }
        let environment = bywash_media::Environment::Production;
        let mut tx = store.begin().await.unwrap();
        for id in deleted {
            assert!(tx.file_delete(7, environment, Vendor::Tencent, id, 0).await.unwrap());
        }
        tx.commit().await.unwrap();
        assert!(!turn(&store, &objects, now_ms, &mut None).await.unwrap());

        let mut left = Vec::new();
        for &(id, format, _) in files {
            let row = store.read().await.unwrap().file(7, environment, id).await.unwrap();
            let there = objects.local(&crate::object::key(&key("show"), 0, id, 1, format)).exists();
            assert_eq!(row.is_some(), there, "{id}");
            left.extend(there.then_some(id));
        }
        assert_eq!(left, want);
        assert_eq!(objects.folder().join("7").exists(), !want.is_empty());
    }

    #[tokio::test]
    async fn who_has_nothing_to_delete_does_not_wait_for_who_writes() {
        let dir = Dir::new();
        let store = dir.open().await;
        let media = config::Media::default();
        let objects = Objects::new(&media, dir.path()).unwrap();
        let _writer = store.begin().await.unwrap();
        assert!(!turn(&store, &objects, 1, &mut None).await.unwrap());
    }

    #[tokio::test]
    async fn what_can_be_deleted_does_not_wait_for_what_cannot() {
        let (rows, data) = (Dir::new(), Dir::new());
        let store = rows.open().await;
        let objects = Objects::new(&config::Media::default(), data.path()).unwrap();
        let mut tx = store.begin().await.unwrap();
        for n in 0..=BATCH {
            let file = File { state: FileState::Deleting, ..ready(&format!("{n:03}")) };
            if n < BATCH {
                // A folder that is in use where the file should be.
                std::fs::create_dir_all(objects.local(&file.path).join("in use")).unwrap();
            }
            tx.file_open(&file).await.unwrap();
        }
        tx.commit().await.unwrap();
        let mut after = None;
        for left in [BATCH + 1, BATCH, BATCH] {
            assert!(!turn(&store, &objects, 1, &mut after).await.unwrap());
            assert_eq!(store.read().await.unwrap().files_deleting(None, 1000).await.unwrap().len() as i64, left);
        }
        // Those again, once they can be.
        std::fs::remove_dir_all(objects.local("7")).unwrap();
        after = None;
        assert!(turn(&store, &objects, 1, &mut after).await.unwrap());
        assert!(!turn(&store, &objects, 1, &mut after).await.unwrap());
        assert!(store.read().await.unwrap().files_deleting(None, 1000).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_file_goes_at_the_moment_that_its_time_is_over() {
        let (rows, data) = (Dir::new(), Dir::new());
        let store = rows.open().await;
        let objects = Objects::new(&config::Media::default(), data.path()).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(store.clone(), objects, stop.clone()));
        let over_ms = unix_ms() + 1000;
        let mut tx = store.begin().await.unwrap();
        for (id, expire_ms) in [("0", over_ms), ("1", over_ms + 3_600_000), ("2", 0)] {
            tx.file_open(&File { expire_ms, ..ready(id) }).await.unwrap();
        }
        tx.commit().await.unwrap();
        let environment = bywash_media::Environment::Production;
        let is_there = async |id: &str| store.read().await.unwrap().file(7, environment, id).await.unwrap().is_some();
        while is_there("0").await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Long before it would have looked.
        let late = unix_ms() - over_ms;
        assert!((0..LOOK.as_millis() as i64 / 2).contains(&late), "{late}");
        assert!(is_there("1").await && is_there("2").await);
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_expired_or_deleted_goes_with_its_bytes_and_nothing_else_does() {
        use Format::{Flv, M3u8, Mp4};
        let files = [("a", Mp4, 0), ("b", M3u8, 1000), ("c", Flv, 2000)];
        check(&files, &[], 999, &["a", "b", "c"]).await;
        check(&files, &[], 1000, &["a", "c"]).await;
        check(&files, &["a"], 0, &["b", "c"]).await;
        check(&files, &["a"], 5000, &[]).await;
    }
}
