//! `bywash serve` and `bywash demo`: the server, in earnest and to look at.

use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use tracing::warn;

use super::{Flags, Source};
use crate::config::{self, Config, Place, Problem, Problems};
use crate::{app, demo, log, sys};

/// How long freed memory is kept: longer than the time between two keyframes.
const KEEP: Duration = Duration::from_secs(10);

/// What a demonstration beside a configured server is told by variables: not its apps, nor where their streams go.
const PLACES: [&str; 4] = ["data_dir", "http.listen", "rtmp.listen", "webrtc.listen"];

/// Runs the server
///
/// Prints a line for each listener and one when it is ready. SIGTERM or SIGINT stops it in order, a second one at once; SIGHUP
/// reloads the configuration.
#[derive(Args)]
#[command(after_help = "Example: bywash serve --config bywash.toml --http-listen 0.0.0.0:8080")]
pub struct Serve {
    #[command(flatten)]
    source: Source,
    /// Where the API and all other HTTP listens
    #[arg(long, value_name = "IP:PORT")]
    http_listen: Option<String>,
    /// Where RTMP listens
    #[arg(long, value_name = "IP:PORT")]
    rtmp_listen: Option<String>,
    /// Where WebRTC listens, UDP and TCP
    #[arg(long, value_name = "IP:PORT")]
    webrtc_listen: Option<String>,
}

/// Shows a stream relayed and recorded, on nothing but this program
///
/// It is all on loopback and, but for the recorded file, gone afterwards: no configuration is read but the flags, and the variables
/// that say on which ports it listens and where it keeps its data. Exits 0 only if what arrived at the target and on disk is whole; with --whip, if
/// pictures and sound arrived.
#[derive(Args)]
#[command(after_help = "Example: bywash demo --for 20s")]
pub struct Demo {
    #[command(flatten)]
    flags: Flags,
    /// Ends after this time; without it Ctrl-C does
    #[arg(long = "for", value_name = "TIME", value_parser = config::duration)]
    duration: Option<Duration>,
    /// Prints the address of a page that publishes a browser's camera, instead of publishing a built-in clip
    #[arg(long)]
    whip: bool,
}

/// Runs the server until it is told to stop.
pub fn serve(mut it: Serve) -> anyhow::Result<ExitCode> {
    let flags = [("http.listen", it.http_listen), ("rtmp.listen", it.rtmp_listen), ("webrtc.listen", it.webrtc_listen)];
    it.source.flags.set.extend(flags.into_iter().filter_map(|(key, value)| Some((key.into(), value?))));
    let (config, mut own_app) = begin(it.source.load(), "info")?;
    runtime()?.block_on(app::run(config, || reread(&it.source, &mut own_app)))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the demonstration.
pub fn demo(it: Demo) -> anyhow::Result<ExitCode> {
    let scratch = demo::Scratch::new()?;
    let folder = scratch.path().to_str().context("the temporary folder's name is not UTF-8")?;
    let variable = |key: &&str| {
        let value = std::env::var(config::variable_name(key)).ok()?;
        // Of an address the port: it is all on loopback.
        let port = value.rsplit_once(':').filter(|_| key.ends_with("listen"));
        Some((key.to_string(), port.map_or(value.clone(), |(_, port)| format!("127.0.0.1:{port}"))))
    };
    let places = PLACES.iter().filter_map(variable).collect();
    let flags = [vec![("data_dir".into(), folder.into())], places, it.flags.pairs()].concat();
    let (config, _) = begin(Config::of(&flags), "warn")?;
    runtime()?.block_on(demo::run(config, it.duration, it.whip))?;
    Ok(ExitCode::SUCCESS)
}

/// The configuration, and whether its app is one of our own as none is configured.
fn begin(config: Result<Config, Problems>, level: &str) -> anyhow::Result<(Config, bool)> {
    let mut config = config.map_err(|problems| anyhow!("the configuration has problems:\n{problems}"))?;
    log::init(level);
    config.warnings().iter().for_each(|it| warn!("{it}"));
    let dev = config.dev_app()?;
    if let Some(dev) = &dev {
        let made = if dev.created { "made" } else { "kept" };
        let file = dev.file.display();
        let _ = writeln!(stdout(), "no app is configured: app {} {made}, its secrets are in {file}", dev.id);
    }
    Ok((config, dev.is_some()))
}

/// The configuration as it is written now. A server that made its own app keeps it until one is configured; one whose apps are gone
/// from the file is none to be thrown open, since the file may just be written.
fn reread(source: &Source, own_app: &mut bool) -> Result<Config, Problems> {
    let mut config = source.load()?;
    let problem = |place, text: String| Problems(vec![Problem { place: Place::Whole(place), text }]);
    if config.apps.is_empty() {
        if !*own_app {
            let file = source.config.clone().unwrap_or_else(|| "bywash.toml".into());
            return Err(problem(file, "no app is configured any more: the apps stay as they are".into()));
        }
        let folder = config.data_dir.clone();
        config.dev_app().map_err(|why| problem(folder, format!("{why:#}")))?;
    } else {
        *own_app = false;
    }
    Ok(config)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    if let Err(error) = sys::raise_file_limit() {
        warn!(%error, "cannot ask for more files and sockets than there are by default");
    }
    sys::keep_freed_memory(KEEP);
    sys::use_small_pages();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}
