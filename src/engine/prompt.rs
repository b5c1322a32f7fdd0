//! A prompt (Lester et al.): trained embeddings in front of the input, in place of a prefix in the layers. Each sequence
//! gets as many rows in front, which positions, masks and dropout count as tokens; the backward goes down through layer 0
//! and the embeddings' own norm to their sum over all sequences.

use super::activations::{NormBuffers, Reach};
use super::layout::Layout;
use super::plan::Sizes;
use super::{BatchRows, Engine, Mode};
use crate::backend::{Site, View};

/// What the backward through the embeddings needs of their forward, and its own memory.
pub struct PromptBuffers {
    /// Of the embeddings' own norm, and of the one in front of layer 0.
    own_norm: Option<NormBuffers>,
    entry_norm: Option<NormBuffers>,
    /// Gradient of the embeddings, where a linear layer maps them to the hidden size.
    d_embedded: Option<View>,
}

impl Sizes<'_> {
    /// Of each micro-batch that goes through the layers with others; None where no prompt is trained.
    pub fn prompts(&self, layout: &mut Layout, reach: Reach) -> Vec<Option<PromptBuffers>> {
        if !reach.prompt || reach.lowest == reach.layers {
            return (0..reach.together).map(|_| None).collect();
        }
        let (spec, tokens) = (self.spec, self.tokens);
        let formula = format!("{} x {tokens} tokens: norms of the embeddings, for the prompt's gradient", reach.together);
        let of_one = |layout: &mut Layout| {
            let own_norm = spec.embedding_norm.then(|| self.norm(layout, tokens, spec.embedding_size));
            let entry_norm = self.is_pre_norm().then(|| self.norm(layout, tokens, spec.hidden_size));
            let narrow = spec.embedding_size != spec.hidden_size;
            let d_embedded = narrow.then(|| layout.matrix(tokens, spec.embedding_size, self.precision.activation));
            PromptBuffers { own_norm, entry_norm, d_embedded }
        };
        layout.region("prompt", formula, |layout| (0..reach.together).map(|_| Some(of_one(layout))).collect())
    }
}

impl Engine {
    /// Rows in front of each sequence.
    pub(super) fn prompt(&self) -> usize {
        self.options.prefix.prompt()
    }

    /// \[P, E\], and its gradient.
    pub(super) fn prompt_table(&self) -> Option<[View; 2]> {
        self.plan.trainables.table().filter(|_| self.prompt() > 0)
    }

    /// What the embeddings' own norm and the one in front of layer 0 keep for the backward.
    pub(super) fn prompt_norms(&self) -> [Option<NormBuffers>; 2] {
        self.here().prompt.as_ref().map_or([None; 2], |prompt| [prompt.own_norm, prompt.entry_norm])
    }

    /// From the gradient of layer 0's input (buffers of full capacity) to the prompt's.
    pub(super) fn backward_embeddings(&mut self, rows: &BatchRows, g: View, stream: Option<View>) {
        let (Some([_, d_prompt]), Some(buffers)) = (self.prompt_table(), &self.here().prompt) else { return };
        let (own_norm, entry_norm, d_embedded) = (buffers.own_norm, buffers.entry_norm, buffers.d_embedded);
        let count = rows.all.count;
        let mut d = g.first_rows(count);
        if let (Some(norm), Some(kept)) = (self.plan.frozen.entry_norm(&self.spec), entry_norm) {
            let residual = stream.map(|view| view.first_rows(count));
            d = self.plain_norm_backward(norm, kept, d, residual);
        }
        if let (Some(linear), Some(narrow)) = (self.plan.frozen.embedding_projection, d_embedded) {
            let narrow = narrow.first_rows(count);
            linear.backward_input(self.backend.as_mut(), d, narrow, false);
            d = narrow;
        }
        if let Some(dropout) = self.hidden_mask(Mode::Train, Site::Embedding, 0) {
            self.backend.dropout(d, dropout, &rows.all);
        }
        if let (Some(norm), Some(kept)) = (self.plan.frozen.embedding_norm, own_norm) {
            d = self.plain_norm_backward(norm, kept, d, None);
        }
        self.backend.prompt_gradient(d, rows.all.offsets, d_prompt);
    }
}
