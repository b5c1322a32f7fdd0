//! What a transformer is: the specification that drives the engine, and one small file a family that reads it from
//! `config.json` and names the checkpoint's tensors.

mod architectures;
mod bert;
mod config;
mod deberta;
mod family;
mod glm;
mod gpt2;
mod head;
mod llama;
mod masked_head;
mod mistral;
mod qwen;
mod roberta;
mod rotary;
mod spec;
mod synthetic;

pub use architectures::{architecture, architecture_names};
pub use config::Config;
pub use family::{FAMILIES, Family, Storage, default_head, describe, family_of, offers_head};
pub use head::{HeadKind, HeadLayer, HeadSpec, Output, Pooling, Reads, TaskKind};
pub use masked_head::MaskedHead;
pub use rotary::Rotary;
pub use spec::{Biases, MaskKind, NormPlace, Positions, Readout, Slot, Specification};
pub use synthetic::SYNTHETIC;
