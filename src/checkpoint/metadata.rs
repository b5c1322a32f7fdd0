//! `ptune.json`: what the engine knows of an adapter beyond PEFT's `adapter_config.json`.

use super::atomic::write_atomically;
use super::quantise::WeightFormat;
use crate::data::{LongSentences, TagScheme};
use crate::model::{HeadKind, HeadSpec, Specification, TaskKind};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the file's layout; of an adapter with several heads.
const FORMAT: u64 = 1;
const FORMAT_OF_HEADS: u64 = 2;

/// How an adapter was made and how it is to be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// None: a foreign adapter whose files do not tell.
    pub task: Option<TaskKind>,
    /// The named task that it was trained on, with official files and scores; None: one's own data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_task: Option<String>,
    /// The named task's template by which inputs are built.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub template: usize,
    /// Label names in the order of the head's outputs; None where the task has none or a foreign adapter lacks them.
    pub labels: Option<Vec<String>>,
    pub head: HeadKind,
    pub prefix_length: usize,
    /// Layers that have a prefix, from 0, ascending; none: it is a prompt in front of the input.
    pub prefix_layers: Vec<usize>,
    /// Layers of the base model.
    pub model_layers: usize,
    /// Hidden size of the projection that the prefix was trained through. The tensor itself is always flat.
    pub prefix_projection: Option<usize>,
    /// Whether the tokens' positions are counted from the prefix length.
    pub shifted_positions: bool,
    /// Rates of the training; 0 where a foreign adapter does not tell.
    pub prefix_dropout: f64,
    pub hidden_dropout: f64,
    pub attention_dropout: f64,
    /// Limits of the training, in tokens.
    pub max_length: Option<usize>,
    pub doc_stride: Option<usize>,
    /// Question answering: whether it was trained to leave questions unanswered.
    #[serde(default)]
    pub no_answer: bool,
    /// Tagging: how the training data spell spans, which are learned as IOB2, and what becomes of long sentences.
    #[serde(default)]
    pub tag_scheme: Option<TagScheme>,
    #[serde(default)]
    pub long_sentences: LongSentences,
    /// By how much "no answer" must score above the best answer to be given; None: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub null_threshold: Option<f32>,
    /// Cloze classification: the words that stand for the labels, in their order.
    #[serde(default)]
    pub verbalizer: Option<Vec<String>>,
    /// How the base model's matrices were kept in training, where that is not in 16 bits.
    #[serde(default, skip_serializing_if = "is_fp16")]
    pub weight_format: WeightFormat,
    /// Path or name of the base model, for people.
    pub base_model: String,
    /// [`super::Checkpoint::fingerprint`] of the base model.
    pub fingerprint: Option<String>,
    /// Of an adapter with several heads, by name: each with what the file of an adapter with that head alone says. What belongs
    /// to a head is then empty outside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub heads: BTreeMap<String, Metadata>,
}

/// Whether heads and adapters may be called so.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter))
}

fn is_fp16(format: &WeightFormat) -> bool {
    *format == WeightFormat::Fp16
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Metadata {
    /// Whether it is a prompt in front of the input and no prefix in the layers.
    pub fn is_prompt(&self) -> bool {
        self.prefix_length > 0 && self.prefix_layers.is_empty()
    }

    /// Whether a head is told of.
    pub fn has_head(&self) -> bool {
        self.task.is_some()
    }

    /// What heads on the same prefix have in common.
    pub fn without_head(&self) -> Metadata {
        Metadata {
            task: None,
            named_task: None,
            template: 0,
            labels: None,
            head: HeadKind::Linear,
            max_length: None,
            doc_stride: None,
            no_answer: false,
            tag_scheme: None,
            long_sentences: LongSentences::default(),
            null_threshold: None,
            verbalizer: None,
            heads: BTreeMap::new(),
            ..self.clone()
        }
    }

    fn format(&self) -> u64 {
        if self.heads.is_empty() { FORMAT } else { FORMAT_OF_HEADS }
    }

    /// Labels and their words, of a cloze classification.
    pub fn words(&self) -> Option<(Vec<String>, Vec<String>)> {
        self.labels.clone().zip(self.verbalizer.clone())
    }

    /// Makes it a cloze classification by these words.
    pub fn set_words(&mut self, labels: &[String], words: &[String]) {
        (self.labels, self.verbalizer) = (Some(labels.to_vec()), Some(words.to_vec()));
    }

    /// The head, whose last layer has `columns` outputs where it is trained; None where the task is not known.
    pub fn head_spec(&self, columns: usize, spec: &Specification) -> Option<HeadSpec> {
        let task = self.task?;
        Some(if self.verbalizer.is_some() { HeadSpec::scored_sequences() } else { HeadSpec::new(task, self.head, columns, spec) })
    }

    /// Reads `ptune.json`; None where there is none.
    pub(super) fn read(file: &Path) -> Result<Option<Metadata>> {
        if !file.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut value: Value = serde_json::from_slice(&bytes).with_context(|| format!("{}: not valid JSON", file.display()))?;
        let format = match value.as_object_mut().and_then(|fields| fields.shift_remove("format")).as_ref().and_then(Value::as_u64) {
            Some(format @ (FORMAT | FORMAT_OF_HEADS)) => format,
            Some(other) => {
                bail!("{}: field format is {other}; this version of ptune reads {FORMAT} and {FORMAT_OF_HEADS}", file.display())
            }
            None => bail!("{}: field format is missing; this is not a file of ptune", file.display()),
        };
        let metadata: Metadata = serde_json::from_value(value).with_context(|| format!("{}: wrong field", file.display()))?;
        if metadata.format() != format {
            bail!("{}: field format is {format}, which does not go with {} heads", file.display(), metadata.heads.len());
        }
        metadata.validate().with_context(|| file.display().to_string())?;
        Ok(Some(metadata))
    }

    pub(super) fn write(&self, file: &Path) -> Result<()> {
        self.validate()?;
        let mut fields = serde_json::Map::from_iter([("format".to_string(), self.format().into())]);
        if let Value::Object(own) = serde_json::to_value(self)? {
            fields.extend(own);
        }
        write_json(file, &Value::Object(fields))
    }

    fn validate(&self) -> Result<()> {
        if !self.prefix_layers.is_sorted_by(|a, b| a < b) {
            bail!("field prefix_layers is {:?}; the layers must ascend", self.prefix_layers);
        }
        if self.prefix_layers.last().is_some_and(|&last| last >= self.model_layers) {
            bail!("field prefix_layers is {:?}; model_layers is only {}", self.prefix_layers, self.model_layers);
        }
        if self.prefix_projection == Some(0) {
            bail!("field prefix_projection is 0; it must be at least 1, or null");
        }
        let rates = [("prefix", self.prefix_dropout), ("hidden", self.hidden_dropout), ("attention", self.attention_dropout)];
        if let Some((name, rate)) = rates.iter().find(|(_, rate)| !(0.0..1.0).contains(rate)) {
            bail!("field {name}_dropout is {rate}; a rate is from 0 to below 1");
        }
        if let Some(threshold) = self.null_threshold.filter(|threshold| !threshold.is_finite()) {
            bail!("field null_threshold is {threshold}; it must be finite");
        }
        if let Some(words) = &self.verbalizer
            && self.labels.as_ref().map(Vec::len) != Some(words.len())
        {
            bail!("field verbalizer has {} words, which are not as many as labels", words.len());
        }
        let labels = self.labels.as_deref().unwrap_or_default();
        if let Some(twice) = labels.iter().enumerate().find(|(index, label)| labels[..*index].contains(label)) {
            bail!("field labels has {:?} twice", twice.1);
        }
        for (name, head) in &self.heads {
            head.validate().with_context(|| format!("field heads, {name}"))?;
            if !is_name(name) || head.task.is_none() || !head.heads.is_empty() {
                bail!("field heads: {name:?} is no head of a name (letters, digits, - and _) with a task");
            }
            if head.without_head() != self.without_head() {
                bail!("field heads: {name} has another prefix, model or dropout than the adapter");
            }
        }
        Ok(())
    }
}

/// Writes JSON as PEFT does: two spaces of indentation, and a newline at the end.
pub(super) fn write_json(file: &Path, value: &Value) -> Result<()> {
    write_atomically(file, |writer| {
        serde_json::to_writer_pretty(&mut *writer, value).map_err(std::io::Error::from)?;
        Ok(writer.write_all(b"\n")?)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn metadata(task: TaskKind, prefix_length: usize, model_layers: usize) -> Metadata {
        Metadata {
            task: Some(task),
            named_task: None,
            template: 0,
            labels: None,
            head: HeadKind::Linear,
            prefix_length,
            prefix_layers: (0..model_layers).collect(),
            model_layers,
            prefix_projection: None,
            shifted_positions: true,
            prefix_dropout: 0.1,
            hidden_dropout: 0.1,
            attention_dropout: 0.0,
            max_length: Some(128),
            doc_stride: None,
            no_answer: false,
            tag_scheme: None,
            long_sentences: LongSentences::default(),
            null_threshold: None,
            verbalizer: None,
            weight_format: WeightFormat::Fp16,
            base_model: "model".into(),
            fingerprint: None,
            heads: BTreeMap::new(),
        }
    }

    #[test]
    fn round_trip_and_wrong_fields() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ptune.json");
        assert_eq!(Metadata::read(&file).unwrap(), None);
        let mut metadata = metadata(TaskKind::MultipleChoice, 4, 3);
        metadata.labels = Some(vec!["è".into(), "b".into()]);
        metadata.prefix_dropout = 0.1 + 0.2;
        metadata.weight_format = WeightFormat::Int8;
        metadata.write(&file).unwrap();
        assert_eq!(Metadata::read(&file).unwrap(), Some(metadata.clone()));

        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("{\n  \"format\": 1,\n  \"task\": \"multiple-choice\""), "{text}");
        let cases = [
            ("\"format\": 1", "\"format\": 2", "format is 2"),
            ("\"format\": 1,", "", "format is missing"),
            ("\"multiple-choice\"", "\"dancing\"", "dancing"),
            ("\"head\": \"linear\",", "", "head"),
            ("    2\n", "    3\n", "model_layers"),
            ("    2\n", "    1\n", "ascend"),
            ("\"attention_dropout\": 0.0", "\"attention_dropout\": 1.0", "attention_dropout"),
            ("\"è\"", "\"b\"", "twice"),
            ("\"prefix_projection\": null", "\"prefix_projection\": 0", "prefix_projection"),
            ("\"int8\"", "\"int4\"", "int4"),
            ("\"task\"", "task", "line 3"),
        ];
        for (from, to, part) in cases {
            std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
            let message = format!("{:#}", Metadata::read(&file).expect_err(part));
            assert!(message.contains(part) && message.contains("ptune.json"), "{message}");
        }
    }
}
