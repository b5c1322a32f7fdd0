//! Instructions by themselves: a device held to their definitions, what a GPU made of them written to a file, and such a
//! file replayed against another device.

use super::instructions::{Expected, expected, inputs};
use super::judge::Row;
use crate::backend::Machine;
use crate::backend::cuda::{PROBES, Probe};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// Runs a probe on words: `Prober::run` of a device.
pub type Probing<'a> = &'a mut dyn FnMut(Probe, &[u32]) -> Result<Vec<u32>>;

/// Warps of each probe.
const BLOCKS: usize = 8;
const SEED: u32 = 1;

/// What a GPU made of random bits: the file of `--record`.
#[derive(Serialize, Deserialize)]
pub struct Recording {
    pub gpu: String,
    pub driver: String,
    /// Of the recording, by universal time: 2026-01-31T10:00:00Z.
    pub date: String,
    /// Version and commit of the program.
    pub program: String,
    pub probes: Vec<Recorded>,
}

/// Words in hexadecimal, eight digits each.
#[derive(Serialize, Deserialize)]
pub struct Recorded {
    pub kernel: String,
    pub input: String,
    pub output: String,
}

fn to_hex(words: &[u32]) -> String {
    words.iter().map(|word| format!("{word:08x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u32>> {
    let whole = text.is_ascii() && text.len().is_multiple_of(8);
    let words = text.as_bytes().chunks(8).map(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
    if whole { words.collect() } else { None }
}

/// Each instruction on random bits, held to its definition.
pub fn check(probing: Probing) -> Vec<Row> {
    PROBES.into_iter().map(|probe| check_one(probe, probing)).collect()
}

fn check_one(probe: Probe, probing: Probing) -> Row {
    let started = Instant::now();
    let mut row = Row::new(probe.kernel.trim_start_matches("probe_"));
    let input = inputs(probe, BLOCKS, SEED);
    match probing(probe, &input) {
        Ok(output) => compare(&mut row, &expected(probe, &input), &output),
        Err(error) => row.failures.push(format!("{}: {error:#}", probe.kernel)),
    }
    row.time = started.elapsed();
    row
}

fn compare(row: &mut Row, expected: &[Expected], output: &[u32]) {
    row.cases = expected.len();
    if output.len() != expected.len() {
        row.failures.push(format!("{}: {} words and not {}", row.operation, output.len(), expected.len()));
    }
    let wrong: Vec<usize> = (0..expected.len().min(output.len())).filter(|&i| !expected[i].admits(output[i])).collect();
    if let Some(&first) = wrong.first() {
        let (count, found, wanted) = (wrong.len(), output[first], expected[first]);
        row.failures
            .push(format!("{}: {count} of {} words are wrong; word {first} is {found:08x}, not {wanted:x?}", row.operation, row.cases));
    }
    for (expected, &word) in expected.iter().zip(output) {
        if let Expected::Near(value, within) = *expected {
            let part = (f64::from(f32::from_bits(word)) - value).abs() / within;
            if part > row.worst && part.is_finite() {
                row.worst = part;
            }
        }
    }
}

impl Recording {
    /// Runs every probe on a machine.
    pub fn make(probing: Probing, machine: &Machine, date: String) -> Result<Recording> {
        let mut probes = Vec::new();
        for probe in PROBES {
            let input = inputs(probe, BLOCKS, SEED);
            let output = probing(probe, &input).with_context(|| probe.kernel)?;
            probes.push(Recorded { kernel: probe.kernel.into(), input: to_hex(&input), output: to_hex(&output) });
        }
        let commit = option_env!("PTUNE_COMMIT").map_or(String::new(), |commit| format!(", commit {commit}"));
        let part = |name: &str, value: &Option<String>| format!("{name}{}", value.as_deref().unwrap_or("unknown"));
        let driver = format!("{}, {}", part("", &machine.driver), part("CUDA ", &machine.cuda));
        Ok(Recording { gpu: machine.device.clone(), driver, date, program: format!("{}{commit}", env!("CARGO_PKG_VERSION")), probes })
    }

    pub fn read(path: &Path) -> Result<Recording> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a recording of probes", path.display()))
    }

    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Holds another device, the emulated one, to what was recorded: the same bits, and where the sum's order is the chip's
    /// own, both within the instruction's bounds of its exact result.
    pub fn replay(&self, probing: Probing) -> Result<()> {
        for recorded in &self.probes {
            let Some(probe) = PROBES.into_iter().find(|probe| probe.kernel == recorded.kernel) else {
                bail!("there is no probe {}", recorded.kernel);
            };
            let (Some(input), Some(output)) = (from_hex(&recorded.input), from_hex(&recorded.output)) else {
                bail!("{}: words are not of eight hexadecimal digits each", probe.kernel);
            };
            let found = probing(probe, &input)?;
            let definition = expected(probe, &input);
            ensure!(output.len() == found.len(), "{}: {} words were recorded, {} are found", probe.kernel, output.len(), found.len());
            for (index, (&recorded, &found)) in output.iter().zip(&found).enumerate() {
                let same = match definition[index] {
                    Expected::Bits(_) => recorded == found,
                    near => near.admits(recorded) && near.admits(found),
                };
                let gpu = &self.gpu;
                ensure!(
                    same,
                    "{}: word {index} is {found:08x}, on {gpu} {recorded:08x}, by definition {:x?}",
                    probe.kernel,
                    definition[index]
                );
            }
        }
        for probe in PROBES {
            ensure!(self.probes.iter().any(|recorded| recorded.kernel == probe.kernel), "{} is not recorded: record anew", probe.kernel);
        }
        Ok(())
    }
}
