//! How much room is left for recordings.
//!
//! Invariant: between "too little" and "enough again" lies a quarter of the mark, so that nothing begins and ends all the time.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::sys;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

/// Of a small disk this share of its size, as a divisor, is enough to be left.
const SHARE: u64 = 20;

/// What is known of the room on a disk. It is looked after while somebody holds a [`Space::watch`], and while it is full: who
/// begins to write is not told of a disk that was full an hour ago.
pub struct Space {
    told: watch::Receiver<Option<Arc<str>>>,
    wanted: Arc<Notify>,
}

impl Space {
    /// Looks after the file system of `folder`: it is full when less than `low_water` bytes are free, or a twentieth of the disk if
    /// that is less.
    pub fn new(folder: PathBuf, low_water: u64) -> Space {
        Space::by(move || sys::disk_space(&folder), low_water, LOOK)
    }

    /// `probe` says how many bytes are free, and how many there are. It may block.
    fn by(
        probe: impl Fn() -> io::Result<(u64, u64)> + Send + Sync + 'static,
        low_water: u64,
        every: Duration,
    ) -> Space {
        let (tell, told) = watch::channel(None);
        let wanted = Arc::new(Notify::new());
        tokio::spawn(look_after(Arc::new(probe), low_water, every, tell, wanted.clone()));
        Space { told, wanted }
    }

    /// Says why nothing may be written, if so, from now on.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<str>>> {
        let told = self.told.clone();
        self.wanted.notify_one();
        told
    }
}

/// What nobody may write into but those who record and the database: room is left for them by whoever writes at once as much as
/// it likes. `clone` copies two words.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    low_water: u64,
    probe: fn(&Path) -> io::Result<(u64, u64)>,
}

impl Room {
    /// Leaves `low_water` bytes free, or a twentieth of the disk if that is less.
    pub fn new(low_water: u64) -> Room {
        Room::by(sys::disk_space, low_water)
    }

    /// `probe` says how many bytes are free where a folder is, and how many there are.
    pub fn by(probe: fn(&Path) -> io::Result<(u64, u64)>, low_water: u64) -> Room {
        Room { low_water, probe }
    }

    /// An error if so many bytes more in `folder`, which exists, would leave too little. It may block.
    pub fn holds(&self, folder: &Path, bytes: u64) -> io::Result<()> {
        let (free, size) = (self.probe)(folder)?;
        let mark = mark(self.low_water, size);
        if free >= mark.saturating_add(bytes) {
            return Ok(());
        }
        let (free, mark, bytes) = (free >> 20, mark >> 20, bytes >> 20);
        let why = format!("disk full: {free} MiB free, {mark} MiB are kept free, {bytes} MiB are to be written");
        Err(io::Error::new(io::ErrorKind::StorageFull, why))
    }
}

async fn look_after(
    probe: Arc<impl Fn() -> io::Result<(u64, u64)> + Send + Sync + 'static>,
    low_water: u64,
    every: Duration,
    tell: watch::Sender<Option<Arc<str>>>,
    wanted: Arc<Notify>,
) {
    while !tell.is_closed() {
        let probe = probe.clone();
        let space = tokio::task::spawn_blocking(move || probe()).await;
        if let Ok(Ok((free, size))) = space {
            tell.send_if_modified(|full| judge(full, free, mark(low_water, size)));
        }
        // One is the Space itself.
        if tell.receiver_count() > 1 || tell.borrow().is_some() {
            tokio::time::sleep(every).await;
        } else {
            tokio::select! {
                () = wanted.notified() => {}
                () = tell.closed() => {}
            }
        }
    }
}

/// How much of a disk is kept free.
fn mark(low_water: u64, size: u64) -> u64 {
    low_water.min(size / SHARE)
}

/// Whether that changes anything.
fn judge(full: &mut Option<Arc<str>>, free: u64, mark: u64) -> bool {
    if full.is_none() && free < mark {
        let reason = format!("disk full: {} MiB free, {} MiB are kept free", free >> 20, mark >> 20);
        warn!(reason, "recordings pause");
        *full = Some(reason.into());
        return true;
    }
    if full.is_some() && free >= mark + mark / 4 {
        info!(free_mib = free >> 20, "there is room for recordings again");
        *full = None;
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test]
    async fn the_disk_is_looked_at_only_while_somebody_writes_or_it_is_full() {
        const EVERY: Duration = Duration::from_millis(5);
        let (looks, free) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(1000)));
        let probe = (looks.clone(), free.clone());
        let space = Space::by(
            move || {
                probe.0.fetch_add(1, Ordering::Relaxed);
                Ok((probe.1.load(Ordering::Relaxed), 1_000_000))
            },
            1000,
            EVERY,
        );
        let looks_again = async || {
            // The one that may be under way, and then as many as come.
            let before = looks.load(Ordering::Relaxed) + 1;
            tokio::time::sleep(EVERY * 20).await;
            looks.load(Ordering::Relaxed) > before
        };
        // A busy machine may be late with one: what is to come is waited for.
        let looks_on = async || {
            let enough = looks.load(Ordering::Relaxed) + 3;
            let come = async {
                while looks.load(Ordering::Relaxed) < enough {
                    tokio::time::sleep(EVERY).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), come).await.is_ok()
        };
        tokio::time::sleep(EVERY * 20).await;
        assert!(!looks_again().await, "nobody wants to know");

        free.store(10, Ordering::Relaxed);
        let mut told = space.watch();
        told.wait_for(Option::is_some).await.unwrap();
        drop(told);
        assert!(looks_on().await, "who comes next must not hear what was");

        free.store(2000, Ordering::Relaxed);
        let free_again = async {
            while space.told.borrow().is_some() {
                tokio::time::sleep(EVERY).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), free_again).await.expect("it is told of");
        assert!(!looks_again().await, "nobody wants to know any more");
    }

    #[test]
    fn what_is_full_is_so_until_there_is_clearly_more() {
        let mut full = None;
        let mut check = |free, changed, is_full| {
            assert_eq!((judge(&mut full, free, 1000), full.is_some()), (changed, is_full), "{free}");
        };
        check(1000, false, false);
        check(999, true, true);
        check(1249, false, true);
        check(1250, true, false);
        check(1001, false, false);
    }
}
