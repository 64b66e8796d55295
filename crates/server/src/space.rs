//! How much room is left for recordings.
//!
//! Invariant: between "too little" and "enough again" lies a quarter of the mark, so that nothing begins and ends all the time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::sys;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

/// Of a small disk this share of its size, as a divisor, is enough to be left.
const SHARE: u64 = 20;

/// Looks after the file system of `folder` for as long as somebody wants to know; says why nothing may be recorded, if so: when less than
/// `low_water` bytes are free, or a twentieth of the disk if that is less.
pub fn watch(folder: PathBuf, low_water: u64) -> watch::Receiver<Option<Arc<str>>> {
    let (tell, told) = watch::channel(None);
    tokio::spawn(async move {
        while !tell.is_closed() {
            let folder = folder.clone();
            let space = tokio::task::spawn_blocking(move || sys::disk_space(&folder)).await;
            if let Ok(Ok((free, size))) = space {
                tell.send_if_modified(|full| judge(full, free, low_water.min(size / SHARE)));
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    told
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
    use super::*;

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
