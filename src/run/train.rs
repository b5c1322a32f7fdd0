//! A training run from options to results: everything is opened and checked before the output folder is touched.

use super::cut::{Cut, Size, longest_feature};
use super::data_set::{Data, DataSet, digest};
use super::device;
use super::folder::{CONFIG, Folder, METRICS, refuse_changes};
use super::heads;
use super::interrupt::Interrupt;
use super::options::TrainOptions;
use super::plan::{self, Target, Workload};
use super::prepare;
use super::record::Record;
use super::schedule::LearningRate;
use super::settings::Settings;
use super::shared::Shared;
use super::state::{Extent, RunState};
use super::terminal::Terminal;
use super::trainer::{Session, Trainer, write_text};
use super::values::{Device, NullThreshold, PrefixStart};
use crate::checkpoint::{Adapter, FrozenModel, Metadata, TrainingState, latest_checkpoint, read_checkpoint, restore_tensors};
use crate::data::TextTokenizer;
use crate::engine::{Capacity, Engine, EngineOptions, MemoryMode, PrefixInit, PrefixOptions};
use crate::usage;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
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

/// Trains, or goes on training, as the options say.
pub fn train(given: TrainOptions, interrupt: &Interrupt) -> Result<Outcome> {
    train_with(given, interrupt, &mut Shared::default())
}

/// [`train`] as one of several runs.
pub fn train_with(mut given: TrainOptions, interrupt: &Interrupt, shared: &mut Shared) -> Result<Outcome> {
    let said = given.clone();
    given = given.with_recipe()?;
    if given.resume != Some(true) {
        given.check_complete()?;
    }
    let Some(output) = &given.output else { usage!("--output is missing") };
    let folder = Folder::new(output);
    let resume = given.resume == Some(true);
    given.device.map_or(Ok(()), device::check)?;
    if resume && given.device == Some(Device::Auto) {
        given.device = None; // a run goes on where it began
    }
    if !resume {
        given.locate()?;
        given.validate()?;
    }
    let saved = folder.claim(resume)?;
    if let Some(saved) = &saved {
        if given.task.is_empty() {
            given.task = saved.task.clone();
        }
        given.locate()?;
    }
    let options = match &saved {
        Some(saved) => {
            refuse_changes(&given, saved)?;
            given.over(saved)?
        }
        None => {
            given.locate()?;
            given
        }
    };
    let fresh = resume && saved.is_none();
    let nothing = || format!("nothing to resume in {}: a new run", folder.root().display());
    match options.validate() {
        Err(error) if fresh => return Err(error.context(nothing())),
        result => result?,
    }
    said.check_read(&options.task, options.said_method())?;
    let terminal = Terminal::new(options.quiet == Some(true));
    if saved.is_some() && folder.is_finished() {
        terminal.line(format!("{}: this run is finished; nothing is left to do", folder.root().display()));
        return Ok(Outcome::WasFinished);
    }
    if fresh {
        terminal.line(nothing());
    }
    let prepared = Prepared::new(options, &terminal, shared)?;
    // Now that an adapter has told what it knows.
    said.check_read(&prepared.options.task, prepared.options.said_method())?;
    prepared.run(&folder, &terminal, interrupt, shared)
}

/// Everything that is read, checked and complete before a run begins.
pub(super) struct Prepared {
    pub(super) options: TrainOptions,
    /// Those of the first data set; what is not of a data set holds for all.
    pub(super) settings: Settings,
    pub(super) model: Arc<FrozenModel>,
    /// One is the usual case.
    pub(super) sets: Vec<DataSet>,
    pub(super) prefix: PrefixOptions,
    /// The tokens that the prefix starts from, where it does from a text.
    pub(super) prefix_tokens: Option<Vec<u32>>,
    /// What is read, by its contents: a resumed run must read the same.
    pub(super) inputs: BTreeMap<String, String>,
    pub(super) cut: Cut,
    /// Steps of an epoch from each data set.
    pub(super) shares: Vec<usize>,
    pub(super) memory: MemoryMode,
}

impl Prepared {
    /// Reads and checks what options name, or takes what runs before have read.
    pub(super) fn new(options: TrainOptions, terminal: &Terminal, shared: &mut Shared) -> Result<Prepared> {
        let mut options = options.with_defaults();
        options.device = Some(device::resolve(options.device.unwrap_or(Device::Auto), terminal)?);
        device::check_profiling(options.profile_steps, options.device)?;
        let model = shared.model(options.base())?;
        let adapter = options.init_adapter.as_deref().map(Adapter::read).transpose()?;
        if let Some(adapter) = &adapter {
            adapter.check_shape(&model)?;
        }
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
        let starts = adapter.map(|adapter| heads::starts(&options, &adapter)).transpose()?;
        let mut starts = starts.into_iter().flatten();
        let mut parts = Vec::new();
        for set in 0..options.set_count() {
            let mut start = starts.next();
            let options = options.of_set(set).complete(&model.spec, start.as_ref())?;
            if let Some(start) = start.as_mut().filter(|start| start.foreign || start.metadata.has_head()) {
                start.metadata.task = options.task.first().map(|task| task.kind());
                if let (true, Some(words)) = (start.foreign, &options.verbalizer) {
                    start.metadata.set_words(&words.labels, &words.words);
                }
            }
            let settings = Settings::new(&options)?;
            prepare::check_words(&model, settings.verbalizer.as_ref())?;
            parts.push((options, settings, start));
        }
        let mut said = BTreeSet::new();
        for start in parts.iter().filter_map(|(_, _, start)| start.as_ref()) {
            start.check(&model)?.into_iter().filter(|warning| said.insert(warning.clone())).for_each(|warning| terminal.warn(warning));
        }
        let names = options.set_names();
        let read = || {
            let read = |(name, (options, settings, start)): (&String, &(TrainOptions, Settings, Option<Adapter>))| {
                if parts.len() > 1 {
                    terminal.line(format!("data set {name}: {}", settings.task));
                }
                Data::read(options, settings, &model, start.as_ref(), terminal)
            };
            names.iter().zip(&parts).map(read).collect()
        };
        let data = shared.data(&options, read)?;
        let several = parts.len() > 1;
        let sets = names.into_iter().zip(parts).zip(data).map(|((name, (options, settings, start)), data)| DataSet {
            head: data.head(&settings, &model, several.then_some(name.as_str())),
            name,
            options,
            settings,
            start,
            data,
        });
        let mut prepared = Self::assemble(options, model.clone(), sets.collect(), prefix_tokens)?;
        prepared.fit(terminal)?;
        Ok(prepared)
    }

    /// Puts together what was read, and checks that it fits.
    fn assemble(
        options: TrainOptions,
        model: Arc<FrozenModel>,
        mut sets: Vec<DataSet>,
        prefix_tokens: Option<Vec<u32>>,
    ) -> Result<Prepared> {
        let spec = &model.spec;
        for set in sets.iter_mut().filter(|set| set.data.validation.is_some()) {
            set.options.metric = Some(set.metric());
            set.settings.metric = set.options.metric.clone();
        }
        let settings = sets.first().context("there is no data set")?.settings.clone();
        let prefix = PrefixOptions {
            length: settings.prefix_length,
            layers: settings.layer_indices(spec.layers)?,
            projection: settings.prefix_projection,
            shifted: settings.shifted(),
            dropout: settings.prefix_dropout,
        };
        let mut inputs = BTreeMap::new();
        for set in &sets {
            for split in [Some(&set.data.train), set.data.validation.as_ref()].into_iter().flatten() {
                prefix.check_positions(spec, split.encoding.set.longest_sequence())?;
            }
            let of = if sets.len() > 1 { format!(" {}=...", set.name) } else { String::new() };
            inputs.extend(set.data.inputs.iter().map(|(name, digest)| (format!("{name}{of}"), digest.clone())));
        }
        inputs.insert("model".to_string(), model.fingerprint());
        if let PrefixStart::File(path) = &settings.prefix_init {
            inputs.insert("prefix-init".to_string(), digest(path)?);
        }
        let longest = sets.iter().map(|set| longest_feature(set.features())).max().unwrap_or(0);
        let cut = settings.cut(longest);
        let names: Vec<String> = sets.iter().map(|set| set.name.clone()).collect();
        let steps: Vec<usize> = sets.iter().map(|set| cut.steps_per_epoch(set.features())).collect();
        let shares = options.sampling.clone().unwrap_or_default().shares(&names, &steps)?;
        let most = sets.iter().map(|set| cut.most_batches(set.features())).max().unwrap_or(1);
        let memory = options.allowed_memory().plainest(most);
        let complete: Vec<TrainOptions> = sets.iter().map(|set| set.options.clone()).collect();
        let options = options.completed(&complete)?;
        Ok(Prepared { options, settings, model, sets, prefix, prefix_tokens, inputs, cut, shares, memory })
    }

    /// What the engine has to do in a step, and in evaluations between.
    fn workload(&self) -> Workload<'_> {
        let (settings, set) = (&self.settings, self.sets[0].features());
        let order: Vec<usize> = (0..set.features.len()).collect();
        let first = self.cut.steps(set, &order)[1];
        let others = self.sets.iter().enumerate().skip(1).map(|(head, set)| (head, set.features(), true));
        let validation = self.sets.iter().enumerate().filter_map(|(head, set)| {
            let split = set.data.validation.as_ref()?;
            Some((head, &split.encoding.set, false))
        });
        Workload {
            set,
            features: order[..first].to_vec(),
            options: EngineOptions {
                prefix: self.prefix.clone(),
                heads: self.sets.iter().map(|set| set.head.clone()).collect(),
                hidden_dropout: settings.hidden_dropout,
                attention_dropout: settings.attention_dropout,
                seed: settings.seed,
                memory: self.memory,
                weight_format: settings.weight_format,
            },
            besides: others.chain(validation).collect(),
            least_tokens: self.prefix_tokens.as_ref().map_or(0, Vec::len),
        }
    }

    /// Chooses memory mode and micro-batch by the budget, where there is one; and records them, so that a resumed run is
    /// cut the same way.
    fn fit(&mut self, terminal: &Terminal) -> Result<()> {
        let settings = &self.settings;
        let widest = self.sets.iter().map(DataSet::features).max_by_key(|set| longest_feature(set)).context("there is no data set")?;
        let longest = longest_feature(widest);
        if let Some(tokens) = settings.micro_batch_tokens.filter(|&tokens| tokens < longest) {
            usage!("--micro-batch-tokens {tokens}: an example has {longest} tokens; give at least as many, or a smaller --max-length");
        }
        let Some(budget) = settings.memory_budget else { return Ok(()) };
        let (sizing, context) = device::sizing(settings.device, &self.model)?;
        let target = Target { shape: settings.base().shape()?, sizing, context, speed: plan::ASSUMED_SPEED };
        let given = settings.micro_batch_size.or(settings.micro_batch_tokens).is_some();
        let micro_batch = self.cut.micro_batch;
        let sizes = if given { vec![micro_batch] } else { micro_batch.halves(widest) };
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
        let steps_per_epoch = self.shares.iter().sum::<usize>() as u64;
        let features: usize = self.sets.iter().map(|set| set.features().features.len()).sum();
        let total_steps = settings.max_steps.unwrap_or(settings.epochs.unwrap_or(1) * steps_per_epoch);
        let warmup_steps = settings.warmup.steps(total_steps);
        if warmup_steps >= total_steps {
            usage!("--warmup {}: the run has {total_steps} steps, so the learning rate would never reach its peak", settings.warmup);
        }
        if let Some(range) = settings.profile_steps.filter(|range| range.first > total_steps) {
            usage!("--profile-steps {range}: the run has {total_steps} steps");
        }
        let extent = Extent {
            batch_size: settings.batch_size.unwrap_or(features.div_ceil(steps_per_epoch as usize)),
            steps_per_epoch,
            total_steps,
            logging_steps: (total_steps / 100).clamp(1, 500),
            eval_every: settings.eval_every,
            save_every: settings.save_every,
        };
        let rate = LearningRate { peak: settings.learning_rate, schedule: settings.schedule, warmup_steps, total_steps, steps_per_epoch };
        Ok((extent, rate))
    }

    /// What the adapter says of itself: of one head, or of several.
    fn metadata(&self) -> Result<Metadata> {
        if let [only] = self.sets.as_slice() {
            return Ok(self.metadata_of(only));
        }
        let heads = self.sets.iter().map(|set| (set.name.clone(), self.metadata_of(set))).collect();
        Metadata::of_heads(heads).context("there is no data set")
    }

    fn metadata_of(&self, set: &DataSet) -> Metadata {
        let (settings, spec) = (&set.settings, &self.model.spec);
        let labels = set.data.task.labels();
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
            no_answer: set.data.no_answer,
            tag_scheme: set.data.tag_scheme,
            long_sentences: settings.long_sentences.unwrap_or_default(),
            null_threshold: settings.null_threshold.and_then(NullThreshold::fixed),
            verbalizer: settings.verbalizer.as_ref().map(|words| words.words.clone()),
            weight_format: settings.weight_format,
            base_model: settings.base().description(),
            fingerprint: Some(self.model.fingerprint()),
            heads: BTreeMap::new(),
        }
    }

    /// What the run needs of an engine.
    pub(super) fn demand(&self) -> (EngineOptions, Capacity) {
        let work = self.workload();
        let capacity = work.capacity(self.cut.micro_batch);
        (work.options, capacity)
    }

    /// The engine with its initial values, or those of the adapter to start from.
    fn engine(&self, terminal: &Terminal, shared: &mut Shared) -> Result<Engine> {
        let settings = &self.settings;
        let mut engine = shared.engine(self, terminal)?;
        engine.initialise(if settings.prefix_init == PrefixStart::Zero { PrefixInit::Zero } else { PrefixInit::Normal });
        if let Some(tokens) = &self.prefix_tokens {
            engine.set_prefix_from_tokens(tokens)?;
        }
        if let Some(start) = &self.sets[0].start {
            engine.load_prefix(start)?;
        }
        for (head, set) in self.sets.iter().enumerate() {
            if let Some(start) = set.start.as_ref().filter(|_| set.has_head_to_start_from()) {
                engine.load_head(head, start)?;
            }
        }
        Ok(engine)
    }

    fn run(&self, folder: &Folder, terminal: &Terminal, interrupt: &Interrupt, shared: &mut Shared) -> Result<Outcome> {
        let settings = &self.settings;
        let (extent, rate) = self.extent()?;
        let checkpoint = latest_checkpoint(folder.root())?;
        let mut engine = self.engine(terminal, shared)?;
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
            write_text(&folder.file(CONFIG), &self.options.clone().recorded(&self.model.spec)?.to_toml()?)?;
        } else {
            terminal.line(format!("resuming after step {} of {}", state.step, extent.total_steps));
        }
        let record = Record::open(&folder.file(METRICS), state.step, state.evaluation_pending)?;
        let mut trainer = Trainer {
            settings,
            spec: &self.model.spec,
            sets: &self.sets,
            metadata: self.metadata()?,
            extent,
            cut: self.cut,
            rate,
            folder,
            terminal,
            interrupt,
            engine: &mut engine,
            record,
            state,
            session: Session::new(settings.seed, &self.shares),
        };
        if checkpoint.is_some() {
            trainer.tidy()?;
        }
        let held = interrupt.hold((self.options.quiet != Some(true)).then_some("stopping after this step; again to end at once"));
        if let Some(signal) = trainer.run()? {
            drop(held);
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
        drop(held);
        shared.keep(settings.device, &self.model, engine);
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
