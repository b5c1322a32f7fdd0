//! The learning rate as a pure function of the step.

use serde::{Deserialize, Serialize};

/// How the learning rate runs after warm-up (the released code's `trainer_base.py` is linear, its `trainer_exp.py` exponential).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Down to 0 over all steps.
    Linear,
    Constant,
    /// Half a cosine from the peak down to 0 over all steps.
    Cosine,
    /// Times 0.95 after every epoch.
    Exponential,
}

/// A schedule and the run that it is for.
#[derive(Clone, Copy, Debug)]
pub struct LearningRate {
    pub peak: f64,
    pub schedule: Schedule,
    pub warmup_steps: u64,
    pub total_steps: u64,
    pub steps_per_epoch: u64,
}

/// Factor of an epoch in the exponential schedule.
const DECAY: f64 = 0.95;

impl LearningRate {
    /// The rate of step `step`, counted from 0. During warm-up it is peak * step / warm-up steps, so the very first
    /// step of a run with warm-up has rate 0, as in transformers.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step as f64 / self.warmup_steps as f64);
        }
        match self.schedule {
            Schedule::Constant => self.peak,
            Schedule::Linear => {
                let rest = self.total_steps.saturating_sub(self.warmup_steps).max(1);
                self.peak * (self.total_steps.saturating_sub(step) as f64 / rest as f64)
            }
            Schedule::Cosine => {
                let rest = self.total_steps.saturating_sub(self.warmup_steps).max(1);
                let progress = (step - self.warmup_steps) as f64 / rest as f64;
                self.peak * (0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress))).max(0.0)
            }
            // Multiplied epoch by epoch, as a scheduler that keeps the rate would: the same bits on every platform.
            Schedule::Exponential => (0..step / self.steps_per_epoch).fold(self.peak, |rate, _| rate * DECAY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, warmup_steps: u64) -> Vec<f64> {
        let rate = LearningRate { peak: 1.0, schedule, warmup_steps, total_steps: 5, steps_per_epoch: 2 };
        (0..5).map(|step| rate.at(step)).collect()
    }

    #[test]
    fn linear_falls_from_the_peak_towards_zero() {
        assert_eq!(rates(Schedule::Linear, 0), [1.0, 0.8, 0.6, 0.4, 0.2]);
    }

    #[test]
    fn warmup_rises_linearly_and_the_rest_decays_over_the_rest() {
        assert_eq!(rates(Schedule::Linear, 2), [0.0, 0.5, 1.0, 2.0 / 3.0, 1.0 / 3.0]);
        assert_eq!(rates(Schedule::Constant, 2), [0.0, 0.5, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn cosine_falls_in_half_a_wave() {
        // (1 + cos(pi k / n)) / 2 by hand: cos(pi/5) = (1 + sqrt 5)/4, cos(2 pi/5) = (sqrt 5 - 1)/4; cos(pi/3) = 1/2.
        let root = 5f64.sqrt();
        let first = [1.0, (5.0 + root) / 8.0, (3.0 + root) / 8.0, (5.0 - root) / 8.0, (3.0 - root) / 8.0];
        let second = [0.0, 0.5, 1.0, 0.75, 0.25];
        for (warmup, expected) in [(0, first), (2, second)] {
            for (found, expected) in rates(Schedule::Cosine, warmup).into_iter().zip(expected) {
                assert!((found - expected).abs() <= 2.0 * f64::EPSILON, "{found} is not {expected}");
            }
        }
    }

    #[test]
    fn exponential_steps_once_an_epoch() {
        assert_eq!(rates(Schedule::Exponential, 0), [1.0, 1.0, 0.95, 0.95, 0.95 * 0.95]);
    }
}
