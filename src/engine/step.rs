//! An optimizer step: `begin_step`, any number of micro-batches, `finish_step`. Losses are read back a step late, so
//! that the host never waits for the step it has just queued.

use super::trainable::PrefixBuffers;
use super::{BatchRows, Engine, Mode, numbers};
use crate::backend::{AdamW, Readback, Scope};
use crate::data::{Batch, FeatureSet};
use anyhow::{Result, ensure};

/// What AdamW is told (betas 0.9 and 0.999, epsilon 1e-8: torch's defaults).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// Largest global norm of the gradients; None: no clipping.
    pub max_grad_norm: Option<f64>,
}

/// A finished step: its number from 0, mean loss over its targets, global norm of its gradients before clipping.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    pub step: u64,
    pub loss: f64,
    pub grad_norm: f64,
    /// What the loss was multiplied by; None where nothing is scaled.
    pub scale: Option<f64>,
    /// The gradients overflowed fp16, nothing was updated, and a smaller scale will be tried. Not set once none is left.
    pub skipped: bool,
}

/// The report of a finished step, on its way.
pub(super) struct Unread {
    step: u64,
    scale: f64,
    /// The head that it went through.
    head: usize,
    /// Whether trainables were updated, if the gradients were finite.
    updated: bool,
    report: Readback,
}

impl Engine {
    /// Starts step `step`; `targets` counts the targets of all of its micro-batches.
    pub fn begin_step(&mut self, step: u64, targets: usize) {
        self.settle(1);
        if let Some(scaling) = &mut self.scaling {
            for head in scaling.advance(self.unread.len()) {
                self.plan.trainables.used_by(head).for_each(|trainable| trainable.steps -= 1);
            }
            self.scale = scaling.value();
        }
        // Until the end of `finish_step`.
        self.backend.enter(Scope::Step(step));
        self.step = step;
        self.step_targets = targets.max(1);
        self.backend.zero(self.plan.trainables.gradients);
        if let Some(&PrefixBuffers::Projected { d_table, .. }) = self.plan.trainables.prefix.as_ref() {
            self.backend.zero(d_table);
        }
        self.backend.zero(self.plan.report.row_range((step % 2) as usize, 1));
        for trainable in &mut self.plan.trainables.list {
            trainable.used = false;
        }
    }

    /// Forward and backward of a micro-batch through the first head, gradients added; together with those that follow it, where
    /// several go through a layer together. `first_ordinal` counts the step's sequences before it.
    pub fn accumulate(&mut self, set: &FeatureSet, features: &[usize], first_ordinal: usize) -> Result<()> {
        self.check_training(0)?;
        let rows = self.scoped(Scope::Batch, |engine| engine.load_batch(set, features, first_ordinal))?;
        self.accumulate_loaded(rows);
        Ok(())
    }

    /// [`Engine::accumulate`] of a batch that was packed before, through the head that it was packed for, which is the same for
    /// all batches of a step; another one comes back in its place.
    pub fn accumulate_packed(&mut self, batch: &mut Batch) -> Result<()> {
        self.check_training(batch.head)?;
        std::mem::swap(&mut self.batch, batch);
        let rows = self.scoped(Scope::Batch, Engine::load_packed)?;
        self.accumulate_loaded(rows);
        Ok(())
    }

    fn check_training(&self, head: usize) -> Result<()> {
        ensure!(self.plan.capacity.training, "this engine was laid out for evaluation only");
        let mut others =
            self.plan.trainables.list.iter().filter_map(|trainable| trainable.head.filter(|&own| own != head && trainable.used));
        ensure!(others.next().is_none(), "the batches of a step go through one head");
        self.backend.check()
    }

    /// Of a micro-batch that is loaded into its slot.
    fn accumulate_loaded(&mut self, rows: BatchRows) {
        if self.batch.targets > 0 {
            self.group.push(rows);
            // At once, so that a batch through another head is found out before the group runs.
            self.plan.trainables.used_by(self.batch.head).for_each(|trainable| trainable.used = true);
        }
        if self.group.len() == self.plan.slots.len() {
            self.run_group();
        }
        self.slot = self.group.len();
    }

    /// Forward and backward of the micro-batches that wait for it.
    fn run_group(&mut self) {
        let group = std::mem::take(&mut self.group);
        if group.is_empty() {
            return;
        }
        self.run_forward(Mode::Train, &group);
        self.scoped(Scope::Backward, |engine| engine.run_backward(&group));
        self.slot = 0;
    }

    /// Norm, clipping and AdamW over what the step used; what it did not use keeps its moments and step count.
    pub fn finish_step(&mut self, update: &Update) {
        self.run_group();
        self.backend.enter(Scope::Optimizer);
        let slot = (self.step % 2) as usize;
        let updated = self.plan.trainables.list.iter().any(|trainable| trainable.used);
        if updated {
            self.backward_projection();
        }
        let squared_norm = self.plan.report.row_range(slot, 1).col_range(1, 1);
        self.backend.squared_norm(self.plan.trainables.gradients, squared_norm);
        for trainable in self.plan.trainables.list.iter_mut().filter(|trainable| trainable.used) {
            trainable.steps += 1;
            self.backend.adamw(&AdamW {
                master: trainable.master,
                gradient: trainable.gradient,
                moment1: trainable.moment1,
                moment2: trainable.moment2,
                squared_norm,
                gradient_scale: self.scale,
                max_norm: update.max_grad_norm,
                learning_rate: update.learning_rate,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: update.weight_decay,
                step: trainable.steps,
            });
        }
        self.prefix_stale = true;
        let report = self.backend.read_later(self.plan.report.row_range(slot, 1));
        self.unread.push_back(Unread { step: self.step, scale: self.scale, head: self.batch.head, updated, report });
        self.backend.leave();
        self.backend.leave();
    }

    /// Waits for reports until no more than `left` are on their way.
    pub(super) fn settle(&mut self, left: usize) {
        while self.unread.len() > left {
            let Some(Unread { step, scale, head, updated, report }) = self.unread.pop_front() else { return };
            let values = numbers::from_bytes(&report(), self.plan.report.dtype);
            let (loss, grad_norm) = (values[0] / scale, values[1].sqrt() / scale);
            let overflow = updated && !values[1].is_finite();
            let skipped = self.scaling.as_mut().is_some_and(|scaling| scaling.record(scale, overflow, head));
            let scale = self.scaling.is_some().then_some(scale);
            self.reports.push_back(StepReport { step, loss, grad_norm, scale, skipped });
        }
    }

    /// The report of the step before the last finished one, once.
    pub fn take_report(&mut self) -> Option<StepReport> {
        if self.unread.len() + self.reports.len() < 2 { None } else { self.flush_report() }
    }

    /// The oldest unread report; waits for its step.
    pub fn flush_report(&mut self) -> Option<StepReport> {
        if self.reports.is_empty() {
            self.settle(self.unread.len().saturating_sub(1));
        }
        self.reports.pop_front()
    }

    /// Norm of the gradient of each layer's prefix (or the prompt's), after `accumulate` and before `finish_step`: a zero means that
    /// the prefix takes no part in the loss.
    pub fn prefix_gradient_norms(&mut self) -> Vec<f64> {
        self.run_group();
        let Some([_, gradient]) = self.plan.trainables.table() else { return Vec::new() };
        let width = if self.prompt() > 0 { gradient.cols } else { 2 * self.spec.kv_size() };
        let mut sums = vec![0.0; gradient.cols / width];
        for row in 0..gradient.rows {
            let values = self.read_values(gradient.row_range(row, 1));
            for (sum, part) in sums.iter_mut().zip(values.chunks_exact(width)) {
                *sum += part.iter().map(|value| value * value).sum::<f64>();
            }
        }
        sums.into_iter().map(|sum| sum.sqrt() / self.scale).collect()
    }
}
