//! What goes on beside the streams: one module a job.

use std::time::SystemTime;

pub mod callback;
pub mod merge;
pub mod retention;
pub mod upload;

/// The wall clock, in Unix milliseconds.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}
