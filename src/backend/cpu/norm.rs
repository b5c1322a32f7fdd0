//! Residual + dropout + normalisation, forward and backward, one row at a time.
//! Forward: reads residual and branch, writes normalized and out (4 H elements a row); backward: reads d_out and
//! normalized, writes d_sum (3 H).

use super::memory::{Element, Matrix};
use super::real::{Real, reduce};
use super::{RowIndex, mask, parallel_rows};
use crate::backend::{Dropout, NormKind};

pub struct Forward<'a, T> {
    pub kind: NormKind,
    pub epsilon: T,
    pub residual: Matrix<T>,
    pub branch: Option<Matrix<T>>,
    pub dropout: Option<(Dropout, RowIndex<'a>)>,
    pub gamma: &'a [T],
    pub beta: Option<&'a [T]>,
    pub sum: Option<Matrix<T>>,
    pub normalized: Matrix<T>,
    pub rstd: &'a mut [T],
    pub out: Matrix<T>,
}

/// x becomes x - mean (RMSNorm: x); returns 1 / √(mean of its squares + epsilon).
pub fn centre<T: Real>(kind: NormKind, epsilon: T, x: &mut [T]) -> T {
    let (width, count) = (x.len(), T::of(x.len() as f64));
    if kind == NormKind::LayerNorm {
        let mean = reduce(width, |i| x[i]) / count;
        for x in x.iter_mut() {
            *x = *x - mean;
        }
    }
    let variance = reduce(width, |i| x[i] * x[i]) / count;
    T::ONE / (variance + epsilon).sqrt()
}

pub fn forward<T: Real + Element>(arguments: Forward<T>) {
    let Forward { kind, epsilon, residual, branch, dropout, gamma, beta, sum, normalized, rstd, out } = arguments;
    let rstd = Matrix { start: rstd.as_mut_ptr(), rows: rstd.len(), cols: 1, stride: 1 };
    let width = out.cols;
    parallel_rows(out.rows, |row| {
        let x = normalized.row_mut(row);
        let residual = residual.row(row);
        match branch {
            None => x.copy_from_slice(residual),
            Some(branch) => {
                x.copy_from_slice(branch.row(row));
                if let Some((dropout, index)) = dropout {
                    mask::apply(x, dropout, index.ordinals[row] as u32, index.tokens[row] as u32, 0, 0);
                }
                for (x, &residual) in x.iter_mut().zip(residual) {
                    *x += residual;
                }
            }
        }
        if let Some(sum) = sum {
            sum.row_mut(row).copy_from_slice(x);
        }
        let scale = centre(kind, epsilon, x);
        // SAFETY: row < rows, and this task alone writes it.
        unsafe { *rstd.at(row, 0) = scale };
        let out = out.row_mut(row);
        match beta {
            Some(beta) => {
                for i in 0..width {
                    x[i] *= scale;
                    out[i] = x[i] * gamma[i] + beta[i];
                }
            }
            None => {
                for i in 0..width {
                    x[i] *= scale;
                    out[i] = x[i] * gamma[i];
                }
            }
        }
    });
}

/// out = normalized gamma + beta.
pub fn output<T: Real + Element>(normalized: Matrix<T>, gamma: &[T], beta: Option<&[T]>, out: Matrix<T>) {
    parallel_rows(out.rows, |row| {
        let (x, out) = (normalized.row(row), out.row_mut(row));
        match beta {
            Some(beta) => (0..x.len()).for_each(|i| out[i] = x[i] * gamma[i] + beta[i]),
            None => (0..x.len()).for_each(|i| out[i] = x[i] * gamma[i]),
        }
    });
}

pub struct Backward<'a, T> {
    pub kind: NormKind,
    pub d_out: Matrix<T>,
    pub d_residual: Option<Matrix<T>>,
    pub gamma: &'a [T],
    pub normalized: Matrix<T>,
    pub rstd: &'a [T],
    pub d_sum: Matrix<T>,
    pub dropout: Option<(Dropout, RowIndex<'a>, Matrix<T>)>,
}

/// d_sum = rstd (g - mean(g) - normalized mean(g normalized)), g = d_out gamma; without the first mean for RMSNorm.
pub fn backward<T: Real + Element>(arguments: Backward<T>) {
    let Backward { kind, d_out, d_residual, gamma, normalized, rstd, d_sum, dropout } = arguments;
    let width = d_sum.cols;
    let count = T::of(width as f64);
    parallel_rows(d_sum.rows, |row| {
        let (g, x, scale) = (d_out.at(row, 0).cast_const(), normalized.row(row), rstd[row]);
        // SAFETY: column i of a row of d_out; d_sum may be the same row, and then element i is read before it is written.
        let gradient = |i: usize| unsafe { *g.add(i) } * gamma[i];
        let mean = if kind == NormKind::LayerNorm { reduce(width, gradient) / count } else { T::ZERO };
        let projection = reduce(width, |i| gradient(i) * x[i]) / count;
        let residual = d_residual.map(|matrix| matrix.at(row, 0).cast_const());
        let sum = d_sum.at(row, 0);
        for (i, &x) in x.iter().enumerate() {
            let mut value = scale * (gradient(i) - mean - x * projection);
            // SAFETY: as above; d_residual may be d_sum, too.
            unsafe {
                if let Some(residual) = residual {
                    value += *residual.add(i);
                }
                *sum.add(i) = value;
            }
        }
        if let Some((dropout, index, d_branch)) = dropout {
            let branch = d_branch.row_mut(row);
            branch.copy_from_slice(d_sum.row(row));
            mask::apply(branch, dropout, index.ordinals[row] as u32, index.tokens[row] as u32, 0, 0);
        }
    });
}
