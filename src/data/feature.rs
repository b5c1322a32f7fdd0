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
}

impl Grouping {
    /// (start, length, stride) of each group among `rows` x `columns` logits laid end to end, in the order of targets.
    pub fn groups(self, rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let count = match self {
            Grouping::PerRow => rows,
            Grouping::PerColumn => columns,
        };
        (0..count).map(move |group| match self {
            Grouping::PerRow => (group * columns, columns, 1),
            Grouping::PerColumn => (group, rows, columns),
        })
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
