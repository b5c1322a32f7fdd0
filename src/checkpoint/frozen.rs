//! A frozen model: its specification, and its tensors by role.

use super::mapped::Tensor;
use super::shards::Checkpoint;
use crate::backend::{DType, FileBytes};
use crate::model::{Config, Family, MaskedHead, Slot, Specification, Storage, describe};
use anyhow::{Result, anyhow, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where the tensors of a model come from.
pub enum Weights {
    Files(Checkpoint),
    /// From nowhere: the engine has the device draw them, as a new model's are drawn. Norms are neutral, biases zero.
    Random {
        seed: u64,
        /// Of matrices.
        dtype: DType,
    },
}

/// A Hugging Face model directory, every tensor of which the specification asks for is there and has its shape; or the
/// specification alone, with random weights.
pub struct FrozenModel {
    pub spec: Specification,
    pub source: Weights,
    pub directory: PathBuf,
    family: &'static Family,
    /// What stands before every tensor's name: `bert.`, or nothing.
    prefix: &'static str,
    pooler: bool,
    /// The masked-language-model head that is there.
    masked_head: Option<&'static MaskedHead>,
}

impl FrozenModel {
    /// Reads `config.json`, maps the safetensors and checks that the two agree. Heads and anything else in the files
    /// is ignored; a pooler may be absent.
    pub fn open(directory: &Path) -> Result<FrozenModel> {
        let (family, spec) = describe(&Config::of_model(directory)?)?;
        let checkpoint = Checkpoint::open(directory)?;
        let prefix = find_prefix(family, &spec, &checkpoint)?;
        FrozenModel::assemble(family, prefix, spec, checkpoint, directory.to_owned())
    }

    /// A model of this configuration with random weights, in bf16 where it says so, else fp16.
    pub fn random(config: &Config, seed: u64) -> Result<FrozenModel> {
        let (family, spec) = describe(config)?;
        let dtype = match config.text("dtype")?.or(config.text("torch_dtype")?) {
            Some("bfloat16") => DType::BF16,
            _ => DType::F16,
        };
        let (pooler, directory) = ((family.tensor_name)(Slot::Pooler).is_some(), config.file().to_owned());
        let masked_head = family.masked_heads.first().copied();
        Ok(FrozenModel { spec, source: Weights::Random { seed, dtype }, directory, family, prefix: "", pooler, masked_head })
    }

    /// A model of given parts: `prefix` stands before the names that `family` gives its tensors. Checks that every
    /// tensor of the specification is there.
    pub fn assemble(
        family: &'static Family,
        prefix: &'static str,
        spec: Specification,
        checkpoint: Checkpoint,
        directory: PathBuf,
    ) -> Result<FrozenModel> {
        let model = FrozenModel::unchecked(family, prefix, spec, checkpoint, directory);
        for slot in model.slots() {
            model.weight(slot)?;
            model.bias(slot)?;
        }
        Ok(model)
    }

    fn unchecked(
        family: &'static Family,
        prefix: &'static str,
        spec: Specification,
        checkpoint: Checkpoint,
        directory: PathBuf,
    ) -> FrozenModel {
        let name = (family.tensor_name)(Slot::Pooler).map(|name| format!("{prefix}{name}.weight"));
        let known = |name: &str| checkpoint.tensor(name).is_some() || checkpoint.unsupported(name).is_some();
        let pooler = name.is_some_and(|name| known(&name));
        let masked_head = family.masked_heads.iter().copied().find(|head| known(&format!("{}.weight", head.transform)));
        FrozenModel { spec, source: Weights::Files(checkpoint), directory, family, prefix, pooler, masked_head }
    }

    /// Every slot that the checkpoint must fill, and the pooler where it has one.
    fn slots(&self) -> impl Iterator<Item = Slot> {
        self.spec.slots().into_iter().chain(self.pooler.then_some(Slot::Pooler))
    }

    pub fn has_pooler(&self) -> bool {
        self.pooler
    }

    /// The masked-language-model head; an error that names what is missing where the checkpoint has none.
    pub fn masked_head(&self) -> Result<&'static MaskedHead> {
        if let Some(head) = self.masked_head {
            return Ok(head);
        }
        let names: Vec<String> = self.family.masked_heads.iter().map(|head| head.tensors().join(", ")).collect();
        match names.as_slice() {
            [] => bail!("a model of type {} has no masked-language-model head", self.spec.family),
            names => bail!(
                "{}: the checkpoint has no masked-language-model head, by which --verbalizer scores words: the tensors {} are missing; take a checkpoint that was saved with it, or leave --verbalizer out to train a head",
                self.directory.display(),
                names.join(" (or ") + if names.len() > 1 { ")" } else { "" }
            ),
        }
    }

    /// The bias of a masked-language-model head's output layer [V]; only of a model of files.
    pub fn masked_bias(&self) -> Result<&Tensor> {
        self.find("", self.masked_head()?.bias, &[""], &[self.spec.vocabulary])
    }

    /// The files that it is made of; none with random weights.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match &self.source {
            Weights::Files(checkpoint) => Some(checkpoint),
            Weights::Random { .. } => None,
        }
    }

    pub fn files(&self) -> &[FileBytes] {
        self.checkpoint().map_or(&[], Checkpoint::files)
    }

    /// Bytes of the files.
    pub fn file_bytes(&self) -> usize {
        self.checkpoint().map_or(0, Checkpoint::total_bytes)
    }

    /// What tells these weights from others: see [`Checkpoint::fingerprint`].
    pub fn fingerprint(&self) -> String {
        match &self.source {
            Weights::Files(checkpoint) => checkpoint.fingerprint(),
            Weights::Random { seed, dtype } => {
                let mut hash = Sha256::new();
                hash.update(format!("random\0{seed}\0{}\0{}\0", dtype.name(), self.spec.initializer_range));
                for slot in self.spec.slots() {
                    hash.update(format!("{slot:?}\0{:?}\0", self.spec.shape(slot)));
                }
                hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
            }
        }
    }

    /// Element type of a slot's matrix.
    pub fn dtype(&self, slot: Slot) -> Result<DType> {
        match self.source {
            Weights::Files(_) => Ok(self.weight(slot)?.dtype),
            Weights::Random { dtype, .. } => Ok(dtype),
        }
    }

    /// The tensor of a slot's matrix [output, input] (or as [`FrozenModel::storage`] says), or a norm's gamma [H].
    /// Only of a model of files, as [`FrozenModel::bias`].
    pub fn weight(&self, slot: Slot) -> Result<&Tensor> {
        let ([rows, cols], base) = (self.shape(slot)?, self.base(slot)?);
        if slot.is_norm() {
            return self.find(self.prefix(slot), &base, &[".weight", ".gamma"], &[cols]);
        }
        let Storage { transposed, parts, .. } = self.storage(slot);
        let shape = if transposed { [cols, parts * rows] } else { [parts * rows, cols] };
        self.find(self.prefix(slot), &base, &[".weight"], &shape)
    }

    /// How the tensor of a slot's matrix holds it.
    pub fn storage(&self, slot: Slot) -> Storage {
        (self.family.storage)(&self.spec, slot)
    }

    /// How the tensor of a slot's bias holds it.
    pub fn bias_storage(&self, slot: Slot) -> Storage {
        if (self.family.bias_name)(slot).is_some() { Storage::PLAIN } else { Storage { transposed: false, ..self.storage(slot) } }
    }

    /// The tensor of a slot's bias [output], or a norm's beta [H]; None only where the specification has none.
    pub fn bias(&self, slot: Slot) -> Result<Option<&Tensor>> {
        if !self.spec.has_bias(slot) {
            return Ok(None);
        }
        let [rows, cols] = self.shape(slot)?;
        let outputs = self.bias_storage(slot).parts * rows;
        let tensor = match (self.family.bias_name)(slot) {
            Some(name) => self.find(self.prefix(slot), &name, &[""], &[outputs]),
            None if slot.is_norm() => self.find(self.prefix(slot), &self.base(slot)?, &[".bias", ".beta"], &[cols]),
            None => self.find(self.prefix(slot), &self.base(slot)?, &[".bias"], &[outputs]),
        };
        tensor.map(Some)
    }

    /// What stands before the name of a slot's tensor.
    fn prefix(&self, slot: Slot) -> &'static str {
        if slot.is_beside() { "" } else { self.prefix }
    }

    fn base(&self, slot: Slot) -> Result<String> {
        if let (true, Some(name)) = (slot.is_beside(), self.masked_head.and_then(|head| head.name(slot))) {
            return Ok(name.to_string());
        }
        (self.family.tensor_name)(slot).ok_or_else(|| anyhow!("a model of type {} has no {slot:?}", self.spec.family))
    }

    fn shape(&self, slot: Slot) -> Result<[usize; 2]> {
        self.spec.shape(slot).ok_or_else(|| anyhow!("a model of type {} has no {slot:?}", self.spec.family))
    }

    /// The first of a tensor's possible names, checked.
    fn find(&self, prefix: &str, base: &str, endings: &[&str], shape: &[usize]) -> Result<&Tensor> {
        let Weights::Files(checkpoint) = &self.source else { bail!("{}: random weights are in no file", self.directory.display()) };
        let names: Vec<String> = endings.iter().map(|ending| format!("{prefix}{base}{ending}")).collect();
        for name in &names {
            if let Some((file, dtype)) = checkpoint.unsupported(name) {
                bail!("{}: tensor {name} has element type {dtype}; only F16, BF16 and F32 are supported", file.display());
            }
        }
        let Some(tensor) = names.iter().find_map(|name| checkpoint.tensor(name)) else {
            bail!("{}: tensor {} is missing, which its config.json asks for", self.directory.display(), names[0]);
        };
        let file = checkpoint.file_name(tensor.file).display();
        if tensor.shape != shape {
            bail!("{file}: tensor {} has shape {:?}, by config.json it should have {shape:?}", tensor.name, tensor.shape);
        }
        Ok(tensor)
    }
}

/// What a model of a configuration finds in a checkpoint.
pub struct Survey {
    /// Names of the tensors that it reads.
    pub used: BTreeSet<String>,
    /// A message for every tensor that is missing or has another shape.
    pub problems: Vec<String>,
}

/// Looks for every tensor that `config` asks for; an error where the configuration itself is not supported.
pub fn survey(config: &Config, checkpoint: Checkpoint, directory: &Path) -> Result<Survey> {
    let (family, spec) = describe(config)?;
    let (mut used, mut problems) = (BTreeSet::new(), Vec::new());
    let prefix = match find_prefix(family, &spec, &checkpoint) {
        Ok(prefix) => prefix,
        Err(error) => return Ok(Survey { used, problems: vec![error.to_string()] }),
    };
    let model = FrozenModel::unchecked(family, prefix, spec, checkpoint, directory.to_owned());
    for slot in model.slots() {
        for found in [model.weight(slot).map(Some), model.bias(slot)] {
            match found {
                Ok(Some(tensor)) => {
                    used.insert(tensor.name.clone());
                }
                Ok(None) => {}
                // A tensor that several slots share is missing once.
                Err(problem) => {
                    let problem = problem.to_string();
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                }
            }
        }
    }
    Ok(Survey { used, problems })
}

/// What stands before every tensor's name: the first of the family's prefixes with which there is a word embedding.
fn find_prefix(family: &'static Family, spec: &Specification, checkpoint: &Checkpoint) -> Result<&'static str> {
    let known = |name: &str| checkpoint.tensor(name).is_some() || checkpoint.unsupported(name).is_some();
    let named = |prefix: &str, slot| (family.tensor_name)(slot).map(|name| format!("{prefix}{name}.weight"));
    let probe = |prefix: &&&str| named(prefix, Slot::WordEmbedding).is_some_and(|name| known(&name));
    match family.prefixes.iter().find(probe) {
        Some(&prefix) => Ok(prefix),
        None => {
            let expected: Vec<String> = family.prefixes.iter().filter_map(|prefix| named(prefix, Slot::WordEmbedding)).collect();
            bail!(
                "{}: no tensor {}; is this a checkpoint of model_type {}?",
                checkpoint.file_name(0).display(),
                expected.join(" or "),
                spec.family
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DType;
    use safetensors::{Dtype, SafeTensors, tensor::TensorView};
    use std::fs;

    /// A copy of a golden model with its tensors renamed, retyped or left out.
    fn edited(bundle: &str, edit: impl Fn(&str, Dtype) -> Option<(String, Dtype)>) -> (tempfile::TempDir, Result<FrozenModel>) {
        let (folder, source) = (tempfile::tempdir().unwrap(), Path::new("tests/golden").join(bundle).join("model"));
        fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
        let bytes = fs::read(source.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let views = tensors.iter().filter_map(|(name, view)| {
            let (name, dtype) = edit(name, view.dtype())?;
            let mut shape = view.shape().to_vec();
            if dtype == Dtype::I8 {
                shape[0] *= 2;
            }
            Some((name, TensorView::new(dtype, shape, view.data()).unwrap()))
        });
        safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &folder.path().join("model.safetensors")).unwrap();
        let model = FrozenModel::open(folder.path());
        (folder, model)
    }

    #[test]
    fn golden_models_open() {
        for bundle in ["bert-classification", "bert-qa", "bert-tagging", "roberta-classification", "deberta-classification"] {
            let model = FrozenModel::open(&Path::new("tests/golden").join(bundle).join("model")).unwrap();
            let [rows, cols] = model.spec.shape(Slot::Up(1)).unwrap();
            let up = model.weight(Slot::Up(1)).unwrap();
            assert_eq!((up.dtype, up.shape.as_slice()), (DType::F16, [rows, cols].as_slice()));
            assert!(up.name.ends_with("encoder.layer.1.intermediate.dense.weight"));
            assert_eq!(model.has_pooler(), bundle != "deberta-classification");
            assert!(model.bias(Slot::WordEmbedding).unwrap().is_none());
            let tensors: usize = model.checkpoint().unwrap().tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
            let hidden = model.spec.hidden_size;
            let pooler = if model.has_pooler() { hidden * (hidden + 1) } else { 0 };
            assert_eq!(model.spec.parameters(), tensors - pooler, "all but the pooler");
        }
    }

    #[test]
    fn old_names_no_prefix_and_no_pooler() {
        let (_folder, model) = edited("bert-classification", |name, dtype| {
            let name = name.strip_prefix("bert.").unwrap();
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
            (!name.starts_with("pooler")).then_some((name, dtype))
        });
        let model = model.unwrap();
        assert!(!model.has_pooler());
        assert_eq!(model.weight(Slot::AttentionNorm(2)).unwrap().name, "encoder.layer.2.attention.output.LayerNorm.gamma");
        assert_eq!(model.bias(Slot::EmbeddingNorm).unwrap().unwrap().name, "embeddings.LayerNorm.beta");
        assert!(model.weight(Slot::Pooler).unwrap_err().to_string().contains("pooler.dense.weight is missing"));
        assert!(model.weight(Slot::FinalNorm).is_err());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let query = "bert.encoder.layer.1.attention.self.query.weight";
        let without = edited("bert-classification", |name, dtype| (name != query).then_some((name.to_string(), dtype))).1;
        let message = format!("{:#}", without.err().unwrap());
        assert!(message.contains(&format!("tensor {query} is missing")), "{message}");

        let quantized = edited("bert-classification", |name, dtype| {
            Some((name.to_string(), if name == query || name.ends_with("pooler.dense.bias") { Dtype::I8 } else { dtype }))
        });
        let message = format!("{:#}", quantized.1.err().unwrap());
        assert!(message.contains(query) && message.contains("I8"), "{message}");

        let other = edited("bert-classification", |name, dtype| Some((format!("distil{name}"), dtype))).1;
        let message = format!("{:#}", other.err().unwrap());
        assert!(message.contains("bert.embeddings.word_embeddings.weight or embeddings."), "{message}");

        let (folder, model) = edited("bert-classification", |name, dtype| Some((name.to_string(), dtype)));
        model.unwrap();
        let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
        fs::write(folder.path().join("config.json"), config.replace("\"vocab_size\": 500", "\"vocab_size\": 501")).unwrap();
        let message = format!("{:#}", FrozenModel::open(folder.path()).err().unwrap());
        assert!(message.contains("word_embeddings.weight has shape [500, 48]") && message.contains("[501, 48]"), "{message}");
        fs::remove_file(folder.path().join("config.json")).unwrap();
        assert!(FrozenModel::open(folder.path()).err().unwrap().to_string().contains("no config.json"));
        assert!(FrozenModel::open(&folder.path().join("absent")).err().unwrap().to_string().contains("no such directory"));
    }
}
