//! A model with an adapter over a data file: what `eval` and `predict` share.

use super::cut::Size;
use super::device;
use super::evaluate::{self, Evaluation};
use super::heads;
use super::interrupt::Interrupt;
use super::memory::loading_line;
use super::prepare::{self, Reader, Split};
use super::read_by;
use super::settings::{DEFAULT_DOC_STRIDE, check_language_task, check_size, check_stride, default_max_length};
use super::terminal::Terminal;
use super::values::{Device, LabelWords};
use crate::checkpoint::{Adapter, FrozenModel, WeightFormat};
use crate::data::{Columns, LongSentences, TagScheme, TextTokenizer};
use crate::engine::{Capacity, Engine, EngineOptions, MemoryMode, PrefixOptions, Residency};
use crate::model::{HeadSpec, TaskKind};
use crate::task::named::Submission;
use crate::task::{Encoding, Limits, Outcome, Prediction, Task, TaskName, Verbalizer, require_ids};
use crate::usage;
use anyhow::{Context, Result, anyhow, bail};
use std::path::PathBuf;

/// What to run on what.
#[derive(Clone, Debug)]
pub struct ScoringOptions {
    pub model: PathBuf,
    pub adapter: PathBuf,
    /// Which of the adapter's heads, where it has several.
    pub head: Option<String>,
    /// A file, or the folder of a named task's official files.
    pub data: PathBuf,
    /// The official file in a folder.
    pub split: String,
    /// Needed only where the adapter does not tell.
    pub task: Option<TaskName>,
    pub columns: Columns,
    /// None: as the tags show.
    pub tag_scheme: Option<TagScheme>,
    /// None: as the adapter was trained.
    pub long_sentences: Option<LongSentences>,
    pub max_length: Option<usize>,
    pub doc_stride: Option<usize>,
    /// Of "no answer"; None: as the adapter says.
    pub null_threshold: Option<f32>,
    pub batch_size: usize,
    /// Where the layers' weights live.
    pub weights: Residency,
    /// Of the frozen matrices; None: as the adapter was trained.
    pub weight_format: Option<WeightFormat>,
    pub device: Device,
    /// Whether every example must be labelled.
    pub labelled: bool,
    /// Whether a submission is to be written of it.
    pub submission: bool,
    /// Whether a file is to be written of it that has each question's id once.
    pub ids: bool,
    /// Options that only some tasks read, as they were given.
    pub said: Vec<(&'static str, String)>,
    /// Words of the labels of a cloze, where the adapter does not tell.
    pub verbalizer: Option<LabelWords>,
    /// Causal language modelling: tokens to generate behind each prompt at most; 0: none.
    pub generate: usize,
    /// Whether what is known of the data's labels is wanted too: of a response its log-probability.
    pub logits: bool,
}

/// An engine with an adapter, and the data for it.
pub struct Scoring {
    pub task: Task,
    /// How the data that the adapter was trained on spell spans.
    pub tag_scheme: Option<TagScheme>,
    pub split: Split,
    /// Logits of every feature, in order; of prompts without responses there are none.
    pub logits: Vec<Vec<f32>>,
    /// What was generated behind each example's prompt.
    texts: Vec<String>,
}

/// An adapter and its data, checked and encoded.
pub(super) struct Job {
    adapter: Adapter,
    task: Task,
    split: Split,
    /// Of causal language modelling, where text is to be generated, with what ends it.
    prompts: Option<(Encoding, Vec<u32>)>,
    tokenizer: TextTokenizer,
    pub head: HeadSpec,
    pub prefix: PrefixOptions,
    pub capacity: Capacity,
    /// How the frozen matrices are kept.
    pub weight_format: WeightFormat,
}

impl ScoringOptions {
    /// Checks what can be wrong by itself, and opens the model.
    pub(super) fn open(&self) -> Result<FrozenModel> {
        check_size("batch-size", Some(self.batch_size), 1)?;
        check_size("max-length", self.max_length, 1)?;
        check_size("doc-stride", self.doc_stride, 0)?;
        check_size("max-new-tokens", Some(self.generate), 0)?;
        device::check(self.device)?;
        FrozenModel::open(&self.model)
    }

    /// The engine for one or several jobs, the first of which is laid out.
    pub(super) fn engine(&self, model: &FrozenModel, heads: Vec<HeadSpec>, jobs: &[Job], terminal: &Terminal) -> Result<Engine> {
        let Some((first, others)) = jobs.split_first() else { bail!("there is nothing to predict") };
        if self.ids {
            require_ids(jobs.iter().flat_map(|job| &job.split.examples))?;
        }
        let prefix = first.prefix.clone();
        let options = EngineOptions {
            memory: MemoryMode { weights: self.weights, ..MemoryMode::default() },
            weight_format: first.weight_format,
            ..EngineOptions::new(prefix, heads)
        };
        let turn = |job: &Job| (EngineOptions { prefix: job.prefix.clone(), ..options.clone() }, job.capacity);
        let turns: Vec<_> = others.iter().map(turn).collect();
        let engine = Engine::in_turns(device::open(self.device, model, terminal)?, model, options, first.capacity, &turns)?;
        terminal.line(loading_line(engine.loading()));
        Ok(engine)
    }
}

impl Job {
    /// Reads an adapter's data and checks that it all fits. None: of a file's records none is for it.
    pub fn new(options: &ScoringOptions, mut adapter: Adapter, model: &FrozenModel, terminal: &Terminal) -> Result<Option<Job>> {
        let known = adapter.metadata.task;
        let name = match (options.task, known) {
            (Some(given), Some(known)) if given.kind() != known && !adapter.foreign => {
                usage!("--task {given}: the adapter was trained for {}", known.name())
            }
            (Some(given), _) => given,
            (None, Some(known)) => TaskName::of(known, adapter.metadata.named_task.as_deref())?,
            (None, None) => usage!("--task is missing: the files of the adapter do not tell its task"),
        };
        let kind = name.kind();
        read_by::check(options.said.iter().map(|(name, value)| (*name, value.clone())), &[name], None)?;
        if options.submission && name.named().is_none_or(|task| matches!(task.submission, Submission::None)) {
            usage!("--submission: {name} has no official form; it is for named tasks (see ptune tasks)");
        }
        adapter.metadata.task = Some(kind);
        let words = words(options, &mut adapter)?;
        check_language_task(kind, words.is_some(), &model.spec)?;
        prepare::check_words(model, words.as_ref())?;
        for warning in adapter.check(model)? {
            terminal.warn(warning);
        }
        let metadata = &adapter.metadata;
        let max_length = options.max_length.or(metadata.max_length).unwrap_or_else(|| default_max_length(name));
        let doc_stride = options.doc_stride.or(metadata.doc_stride).unwrap_or(DEFAULT_DOC_STRIDE);
        check_stride(kind, max_length, Some(doc_stride))?;

        let tokenizer = TextTokenizer::open(&options.model, &model.spec)?;
        let limits = Limits { max_length, doc_stride };
        // A prediction needs no labels, and those of a file may be of another kind than the adapter's. Answers are read:
        // where the adapter's files do not say whether questions may have none, they tell. So are responses, to score them.
        let reads_labels = options.labelled || kind == TaskKind::Qa || kind == TaskKind::CausalLm && options.logits;
        let columns = Columns { ignore_labels: !reads_labels, ..options.columns.clone() };
        let reader = Reader { task: name, template: metadata.template, columns, limits, tokenizer: &tokenizer, terminal };
        let data = match name {
            TaskName::Named(task) => task.locate(&options.data, &options.split)?,
            TaskName::Kind(_) if options.data.is_dir() => {
                usage!("{}: is a folder; only a named task (see ptune tasks) finds its files in one: name the file", options.data.display())
            }
            TaskName::Kind(_) => options.data.clone(),
        };
        let mut examples = if options.labelled { reader.read_labelled(&data, "scoring")? } else { reader.read(&data)? };
        if examples.is_empty() {
            return Ok(None);
        }
        prepare::learn_as_iob2(&mut examples, options.tag_scheme, metadata.labels.as_deref(), terminal)?;
        let labels = prepare::labels(name, &examples, &model.spec, Some(&adapter), words.as_ref(), terminal)?;
        let verbalizer = words.map(|words| Verbalizer::new(&labels, &words.words, &tokenizer, &model.spec)).transpose()?;
        let task = Task::new(kind, labels).with_no_answer(metadata.no_answer).with_name(name.named()).with_verbalizer(verbalizer);
        let task = task.with_long_sentences(options.long_sentences.unwrap_or(metadata.long_sentences));
        let task = task.with_null_threshold(options.null_threshold.or(metadata.null_threshold).unwrap_or(0.0));
        let split = reader.encode("data", &task, examples)?;
        let set = &split.encoding.set;
        let generate = if kind == TaskKind::CausalLm { options.generate } else { 0 };
        let prompts = (generate > 0).then(|| task.encode_prompts(&split.examples, &tokenizer, &limits)).transpose()?;

        let prefix = PrefixOptions {
            length: metadata.prefix_length,
            layers: if metadata.prefix_length == 0 { Vec::new() } else { metadata.prefix_layers.clone() },
            projection: None,
            shifted: metadata.shifted_positions && model.spec.shifts(),
            dropout: 0.0,
        };
        prefix.check_positions(&model.spec, set.longest_sequence())?;
        if let Some(prompts) = &prompts {
            let longest = prompts.set.longest_sequence();
            prefix.check_positions(&model.spec, longest)?;
            let left = prefix.longest(&model.spec) - longest;
            if generate > left {
                let remedy = if left > 0 { format!("use --max-new-tokens {left}") } else { "use a smaller --max-length".into() };
                bail!(
                    "--max-new-tokens {generate}: behind the longest prompt of {longest} tokens the model has {left} positions left; {remedy}"
                );
            }
        }
        let head = task.head(metadata.head, &model.spec);
        let mut capacity = Capacity::for_items(set, &head, options.batch_size, false);
        if let Some(prompts) = &prompts {
            let prompts = Capacity::for_items(&prompts.set, &head, options.batch_size, false);
            capacity = capacity.union(Capacity { generated: generate, ..prompts });
        }
        let prompts = match prompts {
            Some(prompts) => Some((prompts, tokenizer.end_tokens()?)),
            None => None,
        };
        let weight_format = options.weight_format.unwrap_or(adapter.metadata.weight_format);
        Ok(Some(Job { adapter, task, split, prompts, tokenizer, head, prefix, capacity, weight_format }))
    }

    /// Runs the model over the data, with the adapter in the engine's numbered head.
    pub fn run(
        self,
        options: &ScoringOptions,
        engine: &mut Engine,
        number: usize,
        terminal: &Terminal,
        interrupt: &Interrupt,
    ) -> Result<Scoring> {
        let Job { adapter, task, split, prompts, tokenizer, .. } = self;
        let set = &split.encoding.set;
        engine.load_prefix(&adapter)?;
        engine.load_head(number, &adapter)?;
        let stopped = || anyhow!("stopped by a signal; nothing was written");
        let unscored = task.kind() == TaskKind::CausalLm && !split.examples.iter().any(|example| example.content.is_labelled());
        let logits = match unscored {
            true => Vec::new(),
            false => {
                evaluate::forward(engine, number, set, Size::Features(options.batch_size), terminal, interrupt)?.ok_or_else(stopped)?
            }
        };
        evaluate::check_finite(set, &split.examples, &logits)?;
        let mut texts = Vec::new();
        if let Some((prompts, ends)) = &prompts {
            let found = evaluate::generate(engine, &prompts.set, options.batch_size, (options.generate, ends), terminal, interrupt)?;
            let found = found.ok_or_else(stopped)?;
            texts = found.iter().map(|tokens| tokenizer.decode(tokens)).collect::<Result<_>>()?;
        }
        Ok(Scoring { task, tag_scheme: adapter.metadata.tag_scheme, split, logits, texts })
    }
}

impl Scoring {
    /// Opens everything and runs the model over the data.
    pub fn run(options: &ScoringOptions, terminal: &Terminal, interrupt: &Interrupt) -> Result<Scoring> {
        let model = options.open()?;
        let adapter = heads::choose(Adapter::read(&options.adapter)?, options.head.as_deref())?;
        let job = Job::new(options, adapter, &model, terminal)?.context("there is nothing to predict")?;
        let mut engine = options.engine(&model, vec![job.head.clone()], std::slice::from_ref(&job), terminal)?;
        job.run(options, &mut engine, 0, terminal, interrupt)
    }

    /// Scores of labelled data.
    pub fn evaluate(&self) -> Result<Evaluation> {
        Evaluation::new(&self.task, &self.split.examples, &self.split.encoding, &self.logits)
    }

    /// A prediction for every example.
    pub fn predict(&self) -> Vec<Prediction<'_>> {
        let mut predictions = self.task.predict(&self.split.examples, &self.split.encoding, &self.logits);
        for (prediction, text) in predictions.iter_mut().zip(&self.texts) {
            prediction.outcome = Outcome::Continuation(Some(text.clone()));
        }
        predictions
    }
}

/// Labels and words of a cloze: those that the adapter was trained with, or what is given for a foreign adapter, which then
/// has them.
fn words(options: &ScoringOptions, adapter: &mut Adapter) -> Result<Option<LabelWords>> {
    let known = adapter.metadata.words().map(|(labels, words)| LabelWords { labels, words });
    let Some(given) = &options.verbalizer else { return Ok(known) };
    if !adapter.foreign && known.as_ref() != Some(given) {
        usage!("--verbalizer: the adapter was trained with {}", known.map_or("a head".to_string(), |known| known.to_string()));
    }
    adapter.metadata.set_words(&given.labels, &given.words);
    Ok(Some(given.clone()))
}
