//! `ptune plan`: what a run takes, in memory and time, before anything is loaded.

mod candidates;
pub mod others;
mod report;

pub use candidates::{Allowed, Candidate, Speed, StepTime, Target, Workload, fastest, step_time};

use super::base::BaseOptions;
use super::bench::{Report, random_batch};
use super::cut::Size;
use super::memory::{grouped, readable};
use super::settings::check_size;
use super::values::{ByteSize, Device, Offset};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Absent;
use crate::checkpoint::WeightFormat;
use crate::engine::{Bytes, EngineOptions, MemoryMode, PrefixOptions, Recompute, Residency};
use crate::model::{HeadSpec, Slot, TaskKind, default_head};
use crate::run::device::{self, ASSUMED_CONTEXT};
use crate::usage;
use anyhow::Result;
use std::path::PathBuf;

/// An H200's, from measurements of others: 790 TFLOP/s in large fp16 products, 4.3 TB/s in copies; PCIe 5.
pub const ASSUMED_SPEED: Speed = Speed { copy: 4.3e12, product: 790e12, bus: 55e9 };

/// What the host holds of its own beside batches: pinned pieces, and a window of each file that is loaded.
const HOST: usize = 256 << 20;

#[derive(Clone, Debug, clap::Args)]
pub struct PlanOptions {
    #[command(flatten)]
    pub base: BaseOptions,
    /// Prefix positions per layer; 0 trains the head alone
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Step")]
    pub prefix_length: usize,
    /// Train the prefix through a two-layer tanh MLP of this hidden size [without a value: 512]
    #[arg(long, value_name = "HIDDEN", num_args = 0..=1, default_missing_value = "512", help_heading = "Step")]
    pub prefix_projection: Option<usize>,
    /// Tokens of an optimizer step [default: 16384]
    #[arg(long, value_name = "N", conflicts_with = "batch_size", help_heading = "Step")]
    pub tokens_per_step: Option<usize>,
    /// Sequences of an optimizer step, in place of --tokens-per-step
    #[arg(long, value_name = "N", help_heading = "Step")]
    pub batch_size: Option<usize>,
    /// Length of every sequence
    #[arg(long, value_name = "L", default_value_t = 512, help_heading = "Step")]
    pub length: usize,
    /// Token positions: shifted by the prefix length, or unshifted [default: shifted; unshifted where the model is too short]
    #[arg(long, value_name = "HOW", hide_possible_values = true, help_heading = "Step")]
    pub positions: Option<Offset>,

    /// Most memory that may be used, as 24GiB or 80GB: picks the fastest mode that fits, and the largest micro-batch
    #[arg(long, value_name = "SIZE", help_heading = "Memory")]
    pub budget: Option<ByteSize>,
    /// What the backward makes again: none, up-projection or layer [default: what --budget wants; else none]
    #[arg(long, value_name = "WHAT", hide_possible_values = true, help_heading = "Memory")]
    pub recompute: Option<Recompute>,
    /// Where the layers' weights live: resident on the device, streamed from host memory, or disk, streamed from --model's files
    /// (no budget chooses that) [default: what --budget wants; else resident]
    #[arg(long, value_name = "WHERE", hide_possible_values = true, help_heading = "Memory")]
    pub weights: Option<Residency>,
    /// Keep what stands for the layers' inputs in host memory until the backward; needs --recompute layer. [default:
    /// what --budget wants; else false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide_possible_values = true, help_heading = "Memory")]
    pub offload_activations: Option<bool>,
    /// Micro-batches that go through a layer before the next layer comes, so that streamed weights come once for all of
    /// them. [default: what --budget wants; else 1]
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub layer_major: Option<usize>,
    /// How the layers' matrices are kept: fp16, or int8 (8 bits and a factor a row, which changes results a little; no budget
    /// chooses it by itself)
    #[arg(long, value_name = "FORMAT", default_value = "fp16", hide_possible_values = true, help_heading = "Memory")]
    pub weight_format: WeightFormat,
    /// Tokens of a micro-batch at most [default: the step's, or what --budget wants]
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub micro_batch_tokens: Option<usize>,
    /// What the CUDA context takes, where it was measured [default: 512MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Memory")]
    pub context: Option<ByteSize>,

    /// cuda (a GPU, there or not) or cpu
    #[arg(long, value_name = "DEVICE", default_value = "cuda", help_heading = "Machine")]
    pub device: Device,
    /// Rate of large matrix products, in TFLOP/s [default: an H200's, 790]
    #[arg(long, value_name = "X", help_heading = "Machine")]
    pub tflops: Option<f64>,
    /// Rate of copies, read and written bytes counted, in TB/s [default: an H200's, 4.3]
    #[arg(long, value_name = "X", help_heading = "Machine")]
    pub bandwidth: Option<f64>,
    /// Rate of copies between host and device, in GB/s [default: PCIe 5's, 55]
    #[arg(long, value_name = "X", help_heading = "Machine")]
    pub bus: Option<f64>,

    /// Draw device memory by part, of all modes and of other ways to tune the model, as a chart (SVG)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub plot: Option<PathBuf>,
}

impl PlanOptions {
    fn validate(&self) -> Result<()> {
        // A shape is enough.
        if self.base.model.is_none() && self.base.architecture.is_none() {
            usage!("--model is missing (or --architecture NAME, a published shape)");
        }
        BaseOptions { random_weights: self.base.random_weights.or(self.base.architecture.as_ref().map(|_| 0)), ..self.base.clone() }
            .validate()?;
        self.base.check_residency(self.weights)?;
        for (flag, value, least) in [
            ("prefix-length", Some(self.prefix_length), 0),
            ("prefix-projection", self.prefix_projection, 1),
            ("tokens-per-step", self.tokens_per_step, 1),
            ("batch-size", self.batch_size, 1),
            ("length", Some(self.length), 1),
            ("micro-batch-tokens", self.micro_batch_tokens, 1),
            ("layer-major", self.layer_major, 1),
        ] {
            check_size(flag, value, least)?;
        }
        if let Some(sequences) = self.batch_size {
            check_size("batch-size times --length", Some(sequences * self.length), 1)?;
        }
        for (flag, rate) in [("tflops", self.tflops), ("bandwidth", self.bandwidth), ("bus", self.bus)] {
            if let Some(rate) = rate.filter(|rate| !(rate.is_finite() && *rate > 0.0)) {
                usage!("--{flag} {rate}: must be above 0 and finite");
            }
        }
        self.allowed().check()?;
        if let Some(tokens) = self.micro_batch_tokens.filter(|&tokens| tokens < self.length) {
            usage!("--micro-batch-tokens {tokens}: a sequence has --length {} tokens", self.length);
        }
        Ok(())
    }

    /// The modes that are allowed by what is said.
    fn allowed(&self) -> Allowed {
        Allowed {
            recompute: self.recompute,
            weights: self.weights,
            offload: self.offload_activations,
            together: self.layer_major,
            chooses: self.budget.is_some(),
        }
    }

    fn speed(&self) -> Speed {
        Speed {
            copy: self.bandwidth.map_or(ASSUMED_SPEED.copy, |rate| rate * 1e12),
            product: self.tflops.map_or(ASSUMED_SPEED.product, |rate| rate * 1e12),
            bus: self.bus.map_or(ASSUMED_SPEED.bus, |rate| rate * 1e9),
        }
    }

    /// Lengths of the step's sequences.
    fn lengths(&self) -> Vec<usize> {
        let tokens = match (self.tokens_per_step, self.batch_size) {
            (_, Some(sequences)) => sequences * self.length,
            (tokens, None) => tokens.unwrap_or(16384),
        };
        let mut lengths = vec![self.length; tokens / self.length];
        lengths.extend(Some(tokens % self.length).filter(|&rest| rest > 0));
        lengths
    }
}

/// What was found.
struct Found {
    chosen: Candidate,
    time: StepTime,
    /// Every mode, with the same micro-batch.
    modes: Vec<(StepTime, Candidate)>,
    others: Vec<others::Estimate>,
    /// Tokens of a step, and its micro-batches.
    tokens: usize,
    batches: usize,
}

/// Plans a training step, and chooses its mode where there is a budget.
pub fn plan(options: &PlanOptions) -> Result<Report> {
    options.validate()?;
    let shape = options.base.shape()?;
    let half = device::half(shape.dtype(Slot::WordEmbedding)?);
    let on_gpu = options.device != Device::Cpu;
    // On the CPU a model's own files are read where they are mapped, as everywhere those of weights that stay on the disk.
    let in_files = !on_gpu || options.weights == Some(Residency::Disk);
    let has_files = options.base.random_weights.is_none() && options.base.model.is_some();
    let model = if in_files && has_files { Some(options.base.open()?) } else { None };
    let target = Target {
        sizing: if on_gpu { Box::new(Absent::new(half)) } else { Box::new(Cpu::<f32>::new()) },
        context: if on_gpu { options.context.map_or(ASSUMED_CONTEXT, |size| size.0) } else { 0 },
        speed: options.speed(),
        shape,
    };
    let spec = &target.shape.spec;
    let head = HeadSpec::new(TaskKind::Classification, default_head(spec, TaskKind::Classification), 2, spec);
    let longest = options.length;
    let fits = spec.longest_sequence(options.prefix_length) >= longest;
    let shifted = options.positions.map_or(spec.shifts() && fits, |positions| positions == Offset::Shifted);
    let prefix = PrefixOptions {
        length: options.prefix_length,
        layers: (0..spec.layers).collect(),
        projection: options.prefix_projection,
        shifted,
        dropout: 0.1,
    };
    let engine_options = EngineOptions {
        hidden_dropout: 0.1,
        attention_dropout: spec.attention_dropout,
        weight_format: options.weight_format,
        ..EngineOptions::new(prefix, vec![head])
    };
    let lengths = options.lengths();
    let set = random_batch(spec, &lengths, 0);
    let features = (0..lengths.len()).collect();
    let work = Workload { set: &set, features, options: engine_options, besides: Vec::new(), least_tokens: 0 };
    let frozen = model.as_ref().unwrap_or(&target.shape);

    let tokens: usize = lengths.iter().sum();
    let largest = Size::Tokens(options.micro_batch_tokens.unwrap_or(tokens).min(tokens));
    let allowed = options.allowed();
    let chosen = match options.budget {
        Some(budget) => {
            let sizes = largest.halves(&set);
            fastest(&target, frozen, &work, &allowed, &sizes, budget.0)?
        }
        None => {
            let batches = largest.batches(work.set, &work.features).len();
            Candidate::new(frozen, &work, target.sizing.as_ref(), allowed.plainest(batches), largest)?
        }
    };
    let time = step_time(&target, &work, &chosen)?;
    // Beside it, every mode of the same micro-batch, and what others would take for the step as one.
    let mut modes = Vec::new();
    for mode in MemoryMode::every() {
        let mode = MemoryMode { together: chosen.memory.together, ..mode };
        let candidate = Candidate::new(frozen, &work, target.sizing.as_ref(), mode, chosen.micro_batch)?;
        modes.push((step_time(&target, &work, &candidate)?, candidate));
    }
    let batch = others::Batch { tokens, longest };
    let others = others::methods(options.prefix_length).map(|method| others::estimate(spec, method, batch)).collect();
    let batches = chosen.micro_batch.batches(work.set, &work.features).len();
    report::report(options, &target, &Found { chosen, time, modes, others, tokens, batches })
}

impl Target {
    fn peak(&self, candidate: &Candidate) -> usize {
        candidate.bytes + self.context
    }

    fn host_peak(&self, candidate: &Candidate) -> usize {
        // What streams from files is dropped from memory where others want it.
        let mapped = if candidate.memory.weights == Residency::Disk { 0 } else { candidate.mapped };
        HOST + mapped + candidate.host + if self.context == 0 { candidate.bytes } else { 0 }
    }
}

/// A line for the log of a run whose mode a budget has chosen.
pub fn choice_line(chosen: &Candidate, budget: usize) -> String {
    format!(
        "budget of {}: {}, micro-batches of {} ({} tokens at most), {} planned",
        Bytes(budget),
        chosen.memory.describe(),
        chosen.micro_batch,
        grouped(chosen.micro_batch_tokens as u64),
        readable(chosen.bytes as u64)
    )
}
