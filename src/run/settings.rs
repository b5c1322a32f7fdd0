//! What holds for a run: options with every default filled in and checked. Defaults that depend on the task, the model
//! or the adapter that is started from are filled in when those are known.

use super::base::BaseOptions;
use super::cut::{Cut, Size};
use super::options::TrainOptions;
use super::plan::Allowed;
use super::schedule::Schedule;
use super::values::{
    ByteSize, DataOrder, Device, Every, LabelWords, LayerSet, Method, NullThreshold, Offset, PrefixStart, StepRange, Warmup,
};
use crate::checkpoint::{Adapter, WeightFormat};
use crate::data::{Columns, LongSentences, TagScheme};
use crate::engine::{Recompute, Residency};
use crate::model::{HeadKind, MaskKind, Specification, TaskKind, default_head, offers_head};
use crate::task::TaskName;
use crate::task::named::{TRAIN, VALIDATION};
use crate::usage;
use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use std::path::PathBuf;

/// A complete configuration of one data set; the fields are those of [`TrainOptions`].
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    pub model: Option<PathBuf>,
    pub architecture: Option<String>,
    pub random_weights: Option<u64>,
    pub tokenizer: Option<PathBuf>,
    pub task: TaskName,
    pub template: Option<usize>,
    pub data: PathBuf,
    pub validation: Option<PathBuf>,
    pub output: PathBuf,
    pub tag_scheme: Option<TagScheme>,
    pub long_sentences: Option<LongSentences>,
    pub max_length: usize,
    pub doc_stride: usize,
    pub null_threshold: Option<NullThreshold>,
    pub max_train_samples: Option<usize>,
    pub data_order: DataOrder,
    pub method: Method,
    pub prefix_length: usize,
    pub prefix_projection: Option<usize>,
    /// None with a prefix length of 0, and of a prompt.
    pub prefix_layers: Option<LayerSet>,
    pub prefix_init: PrefixStart,
    pub positions: Offset,
    pub head: HeadKind,
    pub verbalizer: Option<LabelWords>,
    pub prefix_dropout: f64,
    pub hidden_dropout: f64,
    pub attention_dropout: f64,
    pub learning_rate: f64,
    pub schedule: Schedule,
    pub warmup: Warmup,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    /// None with tokens per step.
    pub batch_size: Option<usize>,
    pub gradient_accumulation: Option<usize>,
    pub tokens_per_step: Option<usize>,
    pub memory_budget: Option<ByteSize>,
    pub recompute: Option<Recompute>,
    pub weights: Option<Residency>,
    pub offload_activations: Option<bool>,
    pub layer_major: Option<usize>,
    pub weight_format: WeightFormat,
    pub micro_batch_size: Option<usize>,
    pub micro_batch_tokens: Option<usize>,
    pub epochs: Option<u64>,
    pub max_steps: Option<u64>,
    pub seed: u64,
    pub eval_every: Option<Every>,
    pub metric: Option<String>,
    pub patience: Option<u64>,
    pub save_every: Every,
    pub save_limit: usize,
    pub device: Device,
    pub profile_steps: Option<StepRange>,
}

impl Settings {
    /// From options that [`TrainOptions::complete`] has filled in.
    pub fn new(options: &TrainOptions) -> Result<Settings> {
        options.to_table()?.try_into().context("the configuration is not complete")
    }

    /// The model that is tuned.
    pub fn base(&self) -> BaseOptions {
        BaseOptions { model: self.model.clone(), architecture: self.architecture.clone(), random_weights: self.random_weights }
    }

    /// How an epoch is cut whose longest feature has so many tokens.
    pub fn cut(&self, longest_feature: usize) -> Cut {
        match self.tokens_per_step {
            Some(tokens) => {
                // A step has its share of the tokens and what its last feature has beyond.
                let whole = tokens + longest_feature;
                Cut { step: Size::Tokens(tokens), micro_batch: Size::Tokens(self.micro_batch_tokens.unwrap_or(whole)) }
            }
            None => {
                let batch = self.batch_size.unwrap_or(1);
                Cut {
                    step: Size::Features(batch * self.gradient_accumulation.unwrap_or(1)),
                    micro_batch: Size::Features(self.micro_batch_size.unwrap_or(batch)),
                }
            }
        }
    }

    /// Layers with a prefix, counted from 0.
    pub fn layer_indices(&self, layers: usize) -> Result<Vec<usize>> {
        self.prefix_layers.as_ref().map_or(Ok(Vec::new()), |set| set.indices(layers))
    }

    /// Whether token positions count from behind the prefix.
    pub fn shifted(&self) -> bool {
        self.positions == Offset::Shifted
    }
}

/// Longest sequence where nothing else is said.
pub fn default_max_length(task: TaskName) -> usize {
    if let Some(named) = task.named() {
        return named.max_length;
    }
    match task.kind() {
        TaskKind::Qa => 384,
        TaskKind::CausalLm => 512,
        _ => 128,
    }
}

/// Tokens shared by windows where nothing else is said.
pub const DEFAULT_DOC_STRIDE: usize = 128;

/// Tensors are indexed with 32 bits; no length or size of a real run comes near this.
const LARGEST: usize = 1 << 20;

impl TrainOptions {
    /// Fills in the defaults that depend on nothing.
    pub fn with_defaults(mut self) -> TrainOptions {
        self.doc_stride.get_or_insert(DEFAULT_DOC_STRIDE);
        self.data_order.get_or_insert(DataOrder::Shuffled);
        if self.method == Some(Method::Head) {
            self.prefix_length.get_or_insert(0);
        }
        self.prefix_init.get_or_insert(PrefixStart::Normal);
        self.prefix_dropout.get_or_insert(if self.method == Some(Method::Prompt) { 0.0 } else { 0.1 });
        self.hidden_dropout.get_or_insert(0.1);
        self.learning_rate.get_or_insert(5e-3);
        self.schedule.get_or_insert(Schedule::Linear);
        self.warmup.get_or_insert(Warmup::Steps(0));
        self.weight_decay.get_or_insert(0.0);
        self.max_grad_norm.get_or_insert(1.0);
        if self.tokens_per_step.is_none() {
            self.batch_size.get_or_insert(32);
            self.gradient_accumulation.get_or_insert(1);
        }
        if self.max_steps.is_some() {
            self.epochs = None;
        } else {
            self.epochs.get_or_insert(10);
        }
        self.seed.get_or_insert(42);
        if !self.validation.is_empty() {
            self.eval_every.get_or_insert(Every::Epoch);
        }
        self.save_every.get_or_insert(Every::Epoch);
        self.save_limit.get_or_insert(2);
        self.device.get_or_insert(Device::Auto);
        self.quiet.get_or_insert(false);
        self
    }

    /// What is said of the memory mode.
    pub fn allowed_memory(&self) -> Allowed {
        Allowed {
            recompute: self.recompute,
            weights: self.weights,
            offload: self.offload_activations,
            together: self.layer_major,
            chooses: self.memory_budget.is_some(),
        }
    }

    /// Names all that a run needs and that is not said, where that is more than one thing.
    pub fn check_complete(&self) -> Result<()> {
        let missing: Vec<&str> = [
            ("--model", self.model.is_none() && self.architecture.is_none()),
            ("--task", self.task.is_empty() && self.init_adapter.is_none()),
            ("--data", self.data.is_empty()),
            ("--output", self.output.is_none()),
        ]
        .into_iter()
        .filter_map(|(flag, missing)| missing.then_some(flag))
        .collect();
        match missing.as_slice() {
            [first @ .., last] if !first.is_empty() => usage!("{} and {last} are missing; see ptune train --help", first.join(", ")),
            _ => Ok(()),
        }
    }

    /// Checks every value that can be wrong by itself; usage errors name the flag.
    pub fn validate(&self) -> Result<()> {
        self.check_complete()?;
        self.base().validate()?;
        self.base().check_residency(self.weights)?;
        self.allowed_memory().check()?;
        if self.model.is_none() && self.tokenizer.is_none() {
            usage!("--tokenizer is missing: an architecture by name has none, and texts need one (a model directory's files will do)");
        }
        for (flag, missing) in [("data", self.data.is_empty()), ("output", self.output.is_none())] {
            if missing {
                usage!("--{flag} is missing");
            }
        }
        self.check_sets()?;
        if self.init_head.is_some() && self.init_adapter.is_none() {
            usage!("--init-head needs --init-adapter: the adapter that has it");
        }
        if self.task.is_empty() && self.init_adapter.is_none() {
            usage!("--task is missing: choose classification, multiple-choice, tagging, qa, causal-lm, or a name that ptune tasks lists");
        }
        for (flag, rate) in [
            ("prefix-dropout", self.prefix_dropout),
            ("hidden-dropout", self.hidden_dropout),
            ("attention-dropout", self.attention_dropout),
        ] {
            if let Some(rate) = rate.filter(|rate| !(0.0..1.0).contains(rate)) {
                usage!("--{flag} {rate}: a dropout rate is at least 0 and below 1");
            }
        }
        if let Some(rate) = self.learning_rate.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
            usage!("--learning-rate {rate}: must be above 0 and finite");
        }
        for (flag, value) in [("weight-decay", self.weight_decay), ("max-grad-norm", self.max_grad_norm)] {
            if let Some(value) = value.filter(|value| !(*value >= 0.0 && value.is_finite())) {
                usage!("--{flag} {value}: must be at least 0 and finite");
            }
        }
        for (flag, value, least) in [
            ("max-length", self.max_length, 1),
            ("doc-stride", self.doc_stride, 0),
            ("prefix-length", self.prefix_length, 0),
            ("prefix-projection", self.prefix_projection, 1),
            ("batch-size", self.batch_size, 1),
            ("gradient-accumulation", self.gradient_accumulation, 1),
            ("tokens-per-step", self.tokens_per_step, 1),
            ("micro-batch-size", self.micro_batch_size, 1),
            ("micro-batch-tokens", self.micro_batch_tokens, 1),
            ("layer-major", self.layer_major, 1),
            ("threads", self.threads, 1),
        ] {
            check_size(flag, value, least)?;
        }
        for (flag, value) in [
            ("epochs", self.epochs),
            ("max-steps", self.max_steps),
            ("patience", self.patience),
            ("max-train-samples", self.max_train_samples.map(|value| value as u64)),
            ("save-limit", self.save_limit.map(|value| value as u64)),
        ] {
            if let Some(value) = value.filter(|value| !(1..=u64::from(u32::MAX)).contains(value)) {
                usage!("--{flag} {value}: must be from 1 to {}", u32::MAX);
            }
        }
        for (flag, given, other, excluded) in [
            ("batch-size", self.batch_size.is_some(), "tokens-per-step", self.tokens_per_step.is_some()),
            ("gradient-accumulation", self.gradient_accumulation.is_some(), "tokens-per-step", self.tokens_per_step.is_some()),
            ("micro-batch-size", self.micro_batch_size.is_some(), "tokens-per-step", self.tokens_per_step.is_some()),
            ("micro-batch-tokens", self.micro_batch_tokens.is_some(), "tokens-per-step", self.tokens_per_step.is_none()),
        ] {
            if given && excluded {
                let how = if flag == "micro-batch-tokens" { "needs" } else { "and" };
                let excluded = if flag == "micro-batch-tokens" { "" } else { " exclude each other" };
                usage!("--{flag} {how} --{other}{excluded}: steps and micro-batches are counted in examples, or in tokens");
            }
        }
        match (self.method, self.prefix_length) {
            (Some(Method::Head), Some(length)) if length > 0 => {
                usage!("--method head trains the head alone: leave out --prefix-length {length}, or give --method prefix")
            }
            (Some(method @ (Method::Prefix | Method::Prompt)), Some(0)) => {
                let name = method.name();
                usage!("--method {name} with --prefix-length 0: there is no {name}; give --method head")
            }
            _ => {}
        }
        if let Some(start @ (PrefixStart::Text(_) | PrefixStart::File(_))) = &self.prefix_init {
            for (flag, given) in [("prefix-projection", self.prefix_projection.is_some()), ("init-adapter", self.init_adapter.is_some())] {
                if given {
                    usage!("--prefix-init {start} and --{flag} exclude each other: the text's keys and values are the prefix itself");
                }
            }
        }
        if self.verbalizer.is_some() && self.head == Some(HeadKind::Dense) {
            usage!("--verbalizer and --head dense exclude each other: words need no head");
        }
        if self.init_adapter.is_some() && self.prefix_projection.is_some() {
            usage!("--prefix-projection and --init-adapter exclude each other: an adapter holds a prefix without its projection");
        }
        if self.validation.is_empty() {
            for (flag, given) in [
                ("null-threshold tune", self.null_threshold == Some(NullThreshold::Tuned)),
                ("eval-every", self.eval_every.is_some()),
                ("metric", self.metric.is_some()),
                ("patience", self.patience.is_some()),
            ] {
                if given {
                    usage!("--{flag} needs --validation");
                }
            }
        }
        Ok(())
    }

    /// Finds the files in a folder that --data or --validation names; the validation file is that of the data's folder where
    /// none is named.
    pub fn locate(&mut self) -> Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        self.check_sets()?;
        let mut sets: Vec<TrainOptions> = (0..self.set_count()).map(|set| self.of_set(set)).collect();
        sets.iter_mut().try_for_each(TrainOptions::locate_set)?;
        self.set_files(&sets)
    }

    fn locate_set(&mut self) -> Result<()> {
        let Some(data) = self.data.first().cloned() else { return Ok(()) };
        let named = self.task.first().copied().and_then(TaskName::named);
        let is_folder = data.is_dir();
        for (flag, path) in [("data", Some(&data)), ("validation", self.validation.first())] {
            if let Some(path) = path.filter(|path| path.is_dir() && named.is_none()) {
                usage!(
                    "--{flag} {}: is a folder; only a named task (see ptune tasks) finds its files in one: name the file",
                    path.display()
                );
            }
        }
        let Some(named) = named else { return Ok(()) };
        self.data = vec![named.locate(&data, TRAIN)?];
        if let Some(validation) = self.validation.first() {
            self.validation = vec![named.locate(validation, VALIDATION)?];
        } else if is_folder {
            let remedy = "name a file with --validation, or the training file itself with --data, to do without";
            self.validation = vec![named.locate(&data, VALIDATION).map_err(|error| anyhow!("{error}; {remedy}"))?];
        }
        Ok(())
    }

    /// Whether there is such a template.
    fn check_template(&self) -> Result<()> {
        let (Some(template), Some(task)) = (self.template, self.task.first()) else { return Ok(()) };
        match task.named() {
            None => usage!("--template {template}: {task} is no named task (see ptune tasks); its inputs are built as the data has them"),
            Some(named) if template >= named.templates.len() => {
                usage!("--template {template}: {} has {} (they count from 0)", named.name, named.templates.len())
            }
            Some(_) => Ok(()),
        }
    }

    /// Takes the number of a text's tokens as the prefix length; another one that was given is a usage error.
    pub fn set_prefix_length(&mut self, tokens: usize) -> Result<()> {
        if let Some(length) = self.prefix_length.filter(|&length| length != tokens) {
            usage!("--prefix-length {length}: the text of --prefix-init has {tokens} tokens; leave it out, or change the text");
        }
        check_size("prefix-length", Some(tokens), 1)?;
        self.prefix_length = Some(tokens);
        Ok(())
    }

    /// Fills in what depends on the model and on the adapter that the run starts from, for one data set. A value that contradicts the
    /// adapter is a usage error.
    pub fn complete(mut self, spec: &Specification, adapter: Option<&Adapter>) -> Result<TrainOptions> {
        let every_layer: Vec<usize> = (0..spec.layers).collect();
        if let Some(adapter) = adapter {
            let metadata = &adapter.metadata;
            if let (Some(given), Some(known), false) = (self.task.first(), metadata.task, adapter.foreign)
                && given.kind() != known
            {
                usage!("--task {given}: the adapter of --init-adapter has {}", known.name());
            }
            if let (true, Some(kind)) = (self.task.is_empty(), metadata.task) {
                self.task = vec![TaskName::of(kind, metadata.named_task.as_deref())?];
            }
            if self.task.first().is_some_and(|task| task.named().map(|task| task.name) == metadata.named_task.as_deref()) {
                self.template = self.template.or(Some(metadata.template).filter(|&template| template > 0));
            }
            agree("prefix-length", &mut self.prefix_length, Some(metadata.prefix_length))?;
            if metadata.prefix_length > 0 && !metadata.is_prompt() {
                let layers = LayerSet::from_indices(&metadata.prefix_layers);
                if let Some(given) = self.prefix_layers.as_ref().filter(|given| **given != layers) {
                    usage!("--prefix-layers {given}: the adapter of --init-adapter has a prefix in the layers {layers}");
                }
                self.prefix_layers = Some(layers);
            }
            if adapter.foreign || metadata.has_head() {
                agree("head", &mut self.head, Some(metadata.head))?;
            }
            let shifted = metadata.shifted_positions && spec.shifts();
            self.positions.get_or_insert(if shifted { Offset::Shifted } else { Offset::Unshifted });
            self.weight_format.get_or_insert(metadata.weight_format);
            let known = metadata.words().map(|(labels, words)| LabelWords { labels, words });
            if !adapter.foreign && metadata.has_head() && self.verbalizer.is_some() && self.verbalizer != known {
                usage!(
                    "--verbalizer: the adapter of --init-adapter was trained with {}",
                    known.map_or("none".into(), |known| known.to_string())
                );
            }
            self.verbalizer = self.verbalizer.or(known);
            if self.task.is_empty() {
                usage!("--task is missing: the files of the adapter do not tell its task");
            }
        }
        self.weight_format.get_or_insert_default();
        let length = *self.prefix_length.get_or_insert(20);
        let of_length = if length == 0 { Method::Head } else { Method::Prefix };
        let of_adapter = adapter.map(|adapter| if adapter.metadata.is_prompt() { Method::Prompt } else { of_length });
        let method = *self.method.get_or_insert(of_adapter.unwrap_or(of_length));
        if let Some(known) = of_adapter.filter(|&known| known != method) {
            usage!("--method {}: the adapter of --init-adapter is of the method {}", method.name(), known.name());
        }
        if method == Method::Prompt {
            if self.positions == Some(Offset::Unshifted) && spec.shifts() {
                usage!("--positions unshifted: behind a prompt the text's positions go on from its own; leave it out");
            }
            (self.prefix_layers, self.prefix_dropout) = (None, Some(0.0));
        } else {
            self.prefix_layers.get_or_insert(LayerSet::from_indices(&every_layer)).indices(spec.layers)?;
        }
        if self.positions == Some(Offset::Shifted) && !spec.shifts() {
            usage!("--positions shifted: the positions of {} are not shifted by a prefix; leave it out", spec.family);
        }
        self.positions.get_or_insert(if spec.shifts() { Offset::Shifted } else { Offset::Unshifted });
        self.attention_dropout.get_or_insert(spec.attention_dropout);
        let name = *self.task.first().context("the task is not known")?;
        let task = name.kind();
        self.check_template()?;
        let head = *self.head.get_or_insert(default_head(spec, task));
        let max_length = *self.max_length.get_or_insert(default_max_length(name));
        check_stride(task, max_length, self.doc_stride)?;
        if self.prefix_length == Some(0) {
            self.prefix_layers = None;
            if task == TaskKind::CausalLm || self.verbalizer.is_some() {
                usage!("--prefix-length 0 leaves nothing to train: the language-model head is frozen");
            }
        }
        if head == HeadKind::Dense && task == TaskKind::CausalLm {
            usage!("--head dense: causal-lm has the model's own language-model head");
        }
        if head == HeadKind::Dense && !task.reads_sequences() {
            usage!("--head dense is for whole sequences; {} has a linear head on its tokens", task.name());
        }
        if task != TaskKind::CausalLm && self.verbalizer.is_none() && !offers_head(spec, task, head) {
            usage!("--head {}: {} on a {} model has the head {}", head.name(), task.name(), spec.family, default_head(spec, task).name());
        }
        check_language_task(task, self.verbalizer.is_some(), spec)?;
        Ok(self)
    }

    /// What is written beside the adapter, to be fed back or resumed: without what the model decides or what belongs to
    /// one call.
    pub fn recorded(mut self, spec: &Specification) -> Result<TrainOptions> {
        if self.prefix_layers.as_ref().is_some_and(|layers| *layers == LayerSet::from_indices(&(0..spec.layers).collect::<Vec<_>>())) {
            self.prefix_layers = None;
        }
        (self.quiet, self.profile_steps) = (None, None);
        self.only_read()
    }

    /// Names of the data's columns.
    pub fn columns(&self) -> Columns {
        let default = Columns::default();
        Columns {
            text: self.text_column.clone(),
            text_pair: self.text_pair_column.clone().unwrap_or(default.text_pair),
            label: self.label_column.clone(),
            choices: self.choices_column.clone().unwrap_or(default.choices),
            word: self.word_column,
            tag: self.tag_column,
            ignore_labels: false,
            labels_for: None,
            choice: None,
        }
    }
}

/// A size within its range, or a usage error that names the flag.
pub fn check_size(flag: &str, value: Option<usize>, least: usize) -> Result<()> {
    if let Some(value) = value.filter(|value| !(least..=LARGEST).contains(value)) {
        usage!("--{flag} {value}: must be from {least} to {LARGEST}");
    }
    Ok(())
}

/// Windows of a context must advance.
pub fn check_stride(task: TaskKind, max_length: usize, doc_stride: Option<usize>) -> Result<()> {
    if let Some(stride) = doc_stride.filter(|&stride| task == TaskKind::Qa && stride >= max_length) {
        usage!("--doc-stride {stride} must be below --max-length {max_length}");
    }
    Ok(())
}

/// Whether the model can do what needs a language-model head.
pub fn check_language_task(task: TaskKind, cloze: bool, spec: &Specification) -> Result<()> {
    let (flag, family) = (if cloze { "--verbalizer" } else { "--task causal-lm" }, &spec.family);
    match (task, spec.mask) {
        (TaskKind::CausalLm, MaskKind::Full) => {
            usage!("{flag} needs a causal language model (llama, gpt2, ...); {family} is an encoder, which reads in both directions")
        }
        (TaskKind::CausalLm, MaskKind::Separator) => {
            usage!("{flag} needs a causal language model (llama, gpt2, ...); {family} fills blanks: use --task classification --verbalizer")
        }
        _ => Ok(()),
    }
}

/// What the adapter says holds; what is said besides must be the same.
fn agree<T: PartialEq + Copy + serde::Serialize>(flag: &str, given: &mut Option<T>, adapter: Option<T>) -> Result<()> {
    let (Some(value), Some(known)) = (*given, adapter) else {
        *given = given.or(adapter);
        return Ok(());
    };
    if value != known {
        let text = |value: T| serde_json::to_string(&value).unwrap_or_default().replace('"', "");
        usage!("--{flag} {}: the adapter of --init-adapter has {}", text(value), text(known));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::UsageError;

    fn options() -> TrainOptions {
        TrainOptions {
            model: Some("m".into()),
            data: vec!["d".into()],
            output: Some("o".into()),
            task: vec![TaskKind::Classification.into()],
            ..TrainOptions::default()
        }
    }

    fn adapter() -> Adapter {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert-classification/adapter");
        Adapter::read(&folder).unwrap()
    }

    fn spec() -> Specification {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert-classification/model");
        crate::checkpoint::FrozenModel::open(&folder).unwrap().spec
    }

    #[test]
    fn values_out_of_range_name_their_flag() {
        assert!(options().validate().is_ok());
        let cases: [(&str, TrainOptions); 13] = [
            ("--model", TrainOptions { model: None, ..options() }),
            ("--task", TrainOptions { task: Vec::new(), ..options() }),
            ("--hidden-dropout", TrainOptions { hidden_dropout: Some(1.0), ..options() }),
            ("--prefix-dropout", TrainOptions { prefix_dropout: Some(f64::NAN), ..options() }),
            ("--attention-dropout", TrainOptions { attention_dropout: Some(-0.1), ..options() }),
            ("--learning-rate", TrainOptions { learning_rate: Some(0.0), ..options() }),
            ("--learning-rate", TrainOptions { learning_rate: Some(f64::INFINITY), ..options() }),
            ("--weight-decay", TrainOptions { weight_decay: Some(-1.0), ..options() }),
            ("--batch-size", TrainOptions { batch_size: Some(0), ..options() }),
            ("--prefix-length", TrainOptions { prefix_length: Some(usize::MAX), ..options() }),
            ("--epochs", TrainOptions { epochs: Some(0), ..options() }),
            ("--patience", TrainOptions { patience: Some(2), ..options() }),
            ("--prefix-projection", TrainOptions { init_adapter: Some("a".into()), prefix_projection: Some(8), ..options() }),
        ];
        for (flag, options) in cases {
            let error = options.validate().expect_err(flag);
            assert!(error.is::<UsageError>() && error.to_string().contains(flag), "{flag}: {error}");
        }
    }

    #[test]
    fn defaults_complete_a_configuration_that_can_be_fed_back() {
        let complete = options().with_defaults().complete(&spec(), None).unwrap();
        let settings = Settings::new(&complete).unwrap();
        assert_eq!((settings.prefix_length, settings.max_length, settings.batch_size), (20, 128, Some(32)));
        assert_eq!((settings.epochs, settings.max_steps, settings.learning_rate), (Some(10), None, 5e-3));
        assert_eq!(settings.layer_indices(3).unwrap(), [0, 1, 2]);
        let again: TrainOptions = toml::from_str(&complete.to_toml().unwrap()).unwrap();
        assert_eq!(again.clone().with_defaults().complete(&spec(), None).unwrap(), complete);
        assert!(again.validate().is_ok());

        let qa = TrainOptions { task: vec![TaskKind::Qa.into()], ..options() }.with_defaults().complete(&spec(), None).unwrap();
        assert_eq!(qa.max_length, Some(384));
        let steps = TrainOptions { max_steps: Some(5), epochs: Some(3), ..options() }.with_defaults();
        assert_eq!((steps.max_steps, steps.epochs), (Some(5), None));
        let head = TrainOptions { prefix_length: Some(0), ..options() }.with_defaults().complete(&spec(), None).unwrap();
        assert!(head.prefix_layers.is_none() && head.validate().is_ok());
    }

    #[test]
    fn an_adapter_supplies_what_it_knows_and_contradictions_are_refused() {
        let complete = |options: TrainOptions| options.with_defaults().complete(&spec(), Some(&adapter()));
        let start = TrainOptions { task: Vec::new(), init_adapter: Some("a".into()), ..options() };
        let settings = Settings::new(&complete(start.clone()).unwrap()).unwrap();
        assert_eq!((settings.task.kind(), settings.prefix_length, settings.head), (TaskKind::Classification, 6, HeadKind::Linear));
        let refused = |options| complete(options).unwrap_err().to_string();
        assert!(refused(TrainOptions { prefix_length: Some(7), ..start.clone() }).contains("--prefix-length 7: the adapter"));
        assert!(refused(TrainOptions { head: Some(HeadKind::Dense), ..start.clone() }).contains("--head dense"));
        assert!(refused(TrainOptions { prefix_layers: Some("1-2".parse().unwrap()), ..start }).contains("--prefix-layers 1-2"));
        let stride = TrainOptions { task: vec![TaskKind::Qa.into()], max_length: Some(100), ..options() };
        assert!(stride.with_defaults().complete(&spec(), None).unwrap_err().to_string().contains("--doc-stride 128"));
    }
}
