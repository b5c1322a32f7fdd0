//! Whole commands for a prompt: trained embeddings in front of the input alone.

use crate::command::{json, json_lines, tensors, text};
use crate::place::Place;

const TRAIN: &str = "train --model model --method prompt --prefix-length 4 --data data.jsonl --validation data.jsonl --batch-size 8 \
    --learning-rate 3e-2 --max-steps 6 --eval-every 3 --save-every 3";

#[test]
fn a_prompt_is_trained_scored_and_read_again() {
    let place = Place::new("bert-classification");
    let said = place.run(&format!("{TRAIN} --task classification --output run")).ok();
    for part in ["prompt: 4 embeddings in front of the input, from N(0, 0.02)", "not PROMPT_TUNING: its classification head reads"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let written = tensors(&place.path("run/adapter_model.safetensors"));
    assert_eq!(written["prompt_embeddings"].0, [4, 48]);
    assert!(place.run("inspect run").ok().contains("a prompt of 4 embeddings in front of the input"));
    // The evaluation of the training is that of its adapter, whatever the batch.
    let scored: serde_json::Value =
        serde_json::from_str(&place.run("eval --model model --adapter run --data data.jsonl --json --batch-size 3").ok()).unwrap();
    let last = json_lines(&place.path("run/metrics.jsonl")).into_iter().rfind(|row| row["eval_loss"].is_number()).unwrap();
    let best = json(&place.path("run/train_results.json"));
    assert!(best["peft_type"] == "PTUNE_PREFIX" && last["eval_loss"].is_number(), "{best}");
    assert!(scored["loss"].as_f64().unwrap() < 2.0, "{scored}");
    // The recorded configuration is the run, and a stop in the middle changes nothing.
    place.run("train --config run/config.toml --output again").ok();
    place.run("train --config run/config.toml --output half --max-steps 3 --schedule constant").ok();
    assert_eq!(tensors(&place.path("again/adapter_model.safetensors")), written);
    // Going on from it keeps the method.
    let said = place.run("train --model model --data data.jsonl --init-adapter run --max-steps 1 --output on").ok();
    assert!(said.contains("prompt: 4 embeddings in front of the input, from the adapter"), "{said}");
    assert!(text(&place.path("on/config.toml")).contains("method = \"prompt\""));

    for (flags, parts) in [
        ("--prefix-layers 1", ["--prefix-layers", "--method prefix"]),
        ("--prefix-length 0", ["--prefix-length 0", "there is no prompt"]),
        ("--prefix-dropout 0.1", ["--prefix-dropout", "--hidden-dropout"]),
        ("--positions unshifted", ["--positions unshifted", "prompt"]),
        ("--init-adapter adapter", ["--method prompt", "is of the method prefix"]),
    ] {
        place.refuses_training(2, &format!("--method prompt {flags}"), &parts);
    }
    place.refuses_training(1, "--method prompt --prefix-length 150 --max-length 128", &["positions", "--prefix-length"]);
    place.refuses_training(2, "--method prefix --init-adapter run", &["--method prefix", "is of the method prompt"]);
}

#[test]
fn a_prompt_starts_as_text() {
    let place = Place::new("bert-tagging");
    let train = TRAIN.replace("--prefix-length 4 ", "").replace("--max-steps 6", "--max-steps 1").replace("--save-every 3", "");
    place.write("start.txt", "the old water mill");
    let said = place
        .run(&format!("{train} --eval-every 1 --task tagging --prefix-init file:start.txt --output run").replace("--eval-every 3 ", ""))
        .ok();
    assert!(said.contains("from the embeddings of a text") && said.contains("peft_type PROMPT_TUNING"), "{said}");
    // Without ptune.json the files are PEFT's, and tell the same.
    let predict = |adapter: &str| {
        place.run(&format!("predict --model model --adapter {adapter} --input data.jsonl --output out.jsonl --with logits --quiet")).ok();
        json_lines(&place.path("out.jsonl"))
    };
    let own = predict("run");
    std::fs::remove_file(place.path("run/ptune.json")).unwrap();
    let stripped = predict("run");
    assert!(own.iter().zip(&stripped).all(|(own, stripped)| own["logits"] == stripped["logits"]));
}

#[test]
fn text_is_generated_behind_a_prompt() {
    let place = Place::new("llama-causal-lm");
    let said = place.run(&format!("{TRAIN} --task causal-lm --output run")).ok();
    assert!(said.contains("peft_type PROMPT_TUNING"), "{said}");
    let predict = |batch: usize, tokens: usize| {
        let line = "predict --model model --adapter run --input data.jsonl --output out.jsonl --quiet --max-new-tokens";
        place.run(&format!("{line} {tokens} --batch-size {batch}")).ok();
        let lines = json_lines(&place.path("out.jsonl"));
        lines.iter().map(|line| line["prediction"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    let together = predict(8, 6);
    assert_eq!(predict(1, 6), together);
    // With the cache as without: what one token gives goes on in the text of more.
    assert!(predict(8, 1).iter().zip(&together).all(|(first, text)| text.starts_with(first.as_str())));
}
