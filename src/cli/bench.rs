//! `ptune bench`: measurements.

use super::{print, set_threads};
use crate::checkpoint::write_atomically;
use crate::run::bench::{self, KernelOptions, MemoryOptions, Report, StepOptions};
use crate::run::terminal::Terminal;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Time training steps of a model: speed, memory, and every operation beside the least time it could take
    Step {
        #[command(flatten)]
        options: Box<StepOptions>,
        #[command(flatten)]
        output: Output,
    },
    /// Memory and speed of steps, mode by mode: planned, measured where there is a GPU, beside other ways of tuning
    Memory {
        #[command(flatten)]
        options: Box<MemoryOptions>,
        #[command(flatten)]
        output: Output,
    },
    /// Time single operations at given shapes: norms, activations, products, attention with and without dropout and prefix
    Kernels {
        #[command(flatten)]
        options: KernelOptions,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(clap::Args)]
struct Output {
    /// Write all figures to a file, as one JSON object
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    json: Option<PathBuf>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    threads: Option<usize>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let (What::Step { output, .. } | What::Memory { output, .. } | What::Kernels { output, .. }) = &arguments.what;
    set_threads(output.threads)?;
    if let Some(path) = &output.json {
        check_folder(path)?;
    }
    let terminal = Terminal::new(false);
    let Report { text, json } = match &arguments.what {
        What::Step { options, .. } => bench::step(options, &terminal)?,
        What::Memory { options, .. } => bench::memory(options, &terminal)?,
        What::Kernels { options, .. } => bench::kernels(options, &terminal)?,
    };
    print(&text)?;
    if let Some(path) = &output.json {
        let text = serde_json::to_string_pretty(&json)? + "\n";
        write_atomically(path, |writer| Ok(writer.write_all(text.as_bytes())?))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What would only fail after all the work.
fn check_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("{}: there is no such folder for --json", folder.display());
    }
    Ok(())
}
