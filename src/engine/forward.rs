//! The forward of the frozen model, layer by layer, each in two halves: up to the up-projection, which the backward may
//! ask for again, and from there on. `middle` is what stands between a layer's two branches; a pre-norm model's residual
//! stream goes the same way beside it.

use super::activations::{LayerInput, NormBuffers};
use super::frozen::{Linear, Norm};
use super::{BatchRows, Engine, Mode};
use crate::backend::{Attention, Backend, Embed, EmbedNorm, NormForward, Prefix, Rotary, Rows, Site, View};
use crate::model::NormPlace;

/// out's columns = those outputs of x's linear layer, `parts` being its rows in order.
pub(super) fn project(backend: &mut dyn Backend, x: View, parts: &[Linear], from: usize, out: View) {
    let (mut first, end) = (0, from + out.cols);
    for part in parts {
        let rows = part.weight.rows;
        let (low, high) = (from.max(first), end.min(first + rows));
        if low < high {
            let own = part.outputs(low - first, high - low);
            own.forward(backend, x, out.col_range(low - from, high - low));
        }
        first += rows;
    }
}

impl Engine {
    /// Whether layer `layer` computes queries for the head's rows only.
    pub(super) fn is_tail(&self, layer: usize) -> bool {
        self.plan.reach.tail && layer + 1 == self.spec.layers
    }

    /// Sums of embeddings, their norm and dropout: one operation, with the first layer's norm too where that directly
    /// follows. A narrow sum is then projected.
    pub(super) fn forward_embeddings(&mut self, mode: Mode, rows: &BatchRows) {
        let count = rows.all.count;
        self.free_input(0);
        let (batch, frozen, scratch) = (&self.here().batch, &self.plan.frozen, &self.plan.entry);
        let (own, entry, projection) = (frozen.embedding_norm, frozen.entry_norm(&self.spec), frozen.embedding_projection);
        let LayerInput { hidden, stream } = self.here().inputs[0];
        let (hidden, stream) = (hidden.first_rows(count), stream.map(|stream| stream.first_rows(count)));
        // Where the first layer's norm stands apart, its input comes first: the stream.
        let apart = own.is_some() || projection.is_some();
        let target = stream.filter(|_| apart).unwrap_or(hidden);
        let [own_kept, entry_kept] = self.prompt_norms();
        let kept = if apart { own_kept } else { entry_kept };
        let norm = if apart { own } else { entry }.map(|norm| EmbedNorm {
            kind: self.spec.norm,
            epsilon: self.spec.norm_epsilon,
            gamma: norm.gamma,
            beta: norm.beta,
            stream: stream.filter(|_| !apart),
            kept: kept.map(|kept| [kept.normalized.first_rows(count), kept.rstd.col_range(0, count)]),
        });
        let count_of = |view: View| view.col_range(0, count);
        let out = scratch.embedded.map_or(target, |embedded| embedded.first_rows(count));
        let (keep, entry) = (entry_kept.or(scratch.norm), entry.filter(|_| apart));
        let embed = Embed {
            word: batch.embeddings.unwrap_or(frozen.word),
            position: frozen.position,
            token_type: frozen.token_type,
            ids: count_of(batch.ids),
            positions: count_of(batch.positions),
            types: count_of(batch.types),
            prompt: self.prompt_table().map(|[table, _]| table),
            dropout: self.hidden_mask(mode, Site::Embedding, 0).map(|dropout| (dropout, &rows.all)),
            norm,
            out,
        };
        self.backend.embed(&embed);
        if let Some(linear) = projection {
            linear.forward(self.backend.as_mut(), out, target);
        }
        if let Some((norm, keep)) = entry.zip(keep) {
            self.norm(norm, target, None, None, None, keep, hidden, count);
        }
        if mode == Mode::Train {
            self.send_input(0, count);
        }
    }

    pub(super) fn forward_layer(&mut self, mode: Mode, rows: &BatchRows, layer: usize) {
        self.forward_to_up(mode, rows, layer, self.here().inputs[layer].hidden);
        self.free_input(layer + 1);
        self.forward_from_up(mode, rows, layer);
        if mode == Mode::Train {
            self.send_input(layer + 1, rows.all.count);
        }
    }

    /// From a layer's input, which its branches read in `hidden`, to its up-projection's output.
    pub(super) fn forward_to_up(&mut self, mode: Mode, rows: &BatchRows, layer: usize, hidden: View) {
        let buffers = self.here().layers[layer];
        let scratch = &self.plan.forward;
        let weights = &self.plan.frozen.layers[self.spec.layer_weights[layer]];
        let stream = self.here().inputs[layer].stream;
        let (tail, branch, readout_rows) = (scratch.tail, scratch.branch, self.here().batch.readout_rows);
        let (middle, middle_stream) = (scratch.middle, scratch.middle_stream);
        let tokens = rows.all.count;
        let queries = if self.is_tail(layer) { &rows.readout } else { &rows.all };
        let count = queries.count;
        let x = hidden.first_rows(tokens);
        let (q, kv) = (self.spec.query_size(), self.spec.kv_size());

        // Q, K, V; the residual's rows.
        let parts = &weights.query_key_value;
        let mut residual = stream.unwrap_or(hidden).first_rows(count);
        match (tail, buffers.query_key_value) {
            (Some(tail), _) if self.is_tail(layer) => {
                let [rows_x, rows_stream] = tail.map(|view| view.first_rows(count));
                let index = readout_rows.col_range(0, count);
                self.backend.gather_rows(x, index, rows_x);
                residual = match stream {
                    Some(stream) => {
                        self.backend.gather_rows(stream.first_rows(tokens), index, rows_stream);
                        rows_stream
                    }
                    None => rows_x,
                };
                let backend = self.backend.as_mut();
                project(backend, rows_x, parts, 0, buffers.query.first_rows(count));
                project(backend, x, parts, q, buffers.key.first_rows(tokens));
                project(backend, x, parts, q + kv, buffers.value.first_rows(tokens));
            }
            (_, Some(joined)) => project(self.backend.as_mut(), x, parts, 0, joined.first_rows(tokens)),
            _ => {
                let backend = self.backend.as_mut();
                project(backend, x, parts, 0, buffers.query.first_rows(count));
                project(backend, x, parts, q, buffers.key.first_rows(tokens));
                project(backend, x, parts, q + kv, buffers.value.first_rows(tokens));
            }
        }

        // Attention and its output.
        let output = weights.attention_output;
        let norm = self.plan.frozen.norm_after_attention(&self.spec, layer);
        self.refresh_relative(mode, layer);
        self.rotate(rows, layer, true);
        self.store_keys_and_values(layer, rows);
        let attention = self.attention(mode, layer, queries, rows);
        let (context, branch) = (buffers.attention.first_rows(count), branch.first_rows(count));
        self.backend.attention_forward(&attention, context, buffers.log_sum_exp.first_rows(count));
        output.forward(self.backend.as_mut(), context, branch);
        let site = Some((Site::AttentionOutput, layer, mode, queries));
        let (middle, sum) = (middle.first_rows(count), middle_stream.map(|stream| stream.first_rows(count)));
        self.norm(norm, residual, Some(branch), site, sum, buffers.attention_norm, middle, count);
        self.project_up(layer, count);
    }

    /// What stands between the branches, through the up-projection.
    pub(super) fn project_up(&mut self, layer: usize, count: usize) {
        let (middle, z) = (self.plan.forward.middle.first_rows(count), self.here().layers[layer].up.first_rows(count));
        let up = &self.plan.frozen.layers[self.spec.layer_weights[layer]].up;
        project(self.backend.as_mut(), middle, up, 0, z);
    }

    /// From the up-projection's output to the input of the next layer, or of the head.
    fn forward_from_up(&mut self, mode: Mode, rows: &BatchRows, layer: usize) {
        let buffers = self.here().layers[layer];
        let scratch = &self.plan.forward;
        let (middle, middle_stream, branch, feed_forward) = (scratch.middle, scratch.middle_stream, scratch.branch, scratch.feed_forward);
        let queries = if self.is_tail(layer) { &rows.readout } else { &rows.all };
        let count = queries.count;
        let down = self.plan.frozen.layers[self.spec.layer_weights[layer]].down;
        let norm = self.plan.frozen.norm_after_feed_forward(&self.spec, layer);
        let (a, branch) = (feed_forward.first_rows(count), branch.first_rows(count));
        self.backend.activation_forward(self.spec.activation, buffers.up.first_rows(count), a);
        down.forward(self.backend.as_mut(), a, branch);
        let next = self.here().inputs.get(layer + 1).copied();
        let next = next.unwrap_or(LayerInput { hidden: self.head_buffers().input, stream: None });
        let (out, sum) = (next.hidden.first_rows(count), next.stream.map(|stream| stream.first_rows(count)));
        let residual = middle_stream.unwrap_or(middle).first_rows(count);
        let site = Some((Site::FeedForwardOutput, layer, mode, queries));
        self.norm(norm, residual, Some(branch), site, sum, buffers.feed_forward_norm, out, count);
    }

    /// One residual + dropout + norm over `count` rows.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn norm(
        &mut self,
        norm: Norm,
        residual: View,
        branch: Option<View>,
        site: Option<(Site, usize, Mode, &Rows)>,
        sum: Option<View>,
        keep: NormBuffers,
        out: View,
        count: usize,
    ) {
        let dropout = site.and_then(|(site, layer, mode, rows)| Some((self.hidden_mask(mode, site, layer)?, rows)));
        self.backend.norm_forward(&NormForward {
            kind: self.spec.norm,
            epsilon: self.spec.norm_epsilon,
            residual,
            branch,
            dropout,
            gamma: norm.gamma,
            beta: norm.beta,
            sum,
            normalized: keep.normalized.col_range(0, out.cols).first_rows(count),
            rstd: keep.rstd.col_range(0, count),
            out,
        });
    }

    /// The rotations of a layer's queries and keys: what is rotated, and where it goes. The same view, but with a norm.
    pub(super) fn rotations(&self, rows: &BatchRows, layer: usize) -> Option<[(Rotary, View); 2]> {
        let table = self.plan.rotary?;
        let buffers = &self.here().layers[layer];
        let gammas = self.plan.frozen.layers[self.spec.layer_weights[layer]].query_key_norm;
        let counts = [if self.is_tail(layer) { rows.readout.count } else { rows.all.count }, rows.all.count];
        let positions = if self.is_tail(layer) { [rows.positions[1], rows.positions[0]] } else { [rows.positions[0]; 2] };
        Some([0, 1].map(|side| {
            let x = [buffers.query, buffers.key][side].first_rows(counts[side]);
            let rotary = Rotary {
                x,
                head_dim: self.spec.head_dim,
                gamma: gammas.map(|gammas| gammas[side]),
                epsilon: self.spec.norm_epsilon,
                table,
                positions: positions[side],
            };
            (rotary, self.plan.rotated.map_or(x, |rotated| rotated[side].first_rows(counts[side])))
        }))
    }

    /// Rotates a layer's queries, and its keys if `keys`.
    pub(super) fn rotate(&mut self, rows: &BatchRows, layer: usize, keys: bool) {
        for (rotary, out) in self.rotations(rows, layer).into_iter().flatten().take(1 + usize::from(keys)) {
            self.backend.rotary_forward(&rotary, out);
        }
    }

    /// Attention's operands in a layer; forward and backward ask for the same.
    pub(super) fn attention<'a>(&self, mode: Mode, layer: usize, queries: &'a Rows, rows: &'a BatchRows) -> Attention<'a> {
        let (buffers, keys) = (&self.here().layers[layer], &rows.all);
        let prefix = self.prefix_index(layer).filter(|_| !self.bare);
        let prefix = prefix.zip(self.plan.trainables.table()).map(|(index, [table, _])| {
            let [key, value] = self.prefix_columns(table, index);
            let rate = self.options.prefix.dropout;
            let dropout = self.mask(mode, rate, Site::PrefixKey, layer).zip(self.mask(mode, rate, Site::PrefixValue, layer));
            Prefix { key, value, dropout: dropout.map(|(key, value)| [key, value]) }
        });
        let [query, key] = self.plan.rotated.unwrap_or([buffers.query, buffers.key]);
        let own = [key, buffers.value].map(|view| view.first_rows(keys.count));
        let ([key, value], query_rows, key_rows, separators) = match rows.cache.as_ref().and_then(|cache| cache.reads.as_ref()) {
            Some(cached) => (self.cached(layer).unwrap_or(own), &cached.queries, &cached.keys, Some(cached.separators)),
            None => (own, queries, keys, rows.separators),
        };
        Attention {
            query: query.first_rows(queries.count),
            key,
            value,
            prefix,
            relative: self.relative(layer),
            query_rows,
            key_rows,
            separators,
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_dim: self.spec.head_dim,
            scale: self.spec.attention_scale(),
            dropout: self.mask(mode, self.options.attention_dropout, Site::AttentionProbability, layer),
        }
    }

    pub(super) fn is_post_norm(&self) -> bool {
        self.spec.norm_place == NormPlace::Post
    }
}
