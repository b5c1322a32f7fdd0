//! Greedy continuation of prompts. The prompts go through the model once, their keys and values into the cache; then
//! every sequence that has not ended is read one token at a time, with the prefix and the cache in front of it.
//!
//! The cache is a region of the memory plan: rows b * length and on of every layer's keys and values are those of
//! sequence b. To attention the rows that are not filled are sequences without queries.

use super::layout::Layout;
use super::plan::RowViews;
use super::{BatchRows, Engine, Mode};
use crate::backend::{DType, Precision, Rows, View};
use crate::data::FeatureSet;
use crate::model::{MaskKind, Specification};
use anyhow::{Context, Result, ensure};

#[derive(Clone)]
pub struct CacheBuffers {
    /// Keys and values of every layer.
    pub layers: Vec<[View; 2]>,
    /// Rows of a sequence.
    pub length: usize,
    /// int32: the rows that the batch's keys and values go to.
    pub rows: View,
    /// int32, with the gaps as sequences: [`crate::backend::Rows::offsets`] of queries and keys, and separators.
    pub query_offsets: View,
    pub key_offsets: View,
    pub separators: View,
}

impl CacheBuffers {
    /// For `sequences` of `length` rows; a batch has up to `tokens` tokens.
    pub fn lay_out(
        layout: &mut Layout,
        spec: &Specification,
        precision: Precision,
        sequences: usize,
        length: usize,
        tokens: usize,
    ) -> CacheBuffers {
        let mut matrix = || layout.matrix(sequences * length, spec.kv_size(), precision.activation);
        let layers = (0..spec.layers).map(|_| [matrix(), matrix()]).collect();
        let mut integers = |count| layout.vector(count, DType::I32);
        CacheBuffers {
            layers,
            length,
            rows: integers(tokens),
            query_offsets: integers(2 * sequences + 1),
            key_offsets: integers(2 * sequences + 1),
            separators: integers(2 * sequences),
        }
    }
}

/// Where a batch's keys and values go, and from where attention reads them.
pub struct CacheRows {
    pub rows: View,
    /// None: from the batch itself, which holds whole sequences.
    pub reads: Option<CachedRows>,
}

pub struct CachedRows {
    pub queries: Rows,
    pub keys: Rows,
    pub separators: View,
}

impl Engine {
    /// Continues the features' sequences (one each, whose last row is read) by the likeliest token each time, up to
    /// `limit` tokens or to one of `stops`, which is not part of the result.
    /// Errors: a batch or a limit beyond the memory plan.
    pub fn generate(&mut self, set: &FeatureSet, features: &[usize], limit: usize, stops: &[u32]) -> Result<Vec<Vec<u32>>> {
        let cache = self.plan.cache.clone().context("the memory plan has no room for generated text")?;
        ensure!(self.spec.mask == MaskKind::Causal, "only causal models continue a text");
        let mut rows = self.load_batch(set, features, 0)?;
        let offsets = &self.batch.all.offsets;
        let mut lengths: Vec<usize> = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect();
        let longest = lengths.iter().max().copied().unwrap_or(0);
        ensure!(longest + limit <= cache.length, "{longest} tokens and {limit} more are beyond the memory plan's {}", cache.length);
        for &view in cache.layers.iter().flatten() {
            self.backend.zero(view);
        }
        let places =
            lengths.iter().enumerate().flat_map(|(slot, &length)| (0..length).map(move |token| (slot * cache.length + token) as i32));
        let places: Vec<i32> = places.collect();
        rows.cache = Some(CacheRows { rows: self.upload(cache.rows, &places), reads: None });

        let mut texts = vec![Vec::new(); features.len()];
        let mut active: Vec<usize> = (0..features.len()).collect();
        for done in 0..limit {
            self.run_forward(Mode::Evaluate, std::slice::from_ref(&rows));
            let best = self.likeliest(active.len())?;
            // The token that each sequence goes on with.
            let mut next = Vec::new();
            active = active
                .into_iter()
                .zip(best)
                .filter_map(|(slot, token)| {
                    if stops.contains(&token) {
                        return None;
                    }
                    texts[slot].push(token);
                    next.push(token);
                    Some(slot)
                })
                .collect();
            if active.is_empty() || done + 1 == limit {
                break;
            }
            rows = self.load_continuation(&cache, &active, &next, &lengths);
            for &slot in &active {
                lengths[slot] += 1;
            }
        }
        self.backend.check()?;
        Ok(texts)
    }

    /// Keys and values of a layer in the cache.
    pub(super) fn cached(&self, layer: usize) -> Option<[View; 2]> {
        self.plan.cache.as_ref().map(|cache| cache.layers[layer])
    }

    /// Keys and values of a layer as attention sees them, once they are computed.
    pub(super) fn keys_and_values(&self, layer: usize) -> [View; 2] {
        let buffers = &self.here().layers[layer];
        [self.plan.rotated.map_or(buffers.key, |[_, key]| key), buffers.value]
    }

    /// The batch's keys and values of a layer into the cache, where there is one: its rows are zero before.
    pub(super) fn store_keys_and_values(&mut self, layer: usize, rows: &BatchRows) {
        let (Some(cache), Some(cached)) = (&rows.cache, self.cached(layer)) else { return };
        for (from, to) in self.keys_and_values(layer).into_iter().zip(cached) {
            self.backend.scatter_add_rows(from.first_rows(rows.all.count), cache.rows, to);
        }
    }

    /// The likeliest token of each of the head's rows.
    fn likeliest(&mut self, count: usize) -> Result<Vec<u32>> {
        let best = self.head_buffers().vocabulary.context("the head does not predict tokens")?.best;
        let values = self.read_values(best.col_range(0, count));
        self.backend.check()?;
        Ok(values.into_iter().map(|value| value as u32).collect())
    }

    /// A batch of one token a sequence: `tokens` behind the `lengths` tokens that the cache holds of each.
    fn load_continuation(&mut self, cache: &CacheBuffers, slots: &[usize], tokens: &[u32], lengths: &[usize]) -> BatchRows {
        let count = slots.len();
        let (mut places, mut keys, mut queries) = (Vec::new(), vec![0], vec![0]);
        // Of a prompt, lengths count its rows.
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        for (row, (&slot, &token)) in slots.iter().zip(tokens).enumerate() {
            let (length, start) = (lengths[slot], (slot * cache.length) as i32);
            batch.ids.push(token as i32);
            batch.positions.push(self.spec.position_of(length, self.shift() - self.prompt()) as i32);
            batch.types.push(0);
            batch.all.push_token(row as i32, length as i32);
            places.push(start + length as i32);
            // A gap up to the sequence's first row, without queries; then the sequence with one.
            keys.extend([start, start + length as i32 + 1]);
            queries.extend([row as i32, row as i32 + 1]);
        }
        batch.read_every_token();
        self.batch = batch;
        let mut rows = self.upload_batch();
        let views = RowViews { offsets: cache.query_offsets, ..self.here().batch.all };
        let of_rows = |view: View| view.col_range(0, count);
        let (ordinals, tokens) = (of_rows(views.ordinals), of_rows(views.tokens));
        let queries = Rows { ordinals, tokens, offsets: self.upload(cache.query_offsets, &queries), count, longest: 1 };
        let longest = lengths.iter().max().map_or(0, |length| length + 1);
        let offsets = self.upload(cache.key_offsets, &keys);
        let keys = Rows { ordinals, tokens, offsets, count: cache.layers[0][0].rows, longest };
        let separators = self.upload(cache.separators, &vec![0; 2 * count]);
        let reads = Some(CachedRows { queries, keys, separators });
        rows.cache = Some(CacheRows { rows: self.upload(cache.rows, &places), reads });
        rows
    }
}
