//! Several adapters over one file, whose records choose theirs by a column. The model is loaded once: one arena has room for
//! each adapter's plan in turn, and the frozen weights in front stay.

use super::interrupt::Interrupt;
use super::read_by;
use super::scoring::{Job, Scoring, ScoringOptions};
use super::sets::split_name;
use super::terminal::Terminal;
use crate::checkpoint::Adapter;
use crate::data::{Choice, Columns};
use crate::engine::{EngineOptions, Residency};
use crate::task::TaskName;
use crate::usage;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Runs the model over the data, each record with the adapter (NAME=DIR) that its column names. What is predicted comes back
/// by adapter.
pub fn run(
    options: &ScoringOptions,
    adapters: &[PathBuf],
    column: &str,
    terminal: &Terminal,
    interrupt: &Interrupt,
) -> Result<Vec<Scoring>> {
    if let Some(head) = &options.head {
        usage!("--head {head}: with --adapter-column an adapter of several heads takes that of its own name; leave it out");
    }
    if options.submission {
        usage!("--submission: is of one adapter's task; leave out --adapter-column");
    }
    if adapters.len() > 1 && options.weights != Residency::Resident {
        usage!("--weights {}: with --adapter-column the layers' weights are resident; leave it out", options.weights.name());
    }
    let mut named: Vec<(String, PathBuf, Adapter)> = Vec::new();
    for adapter in adapters {
        let (Some(name), path) = split_name(adapter) else {
            usage!("--adapter {}: with --adapter-column each has a name: --adapter NAME=DIR", adapter.display());
        };
        if named.iter().any(|(known, ..)| *known == name) {
            usage!("--adapter {name}=...: two adapters have this name");
        }
        let adapter = of_name(Adapter::read(&path)?, &name)?;
        named.push((name, path, adapter));
    }
    // What one of them reads is not said in vain.
    let tasks = named.iter().filter_map(|(.., adapter)| adapter.metadata.task.or(options.task.map(TaskName::kind)));
    let said = options.said.iter().map(|(name, value)| (*name, value.clone()));
    read_by::check(said, &tasks.map(TaskName::Kind).collect::<Vec<_>>(), None)?;
    let known: Vec<String> = named.iter().map(|(name, ..)| name.clone()).collect();
    let model = options.open()?;
    let (mut jobs, mut places, mut heads) = (Vec::new(), Vec::new(), Vec::new());
    for (name, path, adapter) in named {
        let choice = Some(Choice { column: column.to_string(), name: name.clone(), known: known.clone() });
        let columns = Columns { choice, ..options.columns.clone() };
        let options = ScoringOptions { adapter: path, columns, said: Vec::new(), ..options.clone() };
        let Some(job) = Job::new(&options, adapter, &model, terminal).with_context(|| format!("adapter {name}"))? else { continue };
        // Frozen heads of one kind are one head.
        let head = if job.head.is_trained() { job.head.clone().named(&name) } else { job.head.clone() };
        let place = heads.iter().position(|known| *known == head).unwrap_or(heads.len());
        if place == heads.len() {
            heads.push(head);
        }
        places.push(place);
        jobs.push(job);
    }
    if heads.len() > 1 && heads.iter().any(|head| !head.is_trained()) {
        bail!("adapters whose answers are words of the language model go together only with others of the same words");
    }
    if jobs.windows(2).any(|pair| pair[0].weight_format != pair[1].weight_format) {
        usage!(
            "--weight-format is missing: some of the adapters were trained over matrices of fp16, others of int8; choose for all of them"
        );
    }
    let mut engine = options.engine(&model, heads, &jobs, terminal)?;
    let mut scorings = Vec::new();
    for (index, (job, place)) in jobs.into_iter().zip(places).enumerate() {
        if index > 0 {
            let options = EngineOptions { prefix: job.prefix.clone(), ..engine.options().clone() };
            engine.turn_to(&model, options, job.capacity)?;
        }
        scorings.push(job.run(options, &mut engine, place, terminal, interrupt)?);
    }
    Ok(scorings)
}

/// The adapter with its only head, or of several the one that is called as it.
fn of_name(adapter: Adapter, name: &str) -> Result<Adapter> {
    if adapter.metadata.heads.is_empty() {
        return Ok(adapter);
    }
    match adapter.of_head(name) {
        Some(head) => Ok(head),
        None => usage!("--adapter {name}=...: it has the heads {}; name it after one of them", adapter.head_names().join(", ")),
    }
}
