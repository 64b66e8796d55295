//! The wall clock as rows, tokens and callbacks have it, and waiting for a moment that may be none.

use std::future::pending;
use std::time::{Instant, SystemTime};

/// The wall clock, Unix milliseconds; 0 before 1970.
pub fn unix_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// The wall clock, Unix seconds; 0 before 1970.
pub fn unix_s() -> i64 {
    unix_ms() / 1000
}

/// Waits until then; for ever where there is no such moment.
pub async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}
