//! Dynamic loss scaling, for activations in fp16: gradients of hidden states are often below fp16's smallest number
//! (6e-8), so the loss is multiplied by a power of two and the optimizer divides by it. A step whose gradients overflow
//! changes nothing and halves the scale; after [`GROWTH_INTERVAL`] good steps it doubles.
//!
//! A step's outcome is known to the host a step late. It is applied when the step after the next one begins, whether or
//! not the host has asked for it before: so scales, and with them every bit of a run, do not depend on when reports are
//! read, nor on a stop in between.

use crate::backend::{Backend, DType};
use std::collections::VecDeque;

/// With a mean loss of order one the largest gradients of hidden states stay far below 65504 / START, and those of
/// single tokens in a batch of thousands are still normal numbers.
const START: f64 = 4096.0;
/// Gradients of trainables are summed in fp32, whose squares this leaves room for.
const LARGEST: f64 = 16_777_216.0;
const SMALLEST: f64 = 1.0;
/// As torch.amp.GradScaler.
const GROWTH_INTERVAL: u32 = 2000;

/// The scale and what it was told.
#[derive(Clone, Debug, PartialEq)]
pub struct LossScale {
    value: f64,
    /// Steps without overflow since the scale changed.
    clean: u32,
    /// Of finished steps, oldest first, where not applied yet: whether they overflowed, and through which head they went.
    outcomes: VecDeque<(bool, usize)>,
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale { value: START, clean: 0, outcomes: VecDeque::new() }
    }
}

impl LossScale {
    /// What a backend needs: fp32 and bf16 have range enough.
    pub fn of(backend: &dyn Backend) -> Option<LossScale> {
        (backend.precision().activation == DType::F16).then(LossScale::default)
    }

    pub fn value(&self) -> f64 {
        self.value
    }

    /// Takes the outcome of the next finished step, which ran at `scale` through `head`. True if it overflowed and a smaller scale is
    /// left to try.
    pub fn record(&mut self, scale: f64, overflow: bool, head: usize) -> bool {
        self.outcomes.push_back((overflow, head));
        overflow && scale > SMALLEST
    }

    /// Before a step: applies the outcomes of all finished steps but the last; `unread` of them are not recorded yet.
    /// Returns the heads of those of the applied ones that overflowed.
    pub fn advance(&mut self, unread: usize) -> Vec<usize> {
        let mut overflows = Vec::new();
        while self.outcomes.len() + unread > 1 {
            let Some((overflow, head)) = self.outcomes.pop_front() else { break };
            overflows.extend(overflow.then_some(head));
            self.clean = if overflow { 0 } else { self.clean + 1 };
            if overflow {
                self.value = (self.value / 2.0).max(SMALLEST);
            } else if self.clean == GROWTH_INTERVAL {
                (self.value, self.clean) = ((self.value * 2.0).min(LARGEST), 0);
            }
        }
        overflows
    }

    /// For the saved state, after a step whose outcome is recorded: scale, good steps, and the outcomes of the last two
    /// steps, which are not applied yet: twice the head, and 1 more for an overflow; -1 where there were not as many.
    pub fn to_values(&self) -> [f32; 4] {
        let outcome = |index: usize| self.outcomes.get(index).map_or(-1.0, |&(overflow, head)| (2 * head + usize::from(overflow)) as f32);
        [self.value as f32, self.clean as f32, outcome(0), outcome(1)]
    }

    /// None where the values cannot be a scale's.
    pub fn from_values(values: &[f32]) -> Option<LossScale> {
        let &[value, clean, ref outcomes @ ..] = values else { return None };
        let outcomes = outcomes.iter().filter(|&&outcome| outcome >= 0.0);
        let value = f64::from(value);
        let outcomes: VecDeque<_> = outcomes.map(|&outcome| (outcome as usize % 2 == 1, outcome as usize / 2)).collect();
        let fits = (SMALLEST..=LARGEST).contains(&value) && (0.0..GROWTH_INTERVAL as f32).contains(&clean);
        (fits && outcomes.len() <= 2).then_some(LossScale { value, clean: clean as u32, outcomes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scales of a run of steps, their reports read at once or as late as possible.
    fn scales(overflows: &[bool], late: bool) -> Vec<f64> {
        let (mut scale, mut unread) = (LossScale::default(), VecDeque::new());
        let mut found = Vec::new();
        for &overflow in overflows {
            while unread.len() > 1 {
                scale.record(START, unread.pop_front().expect("not empty"), 0);
            }
            scale.advance(unread.len());
            found.push(scale.value());
            unread.push_back(overflow);
            if !late {
                scale.record(START, unread.pop_front().expect("not empty"), 0);
            }
        }
        found
    }

    #[test]
    fn an_overflow_halves_two_steps_later_however_early_it_is_read() {
        let overflows = [true, true, false, false, true, false, false];
        let expected = [START, START, START / 2.0, START / 4.0, START / 4.0, START / 4.0, START / 8.0];
        assert_eq!(scales(&overflows, false), expected);
        assert_eq!(scales(&overflows, true), expected);
    }

    #[test]
    fn good_steps_double_it_and_it_stays_within_bounds() {
        let found = scales(&vec![false; 2 * GROWTH_INTERVAL as usize + 3], true);
        assert_eq!(found[GROWTH_INTERVAL as usize], START);
        assert_eq!(found[GROWTH_INTERVAL as usize + 1], 2.0 * START);
        assert_eq!(found.last(), Some(&(4.0 * START)));
        let found = scales(&[true; 40], true);
        assert_eq!(found.last(), Some(&SMALLEST));
        assert!(LossScale::default().record(2.0, true, 0) && !LossScale::default().record(SMALLEST, true, 0));
    }

    #[test]
    fn a_saved_scale_goes_on_as_it_was() {
        let mut scale = LossScale::default();
        for (overflow, head) in [(false, 0), (true, 3), (true, 0)] {
            scale.advance(0);
            scale.record(START, overflow, head);
        }
        let mut again = LossScale::from_values(&scale.to_values()).expect("its own values");
        assert_eq!((scale.advance(0), again.advance(0)), (vec![3], vec![3]));
        assert_eq!(again, scale);
        assert_eq!(LossScale::from_values(&[0.0, 0.0, 0.0]), None);
    }
}
