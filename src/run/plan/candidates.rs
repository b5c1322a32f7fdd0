//! Ways to run one training step: memory mode and size of the micro-batch, each with what it takes. Memory is the engine's
//! own plan; time is what an engine on a GPU that is not there would have to move and to compute.

use crate::backend::cuda::Absent;
use crate::backend::{Sizing, watch};
use crate::checkpoint::{FrozenModel, WeightFormat};
use crate::data::FeatureSet;
use crate::engine::{Bytes, Capacity, Engine, EngineOptions, MemoryMode, Plan, Recompute, Region, Residency, Update};
use crate::model::Slot;
use crate::run::cut::Size;
use crate::run::device::half;
use crate::usage;
use anyhow::{Context, Result, bail};

/// Rates of a machine: bytes read and written a second, floating-point operations of matrix products, and bytes a second
/// between host and device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    pub copy: f64,
    pub product: f64,
    pub bus: f64,
}

/// What a step is planned for: the model's shape, whose weights are not read, and a machine.
pub struct Target {
    pub shape: FrozenModel,
    pub sizing: Box<dyn Sizing>,
    /// Bytes that the device's context takes beside the plan.
    pub context: usize,
    pub speed: Speed,
}

/// What a step consists of: features of a set; and what is evaluated in batches of the same size.
pub struct Workload<'a> {
    pub set: &'a FeatureSet,
    /// The features of one step.
    pub features: Vec<usize>,
    pub options: EngineOptions,
    /// Further sets, by the head that they go through, and whether they are trained on.
    pub besides: Vec<(usize, &'a FeatureSet, bool)>,
    /// Tokens that have to fit at once, whatever the size of a micro-batch.
    pub least_tokens: usize,
}

impl Workload<'_> {
    pub fn capacity(&self, micro_batch: Size) -> Capacity {
        let mut capacity = micro_batch.capacity(self.set, &self.options.heads[0], true);
        for &(head, set, training) in &self.besides {
            capacity = capacity.union(micro_batch.capacity(set, &self.options.heads[head], training));
        }
        Capacity { tokens: capacity.tokens.max(self.least_tokens), ..capacity }
    }
}

/// One way to run the step.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub memory: MemoryMode,
    pub micro_batch: Size,
    /// Tokens of the largest micro-batch.
    pub micro_batch_tokens: usize,
    /// Bytes of the one allocation, and its parts.
    pub bytes: usize,
    pub regions: Vec<Region>,
    /// Bytes of frozen matrices that are read where their files are mapped.
    pub mapped: usize,
    /// Bytes of host memory that streamed layers come from.
    pub host: usize,
}

impl Candidate {
    pub fn new(model: &FrozenModel, work: &Workload, sizing: &dyn Sizing, memory: MemoryMode, micro_batch: Size) -> Result<Candidate> {
        let options = EngineOptions { memory, ..work.options.clone() };
        let capacity = work.capacity(micro_batch);
        let plan = Plan::new(model, &options, capacity, sizing)?;
        let micro_batch_tokens = capacity.tokens;
        Ok(Candidate {
            memory,
            micro_batch,
            micro_batch_tokens,
            bytes: plan.total,
            regions: plan.regions,
            mapped: plan.mapped,
            host: plan.host,
        })
    }
}

/// Time of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    pub seconds: f64,
    /// Floating-point operations of matrix products and attention, those of recomputation too.
    pub flops: f64,
}

/// The least time that the step takes at such a speed: each operation as long as its bytes or its FLOPs want, whichever
/// is longer, one behind the other; transfers beside all of them.
pub fn step_time(target: &Target, work: &Workload, candidate: &Candidate) -> Result<StepTime> {
    let Target { shape, speed, .. } = target;
    let activation = half(shape.dtype(Slot::WordEmbedding)?);
    let options = EngineOptions { memory: candidate.memory, ..work.options.clone() };
    let (backend, log) = watch::timed(Box::new(Absent::new(activation)));
    let mut engine = Engine::empty(backend, shape, options, work.capacity(candidate.micro_batch))?;
    log.start();
    engine.begin_step(0, work.features.iter().map(|&feature| work.set.targets(feature)).sum());
    let mut ordinal = 0;
    for batch in candidate.micro_batch.batches(work.set, &work.features) {
        engine.accumulate(work.set, batch, ordinal)?;
        ordinal += batch.iter().map(|&feature| work.set.features[feature].sequences).sum::<usize>();
    }
    engine.finish_step(&Update { learning_rate: 0.0, weight_decay: 0.0, max_grad_norm: Some(1.0) });
    let mut time = StepTime { seconds: 0.0, flops: 0.0 };
    let mut transferred = 0.0;
    for piece in log.stop().pieces {
        if piece.label == watch::TRANSFER {
            transferred += piece.work.bytes;
        } else {
            time.seconds += piece.work.floor(speed.copy, speed.product);
            time.flops += piece.work.flops;
        }
    }
    time.seconds = time.seconds.max(transferred / speed.bus);
    Ok(time)
}

/// Of what is allowed the fastest way that fits into `budget` bytes, the context included; of equally fast ones the one that
/// recomputes less, then the larger micro-batch. Where none fits, the error says what the least budget is.
///
/// A smaller micro-batch reads the weights more often, so of each mode the largest one that fits is enough; but where weights
/// are streamed, more micro-batches may go through a layer together the smaller they are.
pub fn fastest(
    target: &Target,
    model: &FrozenModel,
    work: &Workload,
    allowed: &Allowed,
    sizes: &[Size],
    budget: usize,
) -> Result<Candidate> {
    let context = target.context;
    let mut best: Option<(f64, Candidate)> = None;
    let mut least: Option<Candidate> = None;
    for memory in allowed.modes() {
        for &size in sizes {
            let batches = size.batches(work.set, &work.features).len();
            let mut fitting = None;
            for together in allowed.groups(memory, batches) {
                let memory = MemoryMode { together, ..memory };
                let candidate = Candidate::new(model, work, target.sizing.as_ref(), memory, size)?;
                if least.as_ref().is_none_or(|least| candidate.bytes < least.bytes) {
                    least = Some(candidate.clone());
                }
                if candidate.bytes + context <= budget {
                    fitting = Some(candidate);
                    break;
                }
            }
            let Some(candidate) = fitting else { continue };
            let all = candidate.memory.together >= batches || memory.weights == Residency::Resident;
            let seconds = step_time(target, work, &candidate)?.seconds;
            if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                best = Some((seconds, candidate));
            }
            if all {
                break;
            }
        }
    }
    let least = least.context("no way to run the step is allowed")?;
    match best {
        Some((_, candidate)) => Ok(candidate),
        None => bail!(
            "a budget of {} is too small: at least {} are needed ({}, micro-batches of {} tokens{}){}",
            Bytes(budget),
            Bytes(least.bytes + context),
            least.memory.describe(),
            least.micro_batch_tokens,
            if context > 0 { format!(", {} of CUDA context included", Bytes(context)) } else { String::new() },
            if fits_in_int8(target, model, work, &least, budget)? {
                "; it fits with --weight-format int8, which changes results a little"
            } else {
                ""
            }
        ),
    }
}

/// Whether what takes least would fit with matrices of 8 bits, where they have 16.
fn fits_in_int8(target: &Target, model: &FrozenModel, work: &Workload, least: &Candidate, budget: usize) -> Result<bool> {
    if work.options.weight_format == WeightFormat::Int8 {
        return Ok(false);
    }
    let options = EngineOptions { memory: least.memory, weight_format: WeightFormat::Int8, ..work.options.clone() };
    let plan = Plan::new(model, &options, work.capacity(least.micro_batch), target.sizing.as_ref())?;
    Ok(plan.total + target.context <= budget)
}

/// What is said of the memory mode; the rest is free, where somebody chooses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    pub recompute: Option<Recompute>,
    pub weights: Option<Residency>,
    pub offload: Option<bool>,
    pub together: Option<usize>,
    /// Whether there is a budget to choose by.
    pub chooses: bool,
}

impl Allowed {
    /// Refuses what cannot be had together.
    pub fn check(&self) -> Result<()> {
        if self.offload == Some(true) && self.modes().next().is_none() {
            let recompute = self.recompute.unwrap_or_default().name();
            usage!(
                "--offload-activations with --recompute {recompute}: only inputs of layers that are made again go to the host; give --recompute layer"
            );
        }
        Ok(())
    }

    /// From the plainest to the one that spends most time for memory; of one micro-batch at a time.
    fn modes(self) -> impl Iterator<Item = MemoryMode> {
        let recompute = if self.chooses { self.recompute } else { Some(self.recompute.unwrap_or_default()) };
        let all: Vec<MemoryMode> = self.weights.map_or_else(|| MemoryMode::every().collect(), |weights| MemoryMode::of(weights).collect());
        all.into_iter().filter(move |mode| {
            recompute.is_none_or(|recompute| mode.recompute == recompute) && self.offload.is_none_or(|offload| mode.offload == offload)
        })
    }

    /// The mode where nobody chooses, of steps of so many micro-batches at most: more of them cannot go through a layer together.
    pub fn plainest(self, batches: usize) -> MemoryMode {
        MemoryMode { together: self.together.unwrap_or(1).min(batches), ..self.modes().next().unwrap_or_default() }
    }

    /// How many of a step's micro-batches may go through a layer together, the most first: resident weights gain nothing by it.
    fn groups(self, memory: MemoryMode, batches: usize) -> Vec<usize> {
        match (self.together, memory.weights) {
            (Some(given), _) => vec![given.min(batches)],
            (None, Residency::Resident) => vec![1],
            (None, Residency::Streamed | Residency::Disk) => {
                let mut counts: Vec<usize> = (0..usize::BITS).map(|shift| batches.div_ceil(1 << shift).max(1)).collect();
                counts.dedup();
                counts
            }
        }
    }
}
