//! An evaluation of a run: the scores of each of its data sets, and the one value by which adapters are compared.

use super::evaluate::Evaluation;
use super::terminal::decimals;
use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// What one data set scores.
pub struct Validated {
    pub name: String,
    /// The score that counts.
    pub metric: String,
    pub evaluation: Evaluation,
    /// The threshold of "no answer" that was tuned.
    pub threshold: Option<f32>,
}

/// What all of them score. Among several, a score is named after its set too, and what counts is the mean.
pub struct Validation {
    pub sets: Vec<Validated>,
}

/// Of several data sets the score that counts: the mean of each set's own.
pub const MEAN: &str = "mean";

/// Name of the score that chooses the best adapter, by those of the sets.
pub fn chosen_by(metrics: &[String]) -> &str {
    match metrics {
        [only] => only,
        _ if metrics.iter().all(|metric| metric == "loss") => "loss",
        _ => MEAN,
    }
}

impl Validation {
    pub fn metric(&self) -> String {
        let metrics: Vec<String> = self.sets.iter().map(|set| set.metric.clone()).collect();
        chosen_by(&metrics).to_string()
    }

    /// The value of that score.
    pub fn value(&self) -> Result<f64> {
        let value = |set: &Validated| {
            let value = set.evaluation.value(&set.metric).filter(|value| value.is_finite());
            value.with_context(|| format!("the score {} cannot be computed on the validation data{}", set.metric, self.of(set)))
        };
        Ok(self.sets.iter().map(value).sum::<Result<f64>>()? / self.sets.len() as f64)
    }

    /// Names and values of all scores; of several sets the means last.
    pub fn scores(&self) -> Map<String, Value> {
        if let [only] = self.sets.as_slice() {
            return only.evaluation.to_map();
        }
        let named = |set: &Validated| {
            let name = set.name.clone();
            set.evaluation.to_map().into_iter().map(move |(score, value)| (format!("{name}_{score}"), value))
        };
        let mut scores: Map<String, Value> = self.sets.iter().flat_map(named).collect();
        if let (true, Ok(mean)) = (self.metric() == MEAN, self.value()) {
            scores.insert(MEAN.to_string(), mean.into());
        }
        let losses: f64 = self.sets.iter().map(|set| set.evaluation.loss).sum();
        scores.insert("loss".to_string(), (losses / self.sets.len() as f64).into());
        scores
    }

    /// The thresholds that were tuned, for the record.
    pub fn thresholds(&self) -> impl Iterator<Item = (String, Value)> {
        let name = |set: &Validated| if self.sets.len() == 1 { String::new() } else { format!("{}_", set.name) };
        self.sets.iter().filter_map(move |set| Some((format!("{}null_threshold", name(set)), set.threshold?.into())))
    }

    pub fn warnings(&self) -> Vec<String> {
        let named = |set: &Validated| {
            let of = if self.sets.len() == 1 { String::new() } else { format!("{}: ", set.name) };
            set.evaluation.warnings.iter().map(move |warning| format!("{of}{warning}")).collect::<Vec<_>>()
        };
        self.sets.iter().flat_map(named).collect()
    }

    /// For the terminal: the scores, or of several sets what counts.
    pub fn to_line(&self) -> String {
        match self.sets.as_slice() {
            [only] => only.to_line(),
            _ => format!("{} {}", self.metric(), decimals(self.value().unwrap_or(f64::NAN))),
        }
    }

    /// Beneath that line: a line for each of several sets.
    pub fn table(&self) -> String {
        if self.sets.len() == 1 {
            return String::new();
        }
        let width = self.sets.iter().map(|set| set.name.len()).max().unwrap_or(0);
        self.sets.iter().map(|set| format!("\n  {:<width$}  {}", set.name, set.to_line())).collect()
    }

    fn of(&self, set: &Validated) -> String {
        if self.sets.len() == 1 { String::new() } else { format!(" of {}", set.name) }
    }
}

impl Validated {
    fn to_line(&self) -> String {
        let threshold = self.threshold.map_or(String::new(), |threshold| format!(", null threshold {threshold:.4}"));
        format!("{}{threshold}", self.evaluation.to_line())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Scores;

    fn validated(name: &str, accuracy: f64, loss: f64, metric: &str) -> Validated {
        let evaluation = Evaluation { scores: Scores(vec![("accuracy".into(), accuracy)]), loss, warnings: vec!["odd".into()] };
        Validated { name: name.into(), metric: metric.into(), evaluation, threshold: (name == "b").then_some(0.5) }
    }

    #[test]
    fn one_set_is_told_of_as_it_is_and_several_by_their_mean() {
        let one = Validation { sets: vec![validated("b", 0.5, 2.0, "accuracy")] };
        assert_eq!((one.metric().as_str(), one.value().unwrap(), one.warnings()), ("accuracy", 0.5, vec!["odd".to_string()]));
        assert_eq!(one.scores().keys().collect::<Vec<_>>(), ["accuracy", "loss"]);
        assert_eq!(one.to_line(), "accuracy 0.5000, loss 2.0000, null threshold 0.5000");
        let two = |metric| Validation { sets: vec![validated("a", 1.0, 1.0, metric), validated("b", 0.5, 2.0, metric)] };
        let mean = two("accuracy");
        assert_eq!((mean.metric().as_str(), mean.value().unwrap()), (MEAN, 0.75));
        assert_eq!(mean.scores().keys().collect::<Vec<_>>(), ["a_accuracy", "a_loss", "b_accuracy", "b_loss", "mean", "loss"]);
        assert_eq!(mean.thresholds().next().unwrap().0, "b_null_threshold");
        assert_eq!((mean.warnings()[0].as_str(), mean.table().lines().count()), ("a: odd", 3));
        assert_eq!((two("loss").metric().as_str(), two("loss").value().unwrap()), ("loss", 1.5));
    }
}
