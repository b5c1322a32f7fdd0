//! Whole training steps of tiny models: against the CPU backend in f64, twice for the same bits, and in the memory that
//! was planned.

use super::judge::{Opener, Row};
use super::models::Model;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, DType, Stream};
use crate::checkpoint::{FrozenModel, StateTensors, WeightFormat};
use crate::data::FeatureSet;
use crate::engine::{Bytes, Capacity, Engine, EngineOptions, MemoryMode, Residency, StepReport, Update};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::time::Instant;

const UPDATE: Update = Update { learning_rate: 1e-2, weight_decay: 0.01, max_grad_norm: Some(1.0) };
const STEPS: u64 = 3;
/// Of every weight: activations of order one, as trained models have them.
const DEVIATION: f64 = 0.12;
/// What a driver may take beside the one allocation: it gives memory in pieces of up to 2 MiB, and loads kernels late.
const BESIDE: usize = 64 << 20;

/// The name of the check of memory.
pub const MEMORY: &str = "planned memory";

/// What a step may be off by, against f64: the loss relative to itself, all gradients relative to their norm. A few layers
/// each round a few times.
struct Bounds {
    loss: f64,
    gradient: f64,
}

impl Bounds {
    fn of(activation: DType) -> Bounds {
        match activation {
            DType::F16 => Bounds { loss: 1.5e-3, gradient: 4e-3 },
            DType::BF16 => Bounds { loss: 1e-2, gradient: 3e-2 },
            _ => Bounds { loss: 2e-6, gradient: 1e-5 },
        }
    }
}

/// The bits of everything that a training changes, and what it reported.
#[derive(PartialEq)]
struct Outcome {
    state: BTreeMap<String, Vec<u32>>,
    reports: Vec<StepReport>,
}

fn engine(model: &Model, frozen: &FrozenModel, set: &FeatureSet, backend: Box<dyn Backend>) -> Result<Engine> {
    engine_in(MemoryMode::default(), WeightFormat::Fp16, model, frozen, set, backend)
}

fn engine_in(
    memory: MemoryMode,
    weight_format: WeightFormat,
    model: &Model,
    frozen: &FrozenModel,
    set: &FeatureSet,
    backend: Box<dyn Backend>,
) -> Result<Engine> {
    let options = EngineOptions { memory, weight_format, ..model.options() };
    let capacity = Capacity::for_items(set, &options.heads[0], set.features.len(), true);
    let mut engine = Engine::new(backend, frozen, options, capacity)?;
    // Larger than the initial values, so that the prefix matters.
    let mut random = Stream::new([5, 6]);
    for tensor in engine.trainables() {
        let values: Vec<f64> = (0..tensor.shape.iter().product()).map(|_| f64::from(0.2 * random.normal_pair()[0] as f32)).collect();
        engine.set_values(&tensor.name, &values)?;
    }
    Ok(engine)
}

fn step(engine: &mut Engine, set: &FeatureSet, number: u64, update: &Update) -> Result<()> {
    let features: Vec<usize> = (0..set.features.len()).collect();
    engine.begin_step(number, features.iter().map(|&feature| set.targets(feature)).sum());
    // Three micro-batches, of which two may go through a layer together, and the last one alone.
    let mut ordinal = 0;
    for batch in features.chunks(features.len().div_ceil(3)) {
        engine.accumulate(set, batch, ordinal)?;
        ordinal += batch.iter().map(|&feature| set.features[feature].sequences).sum::<usize>();
    }
    engine.finish_step(update);
    engine.check()
}

/// Loss and gradients of one step, before any update.
fn gradients(engine: &mut Engine, set: &FeatureSet) -> Result<(StepReport, Vec<f64>)> {
    step(engine, set, 2, &Update { learning_rate: 0.0, weight_decay: 0.0, max_grad_norm: None })?;
    let mut all = Vec::new();
    for tensor in engine.trainables() {
        all.extend(engine.gradient(&tensor.name)?);
    }
    let report = engine.flush_report().context("a step reports nothing")?;
    Ok((report, all))
}

fn train(engine: &mut Engine, set: &FeatureSet) -> Result<Outcome> {
    let mut reports = Vec::new();
    for number in 0..STEPS {
        step(engine, set, number, &UPDATE)?;
        reports.extend(engine.take_report());
    }
    reports.extend(engine.flush_report());
    let mut state = BTreeMap::new();
    for (name, shape) in engine.state_tensors() {
        let mut values = vec![f32::NAN; shape.iter().product()];
        engine.read_state(&name, 0, &mut values)?;
        state.insert(name, values.into_iter().map(f32::to_bits).collect());
    }
    Ok(Outcome { state, reports })
}

/// Everything about one model.
pub fn check(model: &Model, open: &Opener, repetitions: u32) -> Row {
    let started = Instant::now();
    let mut row = Row::new(model.name);
    if let Err(error) = attempt(model, open, repetitions, &mut row) {
        row.failures.push(format!("{}: {error:#}", model.name));
    }
    row.time = started.elapsed();
    row
}

fn attempt(model: &Model, open: &Opener, repetitions: u32, row: &mut Row) -> Result<()> {
    attempt_in(WeightFormat::Fp16, model, open, repetitions, row)?;
    attempt_in(WeightFormat::Int8, model, open, 1, row).context("with matrices of 8 bits")
}

/// With matrices of either format, which on every backend have the same bits.
fn attempt_in(format: WeightFormat, model: &Model, open: &Opener, repetitions: u32, row: &mut Row) -> Result<()> {
    let frozen = FrozenModel::synthetic(model.spec.clone(), model.dtype, DEVIATION, 3)?;
    let set = model.features();
    // The type that `--device` would choose for such a file.
    let activation = if model.dtype == DType::BF16 { DType::BF16 } else { DType::F16 };
    let engine = |memory, backend| engine_in(memory, format, model, &frozen, &set, backend);
    let plain = MemoryMode::default();
    let (expected, exact) = gradients(&mut engine(plain, Box::new(Cpu::<f64>::new()))?, &set)?;
    let mut first = None;
    for repetition in 0..repetitions {
        let backend = open(activation, repetition)?;
        let bounds = Bounds::of(backend.precision().activation);
        let mut engine = engine(plain, backend)?;
        let (found, gradient) = gradients(&mut engine, &set)?;
        let loss = (found.loss / expected.loss - 1.0).abs() / bounds.loss;
        let distance = gradient.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let distance = distance / expected.grad_norm / bounds.gradient;
        for (what, part) in [("loss", loss), ("gradient", distance)] {
            if part.is_nan() || part > 1.0 {
                let name = format.name();
                row.failures.push(format!("{} in {name}: the {what} is off by {part:.2} times what is allowed", model.name));
            }
            if part > row.worst || part.is_nan() {
                (row.worst, row.worst_case) = (part, format!("{what} of {} in {}", model.name, format.name()));
            }
        }
        let outcome = train(&mut engine, &set)?;
        ensure!(outcome.reports.len() as u64 == STEPS, "{} steps of {STEPS} were reported", outcome.reports.len());
        match &first {
            None => first = Some(outcome),
            Some(first) => ensure!(*first == outcome, "repetition {repetition} gives other bits"),
        }
        row.cases += 1;
    }
    // Of matrices of 8 bits those modes that move them; two micro-batches together in every other mode.
    let modes = MemoryMode::every().enumerate().map(|(index, mode)| MemoryMode { together: 1 + index % 2, ..mode });
    let modes = modes.filter(|mode| format == WeightFormat::Fp16 || mode.weights == Residency::Streamed);
    for mode in modes.filter(|&mode| mode != MemoryMode::default()) {
        // On the emulated device of tests: transfers end as late as is legal.
        let mut engine = engine(mode, open(activation, 1)?)?;
        gradients(&mut engine, &set)?;
        ensure!(first == Some(train(&mut engine, &set)?), "{mode:?} gives other bits than the plain mode");
        row.cases += 1;
    }
    Ok(())
}

/// The memory that the driver gave for a run, beside the plan's.
pub fn check_memory(model: &Model, open: &Opener) -> Row {
    let started = Instant::now();
    let mut row = Row::new(MEMORY);
    if let Err(error) = memory(model, open, &mut row) {
        row.failures.push(format!("{error:#}"));
    }
    row.time = started.elapsed();
    row
}

fn memory(model: &Model, open: &Opener, row: &mut Row) -> Result<()> {
    let frozen = FrozenModel::synthetic(model.spec.clone(), model.dtype, DEVIATION, 3)?;
    let set = model.features();
    let activation = if model.dtype == DType::BF16 { DType::BF16 } else { DType::F16 };
    // The first use of a device loads kernels and libraries; what they take is none of a run's.
    let mut warm = engine(model, &frozen, &set, open(activation, 0)?)?;
    step(&mut warm, &set, 0, &UPDATE)?;
    let mut engine = engine(model, &frozen, &set, open(activation, 0)?)?;
    step(&mut engine, &set, 0, &UPDATE)?;
    engine.flush_report();
    let Some(measured) = engine.device_grown_bytes() else {
        row.note = "the device does not tell".into();
        return Ok(());
    };
    let planned = engine.plan().total;
    row.cases = 1;
    row.worst = measured.saturating_sub(planned) as f64 / BESIDE as f64;
    row.note = format!("planned {}, measured {}", Bytes(planned), Bytes(measured));
    ensure!(measured >= planned, "the driver gave {measured} bytes, {planned} were planned");
    ensure!(measured <= planned + BESIDE, "the run takes {measured} bytes, {planned} were planned (does another program use the GPU?)");
    Ok(())
}
