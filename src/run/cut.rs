//! How an epoch is cut into optimizer steps, and a step into micro-batches: by number of features, or by tokens.

use crate::data::FeatureSet;
use crate::engine::Capacity;
use crate::model::HeadSpec;
use std::fmt;

/// How much a batch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Features(usize),
    Tokens(usize),
}

impl Size {
    /// Features in order, cut into batches of at most this size. A feature that has more tokens is a batch of its own.
    pub fn batches<'a>(self, set: &FeatureSet, features: &'a [usize]) -> Vec<&'a [usize]> {
        let limit = match self {
            Size::Features(count) => return features.chunks(count).collect(),
            Size::Tokens(limit) => limit,
        };
        let (mut batches, mut start, mut tokens) = (Vec::new(), 0, 0);
        for (index, &feature) in features.iter().enumerate() {
            if index > start && tokens + set.tokens(feature) > limit {
                batches.push(&features[start..index]);
                (start, tokens) = (index, 0);
            }
            tokens += set.tokens(feature);
        }
        batches.extend(Some(&features[start..]).filter(|rest| !rest.is_empty()));
        batches
    }

    /// Room for any such batch of a set.
    pub fn capacity(self, set: &FeatureSet, head: &HeadSpec, training: bool) -> Capacity {
        let limit = match self {
            Size::Features(count) => return Capacity::for_items(set, head, count, training),
            Size::Tokens(limit) => limit.max(longest_feature(set)),
        };
        // As many as the shortest ones.
        let mut sizes: Vec<usize> = (0..set.features.len()).map(|feature| set.tokens(feature)).collect();
        sizes.sort_unstable();
        let mut tokens = 0;
        let count = sizes.iter().take_while(|&&size| (tokens += size, tokens <= limit).1).count();
        let room = Capacity::for_items(set, head, count, training);
        Capacity { tokens: room.tokens.min(limit), rows: room.rows.min(limit), ..room }
    }

    /// This size, half of it, and so on down to one feature.
    pub fn halves(self, set: &FeatureSet) -> Vec<Size> {
        let half = |whole: usize, least: usize| {
            let mut sizes: Vec<usize> = (0..usize::BITS).map(|shift| whole.div_ceil(1 << shift).max(least)).collect();
            sizes.dedup();
            sizes
        };
        match self {
            Size::Features(count) => half(count.min(set.features.len()), 1).into_iter().map(Size::Features).collect(),
            Size::Tokens(count) => half(count, longest_feature(set)).into_iter().map(Size::Tokens).collect(),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Features(count) => write!(formatter, "{count} items"),
            Size::Tokens(count) => write!(formatter, "{count} tokens"),
        }
    }
}

/// Tokens of the feature that has most.
pub fn longest_feature(set: &FeatureSet) -> usize {
    (0..set.features.len()).map(|feature| set.tokens(feature)).max().unwrap_or(0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub step: Size,
    pub micro_batch: Size,
}

impl Cut {
    /// Steps of every epoch: of as many features, the last one of what is left; or of about as many tokens each.
    pub fn steps_per_epoch(&self, set: &FeatureSet) -> usize {
        match self.step {
            Size::Features(count) => set.features.len().div_ceil(count),
            Size::Tokens(count) => {
                let total: usize = (0..set.features.len()).map(|feature| set.tokens(feature)).sum();
                total.div_ceil(count).clamp(1, set.features.len().max(1))
            }
        }
    }

    /// Micro-batches of a step at most, whatever the order.
    pub fn most_batches(&self, set: &FeatureSet) -> usize {
        let features = set.features.len();
        let most = match (self.step, self.micro_batch) {
            (Size::Features(step), Size::Features(count)) => step.min(features).div_ceil(count),
            // Two neighbours hold more tokens than one may.
            (Size::Tokens(step), Size::Tokens(tokens)) => {
                let whole = step + longest_feature(set);
                if tokens >= whole { 1 } else { (2 * whole / tokens + 1).min(features) }
            }
            _ => features,
        };
        most.max(1)
    }

    /// Where the steps of an epoch in this order begin, and where the last one ends. No step is empty.
    pub fn steps(&self, set: &FeatureSet, order: &[usize]) -> Vec<usize> {
        let count = self.steps_per_epoch(set);
        if let Size::Features(size) = self.step {
            return (0..=count).map(|step| (step * size).min(order.len())).collect();
        }
        let total: usize = order.iter().map(|&feature| set.tokens(feature)).sum();
        let (mut bounds, mut tokens) = (vec![0], 0);
        for (index, &feature) in order.iter().enumerate() {
            let step = bounds.len();
            // The step ends where its share of the tokens does, but leaves one feature for each that follows.
            let due = tokens * count >= step * total && index > bounds[step - 1];
            let last_chance = order.len() - index == count - step;
            if step < count && (due || last_chance) && index > 0 {
                bounds.push(index);
            }
            tokens += set.tokens(feature);
        }
        bounds.push(order.len());
        bounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Feature, Sequence};

    fn set(lengths: &[usize]) -> FeatureSet {
        let mut set = FeatureSet::default();
        for (example, &length) in lengths.iter().enumerate() {
            set.sequences.push(Sequence { ids: vec![1; length], readout: vec![0], ..Sequence::default() });
            set.features.push(Feature { example, first_sequence: example, sequences: 1, targets: vec![0] });
        }
        set
    }

    #[test]
    fn steps_hold_their_share_of_the_tokens() {
        let cut = |tokens| Cut { step: Size::Tokens(tokens), micro_batch: Size::Tokens(tokens) };
        let equal = set(&[4; 8]);
        let order: Vec<usize> = (0..8).collect();
        assert_eq!(cut(8).steps(&equal, &order), [0, 2, 4, 6, 8]);
        assert_eq!(cut(100).steps(&equal, &order), [0, 8]);
        assert_eq!(cut(4).steps(&equal, &order), (0..=8).collect::<Vec<_>>());
        // Long ones at either end: no step is empty, whatever the order.
        for lengths in [[50, 1, 1, 1], [1, 1, 1, 50], [1, 50, 1, 1], [25, 25, 1, 50]] {
            let set = set(&lengths);
            let order: Vec<usize> = (0..4).collect();
            for tokens in [50, 51, 60, 100] {
                let bounds = cut(tokens).steps(&set, &order);
                assert_eq!(bounds.len(), cut(tokens).steps_per_epoch(&set) + 1, "{lengths:?} by {tokens}");
                for micro_batch in [1, 20, 50, 200].map(Size::Tokens) {
                    let cut = Cut { micro_batch, ..cut(tokens) };
                    let found = bounds.windows(2).map(|step| micro_batch.batches(&set, &order[step[0]..step[1]]).len()).max();
                    assert!(found.unwrap() <= cut.most_batches(&set), "{lengths:?} by {tokens} in {micro_batch}");
                }
                assert!(bounds[0] == 0 && bounds.windows(2).all(|pair| pair[0] < pair[1]) && bounds[bounds.len() - 1] == 4, "{bounds:?}");
            }
        }
    }

    #[test]
    fn a_step_has_only_so_many_micro_batches() {
        let most = |step, micro_batch| Cut { step, micro_batch }.most_batches(&set(&[4; 10]));
        assert_eq!(most(Size::Features(8), Size::Features(3)), 3);
        assert_eq!(most(Size::Features(1000), Size::Features(1)), 10);
        assert_eq!(most(Size::Tokens(16), Size::Tokens(20)), 1);
        assert_eq!(most(Size::Tokens(16), Size::Tokens(8)), 6);
    }

    #[test]
    fn batches_stay_within_their_size() {
        let set = set(&[3, 5, 2, 9, 1]);
        let features = [0, 1, 2, 3, 4];
        assert_eq!(Size::Tokens(10).batches(&set, &features), [&features[0..3], &features[3..5]]);
        let expected: [&[usize]; 4] = [&[0, 1], &[2], &[3], &[4]];
        assert_eq!(Size::Tokens(9).batches(&set, &features), expected);
        assert_eq!(Size::Features(2).batches(&set, &features), [&features[0..2], &features[2..4], &features[4..5]]);
        // Too long for any batch: one of its own.
        assert_eq!(Size::Tokens(8).batches(&set, &features), expected);
        assert!(Size::Tokens(8).batches(&set, &[]).is_empty());
        assert_eq!(Size::Tokens(20).halves(&set), [20, 10, 9].map(Size::Tokens));
        assert_eq!(Size::Features(5).halves(&set), [5, 3, 2, 1].map(Size::Features));
    }
}
