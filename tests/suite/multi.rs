//! Several data sets on one prefix: a head each, steps shared among them, heads kept in one adapter; and several adapters over
//! one file.

use crate::bundle::{Bundle, golden};
use crate::command::{Run, copy, files, json, json_lines, program, tensors, text};
use crate::invariants::State;
use ptune::backend::cpu::Cpu;
use ptune::checkpoint::{Adapter, FrozenModel};
use ptune::data::{Batch, Feature, FeatureSet};
use ptune::engine::{Capacity, Engine, EngineOptions, Update};
use ptune::model::{HeadKind, HeadSpec, TaskKind};
use serde_json::Value;
use std::path::{Path, PathBuf};

const UPDATE: Update = Update { learning_rate: 1e-2, weight_decay: 0.1, max_grad_norm: None };

/// The bundle's texts with targets of another kind.
fn features(bundle: &Bundle, task: TaskKind) -> FeatureSet {
    let mut set = bundle.features();
    for (number, sequence) in set.sequences.iter_mut().enumerate() {
        let last = sequence.ids.len() - 1;
        match task {
            TaskKind::Tagging => sequence.readout = vec![1, 2, last as u32],
            TaskKind::Qa => sequence.readout = (0..=last as u32).collect(),
            _ => {}
        }
        let feature = &mut set.features[number];
        match task {
            TaskKind::Tagging => feature.targets = vec![0, -100, (number % 3) as i32],
            TaskKind::Qa => feature.targets = vec![(number % 3) as i32, last as i32],
            _ => {}
        }
    }
    if task == TaskKind::MultipleChoice {
        let pair = |example: usize| Feature { example, first_sequence: 2 * example, sequences: 2, targets: vec![(example % 2) as i32] };
        set.features = (0..set.sequences.len() / 2).map(pair).collect();
    }
    set
}

const KINDS: [TaskKind; 4] = [TaskKind::Classification, TaskKind::Tagging, TaskKind::MultipleChoice, TaskKind::Qa];

fn head(bundle: &Bundle, task: TaskKind) -> HeadSpec {
    HeadSpec::new(task, HeadKind::Linear, 3, &bundle.model.spec)
}

fn engine(bundle: &Bundle, heads: Vec<HeadSpec>, sets: &[FeatureSet]) -> Engine {
    let mut options = EngineOptions { heads, ..bundle.options() };
    (options.prefix.dropout, options.hidden_dropout, options.attention_dropout) = (0.2, 0.1, 0.1);
    let room = |(head, set): (&HeadSpec, &FeatureSet)| Capacity::for_items(set, head, 4, true);
    let capacity = options.heads.iter().zip(sets).map(room).reduce(Capacity::union).unwrap();
    Engine::new(Box::new(Cpu::<f32>::new()), &bundle.model, options, capacity).unwrap()
}

fn several(bundle: &Bundle) -> (Engine, Vec<FeatureSet>) {
    let sets = KINDS.map(|task| features(bundle, task)).to_vec();
    let heads = KINDS.iter().map(|&task| head(bundle, task).named(task.name())).collect();
    (engine(bundle, heads, &sets), sets)
}

/// One step of four features through a head.
fn step(engine: &mut Engine, set: &FeatureSet, head: usize, number: u64) {
    let features = [2, 3, 0, 5];
    engine.begin_step(number, features.iter().map(|&feature| set.targets(feature)).sum());
    let mut batch = Batch::default();
    batch.pack(&engine.packing(head), set, &features, 0).unwrap();
    engine.accumulate_packed(&mut batch).unwrap();
    engine.finish_step(&UPDATE);
}

#[test]
fn a_head_among_several_has_the_gradients_that_it_has_alone() {
    let bundle = Bundle::open("bert-classification");
    let (mut engine_of_all, sets) = several(&bundle);
    for (index, task) in KINDS.into_iter().enumerate() {
        let mut alone = engine(&bundle, vec![head(&bundle, task)], &sets[index..=index]);
        let scope = HeadSpec::scope(task.name());
        let own: Vec<String> = alone.trainables().into_iter().map(|tensor| tensor.name).collect();
        let name_of = |name: &String| if name.starts_with("base_model") { format!("{scope}{name}") } else { name.clone() };
        for name in &own {
            let values = engine_of_all.values(&name_of(name)).unwrap();
            alone.set_values(name, &values).unwrap();
        }
        let number = index as u64 + 3;
        step(&mut engine_of_all, &sets[index], index, number);
        step(&mut alone, &sets[index], 0, number);
        for name in &own {
            let expected = alone.gradient(name).unwrap();
            // A bias is added to all choices alike.
            assert!(name.ends_with("bias") || expected.iter().any(|&value| value != 0.0), "{task:?}: {name} has no gradient");
            let found = engine_of_all.gradient(&name_of(name)).unwrap();
            if task == TaskKind::Qa {
                // Alone it reads every token in place; beside heads that do not, its rows are gathered, and products cut otherwise.
                let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
                let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * largest);
                assert!(near, "{task:?}: the gradient of {name} is off");
            } else {
                assert!(found == expected, "{task:?}: the gradient of {name} differs");
            }
        }
    }
}

#[test]
fn a_step_leaves_the_heads_alone_that_it_does_not_use() {
    let bundle = Bundle::open("bert-classification");
    let (mut engine, sets) = several(&bundle);
    for (number, index) in [0, 1, 2, 3].into_iter().enumerate() {
        step(&mut engine, &sets[index], index, number as u64);
    }
    let kept = |engine: &mut Engine| {
        let (state, names) = (State::of(engine), engine.trainables());
        let of = |name: &String| {
            let values = engine.values(name).unwrap();
            (name.clone(), values, state.update_counts[name])
        };
        names.iter().map(|tensor| &tensor.name).filter(|name| !name.contains("heads.tagging.")).map(of).collect::<Vec<_>>()
    };
    let (before, counts) = (kept(&mut engine), engine.update_counts());
    step(&mut engine, &sets[1], 1, 4);
    let after = kept(&mut engine);
    assert_eq!(before.len(), after.len());
    for (old, new) in before.iter().zip(&after) {
        let is_prefix = !old.0.starts_with("heads.");
        assert_eq!(old == new, !is_prefix, "{}", old.0);
    }
    let tagging = "heads.tagging.base_model.classifier.weight";
    assert_eq!((counts[tagging], engine.update_counts()[tagging]), (1, 2));

    // One step, one head.
    engine.begin_step(5, 4);
    engine.accumulate(&sets[0], &[0, 1], 0).unwrap();
    let mut batch = Batch::default();
    batch.pack(&engine.packing(1), &sets[1], &[0], 2).unwrap();
    assert!(engine.accumulate_packed(&mut batch).unwrap_err().to_string().contains("one head"));
}

fn model() -> PathBuf {
    golden("bert-classification").join("model")
}

/// A command in a folder, with the model of a bundle.
fn command(folder: &Path, name: &str, line: &str) -> Run {
    let mut command = program();
    command.current_dir(folder).arg(name).arg("--model").arg(model()).args(line.split_whitespace());
    command.output().unwrap().into()
}

/// The data of two bundles beside each other, and a name for the second.
fn data(folder: &Path) {
    for (bundle, name) in [("bert-classification", "pairs.jsonl"), ("bert-tagging", "words.jsonl")] {
        std::fs::write(folder.join(name), text(&golden(bundle).join("data.jsonl"))).unwrap();
    }
}

const SETS: &str = "--task classification --data pairs.jsonl --validation pairs.jsonl --task tagging --data words=words.jsonl \
    --validation words.jsonl --sampling classification=1,words=2 --batch-size 5 --prefix-length 3 --seed 3 --learning-rate 1e-2";

/// Trained on both, in `run`.
fn trained(folder: &Path, more: &str) -> PathBuf {
    data(folder);
    let said = command(folder, "train", &format!("{SETS} --output run {more}")).ok();
    for part in ["data set classification: ", "data set words: tagging, ", "heads.words.base_model.classifier.weight", "finished: "] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    folder.join("run")
}

/// All files of a run, without the times in them.
fn outcome(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for (name, mut bytes) in files(run) {
        if name == "metrics.jsonl" || name == "train_results.json" {
            let rows = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>().map(|row| {
                let mut row = row.unwrap();
                row.as_object_mut().unwrap().remove("timing");
                row.to_string()
            });
            bytes = rows.collect::<Vec<_>>().join("\n").into_bytes();
        }
        if !name.starts_with("runs/") {
            found.push((name, bytes));
        }
    }
    found
}

#[test]
fn two_data_sets_train_one_prefix_and_a_stop_in_between_changes_nothing() {
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let schedule = "--max-steps 13 --eval-every 5 --save-every 4 --save-limit 9";
    let run = trained(whole.path(), schedule);
    let again = trained(broken.path(), schedule);
    assert!(outcome(&run) == outcome(&again), "the same run twice");
    let steps: Vec<Value> = json_lines(&run.join("metrics.jsonl")).into_iter().filter(|row| row.get("loss").is_some()).collect();
    let of = |name: &str| steps[..10].iter().filter(|row| row["data_set"] == name).count();
    assert!(of("classification") > 0 && of("words") > of("classification") && of("classification") + of("words") == 10, "{steps:?}");

    // Back to the first checkpoint, in the middle of an epoch of 10 steps.
    for name in ["checkpoint-8", "checkpoint-12", "checkpoint-13"] {
        std::fs::remove_dir_all(again.join(name)).unwrap();
    }
    std::fs::remove_file(again.join("train_results.json")).unwrap();
    command(broken.path(), "train", "--output run --resume --sampling uniform").error(2, &["--sampling", "words=2"]);
    let said = command(broken.path(), "train", "--output run --resume").ok();
    assert!(said.contains("resuming after step 4 of 13"), "{said}");
    assert!(outcome(&run) == outcome(&again), "resumed");

    let results = json(&run.join("train_results.json"));
    let score = |name: &str| results["scores"][name].as_f64().unwrap();
    assert_eq!((&results["metric"], &results["task"]), (&"mean".into(), &serde_json::json!(["classification", "tagging"])));
    assert_eq!(score("mean"), (score("classification_accuracy") + score("words_f1")) / 2.0);
    let counts = &json(&run.join("checkpoint-12/state.json"))["tensor_steps"];
    let of = |name: &str| counts[name].as_u64().unwrap();
    let (pairs, words) = (of("heads.classification.base_model.classifier.weight"), of("heads.words.base_model.classifier.weight"));
    assert_eq!((of("prompt_embeddings"), pairs + words), (12, 12));
    assert!(pairs >= 3 && words >= 7, "{pairs} and {words}");

    // The configuration that was written gives the same run.
    let folder = tempfile::tempdir().unwrap();
    data(folder.path());
    std::fs::copy(run.join("config.toml"), folder.path().join("config.toml")).unwrap();
    let mut again = program();
    Run::from(again.current_dir(folder.path()).args(["train", "--config", "config.toml"]).output().unwrap()).ok();
    assert!(outcome(&run) == outcome(&folder.path().join("run")), "from its configuration");
    let card = text(&run.join("README.md"));
    assert!(card.contains("| words | tagging | `B-group`") && card.contains("--head classification"), "{card}");
}

#[test]
fn heads_are_chosen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), "--max-steps 6 --eval-every 6");
    let said = command(folder.path(), "predict", "--adapter run --head words --input words.jsonl --output words.out --with logits").ok();
    assert!(said.contains("24 predictions"), "{said}");
    let adapter = Adapter::read(&run).unwrap();
    assert_eq!(adapter.head_names(), ["classification", "words"]);
    let spec = FrozenModel::open(&model()).unwrap().spec;
    adapter.of_head("words").unwrap().write(&folder.path().join("alone"), &spec).unwrap();
    command(folder.path(), "predict", "--adapter alone --input words.jsonl --output alone.out --with logits").ok();
    assert!(text(&folder.path().join("words.out")) == text(&folder.path().join("alone.out")));
    let scores = command(folder.path(), "eval", "--adapter run --head classification --data pairs.jsonl --json").ok();
    let scores: Value = serde_json::from_str(&scores).unwrap();
    assert_eq!(scores["accuracy"], json(&run.join("train_results.json"))["scores"]["classification_accuracy"]);

    for (line, parts) in [
        ("--adapter run", &["--head is missing", "classification, words"][..]),
        ("--adapter run --head rte", &["--head rte", "classification, words"]),
        ("--adapter alone --head words", &["--head words", "one head"]),
        ("--adapter run --adapter alone", &["--adapter alone", "--adapter-column"]),
    ] {
        command(folder.path(), "predict", &format!("{line} --input pairs.jsonl --output out.jsonl")).error(2, parts);
    }
    let mut inspect = program();
    let told = Run::from(inspect.arg("inspect").arg(&run).output().unwrap()).ok();
    for part in
        ["named head     classification", "named head     words", "task           tagging", "heads.words.base_model.classifier.bias"]
    {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    assert_eq!(json(&run.join("adapter_config.json"))["peft_type"], "PTUNE_PREFIX");

    // What is damaged is named.
    let whole = text(&run.join("ptune.json"));
    for (from, to, part) in [("\"format\": 2", "\"format\": 1", "format is 1"), ("\"words\": {", "\"a/b\": {", "a/b")] {
        copy(&run, &folder.path().join("damaged"));
        std::fs::write(folder.path().join("damaged/ptune.json"), whole.replacen(from, to, 1)).unwrap();
        let line = "--adapter damaged --head words --input pairs.jsonl --output out.jsonl";
        command(folder.path(), "predict", line).error(1, &["ptune.json", part]);
    }
}

#[test]
fn a_run_goes_on_from_the_prefix_of_several_data_sets() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), "--max-steps 6 --eval-every 6");
    let adapter = Adapter::read(&run).unwrap();
    // So small a rate changes nothing: what is written is what was started from.
    let start = "--init-adapter run --max-steps 1 --learning-rate 1e-30 --data words.jsonl";
    let written = |output: &str| tensors(&folder.path().join(output).join("adapter_model.safetensors"));
    let equals = |output: &str, name: &str, of: &str| written(output)[name].1 == adapter.tensors[of].values;
    let weight = "base_model.classifier.weight";

    command(folder.path(), "train", &format!("{start} --init-head words --output named")).ok();
    let said = command(folder.path(), "train", &format!("{start} --task tagging --output fresh")).ok();
    assert!(said.contains("head: new, on the prefix of the adapter"), "{said}");
    for (output, goes_on) in [("named", true), ("fresh", false)] {
        assert!(equals(output, "prompt_embeddings", "prompt_embeddings"), "{output}");
        assert_eq!(equals(output, weight, "heads.words.base_model.classifier.weight"), goes_on, "{output}");
        assert_eq!(json(&folder.path().join(output).join("ptune.json"))["format"], 1);
    }
    // By the task's name, several again, and one head for several.
    let pairs = "--init-adapter run --max-steps 1 --learning-rate 1e-30 --task classification --data pairs.jsonl";
    command(folder.path(), "train", &format!("{pairs} --output pairs")).ok();
    assert!(equals("pairs", weight, "heads.classification.base_model.classifier.weight"));
    let both = "--task tagging --data other=words.jsonl";
    let said = command(folder.path(), "train", &format!("{pairs} {both} --output both")).ok();
    assert!(said.contains("its head goes on from the adapter's") && said.contains("its head is new"), "{said}");
    let name = "heads.classification.base_model.classifier.weight";
    assert!(equals("both", name, name) && equals("both", "prompt_embeddings", "prompt_embeddings"));
    let from_one = format!("{} {both} --output last", pairs.replace("adapter run", "adapter named"));
    command(folder.path(), "train", &from_one).ok();
    assert!(equals("last", "prompt_embeddings", "prompt_embeddings") && !equals("last", name, name));

    for (line, parts) in [
        (start, &["--task is missing", "classification, words", "--init-head"][..]),
        (&format!("{start} --init-head rte"), &["--init-head rte", "classification, words"]),
        (&format!("{pairs} {both} --init-head words"), &["--init-head words", "several data sets"]),
        (&format!("{SETS} --task qa"), &["--task is given 3 times and --data 2 times"]),
        (&SETS.replace("classification=1,words=2", "often"), &["--sampling", "often"]),
        (&SETS.replace("words=2", "tags=2"), &["--sampling", "no data set is named tags"]),
    ] {
        command(folder.path(), "train", &format!("{line} --output refused")).error(2, parts);
    }
    assert!(!folder.path().join("refused").exists());
}

/// Lines with the adapter that each names, and without its number.
fn rows(path: &Path) -> Vec<Value> {
    let without_index = |mut line: Value| {
        line.as_object_mut().unwrap().remove("index");
        line
    };
    json_lines(path).into_iter().map(without_index).collect()
}

#[test]
fn records_choose_among_adapters_by_a_column() {
    let folder = tempfile::tempdir().unwrap();
    trained(folder.path(), "--max-steps 6 --eval-every 6");
    let line = "--task classification --data pairs.jsonl --head dense --prefix-length 9 --prefix-layers 2 --max-steps 3 --output dense";
    command(folder.path(), "train", line).ok();
    let peft = golden("bert-classification").join("adapter");
    // Three records of four go to adapters of classification, in turn.
    let mut all = Vec::new();
    let of = |name: &str| json_lines(&folder.path().join(name));
    for (index, (pair, words)) in of("pairs.jsonl").into_iter().zip(of("words.jsonl")).enumerate() {
        let (name, mut record) = [("dense", pair.clone()), ("words", words), ("peft", pair)][index % 3].clone();
        record["which"] = name.into();
        all.push((name, record));
    }
    let write = |name: &str, records: &[Value]| {
        let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
        std::fs::write(folder.path().join(name), lines).unwrap();
    };
    write("all.jsonl", &all.iter().map(|(_, record)| record.clone()).collect::<Vec<_>>());
    let adapters = format!("--adapter dense=dense --adapter words=run --adapter peft={} --adapter idle=dense", peft.display());
    let several = format!("{adapters} --adapter-column which --input all.jsonl --output all.out --with logits,input_ids");
    let said = command(folder.path(), "predict", &several).ok();
    assert_eq!(said.matches("loaded ").count(), 1, "{said}");
    let mut merged = rows(&folder.path().join("all.out")).into_iter();
    let mut alone: Vec<(&str, std::vec::IntoIter<Value>)> = Vec::new();
    for (name, adapter) in [("dense", "dense".into()), ("words", "run --head words".into()), ("peft", peft.display().to_string())] {
        let own: Vec<Value> = all.iter().filter(|(chosen, _)| *chosen == name).map(|(_, record)| record.clone()).collect();
        write("own.jsonl", &own);
        let line = format!("--adapter {adapter} --input own.jsonl --output own.out --with logits,input_ids");
        command(folder.path(), "predict", &line).ok();
        alone.push((name, rows(&folder.path().join("own.out")).into_iter()));
    }
    for (name, _) in &all {
        let (_, lines) = alone.iter_mut().find(|(own, _)| own == name).unwrap();
        assert_eq!(merged.next(), lines.next(), "{name}");
    }
    assert_eq!(merged.next(), None);

    // A table has columns too.
    std::fs::write(folder.path().join("all.csv"), "text,which\nOne,peft\nTwo,dense\n").unwrap();
    command(folder.path(), "predict", &several.replace("all.jsonl", "all.csv").replace("--adapter words=run ", "")).ok();
    assert_eq!(rows(&folder.path().join("all.out")).len(), 2);

    for (input, line, code, parts) in [
        (
            "{\"text\": \"One\", \"which\": \"dense\"}\n{\"text\": \"Two\", \"which\": \"mine\"}\n",
            several.clone(),
            1,
            &["line 2", "\"mine\"", "dense, words, peft, idle"][..],
        ),
        ("{\"text\": \"One\"}\n", several.clone(), 1, &["line 1", "\"which\"", "--adapter-column"]),
        ("{}\n", several.replace("dense=dense", "dense"), 2, &["--adapter dense", "NAME=DIR"]),
        ("{}\n", several.replace("words=run", "tags=run"), 2, &["--adapter tags", "classification, words"]),
        ("{}\n", several.replace("idle=", "dense="), 2, &["--adapter dense", "two adapters"]),
        ("{}\n", format!("{several} --head words"), 2, &["--head words"]),
        ("{}\n", format!("{several} --weights streamed"), 2, &["--weights streamed", "leave it out"]),
    ] {
        std::fs::write(folder.path().join("all.jsonl"), input).unwrap();
        command(folder.path(), "predict", &line).error(code, parts);
    }
}
