//! The command line: one file for each command, or pair of commands that share their work.
//!
//! Invariant: what a command was asked for goes to standard output, all else to standard error; an error says what to do
//! next and the exit code is not 0.

mod call;
mod check;
mod serve;
mod token;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};

use anyhow::{Context, bail};
use bywash_media::transcode;
use clap::{Args, Parser, Subcommand};

use crate::config::{self, App, Config, Problems};
use crate::sys;

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Serve(_) | Command::Demo(_)) {
        sys::end_on_broken_pipe();
    }
    let result = match command {
        Command::Serve(it) => serve::serve(it),
        Command::Demo(it) => serve::demo(it),
        Command::Call(it) => call::call(it),
        Command::Sign(it) => call::sign(it),
        Command::Token(it) => token::token(it),
        Command::Check(it) => check::check(it),
    };
    match result {
        Ok(code) => code,
        Err(why) => {
            // Who started it may be gone.
            let _ = writeln!(std::io::stderr(), "error: {why:#}");
            ExitCode::FAILURE
        }
    }
}

/// The version, and what the codecs that are built in say of the binary's licence.
fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let encoders: Vec<_> = transcode::encoders().iter().map(|it| it.name()).collect();
        format!("{}\nencodes {}; their licences are in NOTICE", env!("CARGO_PKG_VERSION"), encoders.join(", "))
    });
    &TEXT
}

/// Live streams in, CDNs and recordings out, on an API call.
#[derive(Parser)]
#[command(name = "bywash", version, long_version = version(), after_help = "Example: bywash demo --for 20s")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Serve),
    Demo(serve::Demo),
    Call(call::Call),
    Sign(call::Sign),
    Token(token::Token),
    Check(check::Check),
}

/// Where a command's configuration comes from.
#[derive(Args)]
struct Source {
    /// The TOML file; without it bywash.toml in the working directory, if it is there
    #[arg(long, value_name = "FILE", env = "BYWASH_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// Keys that are set on the command line.
#[derive(Args)]
struct Flags {
    /// Folder of database, recordings and dev-app.toml
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Sets a key of the configuration, such as relay.retry.first=2s; may be repeated. Those of push entries and recordings
    /// are set in the file only
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
}

impl Source {
    /// Reads it, with variables and flags on top.
    fn load(&self) -> Result<Config, Problems> {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Config::load(self.config.as_deref(), std::env::vars_os().filter_map(text), &self.flags.pairs())
    }
}

impl Flags {
    fn pairs(&self) -> Vec<(String, String)> {
        let data_dir = self.data_dir.iter().map(|it| ("data_dir".into(), it.clone()));
        self.set.iter().cloned().chain(data_dir).collect()
    }
}

/// The app `id` of `config`, or its only one, or else the app of a server that has none configured.
fn app(config: &Config, id: Option<u32>) -> anyhow::Result<Arc<App>> {
    let mut apps = config.apps.clone();
    if apps.is_empty() {
        apps.extend(config::load_dev_app(&config.data_dir)?);
    }
    let ids = apps.iter().map(|it| it.id.to_string()).collect::<Vec<_>>().join(", ");
    let found = match (id, apps.as_slice()) {
        (_, []) => bail!(
            "no app is configured, and {} holds none: name the configuration with --config, or start `bywash serve` once",
            config.data_dir.display()
        ),
        (Some(id), all) => {
            all.iter().find(|it| it.id == id).with_context(|| format!("no app {id}: use --app with one of {ids}"))?
        }
        (None, [only]) => only,
        (None, _) => bail!("there are several apps: choose one with --app, of {ids}"),
    };
    Ok(Arc::new(found.clone()))
}

/// Splits `key=value`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE".into()),
    }
}

/// Unix time.
fn now() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_is_well_formed_and_its_help_has_an_example() {
        let mut cli = Cli::command();
        cli.clone().debug_assert();
        for command in cli.get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example: bywash "), "{help}");
        }
    }
}
