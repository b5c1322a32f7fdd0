//! The frozen head that scores labels as words: the language-model head's rows of these tokens; of a masked language
//! model behind its transform, norm(f(W h + b)), and with its bias.

use super::Engine;
use super::frozen::{Linear, Norm, Placer};
use super::layout::Layout;
use super::numbers;
use crate::backend::{Activation, Backend, Stream, View};
use crate::checkpoint::{Checkpoint, FrozenModel, Weights};
use crate::model::{Pooling, Slot};
use anyhow::Result;

pub struct WordHead {
    /// Whose rows they are.
    slot: Slot,
    tokens: Vec<u32>,
    /// \[C, H\] (and \[C\]), in master precision: few, and exact.
    rows: Linear,
    pub transform: Option<Transform>,
}

#[derive(Clone, Copy)]
pub struct Transform {
    pub dense: Linear,
    norm: Norm,
    activation: Activation,
}

impl WordHead {
    /// Errors: a checkpoint without the head.
    pub fn lay_out(placer: &mut Placer, pooling: Pooling, tokens: &[u32], layout: &mut Layout) -> Result<WordHead> {
        let (model, master) = (placer.model, placer.precision.master);
        let slot = if model.spec.tied_head { Slot::WordEmbedding } else { Slot::LanguageHead };
        let masked = pooling == Pooling::Masked;
        let transform = if masked {
            let activation = model.masked_head()?.activation.unwrap_or(model.spec.activation);
            let dense = placer.linear(layout, Slot::HeadTransform)?;
            Some(Transform { dense, norm: placer.norm(layout, Slot::HeadNorm), activation })
        } else {
            None
        };
        if let Weights::Files(_) = model.source {
            model.weight(slot)?;
            if masked {
                model.masked_bias()?;
            }
        }
        let weight = layout.matrix(tokens.len(), model.spec.hidden_size, master);
        let bias = masked.then(|| layout.vector(tokens.len(), master));
        Ok(WordHead { slot, tokens: tokens.to_vec(), rows: Linear { weight, bias, quantised: None }, transform })
    }

    /// Whose rows of which tokens there are.
    pub fn source(&self) -> (Slot, &[u32]) {
        (self.slot, &self.tokens)
    }

    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Brings the words' rows and biases from the files.
    pub fn load(&self, model: &FrozenModel, checkpoint: &Checkpoint, backend: &mut dyn Backend) -> Result<()> {
        let mut bring = |tensor, width, views: &dyn Fn(usize) -> View| {
            let tensor: &crate::checkpoint::Tensor = tensor;
            let bytes = width * tensor.dtype.size();
            for (row, &token) in self.tokens.iter().enumerate() {
                let data = &checkpoint.data(tensor)[token as usize * bytes..][..bytes];
                let (values, to) = (numbers::widen_frozen(&tensor.name, data, tensor.dtype)?, views(row));
                backend.write(to, &numbers::to_bytes(&values, to.dtype));
            }
            anyhow::Ok(())
        };
        let weight = self.rows.weight;
        bring(model.weight(self.slot)?, weight.cols, &|row| weight.row_range(row, 1))?;
        match self.rows.bias {
            Some(bias) => bring(model.masked_bias()?, 1, &|row| bias.col_range(row, 1)),
            None => Ok(()),
        }
    }

    /// Rows of random weights: those of the word embedding `word` where the head is tied to it, else of a matrix that
    /// nothing else reads.
    pub fn draw(&self, word: View, mut stream: Stream, deviation: f64, backend: &mut dyn Backend) {
        for (row, &token) in self.tokens.iter().enumerate() {
            let to = self.rows.weight.row_range(row, 1);
            let values = if self.slot == Slot::WordEmbedding {
                let from = word.row_range(token as usize, 1);
                let mut bytes = vec![0; from.len() * from.dtype.size()];
                backend.read(from, &mut bytes);
                numbers::from_bytes(&bytes, from.dtype)
            } else {
                let pairs = std::iter::repeat_with(|| stream.normal_pair()).flatten();
                pairs.take(to.cols).map(|value| value * deviation).collect()
            };
            backend.write(to, &numbers::to_bytes(&values, to.dtype));
        }
        if let Some(bias) = self.rows.bias {
            backend.zero(bias);
        }
    }
}

impl Engine {
    /// Logits of the words. The transform's output takes the place of the head's input, which nothing else reads: no
    /// gradient of a frozen layer's weight is asked for.
    pub(super) fn forward_words(&mut self, count: usize) {
        let head = self.head_buffers();
        let Some(&WordHead { rows, transform, .. }) = self.plan.frozen.words.as_ref() else { return };
        let (input, logits) = (head.input.first_rows(count), head.logits.first_rows(count));
        if let (Some(transform), Some(pooled), Some(keep)) = (transform, head.pooled, head.norm) {
            let [sum, activated] = pooled.map(|view| view.first_rows(count));
            transform.dense.forward(self.backend.as_mut(), input, sum);
            self.backend.activation_forward(transform.activation, sum, activated);
            self.norm(transform.norm, activated, None, None, None, keep, input, count);
        }
        rows.forward(self.backend.as_mut(), input, logits);
    }

    /// From the logits' gradient to that of the head's input.
    pub(super) fn backward_words(&mut self, count: usize) {
        let head = self.head_buffers();
        let Some(&WordHead { rows, transform, .. }) = self.plan.frozen.words.as_ref() else { return };
        let (d_logits, d_input) = (head.d_logits.first_rows(count), self.here().d_input.first_rows(count));
        let (Some(transform), Some([sum, _]), Some(d_pooled), Some(keep)) = (transform, head.pooled, head.d_pooled, head.norm) else {
            return rows.backward_input(self.backend.as_mut(), d_logits, d_input, false);
        };
        let (sum, d) = (sum.first_rows(count), d_pooled.first_rows(count));
        rows.backward_input(self.backend.as_mut(), d_logits, d, false);
        self.plain_norm_backward(transform.norm, keep, d, None);
        self.backend.activation_backward(transform.activation, sum, d, d);
        transform.dense.backward_input(self.backend.as_mut(), d, d_input, false);
    }
}
