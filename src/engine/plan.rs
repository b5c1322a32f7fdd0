//! The memory plan: a pure function of specification, element sizes, options and capacity. It decides every buffer of
//! a run as an offset into one arena.

use super::activations::{LayerBuffers, LayerInput, NormBuffers, Reach, assemble};
use super::frozen::Frozen;
use super::generate::CacheBuffers;
use super::layout::{ALIGNMENT, Layout, Region};
use super::offload::{Offload, Places};
use super::options::{Capacity, EngineOptions, Recompute, Residency};
use super::prompt::PromptBuffers;
use super::relative::RelativeBuffers;
use super::trainable::Trainables;
use super::vocabulary::VocabularyBuffers;
use crate::backend::{DType, HOST, Precision, ScratchNeed, Sizing, View};
use crate::bytes::Bytes;
use crate::checkpoint::{FrozenModel, WeightFormat};
use crate::data::Grouping;
use crate::model::{HeadSpec, MaskKind, Output, Pooling, Positions, Specification};
use anyhow::{Result, ensure};
use std::fmt;

/// Token counts are rounded up to a multiple of this, so that shapes of large products recur.
const TOKEN_GRANULE: usize = 128;

/// What a layer's forward needs and nobody keeps.
pub struct ForwardScratch {
    /// A layer's input where nobody keeps it.
    pub hidden: View,
    /// What the second branch reads.
    pub middle: View,
    /// The residual stream between the branches, where it is not what they read (pre-norm).
    pub middle_stream: Option<View>,
    pub branch: View,
    pub feed_forward: View,
    /// Rows of the last layer's input that the head's queries stand on: hidden and stream.
    pub tail: Option<[View; 2]>,
}

/// What the embeddings need.
pub struct EntryScratch {
    /// Embeddings, where they are narrower than the hidden size.
    pub embedded: Option<View>,
    /// What the first layer's norm keeps, where it does not directly follow the sum of the embeddings.
    pub norm: Option<NormBuffers>,
}

/// What a layer's backward needs.
pub struct BackwardScratch {
    /// Gradient of a branch where dropout makes it differ from the sum's.
    pub branch: View,
    pub feed_forward: View,
    pub attention: View,
    pub delta: View,
    pub query_key_value: View,
    /// Of the last layer, where queries are fewer than keys: Q, and K and V.
    pub tail: Option<[View; 2]>,
}

/// What goes up from layer to layer where no layer keeps it: its input, where other micro-batches go through the layer
/// before the next one comes, and the residual stream (pre-norm).
struct ForwardStream {
    hidden: Option<View>,
    stream: Option<View>,
}

/// What goes down from layer to layer.
#[derive(Clone, Copy)]
pub struct BackwardStream {
    /// Gradient of a layer's input over all tokens.
    pub hidden: View,
    /// Gradient of the residual stream (pre-norm): over all tokens, and over the head's rows.
    pub stream: Option<[View; 2]>,
}

/// The head's buffers, over its rows.
pub struct HeadBuffers {
    /// What the last norm puts out; dropout acts in place.
    pub input: View,
    /// Pooler's or dense layer's sum, and its tanh (with dropout).
    pub pooled: Option<[View; 2]>,
    /// In master precision; of scored sequences a row each.
    pub logits: View,
    pub d_logits: View,
    /// Where rows predict tokens.
    pub vocabulary: Option<VocabularyBuffers>,
    pub d_pooled: Option<View>,
    /// Of a masked-language-model head's norm.
    pub norm: Option<NormBuffers>,
}

/// Rows of a batch, int32.
#[derive(Clone, Copy)]
pub struct RowViews {
    pub ordinals: View,
    pub tokens: View,
    pub offsets: View,
}

pub struct BatchBuffers {
    pub ids: View,
    pub positions: View,
    pub types: View,
    pub all: RowViews,
    pub readout: RowViews,
    pub readout_rows: View,
    /// Where queries are rotated.
    pub readout_positions: View,
    /// One a sequence, where the model has a mask.
    pub separators: View,
    pub groups: View,
    /// Where rows predict tokens.
    pub targets: View,
    /// The tokens' embeddings, where their table stays in host memory.
    pub embeddings: Option<View>,
}

/// What each of the micro-batches that go through a layer together has of its own.
pub struct Slot {
    pub batch: BatchBuffers,
    pub layers: Vec<LayerBuffers>,
    pub inputs: Vec<LayerInput>,
    pub backward_stream: BackwardStream,
    /// Gradient of the head's input.
    pub d_input: View,
    /// Where a prompt is trained.
    pub prompt: Option<PromptBuffers>,
}

pub struct Plan {
    pub capacity: Capacity,
    pub regions: Vec<Region>,
    pub total: usize,
    /// Bytes of frozen matrices that are read where their files are mapped.
    pub mapped: usize,
    /// Bytes of host memory that streamed layers come from, and that offloaded activations go to.
    pub host: usize,
    pub reach: Reach,
    pub(super) frozen: Frozen,
    pub(super) trainables: Trainables,
    pub(super) slots: Vec<Slot>,
    pub(super) offload: Option<Offload>,
    /// What the norm of a layer's input keeps where that input is made again.
    pub(super) input_norm: Option<NormBuffers>,
    pub(super) relative: Option<RelativeBuffers>,
    pub(super) forward: ForwardScratch,
    pub(super) entry: EntryScratch,
    pub(super) backward: BackwardScratch,
    /// One a head, in the same memory.
    pub(super) heads: Vec<HeadBuffers>,
    /// Keys and values of generated text.
    pub(super) cache: Option<CacheBuffers>,
    /// \[positions, D\]: cosines and sines by which queries and keys are rotated.
    pub(super) rotary: Option<View>,
    /// Rotated queries and keys, where a norm in front of the rotation makes that the raw ones are kept.
    pub(super) rotated: Option<[View; 2]>,
    /// Loss and squared gradient norm of two steps in turn.
    pub(super) report: View,
    pub(super) scratch: View,
}

/// Shapes and element types, once more in short names for the formulas.
pub(super) struct Sizes<'a> {
    pub spec: &'a Specification,
    pub precision: Precision,
    /// Of the largest batch, and those that the head reads.
    pub tokens: usize,
    pub rows: usize,
}

impl Sizes<'_> {
    pub fn norm(&self, layout: &mut Layout, rows: usize, width: usize) -> NormBuffers {
        NormBuffers { normalized: layout.matrix(rows, width, self.precision.activation), rstd: layout.vector(rows, self.precision.master) }
    }

    fn rotates(&self) -> bool {
        matches!(self.spec.positions, Positions::Rotary(_))
    }
}

impl Plan {
    /// Lays the run out on a backend. Errors name what the checkpoint lacks.
    pub fn new(model: &FrozenModel, options: &EngineOptions, capacity: Capacity, backend: &dyn Sizing) -> Result<Plan> {
        let spec = &model.spec;
        let precision = backend.precision();
        let master = precision.master;
        let trained = options.heads.iter().all(HeadSpec::is_trained);
        ensure!(!options.heads.is_empty() && (trained || options.heads.len() == 1), "only trained heads can be several");
        let prompt = options.prefix.prompt();
        let capacity = options.prefix.widened(capacity);
        // Heads that read every token read none of a prompt's rows.
        let tail = !options.heads.iter().all(HeadSpec::reads_every_token) || prompt > 0;
        let tokens = capacity.tokens.next_multiple_of(TOKEN_GRANULE);
        let rows = if tail { capacity.rows } else { tokens };
        let sizes = Sizes { spec, precision, tokens, rows };
        let lowest = match (capacity.training, options.prefix.active_layers().first()) {
            (true, Some(&layer)) => layer,
            (true, None) if prompt > 0 => 0,
            _ => spec.layers,
        };
        let (h, f, up, q, kv) = (spec.hidden_size, spec.ffn_size, spec.up_size(), spec.query_size(), spec.kv_size());
        let mut layout = Layout::default();

        let kept = match options.weight_format {
            WeightFormat::Fp16 => "matrices of fp32 files as fp16",
            WeightFormat::Int8 => "the layers' matrices in int8 with a factor a row, others of fp32 files as fp16",
        };
        let formula = format!("norms in {}, {kept}; {} parameters in all", master.name(), spec.parameters());
        let weights = options.memory.weights;
        let mut frozen = layout.region("frozen weights", formula, |layout| Frozen::lay_out(model, backend, options, layout))?;
        if weights != Residency::Resident {
            let formula = format!("two of {} layers at a time", spec.weight_sets());
            layout.region("streamed layers", formula, |layout| frozen.stream(layout));
        }
        if options.weight_format == WeightFormat::Int8 {
            let formula = format!("16 bits of one matrix at a time, of {} elements at most", frozen.largest_quantised());
            layout.region("dequantised weights", formula, |layout| frozen.widen(layout));
        }
        let trainables = Trainables::lay_out(spec, options, master, capacity.training, &mut layout);
        let together = if capacity.training { options.memory.together.max(1) } else { 1 };
        let times = if together > 1 { format!("{together} x ") } else { String::new() };
        let formula = format!("int32: {times}(5 x {tokens} tokens, 3 x {rows} head rows, {} groups)", capacity.groups);
        let formula = formula + if frozen.word.buffer == HOST { ", and the tokens' embeddings" } else { "" };
        let predicts = options.heads.iter().any(|head| head.output == Output::Vocabulary);
        let batch = |layout: &mut Layout| sizes.batch(layout, capacity, predicts, frozen.word);
        let batches: Vec<BatchBuffers> = layout.region("batch", formula, |layout| (0..together).map(|_| batch(layout)).collect());

        let relative = RelativeBuffers::lay_out(spec, options, capacity, precision.activation, &mut layout);
        let rotary = sizes.rotates().then(|| {
            // A text that becomes the prefix has positions from 0.
            let positions = (options.prefix.shift() - prompt + capacity.longest + capacity.generated).max(options.prefix.length);
            let formula = format!("{positions} positions x {} in {}", spec.head_dim, master.name());
            layout.region("rotations", formula, |layout| layout.matrix(positions, spec.head_dim, master))
        });

        let kept = spec.layers - lowest;
        let recompute = if kept > 0 { options.memory.recompute } else { Recompute::None };
        let offload = options.memory.offload && recompute == Recompute::Layer;
        let reach = Reach { layers: spec.layers, lowest, prompt: prompt > 0, tail, recompute, offload, together };
        let (symbols, values) = match recompute {
            Recompute::None => ("Q+2K+O+2H+U", 2 * q + 2 * kv + 2 * h + up),
            Recompute::UpProjection => ("Q+2K+O+2H", 2 * q + 2 * kv + 2 * h),
            Recompute::Layer => ("H", h),
        };
        let formula = match offload {
            true => format!("{times}{tokens} tokens: inputs (H)={values} of layers in turn, of which {kept} wait in host memory"),
            false => format!("{kept} of {} layers, {times}{tokens} tokens: up to ({symbols})={values} activations", spec.layers),
        };
        let (places, saved): (Vec<Option<Places>>, Vec<_>) = layout.region("saved activations", formula, |layout| {
            let of_one = |_| {
                let places = sizes.places(layout, reach);
                let saved = sizes.saved(layout, reach, places.as_ref());
                (places, saved)
            };
            (0..together).map(of_one).unzip()
        });
        let remade = match recompute {
            Recompute::None => sizes.remade(&mut layout, reach),
            _ => {
                let formula = format!("of one layer at a time, {tokens} tokens");
                layout.region("remade activations", formula, |layout| sizes.remade(layout, reach))
            }
        };
        let columns = options.heads.iter().map(|head| head.columns).max().unwrap_or(0);
        let formula = format!("{rows} rows x (2H + logits {columns} + pooled)");
        let (mut heads, d_inputs) = layout.region("head", formula, |layout| {
            let d_inputs: Vec<View> = (0..together).map(|_| layout.matrix(rows, h, precision.activation)).collect();
            (layout.one_of(&options.heads, |layout, head| sizes.head(layout, head, capacity.sequences)), d_inputs)
        });
        let vocabulary = predicts.then(|| {
            let chunk = match capacity.logit_rows {
                0 => VocabularyBuffers::chunk_rows(rows, spec.vocabulary, precision),
                given => given,
            };
            let formula = format!("chunks of {chunk} of {rows} rows x {} in {}", spec.vocabulary, master.name());
            let lay_out = |layout: &mut Layout| VocabularyBuffers::lay_out(layout, precision, rows, chunk, spec.vocabulary);
            layout.region("vocabulary logits", formula, lay_out)
        });
        heads.iter_mut().for_each(|head| head.vocabulary = vocabulary);
        let prompts = sizes.prompts(&mut layout, reach);
        let cache = (capacity.generated > 0).then(|| {
            let length = capacity.longest + capacity.generated;
            let formula = format!("{} sequences x {length} tokens x {} layers x 2K, K={kv}", capacity.sequences, spec.layers);
            let lay_out = |layout: &mut Layout| CacheBuffers::lay_out(layout, spec, precision, capacity.sequences, length, tokens);
            layout.region("key/value cache", formula, lay_out)
        });

        // Two pairs of sets: what a layer needs in its forward, and in its backward; what lives from layer to layer in the
        // forward, and in the backward. A layer that is made again needs the first beside the last.
        let formula = format!("{tokens} tokens: forward or backward, whichever is larger (hidden {h}, ffn {f})");
        let (rotated, layer_sets, stream_sets) = layout.region("working memory", formula, |layout| {
            let rotated = spec.query_key_norm.then(|| [q, kv].map(|width| layout.matrix(tokens, width, precision.activation)));
            let layer_sets = layout.either(
                |layout| (sizes.forward(layout, tail), sizes.transient(layout, reach)),
                |layout| sizes.backward(layout, tail, kept > 0),
            );
            let stream_sets = layout.either(
                |layout| {
                    let streams: Vec<ForwardStream> = (0..together).map(|_| sizes.forward_stream(layout, reach)).collect();
                    (streams, sizes.entry(layout))
                },
                |layout| (0..together).map(|_| sizes.backward_stream(layout, kept > 0)).collect::<Vec<_>>(),
            );
            (rotated, layer_sets, stream_sets)
        });
        let ((forward, transient), backward) = layer_sets;
        let ((streams, entry), backward_streams) = stream_sets;
        let mut host = Layout::starting_at(frozen.host);
        let offload = Offload::lay_out(&places, reach, &mut host);
        let parts = batches.into_iter().zip(&saved).zip(streams).zip(backward_streams).zip(d_inputs).zip(prompts);
        let slots = parts.map(|(((((batch, saved), ForwardStream { hidden, stream }), backward_stream), d_input), prompt)| {
            let (layers, inputs) = assemble(reach, saved, [&remade, &transient], hidden.unwrap_or(forward.hidden), stream);
            Slot { batch, layers, inputs, backward_stream, d_input, prompt }
        });
        let slots = slots.collect();
        let need = ScratchNeed {
            longest: capacity.longest + capacity.generated + options.prefix.in_attention(),
            prefix_length: options.prefix.in_attention(),
            prefix_dropout: options.prefix.dropout > 0.0,
            head_dim: spec.head_dim,
            relative: relative.is_some(),
            kv_size: kv,
            tokens,
            // To attention, what is not filled of the cache is sequences too.
            sequences: capacity.sequences * if capacity.generated > 0 { 2 } else { 1 },
            groups: capacity.groups,
            parameters: trainables.gradients.len(),
            widest: [h, f, up, q + 2 * kv, options.prefix.projection.unwrap_or(0), spec.embedding_size, columns]
                .into_iter()
                .max()
                .unwrap_or(0),
        };
        let bytes = backend.scratch_bytes(&need)?;
        let report = layout.region("step report", "loss and gradient norm, two steps".into(), |layout| layout.matrix(2, 2, master));
        // Last, so that plans of one arena have it in one place: see [`Plan::cover`].
        let scratch = layout.region("backend scratch", backend.describe_scratch(), |layout| layout.vector(bytes.div_ceil(8), DType::F64));

        let (total, regions) = layout.finish();
        let mapped = frozen.mapped_bytes();
        Ok(Plan {
            capacity,
            regions,
            total,
            mapped,
            host: host.finish().0,
            reach,
            frozen,
            trainables,
            slots,
            offload,
            input_norm: remade.norm(),
            relative,
            forward,
            entry,
            backward,
            heads,
            cache,
            rotary,
            rotated,
            report,
            scratch,
        })
    }
}

impl Plan {
    /// Makes room for another plan over the same weights, which then may take turns with this one; no room for one over others.
    pub(super) fn cover(&mut self, other: &Plan) {
        if !self.frozen_as(other) {
            return;
        }
        let count = self.scratch.len().max(other.scratch.len());
        let offset = self.scratch.offset.max(other.scratch.offset);
        self.scratch = View { offset, cols: count, stride: count, ..self.scratch };
        (self.total, self.host) = (self.scratch.end().next_multiple_of(ALIGNMENT), self.host.max(other.host));
    }

    /// Puts this plan in the memory of one that covers it.
    pub(super) fn in_arena_of(mut self, covering: &Plan) -> Result<Plan> {
        ensure!(self.frozen_as(covering), "other weights are wanted than are there");
        let fits = self.scratch.offset <= covering.scratch.offset && self.scratch.len() <= covering.scratch.len();
        ensure!(fits && self.host <= covering.host, "the memory that was allocated has no room for this plan");
        (self.scratch, self.total, self.host) = (covering.scratch, covering.total, covering.host);
        Ok(self)
    }

    /// Whether the same weights lie in the same places.
    fn frozen_as(&self, other: &Plan) -> bool {
        self.regions[0].bytes == other.regions[0].bytes && self.frozen.same_places(&other.frozen)
    }

    /// Everything between the frozen weights and the scratch.
    pub(super) fn unfrozen(&self) -> View {
        let (dtype, own) = (self.report.dtype, &self.regions[1..self.regions.len() - 1]);
        let count = own.iter().map(|region| region.bytes).sum::<usize>() / dtype.size();
        View { offset: self.regions[0].bytes, rows: 1, cols: count, stride: count, dtype, ..self.scratch }
    }
}

impl Sizes<'_> {
    fn batch(&self, layout: &mut Layout, capacity: Capacity, predicts: bool, word: View) -> BatchBuffers {
        let integers = |layout: &mut Layout, count| layout.vector(count, DType::I32);
        let rows = |layout: &mut Layout, count| RowViews {
            ordinals: integers(layout, count),
            tokens: integers(layout, count),
            offsets: integers(layout, capacity.sequences + 1),
        };
        BatchBuffers {
            ids: integers(layout, self.tokens),
            positions: integers(layout, self.tokens),
            types: integers(layout, self.tokens),
            all: rows(layout, self.tokens),
            readout: rows(layout, self.rows),
            readout_rows: integers(layout, self.rows),
            readout_positions: integers(layout, if self.rotates() { self.rows } else { 0 }),
            separators: integers(layout, if self.spec.mask == MaskKind::Full { 0 } else { capacity.sequences }),
            groups: layout.matrix(capacity.groups, 4, DType::I32),
            targets: integers(layout, if predicts { self.rows } else { 0 }),
            embeddings: (word.buffer == HOST).then(|| layout.matrix(self.tokens, word.cols, word.dtype)),
        }
    }

    /// A layer's working memory.
    fn forward(&self, layout: &mut Layout, tail: bool) -> ForwardScratch {
        let (spec, activation) = (self.spec, self.precision.activation);
        let (tokens, rows, h) = (self.tokens, self.rows, spec.hidden_size);
        ForwardScratch {
            hidden: layout.matrix(tokens, h, activation),
            middle: layout.matrix(tokens, h, activation),
            middle_stream: self.is_pre_norm().then(|| layout.matrix(tokens, h, activation)),
            branch: layout.matrix(tokens, h, activation),
            feed_forward: layout.matrix(tokens, spec.ffn_size, activation),
            tail: tail.then(|| [layout.matrix(rows, h, activation), layout.matrix(rows, h, activation)]),
        }
    }

    fn forward_stream(&self, layout: &mut Layout, reach: Reach) -> ForwardStream {
        let mut matrix = |rows| layout.matrix(rows, self.spec.hidden_size, self.precision.activation);
        let kept = reach.remakes_layers() && reach.lowest == 0;
        let hidden = (reach.together > 1).then(|| matrix(self.tokens));
        let stream = self.is_pre_norm().then(|| matrix(if kept { 0 } else { self.tokens }));
        ForwardStream { hidden, stream }
    }

    /// What the embeddings need.
    fn entry(&self, layout: &mut Layout) -> EntryScratch {
        let (spec, activation) = (self.spec, self.precision.activation);
        let (tokens, h, e) = (self.tokens, spec.hidden_size, spec.embedding_size);
        let embedded = (e != h).then(|| layout.matrix(tokens, e, activation));
        let apart = self.is_pre_norm() && (e != h || spec.embedding_norm);
        EntryScratch { embedded, norm: apart.then(|| self.norm(layout, tokens, h)) }
    }

    fn backward(&self, layout: &mut Layout, tail: bool, runs: bool) -> BackwardScratch {
        let (spec, activation) = (self.spec, self.precision.activation);
        // Without a backward the buffers are empty.
        let (tokens, rows) = if runs { (self.tokens, self.rows) } else { (0, 0) };
        let (h, q, kv) = (spec.hidden_size, spec.query_size(), spec.kv_size());
        BackwardScratch {
            branch: layout.matrix(tokens, h, activation),
            feed_forward: layout.matrix(tokens, spec.ffn_size, activation),
            attention: layout.matrix(tokens, q, activation),
            delta: layout.matrix(tokens, spec.heads, self.precision.master),
            query_key_value: layout.matrix(tokens, q + 2 * kv, activation),
            tail: tail.then(|| [layout.matrix(rows, q, activation), layout.matrix(tokens, 2 * kv, activation)]),
        }
    }

    fn backward_stream(&self, layout: &mut Layout, runs: bool) -> BackwardStream {
        let (h, activation) = (self.spec.hidden_size, self.precision.activation);
        let (tokens, rows) = if runs { (self.tokens, self.rows) } else { (0, 0) };
        BackwardStream {
            hidden: layout.matrix(tokens, h, activation),
            stream: self.is_pre_norm().then(|| [layout.matrix(tokens, h, activation), layout.matrix(rows, h, activation)]),
        }
    }

    fn head(&self, layout: &mut Layout, head: &HeadSpec, sequences: usize) -> HeadBuffers {
        let scored = if head.grouping == Grouping::PerSequence { sequences } else { self.rows };
        let Precision { activation, master } = self.precision;
        let (rows, h) = (self.rows, self.spec.hidden_size);
        let pools = head.pooling != Pooling::None;
        HeadBuffers {
            input: layout.matrix(rows, h, activation),
            pooled: pools.then(|| [layout.matrix(rows, h, activation), layout.matrix(rows, h, activation)]),
            logits: layout.matrix(scored, head.columns, master),
            d_logits: layout.matrix(scored, head.columns, master),
            vocabulary: None,
            d_pooled: pools.then(|| layout.matrix(rows, h, activation)),
            norm: (head.pooling == Pooling::Masked).then(|| self.norm(layout, rows, h)),
        }
    }
}

impl fmt::Display for Plan {
    /// The plan as a table: one line a region, then what the files add.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for region in &self.regions {
            writeln!(formatter, "  {:<18} {:>10}  {}", region.name, Bytes(region.bytes).to_string(), region.formula)?;
            for (name, bytes) in &region.parts {
                writeln!(formatter, "    {name:<26} {:>10}", Bytes(*bytes).to_string())?;
            }
        }
        let others = self.total - self.regions.iter().map(|region| region.bytes).sum::<usize>();
        if others > 0 {
            writeln!(formatter, "  {:<18} {:>10}  for larger ones that take turns with it", "room", Bytes(others).to_string())?;
        }
        writeln!(formatter, "  {:<18} {:>10}  one allocation", "arena", Bytes(self.total).to_string())?;
        if self.host > 0 {
            let host = Bytes(self.host).to_string();
            writeln!(formatter, "  {:<18} {host:>10}  host memory of streamed layers and offloaded activations, one allocation", "host")?;
        }
        write!(formatter, "  {:<18} {:>10}  frozen matrices read in the checkpoint's files", "mapped", Bytes(self.mapped).to_string())
    }
}
