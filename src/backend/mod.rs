//! The seam between the engine and the hardware: some thirty fused operations on views.
//!
//! A backend owns buffers and a queue. Every operation takes views, returns nothing and may run later; results are
//! visible after [`Backend::read`], which waits. Operations allocate nothing: what they need beside their operands is
//! a view in their arguments or in the backend's own scratch, which the memory plan counts.
//!
//! Shapes: T rows (packed tokens, or the rows that a head reads), H hidden, A heads, G key/value heads, D head dim,
//! P prefix length, B sequences; all row-major. Element types: activations, masters and 16-bit frozen weights as the
//! views say; every sum is accumulated in at least fp32, in an order that depends on shapes alone.

mod ahead;
mod instruments;
mod random;
mod view;

pub mod cpu;
pub mod cuda;
pub mod watch;

pub use ahead::{PAGE, read_ahead};
pub use instruments::{Instruments, Launched, Machine, Mark, Scope};
pub use random::{Dropout, MASK_ROUNDS, PROBABILITY_COLUMNS, ROUNDS, ROW_COLUMNS, Site, Stream, philox, stream_key};
pub use view::{ARENA, BufferId, DType, HOST, View};

use std::sync::Arc;

/// What a backend computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Hidden states and their gradients.
    pub activation: DType,
    /// Trainables, their gradients and their optimizer state; sums that are kept (log-sum-exp, 1/deviation).
    pub master: DType,
}

impl Precision {
    /// The type that a frozen matrix is kept in: the activations' where these have 16 bits, so that a product has
    /// operands of one type; else its file's own, fp32 rounded to fp16.
    pub fn frozen(self, file: DType) -> DType {
        match (self.activation, file) {
            (DType::F16 | DType::BF16, _) => self.activation,
            (_, DType::BF16) => DType::BF16,
            _ => DType::F16,
        }
    }
}

/// Pointwise functions. `GeluErf` is x/2 (1 + erf(x/√2)); `GeluTanh` its tanh approximation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    GeluErf,
    GeluTanh,
    Relu,
    Tanh,
    /// Of columns \[gate | up\], twice as many as come out: gate σ(gate) * up.
    SwiGlu,
}

impl Activation {
    /// Columns that go in for each that comes out.
    pub fn arity(self) -> usize {
        if self == Activation::SwiGlu { 2 } else { 1 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    LayerNorm,
    /// No mean is subtracted and there is no beta.
    RmsNorm,
}

/// Which sequence and which token of it a row is: what a dropout mask is drawn by. Both are int32 vectors of T.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Ordinal of the row's sequence in the optimizer step.
    pub ordinals: View,
    /// Index of the row's token in its sequence.
    pub tokens: View,
    /// Row offsets of the sequences (cu_seqlens), int32, B + 1 of them.
    pub offsets: View,
    pub count: usize,
    /// Rows of the sequence that has most.
    pub longest: usize,
}

impl Rows {
    pub fn sequences(&self) -> usize {
        self.offsets.cols - 1
    }
}

/// x\[t\] = word\[ids\[t\]\] (of a negative id prompt\[-1 - id\]) + position\[positions\[t\]\] + token_type\[types\[t\]\];
/// out = dropout(x), or where a norm follows dropout(norm(x)). Where the norm keeps the stream it stands behind the dropout.
pub struct Embed<'a> {
    pub word: View,
    pub position: Option<View>,
    pub token_type: Option<View>,
    pub ids: View,
    pub positions: View,
    pub types: View,
    /// \[P, width\] in master precision; without it ids are not negative.
    pub prompt: Option<View>,
    pub dropout: Option<(Dropout, &'a Rows)>,
    pub norm: Option<EmbedNorm>,
    pub out: View,
}

/// The norm behind the embeddings: normalized = (x - mean) * rstd; out = normalized * gamma + beta, computed from
/// `normalized` as it would be stored.
pub struct EmbedNorm {
    pub kind: NormKind,
    pub epsilon: f64,
    pub gamma: View,
    pub beta: Option<View>,
    /// The residual stream of a pre-norm model: stream = dropout(x), and out = norm(stream).
    pub stream: Option<View>,
    /// `normalized`, and `rstd` of one value a row, where somebody wants them.
    pub kept: Option<[View; 2]>,
}

/// sum = residual + dropout(branch); normalized = (sum - mean) * rstd; out = normalized * gamma + beta, computed from
/// `normalized` as it was stored. `sum` is kept only where the residual stream is not `out` itself (pre-norm); then
/// `normalized` is computed from it as it was stored, so that the norm of a stored sum is the same to the bit.
pub struct NormForward<'a> {
    pub kind: NormKind,
    pub epsilon: f64,
    pub residual: View,
    pub branch: Option<View>,
    pub dropout: Option<(Dropout, &'a Rows)>,
    pub gamma: View,
    pub beta: Option<View>,
    pub sum: Option<View>,
    pub normalized: View,
    /// One value a row.
    pub rstd: View,
    pub out: View,
}

/// d_sum = the norm's input gradient for d_out (+ d_residual); d_branch = d_sum through the branch's dropout.
/// `d_sum` may be the same view as `d_out` or `d_residual`.
pub struct NormBackward<'a> {
    pub kind: NormKind,
    pub d_out: View,
    pub d_residual: Option<View>,
    pub gamma: View,
    pub normalized: View,
    pub rstd: View,
    pub d_sum: View,
    /// Given exactly when there is dropout; without it `d_sum` is the branch's gradient.
    pub dropout: Option<(Dropout, &'a Rows, View)>,
}

/// Operands of attention. Queries and keys have their own row offsets, so that queries may be fewer than keys.
pub struct Attention<'a> {
    /// \[Tq, A*D\], \[Tk, G*D\], \[Tk, G*D\].
    pub query: View,
    pub key: View,
    pub value: View,
    pub prefix: Option<Prefix>,
    pub relative: Option<Relative>,
    pub query_rows: &'a Rows,
    pub key_rows: &'a Rows,
    /// int32, one a sequence: key j is visible to the query of token i where j <= i or j < separator (all 0: causal);
    /// the prefix always is. Query tokens then ascend within a sequence. None: every query sees every key.
    pub separators: Option<View>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f64,
    /// On the probabilities; element (ordinal, query token, head, column), prefix columns first.
    pub dropout: Option<Dropout>,
}

/// Prefix keys and values of one layer, visible to every query of every sequence: \[P, G*D\] each.
#[derive(Clone, Copy)]
pub struct Prefix {
    pub key: View,
    pub value: View,
    /// Masks of keys and of values, drawn for each sequence: element (ordinal, prefix position, head, dim).
    pub dropout: Option<[Dropout; 2]>,
}

/// Relative positions in attention (DeBERTa): to the score of the query of token i and key j of its sequence, before the
/// scale, is added q_i . key\[r\] + k_j . query\[r\] with r = clamp(i - j + span, 0, 2 span - 1), head by head; nothing to
/// the scores of prefix columns. Tables have 2 `span` rows of A*D; None: without that term. There are as many key/value
/// heads as heads, queries ascend within a sequence, and the tables get no gradient.
#[derive(Clone, Copy)]
pub struct Relative {
    pub key: Option<View>,
    pub query: Option<View>,
    pub span: usize,
}

/// Queries or keys \[T, heads * D\], head by head: an RMS norm where there is a gamma, then the rotation of dims i and
/// i + D/2 by the position's angles: out\[i\] = y\[i\] cos\[i\] - y\[i + D/2\] sin\[i\],
/// out\[i + D/2\] = y\[i + D/2\] cos\[i\] + y\[i\] sin\[i\].
pub struct Rotary {
    pub x: View,
    pub head_dim: usize,
    /// \[D\].
    pub gamma: Option<View>,
    pub epsilon: f64,
    /// \[positions, D\] in master precision: cosines, then sines.
    pub table: View,
    /// int32, one a row: the row of the table.
    pub positions: View,
}

/// A group of logits that one softmax runs over: elements `start + i * stride`, i < `length`, of the logits' rows laid
/// end to end. A class choice is a row; a choice among rows (multiple choice, answer spans) is a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LogitGroup {
    pub start: i32,
    pub length: i32,
    pub stride: i32,
    /// Index of the target in the group; negative: the group has none and adds no loss.
    pub target: i32,
}

/// loss += scale * Σ groups (logsumexp - target logit); d_logits = its gradient (zero outside groups).
pub struct CrossEntropy {
    /// \[R, C\] in master precision.
    pub logits: View,
    /// int32 \[groups, 4\]: [`LogitGroup`]s.
    pub groups: View,
    pub scale: f64,
    /// One element, added to.
    pub loss: View,
    pub d_logits: View,
}

/// What the frozen language-model head says of the tokens that rows are to predict, over a chunk of rows:
/// log_probability\[r\] = logits\[r\]\[target\] - logsumexp logits\[r\] (0 without a target), best\[r\] = column of the
/// largest logit, the first of equal ones.
pub struct TokenLoss {
    /// \[R, V\] in master precision; void afterwards.
    pub logits: View,
    /// int32; negative: the row is to predict nothing.
    pub targets: View,
    /// In master precision.
    pub log_probability: View,
    /// int32.
    pub best: View,
    pub gradient: Option<TokenGradient>,
}

/// d_logits\[r\] = scale * weights\[r\] * (softmax - \[target\]); zero without a target.
pub struct TokenGradient {
    /// One a row, in master precision; None: 1.
    pub weights: Option<View>,
    pub scale: f64,
    /// \[R, V\], activations. May begin where the logits begin, with rows as far apart in bytes.
    pub d_logits: View,
    /// One element, to which -scale * Σ log_probability is added; only without weights.
    pub loss: Option<View>,
}

/// One AdamW update as torch.optim.AdamW does it.
pub struct AdamW {
    pub master: View,
    pub gradient: View,
    pub moment1: View,
    pub moment2: View,
    /// Sum of squares of all gradients of the step (one element). Not finite: nothing is changed.
    pub squared_norm: View,
    /// What gradients (and the root of their sum of squares) are multiples of: the loss scale.
    pub gradient_scale: f64,
    /// Gradients are scaled by min(1, max_norm / (norm + 1e-6)); None: they are not.
    pub max_norm: Option<f64>,
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Updates of this tensor including this one, from 1.
    pub step: u64,
}

/// Bytes that a backend maps but does not own: a checkpoint file.
pub type FileBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Bytes on their way to the host: called, it waits for them alone and not for what was queued after.
pub type Readback = Box<dyn FnOnce() -> Vec<u8> + Send>;

/// What the memory plan asks of a backend. To answer, no device is needed.
pub trait Sizing {
    /// For the log: "cpu, 2 threads".
    fn describe(&self) -> String;
    fn precision(&self) -> Precision;
    /// Whether operations can read matrices in files of the host; where not, the engine copies them into the arena.
    fn reads_files(&self) -> bool;
    /// Whether transfers can come from files of the host.
    fn transfers_files(&self) -> bool;
    /// Scratch that the operations need for a given shape; the plan reserves it as one region.
    /// Errors: a shape that the backend has no kernel for.
    fn scratch_bytes(&self, need: &ScratchNeed) -> anyhow::Result<usize>;
    /// What that scratch is for, in words and numbers.
    fn describe_scratch(&self) -> String;
}

pub trait Backend: Sizing + Instruments + Send {
    /// The one allocation of the run, zeroed. `scratch` lies inside it.
    fn allocate(&mut self, bytes: usize, scratch: View) -> anyhow::Result<()>;
    /// The one allocation of host memory, zeroed; views of it are written, filled and moved, and read by no operation.
    fn allocate_host(&mut self, bytes: usize) -> anyhow::Result<()>;
    /// A read-only file whose bytes operations may read in place where [`Sizing::reads_files`], and transfers may come from
    /// where [`Sizing::transfers_files`].
    fn attach(&mut self, file: FileBytes) -> anyhow::Result<BufferId>;
    /// The first thing that went wrong with what was queued; every result since is void.
    fn check(&self) -> anyhow::Result<()>;

    fn write(&mut self, to: View, bytes: &[u8]);
    /// out\[i\] = table\[rows\[i\]\], of a table in host memory, in order with what is queued.
    fn fetch_rows(&mut self, table: View, rows: &[usize], out: View);
    /// Waits for everything queued before.
    fn read(&mut self, from: View, bytes: &mut [u8]);
    /// As `read`, of a few bytes, without waiting.
    fn read_later(&mut self, from: View) -> Readback;
    fn zero(&mut self, view: View);
    /// `to` = `from`: as many elements of the same type, both without gaps between rows.
    fn copy(&mut self, from: View, to: View);
    /// Copies each pair's first view to its second, both without gaps, of one type and size, and one of them outside the
    /// arena (the first may lie in a file): beside what is computed, after everything that was queued before, and before what
    /// is queued after the [`Backend::join`] of the same lane. Each transfer is joined before the lane's next.
    fn transfer(&mut self, lane: usize, moves: &[(View, View)]);
    /// What is queued from here on waits for the lane's transfer.
    fn join(&mut self, lane: usize);
    /// Fills a 16-bit view without gaps with N(0, deviation): element i is word i % 4 of Philox block i / 4 under `key`,
    /// each pair of words through Box and Muller's transformation. The same numbers (to the last bit that single
    /// precision leaves open) on every backend, whatever the number of threads.
    fn fill_normal(&mut self, to: View, key: [u32; 2], deviation: f64);

    fn embed(&mut self, arguments: &Embed);
    fn norm_forward(&mut self, arguments: &NormForward);
    /// out = normalized * gamma + beta: what [`Backend::norm_forward`] put out, once more from what it kept.
    fn norm_output(&mut self, normalized: View, gamma: View, beta: Option<View>, out: View);
    fn norm_backward(&mut self, arguments: &NormBackward);
    /// data *= mask * scale, in place, on rows.
    fn dropout(&mut self, data: View, dropout: Dropout, rows: &Rows);

    /// out\[n, k\] = scales\[n\] * weight\[n, k\], rounded to the 16-bit type of `out`; the weight is int8, scales are fp32 on
    /// every backend, and so is the product: the same bits everywhere.
    fn dequantize(&mut self, weight: View, scales: View, out: View);
    /// out\[T, N\] = x\[T, K\] weight\[N, K\]ᵀ + bias\[N\]; out is of activations' type, or without
    /// bias of master type.
    fn linear(&mut self, x: View, weight: View, bias: Option<View>, out: View);
    /// dx\[T, K\] = dy\[T, N\] weight\[N, K\] (+ dx if `accumulate`).
    fn linear_backward_input(&mut self, dy: View, weight: View, dx: View, accumulate: bool);
    /// d_weight\[N, K\] += dy\[T, N\]ᵀ x\[T, K\]; d_bias\[N\] += Σ rows of dy. For trainables only.
    fn linear_backward_weight(&mut self, dy: View, x: View, d_weight: View, d_bias: Option<View>);

    /// out = f(z); may be in place.
    fn activation_forward(&mut self, kind: Activation, z: View, out: View);
    /// dz = d_out * f'(z), of z's shape. `dz` may be `z` where the activation is gated, else `d_out`.
    fn activation_backward(&mut self, kind: Activation, z: View, d_out: View, dz: View);

    /// `out` may be `x`.
    fn rotary_forward(&mut self, arguments: &Rotary, out: View);
    /// From the gradient of the output to that of `x`, in place; `x` is read only where there is a norm.
    fn rotary_backward(&mut self, arguments: &Rotary, d: View);

    /// out\[Tq, A*D\] and the scores' log-sum-exp \[Tq, A\].
    fn attention_forward(&mut self, arguments: &Attention, out: View, log_sum_exp: View);
    /// delta\[Tq, A\] = Σ over head dim of d_out * out.
    fn attention_delta(&mut self, out: View, d_out: View, heads: usize, delta: View);
    /// Gradients of query, key and value (all written, not added).
    fn attention_backward(&mut self, arguments: &Attention, saved: &AttentionSaved, d_query: View, d_key: View, d_value: View);
    /// d_key, d_value \[P, G*D\] += the prefix's gradients over all sequences, in fixed order.
    fn prefix_gradient(&mut self, arguments: &Attention, saved: &AttentionSaved, d_key: View, d_value: View);

    /// d_prompt\[p\] += Σ over sequences s, in order, of d\[offsets\[s\] + p\]; offsets are int32, d_prompt is in master precision.
    fn prompt_gradient(&mut self, d: View, offsets: View, d_prompt: View);

    /// out\[r\] = x\[rows\[r\]\].
    fn gather_rows(&mut self, x: View, rows: View, out: View);
    /// x\[rows\[r\]\] += source\[r\]; rows are distinct.
    fn scatter_add_rows(&mut self, source: View, rows: View, x: View);

    fn cross_entropy(&mut self, arguments: &CrossEntropy);
    fn token_loss(&mut self, arguments: &TokenLoss);
    /// out\[s\] = Σ values\[offsets\[s\]..offsets\[s + 1\]\], in master precision; offsets are int32.
    fn sum_segments(&mut self, values: View, offsets: View, out: View);
    /// out\[r\] = factor * values\[s\] for the rows r of segment s.
    fn spread_segments(&mut self, values: View, offsets: View, factor: f64, out: View);
    /// total += Σ x².
    fn squared_norm(&mut self, x: View, total: View);
    fn adamw(&mut self, arguments: &AdamW);
}

/// What attention's backward needs of its forward.
pub struct AttentionSaved {
    pub log_sum_exp: View,
    pub delta: View,
    pub d_out: View,
}

/// The shapes that a backend sizes its scratch by.
#[derive(Clone, Copy, Debug)]
pub struct ScratchNeed {
    /// Longest sequence, prefix included.
    pub longest: usize,
    pub prefix_length: usize,
    /// Whether every sequence may have masks of its own on the prefix.
    pub prefix_dropout: bool,
    pub head_dim: usize,
    /// Whether attention has relative positions.
    pub relative: bool,
    /// Width of keys: G*D.
    pub kv_size: usize,
    pub tokens: usize,
    pub sequences: usize,
    pub groups: usize,
    /// Elements of all gradients.
    pub parameters: usize,
    /// Widest input or output of a linear layer.
    pub widest: usize,
}
