//! Sums of embeddings, their norm and their dropout, one row at a time in the output's place.

use super::memory::{Element, Matrix, Source};
use super::norm::centre;
use super::real::Real;
use super::{RowIndex, mask, parallel_rows};
use crate::backend::{Dropout, NormKind};

pub struct Norm<'a, T> {
    pub kind: NormKind,
    pub epsilon: T,
    pub gamma: &'a [T],
    pub beta: Option<&'a [T]>,
    pub stream: Option<Matrix<T>>,
    pub kept: Option<[Matrix<T>; 2]>,
}

/// x\[t\] = Σ of one row of each table, a negative index of the first being a row of the prompt; out = dropout(norm(x)), or behind the stream = dropout(x), norm(stream).
pub fn embed<T: Real + Element>(
    tables: &[(Source<T>, &[i32])],
    prompt: Option<Matrix<T>>,
    dropout: Option<(Dropout, RowIndex)>,
    norm: Option<Norm<T>>,
    scratch: impl Fn() -> &'static mut [T] + Sync,
    out: Matrix<T>,
) {
    parallel_rows(out.rows, |row| {
        let x = out.row_mut(row);
        for (number, (table, indices)) in tables.iter().enumerate() {
            if let (0, Some(prompt), index @ ..0) = (number, prompt, indices[row]) {
                x.copy_from_slice(prompt.row((-1 - index) as usize));
            } else if number == 0 {
                table.widen_row(indices[row] as usize, 0, x);
            } else {
                let widened = &mut scratch()[..x.len()];
                table.widen_row(indices[row] as usize, 0, widened);
                for (x, &value) in x.iter_mut().zip(widened.iter()) {
                    *x += value;
                }
            }
        }
        let drop = |x: &mut [T]| {
            if let Some((dropout, index)) = dropout {
                mask::apply(x, dropout, index.ordinals[row] as u32, index.tokens[row] as u32, 0, 0);
            }
        };
        let Some(Norm { kind, epsilon, gamma, beta, stream, kept }) = &norm else { return drop(x) };
        if let Some(stream) = stream {
            drop(x);
            stream.row_mut(row).copy_from_slice(x);
        }
        let scale = centre(*kind, *epsilon, x);
        for x in x.iter_mut() {
            *x *= scale;
        }
        if let Some([normalized, rstd]) = kept {
            normalized.row_mut(row).copy_from_slice(x);
            // SAFETY: row < rows, and this task alone writes it; rstd is a row of as many columns.
            unsafe { *rstd.at(0, row) = scale };
        }
        for (i, x) in x.iter_mut().enumerate() {
            let scaled = *x * gamma[i];
            *x = beta.map_or(scaled, |beta| scaled + beta[i]);
        }
        if stream.is_none() {
            drop(x);
        }
    });
}
