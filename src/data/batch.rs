//! A packed batch: sequences one after another with row offsets (cu_seqlens), nothing padded, everything int32 as the
//! backend reads it. Reused from step to step.

use super::{FeatureSet, Grouping};
use crate::model::Specification;

/// Rows and what a dropout mask is drawn by: see [`crate::backend::Rows`].
#[derive(Clone, Debug, Default)]
pub struct RowArrays {
    pub ordinals: Vec<i32>,
    pub tokens: Vec<i32>,
    /// B + 1 offsets.
    pub offsets: Vec<i32>,
}

impl RowArrays {
    fn clear(&mut self) {
        self.ordinals.clear();
        self.tokens.clear();
        self.offsets.clear();
        self.offsets.push(0);
    }

    fn end_sequence(&mut self) {
        self.offsets.push(self.tokens.len() as i32);
    }

    pub fn count(&self) -> usize {
        self.tokens.len()
    }

    /// Rows of the sequence that has most.
    pub fn longest(&self) -> usize {
        self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub ids: Vec<i32>,
    pub positions: Vec<i32>,
    pub types: Vec<i32>,
    /// Every token.
    pub all: RowArrays,
    /// The tokens that the head reads, and where they are among all.
    pub readout: RowArrays,
    pub readout_rows: Vec<i32>,
    /// \[start, length, stride, target\] of every logit group: [`crate::backend::LogitGroup`].
    pub groups: Vec<i32>,
    /// Groups that have a target.
    pub targets: usize,
    /// Head rows of each feature.
    pub feature_rows: Vec<usize>,
}

/// How a model and its head want a batch.
pub struct Packing<'a> {
    pub spec: &'a Specification,
    /// Added to the positions of all tokens (the prefix length where positions are shifted).
    pub shift: usize,
    pub grouping: Grouping,
    /// Columns of the head's logits.
    pub columns: usize,
}

impl Batch {
    /// Packs features; `first_ordinal` counts the sequences of the optimizer step before them.
    pub fn pack(&mut self, packing: &Packing, set: &FeatureSet, features: &[usize], first_ordinal: usize) {
        for list in [&mut self.ids, &mut self.positions, &mut self.types, &mut self.readout_rows, &mut self.groups] {
            list.clear();
        }
        self.all.clear();
        self.readout.clear();
        self.feature_rows.clear();
        self.targets = 0;
        let mut ordinal = first_ordinal as i32;
        for &feature in features {
            let first_row = self.readout.count();
            for sequence in set.sequences_of(feature) {
                let start = self.ids.len();
                self.ids.extend(sequence.ids.iter().map(|&id| id as i32));
                self.positions.extend(packing.spec.position_ids(&sequence.ids, packing.shift).map(|position| position as i32));
                self.types.extend(sequence.types.iter().map(|&kind| kind as i32));
                self.types.resize(self.ids.len(), 0);
                self.all.tokens.extend(0..sequence.ids.len() as i32);
                self.all.ordinals.resize(self.ids.len(), ordinal);
                self.all.end_sequence();
                self.readout.tokens.extend(sequence.readout.iter().map(|&token| token as i32));
                self.readout_rows.extend(sequence.readout.iter().map(|&token| start as i32 + token as i32));
                self.readout.ordinals.resize(self.readout.count(), ordinal);
                self.readout.end_sequence();
                ordinal += 1;
            }
            self.push_groups(packing, first_row, &set.features[feature].targets);
        }
    }

    fn push_groups(&mut self, packing: &Packing, first_row: usize, targets: &[i32]) {
        let (rows, columns) = (self.readout.count() - first_row, packing.columns);
        self.feature_rows.push(rows);
        let (count, length, stride) = match packing.grouping {
            Grouping::PerRow => (rows, columns, 1),
            Grouping::PerColumn => (columns, rows, columns),
        };
        let first = first_row * columns;
        for i in 0..count {
            let target = targets.get(i).copied().unwrap_or(-1).max(-1);
            self.targets += usize::from(target >= 0);
            let start = match packing.grouping {
                Grouping::PerRow => first + i * columns,
                Grouping::PerColumn => first + i,
            };
            self.groups.extend([start as i32, length as i32, stride as i32, target]);
        }
    }

    pub fn sequences(&self) -> usize {
        self.all.offsets.len() - 1
    }
}
