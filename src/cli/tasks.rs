//! `ptune tasks`: the data sets that `--task` takes by name.

use super::print_rows;
use crate::task::NamedTask;
use crate::task::named::{Submission, all};
use anyhow::Result;
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only names that begin so: superglue, glue/mnli
    #[arg(value_name = "NAME", default_value = "")]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let rows: Vec<&NamedTask> = all().filter(|task| task.name.starts_with(arguments.name.trim_end_matches('*'))).collect();
    print_rows(&rows, &arguments.name, "tasks", arguments.json, object, table)
}

fn object(task: &NamedTask) -> Value {
    let files: serde_json::Map<String, Value> = task.files.iter().map(|(split, names)| (split.to_string(), json!(names))).collect();
    json!({
        "name": task.name,
        "kind": task.kind.name(),
        "templates": task.templates,
        "labels": task.labels,
        "metrics": task.metrics,
        "metric": task.metric,
        "files": files,
        "submission": submission(task),
        "max_length": task.max_length,
    })
}

fn submission(task: &NamedTask) -> Option<&'static str> {
    match task.submission {
        Submission::None => None,
        Submission::JsonLines(name, _) | Submission::Table(name, _) | Submission::Answers(name) => Some(name),
    }
}

/// One line a task; a second one for a second template.
fn table(tasks: &[&NamedTask]) -> String {
    let mut rows = vec![["name", "kind", "scores (* chooses)", "labels", "input"].map(str::to_string)];
    for task in tasks {
        let metrics: Vec<String> =
            task.metrics.iter().map(|name| if *name == task.metric { format!("{name}*") } else { name.to_string() }).collect();
        for (index, template) in task.templates.iter().enumerate() {
            let input = if task.templates.len() > 1 { format!("{index}: {template}") } else { template.to_string() };
            rows.push(match index {
                0 => [task.name.to_string(), task.kind.name().to_string(), metrics.join(" "), task.labels.join(" "), input],
                _ => [String::new(), String::new(), String::new(), String::new(), input],
            });
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let line = |row: &[String; 5]| {
        let cells: String = (0..4).map(|column| format!("{:<1$}  ", row[column], widths[column])).collect();
        format!("{cells}{}", row[4])
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
