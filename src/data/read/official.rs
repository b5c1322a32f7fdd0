//! Official files of named tasks: how their records stand in a file is said here, what a record means by the task.

use super::json::record_of_line;
use super::lines::{for_each_line, place};
use super::record::{Examples, Record, cell_label};
use super::{Columns, read_examples};
use crate::data::{Content, Example, Label, Origin};
use crate::model::TaskKind;
use anyhow::{Result, bail};
use serde_json::Value;
use std::path::Path;

/// The examples that a record stands for, built by the numbered template.
pub type Expand = fn(record: &mut Record, template: usize) -> Result<Vec<(Content, Origin)>>;

/// How an official file is laid out.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    /// As files of its kind of task are.
    General,
    /// An object a line.
    JsonLines(Expand),
    /// Fields apart by tabs, without quoting; the first line names them. `headerless`: names of the fields where the
    /// first line has as many and is data. `skips_short_rows`: the published file has rows that were cut short, which are
    /// passed over. A row's place from 0 is its number where no field `index` or `id` gives one.
    Tabs { headerless: Option<&'static [&'static str]>, skips_short_rows: bool, expand: Expand },
}

/// What an official file holds.
#[derive(Debug, Default)]
pub struct Official {
    pub examples: Vec<Example>,
    /// Rows that were passed over.
    pub skipped: usize,
}

/// Reads all examples of an official file, in order.
pub fn official_examples(path: &Path, layout: Layout, template: usize, kind: TaskKind, columns: &Columns) -> Result<Official> {
    let mut examples = Examples::new(kind, columns);
    let mut skipped = 0;
    match layout {
        Layout::General => return Ok(Official { examples: read_examples(path, kind, columns)?, skipped }),
        Layout::JsonLines(expand) => for_each_line(path, |number, line| match record_of_line(path, number, line)? {
            Some(record) => add(&mut examples, place(path, number), record, template, expand),
            None => Ok(()),
        })?,
        Layout::Tabs { headerless, skips_short_rows, expand } => {
            let mut names: Vec<String> = Vec::new();
            let mut row = 0;
            for_each_line(path, |number, line| {
                let fields: Vec<&str> = line.split('\t').collect();
                if names.is_empty() {
                    match headerless.filter(|columns| columns.len() == fields.len()) {
                        Some(columns) => names = columns.iter().map(|name| name.to_string()).collect(),
                        None => {
                            names = fields.iter().map(|name| name.trim().to_string()).collect();
                            return Ok(());
                        }
                    }
                }
                if line.is_empty() {
                    return Ok(());
                }
                if fields.len() < names.len() && skips_short_rows {
                    skipped += 1;
                    return Ok(());
                }
                if fields.len() != names.len() {
                    bail!("{}: {} fields, but {} columns ({})", place(path, number), fields.len(), names.len(), names.join(", "));
                }
                let mut record: Record = names.iter().zip(&fields).map(|(name, field)| (name.clone(), cell(name, field))).collect();
                if !record.contains_key("index") {
                    let id = record.get("id").cloned().unwrap_or(Value::from(row));
                    record.insert("index".to_string(), id);
                }
                row += 1;
                add(&mut examples, place(path, number), record, template, expand)
            })?;
        }
    }
    let examples = examples.finish();
    if examples.is_empty() && columns.choice.is_none() {
        bail!("{}: holds no examples", path.display());
    }
    Ok(Official { examples, skipped })
}

/// A cell as JSON would hold it: numbers of rows as numbers, everything else as text.
fn cell(name: &str, field: &str) -> Value {
    match (name, cell_label(field)) {
        ("index" | "id", Label::Index(number)) => Value::from(number),
        _ => Value::from(field),
    }
}

fn add(examples: &mut Examples, place: String, mut record: Record, template: usize, expand: Expand) -> Result<()> {
    if !examples.takes(&place, &record)? {
        return Ok(());
    }
    for (content, origin) in expand(&mut record, template).map_err(|error| error.context(place.clone()))? {
        examples.add_with(place.clone(), content, Some(origin))?;
    }
    Ok(())
}
