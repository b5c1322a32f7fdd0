//! Forward over a whole set, and what is measured of it: shared by validation, `eval` and `predict`.

use super::cut::Size;
use super::interrupt::Interrupt;
use super::pipeline::{Contents, Pipeline};
use super::terminal::{Terminal, decimals};
use crate::data::{Example, FeatureSet, Grouping};
use crate::engine::Engine;
use crate::task::{Encoding, Prediction, Scores, Task};
use anyhow::{Result, bail};
use serde_json::{Map, Value};

/// Logits of every feature by a head, in order, rows * columns row-major; None where a signal asked to stop before the end.
pub fn forward(
    engine: &mut Engine,
    head: usize,
    set: &FeatureSet,
    batch: Size,
    terminal: &Terminal,
    interrupt: &Interrupt,
) -> Result<Option<Vec<Vec<f32>>>> {
    let features: Vec<usize> = (0..set.features.len()).collect();
    let mut logits = Vec::with_capacity(features.len());
    let mut progress = terminal.progress("evaluated", 0, features.len() as u64, false);
    let mut pipeline = Pipeline::new(engine);
    let contents = |features: &[usize]| Contents { head, features: features.to_vec(), first_ordinal: 0 };
    let mut batches = batch.batches(set, &features).into_iter().map(contents).peekable();
    while let Some(batch) = batches.next() {
        if interrupt.pending().is_some() {
            return Ok(None);
        }
        // Exact: the backends for use compute logits in f32.
        let values = pipeline.run((set, batch), batches.peek().cloned().map(|next| (set, next)), |batch| engine.forward_packed(batch))?;
        logits.extend(values.into_iter().map(|values| values.into_iter().map(|value| value as f32).collect()));
        progress.update(logits.len() as u64, String::new);
    }
    Ok(Some(logits))
}

/// The tokens that each prompt of a set goes on with, up to a number of them or to one of `ends`; None where a signal asked
/// to stop before the end.
pub fn generate(
    engine: &mut Engine,
    set: &FeatureSet,
    batch_size: usize,
    (limit, ends): (usize, &[u32]),
    terminal: &Terminal,
    interrupt: &Interrupt,
) -> Result<Option<Vec<Vec<u32>>>> {
    let features: Vec<usize> = (0..set.features.len()).collect();
    let mut texts = Vec::with_capacity(features.len());
    let mut progress = terminal.progress("generated", 0, features.len() as u64, false);
    for batch in features.chunks(batch_size) {
        if interrupt.pending().is_some() {
            return Ok(None);
        }
        texts.extend(engine.generate(set, batch, limit, ends)?);
        progress.update(texts.len() as u64, String::new);
    }
    Ok(Some(texts))
}

/// What a labelled set scores.
pub struct Evaluation {
    pub scores: Scores,
    /// Mean cross-entropy over all targets.
    pub loss: f64,
    /// What there is to say against the predictions ([`Task::warnings`]).
    pub warnings: Vec<String>,
}

impl Evaluation {
    /// Scores of logits. Logits that are not finite are an error: no score of them would mean anything.
    pub fn new(task: &Task, examples: &[Example], encoding: &Encoding, logits: &[Vec<f32>]) -> Result<Evaluation> {
        check_finite(&encoding.set, examples, logits)?;
        let predictions: Vec<Prediction> = task.predict(examples, encoding, logits);
        let scores = task.score(examples, &predictions)?;
        let loss = mean_loss(&encoding.set, task.grouping(), logits);
        let warnings = task.warnings(examples, &predictions);
        Ok(Evaluation { scores, loss, warnings })
    }

    /// Names and values, `loss` last.
    pub fn to_map(&self) -> Map<String, Value> {
        let scores = self.scores.0.iter().map(|(name, value)| (name.clone(), Value::from(*value)));
        scores.chain([("loss".to_string(), Value::from(self.loss))]).collect()
    }

    /// Names and values for a line of the terminal.
    pub fn to_line(&self) -> String {
        let parts: Vec<String> = self.scores.0.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        format!("{}, loss {}", parts.join(", "), decimals(self.loss))
    }

    /// A score by its name, `loss` included.
    pub fn value(&self, metric: &str) -> Option<f64> {
        if metric == "loss" { Some(self.loss) } else { self.scores.get(metric) }
    }
}

/// An error for the first example whose logits are not all finite.
pub fn check_finite(set: &FeatureSet, examples: &[Example], logits: &[Vec<f32>]) -> Result<()> {
    if let Some(feature) = logits.iter().position(|values| values.iter().any(|value| !value.is_finite())) {
        let place = &examples[set.features[feature].example].place;
        bail!("{place}: the model computes logits that are not finite; the adapter or the model's 16-bit weights overflow");
    }
    Ok(())
}

/// Mean cross-entropy over all targets of a set, in f64; 0 where there is no target.
pub fn mean_loss(set: &FeatureSet, grouping: Grouping, logits: &[Vec<f32>]) -> f64 {
    let mut total = 0.0;
    let mut count = 0usize;
    for (feature, logits) in logits.iter().enumerate() {
        if grouping == Grouping::PerToken {
            // Pairs of a log-probability and whether the token is the likeliest; of rows without a target nothing counts.
            let targets = &set.features[feature].targets;
            total -=
                logits.chunks_exact(2).zip(targets).filter(|(_, target)| **target >= 0).map(|(pair, _)| f64::from(pair[0])).sum::<f64>();
            count += set.targets(feature);
            continue;
        }
        let rows = grouping.rows(set, feature);
        let columns = logits.len().checked_div(rows).unwrap_or(0);
        let groups = grouping.groups(rows, columns);
        for ((start, length, stride), &target) in groups.zip(&set.features[feature].targets).filter(|(_, target)| **target >= 0) {
            let value = |index: usize| f64::from(logits[start + index * stride]);
            let largest = (0..length).map(value).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..length).map(|index| (value(index) - largest).exp()).sum();
            total += largest + sum.ln() - value(target as usize);
            count += 1;
        }
    }
    if count == 0 { 0.0 } else { total / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Feature, Sequence};

    fn set(rows: usize, targets: &[i32]) -> FeatureSet {
        let sequence = Sequence { ids: vec![0; rows], types: vec![], readout: (0..rows as u32).collect(), ..Sequence::default() };
        let feature = Feature { example: 0, first_sequence: 0, sequences: 1, targets: targets.to_vec() };
        FeatureSet { sequences: vec![sequence], features: vec![feature], examples: 1 }
    }

    #[test]
    fn loss_of_rows_leaves_out_rows_without_target() {
        let logits = vec![vec![0.0, 0.0, 5.0, 7.0, 1.0, 1.0]];
        let loss = mean_loss(&set(3, &[1, -100, 0]), Grouping::PerRow, &logits);
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn loss_of_tokens_is_the_mean_over_targets() {
        let logits = vec![vec![-1.5, 1.0, -9.0, 0.0, -0.5, 0.0]];
        assert!((mean_loss(&set(3, &[4, -100, 7]), Grouping::PerToken, &logits) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn loss_of_sequences_chooses_among_their_scores() {
        let mut set = set(2, &[1]);
        set.sequences.push(set.sequences[0].clone());
        set.features[0].sequences = 2;
        let loss = mean_loss(&set, Grouping::PerSequence, &[vec![-2.0, -2.0 + 3f32.ln()]]);
        assert!((loss + 0.75f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn loss_of_columns_chooses_among_rows() {
        // Columns (0, ln 3) and (ln 4, 0): probabilities (1/4, 3/4) and (4/5, 1/5).
        let logits = vec![vec![0.0, 4f32.ln(), 3f32.ln(), 0.0]];
        let loss = mean_loss(&set(2, &[1, 0]), Grouping::PerColumn, &logits);
        let expected = -(0.75f64.ln() + 0.8f64.ln()) / 2.0;
        assert!((loss - expected).abs() < 1e-6);
    }
}
