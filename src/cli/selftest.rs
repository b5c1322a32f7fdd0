//! `ptune selftest`: whether a device computes the right thing.

use super::{print, set_threads};
use crate::backend::cuda::Probe;
use crate::checkpoint::write_atomically;
use crate::run::terminal::Terminal;
use crate::run::{Device, bench, device};
use crate::selftest::{self, Judge, Opener, Recording, Row};
use crate::usage;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Arguments {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,
    /// A third of the shapes
    #[arg(long)]
    quick: bool,
    /// Only checks whose names contain this (several times: any of them)
    #[arg(long, value_name = "NAME", conflicts_with = "record")]
    only: Vec<String>,
    /// Instead, write what each instruction makes of random bits to a file (for tests/golden/probes)
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Every check is made at least twice, for the same bits.
const REPETITIONS: u32 = 2;

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    set_threads(arguments.threads)?;
    let chosen = device::resolve(arguments.device, &Terminal::new(false))?;
    if let Some(path) = &arguments.record {
        return record(chosen, path);
    }
    let started = Instant::now();
    let open: Opener = Box::new(move |dtype, repetition| device::open_as(chosen, dtype, repetition));
    let mut judge = Judge::new(open, REPETITIONS, arguments.quick)?;
    print(&format!("ptune {}\n{}\n", super::VERSION.as_str(), judge.describe()?))?;
    print(&format!("{:<34} {:>6} {:>13} {:>8}", "", "cases", "worst/allowed", "seconds"))?;
    let mut failures = Vec::new();
    let mut rows = 0;
    let mut report = |row: &Row| -> Result<()> {
        rows += 1;
        failures.extend(row.failures.iter().cloned());
        print(&line(row))
    };
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|part| name.contains(part.as_str()));
    if wanted("instructions")
        && let Some(mut prober) = device::prober(chosen)?
    {
        for row in selftest::instructions(&mut |probe: Probe, input: &[u32]| prober.run(probe, input)) {
            report(&row)?;
        }
    }
    for (name, cases) in selftest::operations().filter(|(name, _)| wanted(name)) {
        report(judge.operation(name, cases))?;
    }
    for row in judge.steps(wanted) {
        report(&row)?;
    }
    if rows == 0 {
        usage!("--only {}: no check has such a name; without --only all are listed", arguments.only.join(" "));
    }
    if !failures.is_empty() {
        let shown: Vec<&str> = failures.iter().take(20).map(String::as_str).collect();
        let more = failures.len() - shown.len();
        print(&format!("\n{}{}", shown.join("\n"), if more > 0 { format!("\n... and {more} more") } else { String::new() }))?;
        bail!("the device does not compute the right thing: {} checks failed", failures.len());
    }
    print(&format!("\nall checks passed in {:.0} s", started.elapsed().as_secs_f64()))?;
    Ok(ExitCode::SUCCESS)
}

fn line(row: &Row) -> String {
    let worst = if row.worst == 0.0 { "exact".into() } else { format!("{:.2}", row.worst) };
    let verdict = if row.failures.is_empty() { "" } else { "  FAILED" };
    let note = if row.note.is_empty() { String::new() } else { format!("  {}", row.note) };
    format!("{:<34} {:>6} {worst:>13} {:>8.1}{verdict}{note}", row.operation, row.cases, row.time.as_secs_f64())
}

fn record(chosen: Device, path: &Path) -> Result<ExitCode> {
    let Some(mut prober) = device::prober(chosen)? else {
        usage!("--record {}: instructions are recorded on a GPU; give --device cuda", path.display());
    };
    let machine = prober.machine();
    let recording = Recording::make(&mut |probe: Probe, input: &[u32]| prober.run(probe, input), &machine, bench::now())?;
    let text = recording.to_json()?;
    write_atomically(path, |file| Ok(file.write_all(text.as_bytes())?))?;
    print(&format!("{} probes of {} written to {}", recording.probes.len(), recording.gpu, path.display()))?;
    Ok(ExitCode::SUCCESS)
}
