//! Exact match and F1 of answer texts, as the official scripts of SQuAD 1.1 and 2.0 compute them.

use std::collections::HashMap;

/// Which of the two official scripts is followed. They differ where a normalised answer is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edition {
    /// 1.1: every question has an answer.
    One,
    /// 2.0: gold answers that normalise to nothing do not count; without any, the right prediction is the empty text.
    Two,
}

/// Scores of one question, in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnswerScore {
    pub exact_match: f64,
    pub f1: f64,
}

/// Whitespace as Python's `str.split` takes it: also the four ASCII separators.
fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// A character of a word as Python's `\b` takes it: letters and numbers. Rust also counts marks and enclosed letters as
/// alphabetic; those that go with Latin letters are taken out, since only Latin articles are looked for.
fn is_word(character: char) -> bool {
    let mark = matches!(character, '\u{345}' | '\u{363}'..='\u{36f}' | '\u{24b6}'..='\u{24e9}' | '\u{1f130}'..='\u{1f189}');
    character.is_alphanumeric() && !mark
}

/// Lower case, without ASCII punctuation, without the words "a", "an" and "the", single spaces.
pub fn normalize(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|character| !character.is_ascii_punctuation()).collect();
    let mut kept = String::with_capacity(plain.len());
    let mut rest = plain.as_str();
    while let Some(first) = rest.chars().next() {
        let word = is_word(first);
        let end = rest.find(|character| is_word(character) != word).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        kept.push_str(if matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = after;
    }
    kept.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// F1 over the words of two normalised texts, as multisets.
fn word_f1(edition: Edition, gold: &str, predicted: &str) -> f64 {
    let (gold_words, predicted_words) = (gold.split_whitespace().count(), predicted.split_whitespace().count());
    if edition == Edition::Two && (gold_words == 0 || predicted_words == 0) {
        return f64::from(u8::from(gold_words == predicted_words));
    }
    let mut available: HashMap<&str, usize> = HashMap::new();
    for word in gold.split_whitespace() {
        *available.entry(word).or_default() += 1;
    }
    let mut same = 0;
    for word in predicted.split_whitespace() {
        if let Some(count) = available.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            same += 1;
        }
    }
    if same == 0 {
        return 0.0;
    }
    let (precision, recall) = (f64::from(same) / predicted_words as f64, f64::from(same) / gold_words as f64);
    2.0 * precision * recall / (precision + recall)
}

/// The best scores of a prediction over a question's gold answers; an unanswerable question has none.
pub fn score<'a>(edition: Edition, answers: impl IntoIterator<Item = &'a str>, prediction: &str) -> AnswerScore {
    let prediction = normalize(prediction);
    let mut gold: Vec<String> = answers.into_iter().map(normalize).collect();
    if edition == Edition::Two {
        gold.retain(|answer| !answer.is_empty());
    }
    if gold.is_empty() {
        gold.push(String::new());
    }
    gold.iter().fold(AnswerScore { exact_match: 0.0, f1: 0.0 }, |best, answer| AnswerScore {
        exact_match: best.exact_match.max(f64::from(u8::from(*answer == prediction))),
        f1: best.f1.max(word_f1(edition, answer, &prediction)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: normalize_answer of the official scripts.
    #[test]
    fn normalises_as_the_official_scripts() {
        for (text, expected) in [
            ("The  Cat,\tsat (on) an U.S. mat!", "cat sat on us mat"),
            ("theatre a-the an_other", "theatre athe another"),
            ("the\u{2013}cat", "\u{2013}cat"),
            ("Na\u{ef}ve \u{20ac}5", "na\u{ef}ve \u{20ac}5"),
            ("a\u{301}\u{a0}x\u{1c}y", "\u{301} x y"),
            ("\u{130}stanbul \u{3a3}\u{391}\u{3a3}", "i\u{307}stanbul \u{3c3}\u{3b1}\u{3c2}"),
            ("th\u{e9} \u{b2}a the\u{3001}", "th\u{e9} \u{b2}a \u{3001}"),
            ("the", ""),
        ] {
            assert_eq!(normalize(text), expected, "{text}");
        }
    }

    #[track_caller]
    fn check(edition: Edition, answers: &[&str], prediction: &str, exact_match: f64, f1: f64) {
        assert_eq!(score(edition, answers.iter().copied(), prediction), AnswerScore { exact_match, f1 });
    }

    #[test]
    fn the_best_answer_counts() {
        check(Edition::One, &["Lake Victoria", "the lake"], "The Lake", 1.0, 1.0);
        // Two of three predicted words, two of two gold words: 2 * 2/3 * 1 / (2/3 + 1).
        check(Edition::One, &["old map", "year"], "old map there", 0.0, 0.8);
    }

    #[test]
    fn repeated_words_count_as_often_as_in_both() {
        // One "very" of three: precision 1/3, recall 1/2.
        check(Edition::Two, &["very old"], "very very very", 0.0, 0.4);
    }

    #[test]
    fn no_answer_needs_an_empty_prediction() {
        check(Edition::Two, &[], "", 1.0, 1.0);
        check(Edition::Two, &[], "the", 1.0, 1.0);
        check(Edition::Two, &[], "cat", 0.0, 0.0);
        check(Edition::Two, &["cat"], "", 0.0, 0.0);
    }

    #[test]
    fn the_editions_differ_where_a_gold_answer_normalises_to_nothing() {
        check(Edition::One, &["The"], "the", 1.0, 0.0);
        check(Edition::Two, &["The"], "the", 1.0, 1.0);
        check(Edition::Two, &["The", "dog"], "the", 0.0, 0.0);
    }
}
