//! CSV and TSV with a header line, for classification and multiple choice. CSV is quoted (RFC 4180); TSV is not: a
//! quotation mark is a character like any other, as in GLUE's files.

use super::TEXT_PAIR;
use super::lines::{for_each_line, place, read_text};
use super::record::{Examples, Record, cell_label, names};
use crate::data::Label;
use crate::model::TaskKind;
use anyhow::{Context, Result, bail};
use csv::StringRecord;
use serde_json::Value;
use std::path::Path;

/// Where the columns of the task stand.
struct Header {
    /// (name, index) of columns that are read as they stand.
    texts: Vec<(String, usize)>,
    label: Option<(String, usize)>,
    choices: Option<(String, usize)>,
    fields: usize,
}

impl Header {
    fn new(path: &Path, fields: &[&str], examples: &Examples) -> Result<Header> {
        let columns = examples.columns;
        let names_found: Vec<&str> = fields.iter().map(|field| field.trim()).collect();
        let optional = |name: &str| names_found.iter().position(|found| *found == name).map(|index| (name.to_string(), index));
        let required = |name: &str, flag: &str| {
            let missing = || {
                let found = names(names_found.iter().copied());
                format!("{}: no column {name:?} in the header (columns found: {found}); {flag} names it", path.display())
            };
            optional(name).with_context(missing)
        };
        let (text, label) = columns.names(examples.task);
        let mut texts = vec![required(text, "--text-column")?];
        if let Some(choice) = &columns.choice {
            texts.push(required(&choice.column, "--adapter-column")?);
        }
        let mut choices = None;
        match examples.task {
            TaskKind::MultipleChoice => choices = Some(required(&columns.choices, "--choices-column")?),
            _ if columns.text_pair == TEXT_PAIR => texts.extend(optional(&columns.text_pair)),
            _ => texts.push(required(&columns.text_pair, "--text-pair-column")?),
        }
        let needs_label = examples.columns.labels_for.is_some();
        let label = if needs_label { Some(required(label, "--label-column")?) } else { optional(label) };
        Ok(Header { texts, label, choices, fields: fields.len() })
    }

    fn push(&self, place: String, fields: &[&str], examples: &mut Examples) -> Result<()> {
        if fields.len() != self.fields {
            bail!("{place}: {} fields, but the header has {}", fields.len(), self.fields);
        }
        let mut record = Record::new();
        for (name, index) in &self.texts {
            record.insert(name.clone(), Value::String(fields[*index].to_string()));
        }
        if let Some((name, index)) = &self.choices {
            let choices = serde_json::from_str(fields[*index])
                .with_context(|| format!("{place}: column {name:?} must hold a JSON list such as [\"yes\", \"no\"]"))?;
            record.insert(name.clone(), choices);
        }
        if let Some((name, index)) = &self.label
            && !fields[*index].is_empty()
        {
            let label = match cell_label(fields[*index]) {
                Label::Index(index) => Value::from(index),
                Label::Name(name) => Value::String(name),
            };
            record.insert(name.clone(), label);
        }
        examples.push(place, record)
    }
}

pub fn read_tsv(path: &Path, examples: &mut Examples) -> Result<()> {
    let mut header: Option<Header> = None;
    for_each_line(path, |number, line| {
        let fields: Vec<&str> = line.split('\t').collect();
        match &header {
            None => header = Some(Header::new(path, &fields, examples)?),
            // An empty line is an empty text where texts are all there is, and no row otherwise.
            Some(header) if line.is_empty() && header.fields > 1 => {}
            Some(header) => header.push(place(path, number), &fields, examples)?,
        }
        Ok(())
    })
}

pub fn read_csv(path: &Path, examples: &mut Examples) -> Result<()> {
    let text = read_text(path)?;
    let mut reader = csv_reader(text.as_bytes());
    let mut row = StringRecord::new();
    let mut header: Option<Header> = None;
    let mut lines = LineCounter { text: text.as_bytes(), offset: 0, line: 1 };
    loop {
        let start = reader.position().byte() as usize;
        if !reader.read_record(&mut row).with_context(|| format!("cannot read {}", path.display()))? {
            return Ok(());
        }
        let end = reader.position().byte() as usize;
        let line = lines.line_of_row(start);
        if end == text.len() && ends_inside_quotes(&text.as_bytes()[start..]) {
            bail!("{}: a quotation mark in the row that begins here is never closed", place(path, line));
        }
        let fields: Vec<&str> = row.iter().collect();
        match &header {
            None => header = Some(Header::new(path, &fields, examples)?),
            Some(header) => header.push(place(path, line), &fields, examples)?,
        }
    }
}

fn csv_reader(bytes: &[u8]) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes)
}

/// Line numbers of ascending offsets; the csv crate's own do not count the empty lines that it skips before a row.
struct LineCounter<'a> {
    text: &'a [u8],
    offset: usize,
    line: usize,
}

impl LineCounter<'_> {
    /// The line on which the row begins that was read from `start` on.
    fn line_of_row(&mut self, start: usize) -> usize {
        let blank = self.text[start..].iter().take_while(|&&byte| byte == b'\n' || byte == b'\r').count();
        let start = start + blank;
        self.line += self.text[self.offset..start].iter().filter(|&&byte| byte == b'\n').count();
        self.offset = start;
        self.line
    }
}

/// The csv crate lets the end of the file close a quotation, which would swallow every row behind a stray mark. `last`
/// (the text from the last row on) is open if one more line becomes part of it.
fn ends_inside_quotes(last: &[u8]) -> bool {
    let more = [last, b"\nx"].concat();
    let mut reader = csv_reader(&more);
    let mut row = StringRecord::new();
    matches!(reader.read_record(&mut row), Ok(true)) && matches!(reader.read_record(&mut row), Ok(false))
}
