//! Launches of the loss and of the optimizer: `loss.cu`, `optimizer.cu`.

use super::Cuda;
use super::driver::Driver;
use crate::backend::*;

const THREADS: [usize; 2] = [256, 1];

/// Partial sums of a squared norm: a function of the count alone, so that the order of the sum is.
fn norm_chunks(count: usize) -> usize {
    count.div_ceil(4096).clamp(1, 1024)
}

/// Room for one partial sum a group, or a chunk of the gradients.
pub fn partial_elements(need: &ScratchNeed) -> usize {
    need.groups.max(norm_chunks(need.parameters))
}

pub fn cross_entropy<D: Driver>(cuda: &mut Cuda<D>, entropy: &CrossEntropy) {
    let CrossEntropy { logits, groups, scale, loss, d_logits } = *entropy;
    cuda.zero(d_logits);
    let losses = cuda.scratch.rows(1, groups.rows);
    let arguments = cuda
        .arguments()
        .matrix(DType::F32, logits)
        .int(logits.cols)
        .vector(DType::I32, groups)
        .int(groups.rows)
        .float(scale)
        .vector(DType::F32, losses)
        .matrix(DType::F32, d_logits)
        .int(logits.rows);
    // A warp a group: groups are as long as a row of classes, or a sequence.
    cuda.launch("cross_entropy", [groups.rows.div_ceil(4), 1, 1], [128, 1], 0, arguments);
    let arguments = cuda.arguments().vector(DType::F32, losses).int(groups.rows).vector(DType::F32, loss);
    cuda.launch("cross_entropy_sum", [1, 1, 1], THREADS, 0, arguments);
}

pub fn squared_norm<D: Driver>(cuda: &mut Cuda<D>, x: View, total: View) {
    let chunks = norm_chunks(x.len());
    let partial = cuda.scratch.rows(1, chunks);
    let arguments = cuda.arguments().vector(DType::F32, x).long(x.len()).vector(DType::F32, partial).int(chunks);
    cuda.launch("squared_norm_partial", [chunks, 1, 1], THREADS, 0, arguments);
    let arguments = cuda.arguments().vector(DType::F32, partial).int(chunks).vector(DType::F32, total);
    cuda.launch("squared_norm_sum", [1, 1, 1], THREADS, 0, arguments);
}

pub fn adamw<D: Driver>(cuda: &mut Cuda<D>, update: &AdamW) {
    let power = update.step.min(i32::MAX as u64) as i32;
    let correction1 = 1.0 - update.beta1.powi(power);
    let correction2 = (1.0 - update.beta2.powi(power)).sqrt();
    let arguments = cuda
        .arguments()
        .vector(DType::F32, update.master)
        .vector(DType::F32, update.gradient)
        .vector(DType::F32, update.moment1)
        .vector(DType::F32, update.moment2)
        .long(update.master.len())
        .vector(DType::F32, update.squared_norm)
        .float(update.gradient_scale)
        .float(update.max_norm.unwrap_or(0.0))
        .float(update.learning_rate / correction1)
        .float(update.beta1)
        .float(update.beta2)
        .float(1.0 / correction2)
        .float(update.epsilon)
        .float(1.0 - update.learning_rate * update.weight_decay);
    cuda.launch("adamw", [update.master.len().div_ceil(1024), 1, 1], THREADS, 0, arguments);
}
