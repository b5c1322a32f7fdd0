//! What can be said about a training run: one struct whose fields are the flags of `ptune train` and, under the same
//! names, the keys of its configuration file. All are optional here; `settings` decides what holds.

use super::base::BaseOptions;
use super::sampling::Sampling;
use super::schedule::Schedule;
use super::several;
use super::values::{
    ByteSize, DataOrder, Device, Every, LabelWords, LayerSet, Method, NullThreshold, Offset, PrefixStart, StepRange, Warmup,
};
use crate::checkpoint::WeightFormat;
use crate::data::{LongSentences, TagScheme, column_names};
use crate::engine::{Recompute, Residency};
use crate::error::UsageError;
use crate::model::HeadKind;
use crate::task::TaskName;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Options of `ptune train` as given: by flags, or by a TOML file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrainOptions {
    /// Hugging Face model directory (config.json, safetensors, tokenizer)
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub model: Option<PathBuf>,
    /// A published model's shape by its name, in place of --model; needs --random-weights and --tokenizer
    #[arg(long, value_name = "NAME", help_heading = "Files")]
    pub architecture: Option<String>,
    /// Draw the weights at random, without a file; of --model only config.json is read [without a value: seed 0]
    #[arg(long, value_name = "SEED", num_args = 0..=1, default_missing_value = "0", help_heading = "Files")]
    pub random_weights: Option<u64>,
    /// Directory of the tokenizer [default: --model]
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub tokenizer: Option<PathBuf>,
    /// classification, multiple-choice, tagging, qa, causal-lm, or a data set's name that ptune tasks lists; needed unless
    /// --init-adapter tells. Several pairs of --task and --data train one prefix with a head for each
    #[arg(long, value_name = "TASK", help_heading = "Files")]
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "several")]
    pub task: Vec<TaskName>,
    /// Template by which a named task's inputs are built, of those that ptune tasks lists [default: 0]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub template: Option<usize>,
    /// Settings of a published experiment by name, beneath all that is given; ptune recipes lists them
    #[arg(long, value_name = "NAME", help_heading = "Files")]
    #[serde(skip_serializing)]
    pub recipe: Option<String>,
    /// Training data: JSONL, JSON, CSV, TSV, CoNLL columns, SQuAD JSON; of a named task the official file, or the folder
    /// with the training and the validation file. Of several, NAME=FILE names the head [default: after its task]
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "several")]
    pub data: Vec<PathBuf>,
    /// Validation data, one for each --data; the best adapter by --metric is then the one kept
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "several")]
    pub validation: Vec<PathBuf>,
    /// Folder for the adapter, checkpoints and records
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub output: Option<PathBuf>,
    /// Adapter to start from; supplies prefix length, layers, head and labels
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub init_adapter: Option<PathBuf>,
    /// The head to start from where --init-adapter has several, or none, to take the prefix alone [default: of the task's name;
    /// else none]
    #[arg(long, value_name = "NAME", help_heading = "Files")]
    pub init_head: Option<String>,
    /// Go on from the latest checkpoint in --output
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Files")]
    #[serde(skip_serializing)]
    pub resume: Option<bool>,

    /// Column of the text [default: text; tagging: tokens; causal-lm: prompt]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub text_column: Option<String>,
    /// Column of the second text [default: text_pair]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub text_pair_column: Option<String>,
    /// Column of the label [default: label; tagging: tags; causal-lm: response]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub label_column: Option<String>,
    /// Column of the choices [default: choices]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub choices_column: Option<String>,
    /// Column of the words in a column file, counted from 0 [default: behind the words' numbers, else the first]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub word_column: Option<usize>,
    /// Column of the tag in a column file, counted from 0 [default: the last]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub tag_column: Option<usize>,
    /// How tags spell spans: iob1, iob2, bioes or bilou [default: as the data show]
    #[arg(long, value_name = "SCHEME", hide_possible_values = true, help_heading = "Data")]
    pub tag_scheme: Option<TagScheme>,
    /// A sentence beyond --max-length (tagging): split into parts, or truncate [default: split]
    #[arg(long, value_name = "HOW", hide_possible_values = true, help_heading = "Data")]
    pub long_sentences: Option<LongSentences>,
    /// Longest sequence in tokens [default: 128; qa: 384; causal-lm: 512]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_length: Option<usize>,
    /// Tokens that neighbouring windows of a context share (qa) [default: 128]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub doc_stride: Option<usize>,
    /// By how much "no answer" must score above the best answer to be given (qa): a number, or tune, to find it on
    /// --validation [default: 0]
    #[arg(long, value_name = "NUMBER|tune", allow_hyphen_values = true, help_heading = "Data")]
    pub null_threshold: Option<NullThreshold>,
    /// Use only the first N training examples
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_train_samples: Option<usize>,
    /// How many steps of an epoch are of each of several data sets: proportional (to their sizes), uniform, sqrt, or
    /// NAME=WEIGHT,... [default: proportional]
    #[arg(long, value_name = "HOW", help_heading = "Data")]
    pub sampling: Option<Sampling>,
    /// Order of the training data: shuffled or sequential [default: shuffled]
    #[arg(long, value_name = "ORDER", hide_possible_values = true, help_heading = "Data")]
    pub data_order: Option<DataOrder>,

    /// What is trained beside the head: prefix (keys and values in every layer), prompt (embeddings in front of
    /// the input), or head (nothing) [default: prefix]
    #[arg(long, value_name = "METHOD", hide_possible_values = true, help_heading = "Prefix and head")]
    pub method: Option<Method>,
    /// Prefix positions per layer, or embeddings of a prompt; 0 trains the head alone [default: 20]
    #[arg(long, value_name = "N", help_heading = "Prefix and head")]
    pub prefix_length: Option<usize>,
    /// Train the prefix through a two-layer tanh MLP of this hidden size [without a value: 512]
    #[arg(long, value_name = "HIDDEN", num_args = 0..=1, default_missing_value = "512", help_heading = "Prefix and head")]
    pub prefix_projection: Option<usize>,
    /// Layers that get a prefix, counted from 1: 17-24 or 1,3,5-8 [default: all]
    #[arg(long, value_name = "RANGE", help_heading = "Prefix and head")]
    pub prefix_layers: Option<LayerSet>,
    /// How the prefix starts: normal (N(0, 0.02)), zero, text:"..." or file:PATH (as the model's own keys and values for
    /// that text, whose tokens are the prefix length) [default: normal]
    #[arg(long, value_name = "INIT", help_heading = "Prefix and head")]
    pub prefix_init: Option<PrefixStart>,
    /// Token positions: shifted by the prefix length, or unshifted [default: shifted; glm: unshifted]
    #[arg(long, value_name = "HOW", hide_possible_values = true, help_heading = "Prefix and head")]
    pub positions: Option<Offset>,
    /// Head for whole sequences: linear (on the frozen pooler), dense (a trained dense layer first), context (DeBERTa's
    /// trained pooler) or score (decoders': at the last token, without a bias) [default: linear; DeBERTa: context; decoders:
    /// score]
    #[arg(long, value_name = "HEAD", hide_possible_values = true, help_heading = "Prefix and head")]
    pub head: Option<HeadKind>,
    /// Classify by the words that fill the blank [MASK] of the text, with no head to train: '{"LABEL": " word", ...}'
    #[arg(long, value_name = "JSON", help_heading = "Prefix and head")]
    pub verbalizer: Option<LabelWords>,
    /// Dropout on prefix keys and values [default: 0.1]
    #[arg(long, value_name = "RATE", help_heading = "Prefix and head")]
    pub prefix_dropout: Option<f64>,
    /// Dropout of the frozen model's hidden states and of the head [default: 0.1]
    #[arg(long, value_name = "RATE", help_heading = "Prefix and head")]
    pub hidden_dropout: Option<f64>,
    /// Dropout on attention probabilities [default: the model's config.json]
    #[arg(long, value_name = "RATE", help_heading = "Prefix and head")]
    pub attention_dropout: Option<f64>,

    /// Peak learning rate of AdamW [default: 5e-3]
    #[arg(long, value_name = "RATE", help_heading = "Optimization")]
    pub learning_rate: Option<f64>,
    /// linear or cosine (both down to 0), constant or exponential (times 0.95 an epoch) [default: linear]
    #[arg(long, value_name = "SCHEDULE", hide_possible_values = true, help_heading = "Optimization")]
    pub schedule: Option<Schedule>,
    /// Warm-up: whole number of steps, or a ratio below 1 [default: 0]
    #[arg(long, value_name = "N|RATIO", help_heading = "Optimization")]
    pub warmup: Option<Warmup>,
    /// Decoupled weight decay [default: 0]
    #[arg(long, value_name = "RATE", help_heading = "Optimization")]
    pub weight_decay: Option<f64>,
    /// Clip the gradient's global norm; 0 is off [default: 1.0]
    #[arg(long, value_name = "NORM", help_heading = "Optimization")]
    pub max_grad_norm: Option<f64>,
    /// Examples (qa: windows) of a batch [default: 32]
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    pub batch_size: Option<usize>,
    /// Batches of an optimizer step [default: 1]
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    pub gradient_accumulation: Option<usize>,
    /// Tokens of an optimizer step, about: in place of --batch-size and --gradient-accumulation
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    pub tokens_per_step: Option<usize>,
    /// Passes over the training data [default: 10]
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    pub epochs: Option<u64>,
    /// Optimizer steps, in place of --epochs
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    pub max_steps: Option<u64>,
    /// Seed of initial values, dropout and data order [default: 42]
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    pub seed: Option<u64>,

    /// Evaluate on --validation every epoch or every N steps [default: epoch]
    #[arg(long, value_name = "epoch|N", help_heading = "Evaluation and checkpoints")]
    pub eval_every: Option<Every>,
    /// Score that chooses the best adapter, or loss; of several data sets its mean [default: the task's own]
    #[arg(long, value_name = "NAME", help_heading = "Evaluation and checkpoints")]
    pub metric: Option<String>,
    /// Stop after N evaluations without a better score
    #[arg(long, value_name = "N", help_heading = "Evaluation and checkpoints")]
    pub patience: Option<u64>,
    /// Save a checkpoint every N steps [default: every epoch]
    #[arg(long, value_name = "epoch|N", help_heading = "Evaluation and checkpoints")]
    pub save_every: Option<Every>,
    /// Checkpoints kept [default: 2]
    #[arg(long, value_name = "N", help_heading = "Evaluation and checkpoints")]
    pub save_limit: Option<usize>,

    /// Most memory that the run may plan, as 24GiB: takes the fastest of --recompute, --offload-activations, --weights (resident
    /// or streamed) and --layer-major that fits, and the largest micro-batch; what is given of these holds
    #[arg(long, value_name = "SIZE", help_heading = "Memory")]
    pub memory_budget: Option<ByteSize>,
    /// What the backward makes again instead of keeping it: none, up-projection or layer. Changes no result [default: none,
    /// or what --memory-budget wants]
    #[arg(long, value_name = "WHAT", hide_possible_values = true, help_heading = "Memory")]
    pub recompute: Option<Recompute>,
    /// Where the layers' weights live: resident on the device, streamed from host memory, two layers at a time, or disk: as
    /// streamed, from the checkpoint's mapped files, which need not fit into host memory (matrices that are not stored as they
    /// are used - fp32, transposed, interleaved, or int8 by --weight-format - are kept there as with streamed; no budget
    /// chooses it). Changes no result [default: resident, or what --memory-budget wants]
    #[arg(long, value_name = "WHERE", hide_possible_values = true, help_heading = "Memory")]
    pub weights: Option<Residency>,
    /// Keep what stands for the layers' inputs in host memory until the backward; needs --recompute layer. Changes
    /// no result [default: what --memory-budget wants; else false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide_possible_values = true, help_heading = "Memory")]
    pub offload_activations: Option<bool>,
    /// Micro-batches that go through a layer before the next layer comes, so that streamed weights come once for all of
    /// them. Changes no result [default: what --memory-budget wants; else 1]
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub layer_major: Option<usize>,
    /// How the layers' matrices are kept: fp16 (16 bits, or the checkpoint's bf16), or int8 (8 bits and a factor a row, which
    /// halves them and changes results a little) [default: fp16; that of --init-adapter]
    #[arg(long, value_name = "FORMAT", hide_possible_values = true, help_heading = "Memory")]
    pub weight_format: Option<WeightFormat>,
    /// Examples that go through the model at a time [default: --batch-size, or what --memory-budget wants]
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub micro_batch_size: Option<usize>,
    /// Tokens that go through the model at a time, with --tokens-per-step [default: all of a step's]
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub micro_batch_tokens: Option<usize>,

    /// auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE", help_heading = "Machine and terminal")]
    pub device: Option<Device>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Machine and terminal")]
    pub threads: Option<usize>,
    /// Let a CUDA profiler see steps A to B alone, counted from 1 (nsys profile -c cudaProfilerApi)
    #[arg(long, value_name = "A:B", help_heading = "Machine and terminal")]
    pub profile_steps: Option<StepRange>,
    /// Print nothing but errors
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Machine and terminal")]
    pub quiet: Option<bool>,
}

impl TrainOptions {
    /// Where the tokenizer is.
    pub fn tokenizer_directory(&self) -> Result<PathBuf> {
        self.tokenizer.clone().or(self.model.clone()).context("--tokenizer is missing")
    }

    /// What is said of the model.
    pub fn base(&self) -> BaseOptions {
        BaseOptions { model: self.model.clone(), architecture: self.architecture.clone(), random_weights: self.random_weights }
    }

    /// What a file says. Runs of older versions wrote all four columns for every task, and meant the task's own where they wrote
    /// the classification's; beside them stands what their task or method did not read. No task has all four, so nobody else says
    /// them all.
    pub(super) fn of_this_version(mut self) -> Result<TrainOptions> {
        let is_old =
            [&self.text_column, &self.text_pair_column, &self.label_column, &self.choices_column].iter().all(|column| column.is_some());
        if !is_old {
            return Ok(self);
        }
        if self.task.iter().any(|task| column_names(task.kind()) != ("text", "label")) {
            self.text_column = self.text_column.filter(|text| text != "text");
            self.label_column = self.label_column.filter(|label| label != "label");
        }
        self.only_read()
    }

    /// Whether these options alone say that nothing but the head is trained; None where they do not say.
    pub fn is_head_alone(&self) -> Option<bool> {
        self.method.map(|method| method == Method::Head).or(self.prefix_length.map(|length| length == 0))
    }

    /// These options, and `beneath` for what they leave open. `epochs` and `max-steps` are two ways to say one thing:
    /// saying either hides both of those beneath. Another task or method hides what it does not read, and what says that the
    /// head is alone what is said of a prefix, and the other way round.
    pub fn over(self, beneath: &TrainOptions) -> Result<TrainOptions> {
        let upper = self.to_table()?;
        let mut table = beneath.to_table()?;
        if upper.contains_key("epochs") || upper.contains_key("max-steps") {
            table.remove("epochs");
            table.remove("max-steps");
        }
        // Two ways to count.
        if upper.contains_key("tokens-per-step") {
            table.retain(|name, _| !["batch-size", "gradient-accumulation", "micro-batch-size"].contains(&name));
        } else if upper.contains_key("batch-size") || upper.contains_key("gradient-accumulation") {
            table.retain(|name, _| !["tokens-per-step", "micro-batch-tokens"].contains(&name));
        }
        self.hide(beneath, &mut table);
        if self.is_head_alone().is_some() && self.is_head_alone() != beneath.is_head_alone() {
            table.remove("method");
            table.remove("prefix-length");
        }
        table.extend(upper);
        let resume = self.resume.or(beneath.resume);
        let recipe = self.recipe.or(beneath.recipe.clone());
        Ok(TrainOptions { resume, recipe, ..TrainOptions::from_table(table)? })
    }

    /// With the settings of the recipe that is named, if one is, beneath.
    pub fn with_recipe(mut self) -> Result<TrainOptions> {
        match self.recipe.take() {
            Some(name) => self.over(&super::recipes::find(&name)?.options()),
            None => Ok(self),
        }
    }

    /// As a table of TOML values under the names of the flags.
    pub fn to_table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self).map_err(|error| {
            // The only thing that TOML cannot hold is a whole number beyond 63 bits.
            let fields = serde_json::to_value(self).unwrap_or_default();
            let large = |(_, value): &(&String, &serde_json::Value)| value.as_u64().is_some_and(|value| i64::try_from(value).is_err());
            let message = match fields.as_object().and_then(|fields| fields.iter().find(large)) {
                Some((name, value)) => format!("--{name} {value}: must be at most {}", i64::MAX),
                None => format!("the options cannot be written as TOML: {error}"),
            };
            UsageError(message).into()
        })
    }

    /// From what [`TrainOptions::to_table`] gave.
    pub fn from_table(table: toml::Table) -> Result<TrainOptions> {
        table.try_into().context("the options cannot be read back from TOML")
    }

    /// The text of a configuration file.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("the configuration cannot be written as TOML")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: TrainOptions,
    }

    fn flags(text: &str) -> TrainOptions {
        Command::try_parse_from(std::iter::once("train").chain(text.split_whitespace())).unwrap().options
    }

    fn file(text: &str) -> Result<TrainOptions> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text)?;
        TrainOptions::read(&path)
    }

    #[test]
    fn flags_and_file_share_names_and_flags_win() {
        let flags = flags("--prefix-length 8 --prefix-projection --quiet --warmup 0.1 --prefix-layers 2-3");
        let file = file("prefix-length = 4\nseed = 7\nlearning-rate = 1\nprefix-projection = 64\neval-every = 'epoch'").unwrap();
        let options = flags.over(&file).unwrap();
        assert_eq!((options.prefix_length, options.prefix_projection, options.seed), (Some(8), Some(512), Some(7)));
        assert_eq!((options.learning_rate, options.quiet, options.resume), (Some(1.0), Some(true), None));
        assert_eq!((options.warmup, options.eval_every), (Some(Warmup::Ratio(0.1)), Some(Every::Epoch)));
    }

    #[test]
    fn options_survive_their_file() {
        let options = flags(
            "--model m --task multiple-choice --data d --learning-rate 0.005 --weight-decay 1e-05 --seed 9 --device cuda:1 \
             --prefix-layers 1,3-4 --positions unshifted --head dense --schedule exponential --save-every 10 --save-limit 3",
        );
        assert_eq!(file(&options.to_toml().unwrap()).unwrap(), options);
    }

    #[test]
    fn a_flag_for_epochs_hides_the_steps_of_the_file() {
        let file = file("max-steps = 5\nepochs = 2").unwrap();
        let options = flags("--epochs 3").over(&file).unwrap();
        assert_eq!((options.epochs, options.max_steps), (Some(3), None));
        assert_eq!(flags("--seed 1").over(&file).unwrap().max_steps, Some(5));
    }

    #[test]
    fn the_head_alone_and_a_prefix_hide_each_other() {
        let over = |upper: &str, beneath: &str| {
            let options = flags(upper).over(&file(beneath).unwrap()).unwrap();
            (options.method, options.prefix_length, options.prefix_layers.is_some())
        };
        let prefix = "prefix-length = 8\nmethod = 'prefix'\nprefix-layers = 2";
        assert_eq!(over("--method head", prefix), (Some(Method::Head), None, false));
        assert_eq!(over("--prefix-length 0", prefix), (None, Some(0), false));
        assert_eq!(over("--prefix-length 4", prefix), (Some(Method::Prefix), Some(4), true));
        assert_eq!(over("--seed 1", prefix), (Some(Method::Prefix), Some(8), true));
        let head = "prefix-length = 0\nmethod = 'head'";
        assert_eq!(over("--method prefix", head), (Some(Method::Prefix), None, false));
        assert_eq!(over("--prefix-length 4", head), (None, Some(4), false));
        assert_eq!(over("--method head", head), (Some(Method::Head), Some(0), false));
    }

    #[test]
    fn numbers_beyond_toml_are_named() {
        let error = flags("--seed 9223372036854775808").to_table().unwrap_err();
        assert!(error.is::<UsageError>() && error.to_string().starts_with("--seed 9223372036854775808: must be at most"));
        assert!(flags("--seed 9223372036854775807").to_table().is_ok());
    }

    #[test]
    fn columns_that_older_runs_wrote_are_the_task_s_own() {
        let old = |task: &str, text: &str| {
            let all = "text-pair-column = 'text_pair'\nlabel-column = 'label'\nchoices-column = 'choices'";
            let options = file(&format!("task = '{task}'\ntext-column = '{text}'\n{all}")).unwrap();
            (options.text_column, options.label_column)
        };
        assert_eq!(old("causal-lm", "text"), (None, None));
        assert_eq!(old("tagging", "words"), (Some("words".into()), None));
        assert_eq!(old("classification", "text"), (Some("text".into()), Some("label".into())));
        let new = file("task = 'causal-lm'\ntext-column = 'text'\nlabel-column = 'label'").unwrap();
        assert_eq!((new.text_column, new.label_column), (Some("text".into()), Some("label".into())));
        assert_eq!(TrainOptions::default().with_defaults().text_column, None);
    }

    #[test]
    fn resume_is_not_part_of_a_saved_configuration() {
        assert_eq!(flags("--resume").to_toml().unwrap(), "");
        assert_eq!(flags("--resume").over(&TrainOptions::default()).unwrap().resume, Some(true));
    }
}
