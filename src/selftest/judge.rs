//! Holds the operations of a device to the CPU backend in f64.
//!
//! The rule (after FlashAttention's tests): the error is at most twice that of a plain implementation (f32 inside,
//! rounded once) and two rounding steps of the type that the kernel rounds to, measured against the largest element.
//! A device that computes in f32 is allowed a number of f32's own steps. Every case runs several times, on an emulated
//! device under several orders of threads: all give the same bits.

use super::case::{Case, Kind, Rounding, Views};
use super::models::models;
use super::numbers::{from_bytes, rounded, step};
use super::pairs::Extent;
use super::runner::{Operation, Outputs, Runner};
use super::steps;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, DType};
use anyhow::Result;
use std::time::{Duration, Instant};

/// Opens the device under test for activations of a type; the number is that of a repetition (an order of threads).
pub type Opener<'a> = Box<dyn Fn(DType, u32) -> Result<Box<dyn Backend>> + 'a>;

/// Steps of f32, relative to the largest element, that sums in another order may be off by.
const MASTER_STEPS: f64 = 16.0;
/// The same for a device that holds everything in f32, whose products are sums of a few hundred terms.
const SINGLE_STEPS: f64 = 64.0;
/// Operands are of order one, and where terms cancel their errors stay: no less than this counts as the largest element.
const LEAST_LARGEST: f64 = 0.25;

/// What was found of an operation.
#[derive(Clone, Debug)]
pub struct Row {
    pub operation: &'static str,
    pub cases: usize,
    /// The largest error, in parts of what is allowed, and where it was.
    pub worst: f64,
    pub worst_case: String,
    /// What else there is to say.
    pub note: String,
    pub time: Duration,
    pub failures: Vec<String>,
}

impl Row {
    pub fn new(operation: &'static str) -> Row {
        let (worst_case, note) = (String::new(), String::new());
        Row { operation, cases: 0, worst: 0.0, worst_case, note, time: Duration::ZERO, failures: Vec::new() }
    }
}

pub struct Judge<'a> {
    open: Opener<'a>,
    repetitions: u32,
    /// One case of so many is tried.
    stride: usize,
    /// Of a type and a repetition, opened when first asked for.
    devices: Vec<(DType, u32, Runner)>,
    exact: Runner,
    plain: Runner,
    seen: usize,
    rows: Vec<Row>,
    /// Which combinations of parameters are cases.
    pub extent: Extent,
}

impl<'a> Judge<'a> {
    /// Of `repetitions`, at least 1, all must give the same bits. `quick`: a third of the cases. PTUNE_CASES: more of them.
    pub fn new(open: Opener<'a>, repetitions: u32, quick: bool) -> Result<Judge<'a>> {
        let (exact, plain) = (Runner::new(Box::new(Cpu::<f64>::new()))?, Runner::new(Box::new(Cpu::<f32>::new()))?);
        let stride = if quick { 3 } else { 1 };
        Ok(Judge {
            open,
            repetitions,
            stride,
            devices: Vec::new(),
            exact,
            plain,
            seen: 0,
            rows: Vec::new(),
            extent: Extent::from_environment()?,
        })
    }

    /// The device in words.
    pub fn describe(&self) -> Result<String> {
        Ok((self.open)(DType::F16, 0)?.describe())
    }

    /// Whole training steps of a tiny model of each kind, and the memory of one; those whose names are wanted.
    pub fn steps<'b>(&'b self, wanted: impl Fn(&str) -> bool + 'b) -> impl Iterator<Item = Row> + 'b {
        let all = models();
        let count = all.len();
        (0..=count).filter_map(move |number| match all.get(number) {
            Some(model) => wanted(model.name).then(|| steps::check(model, &self.open, self.repetitions)),
            None => wanted(steps::MEMORY).then(|| steps::check_memory(&all[0], &self.open)),
        })
    }

    /// Tries an operation on all of its cases.
    pub fn operation(&mut self, operation: &'static str, cases: fn(&mut Judge)) -> &Row {
        let started = Instant::now();
        self.rows.push(Row::new(operation));
        self.seen = 0;
        cases(self);
        let row = self.row();
        row.time = started.elapsed();
        if row.cases == 0 {
            row.failures.push("no case was tried".into());
        }
        row
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn row(&mut self) -> &mut Row {
        if self.rows.is_empty() {
            self.rows.push(Row::new("unnamed"));
        }
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    pub fn fail(&mut self, case: &Case, what: impl std::fmt::Display) {
        let text = format!("{}: {what}", case.name);
        self.row().failures.push(text);
    }

    /// The outputs' values in f64.
    pub fn reference(&mut self, case: &Case, operation: impl Fn(&mut dyn Backend, &Views)) -> Vec<Vec<f64>> {
        match self.exact.run(case, &operation) {
            Ok(outputs) => values(outputs),
            Err(error) => {
                self.fail(case, format_args!("on the CPU in f64: {error:#}"));
                Vec::new()
            }
        }
    }

    /// Whether the next case is among those that are tried.
    fn chooses(&mut self) -> bool {
        self.seen += 1;
        (self.seen - 1).is_multiple_of(self.stride)
    }

    /// The device's outputs, if all repetitions give the same.
    fn found(&mut self, case: &Case, operation: Operation) -> Result<Outputs> {
        let mut first = None;
        for repetition in 0..self.repetitions {
            let known = |(dtype, number, _): &(DType, u32, Runner)| (*dtype, *number) == (case.dtype, repetition);
            let index = match self.devices.iter().position(known) {
                Some(index) => index,
                None => {
                    self.devices.push((case.dtype, repetition, Runner::new((self.open)(case.dtype, repetition)?)?));
                    self.devices.len() - 1
                }
            };
            let outputs = match self.devices[index].2.run(case, operation) {
                Ok(outputs) => outputs,
                Err(error) => {
                    // A backend that has failed does nothing any more: the next case opens another.
                    self.devices.remove(index);
                    return Err(error);
                }
            };
            match &first {
                None => first = Some(outputs),
                Some(first) => anyhow::ensure!(*first == outputs, "repetition {repetition} gives other bits"),
            }
        }
        Ok(first.unwrap_or_default())
    }

    /// Runs the operation everywhere and applies the rule; the plain implementation is the CPU's in f32.
    pub fn check(&mut self, case: &Case, operation: impl Fn(&mut dyn Backend, &Views)) {
        if self.chooses() {
            match self.plain.run(case, &operation) {
                Ok(plain) => drop(self.compare(case, values(plain), &operation)),
                Err(error) => self.fail(case, format_args!("on the CPU in f32: {error:#}")),
            }
        }
    }

    /// As [`Judge::check`], with the outputs of another plain implementation.
    pub fn check_beside(&mut self, case: &Case, plain: Vec<Vec<f64>>, operation: impl Fn(&mut dyn Backend, &Views)) {
        if self.chooses() {
            self.compare(case, plain, &operation);
        }
    }

    /// As [`Judge::check`], for operations whose results are the same bits everywhere after rounding.
    pub fn check_exactly(&mut self, case: &Case, operation: impl Fn(&mut dyn Backend, &Views)) {
        if self.chooses() {
            let reference = self.reference(case, &operation);
            let Some(found) = self.compare(case, reference.clone(), &operation) else { return };
            for (number, ((dtype, bytes), reference)) in found.iter().zip(&reference).enumerate() {
                let expected = reference.iter().map(|&value| rounded(*dtype, value));
                let same = |(found, expected): (&f64, f64)| *found == expected || found.is_nan() && expected.is_nan();
                let place = from_bytes(*dtype, bytes).iter().zip(expected).position(|pair| !same(pair));
                if let Some(place) = place {
                    self.fail(case, format_args!("output {number} is another at element {place}"));
                }
            }
        }
    }

    /// Applies the rule; the device's outputs where it gave any.
    fn compare(&mut self, case: &Case, plain: Vec<Vec<f64>>, operation: Operation) -> Option<Outputs> {
        self.row().cases += 1;
        let reference = self.reference(case, operation);
        let found = match self.found(case, operation) {
            Ok(found) => found,
            Err(error) => {
                self.fail(case, format_args!("{error:#}"));
                return None;
            }
        };
        let checked: Vec<(Kind, Option<Rounding>)> =
            case.buffers.iter().filter(|buffer| buffer.checked.is_some()).map(|buffer| (buffer.kind, buffer.checked)).collect();
        if checked.len() != reference.len() || checked.len() != plain.len() || checked.len() != found.len() {
            self.fail(case, format_args!("{} outputs are compared with {} and {}", found.len(), reference.len(), plain.len()));
            return None;
        }
        for (number, (kind, rounding)) in checked.into_iter().enumerate() {
            let (exact, (dtype, bytes)) = (&reference[number], &found[number]);
            let largest = exact.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            // A device whose activations are f32 has no 16 bits to be forgiven for.
            let single = self.devices.first().is_some_and(|(.., runner)| runner.is_single());
            let allowed = match (single, rounding) {
                (true, _) => SINGLE_STEPS * step(DType::F32) * largest.max(LEAST_LARGEST),
                (false, Some(Rounding::Activation)) => {
                    2.0 * plain_error(case, kind, &plain[number], exact) + 2.0 * step(case.dtype) * largest
                }
                (false, _) => 2.0 * plain_error(case, kind, &plain[number], exact) + MASTER_STEPS * step(DType::F32) * largest,
            };
            let error = largest_error(&from_bytes(*dtype, bytes), exact);
            if error.is_nan() || error > allowed {
                self.fail(case, format_args!("output {number} is off by {error:e}, {allowed:e} allowed (largest {largest:e})"));
            }
            let part = if error == 0.0 { 0.0 } else { error / allowed };
            let row = self.row();
            if part > row.worst || part.is_nan() {
                (row.worst, row.worst_case) = (part, case.name.clone());
            }
        }
        Some(found)
    }
}

fn values(outputs: Outputs) -> Vec<Vec<f64>> {
    outputs.into_iter().map(|(dtype, bytes)| from_bytes(dtype, &bytes)).collect()
}

/// The largest difference; NaN where there is one.
fn largest_error(values: &[f64], exact: &[f64]) -> f64 {
    let differences = values.iter().zip(exact).map(|(value, expected)| (value - expected).abs());
    differences.fold(0.0_f64, |a, b| if b > a || b.is_nan() { b } else { a })
}

/// What the plain implementation is off by, once stored.
fn plain_error(case: &Case, kind: Kind, plain: &[f64], exact: &[f64]) -> f64 {
    let stored = match kind {
        Kind::Master | Kind::Scale => DType::F32,
        Kind::Integer => DType::I32,
        Kind::Quantised => DType::I8,
        Kind::Activation | Kind::Frozen => case.dtype,
    };
    let plain: Vec<f64> = plain.iter().map(|&value| rounded(stored, value)).collect();
    largest_error(&plain, exact)
}
