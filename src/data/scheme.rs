//! How tags spell spans: the schemes of named entities and chunks, told apart and turned into one another.

use super::{Content, Example, Label};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// A way to spell spans, by a letter in front of their type; `O` is outside of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TagScheme {
    /// B only where a span of the same type ends right in front.
    Iob1,
    /// B at every beginning (also called BIO). What is trained on.
    Iob2,
    /// Beginning, inside, end, single.
    Bioes,
    /// The same with L for the end and U for single ones.
    Bilou,
}

impl TagScheme {
    pub fn name(self) -> &'static str {
        match self {
            TagScheme::Iob1 => "IOB1",
            TagScheme::Iob2 => "IOB2",
            TagScheme::Bioes => "BIOES",
            TagScheme::Bilou => "BILOU",
        }
    }

    fn letters(self) -> &'static str {
        match self {
            TagScheme::Iob1 | TagScheme::Iob2 => "BI",
            TagScheme::Bioes => "BIES",
            TagScheme::Bilou => "BILU",
        }
    }

    /// The letters of the end of a span and of a single word.
    fn last_and_single(self) -> Option<(char, char)> {
        match self {
            TagScheme::Iob1 | TagScheme::Iob2 => None,
            TagScheme::Bioes => Some(('E', 'S')),
            TagScheme::Bilou => Some(('L', 'U')),
        }
    }

    /// A sentence's tags in this scheme. Tags that keep to no scheme are read as conlleval reads them.
    pub fn write(self, tags: &[&str]) -> Vec<String> {
        let parsed: Vec<Option<Tag>> = tags.iter().map(|tag| Tag::of(tag)).collect();
        let begins = beginnings(&parsed);
        let spelled = |word: usize, kind: &str| {
            let ends = parsed.get(word + 1).copied().flatten().is_none() || begins[word + 1];
            let follows = word > 0 && parsed[word - 1].is_some_and(|previous| previous.kind == kind);
            let letter = match (self.last_and_single(), begins[word], ends) {
                (Some((_, single)), true, true) => single,
                (Some((last, _)), false, true) => last,
                (_, begins, _) if begins && (self != TagScheme::Iob1 || follows) => 'B',
                _ => 'I',
            };
            format!("{letter}-{kind}")
        };
        parsed.iter().enumerate().map(|(word, tag)| tag.map_or("O".to_string(), |tag| spelled(word, tag.kind))).collect()
    }
}

/// A tag of a span.
#[derive(Clone, Copy)]
struct Tag<'a> {
    letter: char,
    kind: &'a str,
}

impl<'a> Tag<'a> {
    fn of(tag: &'a str) -> Option<Tag<'a>> {
        let (letter, kind) = tag.split_once('-')?;
        Some(Tag { letter: letter.chars().next().filter(|_| letter.len() == 1)?, kind })
    }
}

/// Which words begin a span.
fn beginnings(tags: &[Option<Tag>]) -> Vec<bool> {
    let mut previous: Option<Tag> = None;
    let begins = tags.iter().map(|&tag| {
        let before = std::mem::replace(&mut previous, tag);
        tag.is_some_and(|tag| {
            matches!(tag.letter, 'B' | 'S' | 'U')
                || before.is_none_or(|before| before.kind != tag.kind || matches!(before.letter, 'E' | 'S' | 'L' | 'U'))
        })
    });
    begins.collect()
}

/// The tags of an example by name; None where there are none, or numbers.
fn names(example: &Example) -> Option<Vec<&str>> {
    let Content::Words { tags: Some(tags), .. } = &example.content else { return None };
    tags.iter().map(|tag| if let Label::Name(name) = tag { Some(name.as_str()) } else { None }).collect()
}

/// The scheme of the examples' tags; None where they are not spans, or of no known scheme (an `I` at the beginning of one
/// span and a `B` at that of another). Where IOB2 and another scheme would spell all spans alike, it is IOB2.
pub fn scheme_of(examples: &[Example]) -> Option<TagScheme> {
    let (mut letters, mut inside_first, mut beginning_first) = (String::new(), false, false);
    for example in examples {
        let names = names(example)?;
        let mut tags = Vec::with_capacity(names.len());
        for name in names {
            let tag = Tag::of(name).filter(|tag| "BIESLU".contains(tag.letter) && !tag.kind.is_empty());
            if tag.is_none() && name != "O" {
                return None;
            }
            letters.extend(tag.map(|tag| tag.letter).filter(|&letter| !letters.contains(letter)));
            tags.push(tag);
        }
        let begins = beginnings(&tags);
        for (word, tag) in tags.iter().enumerate().filter(|(word, _)| begins[*word]) {
            let Some(tag) = tag else { continue };
            let follows = word > 0 && tags[word - 1].is_some_and(|previous| previous.kind == tag.kind);
            inside_first |= tag.letter == 'I';
            beginning_first |= tag.letter == 'B' && !follows;
        }
    }
    if letters.is_empty() {
        return None;
    }
    let within = |scheme: TagScheme| letters.chars().all(|letter| scheme.letters().contains(letter));
    match (within(TagScheme::Iob2), inside_first, beginning_first) {
        (true, false, _) => Some(TagScheme::Iob2),
        (true, true, false) => Some(TagScheme::Iob1),
        (true, true, true) => None,
        _ => [TagScheme::Bioes, TagScheme::Bilou].into_iter().find(|&scheme| within(scheme)),
    }
}

/// Turns the tags of labelled examples from a scheme into IOB2. Error: a tag that the scheme does not have.
pub fn to_iob2(examples: &mut [Example], scheme: TagScheme) -> Result<()> {
    for example in examples {
        let converted = match names(example) {
            Some(names) => {
                for (word, name) in names.iter().enumerate() {
                    let known = Tag::of(name).is_some_and(|tag| scheme.letters().contains(tag.letter) && !tag.kind.is_empty());
                    if !known && *name != "O" {
                        bail!("{}, word {}: the tag {name:?} is none of {}'s", example.place, word + 1, scheme.name());
                    }
                }
                TagScheme::Iob2.write(&names)
            }
            None => continue,
        };
        if let Content::Words { tags: Some(tags), .. } = &mut example.content {
            *tags = converted.into_iter().map(Label::Name).collect();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::TagScheme::*;
    use super::*;

    /// The same spans in every scheme: two of one type side by side, two types side by side, one at the end.
    const SPELLINGS: [(TagScheme, &str); 4] = [
        (Iob1, "I-P I-P B-P O I-P I-L I-L O I-L I-L I-L"),
        (Iob2, "B-P I-P B-P O B-P B-L I-L O B-L I-L I-L"),
        (Bioes, "B-P E-P S-P O S-P B-L E-L O B-L I-L E-L"),
        (Bilou, "B-P L-P U-P O U-P B-L L-L O B-L I-L L-L"),
    ];

    fn example(tags: &str) -> Example {
        let tags: Vec<Label> = tags.split(' ').map(|tag| Label::Name(tag.to_string())).collect();
        let words = vec!["w".to_string(); tags.len()];
        Example::new(Content::Words { words, tags: Some(tags), predicate: None }, "d.txt, line 4".to_string())
    }

    fn iob2(tags: &str, scheme: TagScheme) -> String {
        let mut examples = [example(tags)];
        to_iob2(&mut examples, scheme).unwrap();
        names(&examples[0]).unwrap().join(" ")
    }

    #[test]
    fn schemes_are_told_apart_and_turned_into_one_another() {
        for (scheme, tags) in SPELLINGS {
            assert_eq!(scheme_of(&[example("O O"), example(tags)]), Some(scheme));
            assert_eq!(iob2(tags, scheme), SPELLINGS[1].1, "{scheme:?}");
            for (other, spelled) in SPELLINGS {
                assert_eq!(other.write(&tags.split(' ').collect::<Vec<_>>()).join(" "), spelled, "{scheme:?} to {other:?}");
            }
        }
    }

    #[test]
    fn what_is_of_no_scheme_stays() {
        for tags in ["O O", "NN VB", "B-P I-L O B-L", "B-P NN", "B- O", "B-P L-P S-P", "BB-P O"] {
            assert_eq!(scheme_of(&[example(tags)]), None, "{tags}");
        }
        let numbers = Content::Words { words: vec!["w".into()], tags: Some(vec![Label::Index(1)]), predicate: None };
        assert_eq!(scheme_of(&[example("B-P"), Example::new(numbers, String::new())]), None);
        assert_eq!(scheme_of(&[example("B-P O B-P B-P")]), Some(Iob2));
        assert_eq!(scheme_of(&[example("I-P O I-P I-P")]), Some(Iob1));
        assert_eq!(scheme_of(&[example("B-A-x I-A-x B-A-y")]), Some(Iob2));
    }

    #[test]
    fn a_scheme_that_is_given_holds_and_must_have_every_tag() {
        assert_eq!(iob2("I-P O B-L I-L I-P", Iob2), "B-P O B-L I-L B-P");
        assert_eq!(iob2("E-P I-P O S-L S-L I-L", Bioes), "B-P B-P O B-L B-L B-L");
        for (tags, scheme, wrong) in [("O E-P", Iob2, "E-P"), ("O L-P", Bioes, "L-P"), ("O NN", Iob1, "NN"), ("O B-", Bilou, "B-")] {
            let message = to_iob2(&mut [example(tags)], scheme).unwrap_err().to_string();
            assert_eq!(message, format!("d.txt, line 4, word 2: the tag {wrong:?} is none of {}'s", scheme.name()));
        }
    }

    /// Predictions need not keep to any scheme; what is written does.
    #[test]
    fn loose_tags_are_written_as_whole_spans() {
        assert_eq!(Bioes.write(&["I-P", "I-P", "I-L", "O", "B-L"]), ["B-P", "E-P", "S-L", "O", "S-L"]);
        assert_eq!(Iob1.write(&["B-P", "B-P", "O", "B-P"]), ["I-P", "B-P", "O", "I-P"]);
        assert_eq!(Iob2.write(&["O"; 2]), ["O", "O"]);
    }
}
