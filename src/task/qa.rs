//! Question answering: spans of a context, as the released code has it (`tasks/qa/dataset.py`, `utils_qa.py`): windows over
//! the context, their targets, and the choice of one answer from the logits of all windows.

use super::encoding::{EncodedExample, Encoding, Item, Limits, Source};
use super::prediction::{Outcome, Prediction, Scores, With, number, numbers};
use super::wrong_content;
use crate::data::{Answer, Content, Example, Sequence, TextTokenizer, Window};
use crate::metric::squad::{self, Edition};
use crate::model::TaskKind;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// How many of the best starts and of the best ends of a window are combined.
const BEST: usize = 20;
/// Tokens of the longest answer.
const LONGEST_ANSWER: usize = 30;

/// One feature a window, all of whose tokens are read.
pub(super) fn encode(example: &Example, tokenizer: &TextTokenizer, limits: &Limits) -> Result<EncodedExample> {
    let Content::Question { question, context, answers, .. } = &example.content else { return wrong_content(example, TaskKind::Qa) };
    let characters = context.chars().count();
    for answer in answers.iter().flatten() {
        let end = answer.start.saturating_add(answer.text.chars().count());
        if end > characters {
            bail!("{}: the answer {:?} ends at character {end}, but the context has {characters}", example.place, answer.text);
        }
    }
    let windows =
        tokenizer.encode_windows(question, context, limits.max_length, limits.doc_stride).with_context(|| example.place.clone())?;
    let items = windows.into_iter().map(|window| {
        let targets = match answers {
            Some(answers) => targets(&window, answers.first()).map(|target| target as i32).to_vec(),
            None => Vec::new(),
        };
        let Window { ids, types, context, offsets, cls_index } = window;
        let readout = (0..ids.len() as u32).collect();
        let offsets = offsets.into_iter().map(|(first, end)| (first as u32, end as u32)).collect();
        Item { sequences: vec![Sequence::text(ids, types, readout)], targets, source: Source::Window { context, offsets, cls_index } }
    });
    Ok(EncodedExample { items: items.collect(), truncated: false })
}

/// First and last token of the answer in a window; the classification token twice where there is no answer or the
/// window does not hold all of it; an empty answer is no span either. The released code puts an answer that starts in the context's last token at the end of
/// the padding, having run past the context; here it is that last token.
fn targets(window: &Window, answer: Option<&Answer>) -> [usize; 2] {
    let none = [window.cls_index; 2];
    let (Some(answer), Some(first), Some(last)) = (answer, window.offsets.first(), window.offsets.last()) else { return none };
    let (start, end) = (answer.start, answer.start + answer.text.chars().count());
    if start == end || first.0 > start || last.1 < end {
        return none;
    }
    // The last token that begins at or before the answer, and the first that reaches its end.
    let tokens_before = window.offsets.iter().take_while(|token| token.0 <= start).count() - 1;
    let tokens_to_end = window.offsets.iter().rev().take_while(|token| token.1 >= end).count();
    [window.context.start + tokens_before, window.context.end - tokens_to_end]
}

/// Start (column 0) or end (column 1) logits of a window's tokens.
fn column(logits: &[f32], column: usize) -> impl Iterator<Item = &f32> {
    logits.iter().skip(column).step_by(2)
}

/// Indices of the greatest values, greatest first, the earlier of equal ones first.
fn best(values: impl Iterator<Item = f32>) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = values.enumerate().collect();
    let order = |left: &(usize, f32), right: &(usize, f32)| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0));
    if ranked.len() > BEST {
        ranked.select_nth_unstable_by(BEST - 1, order);
        ranked.truncate(BEST);
    }
    ranked.sort_unstable_by(order);
    ranked
}

/// A span of the context in characters, and its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    first: u32,
    end: u32,
    start_logit: f32,
    end_logit: f32,
}

/// What the windows of one example say.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Start and end logit of "no answer" in the window that scores it least: all of them must want it.
    null: Option<(f32, f32)>,
    best: Option<Span>,
    /// All spans that were looked at, in order.
    spans: Vec<Span>,
}

impl Span {
    fn score(&self) -> f32 {
        self.start_logit + self.end_logit
    }
}

impl Decoder {
    /// Sums are in f32, as the released code has them, so that ties and the threshold fall alike. Of equal spans the
    /// first stays: an earlier window, then a better rank of the start, then of the end.
    fn add(&mut self, context: &Range<usize>, offsets: &[(u32, u32)], cls_index: usize, logits: &[f32]) {
        let null = (logits[2 * cls_index], logits[2 * cls_index + 1]);
        self.null = Some(self.null.map_or(null, |least| if null.0 + null.1 < least.0 + least.1 { null } else { least }));
        let ends = best(column(logits, 1).copied());
        for (start, start_logit) in best(column(logits, 0).copied()) {
            for &(end, end_logit) in &ends {
                if !context.contains(&start) || !context.contains(&end) || end < start || end - start >= LONGEST_ANSWER {
                    continue;
                }
                let span = Span { first: offsets[start - context.start].0, end: offsets[end - context.start].1, start_logit, end_logit };
                if span.first < span.end {
                    self.spans.push(span);
                    if self.best.is_none_or(|best| span.score() > best.score()) {
                        self.best = Some(span);
                    }
                }
            }
        }
    }

    /// By how much "no answer" scores above the best span; with no span at all, its own score.
    fn null_odds(&self) -> Option<f32> {
        let null = self.null.map(|(start, end)| start + end)?;
        Some(self.best.map_or(null, |span| null - span.start_logit - span.end_logit))
    }

    /// The answer's characters; None: no answer. `threshold`: the odds above which no answer is given, where none may be.
    fn answer(&self, threshold: Option<f32>) -> Option<Range<usize>> {
        let span = self.best?;
        let refused = threshold.zip(self.null_odds()).is_some_and(|(threshold, odds)| odds > threshold);
        (!refused).then_some(span.first as usize..span.end as usize)
    }

    /// The best different spans and, where it is allowed, "no answer" (None), best first, with start and end logit. "No
    /// answer" is always among them.
    fn ranking(&self, count: usize, no_answer: bool) -> Vec<(Option<Range<usize>>, f32, f32)> {
        let mut spans = self.spans.clone();
        spans.sort_by(|left, right| right.score().total_cmp(&left.score()));
        let mut ranking: Vec<(Option<Range<usize>>, f32, f32)> = Vec::new();
        let null = self.null.filter(|_| no_answer);
        for span in spans {
            let range = Some(span.first as usize..span.end as usize);
            if ranking.len() == count - usize::from(null.is_some()) {
                break;
            }
            if ranking.iter().all(|(known, ..)| *known != range) {
                ranking.push((range, span.start_logit, span.end_logit));
            }
        }
        if let Some((start, end)) = null {
            let at = ranking.iter().take_while(|(_, first, last)| first + last >= start + end).count();
            ranking.insert(at, (None, start, end));
        }
        ranking
    }
}

/// What the windows of an example say.
fn decode(encoding: &Encoding, features: Range<usize>, logits: &[Vec<f32>]) -> Decoder {
    let mut decoder = Decoder::default();
    for feature in features {
        if let Source::Window { context, offsets, cls_index } = encoding.source(feature) {
            decoder.add(context, offsets, *cls_index, &logits[feature]);
        }
    }
    decoder
}

/// Characters of the context; no text for no answer.
fn text(example: &Example, span: Option<Range<usize>>) -> String {
    match (&example.content, span) {
        (Content::Question { context, .. }, Some(span)) => context.chars().skip(span.start).take(span.len()).collect(),
        _ => String::new(),
    }
}

/// The text of the best span; empty where no span is possible, or where there may be no answer and its odds are above the
/// threshold.
pub(super) fn predict(
    example: &Example,
    threshold: Option<f32>,
    encoding: &Encoding,
    features: Range<usize>,
    logits: &[Vec<f32>],
) -> Outcome {
    Outcome::Text(text(example, decode(encoding, features, logits).answer(threshold)))
}

/// By how much "no answer" scores above the best answer.
pub(super) fn null_odds(prediction: &Prediction) -> Option<f32> {
    decode(prediction.encoding, prediction.features.clone(), prediction.logits).null_odds()
}

/// The best answers, best first, with their probabilities among each other.
pub(super) fn ranking_json(prediction: &Prediction, count: usize) -> Value {
    let decoder = decode(prediction.encoding, prediction.features.clone(), prediction.logits);
    let ranking = decoder.ranking(count, prediction.no_answer);
    let score = |(_, start, end): &(Option<Range<usize>>, f32, f32)| f64::from(start + end);
    let largest = ranking.first().map_or(0.0, score);
    let total: f64 = ranking.iter().map(|answer| (score(answer) - largest).exp()).sum();
    let answer = |answer: &(Option<Range<usize>>, f32, f32)| {
        json!({
            "text": text(prediction.example, answer.0.clone()),
            "probability": (score(answer) - largest).exp() / total,
            "start_logit": number(answer.1),
            "end_logit": number(answer.2),
        })
    };
    ranking.iter().map(answer).collect()
}

/// The threshold of the odds with the best F1 over labelled examples; None without examples. Every odds of the data is
/// tried, and a value below all of them; of equal ones the least is taken.
pub(super) fn best_threshold(examples: &[Example], encoding: &Encoding, logits: &[Vec<f32>]) -> Option<f32> {
    let mut gains: Vec<(f32, f64)> = Vec::new();
    for (index, example) in examples.iter().enumerate() {
        let Content::Question { answers: Some(answers), .. } = &example.content else { continue };
        let decoder = decode(encoding, encoding.features_of(index), logits);
        let Some(odds) = decoder.null_odds() else { continue };
        let answers = || answers.iter().map(|answer| answer.text.as_str());
        let score = |text: &str| squad::score(Edition::Two, answers(), text).f1;
        gains.push((odds, score(&text(example, decoder.answer(None))) - score("")));
    }
    gains.sort_by(|left, right| left.0.total_cmp(&right.0));
    let (mut sum, mut best) = (0.0, (0.0, gains.first()?.0.next_down()));
    for (index, (odds, gain)) in gains.iter().enumerate() {
        sum += gain;
        // Questions of the same odds are answered together.
        if gains.get(index + 1).is_none_or(|next| next.0 > *odds) && sum > best.0 {
            best = (sum, *odds);
        }
    }
    Some(best.1)
}

/// The windows of an example with what is asked for.
pub(super) fn features_json(prediction: &Prediction, with: &With) -> Value {
    let window = |feature: usize| {
        let mut fields = Map::new();
        if with.logits {
            let logits = &prediction.logits[feature];
            fields.insert("start_logits".into(), numbers(column(logits, 0)));
            fields.insert("end_logits".into(), numbers(column(logits, 1)));
        }
        if with.input_ids {
            fields.insert(
                "input_ids".into(),
                prediction.encoding.set.sequences_of(feature).iter().flat_map(|sequence| &sequence.ids).copied().collect(),
            );
        }
        json!(fields)
    };
    prediction.features.clone().map(window).collect()
}

/// Exact match and F1 as the script of the data's edition has them; where there may be no answer and both kinds of
/// questions are there, of each kind too, as the script of 2.0 prints them.
pub(super) fn score(examples: &[Example], predictions: &[Prediction], no_answer: bool) -> Scores {
    let edition = if no_answer { Edition::Two } else { Edition::One };
    // Of questions with an answer, and without.
    let mut sums = [(0.0, 0.0, 0usize); 2];
    for (example, prediction) in examples.iter().zip(predictions) {
        if let (Content::Question { answers: Some(answers), .. }, Outcome::Text(text)) = (&example.content, &prediction.outcome) {
            let score = squad::score(edition, answers.iter().map(|answer| answer.text.as_str()), text);
            let (exact_match, f1, count) = &mut sums[usize::from(answers.is_empty())];
            *exact_match += score.exact_match;
            *f1 += score.f1;
            *count += 1;
        }
    }
    let [has, none] = sums;
    let total = examples.len() as f64;
    let mut scores = Scores::new([("exact_match", (has.0 + none.0) / total), ("f1", (has.1 + none.1) / total)]);
    if no_answer && has.2 > 0 && none.2 > 0 {
        let of = |(exact_match, f1, count): (f64, f64, usize)| (exact_match / count as f64, f1 / count as f64);
        let (has, none) = (of(has), of(none));
        let kinds = [("HasAns_exact", has.0), ("HasAns_f1", has.1), ("NoAns_exact", none.0), ("NoAns_f1", none.1)];
        scores.0.extend(Scores::new(kinds).0);
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[CLS] q q [SEP] c c c [SEP]`, context characters 10..22.
    fn window() -> Window {
        Window { ids: vec![1; 8], types: vec![], context: 4..7, offsets: vec![(10, 13), (14, 18), (18, 22)], cls_index: 0 }
    }

    #[track_caller]
    fn check_targets(text: &str, start: usize, expected: [usize; 2]) {
        assert_eq!(targets(&window(), Some(&Answer { text: text.to_string(), start })), expected);
    }

    #[test]
    fn an_answer_becomes_the_tokens_around_it() {
        check_targets("abcd", 14, [5, 5]);
        check_targets("abc", 15, [5, 5]);
        check_targets("abc efgh", 10, [4, 5]);
        // From the blank between two tokens: the token before it, as the released code has it.
        check_targets(" efgh", 13, [4, 5]);
        check_targets("ijkl", 18, [6, 6]);
    }

    #[test]
    fn an_answer_that_is_not_wholly_inside_becomes_the_classification_token() {
        check_targets("9abc", 9, [0, 0]);
        check_targets("ijklm", 18, [0, 0]);
        assert_eq!(targets(&window(), None), [0, 0]);
    }

    /// Logits that are 0 but at the given tokens.
    fn logits(tokens: usize, starts: &[(usize, f32)], ends: &[(usize, f32)]) -> Vec<f32> {
        let mut logits = vec![0.0; 2 * tokens];
        starts.iter().for_each(|&(token, value)| logits[2 * token] = value);
        ends.iter().for_each(|&(token, value)| logits[2 * token + 1] = value);
        logits
    }

    /// Tokens of one character each in `[CLS] c ... c [SEP]`, the first one at `first`.
    fn add(decoder: &mut Decoder, tokens: usize, first: u32, logits: &[f32]) {
        let offsets: Vec<(u32, u32)> = (0..tokens as u32 - 2).map(|index| (first + index, first + index + 1)).collect();
        decoder.add(&(1..tokens - 1), &offsets, 0, logits);
    }

    #[test]
    fn only_spans_inside_the_context_of_up_to_thirty_tokens_count() {
        let mut decoder = Decoder::default();
        // The best start with the best end is 31 tokens long; the second best end is one nearer; the last token is no context.
        add(&mut decoder, 50, 0, &logits(50, &[(2, 9.0)], &[(32, 8.0), (31, 5.0), (1, 7.0), (49, 9.0)]));
        assert_eq!(decoder.answer(None), Some(1..31));
    }

    #[test]
    fn the_best_of_all_windows_and_of_equal_ones_the_first() {
        let mut decoder = Decoder::default();
        add(&mut decoder, 6, 0, &logits(6, &[(2, 3.0)], &[(3, 3.0)]));
        add(&mut decoder, 6, 100, &logits(6, &[(1, 2.0)], &[(1, 4.0)]));
        assert_eq!(decoder.answer(None), Some(1..3));
        add(&mut decoder, 6, 200, &logits(6, &[(1, 2.0)], &[(1, 4.5)]));
        assert_eq!(decoder.answer(None), Some(200..201));
    }

    #[test]
    fn no_answer_wins_only_where_all_windows_score_it_above_the_best_span() {
        let mut decoder = Decoder::default();
        add(&mut decoder, 6, 0, &logits(6, &[(0, 5.0), (2, 3.0)], &[(0, 2.0), (3, 3.0)]));
        assert_eq!(decoder.answer(None), Some(1..3));
        assert_eq!(decoder.answer(Some(0.0)), None);
        // Equal to the span's 6: not above it.
        add(&mut decoder, 6, 50, &logits(6, &[(0, 5.0)], &[(0, 1.0)]));
        assert_eq!(decoder.answer(Some(0.0)), Some(1..3));
    }

    #[test]
    fn the_threshold_decides_whether_there_is_an_answer() {
        let mut decoder = Decoder::default();
        add(&mut decoder, 6, 0, &logits(6, &[(0, 5.0), (2, 3.0)], &[(0, 2.0), (3, 3.0)]));
        assert_eq!(decoder.null_odds(), Some(1.0));
        assert_eq!((decoder.answer(Some(1.0)), decoder.answer(Some(0.5))), (Some(1..3), None));
    }

    #[test]
    fn the_ranking_holds_different_spans_and_always_no_answer() {
        let mut decoder = Decoder::default();
        for _ in 0..2 {
            add(&mut decoder, 5, 0, &logits(5, &[(1, 4.0), (2, 2.0)], &[(2, 3.0), (3, 1.0)]));
        }
        assert_eq!(decoder.ranking(3, false), [(Some(0..2), 4.0, 3.0), (Some(0..3), 4.0, 1.0), (Some(1..2), 2.0, 3.0)]);
        assert_eq!(decoder.ranking(2, true), [(Some(0..2), 4.0, 3.0), (None, 0.0, 0.0)]);
        add(&mut decoder, 5, 50, &logits(5, &[], &[]));
        assert_eq!(decoder.ranking(1, true), [(None, 0.0, 0.0)]);
    }

    /// Questions about "xy", one window each: the odds of no answer, and whether "x" (which the spans say) is right.
    fn best_of(questions: &[(f32, bool)]) -> f32 {
        let window = || Item {
            sequences: Vec::new(),
            targets: Vec::new(),
            source: Source::Window { context: 1..3, offsets: vec![(0, 1), (1, 2)], cls_index: 0 },
        };
        let answers = |right| if right { vec![Answer { text: "x".into(), start: 0 }] } else { Vec::new() };
        let content =
            |right| Content::Question { id: String::new(), question: "q".into(), context: "xy".into(), answers: Some(answers(right)) };
        let examples: Vec<Example> = questions.iter().map(|&(_, right)| Example::new(content(right), String::new())).collect();
        let encoded = questions.iter().map(|_| EncodedExample { items: vec![window()], truncated: false }).collect();
        // The span scores 2, no answer its odds more.
        let logits: Vec<Vec<f32>> = questions.iter().map(|&(odds, _)| logits(4, &[(0, odds), (1, 1.0)], &[(0, 2.0), (1, 1.0)])).collect();
        best_threshold(&examples, &Encoding::new(encoded), &logits).unwrap()
    }

    #[test]
    fn the_tuned_threshold_has_the_best_f1() {
        assert_eq!(best_of(&[(-2.0, true), (3.0, false), (-1.0, true), (1.0, false)]), -1.0);
        // One wrong answer on the way to two right ones.
        assert_eq!(best_of(&[(-2.0, false), (0.5, true), (0.25, true), (1.0, false)]), 0.5);
        // Nothing is worth an answer, or only together with what is not.
        assert!(best_of(&[(-2.0, false), (3.0, false)]) < -2.0);
        assert!(best_of(&[(1.0, true), (1.0, false)]) < 1.0);
    }
}
