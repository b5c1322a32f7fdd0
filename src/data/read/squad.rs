//! Questions: SQuAD 1.1 and 2.0 (articles, paragraphs, questions), and the flat form of one question a record.
//! Answers are taken as the data gives them, text and start alike, as the released code does (`tasks/qa/dataset.py`).

use super::record::{Examples, Record, describe, objects, string, take};
use crate::data::{Answer, Content};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Whether a record is an article of SQuAD's own form.
pub fn is_article(record: &Record) -> bool {
    record.contains_key("paragraphs")
}

pub fn read_article(place: String, mut article: Record, examples: &mut Examples) -> Result<()> {
    if examples.task != crate::model::TaskKind::Qa {
        bail!("{place}: this is SQuAD data, which the task {} does not read", examples.task.name());
    }
    if examples.columns.choice.is_some() {
        bail!("{place}: --adapter-column needs a question a record, not SQuAD's nesting");
    }
    for (index, paragraph) in objects(&mut article, "paragraphs").with_context(|| place.clone())?.into_iter().enumerate() {
        let place = format!("{place}, paragraph {}", index + 1);
        read_paragraph(&place, paragraph, examples)?;
    }
    Ok(())
}

fn read_paragraph(place: &str, mut paragraph: Record, examples: &mut Examples) -> Result<()> {
    let context = string(&mut paragraph, "context", "").with_context(|| place.to_string())?;
    for (index, mut record) in objects(&mut paragraph, "qas").with_context(|| place.to_string())?.into_iter().enumerate() {
        let place = format!("{place}, question {}", index + 1);
        record.insert("context".to_string(), Value::String(context.clone()));
        examples.push(place, record)?;
    }
    Ok(())
}

/// A record {id, context, question, answers}. Answers stand as a list of {text, answer_start} or as {text: [..],
/// answer_start: [..]}; an empty list says that there is no answer, no list at all that the question is unlabelled.
pub fn question(record: &mut Record) -> Result<Content> {
    let id = match take(record, "id") {
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(other) => bail!("\"id\" must be a string, found {}", describe(&other)),
        None => string(record, "id", "")?,
    };
    let named = || format!("question {id}");
    let question = string(record, "question", "").with_context(named)?;
    let context = string(record, "context", "").with_context(named)?;
    let answers = match take(record, "answers") {
        Some(Value::Array(list)) => Some(list.into_iter().map(answer).collect::<Result<Vec<_>>>().with_context(named)?),
        Some(Value::Object(lists)) => Some(flat_answers(lists).with_context(named)?),
        Some(other) => bail!("question {id}: \"answers\" must be a list or an object, found {}", describe(&other)),
        None if take(record, "is_impossible") == Some(Value::Bool(true)) => Some(Vec::new()),
        None => None,
    };
    Ok(Content::Question { id, question, context, answers })
}

fn answer(value: Value) -> Result<Answer> {
    let Value::Object(mut record) = value else { bail!("an answer must be an object, found {}", describe(&value)) };
    let start = take(&mut record, "answer_start").context("an answer has no \"answer_start\"")?;
    Ok(Answer { text: string(&mut record, "text", "")?, start: start_of(start)? })
}

fn flat_answers(mut lists: Record) -> Result<Vec<Answer>> {
    let (Some(Value::Array(texts)), Some(Value::Array(starts))) = (take(&mut lists, "text"), take(&mut lists, "answer_start")) else {
        bail!("\"answers\" must hold the lists \"text\" and \"answer_start\"")
    };
    ensure!(texts.len() == starts.len(), "{} answer texts but {} answer starts", texts.len(), starts.len());
    let pairs = texts.into_iter().zip(starts);
    pairs
        .map(|(text, start)| match text {
            Value::String(text) => Ok(Answer { text, start: start_of(start)? }),
            other => bail!("an answer's \"text\" must be a string, found {}", describe(&other)),
        })
        .collect()
}

fn start_of(value: Value) -> Result<usize> {
    let start = value.as_u64().with_context(|| format!("\"answer_start\" must be a position in the context (0 or more), found {value}"))?;
    Ok(usize::try_from(start)?)
}
