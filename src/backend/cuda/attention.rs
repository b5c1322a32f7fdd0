//! Launches of attention: `attention_prefix.cu`, `attention_forward.cu`, `attention_backward.cu`, `attention_relative.cu`,
//! `prefix_gradient.cu`.

use super::arguments::Arguments;
use super::{Cuda, Driver, for_type};
use crate::backend::*;

/// How a block of a tiled kernel is cut: each of its warps owns `blocks` times 16 rows, and it walks the other side in
/// steps of `step` rows.
#[derive(Clone, Copy)]
struct Tile {
    warps: usize,
    blocks: usize,
    step: usize,
}

// By padded head dim, 16, 32, 64 and 128: FORWARD, BACKWARD_QUERY, BACKWARD_KEY, PREFIX; for 64, RELATIVE; all from
// cuda/attention_tiles.cuh.
include!(concat!(env!("OUT_DIR"), "/tiles.rs"));

impl Tile {
    /// Rows that a block owns.
    const fn rows(self) -> usize {
        16 * self.warps * self.blocks
    }

    const fn block(self) -> [usize; 2] {
        [32 * self.warps, 1]
    }

    /// Bytes of shared memory for `own` matrices of the block's rows and two of a step's, these twice (one arrives while
    /// the other is worked on), `head_dim` being padded.
    const fn shared(self, own: usize, head_dim: usize) -> usize {
        2 * head_dim * (own * self.rows() + 4 * self.step)
    }
}

/// An error for a head dim that the kernels do not cover.
pub fn supports(head_dim: usize, relative: bool) -> anyhow::Result<()> {
    anyhow::ensure!(
        !relative || head_dim <= RELATIVE_HEAD_DIM,
        "attention heads of {head_dim} dimensions with relative positions: the GPU's kernels take up to {RELATIVE_HEAD_DIM}; use --device cpu"
    );
    let covered = (8..=128).contains(&head_dim) && head_dim.is_multiple_of(8);
    anyhow::ensure!(covered, "attention heads of {head_dim} dimensions: the GPU's kernels take multiples of 8 up to 128; use --device cpu");
    Ok(())
}

/// Padded head dim of `attention_relative.cu`.
const RELATIVE_HEAD_DIM: usize = 64;

/// Shared memory of its blocks (`relative_bytes` in attention_tiles.cuh): beside own and streamed rows four numbers a
/// streamed row, rings of 128 rows of two tables, and 16 rows of 56 products a warp.
const fn relative_shared(tile: Tile) -> usize {
    tile.shared(2, RELATIVE_HEAD_DIM) + 32 * tile.step + 2 * 2 * RELATIVE_HEAD_DIM * 128 + 4 * 16 * 56 * tile.warps
}

/// Which of the kernels of a head dim is launched: 0 for up to 16, then 32, 64, 128.
fn size_class(head_dim: usize) -> usize {
    head_dim.next_power_of_two().max(16).ilog2() as usize - 4
}

/// A kernel's name by element type and size class.
macro_rules! sized {
    ($dtype:expr, $class:expr, $name:literal) => {
        match ($dtype, $class) {
            (DType::F16, 0) => concat!($name, "_f16_16"),
            (DType::F16, 1) => concat!($name, "_f16_32"),
            (DType::F16, 2) => concat!($name, "_f16_64"),
            (DType::F16, _) => concat!($name, "_f16_128"),
            (_, 0) => concat!($name, "_bf16_16"),
            (_, 1) => concat!($name, "_bf16_32"),
            (_, 2) => concat!($name, "_bf16_64"),
            (_, _) => concat!($name, "_bf16_128"),
        }
    };
}

/// Partial sums of the prefix's gradient, of equal runs of queries: up to 512 of them a run, and fewer, down to 128, where
/// there would not be two blocks for each multiprocessor of a large GPU. A function of shapes alone, as the order of the sum
/// has to be.
fn chunks(queries: usize, prefix_length: usize, kv_heads: usize, head_dim: usize) -> usize {
    let blocks = kv_heads * prefix_length.div_ceil(PREFIX[size_class(head_dim)].rows());
    let wanted = 256_usize.div_ceil(blocks.max(1));
    queries.div_ceil(512).max(wanted.min(queries.div_ceil(128))).clamp(1, 32)
}

/// Rows of a copy of the prefix's keys, or values: up to where a sequence's own keys begin.
fn front(prefix_length: usize) -> usize {
    Dropout::first_own(prefix_length)
}

/// Room for the copies of the prefix's keys and values, and behind them for their partial gradients, in fp32 elements.
pub fn scratch_elements(need: &ScratchNeed) -> usize {
    let copies = if need.prefix_dropout { need.sequences } else { 1 };
    let chunks = chunks(need.tokens, need.prefix_length, need.kv_size / need.head_dim, need.head_dim);
    // A copy is of keys and values, in 16 bits.
    copies * front(need.prefix_length) * need.kv_size + 2 * chunks * need.prefix_length * need.kv_size
}

/// The prefix as the sequences see it, in scratch.
#[derive(Clone, Copy)]
struct Copies {
    /// Keys, then values, of one copy behind the other; None without a prefix.
    all: Option<View>,
    /// Elements from one sequence's to the next one's; 0: one is for all.
    stride: usize,
    prefix_length: usize,
}

impl<D: Driver> Cuda<D> {
    /// Writes the prefix as the sequences see it to the start of scratch.
    fn copies(&mut self, operands: &Attention) -> Copies {
        let (t, rows) = (self.activation, operands.query_rows);
        let Some(prefix) = operands.prefix else { return Copies { all: None, stride: 0, prefix_length: 0 } };
        let (prefix_length, width) = (prefix.key.rows, prefix.key.cols);
        assert_eq!(prefix.key.stride, prefix.value.stride, "keys and values of a prefix are of one table");
        let (count, front) = (if prefix.dropout.is_some() { rows.sequences() } else { 1 }, front(prefix_length));
        let all = self.scratch.start_as(t, count * 2 * front, width);
        let [key_dropout, value_dropout] = [0, 1].map(|side| prefix.dropout.map(|masks| masks[side]));
        let arguments = self
            .arguments()
            .vector(DType::F32, prefix.key)
            .vector(DType::F32, prefix.value)
            .int(prefix.key.stride)
            .int(prefix_length)
            .int(front)
            .int(width)
            .int(operands.head_dim)
            .dropout(key_dropout)
            .dropout(value_dropout)
            .vector(DType::I32, rows.offsets)
            .vector(DType::I32, rows.ordinals)
            .vector(t, all);
        let grid = [(front * width / 8).div_ceil(256), 2, count];
        self.launch(for_type!(t, "attention_prefix"), grid, [256, 1], 0, arguments);
        Copies { all: Some(all), stride: if prefix.dropout.is_some() { 2 * front * width } else { 0 }, prefix_length }
    }

    /// The operands that all other kernels of attention begin with.
    fn operands(&self, operands: &Attention, copies: Copies) -> Arguments {
        let t = self.activation;
        self.arguments()
            .matrix(t, operands.query)
            .matrix(t, operands.key)
            .matrix(t, operands.value)
            .optional_vector(t, copies.all)
            .int(copies.prefix_length)
            .int(copies.stride)
            .vector(DType::I32, operands.query_rows.offsets)
            .vector(DType::I32, operands.key_rows.offsets)
            .vector(DType::I32, operands.query_rows.ordinals)
            .vector(DType::I32, operands.query_rows.tokens)
            .int(operands.query_rows.sequences())
            .int(operands.heads)
            .int(operands.kv_heads)
            .int(operands.head_dim)
            .float(operands.scale)
            .probability_dropout(operands.dropout)
            .optional_vector(DType::I32, operands.separators)
    }

    /// `operands` and, for `attention_relative.cu`, the tables.
    fn relative_operands(&self, operands: &Attention, copies: Copies, relative: &Relative) -> Arguments {
        assert!(operands.separators.is_none(), "relative positions are for models without a mask");
        assert_eq!(operands.heads, operands.kv_heads, "relative positions are for as many key/value heads as heads");
        let t = self.activation;
        self.operands(operands, copies).optional_matrix(t, relative.key).optional_matrix(t, relative.query).int(relative.span)
    }

    /// Launches a kernel of `attention_relative.cu`.
    fn launch_relative(&mut self, kernel: &'static str, operands: &Attention, arguments: Arguments) {
        let grid = [operands.key_rows.longest.div_ceil(RELATIVE[0].rows()), operands.heads, operands.key_rows.sequences()];
        self.launch(kernel, grid, RELATIVE[0].block(), relative_shared(RELATIVE[0]), arguments);
    }

    /// What the backward kernels read of the forward, behind the operands.
    fn saved(&self, arguments: Arguments, saved: &AttentionSaved) -> Arguments {
        arguments.matrix(DType::F32, saved.log_sum_exp).matrix(DType::F32, saved.delta).matrix(self.activation, saved.d_out)
    }
}

pub fn forward<D: Driver>(cuda: &mut Cuda<D>, operands: &Attention, out: View, log_sum_exp: View) {
    let copies = cuda.copies(operands);
    if let Some(relative) = &operands.relative {
        let t = cuda.activation;
        let arguments = cuda.relative_operands(operands, copies, relative).matrix(t, out).matrix(DType::F32, log_sum_exp);
        return cuda.launch_relative(for_type!(t, "attention_relative_forward"), operands, arguments);
    }
    let (t, class, rows) = (cuda.activation, size_class(operands.head_dim), operands.query_rows);
    let tile = FORWARD[class];
    let arguments = cuda.operands(operands, copies).matrix(t, out).matrix(DType::F32, log_sum_exp);
    let grid = [rows.longest.div_ceil(tile.rows()), operands.heads, rows.sequences()];
    cuda.launch(sized!(t, class, "attention_forward"), grid, tile.block(), tile.shared(1, 16 << class), arguments);
}

pub fn delta<D: Driver>(cuda: &mut Cuda<D>, out: View, d_out: View, heads: usize, delta: View) {
    let (t, head_dim) = (cuda.activation, out.cols / heads);
    let arguments = cuda.arguments().matrix(t, out).matrix(t, d_out).int(heads).int(head_dim).matrix(DType::F32, delta).int(out.rows);
    // A lane an access of 16 bytes, and as many lanes a head as a power of two makes them.
    let lanes = head_dim.div_ceil(8).next_power_of_two();
    let grid = [(out.rows * heads * lanes).div_ceil(256), 1, 1];
    cuda.launch(for_type!(t, "attention_delta"), grid, [256, 1], 0, arguments);
}

/// Behind the prefix two passes without atomics: dK and dV by blocks of keys, dQ by blocks of queries.
pub fn backward<D: Driver>(cuda: &mut Cuda<D>, operands: &Attention, saved: &AttentionSaved, d_query: View, d_key: View, d_value: View) {
    let (t, class) = (cuda.activation, size_class(operands.head_dim));
    let copies = cuda.copies(operands);
    let (queries, keys) = (operands.query_rows, operands.key_rows);
    if let Some(relative) = &operands.relative {
        let arguments = cuda.saved(cuda.relative_operands(operands, copies, relative), saved).matrix(t, d_key).matrix(t, d_value);
        cuda.launch_relative(for_type!(t, "attention_relative_key"), operands, arguments);
        let arguments = cuda.saved(cuda.relative_operands(operands, copies, relative), saved).matrix(t, d_query);
        return cuda.launch_relative(for_type!(t, "attention_relative_query"), operands, arguments);
    }

    let tile = BACKWARD_KEY[class];
    let arguments = cuda.saved(cuda.operands(operands, copies), saved).matrix(t, d_key).matrix(t, d_value);
    let grid = [keys.longest.div_ceil(tile.rows()), operands.kv_heads, keys.sequences()];
    let shared = tile.shared(2, 16 << class) + 32 * tile.step;
    cuda.launch(sized!(t, class, "attention_backward_key"), grid, tile.block(), shared, arguments);

    let tile = BACKWARD_QUERY[class];
    let arguments = cuda.saved(cuda.operands(operands, copies), saved).matrix(t, d_query);
    let grid = [queries.longest.div_ceil(tile.rows()), operands.heads, queries.sequences()];
    cuda.launch(sized!(t, class, "attention_backward_query"), grid, tile.block(), tile.shared(2, 16 << class), arguments);
}

/// Partial sums of fixed chunks of queries, then their sum in order.
pub fn prefix_gradient<D: Driver>(cuda: &mut Cuda<D>, operands: &Attention, saved: &AttentionSaved, d_key: View, d_value: View) {
    let (t, class, rows) = (cuda.activation, size_class(operands.head_dim), operands.query_rows);
    let Some(prefix) = operands.prefix else { return };
    let (length, width) = (d_key.rows, d_key.cols);
    let chunks = chunks(rows.count, length, operands.kv_heads, operands.head_dim);
    let copies = cuda.copies(operands);
    let partial = cuda.scratch.rows_behind(copies.all, 2 * chunks * length, width);
    let [partial_key, partial_value] = [0, 1].map(|side| partial.row_range(side * chunks * length, chunks * length));
    let tile = PREFIX[class];
    let arguments = cuda
        .saved(cuda.operands(operands, copies), saved)
        .dropout(prefix.dropout.map(|[key, _]| key))
        .dropout(prefix.dropout.map(|[_, value]| value))
        .vector(DType::F32, partial_key)
        .vector(DType::F32, partial_value)
        .int(chunks)
        .int(rows.count);
    let grid = [length.div_ceil(tile.rows()), operands.kv_heads, chunks];
    let shared = tile.shared(2, 16 << class) + 32 * tile.step;
    cuda.launch(sized!(t, class, "prefix_gradient_partial"), grid, tile.block(), shared, arguments);

    assert_eq!(d_key.stride, d_value.stride);
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
    let grid = [(length * width.div_ceil(4)).div_ceil(256), 2, 1];
    cuda.launch("prefix_gradient_sum", grid, [256, 1], 0, arguments);
}
