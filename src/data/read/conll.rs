//! CoNLL columns: a word a line, its columns apart by a tab or by spaces, an empty line after every sentence.

use super::lines::{for_each_line, place};
use super::record::{Examples, cell_label};
use crate::data::{Content, Label};
use anyhow::{Result, bail, ensure};
use std::path::Path;

/// The sentence that is being read.
#[derive(Default)]
struct Sentence {
    first_line: usize,
    columns: usize,
    words: Vec<String>,
    tags: Vec<Label>,
}

/// The first column is the word, `Columns::tag` (default: the last) its tag; a file of one column is unlabelled.
/// `-DOCSTART-` lines are left out.
pub fn read(path: &Path, examples: &mut Examples) -> Result<()> {
    let tag_column = examples.columns.tag;
    ensure!(tag_column != Some(0), "{}: column 0 holds the words, so it cannot be the tag column", path.display());
    let mut sentence = Sentence::default();
    for_each_line(path, |number, line| {
        if line.trim().is_empty() {
            return finish(path, &mut sentence, examples);
        }
        let fields: Vec<&str> = match line.contains('\t') {
            true => line.split('\t').map(str::trim).collect(),
            false => line.split(' ').filter(|field| !field.is_empty()).collect(),
        };
        if fields[0] == "-DOCSTART-" {
            return Ok(());
        }
        if sentence.words.is_empty() {
            (sentence.first_line, sentence.columns) = (number, fields.len());
        } else if fields.len() != sentence.columns {
            bail!("{}: {} columns, but the sentence began with {}", place(path, number), fields.len(), sentence.columns);
        }
        if fields[0].is_empty() {
            bail!("{}: an empty word", place(path, number));
        }
        sentence.words.push(fields[0].to_string());
        if fields.len() > 1 {
            let column = tag_column.unwrap_or(fields.len() - 1);
            match fields.get(column) {
                Some(tag) if !tag.is_empty() => sentence.tags.push(cell_label(tag)),
                Some(_) => bail!("{}: an empty tag", place(path, number)),
                None => {
                    bail!(
                        "{}: no column {column} (columns count from 0, the line has {}); --tag-column names it",
                        place(path, number),
                        fields.len()
                    )
                }
            }
        }
        Ok(())
    })?;
    finish(path, &mut sentence, examples)
}

fn finish(path: &Path, sentence: &mut Sentence, examples: &mut Examples) -> Result<()> {
    let Sentence { first_line, columns, words, tags } = std::mem::take(sentence);
    if words.is_empty() {
        return Ok(());
    }
    examples.add(place(path, first_line), Content::Words { words, tags: (columns > 1).then_some(tags) })
}
