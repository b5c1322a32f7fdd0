//! From which data set each step of a run takes its batch: so many steps of an epoch from each, in an order of chance.

use crate::backend::{Site, Stream, stream_key};
use crate::usage;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the steps of an epoch are shared among data sets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Sampling {
    /// As many as each set holds, so that an epoch goes through each once.
    #[default]
    Proportional,
    Uniform,
    /// By the root of what each holds.
    SquareRoot,
    /// By these weights of the sets' names.
    Weights(Vec<(String, f64)>),
}

impl Sampling {
    /// Steps of an epoch from each set, which holds so many: all together as many as all hold, shared by largest remainders.
    /// Usage errors: weights of other sets, a set without a step.
    pub fn shares(&self, names: &[String], steps: &[usize]) -> Result<Vec<usize>> {
        let weights: Vec<f64> = match self {
            Sampling::Proportional => steps.iter().map(|&steps| steps as f64).collect(),
            Sampling::Uniform => vec![1.0; steps.len()],
            Sampling::SquareRoot => steps.iter().map(|&steps| (steps as f64).sqrt()).collect(),
            Sampling::Weights(given) => {
                if let Some((unknown, _)) = given.iter().find(|(name, _)| !names.contains(name)) {
                    usage!("--sampling {self}: no data set is named {unknown}; there are {}", names.join(", "));
                }
                let weight = |name: &String| given.iter().find(|(own, _)| own == name).map(|(_, weight)| *weight);
                if let Some(missing) = names.iter().find(|name| weight(name).is_none()) {
                    usage!("--sampling {self}: the data set {missing} has no weight; give one for each of {}", names.join(", "));
                }
                names.iter().filter_map(weight).collect()
            }
        };
        let (total, sum) = (steps.iter().sum::<usize>(), weights.iter().sum::<f64>());
        let quotas: Vec<f64> = weights.iter().map(|weight| weight / sum * total as f64).collect();
        let mut shares: Vec<usize> = quotas.iter().map(|quota| quota.floor() as usize).collect();
        let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
        by_remainder.sort_by(|&a, &b| quotas[b].fract().total_cmp(&quotas[a].fract()));
        for &set in by_remainder.iter().take(total.saturating_sub(shares.iter().sum())) {
            shares[set] += 1;
        }
        if let Some(set) = shares.iter().position(|&share| share == 0) {
            usage!("--sampling {self}: of the {total} steps of an epoch none is left for {}; give it a larger weight", names[set]);
        }
        Ok(shares)
    }
}

impl FromStr for Sampling {
    type Err = String;

    fn from_str(text: &str) -> Result<Sampling, String> {
        match text {
            "proportional" => return Ok(Sampling::Proportional),
            "uniform" => return Ok(Sampling::Uniform),
            "sqrt" => return Ok(Sampling::SquareRoot),
            _ => {}
        }
        let mut weights: Vec<(String, f64)> = Vec::new();
        for part in text.split(',') {
            let pair = part.trim().rsplit_once('=').and_then(|(name, weight)| Some((name.to_string(), weight.parse::<f64>().ok()?)));
            let Some((name, weight)) = pair.filter(|(_, weight)| *weight > 0.0 && weight.is_finite()) else {
                return Err(format!("`{part}` is no weight above 0 of a data set; write proportional, uniform, sqrt or NAME=WEIGHT,..."));
            };
            if weights.iter().any(|(known, _)| *known == name) {
                return Err(format!("{name} has two weights"));
            }
            weights.push((name, weight));
        }
        Ok(Sampling::Weights(weights))
    }
}

impl fmt::Display for Sampling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sampling::Proportional => formatter.write_str("proportional"),
            Sampling::Uniform => formatter.write_str("uniform"),
            Sampling::SquareRoot => formatter.write_str("sqrt"),
            Sampling::Weights(weights) => {
                let parts: Vec<String> = weights.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
                formatter.write_str(&parts.join(","))
            }
        }
    }
}

impl TryFrom<String> for Sampling {
    type Error = String;

    fn try_from(text: String) -> Result<Sampling, String> {
        text.parse()
    }
}

impl From<Sampling> for String {
    fn from(sampling: Sampling) -> String {
        sampling.to_string()
    }
}

/// The data sets of a run's steps: a function of seed and shares alone, so that a resumed run goes on as the interrupted one
/// would have.
pub struct Draws {
    seed: u64,
    shares: Vec<usize>,
    /// The epoch that was looked at last: of each of its steps the set, and how many of the epoch's steps from it come before.
    epoch: Option<(u64, Vec<(usize, u64)>)>,
}

impl Draws {
    pub fn new(seed: u64, shares: Vec<usize>) -> Draws {
        Draws { seed, shares, epoch: None }
    }

    /// The set of a step of the run, and how many steps from that set come before.
    pub fn at(&mut self, step: u64) -> (usize, u64) {
        let steps = self.shares.iter().sum::<usize>().max(1) as u64;
        let (epoch, within) = (step / steps, (step % steps) as usize);
        let draws = match self.epoch.take() {
            Some((known, draws)) if known == epoch => draws,
            _ => self.draw(epoch),
        };
        let (set, before) = draws[within];
        self.epoch = Some((epoch, draws));
        (set, epoch * self.shares[set] as u64 + before)
    }

    /// The steps of an epoch in their order.
    fn draw(&self, epoch: u64) -> Vec<(usize, u64)> {
        let sets: Vec<usize> = self.shares.iter().enumerate().flat_map(|(set, &share)| std::iter::repeat_n(set, share)).collect();
        // The streams of smaller numbers are those of the sets' own orders.
        let mut stream = Stream::new(stream_key(self.seed, epoch, Site::Order, self.shares.len()));
        let mut before = vec![0; self.shares.len()];
        let place = |index: usize| {
            let set = sets[index];
            before[set] += 1;
            (set, before[set] - 1)
        };
        stream.permutation(sets.len()).into_iter().map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::UsageError;

    fn shares(sampling: &str, steps: &[usize]) -> Result<Vec<usize>> {
        let names: Vec<String> = ["a", "b", "c"].iter().take(steps.len()).map(|name| name.to_string()).collect();
        sampling.parse::<Sampling>().unwrap().shares(&names, steps)
    }

    #[test]
    fn steps_are_shared_by_weight() {
        assert_eq!(shares("proportional", &[7, 3, 11]).unwrap(), [7, 3, 11]);
        assert_eq!(shares("uniform", &[7, 3, 11]).unwrap(), [7, 7, 7]);
        assert_eq!(shares("sqrt", &[16, 1]).unwrap(), [14, 3]);
        assert_eq!(shares("b=1,a=3", &[5, 6]).unwrap(), [8, 3]);
        for (sampling, part) in
            [("a=1", "the data set b has no weight"), ("a=1,b=1,d=2", "named d; there are a, b"), ("a=1,b=1e-9", "left for b")]
        {
            let error = shares(sampling, &[5, 6]).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(part), "{error}");
        }
        for text in ["proportional", "uniform", "sqrt", "a=0.5,b=2"] {
            assert_eq!(text.parse::<Sampling>().unwrap().to_string(), text);
        }
        for text in ["often", "a=0", "a=x", "a=1,a=2", ""] {
            assert!(text.parse::<Sampling>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_epoch_has_its_shares_and_counts_go_on() {
        let mut draws = Draws::new(5, vec![4, 1, 3]);
        let steps: Vec<(usize, u64)> = (0..24).map(|step| draws.at(step)).collect();
        for set in 0..3 {
            let found: Vec<u64> = steps.iter().filter(|(own, _)| *own == set).map(|(_, before)| *before).collect();
            assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
            assert_eq!(found.len(), 3 * [4, 1, 3][set]);
        }
        // From anywhere on, as after a stop; another epoch and another seed have other orders.
        assert_eq!(Draws::new(5, vec![4, 1, 3]).at(13), steps[13]);
        let sets = |from: usize| steps[from..from + 8].iter().map(|(set, _)| *set).collect::<Vec<_>>();
        assert_ne!(sets(0), sets(8));
        let mut other = Draws::new(6, vec![4, 1, 3]);
        assert_ne!((0..8).map(|step| other.at(step).0).collect::<Vec<_>>(), sets(0));
        assert_eq!((0..7).map(|step| Draws::new(5, vec![3]).at(step)).collect::<Vec<_>>(), (0..7).map(|n| (0, n)).collect::<Vec<_>>());
    }
}
