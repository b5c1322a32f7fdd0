//! The model card of an adapter: `README.md` with the front matter that Hugging Face's hub reads.

use super::data_set::DataSet;
use super::terminal::decimals;
use super::train::Prepared;
use super::values::Method;
use crate::checkpoint::{Export, WeightFormat};
use crate::model::TaskKind;
use serde_json::{Map, Value};
use std::fmt::Write;
use std::path::Path;

/// The text of a finished run's card. It depends on configuration and results alone.
pub(super) fn text(run: &Prepared, root: &Path, steps: u64, scores: Option<&Map<String, Value>>, export: &Export) -> String {
    let settings = &run.settings;
    let (kind, several) = (settings.task.kind(), run.sets.len() > 1);
    let base = settings.base().description();
    let name = root.file_name().map_or("adapter".to_string(), |name| name.to_string_lossy().into_owned());
    let is_peft = export.reasons.is_empty();
    let file_name = |path: &Path| path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    let dataset = |set: &DataSet| set.settings.validation.as_deref().map_or(String::new(), file_name);

    let mut text = String::from("---\n");
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format!("base_model: {}", quoted(&base)));
    if is_peft {
        line("library_name: peft".into());
    }
    line(format!("pipeline_tag: {}", pipeline(kind)));
    line(match settings.method {
        Method::Prompt => "tags:\n- prompt-tuning\n- ptune".into(),
        Method::Prefix | Method::Head => "tags:\n- p-tuning-v2\n- prefix-tuning\n- ptune".into(),
    });
    if let Some(scores) = scores {
        line(format!("metrics:\n{}", scores.keys().map(|name| format!("- {name}")).collect::<Vec<_>>().join("\n")));
        line(format!("model-index:\n- name: {}\n  results:", quoted(&name)));
        for set in &run.sets {
            let task = set.settings.task;
            line(format!("  - task:\n      type: {}", pipeline(task.kind())));
            line(format!("    dataset:\n      type: {task}\n      name: {}\n    metrics:", quoted(&dataset(set))));
            // Of several sets a score is named after its set too.
            let scope = if several { format!("{}_", set.name) } else { String::new() };
            for (name, value) in scores.iter().filter_map(|(name, value)| Some((name.strip_prefix(&scope)?, value))) {
                line(format!("    - type: {name}\n      value: {value}"));
            }
        }
    }
    line("---\n".into());
    line(format!("# {name}\n"));
    let length = settings.prefix_length;
    let head = if several { "heads" } else { "a head" };
    let trained = match settings.method {
        Method::Head if several => "Heads".to_string(),
        Method::Head => "A head".to_string(),
        Method::Prefix => format!("A prefix of {length} positions a layer (P-Tuning v2) and {head}"),
        Method::Prompt => format!("A prompt of {length} embeddings in front of the input and {head}"),
    };
    let tasks: Vec<&str> = run.sets.iter().map(|set| set.settings.task.name()).collect();
    line(format!("{trained} for {} on the frozen model `{base}`, trained with ptune for {steps} steps.\n", tasks.join(", ")));
    if let Some(scores) = scores {
        let files: Vec<String> = run.sets.iter().map(|set| format!("`{}`", dataset(set))).collect();
        line(format!("Scores on {}, of the best evaluation by {}:\n", files.join(", "), run.metric()));
        line("| score | value |\n|---|---|".into());
        for (name, value) in scores {
            line(format!("| {name} | {} |", decimals(value.as_f64().unwrap_or(f64::NAN))));
        }
        line(String::new());
    }
    line("Settings (all of them in `config.toml`):\n\n| option | value |\n|---|---|".into());
    let options = run.options.to_table().unwrap_or_default();
    for option in SHOWN {
        if let Some(value) = options.get(option) {
            line(format!("| {option} | {} |", value.to_string().trim_matches('"')));
        }
    }
    if several {
        line("\n| head | task | labels, in the order of its outputs |\n|---|---|---|".into());
        for set in &run.sets {
            line(format!("| {} | {} | {} |", set.name, set.settings.task, listed(set.data.task.labels())));
        }
    } else if let Some(labels) = run.sets.first().map(|set| set.data.task.labels()).filter(|labels| !labels.is_empty()) {
        line(format!("\nLabels, in the order of the head's outputs: {}.", listed(labels)));
    }
    line("\n## Use\n".into());
    let head = run.sets.first().filter(|_| several).map_or(String::new(), |set| format!("--head {} ", set.name));
    line(format!("```\nptune predict --model MODEL --adapter {name} {head}--input new.jsonl --output predictions.jsonl\n```"));
    if is_peft {
        let (class, arguments) = class(kind, run.sets.first().map_or(0, |set| set.data.task.labels().len()));
        let logits = match settings.weight_format {
            WeightFormat::Fp16 => "in float32, for equal logits",
            WeightFormat::Int8 => "its logits differ a little: the base model's matrices had 8 bits in training",
        };
        line(format!(
            "\nWith Hugging Face PEFT ({logits}):\n\n```python\nimport torch\nfrom peft import PeftModel\nfrom transformers import {class}\n\n\
             base = {class}.from_pretrained(\"MODEL\", dtype=torch.float32{arguments})\nmodel = PeftModel.from_pretrained(base, {}).eval()\n```",
            quoted(&name)
        ));
    } else {
        line(format!("\nHugging Face PEFT cannot load it: {}.", export.reasons.join("; ")));
    }
    text
}

/// Options that a reader looks for.
const SHOWN: [&str; 18] = [
    "method",
    "prefix-length",
    "prefix-layers",
    "prefix-projection",
    "prefix-dropout",
    "hidden-dropout",
    "attention-dropout",
    "positions",
    "head",
    "learning-rate",
    "schedule",
    "warmup",
    "batch-size",
    "gradient-accumulation",
    "weight-format",
    "max-length",
    "template",
    "seed",
];

fn listed(labels: &[String]) -> String {
    labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
}

/// A string of YAML, whatever is in it: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The hub's name of a task.
fn pipeline(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Classification => "text-classification",
        TaskKind::MultipleChoice => "multiple-choice",
        TaskKind::Tagging => "token-classification",
        TaskKind::Qa => "question-answering",
        TaskKind::CausalLm => "text-generation",
    }
}

/// The class of transformers that PEFT wraps, and its further arguments.
fn class(kind: TaskKind, labels: usize) -> (&'static str, String) {
    let labels = format!(", num_labels={labels}");
    match kind {
        TaskKind::Classification => ("AutoModelForSequenceClassification", labels),
        // One row a choice, with one score each.
        TaskKind::MultipleChoice => ("AutoModelForSequenceClassification", ", num_labels=1".into()),
        TaskKind::Tagging => ("AutoModelForTokenClassification", labels),
        TaskKind::Qa => ("AutoModelForQuestionAnswering", String::new()),
        TaskKind::CausalLm => ("AutoModelForCausalLM", String::new()),
    }
}
