//! One data set of a run: what was read of it, what it says of its task, and its head.

use super::options::TrainOptions;
use super::prepare::{self, Reader, Split};
use super::settings::Settings;
use super::terminal::Terminal;
use super::values::NullThreshold;
use crate::checkpoint::{Adapter, FrozenModel};
use crate::data::{FeatureSet, TagScheme, TextTokenizer};
use crate::model::HeadSpec;
use crate::task::{Limits, Task, Verbalizer};
use crate::usage;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// What was read, and what it says of the task.
#[derive(Clone)]
pub struct Data {
    pub task: Arc<Task>,
    /// Whether questions may have no answer: some of the training data have none.
    pub no_answer: bool,
    /// How the training data spell spans.
    pub tag_scheme: Option<TagScheme>,
    pub train: Arc<Split>,
    pub validation: Option<Arc<Split>>,
    /// The files, by their contents.
    pub inputs: BTreeMap<String, String>,
}

/// A data set with all that is said of it.
pub struct DataSet {
    /// Its name among several, and that of its head.
    pub name: String,
    /// Complete, as of a run on this set alone.
    pub options: TrainOptions,
    pub settings: Settings,
    /// The adapter to start from, with a head where it has one for this set.
    pub start: Option<Adapter>,
    pub data: Data,
    pub head: HeadSpec,
}

impl DataSet {
    /// What is trained on.
    pub fn features(&self) -> &FeatureSet {
        &self.data.train.encoding.set
    }

    /// Whether its head goes on from one of the adapter to start from.
    pub fn has_head_to_start_from(&self) -> bool {
        self.start.as_ref().is_some_and(|start| start.metadata.has_head())
    }

    /// The score that chooses the best adapter.
    pub fn metric(&self) -> String {
        metric(&self.settings, &self.data.task)
    }
}

impl Data {
    /// Reads and encodes the data.
    pub fn read(
        options: &TrainOptions,
        settings: &Settings,
        model: &FrozenModel,
        adapter: Option<&Adapter>,
        terminal: &Terminal,
    ) -> Result<Data> {
        let adapter = adapter.filter(|adapter| adapter.metadata.has_head());
        let spec = &model.spec;
        let (name, kind) = (settings.task, settings.task.kind());
        let template = settings.template.unwrap_or(0);
        let tokenizer = TextTokenizer::open(&options.tokenizer_directory()?, spec)?;
        let limits = Limits { max_length: settings.max_length, doc_stride: settings.doc_stride };
        let reader = Reader { task: name, template, columns: options.columns(), limits, tokenizer: &tokenizer, terminal };

        let mut examples = reader.read_labelled(&settings.data, "training")?;
        let known = adapter.and_then(|adapter| adapter.metadata.labels.clone());
        let tag_scheme = prepare::learn_as_iob2(&mut examples, settings.tag_scheme, known.as_deref(), terminal)?;
        let words = settings.verbalizer.as_ref();
        let labels = prepare::labels(name, &examples, spec, adapter, words, terminal)?;
        let verbalizer = words.map(|words| Verbalizer::new(&labels, &words.words, &tokenizer, spec)).transpose()?;
        examples.truncate(settings.max_train_samples.unwrap_or(usize::MAX));
        let no_answer = name.named().is_some_and(|named| named.no_answer) || examples.iter().any(prepare::is_unanswerable);
        let task = Task::new(kind, labels).with_no_answer(no_answer).with_name(name.named()).with_verbalizer(verbalizer);
        let task = task.with_long_sentences(settings.long_sentences.unwrap_or_default());
        let task = task.with_null_threshold(settings.null_threshold.and_then(NullThreshold::fixed).unwrap_or(0.0));
        let metric = metric(settings, &task);
        if metric != "loss" && !task.metrics().contains(&metric.as_str()) {
            usage!("--metric {metric}: {name} has {} and loss", task.metrics().join(", "));
        }
        let train = reader.encode("training data", &task, examples)?;
        let validation = match &settings.validation {
            Some(path) => {
                let mut examples = reader.read_labelled(path, "validation")?;
                prepare::learn_as_iob2(&mut examples, settings.tag_scheme, Some(task.labels()), terminal)?;
                Some(reader.encode("validation data", &task, examples)?)
            }
            None => None,
        };
        if train.encoding.set.features.is_empty() {
            bail!("{}: no example has a single token to train on", settings.data.display());
        }
        let mut inputs = BTreeMap::from([("data".to_string(), digest(&settings.data)?)]);
        if let Some(path) = &settings.validation {
            inputs.insert("validation".to_string(), digest(path)?);
        }
        Ok(Data { task: Arc::new(task), no_answer, tag_scheme, train: Arc::new(train), validation: validation.map(Arc::new), inputs })
    }

    /// The head, with its name among several.
    pub fn head(&self, settings: &Settings, model: &FrozenModel, name: Option<&str>) -> HeadSpec {
        let head = self.task.head(settings.head, &model.spec);
        match name {
            Some(name) => head.named(name),
            None => head,
        }
    }
}

/// The score that chooses the best adapter.
fn metric(settings: &Settings, task: &Task) -> String {
    settings.metric.clone().unwrap_or_else(|| task.default_metric().to_string())
}

/// SHA-256 of a file.
pub fn digest(path: &Path) -> Result<String> {
    let context = || format!("cannot read {}", path.display());
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path).with_context(context)?;
    let mut block = vec![0; 1 << 16];
    loop {
        match file.read(&mut block).with_context(context)? {
            0 => break,
            read => hasher.update(&block[..read]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
