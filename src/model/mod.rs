//! What a transformer is: the specification that drives the engine, and one small file a family that reads it from
//! `config.json` and names the checkpoint's tensors.

mod architectures;
mod bert;
mod config;
mod deberta;
mod family;
mod glm;
mod head;
mod roberta;
mod spec;

pub use architectures::{architecture, architecture_names};
pub use config::Config;
pub use family::{FAMILIES, Family, TensorRows, describe, family_of};
pub use head::{HeadKind, HeadSpec, Output, Pooling, TaskKind};
pub use spec::{Biases, MaskKind, NormPlace, Positions, Slot, Specification};
