//! The language-model head's loss over a chunk of rows, and sums over the rows of sequences.

use super::loss::softmax;
use super::memory::{Element, Matrix};
use super::real::Real;
use rayon::prelude::*;

/// What a row's gradient is multiplied by, and where it goes.
pub struct Gradient<'a, T> {
    pub weights: Option<&'a [T]>,
    pub scale: T,
    pub d_logits: Matrix<T>,
}

/// One task is one row: its logits become the softmax in place, and that the gradient.
pub fn token_loss<T: Real + Element>(
    logits: Matrix<T>,
    targets: &[i32],
    log_probability: &mut [T],
    best: &mut [i32],
    gradient: Option<Gradient<T>>,
) {
    (0..logits.rows).into_par_iter().zip(log_probability.par_iter_mut().zip(best.par_iter_mut())).for_each(|(row, (out, best))| {
        let values = logits.row_mut(row);
        let target = usize::try_from(targets[row]).ok();
        *best = (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best }) as i32;
        let logit = target.map(|target| values[target]);
        let log_sum_exp = softmax(values, T::ONE);
        *out = logit.map_or(T::ZERO, |logit| logit - log_sum_exp);
        let Some(Gradient { weights, scale, d_logits }) = &gradient else { return };
        let d_row = d_logits.at(row, 0);
        let Some(target) = target else {
            d_logits.row_mut(row).fill(T::ZERO);
            return;
        };
        let weight = weights.map_or(*scale, |weights| *scale * weights[row]);
        for (i, &value) in values.iter().enumerate() {
            let value = if i == target { value - T::ONE } else { value };
            // SAFETY: inside the view; where it is the logits' row, the element was read before.
            unsafe { *d_row.add(i) = weight * value };
        }
    });
}

/// out\[s\] = Σ values of segment s, in order.
pub fn sum_segments<T: Real>(values: &[T], offsets: &[i32], out: &mut [T]) {
    for (out, range) in out.iter_mut().zip(offsets.windows(2)) {
        *out = T::ZERO;
        for &value in &values[range[0] as usize..range[1] as usize] {
            *out += value;
        }
    }
}

/// out\[r\] = factor * values of r's segment.
pub fn spread_segments<T: Real>(values: &[T], offsets: &[i32], factor: T, out: &mut [T]) {
    for (&value, range) in values.iter().zip(offsets.windows(2)) {
        out[range[0] as usize..range[1] as usize].fill(factor * value);
    }
}
