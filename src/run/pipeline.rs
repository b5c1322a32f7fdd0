//! Packs the next batch while the engine computes the current one, on another thread of the pool.

use crate::data::{Batch, FeatureSet, Packing};
use crate::engine::Engine;
use anyhow::Result;

/// What goes into a batch: features, and how many sequences of the optimizer step come before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub features: Vec<usize>,
    pub first_ordinal: usize,
}

/// Batches of one set, one ahead of what is computed. What is computed does not depend on it.
pub struct Pipeline {
    packing: Packing,
    /// The batch that comes next, and whether it could be packed.
    ready: Option<(Contents, Batch, Result<()>)>,
    /// A batch whose memory can be used again.
    spare: Batch,
}

impl Pipeline {
    pub fn new(engine: &Engine) -> Pipeline {
        Pipeline { packing: engine.packing(), ready: None, spare: Batch::default() }
    }

    /// Lets the engine work on one batch and packs `next` meanwhile.
    pub fn run<T: Send>(
        &mut self,
        set: &FeatureSet,
        now: Contents,
        next: Option<Contents>,
        work: impl FnOnce(&mut Batch) -> Result<T> + Send,
    ) -> Result<T> {
        let (mut batch, packed) = match self.ready.take() {
            Some((contents, batch, packed)) if contents == now => (batch, packed),
            _ => self.pack(set, &now),
        };
        packed?;
        let (result, ready) = rayon::join(
            || work(&mut batch),
            || {
                next.map(|next| {
                    let (batch, packed) = self.pack(set, &next);
                    (next, batch, packed)
                })
            },
        );
        self.ready = ready;
        self.spare = batch;
        result
    }

    fn pack(&mut self, set: &FeatureSet, contents: &Contents) -> (Batch, Result<()>) {
        let mut batch = std::mem::take(&mut self.spare);
        let packed = batch.pack(&self.packing, set, &contents.features, contents.first_ordinal);
        (batch, packed)
    }
}
