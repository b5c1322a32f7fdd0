//! What a transformer is: the specification that drives the engine, and one small file a family that reads it from
//! `config.json` and names the checkpoint's tensors.

mod bert;
mod config;
mod family;
mod glm;
mod head;
mod roberta;
mod spec;

pub use config::Config;
pub use family::{FAMILIES, Family, describe, family_of};
pub use head::{HeadKind, HeadSpec, Output, Pooling, Reads, TaskKind};
pub use spec::{Biases, MaskKind, NormPlace, Positions, SequenceState, Slot, Specification};
