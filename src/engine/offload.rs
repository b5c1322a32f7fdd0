//! Offloaded activations: what stands for the layers' inputs waits for the backward in host memory. In the arena each
//! micro-batch has a few places, which its layers take in turn: a layer's input goes home while the layer computes, and
//! comes back a layer ahead of its backward, each place on a lane of its own.
//!
//! What stands for an input is the residual stream (pre-norm), or what the norm in front kept (post-norm); there the
//! lowest layer, whose input no kept norm gives, keeps it in the arena.

use super::activations::{NormBuffers, Reach};
use super::lanes::Lanes;
use super::layout::Layout;
use super::plan::Sizes;
use super::{Engine, streaming};
use crate::backend::{HOST, View};

/// A micro-batch's places.
pub struct Places(Vec<Place>);

#[derive(Clone, Copy)]
enum Place {
    Stream(View),
    Norm(NormBuffers),
}

impl Places {
    /// The residual stream in front of a layer.
    pub fn stream(&self, layer: usize) -> Option<View> {
        if let Place::Stream(view) = self.0[layer % self.0.len()] { Some(view) } else { None }
    }

    /// What the norm in front of a layer keeps.
    pub fn norm(&self, layer: usize) -> Option<NormBuffers> {
        if let Place::Norm(norm) = self.0[layer % self.0.len()] { Some(norm) } else { None }
    }
}

/// Where inputs are, and what is on its way.
pub struct Offload {
    /// For each micro-batch and layer from `first` on: place and home of each buffer.
    moves: Vec<Vec<Vec<(View, View)>>>,
    /// The lowest layer whose input has a home.
    first: usize,
    layers: usize,
    /// Places of a micro-batch.
    count: usize,
    /// The places of all micro-batches, which hold layers' inputs; their lanes come behind those of streamed weights.
    lanes: Lanes,
}

impl Sizes<'_> {
    /// Two places are enough where other micro-batches compute between a layer and the next one; a micro-batch alone has a
    /// third, which is filled meanwhile.
    pub fn places(&self, layout: &mut Layout, reach: Reach) -> Option<Places> {
        let activation = self.precision.activation;
        let mut place = || match self.is_pre_norm() {
            true => Place::Stream(layout.matrix(self.tokens, self.spec.hidden_size, activation)),
            false => Place::Norm(self.norm(layout, self.tokens, self.spec.hidden_size)),
        };
        let count = if reach.together > 1 { 2 } else { 3 };
        reach.offload.then(|| Places((0..count).map(|_| place()).collect()))
    }
}

impl Offload {
    /// Gives inputs their homes in host memory. None: nothing is offloaded.
    pub fn lay_out(places: &[Option<Places>], reach: Reach, host: &mut Layout) -> Option<Offload> {
        let mut moves = Vec::new();
        let (mut first, mut count) = (reach.lowest, 0);
        for places in places {
            let places = places.as_ref()?;
            count = places.0.len();
            first = reach.lowest + usize::from(matches!(places.0[0], Place::Norm(_)));
            let home = |view: View, host: &mut Layout| (view, View { buffer: HOST, ..host.matrix(view.rows, view.cols, view.dtype) });
            let of_layer = |layer: usize| match places.0[layer % count] {
                Place::Stream(view) => vec![home(view, host)],
                Place::Norm(norm) => [norm.normalized, norm.rstd].map(|view| home(view, host)).into(),
            };
            moves.push((first..reach.layers).map(of_layer).collect());
        }
        let lanes = Lanes::new(streaming::BUFFERS, places.len() * count);
        Some(Offload { moves, first, layers: reach.layers, count, lanes })
    }

    /// The place of a layer's input among those of all micro-batches, where it has a home.
    fn place(&self, slot: usize, layer: usize) -> Option<usize> {
        (self.first..self.layers).contains(&layer).then(|| slot * self.count + layer % self.count)
    }

    /// Of a layer's input the buffers' places and homes, over `count` rows.
    fn moves(&self, slot: usize, layer: usize, count: usize) -> impl Iterator<Item = (View, View)> {
        // Of the rows' own values a column each.
        let part = move |view: View| if view.rows == 1 { view.col_range(0, count) } else { view.first_rows(count) };
        self.moves[slot][layer - self.first].iter().map(move |&(place, home)| (part(place), part(home)))
    }
}

impl Engine {
    /// Before what stands for the layer's input is written.
    pub(super) fn free_input(&mut self, layer: usize) {
        let Some(offload) = &mut self.plan.offload else { return };
        let Some(place) = offload.place(self.slot, layer) else { return };
        offload.lanes.give(place, layer);
        offload.lanes.settle(place, self.backend.as_mut());
    }

    /// After it was written: sends it home, but for the uppermost, whose places nobody else takes. Of all tokens `count` rows.
    pub(super) fn send_input(&mut self, layer: usize, count: usize) {
        let Some(offload) = &mut self.plan.offload else { return };
        let Some(place) = offload.place(self.slot, layer).filter(|_| layer + offload.count < offload.layers) else { return };
        let moves: Vec<(View, View)> = offload.moves(self.slot, layer, count).collect();
        offload.lanes.transfer(place, &moves, self.backend.as_mut());
    }

    /// Sends for it, where it is not in its place.
    fn fetch_input(&mut self, layer: usize, count: usize) {
        let Some(offload) = &mut self.plan.offload else { return };
        let Some(place) = offload.place(self.slot, layer) else { return };
        if offload.lanes.give(place, layer) {
            let moves: Vec<(View, View)> = offload.moves(self.slot, layer, count).map(|(place, home)| (home, place)).collect();
            offload.lanes.transfer(place, &moves, self.backend.as_mut());
        }
    }

    /// Has what stands for the inputs of a layer and of the next one in place for what is queued from here on, and that of the
    /// layer below on its way, where a place is free for it.
    pub(super) fn need_inputs(&mut self, layer: usize, count: usize) {
        for layer in [layer + 1, layer] {
            self.fetch_input(layer, count);
            let Some(offload) = &mut self.plan.offload else { return };
            if let Some(place) = offload.place(self.slot, layer) {
                offload.lanes.settle(place, self.backend.as_mut());
            }
        }
        if self.plan.offload.as_ref().is_some_and(|offload| offload.count > 2) {
            self.fetch_below(layer, count);
        }
    }

    /// Sends for what stands for the input of the layer below.
    pub(super) fn fetch_below(&mut self, layer: usize, count: usize) {
        if let Some(below) = layer.checked_sub(1) {
            self.fetch_input(below, count);
        }
    }
}
