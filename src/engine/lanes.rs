//! Places in the arena that things from outside it take in turn, each with a lane of its own for what comes and goes: streamed
//! weights, and offloaded inputs of layers.

use crate::backend::{Backend, View};

/// Who is in which place, and what is on its way.
pub struct Lanes {
    /// The lane of the first place.
    first: usize,
    /// What is in each place, or on its way there.
    held: Vec<Option<usize>>,
    /// Whether nobody has waited for its last transfer yet.
    moving: Vec<bool>,
}

impl Lanes {
    pub fn new(first: usize, places: usize) -> Lanes {
        Lanes { first, held: vec![None; places], moving: vec![false; places] }
    }

    /// Gives a place to `item`; whether it had another before.
    pub fn give(&mut self, place: usize, item: usize) -> bool {
        self.held[place].replace(item) != Some(item)
    }

    /// Moves what is in a place, or is to be there, behind what its lane does already.
    pub fn transfer(&mut self, place: usize, moves: &[(View, View)], backend: &mut dyn Backend) {
        self.settle(place, backend);
        backend.transfer(self.first + place, moves);
        self.moving[place] = true;
    }

    /// Has a place's last transfer behind it for what is queued from here on.
    pub fn settle(&mut self, place: usize, backend: &mut dyn Backend) {
        if std::mem::take(&mut self.moving[place]) {
            backend.join(self.first + place);
        }
    }
}
