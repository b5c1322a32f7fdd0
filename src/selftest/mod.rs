//! Whether a device computes the right thing: every operation of the seam and whole training steps against the CPU backend
//! in f64, and single instructions against their definition. `ptune selftest` and the tests are both made of this.

mod attention;
mod case;
mod instructions;
mod judge;
mod linear;
mod models;
mod numbers;
mod pairs;
mod plain;
mod probes;
mod rowwise;
mod runner;
mod steps;
mod training;

use crate::backend::{DType, View};
use case::{Case, FIRST_ORDINAL, Id, Kind, PLACES, Place, Rounding, RowIds, TYPES, Views};
pub use judge::{Judge, Opener, Row};
use numbers::rounded;
pub use pairs::Extent;
pub use probes::{Probing, Recording, check as instructions};

/// An operation's name, and what tries it on all of its cases.
pub type Operation = (&'static str, fn(&mut Judge));

/// Every operation of the seam.
pub fn operations() -> impl Iterator<Item = Operation> {
    [rowwise::OPERATIONS, linear::OPERATIONS, attention::OPERATIONS, training::OPERATIONS].into_iter().flatten().copied()
}
