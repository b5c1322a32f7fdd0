//! Rotation of queries and keys by their positions, behind an RMS norm of each head where there is one. Reads and writes
//! every element once; the backward of a norm makes it again from its input.

use super::memory::{Element, Matrix};
use super::parallel_rows;
use super::real::{Real, reduce};

#[derive(Clone, Copy)]
pub struct Operands<'a, T> {
    pub x: Matrix<T>,
    pub head_dim: usize,
    pub gamma: Option<&'a [T]>,
    pub epsilon: T,
    /// \[positions, D\]: cosines, then sines.
    pub table: Matrix<T>,
    pub positions: &'a [i32],
}

/// 1 / sqrt(mean(x²) + epsilon).
fn inverse_deviation<T: Real>(x: &[T], epsilon: T) -> T {
    T::ONE / (reduce(x.len(), |i| x[i] * x[i]) / T::of(x.len() as f64) + epsilon).sqrt()
}

/// Rotates a head by the angles of a row of the table (by their negatives if `back`).
fn rotate<T: Real>(head: &mut [T], table: &[T], back: bool) {
    let half = head.len() / 2;
    let (low, high) = head.split_at_mut(half);
    let (cosine, sine) = table.split_at(half);
    for i in 0..half {
        let sine = if back { T::ZERO - sine[i] } else { sine[i] };
        (low[i], high[i]) = (low[i] * cosine[i] - high[i] * sine, high[i] * cosine[i] + low[i] * sine);
    }
}

pub fn forward<T: Real + Element>(operands: Operands<T>, out: Matrix<T>) {
    let Operands { x, head_dim, gamma, epsilon, table, positions } = operands;
    parallel_rows(out.rows, |row| {
        let angles = table.row(positions[row] as usize);
        let (from, to) = (x.at(row, 0).cast_const(), out.row_mut(row));
        for (index, head) in to.chunks_exact_mut(head_dim).enumerate() {
            for (i, to) in head.iter_mut().enumerate() {
                // SAFETY: inside the row of x, which has out's shape; where it is out, an element is its own copy.
                *to = unsafe { *from.add(index * head_dim + i) };
            }
            if let Some(gamma) = gamma {
                let scale = inverse_deviation(head, epsilon);
                for (value, &gamma) in head.iter_mut().zip(gamma) {
                    *value = *value * scale * gamma;
                }
            }
            rotate(head, angles, false);
        }
    });
}

/// d = the rotation back; behind it the norm's: rstd (g - n mean(g n)) with g = d gamma and n = x rstd.
pub fn backward<T: Real + Element>(operands: Operands<T>, d: Matrix<T>) {
    let Operands { x, head_dim, gamma, epsilon, table, positions } = operands;
    parallel_rows(d.rows, |row| {
        let angles = table.row(positions[row] as usize);
        for (index, head) in d.row_mut(row).chunks_exact_mut(head_dim).enumerate() {
            rotate(head, angles, true);
            let Some(gamma) = gamma else { continue };
            let x = &x.row(row)[index * head_dim..][..head_dim];
            let scale = inverse_deviation(x, epsilon);
            let mean = reduce(head_dim, |i| head[i] * gamma[i] * x[i] * scale) / T::of(head_dim as f64);
            for (i, value) in head.iter_mut().enumerate() {
                *value = scale * (*value * gamma[i] - x[i] * scale * mean);
            }
        }
    });
}
