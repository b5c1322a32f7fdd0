//! A sweep: runs over a grid of options, one after the other in one process. Frozen weights that stay on the device are
//! loaded once, and data is read and encoded once, for all runs that have them in common (`shared.rs`); each run lays out its
//! own memory behind the weights. A run is an ordinary one in a folder of its own, so a sweep is gone on with by going on
//! with its runs.

mod grid;
mod outcome;

pub use grid::Sweep;

use super::folder::RESULTS;
use super::interrupt::Interrupt;
use super::shared::Shared;
use super::terminal::{Terminal, clock};
use super::train::{Outcome, train_with};
use super::trainer::write_text;
use crate::usage;
use anyhow::{Context, Result, bail};
use outcome::{Finished, Report};
use serde_json::Value;
use std::path::Path;
use std::time::Instant;

/// The sweep itself: base and grid, to be gone on with.
const SWEEP: &str = "sweep.toml";
const TABLE_JSON: &str = "sweep_results.json";
const TABLE_CSV: &str = "sweep_results.csv";
const PLOT: &str = "sweep.svg";

impl Sweep {
    /// The sweep of an output folder, if there is one.
    pub fn saved(output: &Path) -> Result<Option<Sweep>> {
        let path = output.join(SWEEP);
        if path.exists() { Sweep::read(&path).map(Some) } else { Ok(None) }
    }

    /// Runs every cell that is not finished. A run that fails is told, and the others go on.
    pub fn run(&self, output: &Path, resume: bool, interrupt: &Interrupt) -> Result<Outcome> {
        let cells = self.cells(output)?;
        match Sweep::saved(output)? {
            Some(_) if !resume => usage!("{}: holds a sweep; give --resume to go on with it, or another --output", output.display()),
            Some(before) if before.base != self.base => {
                usage!("{}: the sweep there has other options beneath its grid; give another --output", output.display())
            }
            None if output.exists() && output.read_dir()?.next().is_some() => {
                bail!("{}: is already used, and not by a sweep; choose another --output", output.display())
            }
            _ => {}
        }
        let terminal = Terminal::new(self.base.quiet == Some(true));
        std::fs::create_dir_all(output).with_context(|| format!("cannot make the folder {}", output.display()))?;
        write_text(&output.join(SWEEP), &self.to_toml()?)?;
        terminal.line(format!("sweep: {} runs over {}", cells.len(), self.axes().collect::<Vec<_>>().join(", ")));
        let mut shared = Shared::default();
        let mut finished = Vec::new();
        for (index, cell) in cells.iter().enumerate() {
            let started = Instant::now();
            let unfinished = cells[index + 1..].iter().filter(|cell| !cell.folder().join(RESULTS).exists());
            shared.expect(unfinished.map(|cell| cell.options.clone()).collect());
            let outcome = match interrupt.pending() {
                Some(signal) => Ok(Outcome::Interrupted(signal)),
                None => train_with(cell.options.clone(), interrupt, &mut shared),
            };
            let result = match outcome {
                Ok(Outcome::Interrupted(signal)) => {
                    Report::new(self, &finished).write(output)?;
                    terminal.line(format!(
                        "stopped in run {} of {}; go on with: ptune sweep --output {} --resume",
                        index + 1,
                        cells.len(),
                        output.display()
                    ));
                    return Ok(Outcome::Interrupted(signal));
                }
                Ok(Outcome::Finished | Outcome::WasFinished) => read_results(cell.folder()),
                Err(error) => Err(error),
            };
            let done = Finished::new(cell, result);
            terminal.line(format!("run {}/{} {}: {} ({})", index + 1, cells.len(), cell.name, done.line(), clock(started.elapsed())));
            finished.push(done);
        }
        let report = Report::new(self, &finished);
        report.write(output)?;
        terminal.line(report.text());
        terminal.line(format!("results: {TABLE_JSON}, {TABLE_CSV} and {PLOT} in {}", output.display()));
        if finished.iter().all(|done| done.score.is_none()) {
            bail!("no run of the sweep came to its end; the first: {}", finished.first().map_or(String::new(), Finished::line));
        }
        Ok(Outcome::Finished)
    }
}

fn read_results(folder: &Path) -> Result<Value> {
    let path = folder.join(RESULTS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}
