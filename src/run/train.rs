//! A training run from options to results: everything is opened and checked before the output folder is touched.

use super::device;
use super::folder::{CONFIG, Folder, METRICS, RESULTS, TRAINER_STATE, refuse_changes};
use super::interrupt::Interrupt;
use super::memory::{grouped, peak_resident_bytes, readable};
use super::options::TrainOptions;
use super::prepare::{self, Reader, Split};
use super::record::Record;
use super::schedule::LearningRate;
use super::settings::Settings;
use super::state::{Extent, RunState};
use super::terminal::{Terminal, clock};
use super::trainer::{Session, Trainer, write_text};
use super::values::Device;
use crate::checkpoint::{Adapter, FrozenModel, Metadata, TrainingState, latest_checkpoint, read_checkpoint};
use crate::data::TextTokenizer;
use crate::engine::{Capacity, Engine, EngineOptions, EngineState, PrefixInit, PrefixOptions};
use crate::model::HeadSpec;
use crate::task::{Limits, Task, require_labels};
use crate::usage;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// How a call of [`train`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// `--resume` found a run that is finished.
    WasFinished,
    /// By this signal; a checkpoint is saved.
    Interrupted(i32),
}

/// Trains, or goes on training, as the options say.
pub fn train(mut given: TrainOptions, interrupt: &Interrupt) -> Result<Outcome> {
    let Some(output) = &given.output else { usage!("--output is missing") };
    let folder = Folder::new(output);
    let resume = given.resume == Some(true);
    given.device = given.device.map(device::resolve).transpose()?;
    if !resume {
        given.validate()?;
    }
    let saved = folder.claim(resume)?;
    let options = match &saved {
        Some(saved) => {
            refuse_changes(&given, saved)?;
            given.over(saved)?
        }
        None => given,
    };
    options.validate()?;
    let terminal = Terminal::new(options.quiet == Some(true));
    if saved.is_some() && folder.is_finished() {
        terminal.line(format!("{}: this run is finished; nothing is left to do", folder.root().display()));
        return Ok(Outcome::WasFinished);
    }
    let prepared = Prepared::new(options, &terminal)?;
    prepared.run(&folder, &terminal, interrupt)
}

/// Everything that is read, checked and complete before a run begins.
struct Prepared {
    options: TrainOptions,
    settings: Settings,
    model: FrozenModel,
    /// The adapter to start from.
    adapter: Option<Adapter>,
    task: Task,
    head: HeadSpec,
    prefix: PrefixOptions,
    metric: String,
    train: Split,
    validation: Option<Split>,
    /// What is read, by its contents: a resumed run must read the same.
    inputs: BTreeMap<String, String>,
}

impl Prepared {
    fn new(options: TrainOptions, terminal: &Terminal) -> Result<Prepared> {
        let mut options = options.with_defaults();
        options.device = Some(device::resolve(options.device.unwrap_or(Device::Auto))?);
        let model = FrozenModel::open(options.model.as_deref().context("--model is missing")?)?;
        let mut adapter = options.init_adapter.as_deref().map(Adapter::read).transpose()?;
        options = options.complete(&model.spec, adapter.as_ref())?;
        if let Some(adapter) = &mut adapter {
            adapter.metadata.task = options.task;
            for warning in adapter.check(&model)? {
                terminal.line(format!("warning: {warning}"));
            }
        }
        let mut settings = Settings::new(&options)?;
        let spec = &model.spec;
        let kind = settings.task;
        let tokenizer = TextTokenizer::open(&settings.model, spec)?;
        let limits = Limits { max_length: settings.max_length, doc_stride: settings.doc_stride };
        let reader = Reader { kind, columns: options.columns(), limits, tokenizer: &tokenizer, terminal };

        let mut examples = reader.read(&settings.data)?;
        require_labels(&examples, "training")?;
        let labels = prepare::labels(kind, &examples, spec, adapter.as_ref())?;
        let task = Task::new(kind, labels).with_no_answer(examples.iter().any(prepare::is_unanswerable));
        let metric = settings.metric.clone().unwrap_or_else(|| task.default_metric().to_string());
        if metric != "loss" && !task.metrics().contains(&metric.as_str()) {
            usage!("--metric {metric}: {} has {} and loss", kind.name(), task.metrics().join(", "));
        }
        if settings.validation.is_some() {
            options.metric = Some(metric.clone());
        }
        examples.truncate(settings.max_train_samples.unwrap_or(usize::MAX));
        let train = reader.encode("training data", &task, examples)?;
        let validation = match &settings.validation {
            Some(path) => {
                let examples = reader.read(path)?;
                require_labels(&examples, "validation")?;
                Some(reader.encode("validation data", &task, examples)?)
            }
            None => None,
        };
        if train.encoding.set.features.is_empty() {
            bail!("{}: no example has a single token to train on", settings.data.display());
        }

        let head = task.head(settings.head);
        let prefix = PrefixOptions {
            length: settings.prefix_length,
            layers: settings.layer_indices(spec.layers)?,
            projection: settings.prefix_projection,
            shifted: settings.shifted(),
            dropout: settings.prefix_dropout,
        };
        for split in [Some(&train), validation.as_ref()].into_iter().flatten() {
            prepare::check_positions(spec, &prefix, split.encoding.set.longest_sequence())?;
        }
        let mut inputs = BTreeMap::from([("model".to_string(), model.checkpoint.fingerprint())]);
        inputs.insert("data".to_string(), digest(&settings.data)?);
        if let Some(path) = &settings.validation {
            inputs.insert("validation".to_string(), digest(path)?);
        }
        settings.metric = options.metric.clone();
        Ok(Prepared { options, settings, model, adapter, task, head, prefix, metric, train, validation, inputs })
    }

    fn extent(&self) -> Result<(Extent, LearningRate)> {
        let settings = &self.settings;
        let step_size = settings.batch_size * settings.gradient_accumulation;
        let steps_per_epoch = self.train.encoding.set.features.len().div_ceil(step_size) as u64;
        let total_steps = settings.max_steps.unwrap_or(settings.epochs.unwrap_or(1) * steps_per_epoch);
        let warmup_steps = settings.warmup.steps(total_steps);
        if warmup_steps >= total_steps {
            usage!("--warmup {}: the run has {total_steps} steps, so the learning rate would never reach its peak", settings.warmup);
        }
        let extent = Extent {
            batch_size: settings.batch_size,
            steps_per_epoch,
            total_steps,
            logging_steps: (total_steps / 100).clamp(1, 500),
            eval_every: settings.eval_every,
            save_every: settings.save_every,
        };
        let rate = LearningRate { peak: settings.learning_rate, schedule: settings.schedule, warmup_steps, total_steps, steps_per_epoch };
        Ok((extent, rate))
    }

    fn metadata(&self) -> Metadata {
        let (settings, spec) = (&self.settings, &self.model.spec);
        let labels = self.task.labels();
        Metadata {
            task: Some(settings.task),
            labels: (!labels.is_empty()).then(|| labels.to_vec()),
            head: settings.head,
            prefix_length: settings.prefix_length,
            prefix_layers: if settings.prefix_length == 0 { (0..spec.layers).collect() } else { self.prefix.layers.clone() },
            model_layers: spec.layers,
            prefix_projection: settings.prefix_projection,
            shifted_positions: settings.shifted(),
            prefix_dropout: settings.prefix_dropout,
            hidden_dropout: settings.hidden_dropout,
            attention_dropout: settings.attention_dropout,
            max_length: Some(settings.max_length),
            doc_stride: Some(settings.doc_stride),
            no_answer: self.train.examples.iter().any(prepare::is_unanswerable),
            base_model: settings.model.display().to_string(),
            fingerprint: Some(self.model.checkpoint.fingerprint()),
        }
    }

    /// The engine with its initial values, or those of the adapter to start from.
    fn engine(&self) -> Result<Engine> {
        let settings = &self.settings;
        let mut capacity = Capacity::for_items(&self.train.encoding.set, &self.head, settings.batch_size, true);
        if let Some(split) = &self.validation {
            capacity = capacity.union(Capacity::for_items(&split.encoding.set, &self.head, settings.batch_size, false));
        }
        let options = EngineOptions {
            prefix: self.prefix.clone(),
            head: self.head.clone(),
            hidden_dropout: settings.hidden_dropout,
            attention_dropout: settings.attention_dropout,
            seed: settings.seed,
        };
        let mut engine = Engine::new(device::open(settings.device)?, &self.model, options, capacity)?;
        engine.initialise(settings.prefix_init);
        if let Some(adapter) = &self.adapter {
            engine.load_adapter(adapter)?;
        }
        Ok(engine)
    }

    fn run(&self, folder: &Folder, terminal: &Terminal, interrupt: &Interrupt) -> Result<Outcome> {
        let settings = &self.settings;
        let (extent, rate) = self.extent()?;
        let checkpoint = latest_checkpoint(folder.root())?;
        let mut engine = self.engine()?;
        let state = match &checkpoint {
            Some(path) => self.restore(path, &mut engine).with_context(|| format!("cannot resume from {}", path.display()))?,
            None => RunState { inputs: self.inputs.clone(), ..RunState::default() },
        };
        self.describe(&engine, &extent, terminal);

        folder.open()?;
        if checkpoint.is_none() {
            write_text(&folder.file(CONFIG), &self.options.to_toml()?)?;
        } else {
            terminal.line(format!("resuming after step {} of {}", state.step, extent.total_steps));
        }
        let record = Record::open(&folder.file(METRICS), state.step, state.evaluation_pending)?;
        let mut trainer = Trainer {
            settings,
            spec: &self.model.spec,
            task: &self.task,
            train: &self.train,
            validation: self.validation.as_ref(),
            metric: &self.metric,
            metadata: self.metadata(),
            extent,
            rate,
            folder,
            terminal,
            interrupt,
            engine,
            record,
            state,
            session: Session::default(),
        };
        if let Some(signal) = trainer.run()? {
            terminal.line(format!(
                "stopped by {} after step {} of {}; go on with: ptune train --output {} --resume",
                if signal == signal_hook::consts::SIGINT { "Ctrl-C" } else { "SIGTERM" },
                trainer.state.step,
                extent.total_steps,
                folder.root().display()
            ));
            return Ok(Outcome::Interrupted(signal));
        }
        self.finish(trainer)?;
        Ok(Outcome::Finished)
    }

    /// Puts a checkpoint's state in place of the initial one.
    fn restore(&self, checkpoint: &Path, engine: &mut Engine) -> Result<RunState> {
        let TrainingState { tensors, tensor_steps, trainer, .. } = read_checkpoint(checkpoint)?;
        let state: RunState = serde_json::from_value(trainer).context("field trainer of state.json is damaged")?;
        for (name, digest) in &self.inputs {
            if state.inputs.get(name) != Some(digest) {
                bail!("--{name} is not what the run was started with: its contents differ; restore it, or start a new run");
            }
        }
        engine.restore(&EngineState { tensors, steps: tensor_steps })?;
        Ok(state)
    }

    /// Says what is trained, on what, and what it takes.
    fn describe(&self, engine: &Engine, extent: &Extent, terminal: &Terminal) {
        let (settings, spec) = (&self.settings, &self.model.spec);
        terminal.line(format!(
            "model: {} ({}), {} layers, hidden size {}, {} parameters, all frozen",
            settings.model.display(),
            spec.family,
            spec.layers,
            spec.hidden_size,
            grouped(spec.parameters() as u64)
        ));
        if let Some(note) = prepare::pooler_note(&self.model, self.head.pooling, self.adapter.as_ref()) {
            terminal.line(format!("note: {note}"));
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
        match &settings.prefix_layers {
            None => terminal.line("prefix: none, the head alone is trained"),
            Some(layers) => terminal.line(format!(
                "prefix: {} positions in layers {layers} of {}, {}, {} positions",
                settings.prefix_length,
                spec.layers,
                match (settings.prefix_projection, settings.prefix_init, &self.adapter) {
                    (_, _, Some(_)) => "from the adapter".to_string(),
                    (Some(hidden), ..) => format!("projected through {hidden} tanh units"),
                    (None, PrefixInit::Normal, None) => "from N(0, 0.02)".to_string(),
                    (None, PrefixInit::Zero, None) => "from zero".to_string(),
                },
                if settings.shifted() { "shifted" } else { "unshifted" },
            )),
        }
        terminal.line("memory plan:");
        terminal.line(engine.plan().to_string().trim_end());
        terminal.line(format!(
            "run: {} steps, {} an epoch, of {} x {} items; {}, peak learning rate {:e}",
            grouped(extent.total_steps),
            grouped(extent.steps_per_epoch),
            settings.gradient_accumulation,
            settings.batch_size,
            match settings.schedule {
                super::schedule::Schedule::Linear => "linear schedule",
                super::schedule::Schedule::Constant => "constant schedule",
                super::schedule::Schedule::Exponential => "exponential schedule",
            },
            settings.learning_rate
        ));
    }

    /// Writes the results, and tells them.
    fn finish(&self, mut trainer: Trainer) -> Result<()> {
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
        let scored = self.validation.as_ref().unwrap_or(&self.train);
        let majority = self.task.majority(&scored.examples);
        let (seconds, planned) = (trainer.record.seconds(), trainer.engine.plan().total);
        let results = json!({
            "task": self.settings.task,
            "steps": trainer.state.step,
            "epochs": epoch,
            "stopped_early": trainer.stopped_early(),
            "train_loss": trainer.state.mean_loss(),
            "tokens": trainer.state.tokens,
            "metric": self.validation.is_some().then_some(&self.metric),
            "best_step": trainer.state.best.as_ref().map(|best| best.step),
            "scores": trainer.state.best.as_ref().map_or(Map::new(), |best| best.scores.clone()),
            "majority": majority.as_ref().map(|(label, share)| json!({ "prediction": label, "accuracy": share })),
            "peft_type": export.peft_type,
            "adapter_bytes": export.bytes,
            "planned_bytes": planned,
            "mapped_bytes": self.model.checkpoint.total_bytes(),
            "timing": {
                "seconds": seconds,
                "tokens_per_second": trainer.session.tokens_per_second(),
                "peak_resident_bytes": peak_resident_bytes(),
            },
        });
        write_text(&folder.file(RESULTS), &(serde_json::to_string_pretty(&results)? + "\n"))?;

        let state = &trainer.state;
        let early = if trainer.stopped_early() { ", stopped early: the score no longer got better" } else { "" };
        terminal.line(format!(
            "finished: {} steps in {}{early}; mean training loss {:.4}",
            grouped(state.step),
            clock(Duration::from_secs_f64(seconds)),
            state.mean_loss()
        ));
        match &state.best {
            Some(best) => terminal.line(format!("best by {} after step {}: {}", self.metric, best.step, scores_line(&best.scores))),
            None => terminal.line("there was no --validation: the adapter is that of the last step"),
        }
        if let Some((label, share)) = majority {
            let of = if self.validation.is_some() { "validation" } else { "training" };
            terminal.line(format!("always answering {label:?} would be right on {share:.4} of the {of} data"));
        }
        let peak = peak_resident_bytes().map_or(String::new(), |bytes| format!("; peak resident memory {}", readable(bytes)));
        terminal.line(format!("memory: {} planned{peak}", readable(planned as u64)));
        terminal.line(format!("adapter: {} ({}), peft_type {}", folder.root().display(), readable(export.bytes), export.peft_type));
        for reason in &export.reasons {
            terminal.line(format!("  not PREFIX_TUNING: {reason}"));
        }
        terminal.line(format!("records: {METRICS}, {TRAINER_STATE}, {RESULTS} and checkpoints in the same folder"));
        Ok(())
    }
}

fn scores_line(scores: &Map<String, Value>) -> String {
    let parts: Vec<String> = scores.iter().map(|(name, value)| format!("{name} {:.4}", value.as_f64().unwrap_or(f64::NAN))).collect();
    parts.join(", ")
}

/// SHA-256 of a file.
fn digest(path: &Path) -> Result<String> {
    let context = || format!("cannot read {}", path.display());
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path).with_context(context)?;
    let mut block = vec![0; 1 << 16];
    loop {
        match file.read(&mut block).with_context(context)? {
            0 => break,
            read => hasher.update(&block[..read]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
