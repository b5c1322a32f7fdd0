//! Relative positions (DeBERTa, as the released code's `model/deberta.py`): the frozen table, projected to each layer's keys and queries. Only
//! the rows that sequences of the plan's longest length reach are projected, so a layer's tables have `span` rows each
//! way of distance 0, not the model's.
//!
//! In training the released code draws hidden dropout on the table, once a layer and forward for the whole batch. Then a
//! layer's tables are made before its attention and again in its backward, in one place for all layers. Where there is no
//! such dropout they never change: they are made once, for every layer. Evaluation during training takes the first way.

use super::layout::Layout;
use super::options::{Capacity, EngineOptions};
use super::{Engine, Mode};
use crate::backend::{DType, Embed, Relative, Rows, Site, View};
use crate::model::{Positions, Slot, Specification};

pub struct RelativeBuffers {
    /// Rows of the table that are used: `2 * span` of them from `first` on.
    first: usize,
    span: usize,
    /// int32: numbers of the rows, their ordinals (all 0), and offsets (one run).
    rows: [View; 3],
    /// \[2 span, H\]: the rows with their dropout.
    table: View,
    /// Projected to keys and to queries, by set of layer weights; one for all where they are made anew each time.
    projected: Vec<[Option<View>; 2]>,
    cached: bool,
}

impl RelativeBuffers {
    pub fn lay_out(
        spec: &Specification,
        options: &EngineOptions,
        capacity: Capacity,
        dtype: DType,
        layout: &mut Layout,
    ) -> Option<RelativeBuffers> {
        let Positions::Relative { span: model_span, .. } = spec.positions else { return None };
        let span = model_span.min(capacity.longest.max(1));
        let cached = !capacity.training || options.hidden_dropout == 0.0;
        let copies = if cached { spec.weight_sets() } else { 1 };
        let (rows, width) = (2 * span, spec.query_size());
        let has = [Slot::RelativeKey(0), Slot::RelativeQuery(0)].map(|slot| spec.shape(slot).is_some());
        let tables = copies * has.iter().filter(|&&has| has).count();
        let kept = if cached { "every layer's, made once" } else { "of one layer at a time, because of its dropout" };
        let formula = format!("{rows} rows x ({} + {tables} x {width}) {}: {kept}", spec.hidden_size, dtype.name());
        Some(layout.region("relative positions", formula, |layout| RelativeBuffers {
            first: model_span - span,
            span,
            rows: [rows, rows, 2].map(|count| layout.vector(count, DType::I32)),
            table: layout.matrix(rows, spec.hidden_size, dtype),
            projected: (0..copies).map(|_| has.map(|has| has.then(|| layout.matrix(rows, width, dtype)))).collect(),
            cached,
        }))
    }
}

impl Engine {
    /// After loading: the rows' numbers, and every layer's tables where they stay.
    pub(super) fn cache_relative(&mut self) {
        let Some(RelativeBuffers { first, span, rows: [numbers, ordinals, offsets], cached, .. }) = self.plan.relative else { return };
        let count = 2 * span;
        let mut upload = |to: View, values: Vec<i32>| self.backend.write(to, bytemuck::cast_slice(&values));
        upload(numbers, (first..first + count).map(|row| row as i32).collect());
        upload(ordinals, vec![0; count]);
        upload(offsets, vec![0, count as i32]);
        for set in (0..self.spec.weight_sets()).filter(|_| cached) {
            self.bring(set, Some(set + 1).filter(|&next| next < self.spec.weight_sets()));
            self.project_relative(Mode::Evaluate, 0, set);
        }
    }

    /// Makes a layer's tables where they are not kept.
    pub(super) fn refresh_relative(&mut self, mode: Mode, layer: usize) {
        if self.plan.relative.as_ref().is_some_and(|relative| !relative.cached) {
            self.project_relative(mode, layer, self.spec.layer_weights[layer]);
        }
    }

    /// Tables of the layer weights `set` with layer `layer`'s dropout.
    fn project_relative(&mut self, mode: Mode, layer: usize, set: usize) {
        let (Some(relative), Some(word)) = (&self.plan.relative, self.plan.frozen.relative) else { return };
        let (table, [numbers, ordinals, offsets]) = (relative.table, relative.rows);
        let rows = Rows { ordinals, tokens: numbers, offsets, count: table.rows, longest: table.rows };
        let embed = Embed {
            word,
            position: None,
            token_type: None,
            ids: numbers,
            positions: numbers,
            types: numbers,
            prompt: None,
            dropout: self.hidden_mask(mode, Site::RelativeEmbedding, layer).map(|dropout| (dropout, &rows)),
            norm: None,
            out: table,
        };
        self.backend.embed(&embed);
        let projected = relative.projected[if relative.cached { set } else { 0 }];
        for (linear, out) in self.plan.frozen.layers[set].relative.into_iter().zip(projected) {
            if let (Some(linear), Some(out)) = (linear, out) {
                linear.forward(self.backend.as_mut(), table, out);
            }
        }
    }

    /// Attention's operands.
    pub(super) fn relative(&self, layer: usize) -> Option<Relative> {
        let relative = self.plan.relative.as_ref()?;
        let [key, query] = relative.projected[if relative.cached { self.spec.layer_weights[layer] } else { 0 }];
        Some(Relative { key, query, span: relative.span })
    }
}
