//! Submission files: what a leaderboard takes, in its own form.

use super::scores::{best_candidate, questions};
use crate::data::{Content, Example};
use crate::task::{Outcome, Prediction};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::io::Write;

/// The answer of a question (a range of one example, where an example is the question) as a submission has it.
pub type Answer = fn(&[Example], &[Prediction]) -> Result<Value>;

/// The form of a submission file, and what the file is usually called.
#[derive(Clone, Copy, Debug)]
pub enum Submission {
    /// There is no official form.
    None,
    /// `{"idx", "label"}` a line.
    JsonLines(&'static str, Answer),
    /// `index`, tab, `prediction`, with a header.
    Table(&'static str, Answer),
    /// SQuAD's: one object of question ids and answers.
    Answers(&'static str),
}

/// Writes the predictions of all examples.
pub fn write(form: Submission, out: &mut dyn Write, examples: &[Example], predictions: &[Prediction]) -> Result<()> {
    match form {
        Submission::None => bail!("there is no official form of submissions for this task"),
        Submission::JsonLines(_, answer) => {
            // A question a line; MultiRC's nest in a paragraph's line.
            for question in lines(examples) {
                let value = answer(&examples[question.clone()], &predictions[question])?;
                writeln!(out, "{value}")?;
            }
        }
        Submission::Table(_, answer) => {
            writeln!(out, "index\tprediction")?;
            for index in 0..examples.len() {
                let line = answer(&examples[index..=index], &predictions[index..=index])?;
                writeln!(out, "{}\t{}", line["idx"], line["label"].as_str().unwrap_or_default())?;
            }
        }
        Submission::Answers(_) => {
            let mut answers = Map::new();
            for (example, prediction) in examples.iter().zip(predictions) {
                if let (Content::Question { id, .. }, Outcome::Text(text)) = (&example.content, &prediction.outcome) {
                    answers.insert(id.clone(), json!(text));
                }
            }
            serde_json::to_writer(&mut *out, &answers)?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// The examples of every line: questions, and the questions of a paragraph together where ids have levels.
fn lines(examples: &[Example]) -> Vec<std::ops::Range<usize>> {
    let mut lines: Vec<std::ops::Range<usize>> = Vec::new();
    let id = |index: usize| examples[index].origin.as_ref().map(|origin| &origin.id);
    for question in questions(examples) {
        match lines.last_mut() {
            Some(line)
                if id(line.start).zip(id(question.start)).is_some_and(|(line, next)| next.len() > 1 && line.first() == next.first()) =>
            {
                line.end = question.end;
            }
            _ => lines.push(question),
        }
    }
    lines
}

fn id(example: &Example, level: usize) -> Result<i64> {
    let origin = example.origin.as_ref().with_context(|| format!("{}: not read from an official file", example.place))?;
    origin.id.get(level).copied().with_context(|| format!("{}: has no number", example.place))
}

fn line(example: &Example, label: Value) -> Result<Value> {
    Ok(json!({"idx": id(example, 0)?, "label": label}))
}

/// The label's name.
pub fn labels(examples: &[Example], predictions: &[Prediction]) -> Result<Value> {
    line(&examples[0], json!(predictions[0].label_name()))
}

/// `"True"` or `"False"`, which only WSC has.
pub fn capital_booleans(examples: &[Example], predictions: &[Prediction]) -> Result<Value> {
    let label = predictions[0].label_name();
    line(&examples[0], json!(if label == Some("true") { "True" } else { "False" }))
}

/// The index of the choice.
pub fn choices(examples: &[Example], predictions: &[Prediction]) -> Result<Value> {
    match predictions[0].outcome {
        Outcome::Choice(choice) => line(&examples[0], json!(choice)),
        _ => bail!("{}: not a choice", examples[0].place),
    }
}

/// The text of the best candidate.
pub fn candidates(examples: &[Example], predictions: &[Prediction]) -> Result<Value> {
    let best = best_candidate(0..examples.len(), predictions);
    let text = examples[best].origin.as_ref().and_then(|origin| origin.candidate.as_deref());
    line(&examples[best], json!(text))
}

/// A paragraph with its questions and their answers.
pub fn nested(examples: &[Example], predictions: &[Prediction]) -> Result<Value> {
    let mut all = Vec::new();
    for question in questions(examples) {
        let mut answers = Vec::new();
        for index in question.clone() {
            answers.push(json!({"idx": id(&examples[index], 2)?, "label": predictions[index].label_index()}));
        }
        all.push(json!({"idx": id(&examples[question.start], 1)?, "answers": answers}));
    }
    Ok(json!({"idx": id(&examples[0], 0)?, "passage": {"questions": all}}))
}
