//! `ptune predict`: one JSON line an example, in the order of the input.

use super::{ScoringArguments, set_threads};
use crate::checkpoint::write_atomically;
use crate::data::TagScheme;
use crate::run::interrupt::Interrupt;
use crate::run::routing;
use crate::run::scoring::{Scoring, ScoringOptions};
use crate::run::terminal::Terminal;
use crate::task::named::{self, TEST};
use crate::task::{Prediction, With};
use crate::usage;
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// Data, with or without labels; of a named task the official file, or their folder
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The official file that is taken from a folder (ptune tasks lists them)
    #[arg(long, value_name = "NAME", default_value = TEST)]
    split: String,
    /// Where the predictions go
    #[arg(long, value_name = "FILE.jsonl")]
    output: PathBuf,
    #[command(flatten)]
    scoring: ScoringArguments,
    /// Column by which each record chooses one of several adapters, given as --adapter NAME=DIR (.jsonl, .json, .csv, .tsv)
    #[arg(long, value_name = "COLUMN")]
    adapter_column: Option<String>,
    /// Also write a submission of a named task in its official form: SuperGLUE's JSONL, GLUE's TSV, SQuAD's JSON
    #[arg(long, value_name = "FILE")]
    submission: Option<PathBuf>,
    /// List so many of the best answers of each question in its line (qa) [default: 0]
    #[arg(long, value_name = "N")]
    n_best: Option<usize>,
    /// Also write by how much "no answer" scores above the best answer of each question (qa): a JSON object of ids
    #[arg(long, value_name = "FILE.json")]
    null_odds: Option<PathBuf>,
    /// What else a line holds: logits, input_ids or both
    #[arg(long, value_name = "logits,input_ids", value_delimiter = ',', hide_possible_values = true)]
    with: Vec<Extra>,
    /// How tags are written: iob1, iob2, bioes, bilou, or data (as the training data) [default: iob2, as they are learned]
    #[arg(long, value_name = "SCHEME", value_parser = spelling)]
    tag_scheme: Option<Spelling>,
    /// Longest text that is generated behind a prompt (causal-lm), in tokens; 0: none [default: 64]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Print nothing but errors
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Extra {
    Logits,
    #[value(name = "input_ids")]
    InputIds,
}

/// A scheme, or None for the data's own.
#[derive(Clone, Copy)]
struct Spelling(Option<TagScheme>);

fn spelling(text: &str) -> Result<Spelling, String> {
    match text {
        "data" => Ok(Spelling(None)),
        _ => TagScheme::from_str(text, false)
            .map(|scheme| Spelling(Some(scheme)))
            .map_err(|_| "choose iob1, iob2, bioes, bilou or data".to_string()),
    }
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    set_threads(arguments.scoring.threads)?;
    check_output("output", &arguments.input, &arguments.output)?;
    let mut outputs = vec![&arguments.output];
    for (flag, path) in [("submission", &arguments.submission), ("null-odds", &arguments.null_odds)] {
        let Some(path) = path else { continue };
        check_output(flag, &arguments.input, path)?;
        if outputs.contains(&path) {
            usage!("--{flag} {}: is another output too", path.display());
        }
        outputs.push(path);
    }
    let terminal = Terminal::new(arguments.quiet);
    let wants = |extra: Extra| arguments.with.contains(&extra);
    let mut options = ScoringOptions {
        labelled: false,
        submission: arguments.submission.is_some(),
        ids: arguments.submission.is_some() || arguments.null_odds.is_some(),
        generate: arguments.max_new_tokens.unwrap_or(64),
        logits: wants(Extra::Logits),
        ..arguments.scoring.options(&arguments.input, &arguments.split)
    };
    let said = [
        ("n-best", arguments.n_best.map(|count| count.to_string())),
        ("null-odds", arguments.null_odds.as_ref().map(|path| path.display().to_string())),
        ("max-new-tokens", arguments.max_new_tokens.map(|count| count.to_string())),
        ("tag-scheme", arguments.tag_scheme.map(|Spelling(scheme)| scheme.map_or("data", |scheme| scheme.name()).to_string())),
    ];
    options.said.extend(said.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let interrupt = Interrupt::install()?;
    let scorings = match &arguments.adapter_column {
        Some(column) => routing::run(&options, &arguments.scoring.adapter, column, &terminal, &interrupt)?,
        None => {
            arguments.scoring.one_adapter("several need --adapter-column COLUMN, by which each record chooses")?;
            vec![Scoring::run(&options, &terminal, &interrupt)?]
        }
    };
    let of = |scoring: &Scoring| arguments.tag_scheme.and_then(|Spelling(scheme)| scheme.or(scoring.tag_scheme));
    let mut found: Vec<(Option<TagScheme>, Prediction)> =
        scorings.iter().flat_map(|scoring| scoring.predict().into_iter().map(move |prediction| (of(scoring), prediction))).collect();
    // In the order of the input.
    found.sort_by_key(|(_, prediction)| prediction.example.record);
    let (schemes, predictions): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let _held = interrupt.hold(None); // files are written whole
    write_atomically(&arguments.output, |writer| {
        for (index, (scheme, prediction)) in schemes.iter().zip(&predictions).enumerate() {
            let with = With { logits: wants(Extra::Logits), input_ids: wants(Extra::InputIds), scheme: *scheme };
            let mut line = prediction.to_json(index, &with);
            if let Some(count) = arguments.n_best.filter(|&count| count > 0) {
                line["n_best"] = prediction.best_answers(count);
            }
            serde_json::to_writer(&mut *writer, &line).map_err(std::io::Error::from)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    })?;
    if let (Some(submission), [scoring]) = (&arguments.submission, scorings.as_slice()) {
        let form = scoring.task.named().map_or(named::Submission::None, |task| task.submission);
        let examples = &scoring.split.examples;
        write_atomically(submission, |writer| named::write_submission(form, writer, examples, &predictions))?;
        terminal.line(format!("submission: {}", submission.display()));
    }
    if let Some(path) = &arguments.null_odds {
        let odds: Map<String, Value> =
            predictions.iter().filter_map(|one| one.null_odds()).map(|(id, odds)| (id.to_string(), odds)).collect();
        write_atomically(path, |writer| Ok(serde_json::to_writer(writer, &odds)?))?;
    }
    terminal.line(format!("{} predictions: {}", predictions.len(), arguments.output.display()));
    Ok(ExitCode::SUCCESS)
}

/// What would only fail after all the work, or destroy the input.
fn check_output(flag: &str, input: &Path, output: &Path) -> Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("{}: there is no such folder for --{flag}", folder.display());
    }
    // Also no device or pipe: the finished file is renamed to this name, which would replace it.
    if output.exists() && !output.is_file() {
        usage!("--{flag} {}: is not a regular file", output.display());
    }
    if let (Ok(input), Ok(output)) = (input.canonicalize(), output.canonicalize())
        && input == output
    {
        usage!("--{flag} {}: is the input itself", output.display());
    }
    Ok(())
}
