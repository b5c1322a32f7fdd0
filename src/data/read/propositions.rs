//! Propositions of semantic role labelling: a sentence, one predicate of it and the spans of its arguments; an example
//! each. A line holds `<index of the predicate> <words> ||| <tags>`, as the released P-Tuning v2 data, or a column of a
//! column file holds one, in brackets (`(A0*`, `*`, `*)`) or as tags.

use super::conll::Sentence;
use super::lines::{for_each_line, place, read_first_line};
use super::record::Examples;
use crate::data::{Content, Label};
use anyhow::{Context, Result, bail, ensure};
use std::ops::Range;
use std::path::Path;

/// Between words and tags of a line.
const BAR: &str = "|||";
/// The role of the predicate itself.
const VERB: &str = "V";
const OUTSIDE: &str = "O";

/// Whether the first line that is not blank is a proposition.
pub fn are_lines(path: &Path) -> Result<bool> {
    let first = read_first_line(path)?;
    let (index, rest) = first.trim_start().split_once(' ').unwrap_or_default();
    Ok(!index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()) && rest.contains(BAR))
}

/// A proposition a line; without tags behind the bar it is unlabelled.
pub fn read_lines(path: &Path, examples: &mut Examples) -> Result<()> {
    for_each_line(path, |number, line| {
        if line.bytes().all(|byte| byte.is_ascii_whitespace()) {
            return Ok(());
        }
        let content = proposition(line).with_context(|| place(path, number))?;
        examples.add(place(path, number), content)
    })
}

fn proposition(line: &str) -> Result<Content> {
    const FORM: &str = "expected <index of the predicate> <words> ||| <tags>";
    let (words, tags) = line.rsplit_once(BAR).with_context(|| format!("no {BAR}; {FORM}"))?;
    let mut words = words.split_ascii_whitespace().map(str::to_string);
    let index = words.next().unwrap_or_default();
    let predicate: usize = index.parse().ok().with_context(|| format!("{index:?} is not an index; {FORM}"))?;
    let words: Vec<String> = words.collect();
    ensure!(predicate < words.len(), "the predicate's index is {predicate} (from 0), but there are {} words", words.len());
    let tags: Vec<Label> = tags.split_ascii_whitespace().map(|tag| Label::Name(tag.to_string())).collect();
    ensure!(tags.is_empty() || tags.len() == words.len(), "{} words but {} tags; give one tag a word", words.len(), tags.len());
    Ok(Content::Words { words, tags: (!tags.is_empty()).then_some(tags), predicate: Some(predicate) })
}

/// The columns of a sentence that are arguments of a predicate: the last ones that hold spans of which one is the
/// predicate's own.
pub fn argument_columns(sentence: &Sentence) -> Option<Range<usize>> {
    let is_argument = |&column: &usize| spans(sentence.column(column)).is_ok_and(|tags| verb(&tags).is_some());
    let last = (1..sentence.width()).rev().find(is_argument)?;
    let count = (1..=last).rev().take_while(is_argument).count();
    Some(last + 1 - count..last + 1)
}

/// The proposition of one column.
pub fn read_column(path: &Path, sentence: &Sentence, words: Vec<String>, column: usize, examples: &mut Examples) -> Result<()> {
    let tags = spans(sentence.column(column)).map_err(|(row, problem)| {
        let line = sentence.lines[row.min(sentence.lines.len() - 1)];
        anyhow::anyhow!("{}, column {column}: {problem}", place(path, line))
    })?;
    let place = format!("{}, column {column}", place(path, sentence.first_line));
    let Some(predicate) = verb(&tags) else { bail!("{place}: no span is {VERB}, the predicate itself") };
    let tags = tags.into_iter().map(Label::Name).collect();
    examples.add(place, Content::Words { words, tags: Some(tags), predicate: Some(predicate) })
}

/// The row where the predicate begins.
fn verb(tags: &[String]) -> Option<usize> {
    tags.iter().position(|tag| tag.split_once('-').is_some_and(|(letter, role)| matches!(letter, "B" | "S" | "U") && role == VERB))
}

/// A column's cells as tags; where they are not, the row and what is wrong with it.
fn spans<'a>(cells: impl Iterator<Item = &'a str>) -> Result<Vec<String>, (usize, String)> {
    let mut tags = Vec::new();
    let mut open: Option<&str> = None;
    for (row, cell) in cells.enumerate() {
        let Some((opening, closing)) = cell.split_once('*') else {
            let tag = cell == OUTSIDE || cell.split_once('-').is_some_and(|(letter, role)| letter.len() == 1 && !role.is_empty());
            if !tag || open.is_some() {
                return Err((row, format!("{cell:?} is neither a tag nor a bracket with * for the word")));
            }
            tags.push(cell.to_string());
            continue;
        };
        let begins = !opening.is_empty();
        if begins {
            let role = opening.strip_prefix('(').filter(|role| !role.is_empty() && !role.contains(['(', ')']));
            match (role, open) {
                (Some(role), None) => open = Some(role),
                (Some(role), Some(outer)) => return Err((row, format!("{role} begins inside of {outer}; spans of a predicate lie apart"))),
                (None, _) => return Err((row, format!("{cell:?} does not begin one span, as (A0* does"))),
            }
        }
        tags.push(open.map_or(OUTSIDE.to_string(), |role| format!("{}-{role}", if begins { 'B' } else { 'I' })));
        match (closing, open) {
            ("", _) => {}
            (")", Some(_)) => open = None,
            (")", None) => return Err((row, format!("{cell:?} ends a span, but none is open"))),
            _ => return Err((row, format!("{cell:?} does not end one span, as *) does"))),
        }
    }
    match open {
        Some(role) => Err((usize::MAX, format!("the sentence ends within {role}, which no ) closes"))),
        None => Ok(tags),
    }
}
