//! Logs: for a reader on a terminal, JSON lines elsewhere; on standard error.
//!
//! Invariant: nothing here or elsewhere logs a whole address, since its query may hold a secret.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// Starts logging. What is logged is in `BYWASH_LOG`, or else `RUST_LOG`; `info` without them.
pub fn init() {
    let wanted =
        ["BYWASH_LOG", "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok().filter(|it| !it.is_empty()));
    let filter = EnvFilter::builder().parse_lossy(wanted.as_deref().unwrap_or("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // Another subscriber is there only in tests, and theirs is as good.
    let _ = match stderr().is_terminal() {
        true => builder.with_target(false).try_init(),
        false => builder.json().flatten_event(true).try_init(),
    };
}
