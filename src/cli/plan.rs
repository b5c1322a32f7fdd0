//! `ptune plan`: memory and time of a run, before anything is loaded.

use super::print;
use crate::checkpoint::write_atomically;
use crate::run::plan::{self, PlanOptions};
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    options: PlanOptions,
    /// Print one JSON object instead of the table; with a value, write it to that file besides the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, help_heading = "Output")]
    json: Option<Option<PathBuf>>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let report = plan::plan(&arguments.options)?;
    let json = || Ok::<_, anyhow::Error>(serde_json::to_string_pretty(&report.json)? + "\n");
    match &arguments.json {
        None => print(&report.text)?,
        Some(None) => print(&json()?)?,
        Some(Some(path)) => {
            let text = json()?;
            write_atomically(path, |writer| Ok(writer.write_all(text.as_bytes())?))?;
            print(&report.text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
