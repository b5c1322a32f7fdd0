//! What is asked of a model: examples to features, logits to predictions, predictions to scores. One file a task.

mod answers;
mod balance;
mod causal_lm;
mod classification;
mod cloze;
mod encoding;
mod labels;
mod multiple_choice;
pub mod named;
mod prediction;
mod qa;
mod tagging;

pub use answers::{misplaced, require_ids};
pub use balance::Balance;
pub use cloze::Verbalizer;
pub use encoding::{Encoding, Limits};
pub use labels::{Labels, labels_for, labels_of_head, require_labels};
pub use named::{NamedTask, TaskName};
pub use prediction::{Outcome, Prediction, Scores, With};

use crate::data::{Content, Example, Grouping, LongSentences, TextTokenizer};
use crate::metric::entities::EntityCounts;
use crate::model::{HeadKind, HeadSpec, Specification, TaskKind};
use anyhow::{Result, bail};
use encoding::EncodedExample;
use rayon::prelude::*;

/// A task with its labels.
#[derive(Clone, Debug)]
pub struct Task {
    kind: TaskKind,
    labels: Labels,
    no_answer: bool,
    null_threshold: f32,
    verbalizer: Option<Verbalizer>,
    long_sentences: LongSentences,
    named: Option<&'static NamedTask>,
}

impl Task {
    /// `labels`: of [`labels_for`] or of an adapter; empty for multiple choice and question answering.
    pub fn new(kind: TaskKind, labels: Vec<String>) -> Task {
        let (labels, long_sentences) = (Labels::new(labels), LongSentences::default());
        Task { kind, labels, no_answer: false, null_threshold: 0.0, verbalizer: None, long_sentences, named: None }
    }

    /// Questions may have no answer even where no example of the file shows it (an unlabelled file). Without this,
    /// the data decide: a file with an unanswerable question is of the kind of SQuAD 2.0.
    pub fn with_no_answer(mut self, no_answer: bool) -> Task {
        self.no_answer = no_answer;
        self
    }

    /// By how much "no answer" must score above the best answer to be given.
    pub fn with_null_threshold(mut self, threshold: f32) -> Task {
        self.null_threshold = threshold;
        self
    }

    /// The threshold of "no answer" with the best F1 on labelled questions; None where every question has an answer.
    pub fn tune_null_threshold(&self, examples: &[Example], encoding: &Encoding, logits: &[Vec<f32>]) -> Option<f32> {
        self.has_no_answer(examples).then(|| qa::best_threshold(examples, encoding, logits)).flatten()
    }

    /// Classification by words that fill a blank, in order of the labels.
    pub fn with_verbalizer(mut self, verbalizer: Option<Verbalizer>) -> Task {
        self.verbalizer = verbalizer;
        self
    }

    /// What becomes of sentences beyond the length limit, in tagging.
    pub fn with_long_sentences(mut self, long_sentences: LongSentences) -> Task {
        self.long_sentences = long_sentences;
        self
    }

    /// A data set with official scores.
    pub fn with_name(mut self, named: Option<&'static NamedTask>) -> Task {
        self.named = named;
        self.no_answer |= named.is_some_and(|named| named.no_answer);
        self
    }

    pub fn named(&self) -> Option<&'static NamedTask> {
        self.named
    }

    pub fn kind(&self) -> TaskKind {
        self.kind
    }

    pub fn labels(&self) -> &[String] {
        self.labels.names()
    }

    pub fn head(&self, kind: HeadKind, spec: &Specification) -> HeadSpec {
        match self.verbalizer.as_ref().map(Verbalizer::single_tokens) {
            Some(Some(tokens)) => HeadSpec::words(tokens, spec.mask),
            Some(None) => HeadSpec::scored_sequences(),
            None => HeadSpec::new(self.kind, kind, self.labels.names().len(), spec),
        }
    }

    /// How its logits fall into groups.
    pub fn grouping(&self) -> Grouping {
        match self.verbalizer.as_ref().map(Verbalizer::single_tokens) {
            Some(None) => Grouping::PerSequence,
            _ => HeadSpec::grouping(self.kind),
        }
    }

    /// Features of all examples, in order; the work is shared among threads. Unlabelled examples have no targets.
    ///
    /// Errors name the example's place: an unknown label, a choice that does not exist, an answer outside its context,
    /// tags and words of different number, a text without a blank, a length limit that leaves no room.
    pub fn encode(&self, examples: &[Example], tokenizer: &TextTokenizer, limits: &Limits) -> Result<Encoding> {
        type Encoder<'a> = Box<dyn Fn(&Example) -> Result<EncodedExample> + Sync + 'a>;
        let encode: Encoder = match (self.kind, &self.verbalizer) {
            (TaskKind::Classification, Some(verbalizer)) => Box::new(|example| verbalizer.encode(example, &self.labels, tokenizer, limits)),
            (TaskKind::Classification, None) => Box::new(|example| classification::encode(example, &self.labels, tokenizer, limits)),
            (TaskKind::MultipleChoice, _) => Box::new(|example| multiple_choice::encode(example, tokenizer, limits)),
            (TaskKind::Tagging, _) => {
                let frame = tagging::Frame::new(tokenizer, limits, self.long_sentences)?;
                Box::new(move |example| tagging::encode(example, &self.labels, tokenizer, &frame))
            }
            (TaskKind::Qa, _) => Box::new(|example| qa::encode(example, tokenizer, limits)),
            (TaskKind::CausalLm, _) => {
                let frame = causal_lm::Frame::new(tokenizer, limits)?;
                Box::new(move |example| frame.encode(example, true))
            }
        };
        collect(examples, &encode)
    }

    /// Prompts without their responses, of causal language modelling.
    pub fn encode_prompts(&self, examples: &[Example], tokenizer: &TextTokenizer, limits: &Limits) -> Result<Encoding> {
        let frame = causal_lm::Frame::new(tokenizer, limits)?;
        collect(examples, &|example: &Example| frame.encode(example, false))
    }

    /// A prediction for every example. `logits`: those of every feature of the encoding, \[rows, columns\] row-major.
    pub fn predict<'a>(&'a self, examples: &'a [Example], encoding: &'a Encoding, logits: &'a [Vec<f32>]) -> Vec<Prediction<'a>> {
        let no_answer = self.has_no_answer(examples);
        let threshold = no_answer.then_some(self.null_threshold);
        examples
            .par_iter()
            .enumerate()
            .map(|(index, example)| {
                let features = encoding.features_of(index);
                let outcome = match self.kind {
                    TaskKind::Classification => Outcome::Label(prediction::greatest(&logits[features.start])),
                    TaskKind::MultipleChoice => Outcome::Choice(prediction::greatest(&logits[features.start])),
                    TaskKind::Tagging => tagging::predict(example, &self.labels, encoding, features.clone(), logits),
                    TaskKind::Qa => qa::predict(example, threshold, encoding, features.clone(), logits),
                    TaskKind::CausalLm => causal_lm::predict(),
                };
                Prediction { outcome, example, labels: &self.labels, encoding, features, logits, no_answer }
            })
            .collect()
    }

    /// All metrics of the task, each in 0..=1 (Matthews: -1..=1). Error: an example without (or with an unknown) label.
    pub fn score(&self, examples: &[Example], predictions: &[Prediction]) -> Result<Scores> {
        require_labels(examples, "scoring")?;
        match self.named {
            Some(named) => named.scores(self, examples, predictions),
            None => self.scores_of_kind(examples, predictions),
        }
    }

    /// The scores that every task of this kind has.
    fn scores_of_kind(&self, examples: &[Example], predictions: &[Prediction]) -> Result<Scores> {
        match self.kind {
            TaskKind::Classification => classification::score(examples, predictions, &self.labels),
            TaskKind::MultipleChoice => multiple_choice::score(examples, predictions),
            TaskKind::Tagging => tagging::score(examples, predictions, &self.labels),
            TaskKind::Qa => Ok(qa::score(examples, predictions, self.has_no_answer(examples))),
            TaskKind::CausalLm => Ok(causal_lm::score(predictions)),
        }
    }

    /// Tagging: entity counts of every type, by name; empty for other tasks.
    pub fn entity_types(&self, examples: &[Example], predictions: &[Prediction]) -> Result<Vec<(String, EntityCounts)>> {
        if self.kind != TaskKind::Tagging {
            return Ok(Vec::new());
        }
        require_labels(examples, "scoring")?;
        let types = tagging::types(examples, predictions, &self.labels)?;
        Ok(types.into_iter().map(|(kind, counts)| (kind.to_string(), counts)).collect())
    }

    /// Names of the scores by which an adapter may be chosen; greater is better for all. (Perplexity is chosen by as loss.)
    pub fn metrics(&self) -> &'static [&'static str] {
        if let Some(named) = self.named {
            return named.metrics;
        }
        match self.kind {
            TaskKind::Classification if self.labels.names().len() == 2 => &["accuracy", "macro_f1", "f1", "matthews"],
            TaskKind::Classification => &["accuracy", "macro_f1", "matthews"],
            TaskKind::MultipleChoice => &["accuracy"],
            TaskKind::Tagging => &["precision", "recall", "f1", "accuracy"],
            TaskKind::Qa => &["exact_match", "f1"],
            TaskKind::CausalLm => &["token_accuracy"],
        }
    }

    /// The metric that the best checkpoint is chosen by.
    pub fn default_metric(&self) -> &'static str {
        if let Some(named) = self.named {
            return named.metric;
        }
        match self.kind {
            TaskKind::Classification | TaskKind::MultipleChoice => "accuracy",
            TaskKind::Tagging | TaskKind::Qa => "f1",
            TaskKind::CausalLm => "loss",
        }
    }

    fn has_no_answer(&self, examples: &[Example]) -> bool {
        let unanswerable =
            |example: &Example| matches!(&example.content, Content::Question { answers: Some(answers), .. } if answers.is_empty());
        self.kind == TaskKind::Qa && (self.no_answer || examples.iter().any(unanswerable))
    }
}

/// Encodes all examples, in order; the work is shared among threads.
fn collect(examples: &[Example], encode: &(impl Fn(&Example) -> Result<EncodedExample> + Sync + ?Sized)) -> Result<Encoding> {
    let encoded: Vec<Result<EncodedExample>> = examples.par_iter().map(encode).collect();
    // In two steps, so that the error is that of the first bad example whatever the threads did.
    Ok(Encoding::new(encoded.into_iter().collect::<Result<_>>()?))
}

/// For an example that was read for another task.
fn wrong_content<T>(example: &Example, kind: TaskKind) -> Result<T> {
    bail!("{}: not an example for {}", example.place, kind.name())
}

#[cfg(test)]
mod tests;
