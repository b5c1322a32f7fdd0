//! What messages advise helps, and names from elsewhere are known: the second thing that a user types is right.

use crate::command::{ptune, text};
use crate::place::{GOOD, Place};

fn prompts(place: &Place) {
    place.write("d.jsonl", "{\"prompt\": \"a b\", \"response\": \"c\"}\n".repeat(4));
}

#[test]
fn fewer_tokens_are_what_helps_where_too_many_are_asked_for() {
    let place = Place::new("llama-causal-lm");
    prompts(&place);
    place.train("--task causal-lm --data d.jsonl --output out");
    let predict =
        |count: &str| format!("predict --model model --adapter out --input d.jsonl --output p.jsonl --quiet --max-new-tokens {count}");
    let line = place.run(&predict("100000")).error(1, &["--max-new-tokens 100000", "longest prompt"]);
    assert!(!line.contains("--max-length"), "{line}");
    let advised = line.rsplit(' ').next().unwrap();
    place.run(&predict(&(advised.parse::<usize>().unwrap() + 1).to_string())).error(1, &["longest prompt"]);
    place.run(&predict(advised)).ok();
}

#[test]
fn layer_major_is_at_most_what_a_step_has() {
    let plan = |flags: &str| -> serde_json::Value {
        let line = format!("plan --architecture roberta-large --json {flags}");
        serde_json::from_str(&ptune(line.split_whitespace()).ok()).unwrap()
    };
    let (one, many) = (plan(""), plan("--layer-major 64"));
    assert_eq!(one, many);
    assert_eq!(one, plan("--layer-major 1048576"));
    let place = Place::new("bert-classification");
    let train =
        "train --model model --task classification --data data.jsonl --max-steps 1 --batch-size 8 --micro-batch-size 4 --quiet --output";
    place.run(&format!("{train} one")).ok();
    place.run(&format!("{train} two --layer-major 1000000")).ok();
    let bytes = |name: &str| std::fs::read(place.path(name).join("adapter_model.safetensors")).unwrap();
    assert!(bytes("one") == bytes("two"));
}

#[test]
fn columns_that_are_missing_are_named_beside_those_that_are_there() {
    let place = Place::new("bert-tagging");
    place.write("d.jsonl", "{\"tokens\": [\"a\", \"b\"], \"ner_tags\": [\"O\", \"B-person\"]}\n".repeat(4));
    let train = "train --model model --task tagging --data d.jsonl --max-steps 1 --quiet --output out";
    place.refuses(1, train, &["d.jsonl, line 1", "tags", "columns found: tokens, ner_tags", "--label-column"]);
    place.run(&format!("{train} --label-column ner_tags")).ok();
    let place = Place::new("bert-classification");
    place.write("d.csv", "text,gold\na,x\nb,y\n");
    let train = "train --model model --task classification --data d.csv --max-steps 1 --quiet --output out";
    place.refuses(1, train, &["d.csv", "\"label\"", "columns found: text, gold", "--label-column"]);
    place.run(&format!("{train} --label-column gold")).ok();
}

#[test]
fn what_is_no_directory_is_said_to_be_a_file_or_to_be_fetched() {
    let place = Place::new("bert-classification");
    place.write("d.jsonl", GOOD);
    place.refuses(1, "inspect data.jsonl", &["data.jsonl: is a file, a directory is wanted"]);
    place.refuses(1, "inspect nowhere", &["nowhere: no such directory"]);
    let train = |model: &str| format!("train --task classification --data d.jsonl --output out --model {model}");
    place.refuses(1, &train("data.jsonl"), &["data.jsonl: is a file"]);
    place.refuses(1, &train("roberta-large"), &["no such directory", "hf download roberta-large --local-dir DIR"]);
    place.refuses(1, &train("a/b"), &["hf download a/b --local-dir DIR"]);
    let line = place.run(&train("./none/deeper/model")).error(1, &["no such directory"]);
    assert!(!line.contains("hf download"), "{line}");
    place.refuses(1, "eval --model model --adapter data.jsonl --data d.jsonl", &["data.jsonl: is a file"]);
    let error = |line: &str| ptune(line.split_whitespace()).error(2, &[]);
    assert!(!error("plan").contains("--random-weights"));
}

#[test]
fn all_that_is_missing_is_said_at_once() {
    let place = Place::new("bert-classification");
    place.refuses(2, "train", &["--model, --task, --data and --output are missing"]);
    place.refuses(2, "train --model model --task qa", &["--data and --output are missing"]);
    place.refuses(2, "train --model model --data data.jsonl --output out", &["--task is missing: choose"]);
    place.refuses(2, "train --resume", &["--output is missing"]);
}

#[test]
fn names_from_elsewhere_are_answered() {
    let place = Place::new("bert-classification");
    for (given, own) in [
        ("SEQ_CLS", "classification"),
        ("token-classification", "tagging"),
        ("glue/rtee", "glue/rte"),
        ("tagginng", "tagging"),
        ("rte", "superglue/rte"),
    ] {
        place.refuses(2, &format!("train --model model --task {given} --data data.jsonl --output out"), &["did you mean", own]);
    }
    for flag in [
        "--trust_remote_code True",
        "--cache_dir x",
        "--peft_type PREFIX_TUNING",
        "--optim adamw_torch",
        "--adam_beta1 0.9",
        "--load_in_4bit",
        "--push_to_hub",
        "--num_labels 2",
        "--label_smoothing_factor 0.1",
        "--lora_r 8",
    ] {
        let name = flag.split(' ').next().unwrap().replace('_', "-");
        let line = place.run(&format!("train {flag}")).error(2, &[&name]);
        assert!(!line.contains("unexpected argument"), "{line}");
    }
    let line = place.run("eval --test_file x").error(2, &["--data FILE"]);
    assert!(!line.contains("after the run"), "{line}");
    place.refuses_training(2, "--prefix-length 2.5", &["--prefix-length", "give a whole number from 0"]);
}

#[test]
fn a_loss_that_grew_is_blamed_on_the_rate() {
    let place = Place::new("bert-classification");
    let train =
        "train --model model --task classification --data data.jsonl --max-steps 8 --batch-size 8 --max-grad-norm 0 --schedule constant";
    let run = place.run(&format!("{train} --learning-rate 1e4 --output out"));
    assert!(run.stderr.contains("the loss grew: use a lower --learning-rate") && !run.stderr.contains("little else"), "{run:#?}");
    assert!(run.stdout.lines().all(|line| line.split([' ', ',']).all(|word| word.len() < 25 || !word.ends_with(".0000"))), "{run:#?}");
    run.ok();
    let run = place.run(&format!("{train} --learning-rate 1e-3 --output other"));
    assert!(!run.stderr.contains("the loss grew"), "{run:#?}");
}

#[test]
fn options_that_nothing_reads_are_refused() {
    let place = Place::new("bert-classification");
    for (flags, reader) in [
        ("--tag-scheme bioes", "is for tagging, not for classification"),
        ("--word-column 1", "is for tagging"),
        ("--doc-stride 64", "is for qa"),
        ("--choices-column c", "is for multiple-choice"),
        ("--long-sentences truncate", "is for tagging"),
        ("--method head --prefix-init zero", "is for --method prefix and prompt, not for --method head"),
        ("--method head --prefix-dropout 0.2", "is for --method prefix"),
        ("--prefix-length 0 --positions unshifted", "not for --method head (--prefix-length 0)"),
    ] {
        place.refuses_training(2, flags, &[flags.split(' ').rev().nth(1).unwrap(), reader]);
    }
    place.train("--task classification --data data.jsonl --output own");
    let eval = "eval --model model --adapter own --data data.jsonl";
    let predict = "predict --model model --adapter own --input data.jsonl --output p.jsonl";
    for (command, flags) in [
        (eval, "--tag-scheme iob1"),
        (eval, "--doc-stride 64"),
        (eval, "--choices-column c"),
        (predict, "--max-new-tokens 64"),
        (predict, "--tag-column 1"),
        (predict, "--null-threshold 1"),
    ] {
        place.refuses(2, &format!("{command} {flags}"), &[flags.split(' ').next().unwrap(), "not for classification"]);
    }
    // The adapter tells what it is for; and a run's own file says nothing that its run does not read.
    place.refuses(2, "train --model model --init-adapter own --data data.jsonl --output out --doc-stride 64", &["--doc-stride 64", "qa"]);
    place.train("--task classification --data data.jsonl --output head --method head");
    place.run("train --config head/config.toml --output again --quiet").ok();
    let config = text(&place.path("head/config.toml"));
    assert!(!["doc-stride", "prefix-dropout", "positions"].iter().any(|name| config.contains(name)), "{config}");
    // That of an older version says it all.
    place.write("old.toml", format!("doc-stride = 128\nprefix-dropout = 0.1\nprefix-init = \"normal\"\npositions = \"shifted\"\n{config}"));
    place.run("train --config old.toml --output old --quiet").ok();
    place.run("train --config own/config.toml --method head --output other --max-steps 1 --quiet").ok();
}
