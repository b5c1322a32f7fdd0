//! Configuration files: options of `train` under the names of the flags. What is wrong in one is a usage error that names
//! the file, the line and the key.

use super::options::TrainOptions;
use super::spelling::translate_table;
use crate::error::UsageError;
use crate::names::nearest;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, Error};

/// The text of a file, and what messages call it.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    pub text: &'a str,
    pub name: &'a str,
}

impl<'a> Text<'a> {
    /// All that the file holds.
    pub fn table(self) -> Result<Spanned<DeTable<'a>>, UsageError> {
        DeTable::parse(self.text).map_err(|error| self.error(&error))
    }

    /// The options of a table of the file.
    pub fn options(self, table: Spanned<DeTable>) -> Result<TrainOptions, UsageError> {
        let span = table.span();
        let table = translate_table(table.into_inner()).map_err(|(at, message)| self.wrong(at, &message))?;
        TrainOptions::deserialize(toml::Deserializer::from(Spanned::new(span, table))).map_err(|error| self.error(&error))
    }

    /// An error at a place of the text.
    pub fn wrong(self, at: usize, message: &str) -> UsageError {
        let line = self.text[..at.min(self.text.len())].matches('\n').count() + 1;
        UsageError(format!("{}, line {line}: {message}", self.name))
    }

    fn error(self, error: &Error) -> UsageError {
        let message = plain(error.message());
        let Some(span) = error.span() else { return UsageError(format!("{}: {message}", self.name)) };
        let start = span.start.min(self.text.len());
        let line = &self.text[self.text[..start].rfind('\n').map_or(0, |at| at + 1)..];
        let line = line.lines().next().unwrap_or_default();
        let table = line.trim().strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let key = line.split_once('=').map(|(key, _)| key.trim()).or(table);
        match key.filter(|key| !message.contains(&key.replace('_', "-"))) {
            Some(key) => self.wrong(start, &format!("{key}: {message}")),
            None => self.wrong(start, &message),
        }
    }
}

impl TrainOptions {
    /// Reads a configuration file. What is wrong in it is a usage error; a file that cannot be read is not.
    pub fn read(path: &Path) -> Result<TrainOptions> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let file = Text { text: &text, name: &path.display().to_string() };
        file.options(file.table()?)?.of_this_version()
    }
}

/// A message of the parser in the words of its reader: no names of types, and of a long list of keys the nearest.
fn plain(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    for start in ["unknown field ", "unknown variant "] {
        let Some((name, known)) = message.strip_prefix(start).and_then(|rest| rest.split_once(", expected ")) else { continue };
        let what = if start.contains("field") { format!("{start}{name}") } else { format!("{name} is unknown") };
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        return match known.len() {
            0 => what,
            1..=9 => format!("{what}; choose {}", known.join(", ")),
            _ => format!("{what}; the nearest are {}", nearest(name.trim_matches('`'), known.into_iter(), 3).join(", ")),
        };
    }
    let found = message.strip_prefix("invalid type: ").or(message.strip_prefix("invalid value: "));
    let Some((found, expected)) = found.and_then(|rest| rest.rsplit_once(", expected ")) else { return message };
    let expected = match expected {
        "usize" | "u64" | "u32" => "a whole number from 0",
        "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a string" => "text",
        other => other,
    };
    let kinds = ["integer ", "floating point ", "boolean ", "string "];
    let found = kinds.iter().find_map(|kind| found.strip_prefix(kind)).unwrap_or(found);
    let found = match found {
        "sequence" => "a list",
        "map" => "a table",
        value => value.trim_matches('`'),
    };
    format!("expected {expected}, found {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_line_the_key_and_what_is_wanted() {
        for (contents, expected) in [
            ("seed = 1\nlearning-rates = 1", "line 2: unknown field `learning-rates`; the nearest are learning-rate, "),
            ("\nseed = 'x'", "line 2: seed: expected a whole number from 0, found \"x\""),
            ("batch_size = -4", "line 1: batch_size: expected a whole number from 0, found -4"),
            ("[seed]\nx = 1", "line 1: seed: expected a whole number from 0, found a table"),
            ("learning-rate = '1e-3'", "line 1: learning-rate: expected a number, found \"1e-3\""),
            ("quiet = 3", "line 1: quiet: expected true or false, found 3"),
            ("model = [1]", "line 1: model: expected"),
            ("task = 3", "line 1: task: expected text, or a list of texts, found 3"),
            ("warmup = true", "line 1: warmup: expected a whole number of steps or a ratio below 1, found true"),
            ("warmup = 1.5", "line 1: warmup: `1.5` is neither"),
            ("device = [1]", "line 1: device: expected auto, cpu, cuda or cuda:N, found a list"),
            ("prefix-layers = '0'", "line 1: prefix-layers: layers are counted from 1"),
            ("data-order = 'x'", "line 1: data-order: `x` is unknown; choose shuffled, sequential"),
            ("seed = 1\nseed = 2", "line 2: "),
            ("lr = 1\n\nlearning_rate = 2", "line 3: learning-rate is said twice: lr"),
            ("num_train_epochs = 3.0", "line 1: num_train_epochs: write 3"),
            ("trust_remote_code = true", "line 1: --trust-remote-code: "),
        ] {
            let file = Text { text: contents, name: "c.toml" };
            let error = file.table().and_then(|table| file.options(table)).expect_err(contents).to_string();
            assert!(error.starts_with(&format!("c.toml, {expected}")), "{contents}: {error}");
        }
    }
}
