//! Encoded examples: the features that the engine reads, and the way back from a feature's rows to its example.

use crate::data::{Feature, FeatureSet, Sequence};
use std::ops::Range;

/// Lengths that examples are cut to, in tokens with special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_length: usize,
    /// Tokens that neighbouring windows of a context share.
    pub doc_stride: usize,
}

/// What the rows of a feature stand for in its example.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The example, or one choice a row.
    Whole,
    /// Index of the word of every row, and of the first word behind those that were read.
    Words { rows: Vec<u32>, end: usize },
    /// A row a token; `context` says which of them are tokens of the context.
    Window {
        context: Range<usize>,
        /// Characters of the context that each of those tokens covers.
        offsets: Vec<(u32, u32)>,
        cls_index: usize,
    },
}

/// One feature before it is put with the others.
pub(super) struct Item {
    pub sequences: Vec<Sequence>,
    pub targets: Vec<i32>,
    pub source: Source,
}

/// One example's features.
pub(super) struct EncodedExample {
    pub items: Vec<Item>,
    /// Whether any token was cut off for good.
    pub truncated: bool,
}

impl EncodedExample {
    pub fn single(sequences: Vec<Sequence>, targets: Vec<i32>, truncated: bool) -> EncodedExample {
        EncodedExample { items: vec![Item { sequences, targets, source: Source::Whole }], truncated }
    }
}

/// Examples of one file as features, in order.
#[derive(Clone, Debug)]
pub struct Encoding {
    pub set: FeatureSet,
    /// Examples of which the limits cut something off.
    pub truncated: usize,
    /// First feature of every example, and the number of features.
    first_feature: Vec<usize>,
    sources: Vec<Source>,
}

impl Encoding {
    pub(super) fn new(examples: Vec<EncodedExample>) -> Encoding {
        let mut encoding = Encoding {
            set: FeatureSet { examples: examples.len(), ..Default::default() },
            truncated: 0,
            first_feature: vec![0],
            sources: Vec::new(),
        };
        let FeatureSet { sequences, features, .. } = &mut encoding.set;
        for (example, encoded) in examples.into_iter().enumerate() {
            encoding.truncated += usize::from(encoded.truncated);
            for item in encoded.items {
                features.push(Feature { example, first_sequence: sequences.len(), sequences: item.sequences.len(), targets: item.targets });
                sequences.extend(item.sequences);
                encoding.sources.push(item.source);
            }
            encoding.first_feature.push(features.len());
        }
        encoding
    }

    /// Features of an example; none where it has nothing to read (a sentence without a single sub-token).
    pub fn features_of(&self, example: usize) -> Range<usize> {
        self.first_feature[example]..self.first_feature[example + 1]
    }

    pub(super) fn source(&self, feature: usize) -> &Source {
        &self.sources[feature]
    }
}
