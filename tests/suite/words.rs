//! Whole commands for what needs no head of its own: labels as words in a blank, prefixes that start as text, and what is
//! refused of them.

use crate::command::{json, json_lines, program, tensors, text};
use crate::place::Place;

const WORDS: &str = r#"{"entailment":" Yes indeed","not_entailment":" No"}"#;

/// A run with arguments that may hold spaces.
fn run(place: &Place, line: &str, more: &[&str]) -> crate::command::Run {
    program().current_dir(place.root()).args(line.split_whitespace()).args(more).output().unwrap().into()
}

const TRAIN: &str = "train --model model --task classification --data data.jsonl --validation data.jsonl --batch-size 8 --learning-rate 2e-2 \
    --prefix-length 4 --max-steps 6 --eval-every 3 --save-every 3 --output run";

#[test]
fn labels_of_several_tokens_are_trained_scored_and_predicted() {
    let place = Place::new("glm-cloze");
    let said = run(&place, TRAIN, &["--verbalizer", WORDS]).ok();
    for part in
        ["entailment as \" Yes indeed\"", "vocabulary logits", "unshifted positions", "not PREFIX_TUNING: transformers has no class"]
    {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert_eq!(tensors(&place.path("run/adapter_model.safetensors")).keys().collect::<Vec<_>>(), ["prompt_embeddings"]);
    let config = json(&place.path("run/adapter_config.json"));
    assert_eq!((&config["task_type"], config["modules_to_save"].is_null()), (&"CAUSAL_LM".into(), true));
    let metadata = json(&place.path("run/ptune.json"));
    assert_eq!((&metadata["labels"][0], &metadata["verbalizer"][0]), (&"entailment".into(), &" Yes indeed".into()));
    let rows = json_lines(&place.path("run/metrics.jsonl"));
    let losses: Vec<f64> = rows.iter().filter_map(|row| row["eval_loss"].as_f64()).collect();
    assert!(losses.len() == 2 && losses[1] < losses[0], "{losses:?}");

    // Nothing has to be said again.
    let scores: serde_json::Value =
        serde_json::from_str(&run(&place, "eval --model model --adapter run --data data.jsonl --json", &[]).ok()).unwrap();
    let best = json(&place.path("run/train_results.json"))["scores"]["accuracy"].as_f64().unwrap();
    assert!((scores["accuracy"].as_f64().unwrap() - best).abs() < 1e-12);
    run(&place, "predict --model model --adapter run --input data.jsonl --output out.jsonl --with logits,input_ids --quiet", &[]).ok();
    let lines = json_lines(&place.path("out.jsonl"));
    let gold = json_lines(&place.path("data.jsonl"));
    let right = lines.iter().zip(&gold).filter(|(line, example)| line["prediction"] == example["label"]).count();
    assert!((right as f64 / gold.len() as f64 - best).abs() < 1e-12);
    let logits = lines[0]["logits"].as_array().unwrap();
    assert!(logits.len() == 2 && logits.iter().all(|logit| logit.as_f64().unwrap() < 0.0), "log-probabilities: {logits:?}");
    let said = run(&place, "inspect run", &[]).ok();
    assert!(said.contains("the words [\" Yes indeed\", \" No\"]") && said.contains("memory plan"), "{said}");

    // A run goes on as it was, and its adapter can be tuned further.
    std::fs::remove_dir_all(place.path("run/checkpoint-6")).unwrap();
    std::fs::remove_file(place.path("run/train_results.json")).unwrap();
    let whole = std::fs::read(place.path("run/adapter_model.safetensors")).unwrap();
    run(&place, "train --output run --resume", &[]).ok();
    assert!(std::fs::read(place.path("run/adapter_model.safetensors")).unwrap() == whole, "a resumed run differs");
    let further = "train --model model --init-adapter run --data data.jsonl --output more --max-steps 1 --quiet";
    run(&place, further, &[]).ok();
    assert_eq!(json(&place.path("more/ptune.json"))["verbalizer"], metadata["verbalizer"]);
    for line in [further.replace("more", "other"), "eval --model model --adapter run --data data.jsonl".to_string()] {
        run(&place, &line, &["--verbalizer", r#"{"entailment":"a","not_entailment":"b"}"#]).error(2, &["--verbalizer", "Yes indeed"]);
    }
}

#[test]
fn language_tasks_on_other_models_are_refused() {
    let place = Place::new("bert-classification");
    place.write("prompts.jsonl", "{\"prompt\": \"a b\", \"response\": \"c\"}\n");
    let train = "train --model model --data prompts.jsonl --output out --task";
    place.refuses(2, &format!("{train} causal-lm"), &["--task causal-lm needs a causal language model", "bert is an encoder"]);
    let missing = ["no masked-language-model head", "cls.predictions.transform.dense.weight, ", "cls.predictions.bias", "train a head"];
    place.refuses_training(1, r#"--verbalizer {"a":"b","c":"d"}"#, &missing);
    place.refuses(
        2,
        &format!(r#"{train} tagging --verbalizer {{"a":"b","c":"d"}}"#),
        &["--verbalizer", "is for classification, not for tagging"],
    );
    place.refuses_training(2, r#"--verbalizer {"a":"b"}"#, &["--verbalizer", "at least two labels"]);
    place.refuses_training(2, r#"--verbalizer {"a":"b","c":1}"#, &["--verbalizer", "not a string"]);

    let place = Place::new("glm-cloze");
    place.write("prompts.jsonl", "{\"prompt\": \"a b\", \"response\": \"c\"}\n");
    place.refuses(2, &format!("{train} causal-lm"), &["glm fills blanks", "--verbalizer"]);
    let words = r#"--verbalizer {"entailment":"Yes","not_entailment":"No"}"#;
    place.refuses_training(2, &format!("{words} --head dense"), &["--head dense exclude each other"]);
    place.refuses_training(2, &format!("{words} --prefix-length 0"), &["nothing to train"]);
    place.refuses_training(2, &format!("{words} --positions shifted"), &["--positions shifted", "glm"]);
    place.refuses_training(1, r#"--verbalizer {"entailment":"Yes","not_entailment":"[UNK]"}"#, &["does not know the word \"[UNK]\""]);
    place.refuses_training(1, r#"--verbalizer {"entailment":"Yes","neutral":"No"}"#, &["data.jsonl, line 1", "not_entailment"]);
    place.write("data.jsonl", "{\"text\": \"a [MASK]\", \"label\": \"entailment\"}\n{\"text\": \"b\", \"label\": \"not_entailment\"}\n");
    place.refuses_training(1, words, &["data.jsonl, line 2", "no [MASK]", "write it into the text"]);
}

/// An encoder with a masked-language-model head can still have one of its own.
#[test]
fn words_and_a_head_of_the_same_encoder() {
    let place = Place::new("bert-cloze");
    let words = r#"{"entailment":"twice","not_entailment":"sold"}"#;
    let said = run(&place, TRAIN, &["--verbalizer", words]).ok();
    assert!(said.contains("PEFT has no class for masked-language-model heads"), "{said}");
    assert_eq!(tensors(&place.path("run/adapter_model.safetensors")).keys().collect::<Vec<_>>(), ["prompt_embeddings"]);
    run(&place, &TRAIN.replace("--output run", "--output head"), &[]).ok();
    assert!(tensors(&place.path("head/adapter_model.safetensors")).contains_key("base_model.classifier.weight"));
    place.refuses_training(1, r#"--verbalizer {"entailment":"twicesold","not_entailment":"sold"}"#, &["tokens", "a word of one token"]);
    run(&place, "predict --model model --adapter run --input data.jsonl --output out.jsonl", &[]).ok();
}

#[test]
fn a_later_glm_is_told_apart() {
    let place = Place::new("glm-cloze");
    place.patch("model/config.json", "\"num_layers\"", "\"num_hidden_layers\"");
    place.patch("model/config.json", "GLMModel", "GlmForCausalLM");
    place.refuses_training(1, "", &["model/config.json", "the GLM of 2021", "GLM-4"]);
}

#[test]
fn a_prefix_starts_as_text() {
    for bundle in ["bert-classification", "glm-classification"] {
        let place = Place::new(bundle);
        place.write("start.txt", "The old water mill was repaired after the flood.");
        let train = "train --model model --task classification --data data.jsonl --max-steps 2 --save-every 1 --batch-size 8 --output";
        run(&place, &format!("{train} file --prefix-init file:start.txt --quiet"), &[]).ok();
        let said = run(&place, &format!("{train} text"), &["--prefix-init", "text:The old water mill was repaired after the flood."]).ok();
        assert!(said.contains("from the keys and values of a text"), "{said}");
        let [file, from_text] = ["file", "text"].map(|run| tensors(&place.path(&format!("{run}/adapter_model.safetensors"))));
        assert_eq!(file["prompt_embeddings"], from_text["prompt_embeddings"], "{bundle}");
        let length = json(&place.path("file/ptune.json"))["prefix_length"].as_u64().unwrap();
        assert!(length > 8 && text(&place.path("file/config.toml")).contains(&format!("prefix-length = {length}")));
        // It is not the usual start: keys and values of a model are of order one.
        let values = &file["prompt_embeddings"].1;
        let mean_square = values.iter().map(|value| f64::from(value * value)).sum::<f64>() / values.len() as f64;
        assert!(mean_square > 4e-3, "{bundle}: {mean_square}");

        let whole = std::fs::read(place.path("file/adapter_model.safetensors")).unwrap();
        std::fs::remove_dir_all(place.path("file/checkpoint-2")).unwrap();
        std::fs::remove_file(place.path("file/train_results.json")).unwrap();
        std::fs::copy(place.path("start.txt"), place.path("kept.txt")).unwrap();
        place.write("start.txt", "The old mill water was repaired after the flood.");
        place.refuses(1, "train --output file --resume", &["--prefix-init", "contents differ"]);
        std::fs::copy(place.path("kept.txt"), place.path("start.txt")).unwrap();
        run(&place, "train --output file --resume --quiet", &[]).ok();
        assert!(std::fs::read(place.path("file/adapter_model.safetensors")).unwrap() == whole, "a resumed run differs");
    }
}

#[test]
fn texts_that_cannot_start_a_prefix() {
    let place = Place::new("bert-classification");
    for (flags, parts) in [
        ("--prefix-init text", vec!["--prefix-init", "file:PATH"]),
        ("--prefix-init text:mill --prefix-length 9", vec!["--prefix-length 9", "tokens"]),
        ("--prefix-init text:mill --prefix-length 0", vec!["--prefix-length 0"]),
        ("--prefix-init text:mill --prefix-projection", vec!["--prefix-projection exclude each other"]),
        ("--prefix-init text:mill --init-adapter adapter", vec!["--init-adapter exclude each other"]),
    ] {
        place.refuses_training(2, flags, &parts);
    }
    place.refuses_training(1, "--prefix-init file:nowhere.txt", &["file:nowhere.txt", "cannot read"]);
    place.write("long.txt", "mill ".repeat(400));
    place.refuses_training(2, "--prefix-init file:long.txt", &["the text has 401 tokens", "192 positions"]);
}

#[test]
fn responses_are_trained_scored_and_generated() {
    let place = Place::new("llama-causal-lm");
    let train = "train --model model --task causal-lm --data data.jsonl --validation data.jsonl --prefix-length 4 --batch-size 8 \
                 --prefix-dropout 0 --learning-rate 5e-2 --max-steps 12 --eval-every 6 --output run";
    let said = run(&place, train, &[]).ok();
    for part in ["vocabulary logits", "chunks of", "token_accuracy", "peft_type PREFIX_TUNING"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert_eq!(tensors(&place.path("run/adapter_model.safetensors")).keys().collect::<Vec<_>>(), ["prompt_embeddings"]);
    let losses: Vec<f64> = json_lines(&place.path("run/metrics.jsonl")).iter().filter_map(|row| row["eval_loss"].as_f64()).collect();
    assert!(losses.len() == 2 && losses[1] < losses[0], "{losses:?}");
    let scores: serde_json::Value =
        serde_json::from_str(&run(&place, "eval --model model --adapter run --data data.jsonl --json", &[]).ok()).unwrap();
    let score = |name: &str| scores[name].as_f64().unwrap();
    assert!((score("perplexity") - score("loss").exp()).abs() < 1e-9 * score("perplexity"), "{scores}");
    assert!((score("loss") - losses[1]).abs() < 1e-6 && (0.0..=1.0).contains(&score("token_accuracy")), "{scores} and {losses:?}");

    // With responses: their log-probabilities, whose sum is the loss's; nothing but prompts: text alone.
    let predict = "predict --model model --adapter run --output out.jsonl --quiet --max-new-tokens 5";
    run(&place, &format!("{predict} --input data.jsonl --with logits,input_ids"), &[]).ok();
    let scored = json_lines(&place.path("out.jsonl"));
    let total: f64 = scored.iter().map(|line| line["logits"].as_f64().unwrap()).sum();
    let tokens = response_tokens();
    assert!((total / tokens as f64 + score("loss")).abs() < 1e-4, "{total} over {tokens} tokens");
    let prompts: String = json_lines(&place.path("data.jsonl"))
        .iter()
        .map(|line| serde_json::json!({ "prompt": line["prompt"] }).to_string() + "\n")
        .collect();
    place.write("prompts.jsonl", prompts);
    run(&place, &format!("{predict} --input prompts.jsonl"), &[]).ok();
    let generated = json_lines(&place.path("out.jsonl"));
    let texts = |lines: &[serde_json::Value]| lines.iter().map(|line| line["prediction"].as_str().unwrap().to_string()).collect::<Vec<_>>();
    assert_eq!((texts(&generated), generated[0].get("logits")), (texts(&scored), None));
    run(&place, "predict --model model --adapter run --output out.jsonl --quiet --max-new-tokens 0 --input data.jsonl --with logits", &[])
        .ok();
    let only = json_lines(&place.path("out.jsonl"));
    assert_eq!((&only[3]["logits"], only[3].get("prediction")), (&scored[3]["logits"], None));
    // One at a time, as in a batch.
    run(&place, &format!("{predict} --input prompts.jsonl --batch-size 1"), &[]).ok();
    assert_eq!(texts(&json_lines(&place.path("out.jsonl"))), texts(&scored));

    place.refuses(1, "eval --model model --adapter run --data prompts.jsonl", &["prompts.jsonl, line 1", "no response"]);
    let long = "predict --model model --adapter run --output out.jsonl --input prompts.jsonl --max-new-tokens 500";
    place.refuses(1, long, &["--max-new-tokens 500", "positions"]);
    place.refuses(2, &format!("{train} --head dense").replace("run", "other"), &["language-model head"]);
    place.refuses(
        2,
        "predict --model model --adapter run --output out.jsonl --input data.jsonl --max-new-tokens 99999999",
        &["--max-new-tokens"],
    );
}

/// Tokens of all responses, ends included, by the bundle.
fn response_tokens() -> usize {
    crate::bundle::Bundle::open("llama-causal-lm").expected("labels").iter().filter(|&&label| label >= 0.0).count()
}

/// On the emulated device text is generated with the kernels' attention over the cache, in fp16.
#[cfg(feature = "emulation")]
#[test]
fn text_is_generated_on_cuda() {
    let place = Place::new("llama-causal-lm");
    let found = ["cpu", "emulated"].map(|device| {
        let line = "predict --model model --adapter adapter --output out.jsonl --quiet --max-new-tokens 4 --input data.jsonl --with logits --device";
        run(&place, &format!("{line} {device}"), &[]).ok();
        json_lines(&place.path("out.jsonl"))
    });
    let same = found[0].iter().zip(&found[1]).filter(|(cpu, cuda)| cpu["prediction"] == cuda["prediction"]).count();
    // Rounding may choose the other of two near tokens now and then.
    assert!(4 * same >= 3 * found[0].len(), "{same} of {} texts are the same", found[0].len());
    for (cpu, cuda) in found[0].iter().zip(&found[1]) {
        assert!((cpu["logits"].as_f64().unwrap() - cuda["logits"].as_f64().unwrap()).abs() < 0.07, "{cpu} and {cuda}");
    }
}
