//! Launches of attention: `attention_forward.cu`, `attention_backward.cu`, `prefix_gradient.cu`.

use super::arguments::Arguments;
use super::{Cuda, Driver, for_type};
use crate::backend::*;

/// Rows of queries (or keys) that one block of the tiled kernels computes, with its threads.
const TILE: usize = 64;
const THREADS: [usize; 2] = [128, 1];

/// Queries that one chunk of the prefix's gradient sums.
const CHUNK: usize = 512;

/// Chunks of the prefix's gradient. Without prefix dropout all queries are one sequence; with it each sequence has its
/// own masks, and chunks end where it does.
fn chunks(queries: usize, sequences: usize, own_masks: bool) -> usize {
    if own_masks { queries.div_ceil(CHUNK) + sequences } else { queries.div_ceil(CHUNK) }
}

/// Room for the partial gradients of prefix keys and values.
pub fn partial_elements(need: &ScratchNeed) -> usize {
    2 * chunks(need.tokens, need.sequences, true) * need.prefix_length * need.kv_size
}

impl<D: Driver> Cuda<D> {
    /// The operands that all kernels of attention begin with.
    fn operands(&self, operands: &Attention) -> Arguments {
        let t = self.activation;
        let prefix = operands.prefix;
        let stride = prefix.map_or(0, |prefix| prefix.key.stride);
        assert_eq!(stride, prefix.map_or(0, |prefix| prefix.value.stride), "keys and values of a prefix are of one table");
        let [key_dropout, value_dropout] = [0, 1].map(|side| prefix.and_then(|prefix| prefix.dropout.map(|masks| masks[side])));
        self.arguments()
            .matrix(t, operands.query)
            .matrix(t, operands.key)
            .matrix(t, operands.value)
            .optional_vector(DType::F32, prefix.map(|prefix| prefix.key))
            .optional_vector(DType::F32, prefix.map(|prefix| prefix.value))
            .int(stride)
            .int(prefix.map_or(0, |prefix| prefix.key.rows))
            .dropout(key_dropout)
            .dropout(value_dropout)
            .vector(DType::I32, operands.query_rows.offsets)
            .vector(DType::I32, operands.key_rows.offsets)
            .vector(DType::I32, operands.query_rows.ordinals)
            .vector(DType::I32, operands.query_rows.tokens)
            .int(operands.query_rows.sequences())
            .int(operands.query_rows.longest)
            .int(operands.heads)
            .int(operands.kv_heads)
            .int(operands.head_dim)
            .float(operands.scale)
            .dropout(operands.dropout)
    }

    /// `operands`, and what the backward kernels read of the forward.
    fn saved(&self, operands: &Attention, saved: &AttentionSaved) -> Arguments {
        self.operands(operands)
            .matrix(DType::F32, saved.log_sum_exp)
            .matrix(DType::F32, saved.delta)
            .matrix(self.activation, saved.d_out)
    }
}

pub fn forward<D: Driver>(cuda: &mut Cuda<D>, operands: &Attention, out: View, log_sum_exp: View) {
    let t = cuda.activation;
    let arguments = cuda.operands(operands).matrix(t, out).matrix(DType::F32, log_sum_exp);
    let rows = operands.query_rows;
    let grid = [rows.longest.div_ceil(TILE), operands.heads, rows.sequences()];
    cuda.launch(for_type!(t, "attention_forward"), grid, THREADS, 0, arguments);
}

pub fn delta<D: Driver>(cuda: &mut Cuda<D>, out: View, d_out: View, heads: usize, delta: View) {
    let t = cuda.activation;
    let arguments =
        cuda.arguments().matrix(t, out).matrix(t, d_out).int(heads).int(out.cols / heads).matrix(DType::F32, delta).int(out.rows);
    cuda.launch(for_type!(t, "attention_delta"), [(out.rows * heads).div_ceil(4), 1, 1], THREADS, 0, arguments);
}

/// Two passes without atomics: dK and dV by blocks of keys, dQ by blocks of queries.
pub fn backward<D: Driver>(
    cuda: &mut Cuda<D>,
    operands: &Attention,
    saved: &AttentionSaved,
    d_query: View,
    d_key: View,
    d_value: View,
) {
    let t = cuda.activation;
    let (queries, keys) = (operands.query_rows, operands.key_rows);
    let arguments = cuda.saved(operands, saved).matrix(t, d_key).matrix(t, d_value).int(keys.longest);
    let grid = [keys.longest.div_ceil(TILE), operands.kv_heads, keys.sequences()];
    cuda.launch(for_type!(t, "attention_backward_key"), grid, THREADS, 0, arguments);
    let arguments = cuda.saved(operands, saved).matrix(t, d_query);
    let grid = [queries.longest.div_ceil(TILE), operands.heads, queries.sequences()];
    cuda.launch(for_type!(t, "attention_backward_query"), grid, THREADS, 0, arguments);
}

/// Partial sums of fixed chunks of queries, then their sum in order.
pub fn prefix_gradient<D: Driver>(cuda: &mut Cuda<D>, operands: &Attention, saved: &AttentionSaved, d_key: View, d_value: View) {
    let t = cuda.activation;
    let Some(prefix) = operands.prefix else { return };
    let rows = operands.query_rows;
    let (length, width) = (d_key.rows, d_key.cols);
    let chunks = chunks(rows.count, rows.sequences(), prefix.dropout.is_some());
    let partial = cuda.scratch.rows(2 * chunks * length, width);
    let [partial_key, partial_value] = [0, 1].map(|side| partial.row_range(side * chunks * length, chunks * length));
    let arguments = cuda
        .saved(operands, saved)
        .vector(DType::F32, partial_key)
        .vector(DType::F32, partial_value)
        .int(chunks)
        .int(rows.count);
    let grid = [chunks, length.div_ceil(TILE), operands.kv_heads];
    cuda.launch(for_type!(t, "prefix_gradient_partial"), grid, THREADS, 0, arguments);
    let arguments = cuda
        .arguments()
        .vector(DType::F32, partial_key)
        .vector(DType::F32, partial_value)
        .int(chunks)
        .vector(DType::F32, d_key)
        .vector(DType::F32, d_value)
        .int(d_key.stride)
        .int(length)
        .int(width);
    assert_eq!(d_key.stride, d_value.stride);
    cuda.launch("prefix_gradient_sum", [(length * width).div_ceil(128), 1, 1], THREADS, 0, arguments);
}
