//! Streamed weights: the layers' matrices live in host memory, or in the checkpoint's mapped files (where the backend reads
//! these, or `--weights disk` says so), and come to the arena a layer ahead of its use, on a lane of their own beside what is
//! computed. Two buffers take turns: while one layer computes, the next one arrives in the other. Embeddings, norms, biases and
//! heads stay in the arena.
//!
//! Everything else finds a layer's weights by the same views as ever: those of the buffer that the layer comes to.

use super::Engine;
use super::frozen::{APART, LayerWeights};
use super::lanes::Lanes;
use super::layout::Layout;
use crate::backend::{DType, View};

/// Buffers that take turns. A set of weights always comes to the same one: neighbours to different ones, in the forward as
/// in the backward.
pub const BUFFERS: usize = 2;

/// Where streamed weights come from and go to.
pub struct Ring {
    /// For each set of layer weights, its matrices, or their parts that lie apart: home, and place in the arena.
    moves: Vec<Vec<(View, View)>>,
    /// The buffers, which hold sets.
    lanes: Lanes,
}

impl Ring {
    /// Gives layers whose matrices lie at home their places in the arena; `apart` are the homes that [`APART`] stands for.
    pub fn lay_out(layers: &mut [LayerWeights], apart: &[Vec<View>], layout: &mut Layout) -> Ring {
        let mut largest = 0;
        let mut moves: Vec<Vec<(View, View)>> = Vec::new();
        for layer in layers.iter_mut() {
            let mut buffer = Layout::default();
            moves.push(layer.matrices_mut().map(|weight| (*weight, buffer.matrix(weight.rows, weight.cols, weight.dtype))).collect());
            largest = largest.max(buffer.finish().0);
        }
        let whole = layout.vector(BUFFERS * largest / DType::I32.size(), DType::I32);
        for (set, (layer, moves)) in layers.iter_mut().zip(&mut moves).enumerate() {
            for (weight, (_, place)) in layer.matrices_mut().zip(moves) {
                place.offset += whole.offset + set % BUFFERS * largest;
                *weight = *place;
            }
        }
        let moves =
            moves.into_iter().map(|moves| moves.into_iter().flat_map(|(home, place)| parts(home, place, apart)).collect()).collect();
        Ring { moves, lanes: Lanes::new(0, BUFFERS) }
    }

    /// Homes of all matrices.
    pub fn homes(&self) -> impl Iterator<Item = View> {
        self.moves.iter().flatten().map(|(home, _)| *home)
    }
}

/// A matrix's moves: one, or one a part, each to its rows of the place.
fn parts(home: View, place: View, apart: &[Vec<View>]) -> Vec<(View, View)> {
    if home.buffer != APART {
        return vec![(home, place)];
    }
    let mut from = 0;
    let mut own_rows = |home: &View| {
        let rows = place.row_range(from, home.rows);
        from += home.rows;
        (*home, rows)
    };
    apart[home.offset].iter().map(&mut own_rows).collect()
}

impl Engine {
    /// Before a layer's forward: has its weights in the arena, and those of the layer above on their way.
    pub(super) fn bring_layer(&mut self, layer: usize) {
        self.bring(self.spec.layer_weights[layer], self.spec.layer_weights.get(layer + 1).copied());
    }

    /// Has a set of layer weights in the arena for what is queued from here on, and the one that is used next on its way.
    pub(super) fn bring(&mut self, set: usize, next: Option<usize>) {
        let Some(Ring { moves, lanes }) = &mut self.plan.frozen.ring else { return };
        let next = next.filter(|next| next % BUFFERS != set % BUFFERS);
        for set in [Some(set), next].into_iter().flatten() {
            if lanes.give(set % BUFFERS, set) {
                lanes.transfer(set % BUFFERS, &moves[set], self.backend.as_mut());
            }
        }
        lanes.settle(set % BUFFERS, self.backend.as_mut());
    }
}
