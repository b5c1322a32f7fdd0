//! Classification: one label for a text or a pair of texts, read at the first token, by decoders at the last.

use super::encoding::{EncodedExample, Limits};
use super::labels::Labels;
use super::prediction::{Outcome, Prediction, Scores};
use super::wrong_content;
use crate::data::{Content, Example, Sequence, TextTokenizer};
use crate::metric::classification::ClassCounts;
use crate::model::TaskKind;
use anyhow::{Context, Result};

const KIND: TaskKind = TaskKind::Classification;

/// One sequence, cut longest-first to the limit.
pub(super) fn encode(example: &Example, labels: &Labels, tokenizer: &TextTokenizer, limits: &Limits) -> Result<EncodedExample> {
    let Content::Text { text, pair, label } = &example.content else { return wrong_content(example, KIND) };
    let encoded = tokenizer.encode_text(text, pair.as_deref(), limits.max_length).with_context(|| example.place.clone())?;
    let mut targets = Vec::new();
    if let Some(label) = label {
        targets.push(labels.resolve(label, &example.place, KIND)? as i32);
    }
    let readout = vec![tokenizer.readout().of(&encoded.ids)];
    let sequence = Sequence::text(encoded.ids, encoded.types, readout);
    Ok(EncodedExample::single(vec![sequence], targets, encoded.truncated))
}

/// Accuracy, macro F1, with two labels F1 of the second one, and the Matthews correlation.
pub(super) fn score(examples: &[Example], predictions: &[Prediction], labels: &Labels) -> Result<Scores> {
    let mut pairs = Vec::with_capacity(examples.len());
    for (example, prediction) in examples.iter().zip(predictions) {
        if let (Content::Text { label: Some(label), .. }, Outcome::Label(predicted)) = (&example.content, &prediction.outcome) {
            pairs.push((labels.resolve(label, &example.place, KIND)?, *predicted));
        }
    }
    let classes = labels.names().len();
    let counts = ClassCounts::new(classes, pairs);
    let mut scores = Scores::new([("accuracy", counts.accuracy()), ("macro_f1", counts.macro_f1()), ("matthews", counts.matthews())]);
    if classes == 2 {
        scores.0.insert(2, ("f1".to_string(), counts.f1(1)));
    }
    Ok(scores)
}
