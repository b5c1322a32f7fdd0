//! The backward of the frozen model, from the head's rows down to the lowest prefix. `g` is the gradient of a norm's
//! output, updated in place: it becomes the sum's gradient, goes through the branch, and comes back with the residual
//! added. In a pre-norm model the residual's gradient runs beside it in `stream`.

use super::activations::NormBuffers;
use super::frozen::{Linear, Norm};
use super::{BatchRows, Engine, Mode};
use crate::backend::{AttentionSaved, Backend, NormBackward, Rotary, Rows, Scope, Site, View};

/// dx (+)= dy times those outputs of the linear layer, `parts` being its rows in order.
fn project_backward(backend: &mut dyn Backend, dy: View, parts: &[Linear], from: usize, dx: View, mut accumulate: bool) {
    let (mut first, end) = (0, from + dy.cols);
    for part in parts {
        let rows = part.weight.rows;
        let (low, high) = (from.max(first), end.min(first + rows));
        if low < high {
            let own = part.outputs(low - first, high - low);
            own.backward_input(backend, dy.col_range(low - from, high - low), dx, accumulate);
            accumulate = true;
        }
        first += rows;
    }
}

/// From the gradients of rotated queries and keys to those of what was rotated, in place.
fn rotate_backward(backend: &mut dyn Backend, rotations: &Option<[(Rotary, View); 2]>, d_query: View, d_key: View) {
    for ((rotary, _), d) in rotations.iter().flatten().zip([d_query, d_key]) {
        backend.rotary_backward(rotary, d);
    }
}

impl Engine {
    /// From the gradients of the head's input to the gradients of all prefixes, layer by layer, each for the micro-batches of a
    /// group one after the other: a sum over micro-batches has its order in every mode.
    pub(super) fn run_backward(&mut self, group: &[BatchRows]) {
        let reach = self.plan.reach;
        if reach.lowest == reach.layers {
            return;
        }
        let start = |engine: &mut Engine, rows: &BatchRows| {
            let stream = engine.here().backward_stream.stream.map(|[all, tail]| if reach.tail { tail } else { all });
            if let Some(stream) = stream {
                let rows = if reach.tail { rows.readout.count } else { rows.all.count };
                engine.backend.zero(stream.first_rows(rows));
            }
            (engine.here().d_input, stream)
        };
        let mut gradients: Vec<(View, Option<View>)> = self.for_each(group, start);
        for layer in (reach.lowest..reach.layers).rev() {
            gradients = self.scoped(Scope::Layer(layer), |engine| {
                let below = layer.checked_sub(1).filter(|&below| below >= reach.lowest);
                engine.bring(engine.spec.layer_weights[layer], below.map(|below| engine.spec.layer_weights[below]));
                engine.for_each(group, |engine, rows| {
                    let (g, stream) = gradients[engine.slot];
                    engine.need_inputs(layer, rows.all.count);
                    engine.remake_layer(rows, layer);
                    let gradient = engine.backward_layer(rows, layer, g, stream);
                    engine.fetch_below(layer, rows.all.count);
                    gradient
                })
            });
        }
        if reach.prompt {
            self.scoped(Scope::Embedding, |engine| {
                engine.for_each(group, |engine, rows| {
                    let (g, stream) = gradients[engine.slot];
                    engine.backward_embeddings(rows, g, stream);
                })
            });
        }
    }

    /// Gradients of the layer's output to gradients of its input (buffers of full capacity are passed and returned).
    fn backward_layer(&mut self, rows: &BatchRows, layer: usize, g: View, stream: Option<View>) -> (View, Option<View>) {
        let buffers = self.here().layers[layer];
        let scratch = &self.plan.backward;
        let (wide, attention, delta) = (scratch.feed_forward, scratch.attention, scratch.delta);
        let weights = &self.plan.frozen.layers[self.spec.layer_weights[layer]];
        let (output, down) = (weights.attention_output, weights.down);
        let post = self.is_post_norm();
        let queries = if self.is_tail(layer) { &rows.readout } else { &rows.all };
        let count = queries.count;
        let g_rows = g.first_rows(count);
        let stream_rows = stream.map(|view| view.first_rows(count));

        // Feed-forward.
        let norm = self.plan.frozen.norm_after_feed_forward(&self.spec, layer);
        let branch = self.norm_backward(norm, buffers.feed_forward_norm, Site::FeedForwardOutput, layer, queries, g_rows, stream_rows);
        let wide = wide.first_rows(count);
        down.backward_input(self.backend.as_mut(), branch, wide, false);
        let z = buffers.up.first_rows(count);
        let d_up = if self.spec.activation.arity() == 2 { z } else { wide };
        self.backend.activation_backward(self.spec.activation, z, wide, d_up);
        let up = &self.plan.frozen.layers[self.spec.layer_weights[layer]].up;
        project_backward(self.backend.as_mut(), d_up, up, 0, g_rows, post);

        // Attention.
        let norm = self.plan.frozen.norm_after_attention(&self.spec, layer);
        let branch = self.norm_backward(norm, buffers.attention_norm, Site::AttentionOutput, layer, queries, g_rows, stream_rows);
        let saved = AttentionSaved {
            log_sum_exp: buffers.log_sum_exp.first_rows(count),
            delta: delta.first_rows(count),
            d_out: attention.first_rows(count),
        };
        output.backward_input(self.backend.as_mut(), branch, saved.d_out, false);
        self.backend.attention_delta(buffers.attention.first_rows(count), saved.d_out, self.spec.heads, saved.delta);
        // Below the lowest prefix nothing has a gradient, but a prompt.
        let ends = self.plan.reach.ends_at(layer);
        if self.plan.rotated.is_some() {
            self.rotate(rows, layer, !ends);
        }
        let operands = self.attention(Mode::Train, layer, queries, rows);
        if let Some((index, [_, gradient])) = self.prefix_index(layer).zip(self.plan.trainables.table()) {
            let [d_key, d_value] = self.prefix_columns(gradient, index);
            self.backend.prefix_gradient(&operands, &saved, d_key, d_value);
        }
        if ends {
            return (g, stream);
        }

        // Q, K, V to the layer's input.
        self.refresh_relative(Mode::Train, layer);
        let (tokens, q, kv) = (rows.all.count, self.spec.query_size(), self.spec.kv_size());
        let (joined, tail) = (self.plan.backward.query_key_value, self.plan.backward.tail.filter(|_| self.is_tail(layer)));
        let (wide_g, wide_stream) = (self.here().backward_stream.hidden, self.here().backward_stream.stream);
        let rotations = self.rotations(rows, layer);
        let index = self.here().batch.readout_rows.col_range(0, if tail.is_some() { count } else { 0 });
        let parts = &self.plan.frozen.layers[self.spec.layer_weights[layer]].query_key_value;
        let backend = self.backend.as_mut();
        match tail {
            Some([d_query, d_key_value]) => {
                let (d_query, d_key_value) = (d_query.first_rows(count), d_key_value.first_rows(tokens));
                let [d_key, d_value] = [d_key_value.col_range(0, kv), d_key_value.col_range(kv, kv)];
                backend.attention_backward(&operands, &saved, d_query, d_key, d_value);
                rotate_backward(backend, &rotations, d_query, d_key);
                project_backward(backend, d_query, parts, 0, g_rows, post);
                project_backward(backend, d_key_value, parts, q, wide_g.first_rows(tokens), false);
                backend.scatter_add_rows(g_rows, index, wide_g.first_rows(tokens));
                let stream = wide_stream.zip(stream_rows).map(|([all, _], rows)| {
                    backend.zero(all.first_rows(tokens));
                    backend.scatter_add_rows(rows, index, all.first_rows(tokens));
                    all
                });
                (wide_g, stream)
            }
            _ => {
                let joined = joined.first_rows(tokens);
                let [d_query, d_key, d_value] = [joined.col_range(0, q), joined.col_range(q, kv), joined.col_range(q + kv, kv)];
                backend.attention_backward(&operands, &saved, d_query, d_key, d_value);
                rotate_backward(backend, &rotations, d_query, d_key);
                project_backward(backend, joined, parts, 0, g_rows, post);
                (g, stream)
            }
        }
    }

    /// Through a norm that no branch leads to, in place; returns the sum's gradient.
    pub(super) fn plain_norm_backward(&mut self, norm: Norm, kept: NormBuffers, d_out: View, d_residual: Option<View>) -> View {
        let d_sum = d_residual.unwrap_or(d_out);
        self.backend.norm_backward(&NormBackward {
            kind: self.spec.norm,
            d_out,
            d_residual,
            gamma: norm.gamma,
            normalized: kept.normalized.first_rows(d_out.rows),
            rstd: kept.rstd.col_range(0, d_out.rows),
            d_sum,
            dropout: None,
        });
        d_sum
    }

    /// Through a norm and the dropout of the branch in front of it; returns the branch's gradient.
    #[allow(clippy::too_many_arguments)]
    fn norm_backward(
        &mut self,
        norm: Norm,
        kept: NormBuffers,
        site: Site,
        layer: usize,
        rows: &Rows,
        g: View,
        stream: Option<View>,
    ) -> View {
        let d_sum = stream.unwrap_or(g);
        let d_branch = self.plan.backward.branch.first_rows(rows.count);
        let dropout = self.hidden_mask(Mode::Train, site, layer);
        self.backend.norm_backward(&NormBackward {
            kind: self.spec.norm,
            d_out: g,
            d_residual: stream,
            gamma: norm.gamma,
            normalized: kept.normalized.first_rows(rows.count),
            rstd: kept.rstd.col_range(0, rows.count),
            d_sum,
            dropout: dropout.map(|dropout| (dropout, rows, d_branch)),
        });
        if dropout.is_some() { d_branch } else { d_sum }
    }
}
