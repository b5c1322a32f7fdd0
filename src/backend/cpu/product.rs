//! Matrix products. Work is cut into tiles whose size depends on the shape alone, and each tile is one sequential
//! call of the `gemm` crate: the same bits for any number of threads. 16-bit weights are widened tile by tile into
//! the worker's scratch, so that no second copy of a weight matrix ever exists.

use super::memory::{Element, Matrix, Source};
use super::real::Real;
use super::Workers;
use rayon::prelude::*;

/// Rows and columns of a tile of the output. Widening a weight tile costs one conversion for `TILE_ROWS` rows of
/// products (under 2 %), and at a hidden size of 384 a batch of 1000 tokens makes a dozen tiles for the threads.
const TILE_ROWS: usize = 256;
const TILE_COLS: usize = 128;

/// Elements of scratch that a worker needs for tiles of weights with `widest` inputs or outputs.
pub const fn scratch_elements(widest: usize) -> usize {
    TILE_COLS * widest
}

/// c\[m, n\] = a\[m, k\] b\[k, n\] (+ c if `accumulate`), operands given with (row stride, column stride). Sequential.
///
/// # Safety
/// The pointers are valid for their shapes and strides, and `c` overlaps neither operand.
#[inline]
#[allow(clippy::too_many_arguments)]
pub unsafe fn multiply<T: Real>(
    m: usize,
    n: usize,
    k: usize,
    c: *mut T,
    c_strides: (usize, usize),
    a: *const T,
    a_strides: (usize, usize),
    b: *const T,
    b_strides: (usize, usize),
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            c_strides.1 as isize,
            c_strides.0 as isize,
            accumulate,
            a,
            a_strides.1 as isize,
            a_strides.0 as isize,
            b,
            b_strides.1 as isize,
            b_strides.0 as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// c (+)= a bᵀ.
pub fn product_transposed<T: Real>(a: Matrix<T>, b: Matrix<T>, c: Matrix<T>, accumulate: bool) {
    assert!(a.cols == b.cols && c.rows == a.rows && c.cols == b.rows);
    // SAFETY: shapes agree and the matrices come from views.
    unsafe { multiply(a.rows, b.rows, a.cols, c.start, (c.stride, 1), a.start, (a.stride, 1), b.start, (1, b.stride), accumulate) }
}

/// c (+)= a b.
pub fn product<T: Real>(a: Matrix<T>, b: Matrix<T>, c: Matrix<T>, accumulate: bool) {
    assert!(a.cols == b.rows && c.rows == a.rows && c.cols == b.cols);
    // SAFETY: as above.
    unsafe { multiply(a.rows, b.cols, a.cols, c.start, (c.stride, 1), a.start, (a.stride, 1), b.start, (b.stride, 1), accumulate) }
}

/// c (+)= aᵀ b.
pub fn transposed_product<T: Real>(a: Matrix<T>, b: Matrix<T>, c: Matrix<T>, accumulate: bool) {
    assert!(a.rows == b.rows && c.rows == a.cols && c.cols == b.cols);
    // SAFETY: as above.
    unsafe { multiply(a.cols, b.cols, a.rows, c.start, (c.stride, 1), a.start, (1, a.stride), b.start, (b.stride, 1), accumulate) }
}

/// Every tile of a `rows` x `cols` output: (first row, rows, first column, columns).
fn tiles(rows: usize, cols: usize) -> impl IndexedParallelIterator<Item = (usize, usize, usize, usize)> {
    let down = rows.div_ceil(TILE_ROWS);
    (0..down * cols.div_ceil(TILE_COLS)).into_par_iter().map(move |tile| {
        let (row, col) = (tile % down * TILE_ROWS, tile / down * TILE_COLS);
        (row, TILE_ROWS.min(rows - row), col, TILE_COLS.min(cols - col))
    })
}

/// out\[T, N\] = x\[T, K\] weight\[N, K\]ᵀ + bias.
pub fn linear<T: Real + Element>(workers: &Workers<T>, x: Matrix<T>, weight: Source<T>, bias: Option<&[T]>, out: Matrix<T>) {
    tiles(out.rows, out.cols).for_each(|(row, rows, col, cols)| {
        let weight = weight.block(col, cols, 0, x.cols, workers.scratch());
        let tile = out.block(row, rows, col, cols);
        product_transposed(x.block(row, rows, 0, x.cols), weight, tile, false);
        if let Some(bias) = bias {
            for r in 0..rows {
                for (value, &bias) in tile.row_mut(r).iter_mut().zip(&bias[col..col + cols]) {
                    *value += bias;
                }
            }
        }
    });
}

/// dx\[T, K\] (+)= dy\[T, N\] weight\[N, K\].
pub fn linear_backward_input<T: Real + Element>(workers: &Workers<T>, dy: Matrix<T>, weight: Source<T>, dx: Matrix<T>, accumulate: bool) {
    tiles(dx.rows, dx.cols).for_each(|(row, rows, col, cols)| {
        let weight = weight.block(0, dy.cols, col, cols, workers.scratch());
        product(dy.block(row, rows, 0, dy.cols), weight, dx.block(row, rows, col, cols), accumulate);
    });
}

/// d_weight\[N, K\] += dyᵀ x; d_bias\[N\] += Σ rows of dy, first to last.
pub fn linear_backward_weight<T: Real + Element>(dy: Matrix<T>, x: Matrix<T>, d_weight: Matrix<T>, d_bias: Option<Matrix<T>>) {
    tiles(d_weight.rows, d_weight.cols).for_each(|(row, rows, col, cols)| {
        transposed_product(dy.block(0, dy.rows, row, rows), x.block(0, x.rows, col, cols), d_weight.block(row, rows, col, cols), true);
    });
    if let Some(d_bias) = d_bias {
        let d_bias = d_bias.row_mut(0);
        for row in 0..dy.rows {
            for (sum, &value) in d_bias.iter_mut().zip(dy.row(row)) {
                *sum += value;
            }
        }
    }
}
