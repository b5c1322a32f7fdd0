//! Tagging: a label for every word, on its first sub-token (the released code's `tasks/ner/dataset.py`). A sentence longer than a sequence is
//! read in as many parts as it needs, so that every word gets a tag, or is cut off, as the released code does. Semantic
//! roles are those of one predicate, which stands again behind the sentence (§2.11) and behind each part of it.

use super::encoding::{EncodedExample, Encoding, Item, Limits, Source};
use super::labels::{Labels, WordPlace};
use super::prediction::{Outcome, Prediction, Scores, greatest, numbers};
use super::wrong_content;
use crate::data::{Content, Example, Label, LongSentences, Sequence, TextTokenizer};
use crate::metric::entities::{self, EntityCounts};
use crate::model::TaskKind;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;

const KIND: TaskKind = TaskKind::Tagging;

/// Between a sentence and its predicate, as a word of it: BERT's separator, plain text to a tokenizer that has no such token.
const SEPARATOR: &str = "[SEP]";

/// What stands around the words of a sequence.
pub(super) struct Frame {
    /// Special tokens before the words.
    before: usize,
    /// Sub-tokens that fit between the special tokens.
    capacity: usize,
    long: LongSentences,
}

impl Frame {
    pub fn new(tokenizer: &TextTokenizer, limits: &Limits, long: LongSentences) -> Result<Frame> {
        let specials = tokenizer.specials_single();
        if limits.max_length <= specials {
            bail!("--max-length {} leaves no room for words beside {specials} special tokens", limits.max_length);
        }
        Ok(Frame { before: tokenizer.specials_before(), capacity: limits.max_length - specials, long })
    }
}

/// Ranges of words that fit into one sequence each, filled from the left. A word longer than all of the capacity
/// stands alone (and is cut).
fn split(lengths: impl IntoIterator<Item = usize>, capacity: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut first, mut filled, mut words) = (0, 0, 0);
    for length in lengths {
        let length = length.min(capacity);
        if filled + length > capacity {
            parts.push(first..words);
            (first, filled) = (words, 0);
        }
        filled += length;
        words += 1;
    }
    if first < words {
        parts.push(first..words);
    }
    parts
}

/// The words of which at least the first sub-token fits into one sequence.
fn cut(lengths: impl IntoIterator<Item = usize>, capacity: usize) -> Range<usize> {
    let mut filled = 0;
    let fits = |length: &usize| {
        let fits = filled < capacity || *length == 0;
        filled += length;
        fits
    };
    0..lengths.into_iter().take_while(fits).count()
}

/// One feature a part; words without sub-tokens have no row, and a part without rows is left out.
pub(super) fn encode(example: &Example, labels: &Labels, tokenizer: &TextTokenizer, frame: &Frame) -> Result<EncodedExample> {
    let Content::Words { words, tags, predicate } = &example.content else { return wrong_content(example, KIND) };
    if let Some(tags) = tags.as_ref().filter(|tags| tags.len() != words.len()) {
        bail!("{}: {} tokens but {} tags; give one tag a token", example.place, words.len(), tags.len());
    }
    let mut tag_indices = Vec::new();
    for (word, tag) in tags.iter().flatten().enumerate() {
        tag_indices.push(labels.resolve(tag, &WordPlace(example, word), KIND)? as i32);
    }
    let mut tokens = match predicate {
        None => tokenizer.encode_words(words),
        Some(predicate) => {
            let word = words.get(*predicate).with_context(|| format!("{}: there is no word {predicate}", example.place))?;
            tokenizer.encode_words(&[words.as_slice(), &[SEPARATOR.to_string(), word.clone()]].concat())
        }
    }
    .with_context(|| example.place.clone())?;
    let mut behind = tokens.split_off(words.len()).concat();
    // A predicate of countless sub-tokens leaves half of the room to the sentence.
    let mut truncated = behind.len() > frame.capacity / 2;
    behind.truncate(frame.capacity / 2);
    let capacity = frame.capacity - behind.len();
    let lengths = || tokens.iter().map(Vec::len);
    let parts = match frame.long {
        LongSentences::Split => {
            truncated |= lengths().any(|length| length > capacity);
            split(lengths(), capacity)
        }
        LongSentences::Truncate => {
            truncated |= lengths().sum::<usize>() > capacity;
            vec![cut(lengths(), capacity)]
        }
    };
    let mut items = Vec::new();
    for part in parts {
        let (mut ids, mut readout, mut rows, end) = (Vec::new(), Vec::new(), Vec::new(), part.end);
        for word in part.filter(|&word| !tokens[word].is_empty()) {
            readout.push((frame.before + ids.len()) as u32);
            rows.push(word as u32);
            ids.extend_from_slice(&tokens[word]);
        }
        ids.truncate(capacity);
        ids.extend_from_slice(&behind);
        if rows.is_empty() {
            continue;
        }
        let encoded = tokenizer.wrap(ids);
        let targets = if tags.is_some() { rows.iter().map(|&word| tag_indices[word as usize]).collect() } else { Vec::new() };
        items.push(Item {
            sequences: vec![Sequence::text(encoded.ids, encoded.types, readout)],
            targets,
            source: Source::Words { rows, end },
        });
    }
    Ok(EncodedExample { items, truncated })
}

/// Words and logits of every row of an example's features.
fn rows<'a>(
    encoding: &'a Encoding,
    features: Range<usize>,
    logits: &'a [Vec<f32>],
    columns: usize,
) -> impl Iterator<Item = (usize, &'a [f32])> {
    features.flat_map(move |feature| {
        let words = match encoding.source(feature) {
            Source::Words { rows, .. } => rows.as_slice(),
            _ => &[],
        };
        words.iter().map(|&word| word as usize).zip(logits[feature].chunks_exact(columns))
    })
}

/// The best label of every word. A word without any sub-token is outside of everything: "O", or the first label where
/// there is no such one.
pub(super) fn predict(example: &Example, labels: &Labels, encoding: &Encoding, features: Range<usize>, logits: &[Vec<f32>]) -> Outcome {
    let words = match &example.content {
        Content::Words { words, .. } => words.len(),
        _ => 0,
    };
    let outside = labels.find(&Label::Name("O".to_string())).unwrap_or(0);
    let mut tags = vec![outside; words];
    for (word, values) in rows(encoding, features, logits, labels.names().len()) {
        tags[word] = greatest(values);
    }
    Outcome::Tags(tags)
}

/// The first word that was cut off, where one was.
pub(super) fn first_unread(prediction: &Prediction) -> Option<usize> {
    match (prediction.encoding.source(prediction.features.clone().last()?), &prediction.outcome) {
        (Source::Words { end, .. }, Outcome::Tags(tags)) => Some(*end).filter(|&end| end < tags.len()),
        _ => None,
    }
}

/// One row a word; null for a word without any sub-token.
pub(super) fn logits_json(prediction: &Prediction) -> Value {
    let words = match &prediction.outcome {
        Outcome::Tags(tags) => tags.len(),
        _ => 0,
    };
    let mut lines = vec![Value::Null; words];
    let columns = prediction.labels.names().len();
    for (word, values) in rows(prediction.encoding, prediction.features.clone(), prediction.logits, columns) {
        lines[word] = numbers(values);
    }
    Value::Array(lines)
}

/// Gold and predicted label indices of all sentences.
fn gold_and_predicted<'a>(examples: &[Example], predictions: &'a [Prediction], labels: &Labels) -> Result<Vec<(Vec<usize>, &'a [usize])>> {
    let mut sentences = Vec::with_capacity(examples.len());
    for (example, prediction) in examples.iter().zip(predictions) {
        if let (Content::Words { tags: Some(tags), .. }, Outcome::Tags(predicted)) = (&example.content, &prediction.outcome) {
            let gold = tags.iter().enumerate().map(|(word, tag)| labels.resolve(tag, &WordPlace(example, word), KIND));
            sentences.push((gold.collect::<Result<_>>()?, predicted.as_slice()));
        }
    }
    Ok(sentences)
}

/// Entity counts of every type.
pub(super) fn types<'a>(examples: &[Example], predictions: &[Prediction], labels: &'a Labels) -> Result<BTreeMap<&'a str, EntityCounts>> {
    let sentences = gold_and_predicted(examples, predictions, labels)?;
    let name = |&label: &usize| labels.name(label);
    let gold = sentences.iter().map(|(gold, _)| gold.iter().map(name));
    let predicted = sentences.iter().map(|(_, predicted)| predicted.iter().map(name));
    Ok(entities::by_type(gold, predicted))
}

/// Entity-level precision, recall and F1 over all types, and the share of words with the right tag.
pub(super) fn score(examples: &[Example], predictions: &[Prediction], labels: &Labels) -> Result<Scores> {
    let sum = entities::overall(&types(examples, predictions, labels)?);
    let (mut words, mut right) = (0, 0);
    for (gold, predicted) in gold_and_predicted(examples, predictions, labels)? {
        words += gold.len();
        right += gold.iter().zip(predicted).filter(|(gold, predicted)| gold == predicted).count();
    }
    let accuracy = right as f64 / words.max(1) as f64;
    Ok(Scores::new([("precision", sum.precision()), ("recall", sum.recall()), ("f1", sum.f1()), ("accuracy", accuracy)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_split_between_words_and_no_word_is_lost() {
        assert_eq!(split([2, 3, 1, 4], 5), [0..2, 2..4]);
        assert_eq!(split([5, 5], 5), [0..1, 1..2]);
        assert_eq!(split([1, 9, 1], 4), [0..1, 1..2, 2..3]);
        assert_eq!(split([0, 0, 2, 0, 1], 2), [0..4, 4..5]);
        assert_eq!(split([], 4), Vec::<Range<usize>>::new());
    }

    #[test]
    fn a_sentence_is_cut_behind_the_word_whose_first_sub_token_fits_last() {
        assert_eq!([cut([2, 3, 1, 4], 5), cut([2, 3, 1], 4), cut([2, 0, 1], 2), cut([9], 3), cut([], 3)], [0..2, 0..2, 0..2, 0..1, 0..0]);
    }
}
