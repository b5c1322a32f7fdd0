//! What a transformer is: the specification that drives the engine, and one small file a family that reads it from
//! `config.json` and names the checkpoint's tensors.

mod head;
mod spec;

pub use head::{HeadKind, HeadSpec, Pooling, TaskKind};
pub use spec::{NormPlace, Positions, Slot, Specification};
