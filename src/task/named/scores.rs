//! Scores of named tasks beyond those of their kind.

use crate::data::{Content, Example};
use crate::metric::squad::{self, Edition};
use crate::task::{Outcome, Prediction, Scores, Task};
use anyhow::Result;
use std::ops::Range;

/// Those of the kind of task.
pub fn of_kind(task: &Task, examples: &[Example], predictions: &[Prediction]) -> Result<Scores> {
    task.scores_of_kind(examples, predictions)
}

/// The examples of every question: those whose origins continue one another.
pub fn questions(examples: &[Example]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = examples.get(start..).filter(|rest| !rest.is_empty())?;
        let continues = |example: &&Example| example.origin.as_ref().is_some_and(|origin| origin.continues);
        let range = start..start + 1 + rest[1..].iter().take_while(continues).count();
        start = range.end;
        Some(range)
    })
}

/// F1 of the right answers over all answers (F1a), and the share of questions of which every answer is judged rightly.
pub fn multirc(task: &Task, examples: &[Example], predictions: &[Prediction]) -> Result<Scores> {
    let of_kind = task.scores_of_kind(examples, predictions)?;
    let right = |index: usize| match (&examples[index].content, &predictions[index].outcome) {
        (Content::Text { label: Some(label), .. }, Outcome::Label(predicted)) => task.labels.find(label) == Some(*predicted),
        _ => false,
    };
    let (mut exact, mut total) = (0usize, 0usize);
    for mut question in questions(examples) {
        exact += usize::from(question.all(right));
        total += 1;
    }
    Ok(Scores::new([("f1a", of_kind.get("f1").unwrap_or_default()), ("exact_match", exact as f64 / total as f64)]))
}

/// The example of a question whose candidate is most likely right: the greatest logit of the second label, as the
/// released code has it; of equal ones the first.
pub fn best_candidate(question: Range<usize>, predictions: &[Prediction]) -> usize {
    let logit = |index: usize| predictions[index].logits().get(1).copied().unwrap_or(f32::NEG_INFINITY);
    question.clone().fold(question.start, |best, index| if logit(index) > logit(best) { index } else { best })
}

/// Exact match and F1 of the chosen entity, the best over the answers, normalised as SQuAD's.
pub fn record(_: &Task, examples: &[Example], predictions: &[Prediction]) -> Result<Scores> {
    let (mut exact_match, mut f1, mut total) = (0.0, 0.0, 0usize);
    for question in questions(examples) {
        total += 1;
        let Some(origin) = &examples[best_candidate(question, predictions)].origin else { continue };
        let text = origin.candidate.as_deref().unwrap_or_default();
        let score = squad::score(Edition::One, origin.answers.iter().map(String::as_str), text);
        exact_match += score.exact_match;
        f1 += score.f1;
    }
    Ok(Scores::new([("exact_match", exact_match / total as f64), ("f1", f1 / total as f64)]))
}
