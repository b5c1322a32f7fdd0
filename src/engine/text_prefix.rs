//! A prefix that starts as real text: the keys and values that the frozen model itself computes for the text's tokens,
//! keys as attention sees them (after their rotation), as PEFT has it.

use super::{Engine, Mode, numbers};
use crate::data::{Feature, FeatureSet, Sequence};
use anyhow::{Result, ensure};

impl Engine {
    /// Sets the prefix; a token a prefix position. Positions count from 0, without the prefix in front.
    /// Errors: another number of tokens than the prefix has positions, a projected prefix, tokens beyond the position
    /// table or the plan.
    pub fn set_prefix_from_tokens(&mut self, ids: &[u32]) -> Result<()> {
        let length = self.options.prefix.length;
        ensure!(ids.len() == length, "a text of {} tokens for a prefix of {length} positions", ids.len());
        ensure!(self.options.prefix.projection.is_none(), "a prefix that is made by a projection cannot start from a text");
        let Some([table, _]) = self.plan.trainables.table() else { return Ok(()) };
        if self.prompt() > 0 {
            return self.copy_embeddings(ids, table);
        }
        let sequence = Sequence { ids: ids.to_vec(), readout: vec![length as u32 - 1], separator: length as u32, ..Sequence::default() };
        let feature = Feature { sequences: 1, ..Feature::default() };
        let set = FeatureSet { sequences: vec![sequence], features: vec![feature], examples: 1 };
        self.bare = true;
        let result = self.compute_prefix(&set, table);
        self.bare = false;
        self.prefix_stale = true;
        result
    }

    /// A prompt starts as the text's own embeddings.
    fn copy_embeddings(&mut self, ids: &[u32], table: crate::backend::View) -> Result<()> {
        for (row, &id) in ids.iter().enumerate() {
            ensure!((id as usize) < self.spec.vocabulary, "token {id} is outside the {} that there are", self.spec.vocabulary);
            let values = self.read_values(self.plan.frozen.word.row_range(id as usize, 1));
            self.backend.write(table.row_range(row, 1), &numbers::to_bytes(&values, table.dtype));
        }
        self.backend.check()
    }

    fn compute_prefix(&mut self, set: &FeatureSet, table: crate::backend::View) -> Result<()> {
        let rows = self.load_batch(set, &[0], 0)?;
        self.forward_embeddings(Mode::Evaluate, &rows);
        let last = self.options.prefix.layers.last().copied().unwrap_or(0);
        for layer in 0..=last {
            self.bring_layer(layer);
            self.forward_layer(Mode::Evaluate, &rows, layer);
            // Read before the next layer, which may use the same buffers.
            let Some(index) = self.prefix_index(layer) else { continue };
            for (from, to) in self.keys_and_values(layer).into_iter().zip(self.prefix_columns(table, index)) {
                for row in 0..rows.all.count {
                    let values = self.read_values(from.row_range(row, 1));
                    self.backend.write(to.row_range(row, 1), &numbers::to_bytes(&values, to.dtype));
                }
            }
        }
        self.backend.check()
    }
}
