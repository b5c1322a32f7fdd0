//! What a record (a JSON object, a row of a table) means to each task, and the rule that either all examples of a file
//! have a label or none has.

use super::{Choice, Columns, TEXT_PAIR, squad};
use crate::data::{Content, Example, Label, Origin};
use crate::model::TaskKind;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// Index of the word whose arguments the tags are.
const PREDICATE: &str = "predicate";

/// A record by its column names.
pub type Record = Map<String, Value>;

/// The examples of one file as they are read.
pub struct Examples<'a> {
    pub task: TaskKind,
    pub columns: &'a Columns,
    examples: Vec<Example>,
    /// Records so far, those that were not wanted too.
    records: usize,
    /// The first example with and the first without a label.
    labelled: Option<usize>,
    unlabelled: Option<usize>,
}

impl<'a> Examples<'a> {
    pub fn new(task: TaskKind, columns: &'a Columns) -> Examples<'a> {
        Examples { task, columns, examples: Vec::new(), records: 0, labelled: None, unlabelled: None }
    }

    /// Adds the example that a record holds.
    pub fn push(&mut self, place: String, mut record: Record) -> Result<()> {
        if !self.takes(&place, &record)? {
            return Ok(());
        }
        let content = match self.task {
            TaskKind::Classification => self.text(&mut record),
            TaskKind::MultipleChoice => self.choices(&mut record),
            TaskKind::Tagging => self.words(&mut record),
            TaskKind::Qa => squad::question(&mut record),
            TaskKind::CausalLm => self.prompt(&mut record),
        };
        match content {
            Ok(content) => {
                if let Some(purpose) = self.columns.labels_for.filter(|_| !content.is_labelled()) {
                    let flag = if self.task == TaskKind::Qa { "" } else { "; --label-column names another" };
                    bail!("{place}: no {}, which {purpose} needs ({}){flag}", self.label_name(), found(&record));
                }
                self.add(place, content)
            }
            Err(error) => Err(error.context(place)),
        }
    }

    /// Counts a record; whether it is one of those that are wanted.
    pub fn takes(&mut self, place: &str, record: &Record) -> Result<bool> {
        self.records += 1;
        let Some(Choice { column, name, known }) = &self.columns.choice else { return Ok(true) };
        let named = match record.get(column) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(other) => bail!("{place}: {column:?} must name one of {}, found {}", known.join(", "), describe(other)),
            None => bail!("{place}: no column {column:?} ({}); --adapter-column names it", found(record)),
        };
        ensure!(known.contains(&named), "{place}: {column:?} names {named:?}; the adapters are {}", known.join(", "));
        Ok(named == *name)
    }

    pub fn add(&mut self, place: String, content: Content) -> Result<()> {
        self.add_with(place, content, None)
    }

    /// The same, of a named task's example.
    pub fn add_with(&mut self, place: String, mut content: Content, origin: Option<Origin>) -> Result<()> {
        if self.columns.ignore_labels {
            content.remove_label();
        }
        let first = if content.is_labelled() { &mut self.labelled } else { &mut self.unlabelled };
        first.get_or_insert(self.examples.len());
        self.examples.push(Example { content, place, record: self.records, origin });
        if let (Some(labelled), Some(unlabelled)) = (self.labelled, self.unlabelled) {
            bail!(
                "{}: no {}, which other examples have (such as {}); give every example one, or none",
                self.examples[unlabelled].place,
                self.label_name(),
                self.examples[labelled].place,
            );
        }
        Ok(())
    }

    pub fn finish(self) -> Vec<Example> {
        self.examples
    }

    fn label_name(&self) -> String {
        let (_, column) = self.names();
        match self.task {
            TaskKind::Classification | TaskKind::MultipleChoice => format!("label (column {column:?})"),
            TaskKind::Tagging => format!("tags (column {column:?})"),
            TaskKind::Qa => "\"answers\"".to_string(),
            TaskKind::CausalLm => format!("response (column {column:?})"),
        }
    }

    /// Columns of the text and of the label.
    fn names(&self) -> (&'a str, &'a str) {
        self.columns.names(self.task)
    }

    fn text(&self, record: &mut Record) -> Result<Content> {
        let (text, gold) = self.names();
        let text = string(record, text, "; --text-column names it")?;
        let pair = &self.columns.text_pair;
        let optional = pair == TEXT_PAIR && record.get(pair).is_none_or(Value::is_null);
        let pair = if optional { None } else { Some(string(record, pair, "; --text-pair-column names it")?) };
        let label = take(record, gold).map(|value| label(value, gold)).transpose()?;
        Ok(Content::Text { text, pair, label })
    }

    fn choices(&self, record: &mut Record) -> Result<Content> {
        let (text, gold) = self.names();
        let text = string(record, text, "; --text-column names it")?;
        let name = &self.columns.choices;
        let choices = list(record, name, "; --choices-column names it")?
            .into_iter()
            .map(|choice| match choice {
                Value::String(choice) => Ok(choice),
                other => bail!("{name:?} must hold strings, found {}", describe(&other)),
            })
            .collect::<Result<Vec<_>>>()?;
        ensure!(choices.len() >= 2, "{name:?} must hold at least two choices, found {}", choices.len());
        let label = take(record, gold)
            .map(|value| match label(value, gold)? {
                Label::Index(index) => usize::try_from(index)
                    .ok()
                    .filter(|&index| index < choices.len())
                    .with_context(|| format!("label {index} is not the index of one of the {} choices (from 0)", choices.len())),
                Label::Name(name) => bail!("the label of a multiple choice is the index of the right choice (from 0), found {name:?}"),
            })
            .transpose()?;
        Ok(Content::Choices { text, choices, label })
    }

    /// `prompt` and `response`, or what --text-column and --label-column say instead.
    fn prompt(&self, record: &mut Record) -> Result<Content> {
        let (prompt, response) = self.names();
        let prompt = string(record, prompt, "; --text-column names it")?;
        let response = match take(record, response) {
            None => None,
            Some(Value::String(text)) => Some(text),
            Some(other) => bail!("{response:?} must be a string, found {}", describe(&other)),
        };
        Ok(Content::Prompt { prompt, response })
    }

    /// `tokens`, `tags` and for semantic roles `predicate`; or what --text-column and --label-column say instead.
    fn words(&self, record: &mut Record) -> Result<Content> {
        let (tokens, tags) = self.names();
        let words = list(record, tokens, "; --text-column names it")?
            .into_iter()
            .map(|word| match word {
                Value::String(word) => Ok(word),
                other => bail!("{tokens:?} must hold strings, found {}", describe(&other)),
            })
            .collect::<Result<Vec<_>>>()?;
        let tags = match take(record, tags) {
            None => None,
            Some(Value::Array(list)) => {
                ensure!(list.len() == words.len(), "{} {tokens} but {} {tags}", words.len(), list.len());
                Some(list.into_iter().map(|tag| label(tag, tags)).collect::<Result<Vec<_>>>()?)
            }
            Some(other) => bail!("{tags:?} must be a list, found {}", describe(&other)),
        };
        let predicate = take(record, PREDICATE)
            .map(|value| {
                let index = value.as_u64().map(|index| index as usize).filter(|&index| index < words.len());
                index.with_context(|| format!("{PREDICATE:?} must be the index of one of the {} {tokens} (from 0)", words.len()))
            })
            .transpose()?;
        Ok(Content::Words { words, tags, predicate })
    }
}

/// A value that is there and not null, taken out of its record (whose key stays, for messages).
pub fn take(record: &mut Record, name: &str) -> Option<Value> {
    record.get_mut(name).map(Value::take).filter(|value| !value.is_null())
}

/// A list of objects that must be there.
pub fn objects(record: &mut Record, name: &str) -> Result<Vec<Record>> {
    let Some(Value::Array(list)) = take(record, name) else { bail!("{name:?} must be a list of objects") };
    list.into_iter()
        .map(|value| match value {
            Value::Object(record) => Ok(record),
            other => bail!("{name:?} must hold objects, found {}", describe(&other)),
        })
        .collect()
}

/// A string that must be there; `hint` ends the message when it is not.
pub fn string(record: &mut Record, name: &str, hint: &str) -> Result<String> {
    match take(record, name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => bail!("{name:?} must be a string, found {}", describe(&other)),
        None if record.contains_key(name) => bail!("{name:?} is null; give it a text"),
        None => bail!("no column {name:?} ({}){hint}", found(record)),
    }
}

fn list(record: &mut Record, name: &str, hint: &str) -> Result<Vec<Value>> {
    match take(record, name) {
        Some(Value::Array(list)) => Ok(list),
        Some(other) => bail!("{name:?} must be a list, found {}", describe(&other)),
        None if record.contains_key(name) => bail!("{name:?} is null; give it a list"),
        None => bail!("no column {name:?} ({}){hint}", found(record)),
    }
}

/// A label as the data spells it; `name` is its column.
pub fn label(value: Value, name: &str) -> Result<Label> {
    Ok(match value {
        Value::String(text) => Label::Name(text),
        Value::Bool(flag) => Label::Name(flag.to_string()),
        Value::Number(ref number) => match number.as_i64() {
            Some(index) => Label::Index(index),
            // 1.0, as tools write whole numbers of a column that once had gaps.
            None => match number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15) {
                Some(float) => Label::Index(float as i64),
                None => bail!("{name:?} must be a whole number or a string, found {number}"),
            },
        },
        other => bail!("{name:?} must be a whole number or a string, found {}", describe(&other)),
    })
}

/// A label of a text format: digits are an index, anything else is a name.
pub fn cell_label(cell: &str) -> Label {
    let digits = cell.strip_prefix('-').unwrap_or(cell);
    if !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(index) = cell.parse()
    {
        return Label::Index(index);
    }
    Label::Name(cell.to_string())
}

fn found(record: &Record) -> String {
    format!("columns found: {}", names(record.keys().map(String::as_str)))
}

/// Names for a message: the first of them, none longer than a word or two.
pub fn names<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let more = names.len().saturating_sub(SHOWN);
    let mut shown: Vec<String> = names
        .take(SHOWN)
        .map(|name| if name.chars().count() > 30 { name.chars().take(30).chain(['…']).collect() } else { name.to_string() })
        .collect();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    if shown.is_empty() { "none".to_string() } else { shown.join(", ") }
}

/// What a value is, for messages.
pub fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
