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

use super::now_ms;
use crate::config::Format;
use crate::object::{Objects, PLAYLIST};
use crate::store::{File, Store};

/// How often it is looked for files whose time is over.
const LOOK: Duration = Duration::from_secs(30);

/// Files whose rows go in one transaction, and deletions at once.
const BATCH: i64 = 200;
const AT_ONCE: usize = 8;

/// How long it may be told what came of a recording without files, or of a merge.
const TOLD_MS: i64 = 30 * 86_400_000;

/// Deletes until `stop`.
pub async fn run(store: Store, objects: Objects, stop: CancellationToken) {
    let mut work = store.work();
    loop {
        let again = match turn(&store, &objects, now_ms()).await {
            Ok(again) => again,
            Err(error) => {
                warn!(%error, "deletions wait for the store");
                false
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = work.changed(), if !again => if changed.is_err() { return },
            () = tokio::time::sleep(if again { Duration::ZERO } else { LOOK }) => {}
        }
    }
}

/// Deletes a batch; says whether there may be more that can be.
async fn turn(store: &Store, objects: &Objects, now_ms: i64) -> Result<bool, crate::store::Error> {
    let mut tx = store.begin().await?;
    let expired = tx.files_expire(now_ms).await?;
    tx.records_forget(now_ms - TOLD_MS).await?;
    tx.jobs_forget(now_ms - TOLD_MS).await?;
    let files = tx.files_deleting(BATCH).await?;
    tx.commit().await?;
    if expired > 0 {
        info!(expired, "files whose time is over");
    }
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
    Ok(gone.len() == found && found == BATCH as usize)
}

async fn delete(objects: &Objects, file: &File) -> anyhow::Result<()> {
    objects.remove_local(&file.path).await?;
    let Some(bucket) = objects.bucket() else { return Ok(()) };
    let paths = match file.format {
        Format::M3u8 => {
            let found = bucket.store.list(Some(&bucket.path(file.path.trim_end_matches(PLAYLIST))));
            found.map(|it| it.map(|it| it.location)).boxed()
        }
        _ => futures_util::stream::iter([Ok(bucket.path(&file.path))]).boxed(),
    };
    let mut deleted = bucket.store.delete_stream(paths);
    while let Some(one) = deleted.next().await {
        match one {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
