//! Whole training steps of a model on a batch of given lengths: speed, memory, and where the time goes.

use super::table::{Row, rows, table};
use super::{Rates, Report, header, joined, machine_line, with_unit};
use crate::backend::watch;
use crate::checkpoint::WeightFormat;
use crate::data::{Feature, FeatureSet, Sequence};
use crate::engine::{Engine, EngineOptions, MemoryMode, PrefixOptions, Recompute, Residency, StepReport, Update};
use crate::model::{HeadSpec, Slot, Specification, TaskKind, default_head, describe};
use crate::run::base::BaseOptions;
use crate::run::cut::Size;
use crate::run::device;
use crate::run::memory::{forget_peak, grouped, peak_resident_bytes, readable};
use crate::run::pipeline::{Contents, Pipeline};
use crate::run::plan::Allowed;
use crate::run::settings::check_size;
use crate::run::terminal::Terminal;
use crate::run::values::{Device, Offset, StepRange};
use crate::usage;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Steps before the clock starts: kernels are loaded, algorithms chosen, pages touched.
const WARM_UP: u64 = 2;
/// Steps that the table is made of, at most.
const TABLE_STEPS: u64 = 3;
const UPDATE: Update = Update { learning_rate: 1e-3, weight_decay: 0.0, max_grad_norm: Some(1.0) };

#[derive(Clone, Debug, clap::Args)]
pub struct StepOptions {
    #[command(flatten)]
    pub base: BaseOptions,
    /// Prefix positions per layer; 0 trains the head alone
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Step")]
    pub prefix_length: usize,
    /// Tokens of a step
    #[arg(long, value_name = "N", default_value_t = 16384, help_heading = "Step")]
    pub tokens: usize,
    /// Length of every sequence [default: 256]
    #[arg(long, value_name = "L", conflicts_with = "lengths", help_heading = "Step")]
    pub length: Option<usize>,
    /// File of lengths, one a line, taken in turn: a distribution of real data
    #[arg(long, value_name = "FILE", help_heading = "Step")]
    pub lengths: Option<PathBuf>,
    /// Steps that are timed
    #[arg(long, value_name = "K", default_value_t = 20, help_heading = "Step")]
    pub steps: u64,
    /// Token positions: shifted by the prefix length, or unshifted
    #[arg(long, value_name = "HOW", default_value = "shifted", hide_possible_values = true, help_heading = "Step")]
    pub positions: Offset,
    /// Dropout on prefix keys and values
    #[arg(long, value_name = "RATE", default_value_t = 0.1, help_heading = "Step")]
    pub prefix_dropout: f64,
    /// Dropout of hidden states and of the head
    #[arg(long, value_name = "RATE", default_value_t = 0.1, help_heading = "Step")]
    pub hidden_dropout: f64,
    /// Dropout on attention probabilities [default: the model's config.json]
    #[arg(long, value_name = "RATE", help_heading = "Step")]
    pub attention_dropout: Option<f64>,
    /// Seed of tokens, initial values and dropout
    #[arg(long, value_name = "N", default_value_t = 42, help_heading = "Step")]
    pub seed: u64,
    /// What the backward makes again instead of keeping it: none, up-projection or layer
    #[arg(long, value_name = "WHAT", default_value = "none", hide_possible_values = true, help_heading = "Step")]
    pub recompute: Recompute,
    /// Where the layers' weights live: resident, streamed from host memory, or disk, streamed from the checkpoint's files
    #[arg(long, value_name = "WHERE", default_value = "resident", hide_possible_values = true, help_heading = "Step")]
    pub weights: Residency,
    /// Keep what stands for the layers' inputs in host memory until the backward; needs --recompute layer
    #[arg(long, help_heading = "Step")]
    pub offload_activations: bool,
    /// Tokens of a micro-batch at most [default: all of the step's]
    #[arg(long, value_name = "N", help_heading = "Step")]
    pub micro_batch_tokens: Option<usize>,
    /// Micro-batches that go through a layer before the next layer comes
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Step")]
    pub layer_major: usize,
    /// How the layers' matrices are kept: fp16, or int8 (8 bits and a factor a row)
    #[arg(long, value_name = "FORMAT", default_value = "fp16", hide_possible_values = true, help_heading = "Step")]
    pub weight_format: WeightFormat,
    /// Let a CUDA profiler see steps A to B of the timed ones alone, counted from 1
    #[arg(long, value_name = "A:B", help_heading = "Step")]
    pub profile_steps: Option<StepRange>,
    /// Measure nothing: print the model's config.json and the batch as JSON, for other programs that measure the same
    #[arg(long, help_heading = "Step")]
    pub print_config: bool,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    pub device: Device,
}

impl StepOptions {
    fn validate(&self) -> Result<()> {
        self.base.validate()?;
        self.base.check_residency(Some(self.weights))?;
        for (flag, value, least) in [
            ("prefix-length", Some(self.prefix_length), 0),
            ("tokens", Some(self.tokens), 1),
            ("length", self.length, 1),
            ("micro-batch-tokens", self.micro_batch_tokens, 1),
            ("layer-major", Some(self.layer_major), 1),
        ] {
            check_size(flag, value, least)?;
        }
        if !(1..=1_000_000).contains(&self.steps) {
            usage!("--steps {}: must be from 1 to 1000000", self.steps);
        }
        for (flag, rate) in [
            ("prefix-dropout", Some(self.prefix_dropout)),
            ("hidden-dropout", Some(self.hidden_dropout)),
            ("attention-dropout", self.attention_dropout),
        ] {
            if let Some(rate) = rate.filter(|rate| !(0.0..1.0).contains(rate)) {
                usage!("--{flag} {rate}: a dropout rate is at least 0 and below 1");
            }
        }
        if let Some(range) = self.profile_steps.filter(|range| range.last > self.steps) {
            usage!("--profile-steps {range}: only --steps {} are timed", self.steps);
        }
        Allowed { recompute: Some(self.recompute), offload: Some(self.offload_activations), ..Allowed::default() }.check()?;
        device::check(self.device)
    }

    fn memory(&self) -> MemoryMode {
        MemoryMode { recompute: self.recompute, weights: self.weights, offload: self.offload_activations, together: self.layer_major }
    }

    fn engine(&self, spec: &Specification) -> EngineOptions {
        // As `train` chooses it.
        let head = default_head(spec, TaskKind::Classification);
        EngineOptions {
            prefix: PrefixOptions {
                length: self.prefix_length,
                layers: (0..spec.layers).collect(),
                projection: None,
                shifted: self.positions == Offset::Shifted,
                dropout: self.prefix_dropout,
            },
            heads: vec![HeadSpec::new(TaskKind::Classification, head, 2, spec)],
            hidden_dropout: self.hidden_dropout,
            attention_dropout: self.attention_dropout.unwrap_or(spec.attention_dropout),
            seed: self.seed,
            memory: self.memory(),
            weight_format: self.weight_format,
        }
    }

    /// Lengths of the batch's sequences: those given in turn, the last cut so that there are as many tokens as asked for.
    fn sequence_lengths(&self) -> Result<Vec<usize>> {
        let given = match &self.lengths {
            Some(path) => read_lengths(path)?,
            None => vec![self.length.unwrap_or(256)],
        };
        let (mut lengths, mut left) = (Vec::new(), self.tokens);
        for length in given.into_iter().cycle() {
            if left == 0 {
                break;
            }
            lengths.push(length.min(left));
            left -= length.min(left);
        }
        Ok(lengths)
    }
}

/// Lengths of sequences, one a line.
fn read_lengths(path: &Path) -> Result<Vec<usize>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let length = |(number, line): (usize, &str)| match line.trim().parse() {
        Ok(length) if length > 0 => Ok(length),
        _ => bail!("{}, line {}: `{}` is not the length of a sequence in tokens", path.display(), number + 1, line.trim()),
    };
    let lengths = lines.map(length).collect::<Result<Vec<usize>>>()?;
    ensure!(!lengths.is_empty(), "{}: there is no length in this file", path.display());
    Ok(lengths)
}

/// Sequences of random tokens, each a feature of two classes. The first ids are left out: among them are those of
/// padding and of other special tokens.
pub fn random_batch(spec: &Specification, lengths: &[usize], seed: u64) -> FeatureSet {
    let mut random = crate::backend::Stream::new([seed as u32, (seed >> 32) as u32]);
    let first = 10.min(spec.vocabulary - 1);
    let mut set = FeatureSet { examples: lengths.len(), ..FeatureSet::default() };
    for (example, &length) in lengths.iter().enumerate() {
        let ids: Vec<u32> = (0..length).map(|_| (first + random.below(spec.vocabulary - first)) as u32).collect();
        let readout = vec![spec.readout.of(&ids)];
        set.sequences.push(Sequence { ids, readout, ..Sequence::default() });
        set.features.push(Feature { example, first_sequence: example, sequences: 1, targets: vec![(example % 2) as i32] });
    }
    set
}

/// Runs training steps of the same micro-batches, packed anew for each as in training.
struct Runner<'a> {
    engine: Engine,
    set: &'a FeatureSet,
    /// The step's micro-batches.
    batches: Vec<Contents>,
    pipeline: Pipeline,
    number: u64,
}

impl Runner<'_> {
    fn step(&mut self) -> Result<Option<StepReport>> {
        let engine = &mut self.engine;
        engine.begin_step(self.number, self.set.features.len());
        for (index, batch) in self.batches.iter().enumerate() {
            let next = self.batches[(index + 1) % self.batches.len()].clone();
            self.pipeline.run((self.set, batch.clone()), Some((self.set, next)), |batch| engine.accumulate_packed(batch))?;
        }
        self.engine.finish_step(&UPDATE);
        self.number += 1;
        Ok(self.engine.take_report())
    }

    /// Waits for everything queued; the last loss.
    fn finish(&mut self) -> Result<Option<StepReport>> {
        let mut last = None;
        while let Some(report) = self.engine.flush_report() {
            last = Some(report);
        }
        self.engine.check()?;
        Ok(last)
    }
}

/// Times of steps.
struct Times {
    /// By the clock, from the first step's beginning to the end of the last, divided by their number.
    mean: f64,
    /// By the device, ascending.
    sorted: Vec<f64>,
    loss: f64,
}

impl Times {
    fn median(&self) -> f64 {
        self.sorted[self.sorted.len() / 2]
    }
}

fn time_steps(runner: &mut Runner, options: &StepOptions) -> Result<Times> {
    for _ in 0..WARM_UP {
        runner.step()?;
    }
    runner.finish()?;
    runner.engine.instruments().forget_marks();
    let started = Instant::now();
    let mut marks = vec![runner.engine.instruments().mark()];
    for number in 1..=options.steps {
        let is = |step: fn(StepRange) -> u64| options.profile_steps.is_some_and(|range| step(range) == number);
        if is(|range| range.first) {
            runner.engine.instruments().profiler(true)?;
        }
        runner.step()?;
        marks.push(runner.engine.instruments().mark());
        if is(|range| range.last) {
            runner.engine.instruments().profiler(false)?;
        }
    }
    let last = runner.finish()?.context("no step was reported")?;
    let mean = started.elapsed().as_secs_f64() / options.steps as f64;
    let mut sorted: Vec<f64> = marks.windows(2).map(|pair| runner.engine.instruments().seconds_between(pair[0], pair[1])).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    ensure!(last.loss.is_finite(), "step {}: the loss is {}; the weights overflow", last.step + 1, last.loss);
    Ok(Times { mean, sorted, loss: last.loss })
}

/// Times of single operations, from steps of their own: marks between operations cost time, so the steps' total is not
/// theirs. Rows, seconds of a step, and useful operations of a step.
fn time_operations(runner: &mut Runner, log: &watch::Shared, steps: u64, rates: &Rates) -> Result<(Vec<Row>, f64, f64)> {
    runner.engine.instruments().forget_marks();
    log.start();
    runner.step()?;
    // The device is busy from here on: it never waits for the host to queue an operation and its marks.
    log.start();
    let from = runner.engine.instruments().mark();
    for _ in 0..steps {
        runner.step()?;
    }
    let to = runner.engine.instruments().mark();
    let log = log.stop();
    runner.finish()?;
    let instruments = runner.engine.instruments();
    let seconds = instruments.seconds_between(from, to) / steps as f64;
    let rows = rows(&log.pieces, steps as f64, rates, |from, to| instruments.seconds_between(from, to));
    Ok((rows, seconds, log.useful / steps as f64))
}

/// What would be measured.
fn configuration(options: &StepOptions) -> Result<Report> {
    let config = options.base.config()?;
    let (_, spec) = describe(&config)?;
    let (engine, lengths) = (options.engine(&spec), options.sequence_lengths()?);
    check_lengths(&spec, &engine.prefix, &lengths)?;
    let json = json!({
        "kind": "configuration",
        "schema": 1,
        "name": options.base.name(),
        "parameters": spec.parameters(),
        "config": config.fields(),
        "lengths": lengths,
        "settings": {
            "tokens": options.tokens,
            "longest": lengths.iter().max(),
            "prefix_length": options.prefix_length,
            "hidden_dropout": engine.hidden_dropout,
            "attention_dropout": engine.attention_dropout,
            "steps": options.steps,
            "seed": options.seed,
        },
    });
    Ok(Report { text: serde_json::to_string_pretty(&json)?, json })
}

/// Measures training steps.
pub fn step(options: &StepOptions, terminal: &Terminal) -> Result<Report> {
    options.validate()?;
    if options.print_config {
        return configuration(options);
    }
    let device = device::resolve(options.device, terminal)?;
    device::check_profiling(options.profile_steps, Some(device))?;
    let model = options.base.open()?;
    let spec = &model.spec;
    let lengths = options.sequence_lengths()?;
    let mut engine_options = options.engine(spec);
    check_lengths(spec, &engine_options.prefix, &lengths)?;
    let frozen = model.dtype(Slot::WordEmbedding)?;
    // Opened before the device is measured through another backend, so that its context is made once.
    let backend = device::open(device, &model, terminal)?;
    let rates = Rates::measure(device::open(device, &model, terminal)?.as_mut(), device::half(frozen))?;
    terminal.line(format!("rates      {rates}"));

    forget_peak();
    let set = random_batch(spec, &lengths, options.seed);
    let (backend, log) = watch::timed(backend);
    let started = Instant::now();
    let features: Vec<usize> = (0..lengths.len()).collect();
    let size = options.micro_batch_tokens.map_or(Size::Features(lengths.len()), Size::Tokens);
    // A feature is one sequence.
    let batches = size.batches(&set, &features).into_iter();
    let batches: Vec<Contents> = batches.map(|batch| Contents { head: 0, features: batch.to_vec(), first_ordinal: batch[0] }).collect();
    engine_options.memory.together = engine_options.memory.together.min(batches.len());
    let capacity = size.capacity(&set, &engine_options.heads[0], true);
    let engine = Engine::new(backend, &model, engine_options.clone(), capacity)?;
    let mut runner = Runner { pipeline: Pipeline::new(&engine), engine, set: &set, batches, number: 0 };
    let loaded = runner.engine.instruments().mark();
    runner.engine.instruments().seconds_between(loaded, loaded);
    runner.engine.check()?;
    let loading = started.elapsed().as_secs_f64();
    let times = time_steps(&mut runner, options)?;
    let machine = runner.engine.instruments().machine();
    let grown = runner.engine.device_grown_bytes();
    let (rows, table_seconds, flops) = time_operations(&mut runner, &log, options.steps.min(TABLE_STEPS), &rates)?;

    let (plan, device_name) = (runner.engine.plan(), runner.engine.device());
    let speed = options.tokens as f64 / times.mean;
    let achieved = flops / times.mean;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<10} {value}");
    };
    line("machine", machine_line(&machine, &device_name));
    line(
        "model",
        format!(
            "{}: {} parameters, {} layers of {}",
            options.base.description(),
            grouped(spec.parameters() as u64),
            spec.layers,
            spec.hidden_size
        ),
    );
    let longest = lengths.iter().max().copied().unwrap_or(0);
    line(
        "batch",
        format!(
            "{} tokens in {} sequences, the longest of {longest}; prefix {}; dropout {} hidden, {} attention, {} prefix",
            grouped(options.tokens as u64),
            grouped(lengths.len() as u64),
            options.prefix_length,
            engine_options.hidden_dropout,
            engine_options.attention_dropout,
            engine_options.prefix.dropout
        ),
    );
    let measured = match (grown, machine.memory_bytes) {
        (Some(grown), Some(all)) => format!("; the driver counts {} more than before, of {}", readable(grown as u64), readable(all as u64)),
        _ => String::new(),
    };
    line(
        "memory",
        format!("{} planned, {} mapped{measured}; loaded in {loading:.1} s", readable(plan.total as u64), readable(plan.mapped as u64)),
    );
    line(
        "step",
        format!(
            "{:.3} ms over {} steps (median {:.3}, from {:.3} to {:.3}); loss {:.4}",
            1e3 * times.mean,
            options.steps,
            1e3 * times.median(),
            1e3 * times.sorted[0],
            1e3 * times.sorted[times.sorted.len() - 1],
            times.loss
        ),
    );
    line(
        "speed",
        format!(
            "{} tokens/s; {} = {:.1} % of the matrix products' rate",
            grouped(speed.round() as u64),
            with_unit(achieved, "FLOP/s"),
            100.0 * achieved / rates.product
        ),
    );
    line("", "(counted: linear forward and input gradient; attention, a query, key and dimension, forward 4 and backward 10)".to_string());
    text.push('\n');
    text.push_str(&table(&rows, table_seconds, &rates));

    let json = joined(
        header("step", &machine, &rates),
        json!({
            "model": {
                "name": options.base.name(),
                "random_weights": options.base.random_weights,
                "family": spec.family,
                "layers": spec.layers,
                "hidden_size": spec.hidden_size,
                "parameters": spec.parameters(),
                "backend": device_name,
            },
            "settings": {
                "tokens": options.tokens,
                "sequences": lengths.len(),
                "longest": longest,
                "lengths": options.lengths,
                "prefix_length": options.prefix_length,
                "prefix_dropout": engine_options.prefix.dropout,
                "hidden_dropout": engine_options.hidden_dropout,
                "attention_dropout": engine_options.attention_dropout,
                "recompute": options.recompute.name(),
                "weights": options.weights.name(),
                "offload_activations": options.offload_activations,
                "micro_batch_tokens": options.micro_batch_tokens,
                "layer_major": options.layer_major,
                "weight_format": options.weight_format.name(),
                "steps": options.steps,
                "seed": options.seed,
            },
            "step": {
                "seconds": times.mean,
                "median_seconds": times.median(),
                "fastest_seconds": times.sorted[0],
                "slowest_seconds": times.sorted[times.sorted.len() - 1],
                "tokens_per_second": speed,
                "flops": flops,
                "flops_per_second": achieved,
                "share_of_product_rate": achieved / rates.product,
                "loss": times.loss,
            },
            "memory": {
                "planned_bytes": plan.total,
                "mapped_bytes": plan.mapped,
                "host_bytes": plan.host,
                "device_grown_bytes": grown,
                "device_used_bytes": machine.memory_used_bytes,
                "peak_resident_bytes": peak_resident_bytes(),
                "regions": plan.regions.iter().map(|region| json!({ "name": region.name, "bytes": region.bytes })).collect::<Vec<_>>(),
            },
            "load_seconds": loading,
            "table_step_seconds": table_seconds,
            "operations": rows.iter().map(Row::to_json).collect::<Vec<_>>(),
        }),
    );
    Ok(Report { text, json })
}

/// Sequences and prefix must fit the model's positions.
fn check_lengths(spec: &Specification, prefix: &PrefixOptions, lengths: &[usize]) -> Result<()> {
    let (longest, room) = (lengths.iter().max().copied().unwrap_or(0), spec.longest_sequence(prefix.shift()));
    if longest > room {
        let unshifted = if longest <= spec.longest_sequence(0) { ", or --positions unshifted" } else { "" };
        bail!(
            "a sequence of {longest} tokens behind a prefix of {} does not fit the model's positions: use lengths of at most {room}{unshifted}",
            prefix.shift()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(tokens: usize, lengths: Option<PathBuf>) -> StepOptions {
        StepOptions {
            base: BaseOptions::default(),
            prefix_length: 0,
            tokens,
            length: Some(4),
            lengths,
            steps: 1,
            positions: Offset::Shifted,
            prefix_dropout: 0.0,
            hidden_dropout: 0.0,
            attention_dropout: None,
            seed: 0,
            recompute: Recompute::None,
            weights: Residency::Resident,
            offload_activations: false,
            micro_batch_tokens: None,
            layer_major: 1,
            weight_format: WeightFormat::Fp16,
            profile_steps: None,
            print_config: false,
            device: Device::Cpu,
        }
    }

    #[test]
    fn batches_have_the_tokens_that_were_asked_for() {
        assert_eq!(options(10, None).sequence_lengths().unwrap(), [4, 4, 2]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lengths");
        std::fs::write(&path, "3\n\n 5 \n").unwrap();
        assert_eq!(options(14, Some(path.clone())).sequence_lengths().unwrap(), [3, 5, 3, 3]);
        std::fs::write(&path, "3\nx\n").unwrap();
        let message = options(14, Some(path.clone())).sequence_lengths().unwrap_err().to_string();
        assert!(message.contains("lengths, line 2: `x`"), "{message}");
        std::fs::write(&path, "").unwrap();
        assert!(options(14, Some(path)).sequence_lengths().unwrap_err().to_string().contains("no length"));
    }

    #[test]
    fn tokens_are_no_special_ones() {
        let spec = Specification { vocabulary: 12, ..Specification::tiny() };
        let set = random_batch(&spec, &[50, 3], 7);
        assert_eq!((set.sequences.len(), set.tokens(0)), (2, 50));
        assert!(set.sequences.iter().flat_map(|sequence| &sequence.ids).all(|id| (10..12).contains(id)));
    }
}
