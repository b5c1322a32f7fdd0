//! Entity-level precision, recall and F1 of tag sequences, as seqeval 1.2.2 computes them by default: lenient, in the
//! manner of conlleval, so that any of BIO, IOB1, IOB2 and BIOES is read, and an `I-` that follows no `B-` opens an
//! entity of its own.

use super::ratio;
use std::collections::{BTreeMap, HashSet};

/// An entity: its type and its first and last position in the concatenation of all sentences, each followed by one
/// position that no sentence has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entity<'a> {
    pub kind: &'a str,
    pub first: usize,
    pub last: usize,
}

/// Entities of the data, of the predictions, and those that are in both with type and both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntityCounts {
    pub gold: u64,
    pub predicted: u64,
    pub correct: u64,
}

impl EntityCounts {
    pub fn precision(&self) -> f64 {
        ratio(self.correct, self.predicted)
    }

    pub fn recall(&self) -> f64 {
        ratio(self.correct, self.gold)
    }

    /// 0 where precision and recall both are.
    pub fn f1(&self) -> f64 {
        let (precision, recall) = (self.precision(), self.recall());
        if self.correct == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
    }
}

/// A tag's first letter and its type: what follows the first `-` behind that letter, or all that follows the letter
/// where there is none; `_` where that is empty.
fn parse(tag: &str) -> (char, &str) {
    let mut letters = tag.chars();
    let letter = letters.next().unwrap_or('O');
    let rest = letters.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (letter, if kind.is_empty() { "_" } else { kind })
}

/// Whether an entity ends between two neighbouring words.
fn ends(previous: (char, &str), current: (char, &str)) -> bool {
    match (previous.0, current.0) {
        ('E' | 'S', _) | ('B' | 'I', 'B' | 'S' | 'O') => true,
        (letter, _) => !matches!(letter, 'O' | '.') && previous.1 != current.1,
    }
}

/// Whether an entity starts with the second of two neighbouring words.
fn starts(previous: (char, &str), current: (char, &str)) -> bool {
    match (previous.0, current.0) {
        (_, 'B' | 'S') | ('E' | 'S' | 'O', 'E' | 'I') => true,
        (_, letter) => !matches!(letter, 'O' | '.') && previous.1 != current.1,
    }
}

/// Entities of tagged sentences in order. Sentences are read in one pass with an `O` behind each, and the state is
/// carried across that: for tags outside the known schemes this gives seqeval's result to the letter.
pub fn entities<'a, S>(sentences: impl IntoIterator<Item = S>) -> Vec<Entity<'a>>
where
    S: IntoIterator<Item = &'a str>,
{
    let mut found = Vec::new();
    let (mut previous, mut first, mut position) = (('O', ""), 0, 0);
    let mut step = |tag: &'a str| {
        let current = parse(tag);
        if ends(previous, current) {
            found.push(Entity { kind: previous.1, first, last: position - 1 });
        }
        if starts(previous, current) {
            first = position;
        }
        previous = current;
        position += 1;
    };
    for sentence in sentences {
        sentence.into_iter().for_each(&mut step);
        step("O");
    }
    // The end of the data counts as one more word outside: it closes what a tag of no known scheme left open.
    step("O");
    found
}

/// Counts of every type, in the order of their names. Both iterators give the same sentences with the same lengths.
pub fn by_type<'a, S, T>(gold: impl IntoIterator<Item = S>, predicted: impl IntoIterator<Item = T>) -> BTreeMap<&'a str, EntityCounts>
where
    S: IntoIterator<Item = &'a str>,
    T: IntoIterator<Item = &'a str>,
{
    let gold: HashSet<Entity> = entities(gold).into_iter().collect();
    let predicted: HashSet<Entity> = entities(predicted).into_iter().collect();
    let mut types: BTreeMap<&str, EntityCounts> = BTreeMap::new();
    for entity in &gold {
        types.entry(entity.kind).or_default().gold += 1;
    }
    for entity in &predicted {
        let counts = types.entry(entity.kind).or_default();
        counts.predicted += 1;
        counts.correct += u64::from(gold.contains(entity));
    }
    types
}

/// Counts over all types, for micro-averaged scores.
pub fn overall(types: &BTreeMap<&str, EntityCounts>) -> EntityCounts {
    types.values().fold(EntityCounts::default(), |sum, counts| EntityCounts {
        gold: sum.gold + counts.gold,
        predicted: sum.predicted + counts.predicted,
        correct: sum.correct + counts.correct,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(sentences: &[&'static str]) -> Vec<Vec<&'static str>> {
        sentences.iter().map(|sentence| sentence.split(' ').collect()).collect()
    }

    /// Expected: seqeval.metrics.sequence_labeling.get_entities.
    #[track_caller]
    fn check(sentences: &[&'static str], expected: &[(&str, usize, usize)]) {
        let found: Vec<_> = entities(words(sentences)).into_iter().map(|entity| (entity.kind, entity.first, entity.last)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_inside_tag_without_a_beginning_opens_an_entity() {
        check(
            &["B-PER I-PER O B-LOC", "I-ORG I-ORG B-ORG I-LOC"],
            &[("PER", 0, 1), ("LOC", 3, 3), ("ORG", 5, 6), ("ORG", 7, 7), ("LOC", 8, 8)],
        );
    }

    #[test]
    fn single_and_end_tags_close_an_entity() {
        check(&["S-PER B-LOC E-LOC I-LOC O E-X"], &[("PER", 0, 0), ("LOC", 1, 2), ("LOC", 3, 3), ("X", 5, 5)]);
    }

    #[test]
    fn tags_of_no_scheme_are_read_as_seqeval_reads_them() {
        check(&["PER PER O X X", "X O B I- B-A-B"], &[("ER", 0, 1), ("_", 8, 9), ("A-B", 10, 10)]);
    }

    /// Expected: precision_score, recall_score, f1_score of seqeval.metrics.
    #[test]
    fn micro_averages_and_counts_of_types() {
        let gold = words(&["B-PER I-PER O B-LOC O", "B-ORG O B-PER", "O O", "B-LOC I-LOC I-LOC"]);
        let predicted = words(&["B-PER I-PER O I-LOC O", "B-ORG I-ORG B-PER", "B-LOC O", "B-LOC I-LOC B-LOC"]);
        let types = by_type(gold, predicted);
        let sum = overall(&types);
        assert_eq!((sum.precision(), sum.recall(), sum.f1()), (0.42857142857142855, 0.6, 0.5));
        let listed: Vec<_> = types.iter().map(|(&kind, counts)| (kind, counts.gold, counts.predicted, counts.correct)).collect();
        assert_eq!(listed, [("LOC", 2, 4, 1), ("ORG", 1, 1, 0), ("PER", 2, 2, 2)]);
    }

    /// Ten thousand documents of three sentences of random tags, well-formed and not. Expected: sums over all of them of
    /// seqeval 1.2.2's get_entities (data, predictions, both) and of precision + 2 recall + 4 f1, micro-averaged and by
    /// type (times the type's place in the alphabet).
    #[test]
    fn random_tags_score_as_in_seqeval() {
        let schemes: [(&str, [u64; 3], f64, f64); 5] = [
            ("O O B-PER I-PER B-LOC I-LOC", [13993, 13930, 9479], 9386.504511, 26893.979322),
            ("O I-PER I-LOC B-LOC", [14459, 14543, 9667], 9281.148489, 25022.698598),
            ("O B-PER I-PER E-PER S-PER B-LOC E-LOC S-LOC I-LOC", [19387, 19407, 14204], 10240.996362, 29983.826555),
            ("O B-PER I-PER L-PER U-PER L-LOC", [12261, 12212, 7630], 8765.830345, 23742.818664),
            ("O PER X- I B O-X . b-per E B-A-B I-A-B -", [13616, 13519, 8489], 8596.056022, 58335.020052),
        ];
        let mut state = 7u64;
        let mut draw = |limit: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % limit
        };
        let weighted = |counts: &EntityCounts| counts.precision() + 2.0 * counts.recall() + 4.0 * counts.f1();
        for (tags, counts, micro, types) in schemes {
            let tags: Vec<&str> = tags.split(' ').collect();
            let mut sums = ([0; 3], 0.0, 0.0);
            for _ in 0..2000 {
                let (mut gold, mut predicted) = (Vec::new(), Vec::new());
                for _ in 0..3 {
                    let length = draw(9);
                    let sentence: Vec<&str> = (0..length).map(|_| tags[draw(tags.len())]).collect();
                    predicted.push(sentence.iter().map(|&tag| if draw(3) > 0 { tag } else { tags[draw(tags.len())] }).collect::<Vec<_>>());
                    gold.push(sentence);
                }
                let found = by_type(gold, predicted);
                let all = overall(&found);
                for (sum, count) in sums.0.iter_mut().zip([all.gold, all.predicted, all.correct]) {
                    *sum += count;
                }
                sums.1 += weighted(&all);
                sums.2 += found.values().enumerate().map(|(place, counts)| (place + 1) as f64 * weighted(counts)).sum::<f64>();
            }
            assert_eq!(sums.0, counts, "{tags:?}");
            assert!((sums.1 - micro).abs() < 1e-6 && (sums.2 - types).abs() < 1e-6, "{tags:?}: {sums:?}");
        }
    }

    #[test]
    fn no_entity_anywhere_scores_zero() {
        let none = words(&["O O", "O"]);
        let sum = overall(&by_type(none.clone(), none));
        assert_eq!((sum.precision(), sum.recall(), sum.f1()), (0.0, 0.0, 0.0));
    }
}
