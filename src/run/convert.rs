//! `ptune convert`: a published checkpoint to safetensors of 16 bits, checked against its configuration before anything
//! is written.

use super::interrupt::Interrupt;
use super::memory::{grouped, peak_resident_bytes, readable};
use super::terminal::Terminal;
use crate::backend::DType;
use crate::checkpoint::{Conversion, FrozenModel, Source, Survey, copy_companions, refuse_weights, survey};
use crate::model::Config;
use crate::usage;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where from, where to and as what.
pub struct ConvertOptions {
    pub input: PathBuf,
    pub output: PathBuf,
    /// fp16 or bf16; None: bf16 where the weights are bf16, else fp16.
    pub dtype: Option<DType>,
    /// Largest file.
    pub shard_bytes: u64,
}

/// Names that a line shows of many.
const SHOWN: usize = 6;

/// Converts. On an error nothing is left behind.
pub fn convert(options: &ConvertOptions, terminal: &Terminal, interrupt: &Interrupt) -> Result<()> {
    let (input, output) = (&options.input, &options.output);
    if !input.exists() {
        bail!("{}: no such file or directory", input.display());
    }
    if output.exists() && !output.is_dir() {
        usage!("--output {}: is not a directory", output.display());
    }
    refuse_weights(output)?;
    let started = Instant::now();
    let source = Source::open(input)?;
    let dtype = options.dtype.unwrap_or_else(|| usual_dtype(&source));
    let folder = if input.is_dir() { input.as_path() } else { input.parent().unwrap_or(Path::new("")) };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    terminal.line(format!(
        "reading {}: {}, {} tensors of {}",
        source.paths[0].display(),
        match source.paths.len() {
            1 => readable(source.total_bytes() as u64),
            files => format!("{} in {files} files", readable(source.total_bytes() as u64)),
        },
        grouped(source.tensors.len() as u64),
        types(&source)
    ));
    let found = check(&source, dtype, folder, terminal)?;
    let nothing = BTreeSet::new();
    let used = found.as_ref().map_or(&nothing, |survey| &survey.used);
    let conversion = Conversion::new(&source, dtype, used, usize::try_from(options.shard_bytes)?);

    let made = !output.exists();
    std::fs::create_dir_all(output).with_context(|| format!("cannot make {}", output.display()))?;
    let held = interrupt.hold(None);
    let result = write(&conversion, output, terminal, interrupt);
    if result.is_err() && made {
        // Only if it is empty.
        let _ = std::fs::remove_dir(output);
    }
    drop(held);
    let files = result?;
    let copied = copy_companions(folder, output)?;
    if found.is_some() {
        FrozenModel::open(output)?;
    }

    let seconds = started.elapsed().as_secs_f64();
    let peak = peak_resident_bytes().map_or(String::new(), |bytes| format!(", {} of host memory at most", readable(bytes)));
    let files = match files.as_slice() {
        [file] => file.display().to_string(),
        files => format!("{} files in {}", files.len(), output.display()),
    };
    terminal.line(format!("written: {files}, {} of {}, in {seconds:.1} s{peak}", readable(conversion.bytes() as u64), dtype.name()));
    report(&conversion, &source, found.as_ref(), terminal);
    if !copied.is_empty() {
        terminal.line(format!("copied: {}", listed(copied.iter().map(String::as_str))));
    }
    Ok(())
}

/// What the model of the input's config.json finds among the tensors; None where there is no configuration of a known
/// family. A tensor that is missing is an error.
fn check(source: &Source, dtype: DType, folder: &Path, terminal: &Terminal) -> Result<Option<Survey>> {
    if !folder.join("config.json").exists() {
        terminal.line(format!("note: there is no config.json in {}; names and shapes are not checked", folder.display()));
        return Ok(None);
    }
    let config = Config::of_model(folder)?;
    let described = Conversion::described(source, dtype, source.paths[0].clone());
    let found = match survey(&config, described, folder) {
        Ok(found) => found,
        Err(error) => {
            terminal.line(format!("note: {error:#}; names and shapes are not checked"));
            return Ok(None);
        }
    };
    if let [first, rest @ ..] = found.problems.as_slice() {
        let more = if rest.is_empty() { String::new() } else { format!(" (and {} more tensors)", rest.len()) };
        bail!("{first}{more}; nothing was written");
    }
    Ok(Some(found))
}

fn write(conversion: &Conversion, output: &Path, terminal: &Terminal, interrupt: &Interrupt) -> Result<Vec<PathBuf>> {
    const MEBIBYTE: usize = 1 << 20;
    let total = conversion.bytes().div_ceil(MEBIBYTE) as u64;
    let mut progress = terminal.progress("MiB written", 0, total, false);
    conversion.write(output, &mut |done| {
        if interrupt.pending().is_some() {
            bail!("stopped by a signal; nothing was written");
        }
        progress.update(done.div_ceil(MEBIBYTE) as u64, String::new);
        Ok(())
    })
}

/// Says which tensors the model reads, and what became of the others.
fn report(conversion: &Conversion, source: &Source, found: Option<&Survey>, terminal: &Terminal) {
    if let Some(survey) = found {
        let unused: Vec<&str> =
            conversion.tensors().map(|tensor| tensor.name.as_str()).filter(|name| !survey.used.contains(*name)).collect();
        terminal.line(format!("tensors: {} that the model reads, none missing", grouped(survey.used.len() as u64)));
        if !unused.is_empty() {
            let count = grouped(unused.len() as u64);
            terminal.line(format!("  {count} written that it does not read: {}", listed(unused.into_iter())));
        }
    }
    for (name, other) in &conversion.tied {
        terminal.line(format!("  left out: {name}, which is {other} once more"));
    }
    if !source.others.is_empty() {
        let names = listed(source.others.iter().map(|other| other.0.as_str()));
        let mut kinds: Vec<&str> = source.others.iter().map(|other| other.1.as_str()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        terminal.line(format!("  left out: {} of {}, which are no weights: {names}", source.others.len(), kinds.join(", ")));
    }
}

/// The first of some names, and how many more there are.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// bf16 where most elements are bf16, else fp16.
fn usual_dtype(source: &Source) -> DType {
    let elements = |wanted: bool| {
        source.tensors.iter().filter(|tensor| (tensor.dtype == DType::BF16) == wanted).map(|tensor| tensor.elements() as u128).sum::<u128>()
    };
    if elements(true) > elements(false) { DType::BF16 } else { DType::F16 }
}

/// The element types of a source, for a line.
fn types(source: &Source) -> String {
    let mut names: Vec<&str> = source.tensors.iter().map(|tensor| tensor.dtype.name()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(" and ")
}
