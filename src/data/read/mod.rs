//! Readers: a data file becomes a list of examples. One file a format family (`json`, `table`, `conll`), one for what a
//! record means to each task (`record`), one for SQuAD's nesting (`squad`), one for semantic roles (`propositions`), one
//! for the official files of named tasks (`official`). Every error names the file and the line (or the record, or the
//! question's id).

mod conll;
mod json;
mod lines;
#[cfg(test)]
mod mutated;
mod official;
mod propositions;
mod record;
mod squad;
mod table;

#[cfg(test)]
pub use mutated::mutated;
pub use official::{Expand, Layout, Official, official_examples};
pub use record::{Record, cell_label, describe, label, objects, string, take};

use super::Example;
use crate::model::TaskKind;
use anyhow::{Result, bail};
use std::path::Path;

/// Names of the columns (JSON keys, CSV and TSV headers) that an example is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// None: the task's own ([`column_names`]).
    pub text: Option<String>,
    /// The second text. With its default name it may be absent; a name that was chosen must be there.
    pub text_pair: String,
    pub label: Option<String>,
    pub choices: String,
    /// Column of the words in a column file, from 0; None: the one behind the column that numbers them, else the first.
    pub word: Option<usize>,
    /// Column of the tags, from 0; None: the last.
    pub tag: Option<usize>,
    /// Labels, tags and answers in the file are passed over (prediction).
    pub ignore_labels: bool,
    /// What every example needs a label for ("training"); None: it may have none.
    pub labels_for: Option<&'static str>,
    /// Only some of the records are read.
    pub choice: Option<Choice>,
}

/// Records that name one of several in a column; the others name another of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub column: String,
    pub name: String,
    /// All names that there are.
    pub known: Vec<String>,
}

const TEXT_PAIR: &str = "text_pair";
const CHOICES: &str = "choices";

/// Columns of the text and of the label where nothing else is said.
pub fn column_names(task: TaskKind) -> (&'static str, &'static str) {
    match task {
        TaskKind::Classification | TaskKind::MultipleChoice | TaskKind::Qa => ("text", "label"),
        TaskKind::Tagging => ("tokens", "tags"),
        TaskKind::CausalLm => ("prompt", "response"),
    }
}

impl Columns {
    /// Columns of the text and of the label, of a task.
    fn names(&self, task: TaskKind) -> (&str, &str) {
        let (text, label) = column_names(task);
        (self.text.as_deref().unwrap_or(text), self.label.as_deref().unwrap_or(label))
    }
}

impl Default for Columns {
    fn default() -> Columns {
        Columns {
            text: None,
            text_pair: TEXT_PAIR.into(),
            label: None,
            choices: CHOICES.into(),
            word: None,
            tag: None,
            ignore_labels: false,
            labels_for: None,
            choice: None,
        }
    }
}

/// The formats, told apart by the file name's extension and the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    JsonLines,
    Json,
    Csv,
    Tsv,
    Conll,
}

impl Format {
    fn of(path: &Path, task: TaskKind) -> Result<Format> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let table = matches!(task, TaskKind::Classification | TaskKind::MultipleChoice);
        let tagging = task == TaskKind::Tagging;
        Ok(match extension.as_str() {
            "jsonl" | "ndjson" => Format::JsonLines,
            "json" => Format::Json,
            "csv" if table => Format::Csv,
            "tsv" if table => Format::Tsv,
            // Column files have any name: train.txt, eng.testa, ewt.gold_conll, test_wsj.
            extension if tagging && !["csv", "gz", "zip", "parquet", "arrow"].contains(&extension) => Format::Conll,
            _ => bail!(
                "{}: the task {} is not read from a file with {}; supported: {}",
                path.display(),
                task.name(),
                if extension.is_empty() { "no extension".to_string() } else { format!("the extension .{extension}") },
                match task {
                    TaskKind::Classification | TaskKind::MultipleChoice => ".jsonl .json .csv .tsv",
                    TaskKind::Tagging => ".jsonl and .json {tokens, tags}; columns or propositions as text under any other name",
                    TaskKind::CausalLm => ".jsonl and .json {prompt, response}",
                    TaskKind::Qa => ".json (SQuAD) and .jsonl {id, context, question, answers}",
                }
            ),
        })
    }
}

/// Reads all examples of a file, in order.
///
/// JSON Lines, JSON (a list of objects, or `{"data": [...]}`), CSV (quoted) and TSV (no quoting, as GLUE's) with a header;
/// tagging: `{tokens, tags}`, column files or a proposition a line; causal language modelling: `{prompt, response}`; question answering: SQuAD 1.1 and 2.0, or one question a record.
/// A file in which no example has a label (tags, answers) is unlabelled; one in which only some have is an error.
pub fn read_examples(path: &Path, task: TaskKind, columns: &Columns) -> Result<Vec<Example>> {
    let format = Format::of(path, task)?;
    if columns.choice.is_some() && format == Format::Conll {
        bail!("{}: --adapter-column needs a record an example: .jsonl, .json, .csv or .tsv", path.display());
    }
    let mut examples = record::Examples::new(task, columns);
    match format {
        Format::JsonLines => json::read_lines(path, &mut examples)?,
        Format::Json => json::read_file(path, &mut examples)?,
        Format::Csv => table::read_csv(path, &mut examples)?,
        Format::Tsv => table::read_tsv(path, &mut examples)?,
        Format::Conll => conll::read(path, &mut examples)?,
    }
    let examples = examples.finish();
    if examples.is_empty() && columns.choice.is_none() {
        bail!("{}: holds no examples", path.display());
    }
    Ok(examples)
}

#[cfg(test)]
mod tagging_tests;
#[cfg(test)]
mod tests;
