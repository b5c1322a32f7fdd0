//! `ptune completions`: what a shell needs to complete commands and options.

use super::print;
use anyhow::{Context, Result};
use clap_complete::Shell;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub fn run(arguments: Arguments, command: clap::Command) -> Result<ExitCode> {
    print(&script(&arguments, command)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The script for the shell.
pub fn script(arguments: &Arguments, mut command: clap::Command) -> Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "ptune", &mut script);
    String::from_utf8(script).context("the script is not text")
}
