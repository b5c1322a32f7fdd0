//! Predictions: what a model says of an example, the line that is written of it, and the scores of all.

use super::encoding::Encoding;
use super::labels::Labels;
use super::{causal_lm, qa, tagging};
use crate::data::{Content, Example, TagScheme};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// The answer for one example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Index of a label.
    Label(usize),
    /// Index of a choice.
    Choice(usize),
    /// Label index of every word.
    Tags(Vec<usize>),
    /// Text cut from the context; empty: no answer.
    Text(String),
    /// Text that goes on from a prompt, once it is generated.
    Continuation(Option<String>),
}

/// The answer for one example, and the way to what it was made from.
pub struct Prediction<'a> {
    pub outcome: Outcome,
    pub example: &'a Example,
    pub(super) labels: &'a Labels,
    pub(super) encoding: &'a Encoding,
    pub(super) features: Range<usize>,
    pub(super) logits: &'a [Vec<f32>],
    /// Question answering: whether "no answer" is one.
    pub(super) no_answer: bool,
}

/// What a written prediction carries beside the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct With {
    pub logits: bool,
    pub input_ids: bool,
    /// The scheme that tags are written in; None: as they are learned.
    pub scheme: Option<TagScheme>,
}

/// Index of the greatest value, the first of equal ones.
pub(super) fn greatest(values: &[f32]) -> usize {
    (1..values.len()).fold(0, |best, index| if values[index] > values[best] { index } else { best })
}

/// A number with the shortest digits that give the same f32 back; null where it is not finite.
pub(super) fn number(value: f32) -> Value {
    // Widened to f64 as it is, 0.1 would be written as 0.10000000149011612.
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

pub(super) fn numbers<'a>(values: impl IntoIterator<Item = &'a f32>) -> Value {
    values.into_iter().map(|&value| number(value)).collect()
}

impl Prediction<'_> {
    fn tag_names(&self, tags: &[usize], scheme: Option<TagScheme>) -> Vec<String> {
        let names: Vec<&str> = tags.iter().map(|&tag| self.labels.name(tag)).collect();
        scheme.map_or_else(|| names.iter().map(|name| name.to_string()).collect(), |scheme| scheme.write(&names))
    }

    /// Logits of its first feature; none where it has no feature.
    pub(super) fn logits(&self) -> &[f32] {
        self.logits.get(self.features.start).filter(|_| !self.features.is_empty()).map_or(&[], Vec::as_slice)
    }

    /// Index of the label, of a classification.
    pub(super) fn label_index(&self) -> Option<usize> {
        match self.outcome {
            Outcome::Label(index) => Some(index),
            _ => None,
        }
    }

    /// Question answering: so many of the best answers, best first, as JSON.
    pub fn best_answers(&self, count: usize) -> Value {
        qa::ranking_json(self, count)
    }

    /// Question answering: the question's id and by how much "no answer" scores above the best answer.
    pub fn null_odds(&self) -> Option<(&str, Value)> {
        match &self.example.content {
            Content::Question { id, .. } => Some((id, number(qa::null_odds(self)?))),
            _ => None,
        }
    }

    /// Name of the label, of a classification.
    pub(super) fn label_name(&self) -> Option<&str> {
        self.label_index().map(|index| self.labels.name(index))
    }

    /// One JSON object, of the example with this index in its file. Tagging: a sentence that was read in parts has the
    /// parts' ids one behind the other, and a word without any sub-token has null instead of logits; `truncated_at` is the
    /// first word that was cut off, whose tag and all behind it are outside.
    pub fn to_json(&self, index: usize, with: &With) -> Value {
        let mut line = Map::new();
        let sequences = || self.features.clone().flat_map(|feature| self.encoding.set.sequences_of(feature));
        let (logits, input_ids) = match &self.outcome {
            Outcome::Text(text) => {
                if let Content::Question { id, .. } = &self.example.content {
                    line.insert("id".into(), json!(id));
                }
                line.insert("prediction_text".into(), json!(text));
                if with.logits || with.input_ids {
                    line.insert("features".into(), qa::features_json(self, with));
                }
                return Value::Object(line);
            }
            Outcome::Label(label) => {
                line.insert("index".into(), json!(index));
                line.insert("prediction".into(), json!(self.labels.name(*label)));
                (numbers(&self.logits[self.features.start]), sequences().flat_map(|sequence| &sequence.ids).copied().collect())
            }
            Outcome::Continuation(text) => {
                line.insert("index".into(), json!(index));
                if let Some(text) = text {
                    line.insert("prediction".into(), json!(text));
                }
                // The response's log-probability, where there is one.
                let logits = match self.example.content {
                    Content::Prompt { response: Some(_), .. } if !self.logits.is_empty() => number(causal_lm::log_probability(self)),
                    _ => Value::Null,
                };
                (logits, sequences().flat_map(|sequence| &sequence.ids).copied().collect())
            }
            Outcome::Choice(choice) => {
                line.insert("index".into(), json!(index));
                line.insert("prediction".into(), json!(choice));
                (numbers(&self.logits[self.features.start]), sequences().map(|sequence| json!(sequence.ids)).collect())
            }
            Outcome::Tags(tags) => {
                line.insert("index".into(), json!(index));
                line.insert("tags".into(), self.tag_names(tags, with.scheme).into());
                if let Some(word) = tagging::first_unread(self) {
                    line.insert("truncated_at".into(), json!(word));
                }
                (tagging::logits_json(self), sequences().flat_map(|sequence| &sequence.ids).copied().collect::<Value>())
            }
        };
        if with.logits {
            line.insert("logits".into(), logits);
        }
        if with.input_ids {
            line.insert("input_ids".into(), input_ids);
        }
        Value::Object(line)
    }
}

/// Names and values of scores, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores(pub Vec<(String, f64)>);

impl Scores {
    pub(super) fn new<const N: usize>(scores: [(&str, f64); N]) -> Scores {
        Scores(scores.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// One object with the scores.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, value)| (name.clone(), json!(value))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_written_as_short_as_they_read_back() {
        let values = [0.1f32, -1.5, 3.0, 1e-30, f32::MAX, f32::MIN_POSITIVE, 1.0 / 3.0];
        let text = serde_json::to_string(&numbers(&values)).unwrap();
        assert!(text.starts_with("[0.1,-1.5,3.0,1e-30,"), "{text}");
        let back: Vec<f32> = serde_json::from_str(&text).unwrap();
        assert_eq!(back, values);
        assert_eq!(number(f32::NAN), Value::Null);
    }

    #[test]
    fn the_first_of_equal_values_is_the_greatest() {
        assert_eq!(greatest(&[0.5, 2.0, 2.0, -1.0]), 1);
        assert_eq!(greatest(&[f32::NEG_INFINITY; 3]), 0);
    }
}
