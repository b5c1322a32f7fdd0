//! The frozen language-model head, over the rows that predict tokens: logits [C, V] of a chunk of rows at a time, and in
//! a training step their gradient in the same memory and at once that of the chunk's input. Nothing of size rows x
//! vocabulary exists.

use super::layout::Layout;
use super::{BatchRows, Engine};
use crate::backend::{CrossEntropy, DType, Precision, TokenGradient, TokenLoss, View};
use crate::data::Grouping;

/// Bytes that a chunk's logits may take: large enough that reading the head's matrix once a chunk costs less than the
/// product, small beside what a layer keeps of a batch.
const CHUNK_BYTES: usize = 128 << 20;

#[derive(Clone, Copy, Debug)]
pub struct VocabularyBuffers {
    /// [C, V] in master precision.
    pub logits: View,
    /// The same memory as [C, V] activations.
    pub d_logits: View,
    /// A row each: the likeliest token, int32.
    pub best: View,
    /// In master precision: of the target; and what its gradient is multiplied by, where scores of sequences decide that.
    pub log_probability: View,
    pub weights: View,
}

impl VocabularyBuffers {
    /// Rows of a chunk, for head rows and a vocabulary.
    pub fn chunk_rows(rows: usize, vocabulary: usize, precision: Precision) -> usize {
        let fitting = CHUNK_BYTES / (vocabulary.max(1) * precision.master.size());
        (fitting / 16 * 16).max(16).min(rows.max(1))
    }

    /// `chunk` rows of logits, and `rows` of everything else.
    pub fn lay_out(layout: &mut Layout, precision: Precision, rows: usize, chunk: usize, vocabulary: usize) -> VocabularyBuffers {
        let Precision { activation, master } = precision;
        // Rows begin where wide accesses may.
        let logits = layout.matrix(chunk, vocabulary.next_multiple_of(8), master).col_range(0, vocabulary);
        VocabularyBuffers {
            logits,
            d_logits: View { dtype: activation, stride: logits.stride * master.size() / activation.size(), ..logits },
            best: layout.vector(rows, DType::I32),
            log_probability: layout.vector(rows, master),
            weights: layout.vector(rows, master),
        }
    }
}

/// What a backward over the vocabulary starts from.
struct Descent {
    weights: Option<View>,
    scale: f64,
    loss: Option<View>,
}

impl Engine {
    /// Over all of the head's rows: log-probabilities and likeliest tokens; and the gradient of the head's input.
    fn vocabulary_pass(&mut self, rows: &BatchRows, descent: Option<Descent>) {
        let (Some(buffers), Some(weight)) = (self.head_buffers().vocabulary, self.plan.frozen.language_head) else { return };
        let (input, d_input, targets) = (self.head_buffers().input, self.here().d_input, self.here().batch.targets);
        let count = rows.readout.count;
        for first in (0..count).step_by(buffers.logits.rows) {
            let rows = buffers.logits.rows.min(count - first);
            let of_rows = |view: View| view.col_range(first, rows);
            let (logits, d_logits) = (buffers.logits.first_rows(rows), buffers.d_logits.first_rows(rows));
            self.backend.linear(input.row_range(first, rows), weight, None, logits);
            self.backend.token_loss(&TokenLoss {
                logits,
                targets: of_rows(targets),
                log_probability: of_rows(buffers.log_probability),
                best: of_rows(buffers.best),
                gradient: descent.as_ref().map(|descent| TokenGradient {
                    weights: descent.weights.map(of_rows),
                    scale: descent.scale,
                    d_logits,
                    loss: descent.loss,
                }),
            });
            if descent.is_some() {
                self.backend.linear_backward_input(d_logits, weight, d_input.row_range(first, rows), false);
            }
        }
    }

    /// Where sequences are scored, their scores are in the head's logits afterwards.
    pub(super) fn forward_vocabulary(&mut self, rows: &BatchRows) {
        self.vocabulary_pass(rows, None);
        if let (Grouping::PerSequence, Some(buffers)) = (self.head().grouping, self.head_buffers().vocabulary) {
            let scores = self.head_buffers().logits.first_rows(rows.readout.sequences());
            let values = buffers.log_probability.col_range(0, rows.readout.count);
            self.backend.sum_segments(values, rows.readout.offsets, scores.reshape(1, scores.len()));
        }
    }

    /// Loss, and the gradient of the head's input. Tokens: the mean over the step's targets of -log p; sequences: the
    /// cross-entropy of their scores (which [`Engine::forward_vocabulary`] made), whose gradient weighs the rows'.
    pub(super) fn backward_vocabulary(&mut self, rows: &BatchRows, loss: View) {
        let Some(buffers) = self.head_buffers().vocabulary else { return };
        let count = rows.readout.count;
        let scale = self.scale / self.step_targets as f64;
        if self.head().grouping != Grouping::PerSequence {
            return self.vocabulary_pass(rows, Some(Descent { weights: None, scale, loss: Some(loss) }));
        }
        let sequences = rows.readout.sequences();
        let [logits, d_logits] = [self.head_buffers().logits, self.head_buffers().d_logits].map(|view| view.first_rows(sequences));
        self.backend.cross_entropy(&CrossEntropy { logits, groups: rows.groups, scale, loss, d_logits });
        // A score is a sum of log-probabilities, and d(-log p) = softmax - [target].
        let weights = buffers.weights.col_range(0, count);
        self.backend.spread_segments(d_logits.reshape(1, d_logits.len()), rows.readout.offsets, -1.0, weights);
        self.vocabulary_pass(rows, Some(Descent { weights: Some(weights), scale: 1.0, loss: None }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_few_rows_of_a_large_vocabulary() {
        let precision = Precision { activation: DType::F16, master: DType::F32 };
        let rows = |rows, vocabulary| VocabularyBuffers::chunk_rows(rows, vocabulary, precision);
        assert_eq!((rows(10_000, 128_256), rows(10_000, 50_304), rows(7, 128_256)), (256, 656, 7));
        assert_eq!(rows(100, 1 << 24), 16);
    }
}
