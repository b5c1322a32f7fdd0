//! Adapters: prefix and head, in PEFT's layout (what its `save_pretrained` writes) with ptune's own metadata beside them.

use super::atomic::write_atomically;
use super::frozen::FrozenModel;
use super::host::{HostTensor, read_tensors, write_tensors};
use super::metadata::{Metadata, write_json};
use super::peft::{self, PREFIX_TUNING, PROMPT_TUNING, PTUNE_PREFIX, PeftConfig};
use super::quantise::WeightFormat;
use crate::data::LongSentences;
use crate::error::require_directory;
use crate::model::{HeadKind, HeadLayer, HeadSpec, Pooling, Readout, Specification, TaskKind, offers_head};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The prefix \[P, prefix layers * 2 * kv_size\], a row laid out as \[layer\]\[key, value\]\[head\]\[dim\].
pub const PREFIX: &str = "prompt_embeddings";
/// A pooler that the checkpoint lacks, with `.weight` \[H, H\] and `.bias` \[H\].
pub const POOLER: &str = "base_model.pooler.dense";

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const TENSORS: &str = "adapter_model.safetensors";
pub(super) const METADATA: &str = "ptune.json";

/// A trained prefix with its head.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub metadata: Metadata,
    /// By their names in the file: [`PREFIX`], the heads' layers ([`HeadSpec::layers`]), perhaps [`POOLER`].
    pub tensors: BTreeMap<String, HostTensor>,
    /// Not written by ptune: there is no `ptune.json`.
    pub foreign: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// `PREFIX_TUNING` (of a prompt `PROMPT_TUNING`) where PEFT loads the adapter and computes the same, else `PTUNE_PREFIX`.
    pub peft_type: &'static str,
    /// Why it is `PTUNE_PREFIX`.
    pub reasons: Vec<String>,
    /// Size of the adapter's files.
    pub bytes: u64,
}

impl Adapter {
    /// Reads an adapter of ptune or of PEFT; fp16 and bf16 tensors are widened. Of a foreign adapter the task is None
    /// where `task_type` does not tell it, and multiple choice reads as classification: the caller may set it.
    pub fn read(directory: &Path) -> Result<Adapter> {
        require_directory(directory, "give the folder of an adapter")?;
        let [config, tensors, metadata] = [CONFIG, TENSORS, METADATA].map(|name| directory.join(name));
        if !config.exists() {
            bail!("{}: there is no {CONFIG}; give the folder of an adapter", directory.display());
        }
        let peft = PeftConfig::read(&config)?;
        if !tensors.exists() {
            if directory.join("adapter_model.bin").exists() {
                bail!(
                    "{}: there is only adapter_model.bin; convert it first: load it with PEFT and save it with safe_serialization=True",
                    directory.display()
                );
            }
            bail!("{}: there is no {TENSORS}; the adapter is incomplete", directory.display());
        }
        let own = Metadata::read(&metadata)?;
        let values = read_tensors(&tensors)?;
        for (name, tensor) in &values {
            if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
                bail!("{}: tensor {name} contains {value}; the adapter is damaged", tensors.display());
            }
        }
        let foreign = own.is_none();
        let metadata = match own {
            Some(own) if own.prefix_length != peft.tokens => bail!(
                "{}: prefix_length is {}, but num_virtual_tokens in {CONFIG} is {}; they belong to different adapters",
                metadata.display(),
                own.prefix_length,
                peft.tokens
            ),
            Some(own) => own,
            None if peft.ours => bail!("{}: {METADATA} is missing, which peft_type {PTUNE_PREFIX} needs", directory.display()),
            None => foreign_metadata(&peft, &values).with_context(|| directory.display().to_string())?,
        };
        let adapter = Adapter { metadata, tensors: values, foreign };
        adapter.prefix_width().with_context(|| tensors.display().to_string())?;
        Ok(adapter)
    }

    /// Writes `ptune.json`, `adapter_config.json` and then the tensors, each atomically; the directory is made.
    pub fn write(&self, directory: &Path, spec: &Specification) -> Result<Export> {
        self.fits(spec).context("cannot write the adapter")?;
        let reasons = peft::obstacles(&self.metadata, spec, self.tensors.contains_key(&format!("{POOLER}.weight")))?;
        let peft_type = match (reasons.is_empty(), self.metadata.is_prompt()) {
            (true, false) => PREFIX_TUNING,
            (true, true) => PROMPT_TUNING,
            (false, _) => PTUNE_PREFIX,
        };
        let config = peft::config(&self.metadata, spec, peft_type)?;
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make the directory {}", directory.display()))?;
        self.metadata.write(&directory.join(METADATA))?;
        write_json(&directory.join(CONFIG), &config)?;
        write_atomically(&directory.join(TENSORS), |writer| write_tensors(writer, &self.tensors))?;
        let mut bytes = 0;
        for name in [METADATA, CONFIG, TENSORS] {
            bytes += directory.join(name).metadata().with_context(|| format!("cannot read {name}"))?.len();
        }
        Ok(Export { peft_type, reasons, bytes })
    }

    /// Whether the adapter can stand on a model; what is odd but possible comes back as warnings.
    pub fn check(&self, model: &FrozenModel) -> Result<Vec<String>> {
        if !self.metadata.heads.is_empty() {
            let mut warnings = Vec::new();
            for (name, head) in self.of_heads() {
                let found = head.check(model).with_context(|| format!("head {name}"))?;
                warnings.extend(found.into_iter().filter(|warning| !warnings.contains(warning)).collect::<Vec<_>>());
            }
            return Ok(warnings);
        }
        let name = model.directory.display();
        let used = self.fits(&model.spec).with_context(|| self.misfit(model))?;
        let mut warnings = vec![];
        if self.metadata.task.is_none() && self.foreign {
            warnings.push("the adapter's files do not tell its task; its head was not checked".to_string());
        } else if self.metadata.has_head() {
            let unused: Vec<&str> = self.tensors.keys().filter(|key| !used.contains(*key)).map(String::as_str).collect();
            if !unused.is_empty() {
                warnings.push(format!("tensors of the adapter that are not used: {}", unused.join(", ")));
            }
        }
        let pooled = self.head(&model.spec).is_some_and(|head| head.pooling == Pooling::Frozen);
        if pooled && !model.has_pooler() && !used.contains(&format!("{POOLER}.weight")) {
            bail!("the adapter's head reads the model's pooler, but neither {name} nor the adapter has one");
        }
        if let Some(trained_on) = &self.metadata.fingerprint
            && *trained_on != model.fingerprint()
        {
            warnings.push(format!(
                "the adapter was trained on other weights ({}) than those of {name}; its results may be wrong",
                self.metadata.base_model
            ));
        }
        let whole = self.metadata.task.is_some_and(TaskKind::reads_sequences);
        if self.foreign && self.metadata.is_prompt() && whole && model.spec.readout == Readout::First {
            bail!("PEFT trained this adapter's head on the first row of its prompt, where ptune reads the first token of the text");
        }
        if self.foreign && self.metadata.task == Some(TaskKind::Qa) && model.spec.token_types > 1 {
            warnings.push("PEFT trains question answering without token types, this program uses them: scores may be lower".to_string());
        }
        Ok(warnings)
    }

    /// The head by task, kind and the output layer's shape; None where the task is not known.
    fn head(&self, spec: &Specification) -> Option<HeadSpec> {
        let last = self.metadata.head_spec(0, spec)?.layers(0).pop();
        let last = last.and_then(|layer| self.tensors.get(&format!("{}.weight", layer.name)));
        self.metadata.head_spec(last.and_then(|weight| weight.shape.first().copied()).unwrap_or(0), spec)
    }

    /// Key or value elements of a prefix position in a layer, or elements of a prompt's embedding, by the tensor's shape;
    /// None without a prefix.
    fn prefix_width(&self) -> Result<Option<usize>> {
        let (length, layers) = (self.metadata.prefix_length, self.metadata.prefix_layers.len());
        let Some(prefix) = self.tensors.get(PREFIX) else {
            ensure!(length == 0, "tensor {PREFIX} is missing");
            return Ok(None);
        };
        let &[rows, columns] = prefix.shape.as_slice() else { bail!("tensor {PREFIX} has shape {:?}; it must be a matrix", prefix.shape) };
        ensure!(rows == length, "tensor {PREFIX} has {rows} rows, but the prefix length is {length}");
        if length == 0 {
            return Ok(None);
        }
        if self.metadata.is_prompt() {
            return Ok(Some(columns));
        }
        ensure!(
            layers > 0 && columns.is_multiple_of(2 * layers) && columns > 0,
            "tensor {PREFIX} has {columns} columns, which are not keys and values of {layers} layers"
        );
        Ok(Some(columns / 2 / layers))
    }

    /// Whether a prefix or prompt of this shape belongs to such a model at all: that comes before all that is asked of it.
    pub fn check_shape(&self, model: &FrozenModel) -> Result<()> {
        self.fits_shape(&model.spec).with_context(|| self.misfit(model))
    }

    fn misfit(&self, model: &FrozenModel) -> String {
        format!("the adapter does not fit {}", model.directory.display())
    }

    fn fits_shape(&self, spec: &Specification) -> Result<()> {
        let metadata = &self.metadata;
        if metadata.model_layers != spec.layers {
            bail!("the adapter is for a model of {} layers, this one has {}", metadata.model_layers, spec.layers);
        }
        let (what, expected) = if metadata.is_prompt() { ("embeddings", spec.embedding_size) } else { ("keys and values", spec.kv_size()) };
        if let Some(width) = self.prefix_width()?.filter(|&width| width != expected) {
            bail!("the adapter's {what} have size {width}, the model's {expected}");
        }
        Ok(())
    }

    /// Checks sizes against a model; the names of the tensors that it uses.
    fn fits(&self, spec: &Specification) -> Result<BTreeSet<String>> {
        self.fits_shape(spec)?;
        let metadata = &self.metadata;
        for (name, head) in self.of_heads() {
            head.fits(spec).with_context(|| format!("head {name}"))?;
        }
        let mut used = BTreeSet::from([PREFIX.to_string()]);
        let (Some(task), Some(head)) = (metadata.task, self.head(spec)) else { return Ok(used) };
        if head.is_trained() && !offers_head(spec, task, metadata.head) {
            bail!("the adapter's head for {} is {}, which a {} model does not have", task.name(), metadata.head.name(), spec.family);
        }
        let mut expect = |name: String, shape: &[usize]| match self.tensors.get(&name) {
            None => bail!("the adapter has no tensor {name}, which {} needs; it has {}", task.name(), self.names()),
            Some(tensor) if tensor.shape != shape => {
                bail!("tensor {name} has shape {:?}, for {} on this model it should have {shape:?}", tensor.shape, task.name())
            }
            Some(_) => {
                used.insert(name);
                Ok(())
            }
        };
        for HeadLayer { name, shape, bias } in head.layers(spec.hidden_size) {
            expect(format!("{name}.weight"), &shape)?;
            if bias {
                expect(format!("{name}.bias"), &shape[..1])?;
            }
        }
        if head.pooling == Pooling::Frozen && self.tensors.contains_key(&format!("{POOLER}.weight")) {
            expect(format!("{POOLER}.weight"), &[spec.hidden_size, spec.hidden_size])?;
            expect(format!("{POOLER}.bias"), &[spec.hidden_size])?;
        }
        let labels = metadata.labels.as_ref().map(Vec::len);
        if matches!(task, TaskKind::Classification | TaskKind::Tagging)
            && head.is_trained()
            && labels.is_some_and(|labels| labels != head.columns)
        {
            bail!("the adapter's head has {} outputs for {} labels", head.columns, labels.unwrap_or(0));
        }
        Ok(used)
    }

    fn names(&self) -> String {
        self.tensors.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// What the files of a PEFT adapter tell: of a prompt, or of a prefix. PEFT has a prefix in every layer, shifts positions and has no prefix dropout.
fn foreign_metadata(peft: &PeftConfig, tensors: &BTreeMap<String, HostTensor>) -> Result<Metadata> {
    let has = |name: &str| tensors.contains_key(&format!("base_model.{name}.weight"));
    let head = if has("classifier.dense") {
        HeadKind::Dense
    } else if has("pooler.dense") {
        HeadKind::Context
    } else if has("score") {
        HeadKind::Score
    } else {
        HeadKind::Linear
    };
    let Some(&[_, columns]) = tensors.get(PREFIX).map(|tensor| tensor.shape.as_slice()) else {
        bail!("{TENSORS} has no matrix {PREFIX}; is it a prefix-tuning adapter?");
    };
    // Where the file does not give the width, the head's input has the hidden size, which is the width in encoders.
    let heads = ["classifier.out_proj", "classifier", "qa_outputs", "score"];
    let hidden = || heads.iter().find_map(|head| tensors.get(&format!("base_model.{head}.weight"))?.shape.get(1).copied());
    let layers = match (peft.layers, peft.token_dim.or_else(hidden)) {
        (Some(layers), _) => layers,
        _ if peft.prompt => bail!("{CONFIG} does not tell the number of layers; add num_layers"),
        (None, Some(width)) if width > 0 && columns.is_multiple_of(2 * width) => columns / 2 / width,
        _ => bail!("{CONFIG} does not tell the number of layers; add num_layers"),
    };
    let width = columns / 2 / layers;
    if let Some(given) = peft.token_dim
        && !peft.prompt
        && given * layers * 2 != columns
    {
        bail!("{CONFIG} has num_layers {layers} and token_dim {given}, but {PREFIX} has {columns} columns (2 * layers * token_dim)");
    }
    Ok(Metadata {
        task: peft.task,
        named_task: None,
        template: 0,
        labels: None,
        head,
        prefix_length: peft.tokens,
        prefix_layers: if peft.prompt { Vec::new() } else { (0..layers).collect() },
        model_layers: layers,
        prefix_projection: peft.projected.then(|| peft.projection.unwrap_or(width)),
        shifted_positions: true,
        prefix_dropout: 0.0,
        hidden_dropout: 0.0,
        attention_dropout: 0.0,
        max_length: None,
        doc_stride: None,
        tag_scheme: None,
        long_sentences: LongSentences::default(),
        no_answer: false,
        null_threshold: None,
        verbalizer: None,
        weight_format: WeightFormat::Fp16,
        base_model: peft.base_model.clone(),
        fingerprint: None,
        heads: BTreeMap::new(),
    })
}

#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;
