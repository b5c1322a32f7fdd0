//! Three levels with index maps: an example is a line of the data; a feature is what one target belongs to (a
//! window of a long context, an example with its choices); a sequence is what the model reads (a window, a choice).

/// Tokens of one sequence, special tokens included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    pub ids: Vec<u32>,
    /// Token types; empty: all 0.
    pub types: Vec<u32>,
    /// Token indices whose hidden states the head reads, ascending.
    pub readout: Vec<u32>,
    /// Tokens before this one see one another, where the model's mask is one of separators; every token sees those
    /// before it and itself.
    pub separator: u32,
    /// Where a score of the sequence is asked for: the tokens that the readout rows are to predict.
    pub predicts: Vec<u32>,
    /// Two-dimensional positions: tokens from the separator on fill the blank at this token.
    pub blank: Option<u32>,
}

impl Sequence {
    /// A text whose tokens see one another as far as the model's mask lets them.
    pub fn text(ids: Vec<u32>, types: Vec<u32>, readout: Vec<u32>) -> Sequence {
        Sequence { separator: ids.len() as u32, ids, types, readout, ..Sequence::default() }
    }
}

/// One item of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Feature {
    /// Index of its example.
    pub example: usize,
    /// Its sequences: a range of [`FeatureSet::sequences`].
    pub first_sequence: usize,
    pub sequences: usize,
    /// One target a logit group in the order of the groups (see [`Grouping`]); -100: none. Empty: unlabelled.
    pub targets: Vec<i32>,
}

/// How the head's logits \[rows, columns\] of a feature fall into softmax groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// Every row chooses among its columns (classification, tagging).
    PerRow,
    /// Every column chooses among the feature's rows (multiple choice: one column; spans: start and end).
    PerColumn,
    /// Every row chooses among the vocabulary; its target is a token id. There are no logits, but for each row the
    /// target's log-probability and whether it is the likeliest token.
    PerToken,
    /// The one column chooses among the feature's sequences, which have a score each.
    PerSequence,
}

impl Grouping {
    /// (start, length, stride) of each group among `rows` x `columns` logits laid end to end, in the order of targets.
    pub fn groups(self, rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let count = match self {
            Grouping::PerRow => rows,
            Grouping::PerColumn | Grouping::PerSequence => columns,
            Grouping::PerToken => 0,
        };
        (0..count).map(move |group| match self {
            Grouping::PerRow | Grouping::PerToken => (group * columns, columns, 1),
            Grouping::PerColumn | Grouping::PerSequence => (group, rows, columns),
        })
    }

    /// Rows of a feature's logits.
    pub fn rows(self, set: &FeatureSet, feature: usize) -> usize {
        if self == Grouping::PerSequence { set.features[feature].sequences } else { set.rows(feature) }
    }
}

/// Encoded data: features of all examples in order, and their sequences.
#[derive(Clone, Debug, Default)]
pub struct FeatureSet {
    pub sequences: Vec<Sequence>,
    pub features: Vec<Feature>,
    pub examples: usize,
}

impl FeatureSet {
    pub fn sequences_of(&self, feature: usize) -> &[Sequence] {
        let Feature { first_sequence, sequences, .. } = self.features[feature];
        &self.sequences[first_sequence..first_sequence + sequences]
    }

    /// Tokens of a feature over all of its sequences.
    pub fn tokens(&self, feature: usize) -> usize {
        self.sequences_of(feature).iter().map(|sequence| sequence.ids.len()).sum()
    }

    /// Rows that the head reads of a feature.
    pub fn rows(&self, feature: usize) -> usize {
        self.sequences_of(feature).iter().map(|sequence| sequence.readout.len()).sum()
    }

    /// Targets that count in the loss.
    pub fn targets(&self, feature: usize) -> usize {
        self.features[feature].targets.iter().filter(|&&target| target >= 0).count()
    }

    pub fn longest_sequence(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0)
    }
}
