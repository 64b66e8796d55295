//! Logs: for a reader on a terminal, JSON lines elsewhere; on standard error.
//!
//! Invariant: nothing here or elsewhere logs a whole address, since its query may hold a secret.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// Starts logging. What is logged is in `BYWASH_LOG`, or else `RUST_LOG`; `level` without them.
pub fn init(level: &str) {
    let wanted =
        ["BYWASH_LOG", "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok().filter(|it| !it.is_empty()));
    let filter = EnvFilter::builder().parse_lossy(format!("{OTHERS},{}", wanted.as_deref().unwrap_or(level)));
    // `target` is where a relay pushes to, not the module that logs.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    // Another subscriber is there only in tests, and theirs is as good.
    let _ = match stderr().is_terminal() {
        true => builder.try_init(),
        false => builder.json().flatten_event(true).with_span_list(false).try_init(),
    };
}

/// Libraries that log addresses or statements at low levels stay quiet unless they are named.
const OTHERS: &str = "hyper=info,hyper_util=info,reqwest=info,sqlx=warn";
