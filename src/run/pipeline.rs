//! Packs the next batch while the engine computes the current one, on another thread of the pool.

use crate::data::{Batch, FeatureSet, Packing};
use crate::engine::Engine;
use anyhow::Result;

/// What goes into a batch: the head that it goes through, features, and how many sequences of the optimizer step come before
/// them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub head: usize,
    pub features: Vec<usize>,
    pub first_ordinal: usize,
}

/// Batches of one set a head, one ahead of what is computed. What is computed does not depend on it.
pub struct Pipeline {
    /// One a head.
    packings: Vec<Packing>,
    /// The batch that comes next, and whether it could be packed.
    ready: Option<(Contents, Batch, Result<()>)>,
    /// A batch whose memory can be used again.
    spare: Batch,
}

impl Pipeline {
    pub fn new(engine: &Engine) -> Pipeline {
        let packings = (0..engine.options().heads.len()).map(|head| engine.packing(head)).collect();
        Pipeline { packings, ready: None, spare: Batch::default() }
    }

    /// Lets the engine work on one batch and packs `next` meanwhile.
    pub fn run<T>(
        &mut self,
        (set, now): (&FeatureSet, Contents),
        next: Option<(&FeatureSet, Contents)>,
        work: impl FnOnce(&mut Batch) -> Result<T>,
    ) -> Result<T> {
        let (mut batch, packed) = match self.ready.take() {
            Some((contents, batch, packed)) if contents == now => (batch, packed),
            _ => self.pack(set, &now),
        };
        packed?;
        // The work stays on this thread, as what profilers are told of it does.
        let result = rayon::in_place_scope(|scope| {
            scope.spawn(|_| {
                self.ready = next.map(|(set, next)| {
                    let (batch, packed) = self.pack(set, &next);
                    (next, batch, packed)
                });
            });
            work(&mut batch)
        });
        self.spare = batch;
        result
    }

    fn pack(&mut self, set: &FeatureSet, contents: &Contents) -> (Batch, Result<()>) {
        let mut batch = std::mem::take(&mut self.spare);
        let packed = batch.pack(&self.packings[contents.head], set, &contents.features, contents.first_ordinal);
        (batch, packed)
    }
}
