//! Multiple choice: every choice is read behind the text as a sequence of its own, and a softmax runs over the choices.

use super::encoding::{EncodedExample, Limits};
use super::prediction::{Outcome, Prediction, Scores};
use super::wrong_content;
use crate::data::{Content, Example, Sequence, TextTokenizer};
use crate::model::TaskKind;
use anyhow::{Context, Result, bail};

/// One sequence a choice, each cut longest-first to the limit.
pub(super) fn encode(example: &Example, tokenizer: &TextTokenizer, limits: &Limits) -> Result<EncodedExample> {
    let Content::Choices { text, choices, label } = &example.content else { return wrong_content(example, TaskKind::MultipleChoice) };
    if choices.is_empty() {
        bail!("{}: no choices; give at least one, or name their column with --choices-column", example.place);
    }
    if let Some(label) = label.filter(|&label| label >= choices.len()) {
        bail!("{}: label {label} is not the index of one of the {} choices, which count from 0", example.place, choices.len());
    }
    let mut truncated = false;
    let mut sequences = Vec::with_capacity(choices.len());
    for choice in choices {
        let encoded = tokenizer.encode_text(text, Some(choice), limits.max_length).with_context(|| example.place.clone())?;
        truncated |= encoded.truncated;
        let readout = vec![tokenizer.readout().of(&encoded.ids)];
        sequences.push(Sequence::text(encoded.ids, encoded.types, readout));
    }
    Ok(EncodedExample::single(sequences, label.iter().map(|&label| label as i32).collect(), truncated))
}

/// Accuracy.
pub(super) fn score(examples: &[Example], predictions: &[Prediction]) -> Result<Scores> {
    let right = |(example, prediction): &(&Example, &Prediction)| match (&example.content, &prediction.outcome) {
        (Content::Choices { label: Some(label), .. }, Outcome::Choice(choice)) => label == choice,
        _ => false,
    };
    let correct = examples.iter().zip(predictions).filter(right).count();
    Ok(Scores::new([("accuracy", correct as f64 / examples.len() as f64)]))
}
