//! Cross-entropy over groups of logits, and the optimizer's two passes.

use super::memory::{Element, Matrix};
use super::real::{Real, maximum, reduce};
use crate::backend::{AdamW, LogitGroup};
use rayon::prelude::*;

/// Adds scale * Σ (logsumexp - target) to the returned loss (in f64) and writes the gradient; groups are disjoint.
pub fn cross_entropy<T: Real>(logits: Matrix<T>, groups: &[LogitGroup], scale: f64, d_logits: Matrix<T>) -> f64 {
    for row in 0..d_logits.rows {
        d_logits.row_mut(row).fill(T::ZERO);
    }
    let place = |group: &LogitGroup, i: usize| {
        let element = group.start as usize + i * group.stride as usize;
        (element / logits.cols, element % logits.cols)
    };
    let mut total = 0.0;
    for group in groups.iter().filter(|group| group.target >= 0) {
        let length = group.length as usize;
        // SAFETY (both closures): elements lie inside the logits; groups do not overlap.
        let logit = |i: usize| unsafe { *logits.at(place(group, i).0, place(group, i).1) }.to_f64();
        let largest = (0..length).map(logit).fold(f64::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a });
        let sum: f64 = (0..length).map(|i| libm::exp(logit(i) - largest)).sum();
        let log_sum_exp = largest + libm::log(sum);
        let target = group.target as usize;
        total += log_sum_exp - logit(target);
        for i in 0..length {
            let (row, col) = place(group, i);
            let probability = libm::exp(logit(i) - log_sum_exp);
            let gradient = scale * (probability - if i == target { 1.0 } else { 0.0 });
            unsafe { *d_logits.at(row, col) = T::of(gradient) };
        }
    }
    scale * total
}

/// Elements that are summed as one before partial sums are added in order.
const CHUNK: usize = 4096;

/// Σ x² in f64.
pub fn squared_norm<T: Real>(x: &[T]) -> f64 {
    let partial: Vec<f64> = x
        .par_chunks(CHUNK)
        .map(|chunk| {
            reduce(chunk.len(), |i| {
                let value = chunk[i].to_f64();
                value * value
            })
        })
        .collect();
    partial.iter().sum()
}

/// torch.optim.AdamW: decay, moments, bias correction, epsilon outside the corrected root.
pub fn adamw<T: Real + Element>(master: &mut [T], gradient: &[T], moment1: &mut [T], moment2: &mut [T], squared_norm: f64, update: &AdamW) {
    if !squared_norm.is_finite() {
        return;
    }
    let clip = update.max_norm.map_or(1.0, |max_norm| (max_norm / (squared_norm.sqrt() / update.gradient_scale + 1e-6)).min(1.0));
    let clip = clip / update.gradient_scale;
    let power = update.step.min(i32::MAX as u64) as i32;
    let correction1 = 1.0 - update.beta1.powi(power);
    let correction2 = (1.0 - update.beta2.powi(power)).sqrt();
    let (clip, step) = (T::of(clip), T::of(update.learning_rate / correction1));
    let (beta1, beta2) = (T::of(update.beta1), T::of(update.beta2));
    let (rest1, rest2) = (T::of(1.0 - update.beta1), T::of(1.0 - update.beta2));
    let (root, epsilon) = (T::of(correction2), T::of(update.epsilon));
    let decay = T::of(1.0 - update.learning_rate * update.weight_decay);
    master
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(moment1.par_chunks_mut(CHUNK).zip(moment2.par_chunks_mut(CHUNK)))
        .for_each(|((master, gradient), (moment1, moment2))| {
            for i in 0..master.len() {
                let g = gradient[i] * clip;
                moment1[i] = beta1 * moment1[i] + rest1 * g;
                moment2[i] = beta2 * moment2[i] + rest2 * g * g;
                master[i] = master[i] * decay - step * moment1[i] / (moment2[i].sqrt() / root + epsilon);
            }
        });
}

/// softmax(scale * row), in place; returns its log-sum-exp. `scale` is positive.
#[inline(always)]
pub fn softmax<T: Real>(row: &mut [T], scale: T) -> T {
    let largest = maximum(row);
    for x in row.iter_mut() {
        *x = ((*x - largest) * scale).exp();
    }
    let sum = reduce(row.len(), |i| row[i]);
    let inverse = T::ONE / sum;
    for x in row.iter_mut() {
        *x *= inverse;
    }
    largest * scale + T::of(libm::log(sum.to_f64()))
}
