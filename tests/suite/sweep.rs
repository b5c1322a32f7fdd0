//! `ptune sweep`: its runs are what single runs are, it goes on where it stopped, and a run that fails stops no other.

use crate::bundle::golden;
use crate::command::{Run, files, json, program, text};
use crate::place::Place;
use std::path::Path;

fn command(folder: &Path, first: &str, more: &[&str]) -> Run {
    let bundle = golden("bert-classification");
    let mut command = program();
    command.current_dir(folder).arg(first).arg("--model").arg(bundle.join("model"));
    command.arg("--data").arg(bundle.join("data.jsonl")).arg("--validation").arg(bundle.join("data.jsonl"));
    command.args("--task classification --max-steps 3 --eval-every 3 --batch-size 4".split_whitespace()).args(more);
    command.output().unwrap().into()
}

#[test]
fn a_sweep_runs_its_grid_compares_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let sweep = folder.path().join("out");
    let grid = ["--output", "out", "--grid", "prefix-length=2,600", "--grid", "seed=1,2"];
    let said = command(folder.path(), "sweep", &grid).ok();
    for part in [
        "sweep: 4 runs over prefix-length, seed",
        "run 3/4 prefix-length=600,seed=1: failed: ",
        "2 (2 failed)",
        "best: prefix-length=2,seed=",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let results = json(&sweep.join("sweep_results.json"));
    let runs = results["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    assert!(runs[2]["error"].is_string() && runs[2]["score"].is_null());
    let scores: Vec<f64> = runs[..2].iter().map(|run| run["score"].as_f64().unwrap()).collect();
    assert_eq!(results["groups"][0]["mean"], (scores[0] + scores[1]) / 2.0);
    assert_eq!(text(&sweep.join("sweep_results.csv")).lines().count(), 5);
    assert!(text(&sweep.join("sweep.svg")).contains("accuracy over prefix-length"));

    // The second run of the process is that of a process of its own.
    let alone = ["--output", "alone", "--prefix-length", "2", "--seed", "2", "--quiet"];
    command(folder.path(), "train", &alone).ok();
    let adapter = |run: &Path| std::fs::read(run.join("adapter_model.safetensors")).unwrap();
    let second = sweep.join("prefix-length=2,seed=2");
    assert!(adapter(&second) == adapter(&folder.path().join("alone")));

    // Gone on with: what is finished stays to the byte, what was stopped is finished, a longer grid is run.
    command(folder.path(), "sweep", &grid).error(2, &["--resume"]);
    let kept = files(&sweep.join("prefix-length=2,seed=1"));
    let whole = files(&second);
    std::fs::remove_file(second.join("train_results.json")).unwrap();
    let longer = ["--output", "out", "--resume", "--grid", "prefix-length=2", "--grid", "seed=1,2,3"];
    let said = command(folder.path(), "sweep", &longer).ok();
    assert!(said.contains("run 3/3 prefix-length=2,seed=3: accuracy"), "{said}");
    assert!(files(&sweep.join("prefix-length=2,seed=1")) == kept);
    assert_eq!(files(&second).keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    command(folder.path(), "sweep", &["--output", "out", "--resume", "--max-length", "9", "--grid", "seed=1"]).error(2, &["other options"]);

    // From the folder alone, and from a file.
    let mut again = program();
    again.current_dir(folder.path()).args(["sweep", "--output", "out", "--resume"]);
    assert!(Run::from(again.output().unwrap()).ok().contains("sweep: 3 runs"));
    let config = text(&sweep.join("sweep.toml")).replace("[base]", "output = 'other'\n\n[base]");
    std::fs::write(folder.path().join("sweep.toml"), config).unwrap();
    let mut read = program();
    read.current_dir(folder.path()).args(["sweep", "--config", "sweep.toml", "--grid", "seed=2"]);
    Run::from(read.output().unwrap()).ok();
    assert!(adapter(&folder.path().join("other/prefix-length=2,seed=2")) == adapter(&second));
}

/// Weights are shared where they are the same: runs that score labels by other words do not take each other's rows.
#[test]
fn runs_over_other_words_are_what_they_are_alone() {
    let place = Place::new("bert-cloze");
    let words = [r#"{"entailment":" twice","not_entailment":" sold"}"#, r#"{"entailment":" sold","not_entailment":" twice"}"#];
    let base = "task='classification'\nmodel='model'\ndata='data.jsonl'\nvalidation='data.jsonl'\nmax-steps=2\nbatch-size=8";
    let grid = format!("verbalizer=['{}','{}']", words[0], words[1]);
    place.write("sweep.toml", format!("output='out'\n[base]\n{base}\nprefix-length=3\n[grid]\n{grid}\n"));
    place.run("sweep --config sweep.toml").ok();
    let mut alone = program();
    alone.current_dir(place.root()).args(["train", "--output", "alone", "--verbalizer", words[1]]);
    alone.args("--task classification --model model --data data.jsonl --validation data.jsonl --prefix-length 3".split_whitespace());
    Run::from(alone.args(["--max-steps", "2", "--batch-size", "8"]).output().unwrap()).ok();
    let runs = std::fs::read_dir(place.path("out")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let same = runs.filter(|run| text(&run.join("ptune.json")) == text(&place.path("alone/ptune.json")));
    let [run] = same.collect::<Vec<_>>().try_into().expect("one run has the words");
    let adapter = |run: &Path| std::fs::read(run.join("adapter_model.safetensors")).unwrap();
    assert!(adapter(&run) == adapter(&place.path("alone")));
}
