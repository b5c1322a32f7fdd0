//! What the backward of a layer reads and its forward did not keep, made again by the same operations on the same
//! operands, so that it has the same bits.

use super::activations::LayerInput;
use super::frozen::Norm;
use super::{BatchRows, Engine, Mode, Recompute};
use crate::backend::View;

impl Engine {
    /// Makes a layer's activations whole.
    pub(super) fn remake_layer(&mut self, rows: &BatchRows, layer: usize) {
        let count = if self.is_tail(layer) { rows.readout.count } else { rows.all.count };
        let middle = self.plan.forward.middle.first_rows(count);
        let kept = self.here().layers[layer].attention_norm.normalized;
        match self.plan.reach.recompute {
            Recompute::None => {}
            Recompute::UpProjection => {
                let norm = self.plan.frozen.norm_after_attention(&self.spec, layer);
                self.remake_output(norm, kept, middle);
                self.project_up(layer, count);
            }
            Recompute::Layer => {
                let hidden = self.remake_input(layer, rows.all.count);
                self.forward_to_up(Mode::Train, rows, layer, hidden);
                // What the layer's last norm would have kept, where the stream was kept instead.
                if let Some(&LayerInput { stream: Some(stream), .. }) = self.here().inputs.get(layer + 1) {
                    self.remake_norm(layer + 1, stream, middle);
                }
            }
        }
    }

    /// What the branches of a layer read, from what stands for its input.
    fn remake_input(&mut self, layer: usize, count: usize) -> View {
        let hidden = self.plan.forward.hidden.first_rows(count);
        match self.here().inputs[layer] {
            LayerInput { stream: Some(stream), .. } => self.remake_norm(layer, stream, hidden),
            _ if layer > self.plan.reach.lowest => {
                let norm = self.plan.frozen.norm_after_feed_forward(&self.spec, layer - 1);
                self.remake_output(norm, self.here().layers[layer - 1].feed_forward_norm.normalized, hidden);
            }
            kept => return kept.hidden,
        }
        hidden
    }

    /// The norm in front of a layer, of its residual stream; what it keeps goes to the layers' common place.
    fn remake_norm(&mut self, layer: usize, stream: View, out: View) {
        let norm = match layer.checked_sub(1) {
            Some(before) => self.plan.frozen.norm_after_feed_forward(&self.spec, before),
            None => self.plan.frozen.layers[self.spec.layer_weights[0]].attention_norm,
        };
        let Some(keep) = self.plan.input_norm else { return };
        self.norm(norm, stream.first_rows(out.rows), None, None, None, keep, out, out.rows);
    }

    fn remake_output(&mut self, norm: Norm, normalized: View, out: View) {
        self.backend.norm_output(normalized.first_rows(out.rows), norm.gamma, norm.beta, out);
    }
}
