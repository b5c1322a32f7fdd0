//! Launches of the operations that work row by row: `embed.cu`, `fill.cu`, `norm.cu`, `pointwise.cu`, `prompt_gradient.cu`,
//! `rotary.cu`.

use super::{Arguments, Cuda, Driver, MOST_BLOCKS, for_type};
use crate::backend::*;
use anyhow::bail;

const THREADS: usize = 256;
/// Columns that the largest block of `normalisation.cuh` holds.
const WIDEST: usize = 16384;

/// Launches what touches every element once: a lane 8 columns, 16 bytes, a warp a piece of a row; the kernels' loops go on to
/// further rows.
fn launch_packs<D: Driver>(cuda: &mut Cuda<D>, kernel: &'static str, rows: usize, width: usize, arguments: Arguments) {
    let grid = [width.div_ceil(32 * 8), rows.div_ceil(8).min(MOST_BLOCKS), 1];
    cuda.launch(kernel, grid, [32, 8], 0, arguments);
}

/// Whether packs of 8 columns of these can be accessed 16 bytes at a time (`normalisation.cuh`: wide rows).
fn are_wide<const N: usize>(width: usize, views: [Option<View>; N]) -> bool {
    let aligned = |view: &View| view.offset.is_multiple_of(16) && (view.rows <= 1 || (view.stride * view.dtype.size()).is_multiple_of(16));
    width.is_multiple_of(8) && views.iter().flatten().all(aligned)
}

/// Launches what keeps a row in registers: a warp a row, four rows a block, while a row's 16-byte packs fit a warp's; else a
/// block a row. The kernel is the first for wide rows, the second for any.
fn launch_rows<D: Driver>(cuda: &mut Cuda<D>, kernels: [&'static str; 2], wide: bool, rows: usize, width: usize, arguments: Arguments) {
    if width > WIDEST {
        return cuda.attempt(|_| bail!("a hidden size of {width}: the GPU's norms take up to {WIDEST}; use --device cpu"));
    }
    let block = if width <= 1024 { [32, 4] } else { [32 * width.div_ceil(1024), 1] };
    cuda.launch(kernels[usize::from(!wide)], [rows.div_ceil(block[1]), 1, 1], block, 0, arguments);
}

/// A kernel of `launch_rows` and its twin, by element type.
macro_rules! for_rows {
    ($dtype:expr, $name:literal) => {
        match $dtype {
            DType::BF16 => [concat!($name, "_bf16"), concat!($name, "_any_bf16")],
            _ => [concat!($name, "_f16"), concat!($name, "_any_f16")],
        }
    };
}

fn norm_kind(kind: NormKind) -> usize {
    match kind {
        NormKind::LayerNorm => 0,
        NormKind::RmsNorm => 1,
    }
}

fn activation_kind(kind: Activation) -> usize {
    match kind {
        Activation::GeluErf => 0,
        Activation::GeluTanh => 1,
        Activation::Relu => 2,
        Activation::Tanh => 3,
        Activation::SwiGlu => unreachable!("a gated activation has kernels of its own"),
    }
}

pub fn fill_normal<D: Driver>(cuda: &mut Cuda<D>, to: View, [key0, key1]: [u32; 2], deviation: f64) {
    assert!(to.is_contiguous());
    let t = to.dtype;
    let arguments = cuda.arguments().vector(t, to).long(to.len()).word(key0).word(key1).float(deviation);
    let name = if t == DType::BF16 { "fill_normal_bf16" } else { "fill_normal_f16" };
    cuda.launch(name, [to.len().div_ceil(8).div_ceil(THREADS), 1, 1], [THREADS, 1], 0, arguments);
}

pub fn embed<D: Driver>(cuda: &mut Cuda<D>, embed: &Embed) {
    let Embed { word, position, token_type, ids, positions, types, prompt, dropout, ref norm, out } = *embed;
    let (t, norm) = (cuda.activation, norm.as_ref());
    let kept = norm.and_then(|norm| norm.kept);
    let arguments = cuda
        .arguments()
        .vector(t, word)
        .optional_vector(t, position)
        .optional_vector(t, token_type)
        .vector(DType::I32, ids)
        .vector(DType::I32, positions)
        .vector(DType::I32, types)
        .optional_vector(DType::F32, prompt)
        .dropout_rows(dropout)
        .int(norm.map_or(0, |norm| norm_kind(norm.kind)))
        .float(norm.map_or(0.0, |norm| norm.epsilon))
        .optional_vector(DType::F32, norm.map(|norm| norm.gamma))
        .optional_vector(DType::F32, norm.and_then(|norm| norm.beta))
        .optional_matrix(t, norm.and_then(|norm| norm.stream))
        .optional_matrix(t, kept.map(|[normalized, _]| normalized))
        .optional_vector(DType::F32, kept.map(|[_, rstd]| rstd))
        .matrix(t, out)
        .int(out.rows)
        .int(out.cols);
    let tables = [Some(word), position, token_type, prompt];
    let of_norm = norm.map_or([None; 4], |norm| [Some(norm.gamma), norm.beta, norm.stream, kept.map(|[normalized, _]| normalized)]);
    let wide = are_wide(out.cols, tables) && are_wide(out.cols, of_norm) && are_wide(out.cols, [Some(out)]);
    launch_rows(cuda, for_rows!(t, "embed"), wide, out.rows, out.cols, arguments);
}

pub fn norm_forward<D: Driver>(cuda: &mut Cuda<D>, norm: &NormForward) {
    let t = cuda.activation;
    let arguments = cuda
        .arguments()
        .int(norm_kind(norm.kind))
        .float(norm.epsilon)
        .matrix(t, norm.residual)
        .optional_matrix(t, norm.branch)
        .dropout_rows(norm.dropout)
        .vector(DType::F32, norm.gamma)
        .optional_vector(DType::F32, norm.beta)
        .optional_matrix(t, norm.sum)
        .matrix(t, norm.normalized)
        .vector(DType::F32, norm.rstd)
        .matrix(t, norm.out)
        .int(norm.out.rows)
        .int(norm.out.cols);
    let NormForward { residual, branch, gamma, beta, sum, normalized, out, .. } = *norm;
    let wide = are_wide(out.cols, [Some(residual), branch, Some(gamma), beta, sum, Some(normalized), Some(out)]);
    launch_rows(cuda, for_rows!(t, "norm_forward"), wide, out.rows, out.cols, arguments);
}

pub fn norm_output<D: Driver>(cuda: &mut Cuda<D>, normalized: View, gamma: View, beta: Option<View>, out: View) {
    let t = cuda.activation;
    let arguments = cuda.arguments().matrix(t, normalized).vector(DType::F32, gamma).optional_vector(DType::F32, beta).matrix(t, out);
    let arguments = arguments.int(out.rows).int(out.cols);
    let wide = are_wide(out.cols, [Some(normalized), Some(gamma), beta, Some(out)]);
    launch_rows(cuda, for_rows!(t, "norm_output"), wide, out.rows, out.cols, arguments);
}

pub fn norm_backward<D: Driver>(cuda: &mut Cuda<D>, norm: &NormBackward) {
    let t = cuda.activation;
    let (dropout, d_branch) = match norm.dropout {
        Some((dropout, rows, d_branch)) => (Some((dropout, rows)), Some(d_branch)),
        None => (None, None),
    };
    let arguments = cuda
        .arguments()
        .int(norm_kind(norm.kind))
        .matrix(t, norm.d_out)
        .optional_matrix(t, norm.d_residual)
        .vector(DType::F32, norm.gamma)
        .matrix(t, norm.normalized)
        .vector(DType::F32, norm.rstd)
        .matrix(t, norm.d_sum)
        .dropout_rows(dropout)
        .optional_matrix(t, d_branch)
        .int(norm.d_out.rows)
        .int(norm.d_out.cols);
    let NormBackward { d_out, d_residual, gamma, normalized, d_sum, .. } = *norm;
    let wide = are_wide(d_out.cols, [Some(d_out), d_residual, Some(gamma), Some(normalized), Some(d_sum), d_branch]);
    launch_rows(cuda, for_rows!(t, "norm_backward"), wide, d_out.rows, d_out.cols, arguments);
}

pub fn dropout<D: Driver>(cuda: &mut Cuda<D>, data: View, dropout: Dropout, rows: &Rows) {
    let arguments = cuda.arguments().matrix(cuda.activation, data).dropout_rows(Some((dropout, rows))).int(data.rows).int(data.cols);
    launch_packs(cuda, for_type!(cuda.activation, "dropout"), data.rows, data.cols, arguments);
}

/// Also in fp32: the projection that makes a prefix.
pub fn activation_forward<D: Driver>(cuda: &mut Cuda<D>, kind: Activation, z: View, out: View) {
    let t = z.dtype;
    if kind.arity() == 2 {
        let arguments = cuda.arguments().matrix(t, z).matrix(t, out).int(out.rows).int(out.cols);
        return launch_packs(cuda, for_type!(t, "gated_forward"), out.rows, out.cols, arguments);
    }
    let arguments = cuda.arguments().int(activation_kind(kind)).matrix(t, z).matrix(t, out).int(z.rows).int(z.cols);
    launch_packs(cuda, for_type!(t, "activation_forward"), z.rows, z.cols, arguments);
}

pub fn activation_backward<D: Driver>(cuda: &mut Cuda<D>, kind: Activation, z: View, d_out: View, dz: View) {
    let (t, rows, width) = (z.dtype, d_out.rows, d_out.cols);
    if kind.arity() == 2 {
        let arguments = cuda.arguments().matrix(t, z).matrix(t, d_out).matrix(t, dz).int(rows).int(width);
        return launch_packs(cuda, for_type!(t, "gated_backward"), rows, width, arguments);
    }
    let arguments = cuda.arguments().int(activation_kind(kind)).matrix(t, z).matrix(t, d_out).matrix(t, dz).int(rows).int(width);
    launch_packs(cuda, for_type!(t, "activation_backward"), z.rows, z.cols, arguments);
}

/// Forward (`other` is the output) and backward (the gradient, in place) take the same arguments.
pub fn rotary<D: Driver>(cuda: &mut Cuda<D>, kernel: &'static str, rotary: &Rotary, other: View) {
    let (t, heads, head_dim) = (cuda.activation, other.cols / rotary.head_dim, rotary.head_dim);
    let arguments = cuda
        .arguments()
        .matrix(t, rotary.x)
        .optional_vector(DType::F32, rotary.gamma)
        .float(rotary.epsilon)
        .vector(DType::F32, rotary.table)
        .vector(DType::I32, rotary.positions)
        .matrix(t, other)
        .int(other.rows)
        .int(heads)
        .int(head_dim);
    // A lane 8 dims of either half, and as many lanes a head as a power of two makes them.
    let lanes = head_dim.div_ceil(16).next_power_of_two();
    cuda.launch(kernel, [(other.rows * heads * lanes).div_ceil(THREADS), 1, 1], [THREADS, 1], 0, arguments);
}

/// A thread an element of the gradient, which adds up its sequences in order.
pub fn prompt_gradient<D: Driver>(cuda: &mut Cuda<D>, d: View, offsets: View, d_prompt: View) {
    let t = cuda.activation;
    let arguments = cuda
        .arguments()
        .matrix(t, d)
        .vector(DType::I32, offsets)
        .int(offsets.cols - 1)
        .vector(DType::F32, d_prompt)
        .int(d_prompt.rows)
        .int(d_prompt.cols);
    cuda.launch(for_type!(t, "prompt_gradient"), [d_prompt.len().div_ceil(THREADS), 1, 1], [THREADS, 1], 0, arguments);
}

pub fn gather_rows<D: Driver>(cuda: &mut Cuda<D>, x: View, rows: View, out: View) {
    let t = cuda.activation;
    let arguments = cuda.arguments().matrix(t, x).vector(DType::I32, rows).matrix(t, out).int(out.rows).int(out.cols);
    launch_packs(cuda, for_type!(t, "gather_rows"), out.rows, out.cols, arguments);
}

pub fn scatter_add_rows<D: Driver>(cuda: &mut Cuda<D>, source: View, rows: View, x: View) {
    let t = cuda.activation;
    let arguments = cuda.arguments().matrix(t, source).vector(DType::I32, rows).matrix(t, x).int(source.rows).int(source.cols);
    launch_packs(cuda, for_type!(t, "scatter_add_rows"), source.rows, source.cols, arguments);
}
