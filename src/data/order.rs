//! The order in which an epoch visits the training examples.

use crate::backend::{Site, Stream, stream_key};

/// Indices `0..count` in the order of epoch `epoch` (from 0): a permutation that depends on `seed` and `epoch` alone,
/// so that a resumed run visits what the interrupted one would have visited; the file's order when not `shuffled`.
pub fn epoch_order(count: usize, seed: u64, epoch: u64, shuffled: bool) -> Vec<usize> {
    if shuffled { Stream::new(stream_key(seed, epoch, Site::Order, 0)).permutation(count) } else { (0..count).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_and_seed_has_its_own_order() {
        let order = epoch_order(100, 42, 0, true);
        assert_eq!(order, epoch_order(100, 42, 0, true));
        assert_ne!(order, epoch_order(100, 42, 1, true));
        assert_ne!(order, epoch_order(100, 43, 0, true));
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, epoch_order(100, 42, 7, false));
        assert!(epoch_order(0, 42, 0, true).is_empty());
    }
}
