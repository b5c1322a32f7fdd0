//! The prefix table: which of its columns are a layer's keys and values, and the projection that may make it
//! (the released code's `model/prefix_encoder.py`): table = W2 tanh(W1 E + b1) + b2.

use super::Engine;
use super::trainable::PrefixBuffers;
use crate::backend::{Activation, View};

impl Engine {
    /// The layer's place among the layers that have a prefix.
    pub(super) fn prefix_index(&self, layer: usize) -> Option<usize> {
        self.options.prefix.active_layers().iter().position(|&active| active == layer)
    }

    /// Keys and values of the `index`th prefix layer in a table laid out \[layer\]\[key, value\]\[head\]\[dim\].
    pub(super) fn prefix_columns(&self, table: View, index: usize) -> [View; 2] {
        let kv = self.spec.kv_size();
        [table.col_range(2 * index * kv, kv), table.col_range((2 * index + 1) * kv, kv)]
    }

    /// Makes the table anew where a projection makes it and its trainables have changed.
    pub(super) fn refresh_prefix(&mut self) {
        if !std::mem::take(&mut self.prefix_stale) {
            return;
        }
        let trainables = &self.plan.trainables;
        let Some(&PrefixBuffers::Projected { table, sum, hidden, .. }) = trainables.prefix.as_ref() else { return };
        let master = |i: usize| trainables.list[i].master;
        let (embedding, w1, b1, w2, b2) = (master(0), master(1), master(2), master(3), master(4));
        self.backend.linear(embedding, w1, Some(b1), sum);
        self.backend.activation_forward(Activation::Tanh, sum, hidden);
        self.backend.linear(hidden, w2, Some(b2), table);
    }

    /// From the table's gradient, complete for the step, to the projection's.
    pub(super) fn backward_projection(&mut self) {
        let trainables = &self.plan.trainables;
        let Some(&PrefixBuffers::Projected { d_table, sum, hidden, d_hidden, .. }) = trainables.prefix.as_ref() else { return };
        let list = &trainables.list;
        let (embedding, w1, w2) = (list[0].master, list[1].master, list[3].master);
        let d = |i: usize| list[i].gradient;
        let (d_embedding, d_w1, d_b1, d_w2, d_b2) = (d(0), d(1), d(2), d(3), d(4));
        self.backend.linear_backward_weight(d_table, hidden, d_w2, Some(d_b2));
        self.backend.linear_backward_input(d_table, w2, d_hidden, false);
        self.backend.activation_backward(Activation::Tanh, sum, d_hidden, d_hidden);
        self.backend.linear_backward_weight(d_hidden, embedding, d_w1, Some(d_b1));
        self.backend.linear_backward_input(d_hidden, w1, d_embedding, false);
    }
}
