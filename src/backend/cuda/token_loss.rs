//! Launches of the language-model head's loss: `token_loss.cu`.

use super::{Cuda, Driver, for_type};
use crate::backend::*;

pub fn token_loss<D: Driver>(cuda: &mut Cuda<D>, loss: &TokenLoss) {
    let TokenLoss { logits, targets, log_probability, best, gradient } = loss;
    let (activation, d_logits) = (cuda.activation, gradient.as_ref().map(|gradient| gradient.d_logits));
    let arguments = cuda
        .arguments()
        .matrix(DType::F32, *logits)
        .vector(DType::I32, *targets)
        .vector(DType::F32, *log_probability)
        .vector(DType::I32, *best)
        .optional_vector(DType::F32, gradient.as_ref().and_then(|gradient| gradient.weights))
        .float(gradient.as_ref().map_or(0.0, |gradient| gradient.scale))
        .optional_matrix(activation, d_logits)
        .int(logits.cols);
    // A block a row: a chunk has hundreds of rows, a row tens of thousands of logits.
    cuda.launch(for_type!(activation, "token_loss"), [logits.rows, 1, 1], [512, 1], 0, arguments);
    if let Some((sum, scale)) = gradient.as_ref().and_then(|gradient| Some((gradient.loss?, gradient.scale))) {
        let arguments = cuda.arguments().vector(DType::F32, *log_probability).int(logits.rows).float(-scale).vector(DType::F32, sum);
        cuda.launch("token_loss_sum", [1, 1, 1], [256, 1], 0, arguments);
    }
}

/// A thread a segment.
fn segments(offsets: View) -> [usize; 3] {
    [(offsets.cols - 1).div_ceil(128), 1, 1]
}

pub fn sum_segments<D: Driver>(cuda: &mut Cuda<D>, values: View, offsets: View, out: View) {
    let arguments = cuda.arguments().vector(DType::F32, values).vector(DType::I32, offsets).int(offsets.cols - 1).vector(DType::F32, out);
    cuda.launch("sum_segments", segments(offsets), [128, 1], 0, arguments);
}

pub fn spread_segments<D: Driver>(cuda: &mut Cuda<D>, values: View, offsets: View, factor: f64, out: View) {
    let arguments =
        cuda.arguments().vector(DType::F32, values).vector(DType::I32, offsets).int(offsets.cols - 1).float(factor).vector(DType::F32, out);
    cuda.launch("spread_segments", segments(offsets), [128, 1], 0, arguments);
}
