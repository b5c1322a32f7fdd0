//! SuperGLUE (JSON Lines), with the inputs and scores of the released code (`tasks/superglue/dataset.py`). MultiRC becomes an example
//! an answer and ReCoRD one an entity; their origins hold a question's examples together.

use super::submission::{Submission, candidates, capital_booleans, choices, labels, nested};
use super::{CLASSIFICATION, NamedTask, TEST, TRAIN, VALIDATION, scores};
use crate::data::{Content, Label, Layout, Origin, Record, describe, label, objects, string, take};
use crate::model::TaskKind;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;

const FILES: &[(&str, &[&str])] = &[(TRAIN, &["train.jsonl"]), (VALIDATION, &["val.jsonl"]), (TEST, &["test.jsonl"])];

/// What most of them share.
const TASK: NamedTask = NamedTask { labels: &["false", "true"], files: FILES, ..CLASSIFICATION };

pub const TASKS: &[NamedTask] = &[
    NamedTask {
        name: "superglue/boolq",
        templates: &["question [SEP] passage"],
        layout: Layout::JsonLines(|record, _| pair(record, "question", "passage")),
        submission: Submission::JsonLines("BoolQ.jsonl", labels),
        ..TASK
    },
    NamedTask {
        name: "superglue/cb",
        templates: &["premise [SEP] hypothesis"],
        labels: &["entailment", "contradiction", "neutral"],
        layout: Layout::JsonLines(|record, _| pair(record, "premise", "hypothesis")),
        metrics: &["accuracy", "macro_f1", "mean"],
        submission: Submission::JsonLines("CB.jsonl", labels),
        ..TASK
    },
    NamedTask {
        name: "superglue/copa",
        kind: TaskKind::MultipleChoice,
        templates: &["premise because|so [SEP] choice"],
        labels: &[],
        layout: Layout::JsonLines(|record, _| copa(record)),
        submission: Submission::JsonLines("COPA.jsonl", choices),
        ..TASK
    },
    NamedTask {
        name: "superglue/multirc",
        templates: &["passage [SEP] question answer"],
        labels: &["0", "1"],
        layout: Layout::JsonLines(|record, _| multirc(record)),
        metrics: &["f1a", "exact_match"],
        metric: "f1a",
        score: scores::multirc,
        submission: Submission::JsonLines("MultiRC.jsonl", nested),
        ..TASK
    },
    NamedTask {
        name: "superglue/record",
        templates: &["passage [SEP] query with the entity"],
        layout: Layout::JsonLines(|record, _| entities(record)),
        metrics: &["exact_match", "f1"],
        metric: "f1",
        score: scores::record,
        submission: Submission::JsonLines("ReCoRD.jsonl", candidates),
        ..TASK
    },
    NamedTask {
        name: "superglue/rte",
        templates: &["premise [SEP] hypothesis"],
        labels: &["entailment", "not_entailment"],
        layout: Layout::JsonLines(|record, _| pair(record, "premise", "hypothesis")),
        submission: Submission::JsonLines("RTE.jsonl", labels),
        ..TASK
    },
    NamedTask {
        name: "superglue/wic",
        templates: &["sentence1 sentence2 Does word have the same meaning in both sentences?", "word: sentence1 [SEP] word: sentence2"],
        layout: Layout::JsonLines(wic),
        submission: Submission::JsonLines("WiC.jsonl", labels),
        ..TASK
    },
    NamedTask {
        name: "superglue/wsc",
        templates: &["span2: text [SEP] span1", "text with *span2* [SEP] span1"],
        layout: Layout::JsonLines(wsc),
        submission: Submission::JsonLines("WSC.jsonl", capital_booleans),
        ..TASK
    },
];

/// A whole number that must be there.
fn number(record: &mut Record, name: &str) -> Result<i64> {
    match take(record, name) {
        Some(value) => value.as_i64().with_context(|| format!("{name:?} must be a whole number, found {}", describe(&value))),
        None => bail!("there is no {name:?}"),
    }
}

/// The answer, where there is one.
fn gold(record: &mut Record) -> Result<Option<Label>> {
    take(record, "label").map(|value| label(value, "label")).transpose()
}

fn one(record: &mut Record, text: String, pair: Option<String>) -> Result<Vec<(Content, Origin)>> {
    let content = Content::Text { text, pair, label: gold(record)? };
    Ok(vec![(content, Origin { id: vec![number(record, "idx")?], ..Origin::default() })])
}

/// Two fields as the two texts.
fn pair(record: &mut Record, first: &str, second: &str) -> Result<Vec<(Content, Origin)>> {
    let text = string(record, first, "")?;
    let pair = string(record, second, "")?;
    one(record, text, Some(pair))
}

fn copa(record: &mut Record) -> Result<Vec<(Content, Origin)>> {
    let premise = string(record, "premise", "")?;
    let joint = match string(record, "question", "")?.as_str() {
        "cause" => "because",
        "effect" => "so",
        other => bail!("\"question\" must be \"cause\" or \"effect\", found {other:?}"),
    };
    let choices = vec![string(record, "choice1", "")?, string(record, "choice2", "")?];
    let label = match gold(record)? {
        None => None,
        Some(Label::Index(index @ 0..=1)) => Some(index as usize),
        Some(other) => bail!("\"label\" must be 0 or 1, found {other:?}"),
    };
    let id = vec![number(record, "idx")?];
    Ok(vec![(Content::Choices { text: format!("{premise} {joint}"), choices, label }, Origin { id, ..Origin::default() })])
}

fn wic(record: &mut Record, template: usize) -> Result<Vec<(Content, Origin)>> {
    let word = string(record, "word", "")?;
    let (first, second) = (string(record, "sentence1", "")?, string(record, "sentence2", "")?);
    match template {
        0 => one(record, format!("{first} {second} Does {word} have the same meaning in both sentences?"), None),
        _ => one(record, format!("{word}: {first}"), Some(format!("{word}: {second}"))),
    }
}

fn wsc(record: &mut Record, template: usize) -> Result<Vec<(Content, Origin)>> {
    let mut text = string(record, "text", "")?;
    let mut target = object(record, "target")?;
    let (noun, pronoun) = (string(&mut target, "span1_text", "")?, string(&mut target, "span2_text", "")?);
    if template == 0 {
        text = format!("{pronoun}: {text}");
    } else {
        let mut words: Vec<String> = text.split_whitespace().map(str::to_string).collect();
        let index = number(&mut target, "span2_index")?;
        let count = words.len();
        let word = usize::try_from(index).ok().and_then(|index| words.get_mut(index));
        let word = word.with_context(|| format!("\"span2_index\" is {index}, but the text has {count} words"))?;
        *word = format!("*{word}*");
        text = words.join(" ");
    }
    one(record, text, Some(noun))
}

fn multirc(record: &mut Record) -> Result<Vec<(Content, Origin)>> {
    let passage_number = number(record, "idx")?;
    let mut passage = object(record, "passage")?;
    let text = string(&mut passage, "text", "")?;
    let mut rows = Vec::new();
    for mut question in objects(&mut passage, "questions")? {
        let question_number = number(&mut question, "idx")?;
        let words = string(&mut question, "question", "")?;
        for (index, mut answer) in objects(&mut question, "answers")?.into_iter().enumerate() {
            let id = vec![passage_number, question_number, number(&mut answer, "idx")?];
            let pair = format!("{words} {}", string(&mut answer, "text", "")?);
            let content = Content::Text { text: text.clone(), pair: Some(pair), label: gold(&mut answer)? };
            rows.push((content, Origin { id, continues: index > 0, ..Origin::default() }));
        }
    }
    Ok(rows)
}

/// Entities are the distinct texts of the marked spans, whose ends are inclusive, in their order as texts.
fn entities(record: &mut Record) -> Result<Vec<(Content, Origin)>> {
    let mut passage = object(record, "passage")?;
    let text = string(&mut passage, "text", "")?;
    let characters: Vec<char> = text.chars().collect();
    let mut entities = BTreeSet::new();
    for mut span in objects(&mut passage, "entities")? {
        let (start, end) = (number(&mut span, "start")?, number(&mut span, "end")?);
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let entity = range.and_then(|(start, end)| characters.get(start..=end));
        let entity = entity.with_context(|| format!("the entity {start}..={end} is not within the passage of {}", characters.len()))?;
        entities.insert(entity.iter().collect::<String>());
    }
    ensure!(!entities.is_empty(), "the passage has no entities");
    let passage = text.replace("@highlight\n", "- ");
    let mut rows = Vec::new();
    for mut question in objects(record, "qas")? {
        let id = vec![number(&mut question, "idx")?];
        let query = string(&mut question, "query", "")?;
        let answers = match question.get("answers") {
            None | Some(Value::Null) => None,
            Some(_) => {
                let answers = objects(&mut question, "answers")?;
                Some(answers.into_iter().map(|mut answer| string(&mut answer, "text", "")).collect::<Result<Vec<_>>>()?)
            }
        };
        for (index, entity) in entities.iter().enumerate() {
            let label = answers.as_ref().map(|answers| Label::Name(answers.contains(entity).to_string()));
            let content = Content::Text { text: passage.clone(), pair: Some(query.replace("@placeholder", entity)), label };
            let (id, candidate, answers) = (id.clone(), Some(entity.clone()), answers.clone().unwrap_or_default());
            rows.push((content, Origin { id, continues: index > 0, candidate, answers }));
        }
    }
    Ok(rows)
}

fn object(record: &mut Record, name: &str) -> Result<Record> {
    match take(record, name) {
        Some(Value::Object(inner)) => Ok(inner),
        Some(other) => bail!("{name:?} must be an object, found {}", describe(&other)),
        None => bail!("there is no {name:?}"),
    }
}
