//! The command line: one file a command. Commands print; what they do is in `run`.

mod bench;
mod completions;
mod convert;
mod eval;
mod inspect;
mod plan;
mod predict;
mod recipes;
mod selftest;
mod sweep;
mod tasks;
mod train;

use crate::checkpoint::WeightFormat;
use crate::data::{Columns, LongSentences};
use crate::engine::Residency;
use crate::error::UsageError;
use crate::run::spelling::translate_line;
use crate::run::{Device, LabelWords, device};
use crate::task::TaskName;
use crate::usage;
use anyhow::{Context, Result, bail};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde_json::Value;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

/// P-Tuning v2: trains per-layer prefixes and a head on a frozen language model.
#[derive(Parser)]
#[command(name = "ptune", version = VERSION.as_str(), arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train an adapter: prefixes and a head for a frozen model
    Train(Box<train::Arguments>),
    /// Train over a grid of options, one run after the other, and compare
    Sweep(Box<sweep::Arguments>),
    /// List the data sets that --task takes by name: inputs, labels, scores, official files
    Tasks(tasks::Arguments),
    /// Score a model with an adapter on labelled data
    Eval(eval::Arguments),
    /// Write a prediction for every example of a file
    Predict(predict::Arguments),
    /// Tell what a model or an adapter is: sizes, trainable share, memory plan
    Inspect(inspect::Arguments),
    /// Tell what a run takes, in memory and time, before anything is loaded; within a budget the fastest way to run it
    Plan(Box<plan::Arguments>),
    /// Convert a PyTorch checkpoint (.bin, .pt) to safetensors of 16 bits; nothing in it is executed
    Convert(convert::Arguments),
    /// Measure speed: whole training steps, or single operations
    Bench(bench::Arguments),
    /// List the settings that --recipe takes by name, with the published score of each
    Recipes(recipes::Arguments),
    /// Print what a shell needs to complete commands and options
    Completions(completions::Arguments),
    /// Tell whether a device computes the right thing: every operation and whole steps against the CPU in double precision
    Selftest(selftest::Arguments),
}

/// Prints the chosen ones of a table's rows, as a table or as JSON; a usage error where none was chosen by `start`.
fn print_rows<T>(
    rows: &[&T],
    start: &str,
    command: &str,
    json: bool,
    object: fn(&T) -> Value,
    table: fn(&[&T]) -> String,
) -> Result<ExitCode> {
    if rows.is_empty() {
        usage!("{start}: no name begins so; ptune {command} lists them all");
    }
    print(&if json { serde_json::to_string_pretty(&rows.iter().map(|row| object(row)).collect::<Value>())? } else { table(rows) })?;
    Ok(ExitCode::SUCCESS)
}

/// Options of `eval` and `predict`.
#[derive(clap::Args)]
struct ScoringArguments {
    /// Hugging Face model directory that the adapter was trained on
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of the adapter (of ptune or of PEFT)
    #[arg(long, value_name = "DIR", required = true)]
    adapter: Vec<PathBuf>,
    /// Head of an adapter that has several (ptune inspect lists them)
    #[arg(long, value_name = "NAME")]
    head: Option<String>,
    /// Task (as for train); needed only where a foreign adapter's files do not tell
    #[arg(long, value_name = "TASK")]
    task: Option<TaskName>,
    /// Labels and words of a cloze (as for train); needed only for a foreign adapter
    #[arg(long, value_name = "JSON")]
    verbalizer: Option<LabelWords>,
    /// Column of the text [default: text; tagging: tokens; causal-lm: prompt]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    text_column: Option<String>,
    /// Column of the second text [default: text_pair]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    text_pair_column: Option<String>,
    /// Column of the label [default: label; tagging: tags; causal-lm: response]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    label_column: Option<String>,
    /// Column of the choices [default: choices]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    choices_column: Option<String>,
    /// Column of the words in a column file, counted from 0 [default: behind the words' numbers, else the first]
    #[arg(long, value_name = "N", help_heading = "Data")]
    word_column: Option<usize>,
    /// Column of the tag in a column file, counted from 0 [default: the last]
    #[arg(long, value_name = "N", help_heading = "Data")]
    tag_column: Option<usize>,
    /// A sentence beyond --max-length (tagging): split into parts, or truncate [default: as trained; else split]
    #[arg(long, value_name = "HOW", hide_possible_values = true, help_heading = "Data")]
    long_sentences: Option<LongSentences>,
    /// Longest sequence in tokens [default: as trained; else 128, qa: 384, causal-lm: 512]
    #[arg(long, value_name = "N", help_heading = "Data")]
    max_length: Option<usize>,
    /// Tokens that neighbouring windows of a context share [default: as trained; else 128]
    #[arg(long, value_name = "N", help_heading = "Data")]
    doc_stride: Option<usize>,
    /// By how much "no answer" must score above the best answer to be given (qa) [default: the adapter's; else 0]
    #[arg(long, value_name = "NUMBER", value_parser = finite, help_heading = "Data")]
    null_threshold: Option<f32>,
    /// Examples (qa: windows) of a batch
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Machine")]
    batch_size: usize,
    /// Where the layers' weights live: resident on the device, streamed from host memory two layers at a time, or from the disk
    #[arg(long, value_name = "WHERE", default_value = "resident", hide_possible_values = true, help_heading = "Machine")]
    weights: Residency,
    /// How the model's matrices are kept: fp16, or int8 (half as large, and a little off) [default: as trained]
    #[arg(long, value_name = "FORMAT", hide_possible_values = true, help_heading = "Machine")]
    weight_format: Option<WeightFormat>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    device: Device,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    threads: Option<usize>,
}

impl ScoringArguments {
    /// Refuses several adapters.
    fn one_adapter(&self, remedy: &str) -> Result<()> {
        if let [_, second, ..] = self.adapter.as_slice() {
            usage!("--adapter {}: is the second one; {remedy}", second.display());
        }
        Ok(())
    }

    /// What is given of what only some tasks read.
    fn said(&self) -> Vec<(&'static str, String)> {
        let long_sentences = self.long_sentences.and_then(|how| Some(how.to_possible_value()?.get_name().to_string()));
        let said = [
            ("text-column", self.text_column.clone()),
            ("text-pair-column", self.text_pair_column.clone()),
            ("label-column", self.label_column.clone()),
            ("choices-column", self.choices_column.clone()),
            ("word-column", self.word_column.map(|column| column.to_string())),
            ("tag-column", self.tag_column.map(|column| column.to_string())),
            ("long-sentences", long_sentences),
            ("doc-stride", self.doc_stride.map(|stride| stride.to_string())),
            ("null-threshold", self.null_threshold.map(|threshold| threshold.to_string())),
            ("verbalizer", self.verbalizer.as_ref().map(|words| words.to_string())),
        ];
        said.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Of labelled data and the first adapter; `predict` says otherwise.
    fn options(&self, data: &std::path::Path, split: &str) -> crate::run::scoring::ScoringOptions {
        let columns = Columns::default();
        crate::run::scoring::ScoringOptions {
            model: self.model.clone(),
            adapter: self.adapter.first().cloned().unwrap_or_default(),
            head: self.head.clone(),
            data: data.to_path_buf(),
            split: split.to_string(),
            task: self.task,
            columns: Columns {
                text: self.text_column.clone(),
                text_pair: self.text_pair_column.clone().unwrap_or(columns.text_pair),
                label: self.label_column.clone(),
                choices: self.choices_column.clone().unwrap_or(columns.choices),
                word: self.word_column,
                tag: self.tag_column,
                ignore_labels: false,
                labels_for: None,
                choice: None,
            },
            tag_scheme: None,
            long_sentences: self.long_sentences,
            max_length: self.max_length,
            doc_stride: self.doc_stride,
            null_threshold: self.null_threshold,
            batch_size: self.batch_size,
            weights: self.weights,
            weight_format: self.weight_format,
            device: self.device,
            labelled: true,
            submission: false,
            ids: false,
            said: self.said(),
            verbalizer: self.verbalizer.clone(),
            generate: 0,
            logits: true,
        }
    }
}

/// A number that is neither infinite nor none.
fn finite(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|value: &f32| value.is_finite()).ok_or_else(|| "must be a finite number".to_string())
}

/// Version, commit (where the build knows it) and backends.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("PTUNE_COMMIT").map_or(String::new(), |commit| format!(", commit {commit}"));
    format!("{}{commit}, backends: {}", env!("CARGO_PKG_VERSION"), device::backends())
});

/// Runs the program: parses, dispatches, prints at most one error line. Exit code 0; 1: a failure; 2: a wrong command
/// line or configuration; 128 + signal: interrupted.
pub fn main() -> ExitCode {
    let line = match translate_line(std::env::args_os()) {
        Ok(line) => line,
        Err(error) => {
            eprintln!("{}", one_line(&format!("error: {error}")));
            return ExitCode::from(2);
        }
    };
    let cli = match parse(line) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprintln!("{}", plain(&error));
            return ExitCode::from(2);
        }
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let result = match cli.command {
        Command::Train(arguments) => train::run(*arguments),
        Command::Sweep(arguments) => sweep::run(*arguments),
        Command::Tasks(arguments) => tasks::run(arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Predict(arguments) => predict::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Plan(arguments) => plan::run(*arguments),
        Command::Convert(arguments) => convert::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Recipes(arguments) => recipes::run(arguments),
        Command::Completions(arguments) => completions::run(arguments, Cli::command()),
        Command::Selftest(arguments) => selftest::run(arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{}", one_line(&format!("error: {error:#}")));
        ExitCode::from(if error.chain().any(|cause| cause.is::<UsageError>()) { 2 } else { 1 })
    })
}

/// Reads a command line. Any option may be given a negative number, so that the error for it names the option.
fn parse(line: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, clap::Error> {
    let negative = |argument: clap::Arg| {
        let takes_values = argument.get_action().takes_values() && argument.get_num_args().is_none_or(|count| count.takes_values());
        if takes_values { argument.allow_negative_numbers(true) } else { argument }
    };
    let command = Cli::command().mut_subcommands(|command| command.mut_args(negative).mut_subcommands(|inner| inner.mut_args(negative)));
    Cli::from_arg_matches(&command.try_get_matches_from(line)?)
}

/// What clap says of a command line, with what is wanted where it passes on the words of Rust's own parsers.
fn plain(error: &clap::Error) -> String {
    let text = one_line(&error.render().to_string());
    let wanted = [
        ("invalid digit found in string", "give a whole number from 0"),
        ("cannot parse integer from empty string", "give a whole number from 0"),
        ("number too large to fit in target type", "it is too large"),
        ("invalid float literal", "give a number"),
        ("cannot parse float from empty string", "give a number"),
    ];
    let own = wanted.iter().find_map(|(foreign, own)| Some(format!("{}{own}", text.strip_suffix(foreign)?)));
    own.unwrap_or(text)
}

/// A message without line breaks, and of clap's messages the part before the usage.
fn one_line(text: &str) -> String {
    let text = text.split("\n\nUsage:").next().unwrap_or(text);
    let text = text.split("\n\nFor more information").next().unwrap_or(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Prints a command's result. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to the standard output"),
        _ => Ok(()),
    }
}

/// Sizes the thread pool, before anything uses it.
fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    if !(1..=1024).contains(&threads) {
        usage!("--threads {threads}: must be from 1 to 1024");
    }
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        Ok(()) => Ok(()),
        Err(error) => bail!("cannot start {threads} threads: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn completions_know_commands_and_options() {
        for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
            let arguments = match parse(["ptune", "completions", shell]).map(|cli| cli.command) {
                Ok(Command::Completions(arguments)) => arguments,
                _ => panic!("{shell}"),
            };
            let script = completions::script(&arguments, Cli::command()).unwrap();
            for word in ["predict", "prefix-length", "gradient-accumulation"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn messages_fit_on_one_line() {
        let error = |line: &str| match parse(line.split(' ')) {
            Ok(_) => panic!("accepted: {line}"),
            Err(error) => plain(&error),
        };
        assert_eq!(
            error("ptune train --batch x"),
            "error: unexpected argument '--batch' found tip: a similar argument exists: '--batch-size'"
        );
        assert!(error("ptune eval --model m").starts_with("error: the following required arguments were not provided: --"));
        assert!(error("ptune train --batch-size -1").starts_with("error: invalid value '-1' for '--batch-size"));
        assert!(error("ptune train --prefix-length 2.5").ends_with("'--prefix-length <N>': give a whole number from 0"));
        assert!(error("ptune train --prefix-length -3").ends_with("give a whole number from 0"));
        assert!(error("ptune train --learning-rate fast").ends_with("give a number"));
        assert!(error("ptune train --task SEQ_CLS").contains("did you mean classification?"));
        assert!(error("ptune train --prefix-layers 0").contains("layers are counted from 1"));
    }
}
