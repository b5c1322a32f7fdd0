//! `ptune train`.

use super::set_threads;
use crate::run::interrupt::Interrupt;
use crate::run::{self, Outcome, TrainOptions};
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    options: TrainOptions,
    /// TOML file with options under the names of the flags; flags win
    #[arg(long, value_name = "FILE.toml", help_heading = "Files")]
    config: Option<PathBuf>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let options = match &arguments.config {
        Some(path) => arguments.options.over(&TrainOptions::read(path)?)?,
        None => arguments.options,
    };
    set_threads(options.threads)?;
    Ok(match run::train(options, &Interrupt::install()?)? {
        Outcome::Finished | Outcome::WasFinished => ExitCode::SUCCESS,
        Outcome::Interrupted(signal) => ExitCode::from(128 + signal as u8),
    })
}
