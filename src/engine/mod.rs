//! A training step: the frozen model's forward, its explicit backward, the prefix, the head and the optimizer, each an
//! operation of the backend on buffers that the memory plan laid out. One forward and one backward serve every
//! specification; there is no tape.

mod activations;
mod backward;
mod forward;
mod frozen;
mod generate;
mod head;
mod lanes;
mod layout;
mod linear;
mod loading;
mod numbers;
mod offload;
mod options;
mod plan;
mod prefix;
mod prompt;
mod recompute;
mod relative;
mod scale;
mod state;
mod step;
mod streaming;
mod text_prefix;
mod trainable;
mod vocabulary;
mod words;

pub use crate::bytes::Bytes;
pub use layout::Region;
pub use options::{Capacity, EngineOptions, MemoryMode, PrefixInit, PrefixOptions, Recompute, Residency};
pub use plan::Plan;
pub use step::{StepReport, Update};

use crate::backend::{Backend, Dropout, Instruments, Rows, Scope, Site, View, stream_key};
use crate::checkpoint::FrozenModel;
use crate::data::{Batch, FeatureSet, Grouping, Packing, RowArrays};
use crate::model::{HeadSpec, MaskKind, Positions, Specification};
use anyhow::{Result, ensure};
use plan::{HeadBuffers, RowViews, Slot};
use scale::LossScale;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A frozen model, its prefixes and its heads on a backend.
pub struct Engine {
    backend: Box<dyn Backend>,
    spec: Specification,
    options: EngineOptions,
    plan: Plan,
    /// The batch at hand.
    batch: Batch,
    /// Of the plan's slots, that of the micro-batch at hand.
    slot: usize,
    /// Micro-batches that are loaded and wait for others, to go through the layers together.
    group: Vec<BatchRows>,
    /// The step that runs, from 0; part of every mask's key.
    step: u64,
    /// Targets of the whole running step.
    step_targets: usize,
    /// Whether the projected prefix is older than its trainables.
    prefix_stale: bool,
    /// Finished steps whose report is on its way to the host.
    unread: VecDeque<step::Unread>,
    /// Reports that are here and were not taken yet.
    reports: VecDeque<StepReport>,
    /// What the running step's loss is multiplied by, and with it every gradient.
    scale: f64,
    /// How that changes; None where activations have fp32's range.
    scaling: Option<LossScale>,
    /// Whether the pooler was made here because the checkpoint has none.
    made_pooler: bool,
    /// Whether the model runs without its prefix.
    bare: bool,
    loading: Loading,
    /// What the device had in use before this run.
    used_before: Option<usize>,
}

/// How the frozen weights came to where they are used.
#[derive(Clone, Copy, Debug)]
pub struct Loading {
    /// Bytes that were copied.
    pub bytes: usize,
    /// Bytes that are read where their files are mapped.
    pub mapped: usize,
    pub time: Duration,
}

/// Name and shape of a trained tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainableInfo {
    pub name: String,
    pub shape: [usize; 2],
}

/// What a forward is for: masks are drawn in training only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Train,
    Evaluate,
}

/// The rows of the batch at hand.
struct BatchRows {
    all: Rows,
    readout: Rows,
    /// Positions of the tokens and of the head's rows.
    positions: [View; 2],
    /// The model's mask: see [`crate::backend::Attention`].
    separators: Option<View>,
    /// Logit groups: see [`crate::backend::CrossEntropy`].
    groups: View,
    /// In generation: where keys and values are kept.
    cache: Option<generate::CacheRows>,
}

impl Engine {
    /// Lays out the run, loads the frozen weights and makes the initial head and prefix (N(0, 0.02)).
    /// Errors: a tensor that fp16 cannot hold, a capacity beyond the position table, not enough memory.
    pub fn new(backend: Box<dyn Backend>, model: &FrozenModel, options: EngineOptions, capacity: Capacity) -> Result<Engine> {
        Engine::in_turns(backend, model, options, capacity, &[])
    }

    /// [`Engine::new`] with room for other options and capacities, which [`Engine::turn_to`] lays out on the same weights; none for
    /// what needs other weights.
    pub fn in_turns(
        backend: Box<dyn Backend>,
        model: &FrozenModel,
        options: EngineOptions,
        capacity: Capacity,
        turns: &[(EngineOptions, Capacity)],
    ) -> Result<Engine> {
        let mut engine = Engine::laid_out(backend, model, options, capacity, turns)?;
        let started = Instant::now();
        engine.plan.frozen.load(model, engine.backend.as_mut())?;
        engine.loading.time = started.elapsed();
        engine.begin();
        Ok(engine)
    }

    /// What there is before the first step, beside the weights of the checkpoint.
    fn begin(&mut self) {
        self.write_rotations();
        self.initialise(PrefixInit::Normal);
        if self.made_pooler {
            self.make_pooler();
        }
        self.cache_relative();
    }

    /// Lays out the run and loads nothing: for those who want to know what a step has to do, not what it computes.
    pub fn empty(backend: Box<dyn Backend>, model: &FrozenModel, options: EngineOptions, capacity: Capacity) -> Result<Engine> {
        Engine::laid_out(backend, model, options, capacity, &[])
    }

    fn laid_out(
        mut backend: Box<dyn Backend>,
        model: &FrozenModel,
        options: EngineOptions,
        capacity: Capacity,
        turns: &[(EngineOptions, Capacity)],
    ) -> Result<Engine> {
        let spec = model.spec.clone();
        options.prefix.check_positions(&spec, capacity.longest + capacity.generated)?;
        let transferred = options.memory.weights == Residency::Disk && backend.transfers_files();
        let files = if backend.reads_files() || transferred { model.files() } else { &[] };
        for (number, file) in files.iter().enumerate() {
            let buffer = backend.attach(file.clone())?;
            assert_eq!(buffer, frozen::file_buffer(number));
        }
        let mut plan = Plan::new(model, &options, capacity, backend.as_ref())?;
        for (options, capacity) in turns {
            options.prefix.check_positions(&spec, capacity.longest + capacity.generated)?;
            plan.cover(&Plan::new(model, options, *capacity, backend.as_ref())?);
        }
        let used_before = backend.machine().memory_used_bytes;
        backend.allocate(plan.total, plan.scratch)?;
        if plan.host > 0 {
            backend.allocate_host(plan.host)?;
        }
        let loading = Loading { bytes: plan.frozen.loaded_bytes(), mapped: plan.mapped, time: Duration::ZERO };
        let made_pooler = plan.frozen.pooler.is_some() && !model.has_pooler();
        let scaling = LossScale::of(backend.as_ref());
        Ok(Engine {
            backend,
            spec,
            options,
            plan,
            batch: Batch::default(),
            slot: 0,
            group: Vec::new(),
            step: 0,
            step_targets: 0,
            prefix_stale: true,
            unread: VecDeque::new(),
            reports: VecDeque::new(),
            scale: 1.0,
            scaling,
            made_pooler,
            loading,
            bare: false,
            used_before,
        })
    }

    /// Becomes the engine that [`Engine::new`] makes of these, on the frozen weights and in the memory that are there. An error
    /// where that cannot be: weights are streamed, others are wanted, or there is no room; then nothing has changed.
    pub fn turn_to(&mut self, model: &FrozenModel, options: EngineOptions, capacity: Capacity) -> Result<()> {
        ensure!(self.options.memory.weights == Residency::Resident, "streamed weights serve one plan");
        options.prefix.check_positions(&self.spec, capacity.longest + capacity.generated)?;
        self.plan = Plan::new(model, &options, capacity, self.backend.as_ref())?.in_arena_of(&self.plan)?;
        self.options = options;
        (self.batch, self.slot, self.group) = (Batch::default(), 0, Vec::new());
        (self.step, self.step_targets, self.bare) = (0, 0, false);
        (self.unread, self.reports) = (VecDeque::new(), VecDeque::new());
        (self.scale, self.scaling) = (1.0, LossScale::of(self.backend.as_ref()));
        self.loading = Loading { bytes: 0, mapped: self.plan.mapped, time: Duration::ZERO };
        // As a new arena is.
        self.backend.zero(self.plan.unfrozen());
        self.begin();
        Ok(())
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// By how much the device's memory in use has grown since before the run, of all programs, where the driver tells: what the
    /// plan says, and what the driver took besides for kernels and libraries.
    pub fn device_grown_bytes(&self) -> Option<usize> {
        let now = self.backend.machine().memory_used_bytes;
        now.zip(self.used_before).map(|(now, before)| now.saturating_sub(before))
    }

    pub fn loading(&self) -> Loading {
        self.loading
    }

    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The backend in words, for the log.
    pub fn device(&self) -> String {
        self.backend.describe()
    }

    /// The backend's instruments, for measurements and profilers.
    pub fn instruments(&mut self) -> &mut dyn Instruments {
        self.backend.as_mut()
    }

    /// What went wrong on the device; results since are void.
    pub fn check(&self) -> Result<()> {
        self.backend.check()
    }

    pub fn trainables(&self) -> Vec<TrainableInfo> {
        self.plan.trainables.list.iter().map(|t| TrainableInfo { name: t.name.clone(), shape: t.shape }).collect()
    }

    /// How batches for [`Engine::forward_packed`] and [`Engine::accumulate_packed`] that go through a head are to be packed:
    /// with a copy of it another thread can pack the next batch while this one is being computed.
    pub fn packing(&self, head: usize) -> Packing {
        let HeadSpec { grouping, columns, .. } = self.options.heads[head];
        Packing { spec: self.spec.clone(), shift: self.shift(), prompt: self.prompt(), head, grouping, columns }
    }

    /// The head that the batch at hand goes through.
    fn head(&self) -> &HeadSpec {
        &self.options.heads[self.batch.head]
    }

    fn head_buffers(&self) -> &HeadBuffers {
        &self.plan.heads[self.batch.head]
    }

    /// Logits of features by the first head, without dropout: for each, \[rows, columns\] row-major. Of rows that predict tokens,
    /// pairs: the target's log-probability, and 1 where it is the likeliest token, else 0.
    pub fn forward(&mut self, set: &FeatureSet, features: &[usize]) -> Result<Vec<Vec<f64>>> {
        let rows = self.load_batch(set, features, 0)?;
        self.evaluate(rows)
    }

    /// [`Engine::forward`] of a batch that was packed before; another one comes back in its place.
    pub fn forward_packed(&mut self, batch: &mut Batch) -> Result<Vec<Vec<f64>>> {
        std::mem::swap(&mut self.batch, batch);
        let rows = self.load_packed()?;
        self.evaluate(rows)
    }

    /// Logits of the batch at hand.
    fn evaluate(&mut self, rows: BatchRows) -> Result<Vec<Vec<f64>>> {
        ensure!(self.group.is_empty(), "an evaluation in the middle of a step");
        self.run_forward(Mode::Evaluate, std::slice::from_ref(&rows));
        let (values, columns) = match (self.head().grouping, self.head_buffers().vocabulary) {
            (Grouping::PerToken, Some(buffers)) => {
                let of_rows = |view: View| view.col_range(0, rows.readout.count);
                let log_probabilities = self.read_values(of_rows(buffers.log_probability));
                let best = self.read_values(of_rows(buffers.best));
                let hits = best.iter().zip(&self.batch.row_targets).map(|(&best, &target)| f64::from(u8::from(best == f64::from(target))));
                (log_probabilities.into_iter().zip(hits).flat_map(|(log, hit)| [log, hit]).collect::<Vec<_>>(), 2)
            }
            _ => {
                let count = self.batch.feature_rows.iter().sum();
                (self.read_values(self.head_buffers().logits.first_rows(count)), self.head().columns)
            }
        };
        self.backend.check()?;
        let mut rest = values.as_slice();
        Ok(self
            .batch
            .feature_rows
            .iter()
            .map(|&rows| {
                let (own, tail) = rest.split_at(rows * columns);
                rest = tail;
                own.to_vec()
            })
            .collect())
    }

    /// Packs features for the first head and brings them to the backend.
    fn load_batch(&mut self, set: &FeatureSet, features: &[usize], first_ordinal: usize) -> Result<BatchRows> {
        let packing = self.packing(0);
        self.batch.pack(&packing, set, features, first_ordinal)?;
        self.load_packed()
    }

    /// Brings the batch at hand to the backend.
    fn load_packed(&mut self) -> Result<BatchRows> {
        let (batch, capacity) = (&self.batch, self.plan.capacity);
        // Scratch is laid out for a prefix in front.
        let room = capacity.longest + if self.bare { self.options.prefix.length } else { 0 };
        let fits = batch.ids.len() <= capacity.tokens
            && batch.sequences() <= capacity.sequences
            && batch.readout.count() <= capacity.rows
            && batch.groups.len() <= 4 * capacity.groups
            && batch.all.longest() <= room;
        ensure!(fits, "a batch of {} tokens is larger than the memory plan's capacity of {}", batch.ids.len(), capacity.tokens);
        Ok(self.upload_batch())
    }

    /// What is added to token positions.
    fn shift(&self) -> usize {
        if self.bare { 0 } else { self.options.prefix.shift() }
    }

    fn upload(&mut self, to: View, values: &[i32]) -> View {
        upload(self.backend.as_mut(), to, values)
    }

    /// Brings the batch to the backend.
    fn upload_batch(&mut self) -> BatchRows {
        let (buffers, batch) = (&self.plan.slots[self.slot].batch, &self.batch);
        match buffers.embeddings {
            None => upload(self.backend.as_mut(), buffers.ids, &batch.ids),
            // Each token finds its embedding in its own row; a prompt's rows are not in the table.
            Some(embeddings) => {
                let rows: Vec<usize> = batch.ids.iter().map(|&id| id.max(0) as usize).collect();
                self.backend.fetch_rows(self.plan.frozen.word, &rows, embeddings.first_rows(rows.len()));
                let ids: Vec<i32> = batch.ids.iter().enumerate().map(|(row, &id)| if id < 0 { id } else { row as i32 }).collect();
                upload(self.backend.as_mut(), buffers.ids, &ids)
            }
        };
        let mut upload = |to: View, values: &[i32]| upload(self.backend.as_mut(), to, values);
        let positions = upload(buffers.positions, &batch.positions);
        upload(buffers.types, &batch.types);
        upload(buffers.readout_rows, &batch.readout_rows);
        upload(buffers.groups, &batch.groups);
        if self.plan.heads[batch.head].vocabulary.is_some() {
            upload(buffers.targets, &batch.row_targets);
        }
        let readout_positions = if self.plan.rotary.is_some() { batch.readout_positions.as_slice() } else { &[] };
        let positions = [positions, upload(buffers.readout_positions, readout_positions)];
        let separators = (self.spec.mask != MaskKind::Full).then(|| upload(buffers.separators, &batch.separators));
        let mut rows = |views: &RowViews, arrays: &RowArrays| Rows {
            ordinals: upload(views.ordinals, &arrays.ordinals),
            tokens: upload(views.tokens, &arrays.tokens),
            offsets: upload(views.offsets, &arrays.offsets),
            count: arrays.count(),
            longest: arrays.longest(),
        };
        BatchRows {
            all: rows(&buffers.all, &batch.all),
            readout: rows(&buffers.readout, &batch.readout),
            positions,
            separators,
            groups: buffers.groups.first_rows(batch.groups.len() / 4),
            cache: None,
        }
    }

    /// Fills the table of rotations.
    fn write_rotations(&mut self) {
        let (Some(table), Positions::Rotary(rotary)) = (self.plan.rotary, &self.spec.positions) else { return };
        for position in 0..table.rows {
            let angles: Vec<f64> = rotary.angles(position).collect();
            self.backend.write(table.row_range(position, 1), &numbers::to_bytes(&angles, table.dtype));
        }
    }

    /// The mask of a site in the running step; none in evaluation.
    fn mask(&self, mode: Mode, rate: f64, site: Site, layer: usize) -> Option<Dropout> {
        let key = stream_key(self.options.seed, self.step, site, layer);
        match (mode, site) {
            (Mode::Evaluate, _) => None,
            (Mode::Train, Site::AttentionProbability) => Dropout::of_probabilities(rate, key),
            (Mode::Train, _) => Dropout::new(rate, key),
        }
    }

    fn hidden_mask(&self, mode: Mode, site: Site, layer: usize) -> Option<Dropout> {
        let in_blocks = matches!(site, Site::Embedding | Site::AttentionOutput | Site::FeedForwardOutput);
        let rate = if in_blocks && !self.spec.block_dropout { 0.0 } else { self.options.hidden_dropout };
        self.mask(mode, rate, site, layer)
    }

    /// Forward of model and head on the batches that are loaded, layer by layer; in training the head's backward too, as its
    /// buffers serve one micro-batch after the other.
    fn run_forward(&mut self, mode: Mode, group: &[BatchRows]) {
        self.scoped(Scope::Forward, |engine| {
            engine.refresh_prefix();
            engine.scoped(Scope::Embedding, |engine| engine.for_each(group, |engine, rows| engine.forward_embeddings(mode, rows)));
            let last = engine.spec.layers - 1;
            for layer in 0..last {
                engine.scoped(Scope::Layer(layer), |engine| {
                    engine.bring_layer(layer);
                    engine.for_each(group, |engine, rows| engine.forward_layer(mode, rows, layer));
                });
            }
            engine.bring_layer(last);
            engine.for_each(group, |engine, rows| {
                engine.scoped(Scope::Layer(last), |engine| engine.forward_layer(mode, rows, last));
                engine.scoped(Scope::Head, |engine| {
                    engine.forward_head(mode, rows);
                    if mode == Mode::Train {
                        engine.backward_head(rows);
                    }
                });
            });
        });
    }

    /// Runs for each micro-batch of a group, whose slot is the one at hand meanwhile.
    fn for_each<R>(&mut self, group: &[BatchRows], mut run: impl FnMut(&mut Engine, &BatchRows) -> R) -> Vec<R> {
        let of_one = |(slot, rows): (usize, &BatchRows)| {
            self.slot = slot;
            run(self, rows)
        };
        group.iter().enumerate().map(of_one).collect()
    }

    /// What the micro-batch at hand has of its own.
    fn here(&self) -> &Slot {
        &self.plan.slots[self.slot]
    }

    /// What runs belongs to a scope, for those who measure or profile.
    fn scoped<R>(&mut self, scope: Scope, run: impl FnOnce(&mut Engine) -> R) -> R {
        self.backend.enter(scope);
        let result = run(self);
        self.backend.leave();
        result
    }
}

/// Brings integers to the backend; the part of `to` that holds them.
fn upload(backend: &mut dyn Backend, to: View, values: &[i32]) -> View {
    let to = to.reshape(1, to.len()).col_range(0, values.len());
    backend.write(to, bytemuck::cast_slice(values));
    to
}
