//! What a run leaves for people and other programs: TensorBoard's events, the chart, the model card; and runs by recipe.

use crate::bundle::golden;
use crate::command::{Run, json_lines, program, text};
use std::path::Path;

/// A short run of `bundle` in `folder`.
fn train(folder: &Path, bundle: &str, line: &str) -> Run {
    let mut command = program();
    command.current_dir(folder).args(["train", "--output", "run"]).args(line.split_whitespace());
    let golden = golden(bundle);
    command.arg("--model").arg(golden.join("model")).arg("--data").arg(golden.join("data.jsonl"));
    command.arg("--validation").arg(golden.join("data.jsonl"));
    command.output().unwrap().into()
}

#[test]
fn a_run_leaves_events_a_chart_and_a_card() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), "bert-tagging", "--task tagging --max-steps 6 --eval-every 3 --prefix-length 4 --batch-size 4").ok();
    let run = folder.path().join("run");

    let events = std::fs::read(run.join("runs/events.out.tfevents.0.ptune")).unwrap();
    let count = |tag: &str| events.windows(tag.len()).filter(|part| *part == tag.as_bytes()).count();
    let rows = json_lines(&run.join("metrics.jsonl"));
    assert_eq!(rows.len(), 8);
    for (tag, times) in
        [("train/loss", 6), ("train/learning_rate", 6), ("train/grad_norm", 6), ("train/epoch", 8), ("eval/loss", 2), ("eval/f1", 2)]
    {
        assert_eq!(count(tag), times, "{tag}");
    }

    let chart = text(&run.join("metrics.svg"));
    for part in ["<svg", "training", "validation", "f1", "step"] {
        assert!(chart.contains(part), "{part}");
    }
    let card = text(&run.join("README.md"));
    let (front, body) = card.strip_prefix("---\n").unwrap().split_once("---\n").unwrap();
    for part in ["base_model: ", "library_name: peft", "pipeline_tag: token-classification", "- type: f1", "name: \"data.jsonl\""] {
        assert!(front.contains(part), "{part:?} is not in {front}");
    }
    for part in
        ["# run", "| prefix-length | 4 |", "| f1 | ", "ptune predict", "AutoModelForTokenClassification", "PeftModel.from_pretrained"]
    {
        assert!(body.contains(part), "{part:?} is not in {body}");
    }
}

#[test]
fn a_recipe_lies_beneath_the_flags() {
    let folder = tempfile::tempdir().unwrap();
    let line = "--recipe rte-roberta-large --task classification --prefix_length 4 --num_train_epochs 1 --max_seq_length 64 --quiet";
    train(folder.path(), "roberta-classification", line).ok();
    let config: toml::Table = toml::from_str(&text(&folder.path().join("run/config.toml"))).unwrap();
    let value = |name: &str| config[name].to_string();
    assert_eq!(["batch-size", "seed", "epochs", "prefix-length", "max-length"].map(value), ["32", "11", "1", "4", "64"]);
    assert_eq!((config["learning-rate"].as_float(), config.get("recipe")), (Some(5e-3), None));
    assert!(text(&folder.path().join("run/README.md")).contains("Hugging Face PEFT cannot load it: its linear head reads the pooler"));

    let elsewhere = tempfile::tempdir().unwrap();
    train(elsewhere.path(), "roberta-classification", "--recipe rte").error(2, &["--recipe rte", "rte-bert-large, rte-roberta-large"]);
    train(elsewhere.path(), "roberta-classification", "--recipe rte-roberta-large --do_train").error(2, &["--do-train: leave it out"]);
    let run = |words: &[&str]| Run::from(program().args(words).output().unwrap());
    let listed = run(&["recipes"]).ok();
    assert!(listed.contains("rte-roberta-large") && listed.contains("86.6") && listed.contains("no script: a start"), "{listed}");
    let listed: serde_json::Value = serde_json::from_str(&run(&["recipes", "wic-bert", "--json"]).ok()).unwrap();
    assert_eq!((&listed[0]["options"]["prefix-projection"], &listed[0]["released"]), (&512.into(), &"75.1".into()));
    run(&["recipes", "unknown"]).error(2, &["unknown"]);
}
