//! A training run from options to results: everything is opened and checked before the output folder is touched.

use super::base::BaseOptions;
use super::cut::{Cut, Size, longest_feature};
use super::device;
use super::folder::{CONFIG, Folder, METRICS, refuse_changes};
use super::interrupt::Interrupt;
use super::options::TrainOptions;
use super::plan::{self, Target, Workload};
use super::prepare::{self, Reader, Split};
use super::recipes;
use super::record::Record;
use super::schedule::LearningRate;
use super::settings::Settings;
use super::state::{Extent, RunState};
use super::terminal::Terminal;
use super::trainer::{Session, Trainer, write_text};
use super::values::{Device, NullThreshold, PrefixStart};
use crate::checkpoint::{Adapter, FrozenModel, Metadata, TrainingState, latest_checkpoint, read_checkpoint, restore_tensors};
use crate::data::{TagScheme, TextTokenizer};
use crate::engine::{Engine, EngineOptions, MemoryMode, PrefixInit, PrefixOptions};
use crate::model::HeadSpec;
use crate::task::{Limits, Task, TaskName, Verbalizer, require_labels};
use crate::usage;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// How a call of [`train`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// `--resume` found a run that is finished.
    WasFinished,
    /// By this signal; a checkpoint is saved.
    Interrupted(i32),
}

/// What runs of one process have in common: the model with its mapped files, and data that was read and encoded.
#[derive(Default)]
pub struct Shared {
    model: Option<(BaseOptions, Arc<FrozenModel>)>,
    /// The latest data, and the options that it depends on.
    data: Option<(toml::Table, Data)>,
}

/// Options that change nothing of what is read and how it is encoded.
const NOT_OF_DATA: [&str; 36] = [
    "output",
    "method",
    "prefix-length",
    "prefix-projection",
    "prefix-layers",
    "prefix-init",
    "positions",
    "head",
    "prefix-dropout",
    "hidden-dropout",
    "attention-dropout",
    "learning-rate",
    "schedule",
    "warmup",
    "weight-decay",
    "max-grad-norm",
    "batch-size",
    "gradient-accumulation",
    "tokens-per-step",
    "memory-budget",
    "recompute",
    "weights",
    "offload-activations",
    "layer-major",
    "weight-format",
    "micro-batch-size",
    "micro-batch-tokens",
    "epochs",
    "max-steps",
    "seed",
    "eval-every",
    "patience",
    "save-every",
    "save-limit",
    "quiet",
    "threads",
];

impl Shared {
    fn model(&mut self, base: BaseOptions) -> Result<Arc<FrozenModel>> {
        match &self.model {
            Some((known, model)) if *known == base => Ok(model.clone()),
            _ => {
                let model = Arc::new(base.open()?);
                self.model = Some((base, model.clone()));
                Ok(model)
            }
        }
    }

    fn data(&mut self, options: &TrainOptions, read: impl FnOnce() -> Result<Data>) -> Result<Data> {
        let mut key = options.to_table()?;
        key.retain(|name, _| !NOT_OF_DATA.contains(&name));
        match &self.data {
            Some((known, data)) if *known == key => Ok(data.clone()),
            _ => {
                self.data = None; // its memory is given back before the next is read
                let data = read()?;
                self.data = Some((key, data.clone()));
                Ok(data)
            }
        }
    }
}

/// What was read, and what it says of the task.
#[derive(Clone)]
struct Data {
    task: Arc<Task>,
    no_answer: bool,
    tag_scheme: Option<TagScheme>,
    train: Arc<Split>,
    validation: Option<Arc<Split>>,
    /// The files, by their contents.
    inputs: BTreeMap<String, String>,
}

/// Trains, or goes on training, as the options say.
pub fn train(given: TrainOptions, interrupt: &Interrupt) -> Result<Outcome> {
    train_with(given, interrupt, &mut Shared::default())
}

/// [`train`] as one of several runs.
pub fn train_with(mut given: TrainOptions, interrupt: &Interrupt, shared: &mut Shared) -> Result<Outcome> {
    if let Some(name) = given.recipe.take() {
        given = given.over(&recipes::find(&name)?.options())?;
    }
    let Some(output) = &given.output else { usage!("--output is missing") };
    let folder = Folder::new(output);
    let resume = given.resume == Some(true);
    given.device.map_or(Ok(()), device::check)?;
    if resume && given.device == Some(Device::Auto) {
        given.device = None; // a run goes on where it began
    }
    if !resume {
        given.locate(None)?;
        given.validate()?;
    }
    let saved = folder.claim(resume)?;
    if let Some(saved) = &saved {
        given.locate(saved.task)?;
    }
    let options = match &saved {
        Some(saved) => {
            refuse_changes(&given, saved)?;
            given.over(saved)?
        }
        None => {
            given.locate(None)?;
            given
        }
    };
    options.validate()?;
    let terminal = Terminal::new(options.quiet == Some(true));
    if saved.is_some() && folder.is_finished() {
        terminal.line(format!("{}: this run is finished; nothing is left to do", folder.root().display()));
        return Ok(Outcome::WasFinished);
    }
    let prepared = Prepared::new(options, &terminal, shared)?;
    prepared.run(&folder, &terminal, interrupt)
}

/// Everything that is read, checked and complete before a run begins.
pub(super) struct Prepared {
    pub(super) options: TrainOptions,
    pub(super) settings: Settings,
    pub(super) model: Arc<FrozenModel>,
    /// The adapter to start from.
    pub(super) adapter: Option<Adapter>,
    pub(super) task: Arc<Task>,
    /// Whether questions may have no answer: some of the training data have none.
    pub(super) no_answer: bool,
    /// How the training data spell spans.
    pub(super) tag_scheme: Option<TagScheme>,
    pub(super) head: HeadSpec,
    pub(super) prefix: PrefixOptions,
    pub(super) metric: String,
    pub(super) train: Arc<Split>,
    pub(super) validation: Option<Arc<Split>>,
    /// The tokens that the prefix starts from, where it does from a text.
    pub(super) prefix_tokens: Option<Vec<u32>>,
    /// What is read, by its contents: a resumed run must read the same.
    pub(super) inputs: BTreeMap<String, String>,
    pub(super) cut: Cut,
    pub(super) memory: MemoryMode,
}

impl Prepared {
    fn new(options: TrainOptions, terminal: &Terminal, shared: &mut Shared) -> Result<Prepared> {
        let mut options = options.with_defaults();
        options.device = Some(device::resolve(options.device.unwrap_or(Device::Auto), terminal)?);
        device::check_profiling(options.profile_steps, options.device)?;
        let model = shared.model(options.base())?;
        let mut adapter = options.init_adapter.as_deref().map(Adapter::read).transpose()?;
        let directory = options.tokenizer_directory()?;
        let tokenizer = || TextTokenizer::open(&directory, &model.spec);
        let prefix_tokens = match options.prefix_init.as_ref().filter(|start| start.is_text()) {
            Some(start) => prepare::prefix_text(start, &tokenizer()?)?,
            None => None,
        };
        if let Some(tokens) = &prefix_tokens {
            let room = model.spec.longest_sequence(0);
            if tokens.len() > room {
                usage!("--prefix-init: the text has {} tokens, the model {room} positions; use a shorter one", tokens.len());
            }
            options.set_prefix_length(tokens.len())?;
        }
        options = options.complete(&model.spec, adapter.as_ref())?;
        if let Some(adapter) = &mut adapter {
            adapter.metadata.task = options.task.map(TaskName::kind);
            if let (true, Some(words)) = (adapter.foreign, &options.verbalizer) {
                adapter.metadata.set_words(&words.labels, &words.words);
            }
            for warning in adapter.check(&model)? {
                terminal.warn(warning);
            }
        }
        let settings = Settings::new(&options)?;
        prepare::check_words(&model, settings.verbalizer.as_ref())?;
        let data = shared.data(&options, || Self::read(&options, &settings, &model, adapter.as_ref(), terminal))?;
        let mut prepared = Self::assemble(options, settings, model, adapter, prefix_tokens, data)?;
        prepared.fit(terminal)?;
        Ok(prepared)
    }

    /// Reads and encodes the data.
    fn read(
        options: &TrainOptions,
        settings: &Settings,
        model: &FrozenModel,
        adapter: Option<&Adapter>,
        terminal: &Terminal,
    ) -> Result<Data> {
        let spec = &model.spec;
        let (name, kind) = (settings.task, settings.task.kind());
        let template = settings.template.unwrap_or(0);
        let tokenizer = TextTokenizer::open(&options.tokenizer_directory()?, spec)?;
        let limits = Limits { max_length: settings.max_length, doc_stride: settings.doc_stride };
        let reader = Reader { task: name, template, columns: options.columns(), limits, tokenizer: &tokenizer, terminal };

        let mut examples = reader.read(&settings.data)?;
        require_labels(&examples, "training")?;
        let known = adapter.as_ref().and_then(|adapter| adapter.metadata.labels.clone());
        let tag_scheme = prepare::learn_as_iob2(&mut examples, settings.tag_scheme, known.as_deref(), terminal)?;
        let words = settings.verbalizer.as_ref();
        let labels = prepare::labels(name, &examples, spec, adapter, words, terminal)?;
        let verbalizer = words.map(|words| Verbalizer::new(&labels, &words.words, &tokenizer, spec)).transpose()?;
        examples.truncate(settings.max_train_samples.unwrap_or(usize::MAX));
        let no_answer = name.named().is_some_and(|named| named.no_answer) || examples.iter().any(prepare::is_unanswerable);
        let task = Task::new(kind, labels).with_no_answer(no_answer).with_name(name.named()).with_verbalizer(verbalizer);
        let task = task.with_long_sentences(settings.long_sentences.unwrap_or_default());
        let task = task.with_null_threshold(settings.null_threshold.and_then(NullThreshold::fixed).unwrap_or(0.0));
        let metric = metric(settings, &task);
        if metric != "loss" && !task.metrics().contains(&metric.as_str()) {
            usage!("--metric {metric}: {name} has {} and loss", task.metrics().join(", "));
        }
        let train = reader.encode("training data", &task, examples)?;
        let validation = match &settings.validation {
            Some(path) => {
                let mut examples = reader.read(path)?;
                require_labels(&examples, "validation")?;
                prepare::learn_as_iob2(&mut examples, settings.tag_scheme, Some(task.labels()), terminal)?;
                Some(reader.encode("validation data", &task, examples)?)
            }
            None => None,
        };
        if train.encoding.set.features.is_empty() {
            bail!("{}: no example has a single token to train on", settings.data.display());
        }
        let mut inputs = BTreeMap::from([("data".to_string(), digest(&settings.data)?)]);
        if let Some(path) = &settings.validation {
            inputs.insert("validation".to_string(), digest(path)?);
        }
        Ok(Data { task: Arc::new(task), no_answer, tag_scheme, train: Arc::new(train), validation: validation.map(Arc::new), inputs })
    }

    /// Puts together what was read, and checks that it fits.
    fn assemble(
        mut options: TrainOptions,
        mut settings: Settings,
        model: Arc<FrozenModel>,
        adapter: Option<Adapter>,
        prefix_tokens: Option<Vec<u32>>,
        data: Data,
    ) -> Result<Prepared> {
        let Data { task, no_answer, tag_scheme, train, validation, mut inputs } = data;
        let spec = &model.spec;
        let metric = metric(&settings, &task);
        if settings.validation.is_some() {
            options.metric = Some(metric.clone());
        }
        let head = task.head(settings.head, spec);
        let prefix = PrefixOptions {
            length: settings.prefix_length,
            layers: settings.layer_indices(spec.layers)?,
            projection: settings.prefix_projection,
            shifted: settings.shifted(),
            dropout: settings.prefix_dropout,
        };
        for split in [Some(&train), validation.as_ref()].into_iter().flatten() {
            prefix.check_positions(spec, split.encoding.set.longest_sequence())?;
        }
        inputs.insert("model".to_string(), model.fingerprint());
        if let PrefixStart::File(path) = &settings.prefix_init {
            inputs.insert("prefix-init".to_string(), digest(path)?);
        }
        settings.metric = options.metric.clone();
        let cut = settings.cut(&train.encoding.set);
        let memory = options.allowed_memory().plainest();
        Ok(Prepared {
            options,
            settings,
            model,
            adapter,
            task,
            no_answer,
            tag_scheme,
            head,
            prefix,
            metric,
            train,
            validation,
            prefix_tokens,
            inputs,
            cut,
            memory,
        })
    }

    /// What the engine has to do in a step, and in evaluations between.
    fn workload(&self) -> Workload<'_> {
        let (settings, set) = (&self.settings, &self.train.encoding.set);
        let order: Vec<usize> = (0..set.features.len()).collect();
        let first = self.cut.steps(set, &order)[1];
        Workload {
            set,
            features: order[..first].to_vec(),
            options: EngineOptions {
                prefix: self.prefix.clone(),
                head: self.head.clone(),
                hidden_dropout: settings.hidden_dropout,
                attention_dropout: settings.attention_dropout,
                seed: settings.seed,
                memory: self.memory,
                weight_format: settings.weight_format,
            },
            validation: self.validation.as_ref().map(|split| &split.encoding.set),
            least_tokens: self.prefix_tokens.as_ref().map_or(0, Vec::len),
        }
    }

    /// Chooses memory mode and micro-batch by the budget, where there is one; and records them, so that a resumed run is
    /// cut the same way.
    fn fit(&mut self, terminal: &Terminal) -> Result<()> {
        let settings = &self.settings;
        let longest = longest_feature(&self.train.encoding.set);
        if let Some(tokens) = settings.micro_batch_tokens.filter(|&tokens| tokens < longest) {
            usage!("--micro-batch-tokens {tokens}: an example has {longest} tokens; give at least as many, or a smaller --max-length");
        }
        let Some(budget) = settings.memory_budget else { return Ok(()) };
        let (sizing, context) = device::sizing(settings.device, &self.model)?;
        let target = Target { shape: settings.base().shape()?, sizing, context, speed: plan::ASSUMED_SPEED };
        let given = settings.micro_batch_size.or(settings.micro_batch_tokens).is_some();
        let micro_batch = self.cut.micro_batch;
        let sizes = if given { vec![micro_batch] } else { micro_batch.halves(&self.train.encoding.set) };
        let chosen = plan::fastest(&target, &self.model, &self.workload(), &self.options.allowed_memory(), &sizes, budget.0)?;
        terminal.line(plan::choice_line(&chosen, budget.0));
        (self.memory, self.cut.micro_batch) = (chosen.memory, chosen.micro_batch);
        self.options.recompute = Some(chosen.memory.recompute);
        self.options.weights = Some(chosen.memory.weights);
        self.options.offload_activations = Some(chosen.memory.offload);
        self.options.layer_major = Some(chosen.memory.together);
        match chosen.micro_batch {
            Size::Features(count) => self.options.micro_batch_size = Some(count),
            Size::Tokens(count) => self.options.micro_batch_tokens = Some(count),
        }
        Ok(())
    }

    fn extent(&self) -> Result<(Extent, LearningRate)> {
        let settings = &self.settings;
        let steps_per_epoch = self.cut.steps_per_epoch(&self.train.encoding.set) as u64;
        let total_steps = settings.max_steps.unwrap_or(settings.epochs.unwrap_or(1) * steps_per_epoch);
        let warmup_steps = settings.warmup.steps(total_steps);
        if warmup_steps >= total_steps {
            usage!("--warmup {}: the run has {total_steps} steps, so the learning rate would never reach its peak", settings.warmup);
        }
        if let Some(range) = settings.profile_steps.filter(|range| range.first > total_steps) {
            usage!("--profile-steps {range}: the run has {total_steps} steps");
        }
        let extent = Extent {
            batch_size: settings.batch_size.unwrap_or(self.train.encoding.set.features.len().div_ceil(steps_per_epoch as usize)),
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
            task: Some(settings.task.kind()),
            named_task: settings.task.named().map(|task| task.name.to_string()),
            template: settings.template.unwrap_or(0),
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
            no_answer: self.no_answer,
            tag_scheme: self.tag_scheme,
            long_sentences: settings.long_sentences.unwrap_or_default(),
            null_threshold: settings.null_threshold.and_then(NullThreshold::fixed),
            verbalizer: settings.verbalizer.as_ref().map(|words| words.words.clone()),
            weight_format: settings.weight_format,
            base_model: settings.base().description(),
            fingerprint: Some(self.model.fingerprint()),
        }
    }

    /// The engine with its initial values, or those of the adapter to start from.
    fn engine(&self, terminal: &Terminal) -> Result<Engine> {
        let settings = &self.settings;
        let work = self.workload();
        let capacity = work.capacity(self.cut.micro_batch);
        let options = work.options;
        let mut engine = Engine::new(device::open(settings.device, &self.model, terminal)?, &self.model, options, capacity)?;
        engine.initialise(if settings.prefix_init == PrefixStart::Zero { PrefixInit::Zero } else { PrefixInit::Normal });
        if let Some(tokens) = &self.prefix_tokens {
            engine.set_prefix_from_tokens(tokens)?;
        }
        if let Some(adapter) = &self.adapter {
            engine.load_adapter(adapter)?;
        }
        Ok(engine)
    }

    fn run(&self, folder: &Folder, terminal: &Terminal, interrupt: &Interrupt) -> Result<Outcome> {
        let settings = &self.settings;
        let (extent, rate) = self.extent()?;
        let checkpoint = latest_checkpoint(folder.root())?;
        let mut engine = self.engine(terminal)?;
        let state = match &checkpoint {
            Some(path) => self.restore(path, &mut engine).with_context(|| format!("cannot resume from {}", path.display()))?,
            None => RunState { inputs: self.inputs.clone(), ..RunState::default() },
        };
        self.describe(&engine, &extent, terminal);

        let _lock = folder.open()?;
        // Another run may have come and gone since this one looked at the folder.
        if latest_checkpoint(folder.root())? != checkpoint {
            bail!("{}: another run wrote to this folder meanwhile; start again with --resume", folder.root().display());
        }
        if checkpoint.is_none() {
            write_text(&folder.file(CONFIG), &self.options.clone().recorded(&self.model.spec).to_toml()?)?;
        } else {
            terminal.line(format!("resuming after step {} of {}", state.step, extent.total_steps));
        }
        let record = Record::open(&folder.file(METRICS), state.step, state.evaluation_pending)?;
        let mut trainer = Trainer {
            settings,
            spec: &self.model.spec,
            task: &self.task,
            train: &self.train,
            validation: self.validation.as_deref(),
            metric: &self.metric,
            metadata: self.metadata(),
            extent,
            cut: self.cut,
            rate,
            folder,
            terminal,
            interrupt,
            engine,
            record,
            state,
            session: Session::default(),
        };
        if checkpoint.is_some() {
            trainer.tidy()?;
        }
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
        let TrainingState { tensor_steps, trainer, .. } = read_checkpoint(checkpoint)?;
        let state: RunState = serde_json::from_value(trainer).context("field trainer of state.json is damaged")?;
        for (name, digest) in &self.inputs {
            if state.inputs.get(name) != Some(digest) {
                bail!("--{name} is not what the run was started with: its contents differ; restore it, or start a new run");
            }
        }
        engine.set_update_counts(&tensor_steps)?;
        restore_tensors(checkpoint, engine)?;
        Ok(state)
    }
}

/// The score that chooses the best adapter.
fn metric(settings: &Settings, task: &Task) -> String {
    settings.metric.clone().unwrap_or_else(|| task.default_metric().to_string())
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
