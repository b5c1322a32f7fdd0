//! A family of no checkpoint: a specification that is given, its tensors named by their slots. Models of random weights
//! are of it.

use super::{Config, Family, HeadKind, MaskedHead, Slot, Specification, Storage};
use anyhow::{Result, bail};

pub static SYNTHETIC: Family = Family {
    model_types: &["synthetic"],
    architectures: &[],
    prefixes: &[""],
    transformers_head: |_| HeadKind::Linear,
    specification,
    tensor_name: |slot: Slot| Some(format!("{slot:?}")),
    storage: |_, _| Storage::PLAIN,
    bias_name: |_| None,
    masked_heads: &[&MASKED_HEAD],
};

static MASKED_HEAD: MaskedHead =
    MaskedHead { transform: "HeadTransform", norm: "HeadNorm", decoder: "LanguageHead", bias: "HeadBias", activation: None };

fn specification(config: &Config) -> Result<Specification> {
    bail!("{}: a synthetic model has no config.json", config.file().display())
}
