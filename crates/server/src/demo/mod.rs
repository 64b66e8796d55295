//! The demonstration. A placeholder that the merge replaces.

use std::time::Duration;

use crate::config::Config;

/// Runs the demonstration.
pub async fn run(_config: Config, _duration: Option<Duration>) -> anyhow::Result<()> {
    anyhow::bail!("the demonstration is not built in yet")
}
