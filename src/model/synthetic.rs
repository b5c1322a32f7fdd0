//! A family of no checkpoint: a specification that is given, its tensors named by their slots. Models of random weights
//! are of it.

use super::{Config, Family, HeadKind, Slot, Specification};
use anyhow::{Result, bail};

pub static SYNTHETIC: Family = Family {
    model_types: &["synthetic"],
    architectures: &[],
    prefixes: &[""],
    transformers_head: HeadKind::Linear,
    specification,
    tensor_name: |slot: Slot| Some(format!("{slot:?}")),
};

fn specification(config: &Config) -> Result<Specification> {
    bail!("{}: a synthetic model has no config.json", config.file().display())
}
