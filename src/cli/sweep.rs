//! `ptune sweep`.

use super::set_threads;
use crate::run::interrupt::Interrupt;
use crate::run::sweep::Sweep;
use crate::run::{Outcome, TrainOptions};
use crate::usage;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    options: TrainOptions,
    /// The sweep: output, [base] with options of train, [grid] with lists of values; flags win
    #[arg(long, value_name = "FILE.toml", help_heading = "Sweep")]
    config: Option<PathBuf>,
    /// An axis of the grid, for example learning-rate=5e-3,1e-2; may be given several times
    #[arg(long, value_name = "NAME=V,V", help_heading = "Sweep")]
    grid: Vec<String>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut options = arguments.options;
    let resume = options.resume.take() == Some(true);
    let output = options.output.take();
    let mut sweep = match (&arguments.config, &output) {
        (Some(path), _) => Sweep::read(path)?,
        (None, Some(output)) if resume => Sweep::saved(output)?.unwrap_or_default(),
        (None, _) => Sweep::default(),
    };
    let Some(output) = output.or(sweep.output.take()).or(sweep.base.output.take()) else {
        usage!("--output is missing: the folder of the sweep")
    };
    sweep.base = options.over(&sweep.base)?;
    for axis in &arguments.grid {
        sweep.add_flag(axis)?;
    }
    set_threads(sweep.base.threads)?;
    Ok(match sweep.run(&output, resume, &Interrupt::install()?)? {
        Outcome::Finished | Outcome::WasFinished => ExitCode::SUCCESS,
        Outcome::Interrupted(signal) => ExitCode::from(128 + signal as u8),
    })
}
