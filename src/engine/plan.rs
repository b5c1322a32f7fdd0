//! The memory plan: a pure function of specification, element sizes, options and capacity. It decides every buffer of
//! a run as an offset into one arena.
//!
//! What is kept for the backward, a layer and token (H hidden, F ffn, A heads): Q, K, V; the attention's output and
//! log-sum-exp; two normalised inputs with their 1/deviation; the up-projection's output. No linear layer keeps its
//! input (frozen weights have no gradients) and a norm's or activation's output is made again from what it keeps.
//! Layers below the lowest prefix keep nothing; the lowest keeps no K and V, and none of them is kept where no
//! backward runs.

use super::frozen::Frozen;
use super::generate::CacheBuffers;
use super::layout::{Bytes, Layout, Region};
use super::options::{Capacity, EngineOptions};
use super::relative::RelativeBuffers;
use super::trainable::Trainables;
use super::vocabulary::VocabularyBuffers;
use crate::backend::{Backend, DType, Precision, ScratchNeed, View};
use crate::checkpoint::FrozenModel;
use crate::data::Grouping;
use crate::model::{MaskKind, NormPlace, Output, Pooling, Positions, Specification};
use anyhow::Result;
use std::fmt;

/// Token counts are rounded up to a multiple of this, so that shapes of large products recur.
const TOKEN_GRANULE: usize = 128;

#[derive(Clone, Copy, Debug)]
pub struct NormBuffers {
    pub normalized: View,
    pub rstd: View,
}

/// One layer's activations. `query` and what follows it have as many rows as the layer has queries: the head's rows
/// in the last layer, where only these are computed; else all tokens.
#[derive(Clone, Copy, Debug)]
pub struct LayerBuffers {
    /// Q, K and V side by side, where they are one buffer.
    pub query_key_value: Option<View>,
    pub query: View,
    pub key: View,
    pub value: View,
    pub attention: View,
    pub log_sum_exp: View,
    pub attention_norm: NormBuffers,
    pub up: View,
    pub feed_forward_norm: NormBuffers,
}

/// What the forward needs and nobody keeps.
pub struct ForwardScratch {
    /// Inputs of branches, in turn.
    pub hidden: [View; 2],
    /// The residual stream, where it is not the branches' input (pre-norm).
    pub stream: Option<[View; 2]>,
    /// Embeddings, where they are narrower than the hidden size.
    pub embedded: Option<[View; 2]>,
    pub embedding_norm: NormBuffers,
    pub branch: View,
    pub feed_forward: View,
    /// Rows of the last layer's input that the head's queries stand on: hidden and stream.
    pub tail: Option<[View; 2]>,
}

pub struct BackwardScratch {
    /// Gradient of a layer's input over all tokens.
    pub hidden: View,
    /// Gradient of the residual stream (pre-norm): over all tokens, and over the head's rows.
    pub stream: Option<[View; 2]>,
    /// Gradient of a branch where dropout makes it differ from the sum's.
    pub branch: View,
    pub feed_forward: View,
    pub attention: View,
    pub delta: View,
    pub query_key_value: View,
    /// Of the last layer, where queries are fewer than keys: Q, and K and V.
    pub tail: Option<[View; 2]>,
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
    /// Gradient of `input`.
    pub d_input: View,
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
}

pub struct Plan {
    pub capacity: Capacity,
    pub regions: Vec<Region>,
    pub total: usize,
    /// Bytes of frozen matrices that are read where their files are mapped.
    pub mapped: usize,
    /// The lowest layer that the backward reaches; the number of layers where none does.
    pub lowest: usize,
    /// Whether the last layer computes queries for the head's rows only.
    pub tail: bool,
    pub(super) frozen: Frozen,
    pub(super) trainables: Trainables,
    pub(super) batch: BatchBuffers,
    pub(super) layers: Vec<LayerBuffers>,
    pub(super) relative: Option<RelativeBuffers>,
    pub(super) forward: ForwardScratch,
    pub(super) backward: BackwardScratch,
    pub(super) head: HeadBuffers,
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
struct Sizes<'a> {
    spec: &'a Specification,
    precision: Precision,
    tokens: usize,
    rows: usize,
}

impl Sizes<'_> {
    fn norm(&self, layout: &mut Layout, rows: usize, width: usize) -> NormBuffers {
        NormBuffers { normalized: layout.matrix(rows, width, self.precision.activation), rstd: layout.vector(rows, self.precision.master) }
    }

    fn rotates(&self) -> bool {
        matches!(self.spec.positions, Positions::Rotary(_))
    }

    /// Q, K and V of all tokens as one buffer.
    fn joined(&self, layout: &mut Layout) -> (Option<View>, [View; 3]) {
        let (q, kv) = (self.spec.query_size(), self.spec.kv_size());
        let all = layout.matrix(self.tokens, q + 2 * kv, self.precision.activation);
        (Some(all), [all.col_range(0, q), all.col_range(q, kv), all.col_range(q + kv, kv)])
    }

    /// Q over `rows`; K and V are columns of `key_value`.
    fn apart(&self, layout: &mut Layout, rows: usize, key_value: View) -> (Option<View>, [View; 3]) {
        let kv = self.spec.kv_size();
        let query = layout.matrix(rows, self.spec.query_size(), self.precision.activation);
        (None, [query, key_value.col_range(0, kv), key_value.col_range(kv, kv)])
    }

    fn key_value(&self, layout: &mut Layout) -> View {
        layout.matrix(self.tokens, 2 * self.spec.kv_size(), self.precision.activation)
    }

    fn layer(&self, layout: &mut Layout, rows: usize, (query_key_value, [query, key, value]): (Option<View>, [View; 3])) -> LayerBuffers {
        let (spec, activation) = (self.spec, self.precision.activation);
        LayerBuffers {
            query_key_value,
            query,
            key,
            value,
            attention: layout.matrix(rows, spec.query_size(), activation),
            log_sum_exp: layout.matrix(rows, spec.heads, self.precision.master),
            attention_norm: self.norm(layout, rows, spec.hidden_size),
            up: layout.matrix(rows, spec.up_size(), activation),
            feed_forward_norm: self.norm(layout, rows, spec.hidden_size),
        }
    }
}

impl Plan {
    /// Lays the run out on a backend. Errors name what the checkpoint lacks.
    pub fn new(model: &FrozenModel, options: &EngineOptions, capacity: Capacity, backend: &dyn Backend) -> Result<Plan> {
        let spec = &model.spec;
        let precision = backend.precision();
        let master = precision.master;
        let tail = !options.head.reads_every_token();
        let tokens = capacity.tokens.next_multiple_of(TOKEN_GRANULE);
        let rows = if tail { capacity.rows } else { tokens };
        let sizes = Sizes { spec, precision, tokens, rows };
        let lowest = match (capacity.training, options.prefix.active_layers().first()) {
            (true, Some(&layer)) => layer,
            _ => spec.layers,
        };
        let (h, f, up, q, kv) = (spec.hidden_size, spec.ffn_size, spec.up_size(), spec.query_size(), spec.kv_size());
        let mut layout = Layout::default();

        let formula = format!("norms in {}, matrices of fp32 files as fp16; {} parameters in all", master.name(), spec.parameters());
        let frozen = layout.region("frozen weights", formula, |layout| Frozen::lay_out(model, backend, &options.head, layout))?;
        let trainables = Trainables::lay_out(spec, options, master, capacity.training, &mut layout);
        let formula = format!("int32: 5 x {tokens} tokens, 3 x {rows} head rows, {} groups", capacity.groups);
        let batch = layout.region("batch", formula, |layout| sizes.batch(layout, capacity));

        let relative = RelativeBuffers::lay_out(spec, options, capacity, precision.activation, &mut layout);
        let rotary = sizes.rotates().then(|| {
            // A text that becomes the prefix has positions from 0.
            let positions = (options.prefix.shift() + capacity.longest + capacity.generated).max(options.prefix.length);
            let formula = format!("{positions} positions x {} in {}", spec.head_dim, master.name());
            layout.region("rotations", formula, |layout| layout.matrix(positions, spec.head_dim, master))
        });

        let kept = spec.layers - lowest;
        let formula =
            format!("{kept} of {} layers, {tokens} tokens: up to (Q+2K+O+2H+U)={} activations", spec.layers, 2 * q + 2 * kv + 2 * h + up);
        let saved = layout.region("saved activations", formula, |layout| {
            (lowest..spec.layers)
                .map(|layer| {
                    let last = tail && layer + 1 == spec.layers;
                    sizes.saved_layer(layout, last, layer == lowest)
                })
                .collect::<Vec<_>>()
        });
        let formula = format!("{rows} rows x (2H + logits {} + pooled)", options.head.columns);
        let head = layout.region("head", formula, |layout| sizes.head(layout, options, capacity.sequences));
        let vocabulary = (options.head.output == Output::Vocabulary).then(|| {
            let chunk = match capacity.logit_rows {
                0 => VocabularyBuffers::chunk_rows(rows, spec.vocabulary, precision),
                given => given,
            };
            let formula = format!("chunks of {chunk} of {rows} rows x {} in {}", spec.vocabulary, master.name());
            let lay_out = |layout: &mut Layout| VocabularyBuffers::lay_out(layout, precision, rows, chunk, spec.vocabulary);
            layout.region("vocabulary logits", formula, lay_out)
        });
        let head = HeadBuffers { vocabulary, ..head };
        let cache = (capacity.generated > 0).then(|| {
            let length = capacity.longest + capacity.generated;
            let formula = format!("{} sequences x {length} tokens x {} layers x 2K, K={kv}", capacity.sequences, spec.layers);
            let lay_out = |layout: &mut Layout| CacheBuffers::lay_out(layout, spec, precision, capacity.sequences, length, tokens);
            layout.region("key/value cache", formula, lay_out)
        });

        let formula = format!("{tokens} tokens: forward or backward, whichever is larger (hidden {h}, ffn {f})");
        let (rotated, ((forward, transient), backward)) = layout.region("working memory", formula, |layout| {
            let rotated = spec.query_key_norm.then(|| [q, kv].map(|width| layout.matrix(tokens, width, precision.activation)));
            let either = layout.either(
                |layout| (sizes.forward(layout, tail), sizes.transient(layout, tail, lowest)),
                |layout| sizes.backward(layout, tail, kept > 0),
            );
            (rotated, either)
        });
        let layers = (0..spec.layers)
            .filter_map(|layer| match layer.checked_sub(lowest) {
                Some(index) => Some(saved[index].complete(transient.key_value)),
                None if tail && layer + 1 == spec.layers => transient.last,
                None => transient.full,
            })
            .collect();
        let need = ScratchNeed {
            longest: capacity.longest + capacity.generated + options.prefix.length,
            prefix_length: options.prefix.length,
            head_dim: spec.head_dim,
            relative: relative.is_some(),
            kv_size: kv,
            tokens,
            // To attention, what is not filled of the cache is sequences too.
            sequences: capacity.sequences * if capacity.generated > 0 { 2 } else { 1 },
            groups: capacity.groups,
            parameters: trainables.gradients.len(),
            widest: [h, f, up, q + 2 * kv, options.prefix.projection.unwrap_or(0), spec.embedding_size, options.head.columns]
                .into_iter()
                .max()
                .unwrap_or(0),
        };
        let bytes = backend.scratch_bytes(&need)?;
        let scratch = layout.region("backend scratch", backend.describe(), |layout| layout.vector(bytes.div_ceil(8), DType::F64));
        let report = layout.region("step report", "loss and gradient norm, two steps".into(), |layout| layout.matrix(2, 2, master));

        let (total, regions) = layout.finish();
        let mapped = frozen.mapped_bytes();
        Ok(Plan {
            capacity,
            regions,
            total,
            mapped,
            lowest,
            tail,
            frozen,
            trainables,
            batch,
            layers,
            relative,
            forward,
            backward,
            head,
            cache,
            rotary,
            rotated,
            report,
            scratch,
        })
    }
}

/// A kept layer whose keys and values may lie in working memory (the lowest prefix layer's).
struct SavedLayer {
    buffers: LayerBuffers,
    borrows_key_value: bool,
}

impl SavedLayer {
    fn complete(&self, key_value: View) -> LayerBuffers {
        let mut buffers = self.buffers;
        if self.borrows_key_value {
            let kv = key_value.cols / 2;
            (buffers.key, buffers.value) = (key_value.col_range(0, kv), key_value.col_range(kv, kv));
        }
        buffers
    }
}

struct Transient {
    full: Option<LayerBuffers>,
    last: Option<LayerBuffers>,
    key_value: View,
}

impl Sizes<'_> {
    fn batch(&self, layout: &mut Layout, capacity: Capacity) -> BatchBuffers {
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
        }
    }

    fn saved_layer(&self, layout: &mut Layout, last: bool, lowest: bool) -> SavedLayer {
        let rows = if last { self.rows } else { self.tokens };
        let projections = if lowest {
            let query = layout.matrix(rows, self.spec.query_size(), self.precision.activation);
            (None, [query; 3])
        } else if last {
            let key_value = self.key_value(layout);
            self.apart(layout, rows, key_value)
        } else {
            self.joined(layout)
        };
        SavedLayer { buffers: self.layer(layout, rows, projections), borrows_key_value: lowest }
    }

    /// Buffers that the layers below `lowest` use in turn, and the lowest prefix layer's keys and values.
    fn transient(&self, layout: &mut Layout, tail: bool, lowest: usize) -> Transient {
        let key_value = self.key_value(layout);
        let last = tail && lowest == self.spec.layers;
        let full = (lowest > usize::from(last)).then(|| {
            let projections = self.joined(layout);
            self.layer(layout, self.tokens, projections)
        });
        let last = last.then(|| {
            let projections = self.apart(layout, self.rows, key_value);
            self.layer(layout, self.rows, projections)
        });
        Transient { full, last, key_value }
    }

    fn forward(&self, layout: &mut Layout, tail: bool) -> ForwardScratch {
        let (spec, activation) = (self.spec, self.precision.activation);
        let (tokens, rows, h) = (self.tokens, self.rows, spec.hidden_size);
        let mut pair = |rows, width| [layout.matrix(rows, width, activation), layout.matrix(rows, width, activation)];
        let hidden = pair(tokens, h);
        let stream = (spec.norm_place == NormPlace::Pre).then(|| pair(tokens, h));
        let embedded = (spec.embedding_size != h).then(|| pair(tokens, spec.embedding_size));
        let tail = tail.then(|| pair(rows, h));
        ForwardScratch {
            hidden,
            stream,
            embedded,
            embedding_norm: self.norm(layout, tokens, h.max(spec.embedding_size)),
            branch: layout.matrix(tokens, h, activation),
            feed_forward: layout.matrix(tokens, spec.ffn_size, activation),
            tail,
        }
    }

    fn backward(&self, layout: &mut Layout, tail: bool, runs: bool) -> BackwardScratch {
        let (spec, activation) = (self.spec, self.precision.activation);
        // Without a backward the buffers are empty.
        let (tokens, rows) = if runs { (self.tokens, self.rows) } else { (0, 0) };
        let (h, q, kv) = (spec.hidden_size, spec.query_size(), spec.kv_size());
        let stream =
            (spec.norm_place == NormPlace::Pre).then(|| [layout.matrix(tokens, h, activation), layout.matrix(rows, h, activation)]);
        BackwardScratch {
            hidden: layout.matrix(tokens, h, activation),
            stream,
            branch: layout.matrix(tokens, h, activation),
            feed_forward: layout.matrix(tokens, spec.ffn_size, activation),
            attention: layout.matrix(tokens, q, activation),
            delta: layout.matrix(tokens, spec.heads, self.precision.master),
            query_key_value: layout.matrix(tokens, q + 2 * kv, activation),
            tail: tail.then(|| [layout.matrix(rows, q, activation), layout.matrix(tokens, 2 * kv, activation)]),
        }
    }

    fn head(&self, layout: &mut Layout, options: &EngineOptions, sequences: usize) -> HeadBuffers {
        let scored = if options.head.grouping == Grouping::PerSequence { sequences } else { self.rows };
        let Precision { activation, master } = self.precision;
        let (rows, h) = (self.rows, self.spec.hidden_size);
        let pools = options.head.pooling != Pooling::None;
        HeadBuffers {
            input: layout.matrix(rows, h, activation),
            pooled: pools.then(|| [layout.matrix(rows, h, activation), layout.matrix(rows, h, activation)]),
            logits: layout.matrix(scored, options.head.columns, master),
            d_logits: layout.matrix(scored, options.head.columns, master),
            vocabulary: None,
            d_pooled: pools.then(|| layout.matrix(rows, h, activation)),
            norm: (options.head.pooling == Pooling::Masked).then(|| self.norm(layout, rows, h)),
            d_input: layout.matrix(rows, h, activation),
        }
    }
}

impl fmt::Display for Plan {
    /// The plan as a table: one line a region, then what the files add.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for region in &self.regions {
            writeln!(formatter, "  {:<18} {:>10}  {}", region.name, Bytes(region.bytes).to_string(), region.formula)?;
        }
        writeln!(formatter, "  {:<18} {:>10}  one allocation", "arena", Bytes(self.total).to_string())?;
        write!(formatter, "  {:<18} {:>10}  frozen matrices read in the checkpoint's files", "mapped", Bytes(self.mapped).to_string())
    }
}
