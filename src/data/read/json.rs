//! JSON Lines (an object a line) and JSON files (a list of objects, or an object that holds the list as "data").

use super::lines::{for_each_line, place, read_text};
use super::record::{Examples, describe, names};
use super::squad;
use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value};
use std::path::Path;

pub fn read_lines(path: &Path, examples: &mut Examples) -> Result<()> {
    for_each_line(path, |number, line| read_line(path, number, line, examples))
}

fn read_line(path: &Path, number: usize, line: &str, examples: &mut Examples) -> Result<()> {
    match record_of_line(path, number, line)? {
        Some(record) => examples.push(place(path, number), record),
        None => Ok(()),
    }
}

/// The object on a line; None: the line is blank.
pub fn record_of_line(path: &Path, number: usize, line: &str) -> Result<Option<Map<String, Value>>> {
    if line.trim().is_empty() {
        return Ok(None);
    }
    let value = serde_json::from_str(line).map_err(|error| anyhow!("{}: {}", place(path, number), message(&error)))?;
    object(value, || place(path, number)).map(Some)
}

/// A `.json` file. One that holds an object a line (as many data sets with this extension do) is read as JSON Lines.
pub fn read_file(path: &Path, examples: &mut Examples) -> Result<()> {
    let text = read_text(path)?;
    if text.trim().is_empty() {
        return Ok(());
    }
    if holds_lines(&text) {
        return text.lines().enumerate().try_for_each(|(index, line)| read_line(path, index + 1, line, examples));
    }
    let value = serde_json::from_str(&text).map_err(|error| anyhow!("{}: {}", place(path, error.line()), message(&error)))?;
    drop(text);
    let records = match value {
        Value::Array(records) => records,
        Value::Object(mut file) => match file.get_mut("data").map(Value::take) {
            Some(Value::Array(records)) => records,
            Some(other) => bail!("{}: \"data\" must be a list of objects, found {}", path.display(), describe(&other)),
            None => {
                let keys = names(file.keys().map(String::as_str));
                bail!("{}: expected a list of objects or an object with \"data\" (keys found: {keys})", path.display())
            }
        },
        other => bail!("{}: expected a list of objects, found {}", path.display(), describe(&other)),
    };
    for (index, value) in records.into_iter().enumerate() {
        let place = || format!("{}, record {}", path.display(), index + 1);
        let record = object(value, place)?;
        if squad::is_article(&record) { squad::read_article(place(), record, examples)? } else { examples.push(place(), record)? }
    }
    Ok(())
}

/// Whether the first line that is not blank is a whole JSON object, and more follows.
fn holds_lines(text: &str) -> bool {
    let Some((first, rest)) = text.trim_start().split_once('\n') else { return false };
    first.starts_with('{') && !rest.trim().is_empty() && serde_json::from_str::<serde::de::IgnoredAny>(first).is_ok()
}

fn object(value: Value, place: impl Fn() -> String) -> Result<Map<String, Value>> {
    match value {
        Value::Object(record) => Ok(record),
        other => bail!("{}: expected a JSON object, found {}", place(), describe(&other)),
    }
}

/// serde_json's message without its own line number, which counts from the line that was parsed.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    format!("broken JSON, {text} (column {})", error.column())
}
