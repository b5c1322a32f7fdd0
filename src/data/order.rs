//! The order in which an epoch visits the training examples.

use crate::backend::{Site, Stream, stream_key};

/// Indices `0..count` in the order of epoch `epoch` (from 0): a permutation that depends on `seed`, `epoch` and the number of
/// the set alone, so that a resumed run visits what the interrupted one would have visited; the file's order when not
/// `shuffled`.
pub fn epoch_order(count: usize, seed: u64, epoch: u64, set: usize, shuffled: bool) -> Vec<usize> {
    if shuffled { Stream::new(stream_key(seed, epoch, Site::Order, set)).permutation(count) } else { (0..count).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_seed_and_set_has_its_own_order() {
        let order = epoch_order(100, 42, 0, 0, true);
        assert_eq!(order, epoch_order(100, 42, 0, 0, true));
        for (seed, epoch, set) in [(42, 1, 0), (43, 0, 0), (42, 0, 1)] {
            assert_ne!(order, epoch_order(100, seed, epoch, set, true));
        }
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, epoch_order(100, 42, 7, 0, false));
        assert!(epoch_order(0, 42, 0, 0, true).is_empty());
    }
}
