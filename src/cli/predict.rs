//! `ptune predict`: one JSON line an example, in the order of the input.

use super::{ScoringArguments, set_threads};
use crate::checkpoint::write_atomically;
use crate::data::TagScheme;
use crate::run::interrupt::Interrupt;
use crate::run::scoring::{Scoring, ScoringOptions};
use crate::run::terminal::Terminal;
use crate::task::With;
use crate::usage;
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// Data, with or without labels
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the predictions go
    #[arg(long, value_name = "FILE.jsonl")]
    output: PathBuf,
    #[command(flatten)]
    scoring: ScoringArguments,
    /// What else a line holds: logits, input_ids or both
    #[arg(long, value_name = "logits,input_ids", value_delimiter = ',', hide_possible_values = true)]
    with: Vec<Extra>,
    /// How tags are written: iob1, iob2, bioes, bilou, or data (as the training data) [default: iob2, as they are learned]
    #[arg(long, value_name = "SCHEME", value_parser = spelling)]
    tag_scheme: Option<Spelling>,
    /// Longest text that is generated behind a prompt (causal-lm), in tokens; 0: none
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
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
    check_output(&arguments.input, &arguments.output)?;
    let terminal = Terminal::new(arguments.quiet);
    let logits = arguments.with.contains(&Extra::Logits);
    let options =
        ScoringOptions { labelled: false, generate: arguments.max_new_tokens, logits, ..arguments.scoring.options(&arguments.input) };
    let scoring = Scoring::run(&options, &terminal, &Interrupt::install()?)?;
    let scheme = arguments.tag_scheme.and_then(|Spelling(scheme)| scheme.or(scoring.tag_scheme));
    let with = With { logits, input_ids: arguments.with.contains(&Extra::InputIds), scheme };
    let predictions = scoring.predict();
    write_atomically(&arguments.output, |writer| {
        for (index, prediction) in predictions.iter().enumerate() {
            serde_json::to_writer(&mut *writer, &prediction.to_json(index, &with)).map_err(std::io::Error::from)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    })?;
    terminal.line(format!("{} predictions: {}", predictions.len(), arguments.output.display()));
    Ok(ExitCode::SUCCESS)
}

/// What would only fail after all the work, or destroy the input.
fn check_output(input: &Path, output: &Path) -> Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("{}: there is no such folder for --output", folder.display());
    }
    // Also no device or pipe: the finished file is renamed to this name, which would replace it.
    if output.exists() && !output.is_file() {
        usage!("--output {}: is not a regular file", output.display());
    }
    if let (Ok(input), Ok(output)) = (input.canonicalize(), output.canonicalize())
        && input == output
    {
        usage!("--output {}: is the input itself", output.display());
    }
    Ok(())
}
