//! The training loop: steps, evaluations and checkpoints in the order of a [`RunState`], so that a run may stop after
//! any step and go on as if it had not.

use super::cut::Cut;
use super::data_set::DataSet;
use super::evaluate::{self, Evaluation};
use super::folder::{Folder, TRAINER_STATE};
use super::interrupt::Interrupt;
use super::pipeline::{Contents, Pipeline};
use super::record::Record;
use super::sampling::Draws;
use super::schedule::LearningRate;
use super::settings::Settings;
use super::state::{Extent, RunState};
use super::terminal::{Progress, Terminal, decimals};
use super::validation::{Validated, Validation};
use super::values::{DataOrder, Every, NullThreshold};
use crate::checkpoint::{Adapter, Export, Metadata, TrainingState, remove_leftovers, write_atomically, write_checkpoint};
use crate::data::epoch_order;
use crate::engine::{Engine, StepReport, Update};
use crate::model::Specification;
use anyhow::{Result, bail};
use serde_json::{Map, Value};
use std::time::{Duration, Instant};

/// Everything that a run is made of.
pub struct Trainer<'a> {
    pub settings: &'a Settings,
    pub spec: &'a Specification,
    /// One is the usual case; the head of each has its place in this list.
    pub sets: &'a [DataSet],
    pub metadata: Metadata,
    pub extent: Extent,
    pub cut: Cut,
    pub rate: LearningRate,
    pub folder: &'a Folder,
    pub terminal: &'a Terminal,
    pub interrupt: &'a Interrupt,
    pub engine: &'a mut Engine,
    pub record: Record,
    pub state: RunState,
    pub session: Session,
}

/// What only this process knows of the run.
pub struct Session {
    /// From which set each step takes its batch.
    draws: Draws,
    /// The current epoch of each set.
    epochs: Vec<Option<SetEpoch>>,
    /// Made at the first step.
    pipeline: Option<Pipeline>,
    steps: u64,
    tokens: u64,
    /// Time in steps: evaluations and checkpoints are not in it.
    training: Duration,
    last_loss: Option<f64>,
    /// Steps whose gradients overflowed in fp16, so that they changed nothing but the loss scale.
    skipped: u64,
    /// Whether a profiler was started and not stopped yet.
    profiled: bool,
    /// How the adapter at the root was written.
    pub export: Option<Export>,
}

/// An epoch of one data set: its number, the order of the features, and where its steps begin.
#[derive(Clone)]
struct SetEpoch {
    number: u64,
    order: Vec<usize>,
    bounds: Vec<usize>,
}

impl Session {
    /// Of a run with so many steps of an epoch from each set.
    pub fn new(seed: u64, shares: &[usize]) -> Session {
        Session {
            draws: Draws::new(seed, shares.to_vec()),
            epochs: vec![None; shares.len()],
            pipeline: None,
            steps: 0,
            tokens: 0,
            training: Duration::ZERO,
            last_loss: None,
            skipped: 0,
            profiled: false,
            export: None,
        }
    }

    /// Tokens a second over the steps of this process; None before the first.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.training.as_secs_f64();
        (self.tokens > 0 && seconds > 0.0).then(|| self.tokens as f64 / seconds)
    }
}

impl Trainer<'_> {
    /// Trains to the end; the signal's number where one asked to stop before it.
    pub fn run(&mut self) -> Result<Option<i32>> {
        let mut progress = self.terminal.progress("step", self.state.step, self.extent.total_steps, true);
        if self.state.evaluation_pending {
            self.evaluate(&progress)?;
            self.save()?;
        }
        // Whether the latest step is saved: a signal ends the run only then.
        let mut saved = true;
        while !self.is_over() {
            if let Some(signal) = self.interrupt.pending().filter(|_| saved) {
                return Ok(Some(signal));
            }
            self.step()?;
            let (done, extent) = (self.state.step, self.extent);
            progress.update(done, || self.describe());
            let due = |every: Every| every.is_due(done, extent.steps_per_epoch, extent.total_steps);
            let evaluation = self.validates() && extent.eval_every.is_some_and(due);
            let mut save = due(extent.save_every) || self.interrupt.pending().is_some();
            if save || evaluation {
                let report = self.engine.flush_report();
                self.take(report)?;
            }
            if evaluation {
                self.state.evaluation_pending = true;
                self.evaluate(&progress)?;
                save |= self.state.evaluation_pending || self.is_over();
            }
            if save {
                self.save()?;
            }
            saved = save;
        }
        Ok(None)
    }

    /// Whether nothing is left to do: all steps are done, or the scores stopped getting better.
    fn is_over(&self) -> bool {
        let patience = self.settings.patience.is_some_and(|patience| self.state.without_improvement >= patience);
        !self.state.evaluation_pending && (patience || self.state.step >= self.extent.total_steps)
    }

    fn validates(&self) -> bool {
        self.sets.iter().any(|set| set.data.validation.is_some())
    }

    /// Whether the run ended before its last step.
    pub fn stopped_early(&self) -> bool {
        self.state.step < self.extent.total_steps
    }

    /// One optimizer step.
    fn step(&mut self) -> Result<()> {
        let started = Instant::now();
        let step = self.state.step;
        let profiled = self.settings.profile_steps;
        if profiled.is_some_and(|range| range.first == step + 1) {
            self.engine.instruments().profiler(true)?;
            self.session.profiled = true;
        }
        let (head, features) = self.features(step);
        let set = self.sets[head].features();
        let targets: usize = features.iter().map(|&feature| set.targets(feature)).sum();
        self.engine.begin_step(step, targets);
        // The batches of this step, and the first one of the next.
        let mut batches = self.micro_batches(head, &features);
        let count = batches.len();
        if step + 1 < self.extent.total_steps {
            let (head, features) = self.features(step + 1);
            batches.extend(self.micro_batches(head, &features).into_iter().next());
        }
        let sets = self.sets;
        let from = |batch: &Contents| (sets[batch.head].features(), batch.clone());
        let engine = &mut *self.engine;
        let pipeline = self.session.pipeline.get_or_insert_with(|| Pipeline::new(engine));
        let mut batches = batches.into_iter().peekable();
        for _ in 0..count {
            let Some(batch) = batches.next() else { break };
            pipeline.run(from(&batch), batches.peek().map(from), |batch| engine.accumulate_packed(batch))?;
        }
        if step == 0 && targets > 0 {
            self.check_prefix()?;
        }
        let max_grad_norm = Some(self.settings.max_grad_norm).filter(|&norm| norm > 0.0);
        let learning_rate = self.rate.at(step);
        self.engine.finish_step(&Update { learning_rate, weight_decay: self.settings.weight_decay, max_grad_norm });
        let tokens: usize = features.iter().map(|&feature| set.tokens(feature)).sum();
        self.state.step += 1;
        self.state.tokens += tokens as u64;
        let report = self.engine.take_report();
        if self.session.profiled && profiled.is_some_and(|range| range.last == step + 1) {
            self.engine.instruments().profiler(false)?;
            self.session.profiled = false;
        }
        self.session.steps += 1;
        self.session.tokens += tokens as u64;
        self.session.training += started.elapsed();
        self.take(report)
    }

    /// What the micro-batches of a step hold.
    fn micro_batches(&self, head: usize, features: &[usize]) -> Vec<Contents> {
        let set = self.sets[head].features();
        let mut first_ordinal = 0;
        let contents = |batch: &[usize]| {
            let contents = Contents { head, features: batch.to_vec(), first_ordinal };
            first_ordinal += batch.iter().map(|&feature| set.features[feature].sequences).sum::<usize>();
            contents
        };
        self.cut.micro_batch.batches(set, features).into_iter().map(contents).collect()
    }

    /// The set of a step and its features there: a stretch of the order of the set's epoch, of which a step is the next one.
    fn features(&mut self, step: u64) -> (usize, Vec<usize>) {
        let (set, number) = self.session.draws.at(step);
        let features = self.sets[set].features();
        let steps = self.cut.steps_per_epoch(features) as u64;
        let (epoch, within) = (number / steps, (number % steps) as usize);
        let known = self.session.epochs[set].take().filter(|known| known.number == epoch);
        let known = known.unwrap_or_else(|| {
            let shuffled = self.settings.data_order == DataOrder::Shuffled;
            let order = epoch_order(features.features.len(), self.settings.seed, epoch, set, shuffled);
            let bounds = self.cut.steps(features, &order);
            SetEpoch { number: epoch, order, bounds }
        });
        let step = known.order[known.bounds[within]..known.bounds[within + 1]].to_vec();
        self.session.epochs[set] = Some(known);
        (set, step)
    }

    /// A prefix without gradient would stay as it was initialised, and nobody would notice.
    fn check_prefix(&mut self) -> Result<()> {
        if self.settings.prefix_length == 0 {
            return Ok(());
        }
        let layers = self.settings.layer_indices(self.spec.layers)?;
        for (index, norm) in self.engine.prefix_gradient_norms().iter().enumerate() {
            if *norm == 0.0 {
                let what = layers.get(index).map_or("prompt".to_string(), |layer| format!("prefix of layer {}", layer + 1));
                bail!("the {what} gets no gradient in the first step, so it would never learn; nothing was saved");
            }
        }
        Ok(())
    }

    /// Takes in what an earlier step reports. A step that cannot be used ends the run before anything of it is saved.
    fn take(&mut self, report: Option<StepReport>) -> Result<()> {
        let Some(StepReport { step, loss, grad_norm, scale, skipped }) = report else { return Ok(()) };
        self.engine.check()?;
        let done = step + 1;
        let rate = self.rate.at(step);
        // Of several sets, which one the step was of.
        let set = (self.sets.len() > 1).then(|| ("data_set", Value::from(self.sets[self.session.draws.at(step).0].name.as_str())));
        let row = |fields: Vec<(&str, Value)>| fields.into_iter().chain(set).map(|(name, value)| (name.to_string(), value)).collect();
        if skipped {
            self.session.skipped += 1;
            let fields = vec![("step", Value::from(done)), ("loss_scale", scale.into()), ("skipped", true.into())];
            return self.record.write(row(fields), None);
        }
        if !loss.is_finite() || !grad_norm.is_finite() {
            let what = if loss.is_finite() { "gradient norm" } else { "loss" };
            let value = if loss.is_finite() { grad_norm } else { loss };
            let cause = if step == 0 {
                "the frozen model itself overflows: check its weights and the adapter that the run starts from".to_string()
            } else {
                format!("most likely the learning rate ({rate:.2e} in this step) is too high: try a lower --learning-rate or --warmup")
            };
            let kept = match self.folder.checkpoints()?.last() {
                Some(step) => format!("; what was saved up to step {step} is untouched"),
                None => String::new(),
            };
            bail!("step {done}: the {what} is {value}; {cause}{kept}");
        }
        self.state.add_step(&self.extent, step, loss, grad_norm, rate);
        self.session.last_loss = Some(loss);
        let mut fields = vec![
            ("step", Value::from(done)),
            ("epoch", self.extent.epoch(done).into()),
            ("loss", loss.into()),
            ("grad_norm", grad_norm.into()),
            ("learning_rate", rate.into()),
        ];
        fields.extend(scale.map(|scale| ("loss_scale", Value::from(scale))));
        self.record.write(row(fields), self.session.tokens_per_second())
    }

    fn describe(&self) -> String {
        let rate = self.rate.at(self.state.step.saturating_sub(1));
        let speed = self.session.tokens_per_second().unwrap_or_default();
        let loss = self.session.last_loss.map_or("-".to_string(), decimals);
        let skipped = if self.session.skipped > 0 { format!("  {} skipped", self.session.skipped) } else { String::new() };
        format!("epoch {:.2}  loss {loss}  lr {rate:.2e}  {speed:.0} tokens/s{skipped}", self.extent.epoch(self.state.step))
    }

    /// Evaluates after the current step, and keeps the adapter at the root if it is the best. Where a signal comes in
    /// between, the evaluation stays pending.
    fn evaluate(&mut self, progress: &Progress) -> Result<()> {
        let started = Instant::now();
        let mut validated = Vec::new();
        for (head, set) in self.sets.iter().enumerate() {
            let Some(split) = set.data.validation.as_deref() else { continue };
            let features = &split.encoding.set;
            let forward = || evaluate::forward(self.engine, head, features, self.cut.micro_batch, self.terminal, self.interrupt);
            let Some(logits) = progress.pause(forward)? else { return Ok(()) };
            let task = &set.data.task;
            let threshold = match set.settings.null_threshold {
                Some(NullThreshold::Tuned) => task.tune_null_threshold(&split.examples, &split.encoding, &logits),
                _ => None,
            };
            let tuned = threshold.map(|threshold| task.as_ref().clone().with_null_threshold(threshold));
            let evaluation = Evaluation::new(tuned.as_ref().unwrap_or(task), &split.examples, &split.encoding, &logits)?;
            validated.push(Validated { name: set.name.clone(), metric: set.metric(), evaluation, threshold });
        }
        let validation = Validation { sets: validated };
        let (metric, scores) = (validation.metric(), validation.scores());
        let value = validation.value()?;
        let better = self.state.add_evaluation(&self.extent, value, metric == "loss", scores.clone());
        if better {
            if let Some(best) = &mut self.state.best {
                best.warnings = validation.warnings();
            }
            self.export(&validation.sets)?;
        }
        self.state.evaluation_pending = false;

        let mut row = Map::from_iter([("step".to_string(), Value::from(self.state.step))]);
        row.insert("epoch".to_string(), self.extent.epoch(self.state.step).into());
        row.extend(scores.iter().map(|(name, score)| (format!("eval_{name}"), score.clone())));
        row.extend(validation.thresholds());
        row.insert("best".to_string(), better.into());
        self.record.write(row, None)?;
        self.record.flush()?;
        progress.line(format!(
            "validation after step {} (epoch {:.2}): {}{} ({:.1} s){}",
            self.state.step,
            self.extent.epoch(self.state.step),
            validation.to_line(),
            if better { ", the best so far" } else { "" },
            started.elapsed().as_secs_f64(),
            validation.table()
        ));
        Ok(())
    }

    /// Writes the current adapter to the root, with the thresholds of "no answer" that were tuned for it.
    fn export(&mut self, validated: &[Validated]) -> Result<()> {
        let mut adapter = self.adapter()?;
        let metadata = &mut adapter.metadata;
        for Validated { name, threshold, .. } in validated.iter().filter(|set| set.threshold.is_some()) {
            match metadata.heads.get_mut(name) {
                Some(head) => head.null_threshold = *threshold,
                None => metadata.null_threshold = *threshold,
            }
        }
        self.session.export = Some(adapter.write(self.folder.root(), self.spec)?);
        Ok(())
    }

    /// The current adapter; an error where an update made it useless, which only the next step's loss would show.
    fn adapter(&mut self) -> Result<Adapter> {
        let tensors = self.engine.adapter_tensors();
        self.engine.check()?;
        if let Some((name, _)) = tensors.iter().find(|(_, tensor)| tensor.values.iter().any(|value| !value.is_finite())) {
            bail!(
                "step {}: {name} is not finite any more; the learning rate ({:.2e} in this step) is too high; this step was not saved",
                self.state.step,
                self.rate.at(self.state.step.saturating_sub(1))
            );
        }
        Ok(Adapter { metadata: self.metadata.clone(), tensors, foreign: false })
    }

    /// Saves a checkpoint of the current step. Everything that it counts on is on the disk before it: the record's
    /// lines, and the adapter at the root.
    fn save(&mut self) -> Result<()> {
        self.record.sync()?;
        if !self.validates() {
            self.export(&[])?;
        }
        let step = self.state.step;
        let adapter = self.adapter()?;
        let tensor_steps = self.engine.update_counts();
        self.engine.check()?;
        let state = TrainingState { step, tensor_steps, trainer: serde_json::to_value(&self.state)? };
        write_checkpoint(self.folder.root(), &adapter, self.spec, &state, self.engine)?;
        self.tidy()
    }

    /// What follows a checkpoint of the current step: the trainer's state beside it, and the checkpoints that it makes
    /// superfluous. A kill may have come at any moment of it, so a resumed run does this first.
    pub fn tidy(&self) -> Result<()> {
        remove_leftovers(self.folder.root())?;
        write_text(&self.folder.file(TRAINER_STATE), &self.state.to_trainer_state(&self.extent)?)?;
        let (step, extent) = (self.state.step, self.extent);
        let is_regular = |step| extent.save_every.is_due(step, extent.steps_per_epoch, extent.total_steps);
        self.folder.prune(step, self.settings.save_limit, is_regular)
    }
}

/// Writes a small file, all or nothing.
pub fn write_text(path: &std::path::Path, text: &str) -> Result<()> {
    write_atomically(path, |writer| Ok(writer.write_all(text.as_bytes())?))
}
