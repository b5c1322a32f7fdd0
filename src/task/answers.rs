//! What can be said of questions before a model reads them: whether answers stand where they are said to, and whether ids tell
//! questions apart.

use crate::data::{Content, Example};
use anyhow::{Result, bail};
use std::collections::HashMap;

/// What is to be said of labelled questions whose answers do not stand where they are said to; None where all do. The released
/// code trains on them as they are, and so does this one.
pub fn misplaced(examples: &[Example]) -> Option<String> {
    let (mut all, mut wrong, mut first) = (0, 0, None);
    for example in examples {
        let Content::Question { context, answers: Some(answers), .. } = &example.content else { continue };
        for answer in answers {
            all += 1;
            let length = answer.text.chars().count();
            let found: String = context.chars().skip(answer.start).take(length).collect();
            // One that ends behind the context is an error of its own.
            if found != answer.text && found.chars().count() == length {
                wrong += 1;
                first.get_or_insert_with(|| format!("{}: found {found:?}, expected {:?}", example.place, answer.text));
            }
        }
    }
    Some(format!("answers that do not stand at their answer_start: {wrong} of {all}, the first in {}; offsets count characters", first?))
}

/// An error where two questions have one id, by which files of answers name them.
pub fn require_ids<'a>(examples: impl Iterator<Item = &'a Example>) -> Result<()> {
    let mut known = HashMap::new();
    for example in examples {
        let Content::Question { id, .. } = &example.content else { continue };
        if let Some(place) = known.insert(id.as_str(), &example.place) {
            bail!(
                "{}: the id {id:?} is that of {place} too; --submission and --null-odds name questions by their ids: give each its own",
                example.place
            );
        }
    }
    Ok(())
}
