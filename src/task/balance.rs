//! How answers are spread: over the labels of the data before training, over the predictions after it. A model that
//! learned nothing but the most frequent answer shows here, where its score alone may look well.

use super::prediction::{Outcome, Prediction, Scores};
use super::{Task, TaskKind};
use crate::data::{Content, Example};

/// Answers that a line names.
const SHOWN: usize = 10;
/// Below so many answers a set is too small to say that they are one-sided.
const FEWEST: u64 = 20;

/// How often each answer occurs: by label, choice, or whether there is an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    names: Vec<String>,
    counts: Vec<u64>,
}

impl Balance {
    fn share(&self, answer: usize) -> f64 {
        let total: u64 = self.counts.iter().sum();
        self.counts.get(answer).map_or(0.0, |&count| count as f64 / total.max(1) as f64)
    }

    /// The most frequent answer, the first of equal ones.
    fn most_frequent(&self) -> Option<usize> {
        (0..self.counts.len()).rev().max_by_key(|&answer| self.counts[answer])
    }

    /// Mean loss in nats of a model that knows nothing but these shares.
    pub fn entropy(&self) -> f64 {
        let shares = (0..self.counts.len()).map(|answer| self.share(answer)).filter(|&share| share > 0.0);
        shares.map(|share| -share * share.ln()).sum()
    }

    /// That of a model that finds all answers equally likely.
    pub fn uniform(&self) -> f64 {
        (self.counts.len() as f64).ln()
    }

    /// The shares in one line, the greatest first.
    pub fn to_line(&self) -> String {
        let mut order: Vec<usize> = (0..self.counts.len()).filter(|&answer| self.counts[answer] > 0).collect();
        order.sort_by_key(|&answer| (std::cmp::Reverse(self.counts[answer]), answer));
        let percent = |answer: &usize| format!("{} {:.1} %", self.names[*answer], 100.0 * self.share(*answer));
        let mut parts: Vec<String> = order.iter().take(SHOWN).map(percent).collect();
        if order.len() > SHOWN {
            let rest: f64 = order[SHOWN..].iter().map(|&answer| self.share(answer)).sum();
            parts.push(format!("and {} more {:.1} %", order.len() - SHOWN, 100.0 * rest));
        }
        parts.join(", ")
    }
}

impl Task {
    /// How the answers of labelled examples are spread. None where examples are unlabelled, or no two of them can be alike.
    pub fn balance(&self, examples: &[Example]) -> Option<Balance> {
        let mut answers = Vec::new();
        for example in examples {
            match &example.content {
                Content::Text { label, .. } => answers.push(self.labels.find(label.as_ref()?)?),
                Content::Choices { label, .. } => answers.push((*label)?),
                Content::Words { tags, .. } => {
                    for tag in tags.as_ref()? {
                        answers.push(self.labels.find(tag)?);
                    }
                }
                Content::Question { answers: given, .. } => answers.push(usize::from(given.as_ref()?.is_empty())),
                Content::Prompt { .. } => return None,
            }
        }
        self.spread(answers)
    }

    /// How predictions are spread, over the same answers.
    fn balance_of(&self, predictions: &[Prediction]) -> Option<Balance> {
        let mut answers = Vec::new();
        for prediction in predictions {
            match &prediction.outcome {
                Outcome::Label(answer) | Outcome::Choice(answer) => answers.push(*answer),
                Outcome::Tags(tags) => answers.extend_from_slice(tags),
                Outcome::Text(text) => answers.push(usize::from(text.is_empty())),
                Outcome::Continuation(_) => return None,
            }
        }
        self.spread(answers)
    }

    fn spread(&self, answers: Vec<usize>) -> Option<Balance> {
        let known = if self.kind == TaskKind::Qa { 2 } else { self.labels.names().len() };
        let mut counts = vec![0; known.max(answers.iter().max()? + 1)];
        for answer in answers {
            counts[answer] += 1;
        }
        let names = match self.kind {
            TaskKind::Qa => ["an answer", "no answer"].map(String::from).to_vec(),
            TaskKind::MultipleChoice => (0..counts.len()).map(|choice| choice.to_string()).collect(),
            _ => self.labels.names().to_vec(),
        };
        Some(Balance { names, counts })
    }

    /// The most frequent answer of the data and the share of examples (tagging: of words) that it is right for: what
    /// a score is to be seen against. None where examples are unlabelled or no constant answer can be right.
    pub fn majority(&self, examples: &[Example]) -> Option<(String, f64)> {
        let balance = self.balance(examples)?;
        let best = if self.kind == TaskKind::Qa { 1 } else { balance.most_frequent()? };
        (balance.counts[best] > 0).then(|| (balance.names[best].clone(), balance.share(best)))
    }

    /// What there is to say against predictions of labelled examples: that they are (almost) all one answer, or no better
    /// than the most frequent one.
    pub fn warnings(&self, examples: &[Example], predictions: &[Prediction]) -> Vec<String> {
        let (Some(data), Some(predicted)) = (self.balance(examples), self.balance_of(predictions)) else { return Vec::new() };
        let mut warnings = Vec::new();
        if let Some(answer) = predicted.most_frequent() {
            let (share, wanted) = (predicted.share(answer), data.share(answer));
            // The other answers come up less than a tenth as often as they should.
            if predicted.counts.iter().sum::<u64>() >= FEWEST && 1.0 - share < 0.1 * (1.0 - wanted) {
                warnings.push(format!(
                    "{:.1} % of the predictions are {:?}, which is right for {:.1} % of the data: the model learned little else",
                    100.0 * share,
                    predicted.names[answer],
                    100.0 * wanted
                ));
            }
        }
        // Those of the kind of task: a named one may score whole questions, where the data's answers are parts of them.
        let scores = self.scores_of_kind(examples, predictions).unwrap_or(Scores(Vec::new()));
        let own = ["accuracy", "exact_match"].into_iter().find_map(|name| Some((name, scores.get(name)?)));
        if let (Some((name, score)), Some((answer, share))) = (own, self.majority(examples))
            && score <= share
            && share < 1.0
        {
            warnings.push(format!("{name} {score:.4} does not beat {share:.4}, which always answering {answer:?} would give"));
        }
        warnings
    }
}
