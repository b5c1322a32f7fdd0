//! The layers' activations: which of them are kept for the backward, which are made again, and which buffers layers
//! share.
//!
//! What the backward of a layer reads (H hidden, A heads): Q, K, V; the attention's output and log-sum-exp; two
//! normalised inputs with their 1/deviation; the up-projection's output. No linear layer keeps its input (frozen weights
//! have no gradients) and a norm's or activation's output is made again from what it keeps. Of this a [`Recompute`] mode
//! keeps all, or all but the up-projection's output, or the layer's input alone: then the rest is one set of buffers for
//! all layers. What stands for a layer's input: in a post-norm model what the last norm of the layer before keeps, so that
//! the down-projection is never made again; in a pre-norm model the residual stream.
//!
//! Layers below the lowest prefix keep nothing and use one set of buffers in turn; the lowest keeps no K and V
//! (but where a prompt has a gradient below it).

use super::layout::Layout;
use super::offload::Places;
use super::options::Recompute;
use super::plan::Sizes;
use crate::backend::View;
use crate::model::NormPlace;

#[derive(Clone, Copy, Debug)]
pub struct NormBuffers {
    pub normalized: View,
    pub rstd: View,
}

/// One layer's activations. `query` and what follows it have as many rows as the layer has queries: the head's rows
/// in the last layer, where only these are computed; else all tokens.
#[derive(Clone, Copy, Debug)]
pub struct LayerBuffers {
    /// Q, K and V side by side, where they are one buffer.
    pub query_key_value: Option<View>,
    pub query: View,
    pub key: View,
    pub value: View,
    pub attention: View,
    pub log_sum_exp: View,
    pub attention_norm: NormBuffers,
    pub up: View,
    pub feed_forward_norm: NormBuffers,
}

/// A layer's input over all tokens: what its branches read, and the residual stream where that is not the same.
#[derive(Clone, Copy, Debug)]
pub struct LayerInput {
    pub hidden: View,
    pub stream: Option<View>,
}

/// Where the backward begins and what it makes again.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    pub layers: usize,
    /// The lowest layer that the backward reaches; the number of layers where none does.
    pub lowest: usize,
    /// Whether it goes on below that layer, to a prompt.
    pub prompt: bool,
    /// Whether the last layer computes queries for the head's rows only.
    pub tail: bool,
    pub recompute: Recompute,
    /// Whether what stands for layers' inputs goes to host memory.
    pub offload: bool,
    /// Micro-batches that go through a layer before the next one comes.
    pub together: usize,
}

impl Reach {
    fn is_tail(&self, layer: usize) -> bool {
        self.tail && layer + 1 == self.layers
    }

    /// Whether it computes no gradient of the layer's input.
    pub fn ends_at(&self, layer: usize) -> bool {
        layer == self.lowest && !self.prompt
    }

    pub fn remakes_layers(&self) -> bool {
        self.recompute == Recompute::Layer
    }
}

/// Queries, keys and values: as one buffer where they are, and each by itself.
type Projections = (Option<View>, [View; 3]);

/// Some of a layer's buffers.
#[derive(Clone, Copy, Default)]
struct Parts {
    projections: Option<Projections>,
    attention: Option<(View, View, NormBuffers)>,
    up: Option<View>,
    feed_forward_norm: Option<NormBuffers>,
}

impl Parts {
    fn or(self, other: Parts) -> Parts {
        Parts {
            projections: self.projections.or(other.projections),
            attention: self.attention.or(other.attention),
            up: self.up.or(other.up),
            feed_forward_norm: self.feed_forward_norm.or(other.feed_forward_norm),
        }
    }
}

/// What is kept of a layer.
struct Kept {
    parts: Parts,
    /// What stands for the layer's input where no other layer keeps it.
    input: Option<View>,
}

/// What is kept of the layers from the lowest with a prefix on.
pub struct Saved(Vec<Kept>);

/// Buffers that layers use in turn.
#[derive(Default)]
pub struct Shared {
    /// Of a layer with all queries, and of the last one with the head's.
    full: Parts,
    last: Parts,
    /// Keys and values of the lowest layer with a prefix, where it keeps its queries.
    key_value: Option<View>,
}

impl Shared {
    /// What the layers' last norms keep in turn.
    pub fn norm(&self) -> Option<NormBuffers> {
        self.full.feed_forward_norm.or(self.last.feed_forward_norm)
    }
}

impl Sizes<'_> {
    /// Q, K and V of all tokens as one buffer.
    fn joined(&self, layout: &mut Layout) -> (Option<View>, [View; 3]) {
        let (q, kv) = (self.spec.query_size(), self.spec.kv_size());
        let all = layout.matrix(self.tokens, q + 2 * kv, self.precision.activation);
        (Some(all), [all.col_range(0, q), all.col_range(q, kv), all.col_range(q + kv, kv)])
    }

    /// Q over the head's rows; K and V of all tokens.
    fn apart(&self, layout: &mut Layout) -> Projections {
        let [key, value] = halves(self.key_value(layout));
        (None, [layout.matrix(self.rows, self.spec.query_size(), self.precision.activation), key, value])
    }

    fn projections(&self, layout: &mut Layout, last: bool) -> Projections {
        if last { self.apart(layout) } else { self.joined(layout) }
    }

    fn key_value(&self, layout: &mut Layout) -> View {
        layout.matrix(self.tokens, 2 * self.spec.kv_size(), self.precision.activation)
    }

    fn attention(&self, layout: &mut Layout, rows: usize) -> (View, View, NormBuffers) {
        let attention = layout.matrix(rows, self.spec.query_size(), self.precision.activation);
        let log_sum_exp = layout.matrix(rows, self.spec.heads, self.precision.master);
        (attention, log_sum_exp, self.norm(layout, rows, self.spec.hidden_size))
    }

    fn up(&self, layout: &mut Layout, rows: usize) -> View {
        layout.matrix(rows, self.spec.up_size(), self.precision.activation)
    }

    /// All but what its last norm keeps.
    fn body(&self, layout: &mut Layout, last: bool) -> Parts {
        let rows = if last { self.rows } else { self.tokens };
        Parts {
            projections: Some(self.projections(layout, last)),
            attention: Some(self.attention(layout, rows)),
            up: Some(self.up(layout, rows)),
            feed_forward_norm: None,
        }
    }

    pub fn is_pre_norm(&self) -> bool {
        self.spec.norm_place == NormPlace::Pre
    }

    /// What is kept of a micro-batch, layer by layer; `places` where inputs go to host memory.
    pub fn saved(&self, layout: &mut Layout, reach: Reach, places: Option<&Places>) -> Saved {
        let kept = |layer: usize| {
            let (last, lowest) = (reach.is_tail(layer), layer == reach.lowest);
            let rows = if last { self.rows } else { self.tokens };
            let h = self.spec.hidden_size;
            let all = !reach.remakes_layers();
            let parts = Parts {
                projections: all.then(|| {
                    layout.part("Q, K, V", |layout| match reach.ends_at(layer) {
                        true => (None, [layout.matrix(rows, self.spec.query_size(), self.precision.activation); 3]),
                        false => self.projections(layout, last),
                    })
                }),
                attention: all.then(|| layout.part("attention and its norm", |layout| self.attention(layout, rows))),
                up: (reach.recompute == Recompute::None).then(|| layout.part("up-projection", |layout| self.up(layout, rows))),
                // Behind it stands the next layer's input.
                feed_forward_norm: match places.and_then(|places| places.norm(layer + 1)).filter(|_| layer + 1 < reach.layers) {
                    None => {
                        let kept = all || !self.is_pre_norm() || layer + 1 == reach.layers;
                        kept.then(|| layout.part("second norm", |layout| self.norm(layout, rows, h)))
                    }
                    place => place,
                },
            };
            let own = |layout: &mut Layout| layout.part("layer's input", |layout| layout.matrix(self.tokens, h, self.precision.activation));
            let input = match places.and_then(|places| places.stream(layer)) {
                None => (!all && (lowest || self.is_pre_norm())).then(|| own(layout)),
                place => place,
            };
            Kept { parts, input }
        };
        Saved((reach.lowest..reach.layers).map(kept).collect())
    }

    /// Buffers that layers use in turn and that the backward reads.
    pub fn remade(&self, layout: &mut Layout, reach: Reach) -> Shared {
        let h = self.spec.hidden_size;
        match reach.recompute {
            Recompute::None => Shared::default(),
            Recompute::UpProjection => {
                let parts = Parts { up: Some(self.up(layout, self.tokens)), ..Parts::default() };
                Shared { full: parts, last: parts, key_value: None }
            }
            Recompute::Layer => {
                // Of layers whose norm keeps nothing, and of an input that is made again.
                let norm = (self.is_pre_norm() || reach.lowest > 0).then(|| self.norm(layout, self.tokens, h));
                // A layer is used up before the next one is made again.
                let (full, last) = layout.either(
                    |layout| if reach.layers > usize::from(reach.tail) { self.body(layout, false) } else { Parts::default() },
                    |layout| if reach.tail { self.body(layout, true) } else { Parts::default() },
                );
                let [full, last] = [full, last].map(|parts| Parts { feed_forward_norm: norm, ..parts });
                Shared { full, last, key_value: None }
            }
        }
    }

    /// Buffers that layers use in turn in the forward alone.
    pub fn transient(&self, layout: &mut Layout, reach: Reach) -> Shared {
        if reach.remakes_layers() {
            return Shared::default();
        }
        let mut body = |wanted: bool, last: bool| {
            let rows = if last { self.rows } else { self.tokens };
            let whole = |layout: &mut Layout| Parts {
                feed_forward_norm: Some(self.norm(layout, rows, self.spec.hidden_size)),
                ..self.body(layout, last)
            };
            if wanted { whole(layout) } else { Parts::default() }
        };
        let last = reach.tail && reach.lowest == reach.layers;
        let (full, last) = (body(reach.lowest > usize::from(last), false), body(last, true));
        Shared { full, last, key_value: (reach.lowest < reach.layers && !reach.prompt).then(|| self.key_value(layout)) }
    }
}

/// The buffers of all layers, and their inputs. `hidden` and `stream` are where a layer's input lies that nobody keeps.
pub fn assemble(
    reach: Reach,
    saved: &Saved,
    [remade, transient]: [&Shared; 2],
    hidden: View,
    stream: Option<View>,
) -> (Vec<LayerBuffers>, Vec<LayerInput>) {
    let kept = |layer: usize| layer.checked_sub(reach.lowest).map(|index| &saved.0[index]);
    let buffers = |layer: usize| {
        let of = |shared: &Shared| if reach.is_tail(layer) { shared.last } else { shared.full };
        let parts = kept(layer).map_or(Parts::default(), |kept| kept.parts).or(of(remade)).or(of(transient));
        let (mut query_key_value, [mut query, mut key, mut value]) = parts.projections?;
        // In every mode the layer where the backward ends computes queries, keys and values apart: products of other shapes
        // sum otherwise.
        if let Some(joined) = query_key_value.filter(|_| reach.ends_at(layer)) {
            query_key_value = None;
            query = View { cols: query.cols, stride: query.cols, ..joined };
            let key_value = View { offset: query.end(), cols: 2 * key.cols, stride: 2 * key.cols, ..joined };
            [key, value] = halves(key_value);
        }
        if let Some(key_value) = transient.key_value.filter(|_| reach.ends_at(layer)) {
            [key, value] = halves(key_value);
        }
        let (attention, log_sum_exp, attention_norm) = parts.attention?;
        let (up, feed_forward_norm) = (parts.up?, parts.feed_forward_norm?);
        Some(LayerBuffers { query_key_value, query, key, value, attention, log_sum_exp, attention_norm, up, feed_forward_norm })
    };
    let layers = (0..reach.layers).map(|layer| buffers(layer).expect("a layer's buffers are its own or shared"));
    let inputs = (0..reach.layers).map(|layer| {
        let own = kept(layer).and_then(|kept| kept.input);
        match stream {
            Some(stream) => LayerInput { hidden, stream: Some(own.unwrap_or(stream)) },
            None => LayerInput { hidden: own.unwrap_or(hidden), stream: None },
        }
    });
    (layers.collect(), inputs.collect())
}

/// Keys and values, side by side.
fn halves(key_value: View) -> [View; 2] {
    let kv = key_value.cols / 2;
    [key_value.col_range(0, kv), key_value.col_range(kv, kv)]
}
