//! `ptune eval`: scores on labelled data.

use super::{ScoringArguments, print, set_threads};
use crate::data::{Content, TagScheme};
use crate::run::interrupt::Interrupt;
use crate::run::scoring::{Scoring, ScoringOptions};
use crate::run::terminal::{Terminal, decimals};
use crate::task::named::VALIDATION;
use anyhow::Result;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// Labelled data: JSONL, JSON, CSV, TSV, CoNLL columns, SQuAD JSON; of a named task the official file, or their folder
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// How the data's tags spell spans: iob1, iob2, bioes or bilou [default: as they show]
    #[arg(long, value_name = "SCHEME", hide_possible_values = true)]
    tag_scheme: Option<TagScheme>,
    /// The official file that is taken from a folder (ptune tasks lists them)
    #[arg(long, value_name = "NAME", default_value = VALIDATION)]
    split: String,
    #[command(flatten)]
    scoring: ScoringArguments,
    /// Print one JSON object with the metrics and nothing else
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    arguments.scoring.one_adapter("give one")?;
    set_threads(arguments.scoring.threads)?;
    let terminal = Terminal::new(arguments.json);
    let mut options = ScoringOptions { tag_scheme: arguments.tag_scheme, ..arguments.scoring.options(&arguments.data, &arguments.split) };
    options.said.extend(arguments.tag_scheme.map(|scheme| ("tag-scheme", scheme.name().to_string())));
    let scoring = Scoring::run(&options, &terminal, &Interrupt::install()?)?;
    let evaluation = scoring.evaluate()?;
    let examples = &scoring.split.examples;
    if arguments.json {
        let mut object = evaluation.to_map();
        object.insert("examples".to_string(), Value::from(examples.len()));
        print(&json!(object).to_string())?;
        evaluation.warnings.iter().for_each(|warning| terminal.warn(warning));
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines: Vec<String> =
        evaluation.to_map().iter().map(|(name, value)| format!("{name:<16} {:>8}", decimals(value.as_f64().unwrap_or(f64::NAN)))).collect();
    if let Some((label, share)) = scoring.task.majority(examples) {
        lines.push(format!("{:<16} {share:>8.4}  (always {label:?})", "majority class"));
    }
    let types = scoring.task.entity_types(examples, &scoring.predict())?;
    if !types.is_empty() {
        let roles = examples.iter().any(|example| matches!(example.content, Content::Words { predicate: Some(_), .. }));
        let kind = if roles { "role" } else { "entity type" };
        lines.push(format!("\n{kind:<16} {:>9} {:>9} {:>9} {:>9}", "precision", "recall", "f1", "in data"));
    }
    for (name, counts) in types {
        let (precision, recall, f1) = (counts.precision(), counts.recall(), counts.f1());
        lines.push(format!("{name:<16} {precision:>9.4} {recall:>9.4} {f1:>9.4} {:>9}", counts.gold));
    }
    print(&lines.join("\n"))?;
    evaluation.warnings.iter().for_each(|warning| terminal.warn(warning));
    Ok(ExitCode::SUCCESS)
}
