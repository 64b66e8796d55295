//! Logs: for a reader on a terminal, JSON lines elsewhere; on standard error.
//!
//! Invariant: nothing here or elsewhere logs a whole address, since its query may hold a secret. A log that cannot be written costs its
//! lines and nothing else: no task ends for it, and none waits long.

use std::io::{self, IsTerminal, Write, stderr};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::sys;

/// Starts logging. What is logged is in `BYWASH_LOG`, or else `RUST_LOG`; `level` without them.
pub fn init(level: &str) {
    let wanted =
        ["BYWASH_LOG", "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok().filter(|it| !it.is_empty()));
    let filter = EnvFilter::builder().parse_lossy(format!("{OTHERS},{}", wanted.as_deref().unwrap_or(level)));
    let json = !stderr().is_terminal();
    // `target` is where a relay pushes to, not the module that logs.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Mutex::new(Lines { json, lost: 0 }))
        // They would go to standard error by a macro that panics where it cannot write.
        .log_internal_errors(false)
        .with_target(false);
    // Another subscriber is there only in tests, and theirs is as good.
    let _ = match json {
        false => builder.try_init(),
        true => builder.json().flatten_event(true).with_span_list(false).try_init(),
    };
}

/// Libraries that log addresses, statements or each packet of a stream at low levels stay quiet unless they are named.
const OTHERS: &str = "hyper=info,hyper_util=info,reqwest=info,sqlx=warn,str0m=info";

/// How long a reader that is behind may keep one who logs waiting. After a lost line nobody waits until there is room again.
const PATIENCE: Duration = Duration::from_millis(100);

/// A pipe that can be written takes so much without waiting (PIPE_BUF, pipe(7)).
const PIECE: usize = 4096;

/// Standard error, a line at a time: the disk may be full, and the reader dead or stopped.
struct Lines {
    json: bool,
    /// Since the last one that was written.
    lost: u64,
}

impl Lines {
    fn put(&self, line: &[u8]) -> bool {
        let patience = if self.lost == 0 { PATIENCE } else { Duration::ZERO };
        let mut output = stderr();
        line.chunks(PIECE).all(|piece| sys::writable(output.as_fd(), patience) && output.write_all(piece).is_ok())
    }
}

impl Write for Lines {
    /// Takes the whole line, whatever becomes of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lost > 0 {
            let lost = self.lost;
            let said = match self.json {
                true => format!("{{\"level\":\"WARN\",\"message\":\"log lines were lost\",\"lines\":{lost}}}\n"),
                false => format!("WARN {lost} log lines were lost\n"),
            };
            if self.put(said.as_bytes()) {
                self.lost = 0;
            }
        }
        if self.lost > 0 || !self.put(line) {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
