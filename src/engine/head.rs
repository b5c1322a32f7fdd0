//! The head over the rows that it reads: pooling, dropout, output layer, loss; and back.

use super::plan::HeadBuffers;
use super::{BatchRows, Engine, Mode};
use crate::backend::{Activation, CrossEntropy, Site, View};
use crate::data::Grouping;
use crate::model::Pooling;

impl Engine {
    /// Weight and bias of the head's trained layer `index`.
    fn head_layer(&self, index: usize) -> (View, Option<View>) {
        let (weight, bias) = self.plan.trainables.heads[self.batch.head][index];
        let list = &self.plan.trainables.list;
        (list[weight].master, bias.map(|bias| list[bias].master))
    }

    /// Their gradients.
    fn head_gradient(&self, index: usize) -> (View, Option<View>) {
        let (weight, bias) = self.plan.trainables.heads[self.batch.head][index];
        let list = &self.plan.trainables.list;
        (list[weight].gradient, bias.map(|bias| list[bias].gradient))
    }

    fn head_dropout(&mut self, mode: Mode, site: Site, data: View, rows: &BatchRows) {
        if let Some(dropout) = self.hidden_mask(mode, site, 0).filter(|_| self.head().dropout) {
            self.backend.dropout(data, dropout, &rows.readout);
        }
    }

    pub(super) fn forward_head(&mut self, mode: Mode, rows: &BatchRows) {
        if self.head_buffers().vocabulary.is_some() {
            // In training the backward makes what it needs, unless it starts from scores of sequences.
            if mode == Mode::Evaluate || self.head().grouping == Grouping::PerSequence {
                self.forward_vocabulary(rows);
            }
            return;
        }
        let count = rows.readout.count;
        if self.plan.frozen.words.is_some() {
            return self.forward_words(count);
        }
        let HeadBuffers { input, logits, pooled, .. } = *self.head_buffers();
        let [input, logits] = [input, logits].map(|view| view.first_rows(count));
        let pooled = pooled.map(|views| views.map(|view| view.first_rows(count)));
        let last = match (self.head().pooling, pooled) {
            (Pooling::Frozen, Some([sum, pooled])) => {
                if let Some(pooler) = self.plan.frozen.pooler {
                    pooler.forward(self.backend.as_mut(), input, sum);
                }
                self.backend.activation_forward(Activation::Tanh, sum, pooled);
                pooled
            }
            (pooling @ (Pooling::Dense | Pooling::Context), Some([sum, pooled])) => {
                if pooling == Pooling::Dense {
                    self.head_dropout(mode, Site::HeadInner, input, rows);
                }
                let (weight, bias) = self.head_layer(0);
                self.backend.linear(input, weight, bias, sum);
                self.backend.activation_forward(pooling.activation(), sum, pooled);
                pooled
            }
            _ => input,
        };
        self.head_dropout(mode, Site::Head, last, rows);
        let (weight, bias) = self.head_layer(self.plan.trainables.heads[self.batch.head].len() - 1);
        self.backend.linear(last, weight, bias, logits);
    }

    /// Loss and gradients of the head, down to the gradient of its input (where a prefix below wants it).
    pub(super) fn backward_head(&mut self, rows: &BatchRows) {
        let slot = (self.step % 2) as usize;
        let loss = self.plan.report.row_range(slot, 1).col_range(0, 1);
        if self.head_buffers().vocabulary.is_some() {
            return self.backward_vocabulary(rows, loss);
        }
        let count = rows.readout.count;
        let head = self.head_buffers();
        let all = [head.input, head.logits, head.d_logits, self.here().d_input];
        let [input, logits, d_logits, d_input] = all.map(|view| view.first_rows(count));
        let pooled = head.pooled.zip(head.d_pooled).map(|([sum, pooled], d_pooled)| [sum, pooled, d_pooled].map(|v| v.first_rows(count)));
        self.backend.cross_entropy(&CrossEntropy {
            logits,
            groups: rows.groups,
            scale: self.scale / self.step_targets as f64,
            loss,
            d_logits,
        });
        let needed = self.plan.reach.lowest < self.plan.reach.layers;
        if self.plan.frozen.words.is_some() {
            return self.backward_words(count);
        }
        let (last, d_last) = pooled.map_or((input, d_input), |[_, pooled, d_pooled]| (pooled, d_pooled));
        let final_layer = self.plan.trainables.heads[self.batch.head].len() - 1;
        let ((weight, _), (d_weight, d_bias)) = (self.head_layer(final_layer), self.head_gradient(final_layer));
        self.backend.linear_backward_weight(d_logits, last, d_weight, d_bias);
        let pooling = self.head().pooling;
        if !needed && !pooling.trains() {
            return;
        }
        self.backend.linear_backward_input(d_logits, weight, d_last, false);
        self.head_dropout(Mode::Train, Site::Head, d_last, rows);
        let Some([sum, _, d_pooled]) = pooled else { return };
        self.backend.activation_backward(pooling.activation(), sum, d_pooled, d_pooled);
        let weight = match self.plan.frozen.pooler.filter(|_| !pooling.trains()) {
            Some(pooler) => pooler.weight,
            None => {
                let ((weight, _), (d_weight, d_bias)) = (self.head_layer(0), self.head_gradient(0));
                self.backend.linear_backward_weight(d_pooled, input, d_weight, d_bias);
                weight
            }
        };
        if needed {
            self.backend.linear_backward_input(d_pooled, weight, d_input, false);
            if pooling == Pooling::Dense {
                self.head_dropout(Mode::Train, Site::HeadInner, d_input, rows);
            }
        }
    }
}
