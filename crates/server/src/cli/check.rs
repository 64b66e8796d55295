//! `bywash check`: every problem of a configuration, with its line.

use std::process::ExitCode;

use clap::Args;

use super::Source;

/// Checks a configuration
///
/// Prints every problem with its line; exits 0 if there is none, else 1. What is allowed but hardly meant is a warning.
#[derive(Args)]
#[command(after_help = "Example: bywash check --config bywash.toml")]
pub struct Check {
    #[command(flatten)]
    source: Source,
}

/// Prints the problems, or that there are none.
pub fn check(it: Check) -> anyhow::Result<ExitCode> {
    match it.source.load() {
        Ok(config) => {
            for warning in config.warnings() {
                println!("warning: {warning}");
            }
            let apps = match config.apps.len() {
                0 => "no app: the first start makes one".into(),
                1 => "1 app".into(),
                n => format!("{n} apps"),
            };
            println!("the configuration is good; {apps}");
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            println!("{problems}");
            Ok(ExitCode::FAILURE)
        }
    }
}
