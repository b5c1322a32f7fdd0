//! Column files in the manner of CoNLL: a word a line, an empty line behind every sentence. One column is the tag of
//! the word (CoNLL-2003, WNUT-17, OntoNotes), or several are the arguments of one predicate each (CoNLL-2005 and 2012).
//! What kind of file it is shows in its first sentences.

use super::lines::{for_each_line, place};
use super::propositions;
use super::record::{Examples, cell_label};
use crate::data::Content;
use anyhow::{Result, bail, ensure};
use std::ops::{ControlFlow, Range};
use std::path::Path;

/// Sentences that are looked at to see what a file's columns are.
const SAMPLE: usize = 1000;

/// A sentence as the file has it: as many fields in every row.
#[derive(Default)]
pub struct Sentence {
    pub first_line: usize,
    pub rows: Vec<Vec<String>>,
    /// Line numbers of the rows.
    pub lines: Vec<usize>,
}

impl Sentence {
    pub fn width(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    pub fn column(&self, column: usize) -> impl Iterator<Item = &str> {
        self.rows.iter().map(move |row| row[column].as_str())
    }

    fn is_numbered_by(&self, column: usize) -> bool {
        (0..=1).any(|first| self.column(column).enumerate().all(|(row, cell)| cell == (row + first).to_string()))
    }
}

/// Where words and labels are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    word: usize,
    labels: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Labels {
    /// One tag a word, in this column or the last.
    Tag(Option<usize>),
    /// A column a predicate, from `first` on; so many columns follow them.
    Arguments { first: usize, behind: usize },
}

/// Reads a column file, or one with a proposition a line.
pub fn read(path: &Path, examples: &mut Examples) -> Result<()> {
    if propositions::are_lines(path)? {
        return propositions::read_lines(path, examples);
    }
    let layout = Layout::of(path, examples.columns.word, examples.columns.tag)?;
    for_each_sentence(path, |sentence| {
        let words = words(path, &sentence, layout.word)?;
        match layout.labels {
            Labels::Tag(column) => tagged(path, &sentence, words, layout.word, column, examples)?,
            Labels::Arguments { first, behind } => {
                ensure!(
                    sentence.width() >= first + behind,
                    "{}: {} columns, but arguments begin behind column {first} in other sentences",
                    place(path, sentence.first_line),
                    sentence.width()
                );
                for column in first..sentence.width() - behind {
                    propositions::read_column(path, &sentence, words.clone(), column, examples)?;
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

impl Layout {
    /// The words stand behind the column that numbers them, where there is one, else in the first; arguments where a
    /// column has a predicate's own span. What is said of the columns holds instead.
    fn of(path: &Path, word: Option<usize>, tag: Option<usize>) -> Result<Layout> {
        let (mut arguments, mut numbers, mut several, mut seen): (Option<Range<usize>>, _, _, _) = (None, None, false, 0);
        for_each_sentence(path, |sentence| {
            let width = sentence.width();
            several |= sentence.rows.len() > 1;
            let columns = numbers.take().unwrap_or_else(|| (0..width.saturating_sub(2)).collect::<Vec<_>>());
            numbers = Some(columns.into_iter().filter(|&column| column + 2 < width && sentence.is_numbered_by(column)).collect());
            if let Some(found) = propositions::argument_columns(&sentence) {
                let (first, behind) = (found.start, width - found.end);
                let known = arguments.take().unwrap_or(first..behind);
                arguments = Some(known.start.min(first)..known.end.min(behind));
            }
            seen += 1;
            Ok(if seen == SAMPLE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let numbered = numbers.unwrap_or_default().first().map(|column| column + 1).filter(|_| several);
        let word = word.or(numbered).unwrap_or(0);
        ensure!(tag != Some(word), "{}: column {word} holds the words, so it cannot be the tag column", path.display());
        let labels = match arguments {
            Some(Range { start: first, end: behind }) if tag.is_none() => Labels::Arguments { first, behind },
            _ => Labels::Tag(tag),
        };
        Ok(Layout { word, labels })
    }
}

/// Calls `each` with every sentence, until it breaks off. `-DOCSTART-` and lines that begin or end a document are left
/// out, and CoNLL-U's comments (`# key = value`). Columns are apart by tabs where a line has one, else by spaces.
fn for_each_sentence(path: &Path, mut each: impl FnMut(Sentence) -> Result<ControlFlow<()>>) -> Result<()> {
    let mut sentence = Sentence::default();
    let mut over = false;
    for_each_line(path, |number, line| {
        if over {
            return Ok(());
        }
        if line.bytes().all(|byte| byte.is_ascii_whitespace()) {
            if !sentence.rows.is_empty() {
                over = each(std::mem::take(&mut sentence))?.is_break();
            }
            return Ok(());
        }
        // Only blanks of ASCII: a word may be a blank of another kind.
        let trimmed = |field: &str| field.trim_matches(|letter: char| letter.is_ascii_whitespace()).to_string();
        let fields: Vec<String> = match line.contains('\t') {
            true => line.split('\t').map(trimmed).collect(),
            false => line.split_ascii_whitespace().map(str::to_string).collect(),
        };
        let comment = fields[0] == "#" && fields.get(2).is_some_and(|field| field == "=");
        if fields[0] == "-DOCSTART-" || line.starts_with("#begin document") || line.starts_with("#end document") || comment {
            return Ok(());
        }
        if sentence.rows.is_empty() {
            sentence.first_line = number;
        } else if fields.len() != sentence.width() {
            bail!("{}: {} columns, but the sentence began with {}", place(path, number), fields.len(), sentence.width());
        }
        sentence.rows.push(fields);
        sentence.lines.push(number);
        Ok(())
    })?;
    if !over && !sentence.rows.is_empty() {
        let _ = each(sentence)?;
    }
    Ok(())
}

fn words(path: &Path, sentence: &Sentence, column: usize) -> Result<Vec<String>> {
    ensure!(
        column < sentence.width(),
        "{}: no column {column} (columns count from 0, the line has {}); --word-column names the words'",
        place(path, sentence.first_line),
        sentence.width()
    );
    if let Some(row) = sentence.column(column).position(str::is_empty) {
        bail!("{}: an empty word", place(path, sentence.lines[row]));
    }
    Ok(sentence.column(column).map(str::to_string).collect())
}

/// A sentence with one tag a word; where no column follows the words', an unlabelled one.
fn tagged(path: &Path, sentence: &Sentence, words: Vec<String>, word: usize, column: Option<usize>, examples: &mut Examples) -> Result<()> {
    let mut tags = None;
    if sentence.width() > word + 1 || column.is_some() && sentence.width() > 1 {
        let column = column.unwrap_or(sentence.width() - 1);
        ensure!(
            column < sentence.width(),
            "{}: no column {column} (columns count from 0, the line has {}); --tag-column names it",
            place(path, sentence.first_line),
            sentence.width()
        );
        if let Some(row) = sentence.column(column).position(str::is_empty) {
            bail!("{}: an empty tag", place(path, sentence.lines[row]));
        }
        tags = Some(sentence.column(column).map(cell_label).collect());
    }
    examples.add(place(path, sentence.first_line), Content::Words { words, tags, predicate: None })
}
