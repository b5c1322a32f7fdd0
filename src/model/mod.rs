//! What a transformer is: the specification that drives the engine, and one small file a family that reads it from
//! `config.json` and names the checkpoint's tensors.

mod architectures;
mod bert;
mod config;
mod family;
mod head;
mod roberta;
mod spec;
mod synthetic;

pub use architectures::{architecture, architecture_names};
pub use config::Config;
pub use family::{FAMILIES, Family, describe, family_of};
pub use head::{HeadKind, HeadSpec, Pooling, TaskKind};
pub use spec::{Biases, MaskKind, NormPlace, Positions, Slot, Specification};
pub use synthetic::SYNTHETIC;
