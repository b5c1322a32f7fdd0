//! A packed batch: sequences one after another with row offsets (cu_seqlens), nothing padded, everything int32 as the
//! backend reads it. Reused from step to step.

use super::{FeatureSet, Grouping, Sequence};
use crate::model::{MaskKind, Positions, Specification};
use anyhow::{Context, Result, ensure};

/// Rows and what a dropout mask is drawn by: see [`crate::backend::Rows`].
#[derive(Clone, Debug, Default)]
pub struct RowArrays {
    pub ordinals: Vec<i32>,
    pub tokens: Vec<i32>,
    /// B + 1 offsets.
    pub offsets: Vec<i32>,
}

impl RowArrays {
    /// A sequence of one token.
    pub fn push_token(&mut self, ordinal: i32, token: i32) {
        self.ordinals.push(ordinal);
        self.tokens.push(token);
        self.end_sequence();
    }

    fn clear(&mut self) {
        self.ordinals.clear();
        self.tokens.clear();
        self.offsets.clear();
        self.offsets.push(0);
    }

    fn end_sequence(&mut self) {
        self.offsets.push(self.tokens.len() as i32);
    }

    pub fn count(&self) -> usize {
        self.tokens.len()
    }

    /// Rows of the sequence that has most.
    pub fn longest(&self) -> usize {
        self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The head that it goes through, among the engine's.
    pub head: usize,
    pub ids: Vec<i32>,
    pub positions: Vec<i32>,
    pub types: Vec<i32>,
    /// Every token.
    pub all: RowArrays,
    /// The tokens that the head reads, and where they are among all.
    pub readout: RowArrays,
    pub readout_rows: Vec<i32>,
    pub readout_positions: Vec<i32>,
    /// One a sequence: [`crate::backend::Attention::separators`]; empty where every token sees every other.
    pub separators: Vec<i32>,
    /// \[start, length, stride, target\] of every logit group: [`crate::backend::LogitGroup`].
    pub groups: Vec<i32>,
    /// Where rows are to predict tokens: the token of each, -1 for none.
    pub row_targets: Vec<i32>,
    /// Groups (or rows that are to predict tokens) that have a target.
    pub targets: usize,
    /// Rows of logits of each feature: its head rows, or its sequences where these are scored.
    pub feature_rows: Vec<usize>,
}

/// How a model and its head want a batch.
#[derive(Clone, Debug)]
pub struct Packing {
    pub spec: Specification,
    /// Added to the positions of all tokens (the prefix length where positions are shifted, or the prompt's).
    pub shift: usize,
    /// Rows of a prompt in front of each sequence: tokens to everything but the head, with ids -1, -2, ...
    pub prompt: usize,
    /// The head, among the engine's.
    pub head: usize,
    pub grouping: Grouping,
    /// Columns of the head's logits.
    pub columns: usize,
}

impl Batch {
    /// Packs features; `first_ordinal` counts the sequences of the optimizer step before them.
    /// Errors: an index that lies outside the table that the model looks it up in; a sequence without tokens.
    pub fn pack(&mut self, packing: &Packing, set: &FeatureSet, features: &[usize], first_ordinal: usize) -> Result<()> {
        self.clear();
        self.head = packing.head;
        let mut ordinal = first_ordinal as i32;
        for &feature in features {
            let (first_row, first_sequence) = (self.readout.count(), self.readout.offsets.len() - 1);
            for sequence in set.sequences_of(feature) {
                check(packing, sequence).with_context(|| format!("example {}", set.features[feature].example))?;
                let (start, prompt) = (self.ids.len() + packing.prompt, packing.prompt as u32);
                self.ids.extend((1..=packing.prompt as i32).map(|row| -row));
                self.ids.extend(sequence.ids.iter().map(|&id| id as i32));
                self.push_positions(packing, sequence);
                self.all.tokens.extend(0..(packing.prompt + sequence.ids.len()) as i32);
                self.all.ordinals.resize(self.ids.len(), ordinal);
                self.all.end_sequence();
                self.readout.tokens.extend(sequence.readout.iter().map(|&token| (prompt + token) as i32));
                self.readout_rows.extend(sequence.readout.iter().map(|&token| start as i32 + token as i32));
                self.readout_positions.extend(sequence.readout.iter().map(|&token| self.positions[start + token as usize]));
                self.readout.ordinals.resize(self.readout.count(), ordinal);
                self.readout.end_sequence();
                match packing.spec.mask {
                    MaskKind::Full => {}
                    MaskKind::Causal => self.separators.push(0),
                    MaskKind::Separator => self.separators.push((prompt + sequence.separator) as i32),
                }
                if packing.grouping == Grouping::PerSequence {
                    ensure!(sequence.predicts.len() == sequence.readout.len(), "a sequence is scored by every row that is read");
                    self.push_row_targets(packing, sequence.predicts.iter().map(|&token| token as i32))?;
                }
                ordinal += 1;
            }
            let targets = &set.features[feature].targets;
            match packing.grouping {
                Grouping::PerToken => {
                    let rows = self.readout.count() - first_row;
                    self.push_row_targets(packing, (0..rows).map(|row| targets.get(row).copied().unwrap_or(-1).max(-1)))?;
                    self.targets += set.targets(feature);
                    self.feature_rows.push(rows);
                }
                Grouping::PerSequence => {
                    self.push_groups(packing, first_sequence, self.readout.offsets.len() - 1 - first_sequence, targets)?;
                }
                Grouping::PerRow | Grouping::PerColumn => {
                    self.push_groups(packing, first_row, self.readout.count() - first_row, targets)?;
                }
            }
        }
        ensure!(
            i32::try_from(self.readout.count() * packing.columns).is_ok(),
            "a batch of more than 2^31 logits; use a smaller --batch-size"
        );
        Ok(())
    }

    pub fn clear(&mut self) {
        let lists = [&mut self.ids, &mut self.positions, &mut self.types, &mut self.readout_rows, &mut self.separators, &mut self.groups];
        lists.into_iter().for_each(Vec::clear);
        self.readout_positions.clear();
        self.row_targets.clear();
        self.all.clear();
        self.readout.clear();
        self.feature_rows.clear();
        self.targets = 0;
    }

    /// The head reads every token, and none has a target.
    pub fn read_every_token(&mut self) {
        self.readout = self.all.clone();
        self.readout_rows = (0..self.ids.len() as i32).collect();
        self.readout_positions.clone_from(&self.positions);
        self.row_targets = vec![-1; self.ids.len()];
    }

    /// Positions and token types, or blocks, of a sequence whose ids are here.
    fn push_positions(&mut self, packing: &Packing, sequence: &Sequence) {
        let spec = &packing.spec;
        if let Positions::TwoDimensional { .. } = spec.positions {
            let text = sequence.blank.map_or(sequence.ids.len(), |_| sequence.separator as usize);
            let (answer, prompt) = (sequence.ids.len() - text, packing.prompt);
            self.positions.extend(0..(prompt + text) as i32);
            self.positions.resize(self.ids.len(), (prompt as u32 + sequence.blank.unwrap_or(0)) as i32);
            self.types.resize(self.ids.len() - answer, 0);
            self.types.extend(1..=answer as i32);
            return;
        }
        self.positions.extend((0..packing.prompt).map(|row| spec.position_of(row, 0) as i32));
        self.types.resize(self.positions.len(), 0);
        self.positions.extend(spec.position_ids(&sequence.ids, packing.shift).map(|position| position as i32));
        self.types.extend(sequence.types.iter().map(|&kind| kind as i32));
        self.types.resize(self.ids.len(), 0);
    }

    fn push_row_targets(&mut self, packing: &Packing, targets: impl Iterator<Item = i32>) -> Result<()> {
        let vocabulary = packing.spec.vocabulary;
        for target in targets {
            ensure!(target < vocabulary as i32, "token {target} is to be predicted, the model has {vocabulary}");
            self.row_targets.push(target);
        }
        Ok(())
    }

    fn push_groups(&mut self, packing: &Packing, first_row: usize, rows: usize, targets: &[i32]) -> Result<()> {
        let columns = packing.columns;
        self.feature_rows.push(rows);
        let first = first_row * columns;
        for (i, (start, length, stride)) in packing.grouping.groups(rows, columns).enumerate() {
            let target = targets.get(i).copied().unwrap_or(-1).max(-1);
            ensure!(target < length as i32, "target {target} of {length} outputs");
            self.targets += usize::from(target >= 0);
            self.groups.extend([(first + start) as i32, length as i32, stride as i32, target]);
        }
        Ok(())
    }

    pub fn sequences(&self) -> usize {
        self.all.offsets.len() - 1
    }
}

/// Kernels look rows up without asking; here they are asked once.
fn check(packing: &Packing, sequence: &Sequence) -> Result<()> {
    let Packing { spec, shift, prompt, .. } = packing;
    let Sequence { ids, types, readout, separator, blank, .. } = sequence;
    ensure!(!ids.is_empty(), "a text without a single token; the tokenizer adds no special tokens to it");
    ensure!(types.is_empty() || types.len() == ids.len(), "{} tokens with {} token types", ids.len(), types.len());
    for (what, values, limit) in
        [("token id", ids, spec.vocabulary), ("token type", types, spec.token_types.max(1)), ("row", readout, ids.len())]
    {
        if let Some(value) = values.iter().find(|&&value| value as usize >= limit) {
            anyhow::bail!("{what} {value} is outside the {limit} that there are");
        }
    }
    ensure!(readout.windows(2).all(|pair| pair[0] < pair[1]), "the rows that the head reads do not ascend");
    ensure!(*separator as usize <= ids.len(), "separator {separator} of {} tokens", ids.len());
    ensure!(blank.is_none_or(|blank| blank < *separator), "the blank is not in the text in front of its answer");
    ensure!(ids.len() + prompt <= spec.longest_sequence(shift - prompt), "{} tokens need more positions than the model has", ids.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Feature;
    use crate::model::Specification;

    fn pack(sequence: Sequence, targets: Vec<i32>) -> Result<Batch> {
        pack_as(MaskKind::Full, sequence, targets)
    }

    fn pack_as(mask: MaskKind, sequence: Sequence, targets: Vec<i32>) -> Result<Batch> {
        let spec = Specification { vocabulary: 10, token_types: 2, mask, ..Specification::tiny() };
        let packing = Packing { spec, shift: 3, prompt: 0, head: 0, grouping: Grouping::PerRow, columns: 2 };
        let feature = Feature { example: 4, first_sequence: 0, sequences: 1, targets };
        let set = FeatureSet { sequences: vec![sequence], features: vec![feature], examples: 5 };
        let mut batch = Batch::default();
        batch.pack(&packing, &set, &[0], 7)?;
        Ok(batch)
    }

    #[test]
    fn a_batch_is_packed() {
        let batch =
            pack(Sequence { ids: vec![5, 6, 7], types: vec![0, 1, 1], readout: vec![0, 2], ..Sequence::default() }, vec![1, -100]).unwrap();
        assert_eq!((batch.ids, batch.types, batch.positions), (vec![5, 6, 7], vec![0, 1, 1], vec![3, 4, 5]));
        assert_eq!((batch.all.ordinals, batch.all.offsets, batch.readout_rows), (vec![7; 3], vec![0, 3], vec![0, 2]));
        assert_eq!(batch.readout_positions, [3, 5]);
        assert_eq!((batch.groups, batch.targets), (vec![0, 2, 1, 1, 2, 2, 1, -1], 1));
    }

    #[test]
    fn a_prompt_is_rows_in_front() {
        let spec = Specification { vocabulary: 10, token_types: 2, mask: MaskKind::Separator, ..Specification::tiny() };
        let packing = Packing { spec, shift: 2, prompt: 2, head: 0, grouping: Grouping::PerRow, columns: 2 };
        let sequence = Sequence { ids: vec![5, 6, 7], types: vec![0, 1, 1], readout: vec![0, 2], separator: 1, ..Sequence::default() };
        let feature = |first_sequence| Feature { first_sequence, sequences: 1, ..Feature::default() };
        let long = Sequence { ids: vec![1; 63], readout: vec![0], ..Sequence::default() };
        let set = FeatureSet {
            sequences: vec![sequence.clone(), sequence, long],
            features: vec![feature(0), feature(1), feature(2)],
            examples: 3,
        };
        let mut batch = Batch::default();
        batch.pack(&packing, &set, &[0, 1], 0).unwrap();
        assert_eq!(
            (&batch.ids[..5], &batch.types[5..], &batch.positions[5..]),
            (&[-1, -2, 5, 6, 7][..], &[0, 0, 0, 1, 1][..], &[0, 1, 2, 3, 4][..])
        );
        assert_eq!((&batch.all.tokens[5..], &batch.all.offsets, &batch.separators), (&[0, 1, 2, 3, 4][..], &vec![0, 5, 10], &vec![3, 3]));
        assert_eq!(
            (&batch.readout_rows, &batch.readout.tokens, &batch.readout_positions),
            (&vec![2, 4, 7, 9], &vec![2, 4, 2, 4], &vec![2, 4, 2, 4])
        );
        assert!(format!("{:#}", batch.pack(&packing, &set, &[2], 0).unwrap_err()).contains("63 tokens need more positions"));
    }

    #[test]
    fn separators_are_the_masks() {
        let sequence = Sequence { ids: vec![5, 6, 7], readout: vec![0], separator: 2, ..Sequence::default() };
        for (mask, expected) in [(MaskKind::Full, vec![]), (MaskKind::Causal, vec![0]), (MaskKind::Separator, vec![2])] {
            assert_eq!(pack_as(mask, sequence.clone(), vec![]).unwrap().separators, expected);
        }
        let message = format!("{:#}", pack(Sequence { separator: 4, ..sequence }, vec![]).unwrap_err());
        assert!(message.contains("separator 4 of 3 tokens"), "{message}");
    }

    #[test]
    fn answers_have_two_dimensional_positions() {
        let spec = Specification {
            positions: Positions::TwoDimensional { table: 65 },
            mask: MaskKind::Separator,
            token_types: 0,
            ..Specification::tiny()
        };
        let packing = Packing { spec: spec.clone(), shift: 0, prompt: 0, head: 0, grouping: Grouping::PerSequence, columns: 1 };
        let frame =
            Sequence { ids: vec![5, 6, 7, 8, 9], separator: 3, blank: Some(1), readout: vec![3, 4], predicts: vec![2, 3], types: vec![] };
        let whole = Sequence { readout: vec![2], predicts: vec![4], ..Sequence::text(vec![5, 6, 7], vec![], vec![]) };
        let feature = Feature { sequences: 2, targets: vec![1], ..Feature::default() };
        let set = FeatureSet { sequences: vec![frame, whole], features: vec![feature], examples: 1 };
        let mut batch = Batch::default();
        batch.pack(&packing, &set, &[0], 0).unwrap();
        assert_eq!(
            (batch.positions, batch.types, batch.separators),
            (vec![0, 1, 2, 1, 1, 0, 1, 2], vec![0, 0, 0, 1, 2, 0, 0, 0], vec![3, 3])
        );
        assert_eq!((batch.row_targets, batch.groups, batch.targets, batch.feature_rows), (vec![2, 3, 4], vec![0, 2, 1, 1], 1, vec![2]));
    }

    #[test]
    fn rows_that_predict_tokens() {
        let spec = Specification { mask: MaskKind::Causal, ..Specification::tiny() };
        let packing = Packing { spec: spec.clone(), shift: 0, prompt: 0, head: 0, grouping: Grouping::PerToken, columns: 0 };
        let pack = |targets: Vec<i32>| {
            let sequence = Sequence { ids: vec![1, 2, 3], readout: vec![1, 2], ..Sequence::default() };
            let feature = Feature { sequences: 1, targets, ..Feature::default() };
            let mut batch = Batch::default();
            batch.pack(&packing, &FeatureSet { sequences: vec![sequence], features: vec![feature], examples: 1 }, &[0], 0).map(|()| batch)
        };
        let batch = pack(vec![3, -100]).unwrap();
        assert_eq!((batch.row_targets, batch.targets, batch.feature_rows, batch.groups), (vec![3, -1], 1, vec![2], vec![]));
        assert_eq!(pack(vec![]).unwrap().row_targets, [-1, -1]);
        assert!(pack(vec![10, 0]).unwrap_err().to_string().contains("token 10"));
    }

    #[test]
    fn what_lies_outside_the_tables_is_refused() {
        let sequence = |ids: Vec<u32>, types: Vec<u32>, readout: Vec<u32>| Sequence { ids, types, readout, ..Sequence::default() };
        for (bad, expected) in [
            (sequence(vec![10], vec![], vec![0]), "token id 10"),
            (sequence(vec![1], vec![2], vec![0]), "token type 2"),
            (sequence(vec![1], vec![], vec![1]), "row 1"),
            (sequence(vec![1, 2], vec![], vec![1, 0]), "do not ascend"),
            (sequence(vec![], vec![], vec![0]), "without a single token"),
            (sequence(vec![1; 62], vec![], vec![0]), "positions"),
        ] {
            let message = format!("{:#}", pack(bad, vec![]).unwrap_err());
            assert!(message.starts_with("example 4: ") && message.contains(expected), "{message}");
        }
        let message = pack(sequence(vec![1], vec![], vec![0]), vec![2]).unwrap_err().to_string();
        assert!(message.contains("target 2 of 2"), "{message}");
    }
}
