//! What a run says of itself: at its beginning what is trained and what it takes, at its end what came out.

use super::card;
use super::data_set::DataSet;
use super::folder::{CARD, METRICS, PLOT, RESULTS, TRAINER_STATE};
use super::memory::{allowance, grouped, loading_line, measured_line, peak_resident_bytes, readable};
use super::plot::{Chart, Series, to_svg};
use super::prepare;
use super::schedule::Schedule;
use super::state::{Extent, RunState};
use super::terminal::{Terminal, clock, decimals};
use super::train::Prepared;
use super::trainer::{Trainer, write_text};
use super::validation::chosen_by;
use super::values::{LabelWords, Method, PrefixStart};
use crate::checkpoint::Adapter;
use crate::engine::Engine;
use crate::model::TaskKind;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::time::Duration;

impl Prepared {
    /// Says what is trained, on what, and what it takes.
    pub(super) fn describe(&self, engine: &Engine, extent: &Extent, terminal: &Terminal) {
        let (settings, spec) = (&self.settings, &self.model.spec);
        terminal.line(format!(
            "model: {} ({}), {} layers, hidden size {}, {} parameters, all frozen",
            settings.base().description(),
            spec.family,
            spec.layers,
            spec.hidden_size,
            grouped(spec.parameters() as u64)
        ));
        terminal.line(loading_line(engine.loading()));
        let note = |set: &DataSet| prepare::pooler_note(&self.model, set.head.pooling, set.start.as_ref());
        if let Some(note) = self.sets.iter().find_map(note) {
            terminal.line(format!("note: {note}"));
        }
        for (set, share) in self.sets.iter().zip(&self.shares) {
            if self.sets.len() > 1 {
                let steps = grouped(*share as u64);
                let head = if set.has_head_to_start_from() { "goes on from the adapter's" } else { "is new" };
                terminal.line(format!("data set {}: {}, {steps} steps of an epoch; its head {head}", set.name, set.settings.task));
            } else if set.start.is_some() && !set.has_head_to_start_from() {
                terminal.line("head: new, on the prefix of the adapter");
            }
            set.describe(terminal);
        }
        let trainables = engine.trainables();
        let sizes: Vec<u64> = trainables.iter().map(|tensor| (tensor.shape[0] * tensor.shape[1]) as u64).collect();
        let total: u64 = sizes.iter().sum();
        for (tensor, size) in trainables.iter().zip(&sizes) {
            terminal.line(format!("  trained: {:<44} {:>6} x {:<6} {:>12}", tensor.name, tensor.shape[0], tensor.shape[1], grouped(*size)));
        }
        terminal.line(format!(
            "trained: {} tensors, {} parameters, {:.2} % of the model",
            trainables.len(),
            grouped(total),
            100.0 * total as f64 / spec.parameters() as f64
        ));
        let prompt = settings.method == Method::Prompt;
        let start = match (settings.prefix_projection, &settings.prefix_init, &self.sets[0].start) {
            (_, _, Some(_)) => "from the adapter".to_string(),
            (Some(hidden), ..) => format!("projected through {hidden} tanh units"),
            (None, PrefixStart::Normal, None) => "from N(0, 0.02)".to_string(),
            (None, PrefixStart::Zero, None) => "from zero".to_string(),
            (None, PrefixStart::Text(_) | PrefixStart::File(_), None) if prompt => "from the embeddings of a text".to_string(),
            (None, PrefixStart::Text(_) | PrefixStart::File(_), None) => "from the keys and values of a text".to_string(),
        };
        match &settings.prefix_layers {
            _ if prompt => terminal.line(format!("prompt: {} embeddings in front of the input, {start}", settings.prefix_length)),
            None => terminal.line("prefix: none, the head alone is trained"),
            Some(layers) => terminal.line(format!(
                "prefix: {} positions in layers {layers} of {}, {start}, {} positions",
                settings.prefix_length,
                spec.layers,
                if settings.shifted() { "shifted" } else { "unshifted" },
            )),
        }
        terminal.line(format!("memory plan on {}:", engine.device()));
        terminal.line(engine.plan().to_string().trim_end());
        terminal.line(format!(
            "run: {} steps, {} an epoch, of {} in micro-batches of {}; {}, peak learning rate {:e}",
            grouped(extent.total_steps),
            grouped(extent.steps_per_epoch),
            self.cut.step,
            self.cut.micro_batch,
            match settings.schedule {
                Schedule::Linear => "linear schedule",
                Schedule::Constant => "constant schedule",
                Schedule::Cosine => "cosine schedule",
                Schedule::Exponential => "exponential schedule",
            },
            settings.learning_rate
        ));
    }

    /// Writes the results, and tells them.
    pub(super) fn finish(&self, mut trainer: Trainer) -> Result<()> {
        let (folder, terminal, state) = (trainer.folder, trainer.terminal, &mut trainer.state);
        let epoch = trainer.extent.epoch(state.step);
        state.history.push(json!({ "epoch": epoch, "step": state.step, "train_loss": state.mean_loss() }));
        trainer.record.sync()?;
        write_text(&folder.file(TRAINER_STATE), &state.to_trainer_state(&trainer.extent)?)?;
        // A run that was resumed at its very end wrote no adapter; written again, it has the same bytes.
        let export = match trainer.session.export.take() {
            Some(export) => export,
            None => Adapter::read(folder.root())?.write(folder.root(), &self.model.spec)?,
        };
        let validates = self.sets.iter().any(|set| set.data.validation.is_some());
        let metric = self.metric();
        // Of several sets each by its name.
        let majority: Vec<_> = self.sets.iter().filter_map(|set| Some((set, set.majority()?))).collect();
        let to_json = |(label, share): &(String, f64)| json!({ "prediction": label, "accuracy": share });
        let several = self.sets.len() > 1;
        let majority_json = match (&majority[..], several) {
            ([], false) => Value::Null,
            ([(_, only)], false) => to_json(only),
            (all, _) => all.iter().map(|(set, majority)| (set.name.clone(), to_json(majority))).collect::<Map<_, _>>().into(),
        };
        let tasks: Vec<_> = self.sets.iter().map(|set| set.settings.task).collect();
        let warnings = self.warnings(&trainer.state);
        let (seconds, planned, host) = (trainer.record.seconds(), trainer.engine.plan().total, trainer.engine.plan().host);
        let grown = trainer.engine.device_grown_bytes();
        if let Some(drawn) = to_svg(&charts(&trainer.state.history, &metric))? {
            write_text(&folder.file(PLOT), &drawn)?;
        }
        let best = trainer.state.best.as_ref();
        write_text(&folder.file(CARD), &card::text(self, folder.root(), trainer.state.step, best.map(|best| &best.scores), &export))?;
        // Behind everything that takes memory.
        let results = json!({
            "task": if several { json!(tasks) } else { json!(self.settings.task) },
            "steps": trainer.state.step,
            "epochs": epoch,
            "stopped_early": trainer.stopped_early(),
            "train_loss": trainer.state.mean_loss(),
            "tokens": trainer.state.tokens,
            "metric": validates.then_some(&metric),
            "best_step": trainer.state.best.as_ref().map(|best| best.step),
            "scores": trainer.state.best.as_ref().map_or(Map::new(), |best| best.scores.clone()),
            "warnings": warnings,
            "majority": majority_json,
            "peft_type": export.peft_type,
            "adapter_bytes": export.bytes,
            "planned_bytes": planned,
            "planned_host_bytes": host,
            "mapped_bytes": self.model.file_bytes(),
            "timing": {
                "seconds": seconds,
                "tokens_per_second": trainer.session.tokens_per_second(),
                "peak_resident_bytes": peak_resident_bytes(),
                "device_grown_bytes": grown,
            },
        });
        write_text(&folder.file(RESULTS), &(serde_json::to_string_pretty(&results)? + "\n"))?;

        let state = &trainer.state;
        let early = if trainer.stopped_early() { ", stopped early: the score no longer got better" } else { "" };
        terminal.line(format!(
            "finished: {} steps in {}{early}; mean training loss {}",
            grouped(state.step),
            clock(Duration::from_secs_f64(seconds)),
            decimals(state.mean_loss())
        ));
        match &state.best {
            Some(best) => terminal.line(format!("best by {metric} after step {}: {}", best.step, scores_line(&best.scores))),
            None => terminal.line("there was no --validation: the adapter is that of the last step"),
        }
        for (set, (label, share)) in majority {
            let of = if set.data.validation.is_some() { "validation" } else { "training" };
            let name = if several { format!(" of {}", set.name) } else { String::new() };
            terminal.line(format!("always answering {label:?} would be right on {share:.4} of the {of} data{name}"));
        }
        warnings.iter().for_each(|warning| terminal.warn(warning));
        terminal.line(format!("memory: {}", measured_line(planned, grown, host)));
        if let Some(grown) = grown.filter(|grown| grown.abs_diff(planned) > allowance(planned)) {
            terminal.warn(format!(
                "the device's memory in use changed by {}, where {} were planned: does another program use it?",
                readable(grown as u64),
                readable(planned as u64)
            ));
        }
        terminal.line(format!("adapter: {} ({}), peft_type {}", folder.root().display(), readable(export.bytes), export.peft_type));
        for reason in &export.reasons {
            let peft_type = if self.settings.method == Method::Prompt { "PROMPT_TUNING" } else { "PREFIX_TUNING" };
            terminal.line(format!("  not {peft_type}: {reason}"));
        }
        terminal.line(format!("records: {METRICS}, {PLOT}, {TRAINER_STATE}, {RESULTS} and checkpoints in the same folder"));
        Ok(())
    }

    /// The score that chooses the best adapter.
    pub(super) fn metric(&self) -> String {
        chosen_by(&self.sets.iter().map(DataSet::metric).collect::<Vec<_>>()).to_string()
    }

    /// What there is to say against the result: against the best evaluation, or without any against the latest losses.
    fn warnings(&self, state: &RunState) -> Vec<String> {
        let said = state.best.as_ref().map(|best| best.warnings.clone());
        // Losses of several data sets are not those of one.
        let [set] = self.sets.as_slice() else { return said.unwrap_or_default() };
        let latest = state.history.iter().rev().find_map(|row| row.get("loss")?.as_f64());
        let comparable = matches!(set.settings.task.kind(), TaskKind::Classification | TaskKind::MultipleChoice | TaskKind::Tagging);
        let balance = set.data.task.balance(&set.data.train.examples).filter(|_| comparable);
        if let (Some(loss), Some(balance)) = (latest, &balance)
            && balance.uniform() > 0.0
            && loss > 2.0 * balance.uniform()
        {
            let grown = format!(
                "the loss of the last steps is {}, where guessing has {:.4}: the loss grew: use a lower --learning-rate",
                decimals(loss),
                balance.uniform()
            );
            return std::iter::once(grown).chain(said.unwrap_or_default()).collect();
        }
        match (latest, balance.filter(|_| said.is_none())) {
            (Some(loss), Some(balance)) if balance.entropy() > 0.0 && loss >= 0.97 * balance.entropy() => vec![format!(
                "the loss of the last steps is {loss:.4}, and knowing nothing but how the answers are spread gives {:.4}: the model learned little else",
                balance.entropy()
            )],
            _ => said.unwrap_or_default(),
        }
    }
}

impl DataSet {
    /// Says what the labels are and how they are spread.
    fn describe(&self, terminal: &Terminal) {
        let labels = self.data.task.labels();
        if !labels.is_empty() {
            let spelled = |(index, label): (usize, &String)| match &self.settings.verbalizer {
                Some(LabelWords { words, .. }) => format!("{label} as {:?}", words[index]),
                None => label.clone(),
            };
            let shown = labels.iter().enumerate().take(20).map(spelled).collect::<Vec<_>>().join(", ");
            terminal.line(format!("labels: {}: {shown}{}", labels.len(), if labels.len() > 20 { ", ..." } else { "" }));
        }
        if let Some(balance) = self.data.task.balance(&self.data.train.examples) {
            terminal.line(format!("answers in the training data: {}", balance.to_line()));
        }
    }

    /// The most frequent answer, and its share, in what is scored.
    fn majority(&self) -> Option<(String, f64)> {
        let scored = self.data.validation.as_ref().unwrap_or(&self.data.train);
        self.data.task.majority(&scored.examples)
    }
}

/// Loss, and the score that chooses, over the steps.
fn charts(history: &[Value], metric: &str) -> Vec<Chart> {
    let points =
        |name: &str| -> Vec<(f64, f64)> { history.iter().filter_map(|row| Some((row["step"].as_f64()?, row[name].as_f64()?))).collect() };
    let series = |name: &str, points: Vec<(f64, f64)>, dots| Series { name: name.to_string(), points, dots };
    let mut losses = vec![series("training", points("loss"), false)];
    let validation = points("eval_loss");
    if !validation.is_empty() {
        losses.push(series("validation", validation, true));
    }
    let chart = |title: &str, y_label: &str, series| Chart {
        title: title.to_string(),
        x_label: "step".to_string(),
        y_label: y_label.to_string(),
        series,
    };
    let scores = if metric == "loss" { Vec::new() } else { points(&format!("eval_{metric}")) };
    vec![chart("Loss", "loss", losses), chart("Validation", metric, vec![series(metric, scores, true)])]
}

fn scores_line(scores: &Map<String, Value>) -> String {
    let parts: Vec<String> =
        scores.iter().map(|(name, value)| format!("{name} {}", decimals(value.as_f64().unwrap_or(f64::NAN)))).collect();
    parts.join(", ")
}
