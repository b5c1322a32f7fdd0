//! Models, data and adapters that are not as they should be: every command ends with one line that says what is wrong and
//! where, with the right exit code, and with everything on the disk as it was.

use crate::bundle::golden;
use crate::command::copy;
use crate::place::{GOOD, Place, WEIGHTS};

#[test]
fn broken_checkpoints() {
    let spoilt = |spoil: &dyn Fn(&Place), parts: &[&str]| {
        let place = Place::new("bert-classification");
        spoil(&place);
        place.refuses_training(1, "", parts);
        place.refuses(1, "inspect model", parts);
    };
    let cut = |length: u64| {
        move |place: &Place| std::fs::OpenOptions::new().write(true).open(place.path(WEIGHTS)).unwrap().set_len(length).unwrap()
    };
    spoilt(&|place| std::fs::remove_file(place.path(WEIGHTS)).unwrap(), &["model", "model.safetensors"]);
    spoilt(
        &|place| std::fs::rename(place.path(WEIGHTS), place.path("model/pytorch_model.bin")).unwrap(),
        &["pytorch_model.bin", "convert"],
    );
    spoilt(&cut(0), &["model.safetensors", "empty"]);
    spoilt(&cut(5), &["model.safetensors", "truncated"]);
    spoilt(&cut(3000), &["model.safetensors", "truncated"]);
    spoilt(&cut(200_000), &["model.safetensors", "truncated"]);
    spoilt(&|place| place.write(WEIGHTS, [0xff; 64]), &["model.safetensors", "header"]);
    spoilt(&|place| place.patch(WEIGHTS, "\"dtype\"", "\"dtipe\""), &["model.safetensors", "header"]);
    // The tensor that reaches to the end of the file is said to reach beyond it.
    let end = |place: &Place| {
        let bytes = std::fs::read(place.path(WEIGHTS)).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let last = (bytes.len() - 8 - header).to_string();
        place.patch(WEIGHTS, &format!("{last}]"), &format!("{}]", "9".repeat(last.len())));
    };
    spoilt(&end, &["model.safetensors"]);
    spoilt(
        &|place| place.patch(WEIGHTS, "layer.1.attention.self.query.weight", "layer.1.attention.self.query.weighs"),
        &["layer.1.attention.self.query.weight", "missing"],
    );
    spoilt(&|place| place.patch(WEIGHTS, "[48,48]", "[24,96]"), &["has shape [24, 96]", "[48, 48]"]);
    spoilt(&|place| place.patch(WEIGHTS, "\"F16\"", "\"I16\""), &["model.safetensors", "I16"]);
}

#[test]
fn models_that_are_not_supported() {
    for (from, to, parts) in [
        ("\"bert\"", "\"t5\"", &["config.json", "model_type", "\"t5\"", "supported: bert"][..]),
        ("\"model_type\"", "\"quantization_config\": {\"quant_method\": \"gptq\"}, \"model_type\"", &["quantization_config", "gptq"]),
        ("\"gelu\"", "\"mish\"", &["hidden_act", "mish"]),
        ("\"absolute\"", "\"relative_key\"", &["position_embedding_type"]),
        ("\"hidden_size\": 48", "\"hidden_size\": \"48\"", &["hidden_size"]),
        ("\"hidden_size\": 48", "\"hidden_size\": 50", &["hidden_size", "num_attention_heads"]),
        ("\"hidden_size\": 48", "\"hidden_size\": 99999999999999999999", &["hidden_size"]),
        ("\"num_hidden_layers\"", "\"layers\"", &["num_hidden_layers", "missing"]),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", &["layer.3."]),
        ("{", "{,", &["config.json", "line 1"]),
    ] {
        let place = Place::new("bert-classification");
        place.patch("model/config.json", from, to);
        place.refuses_training(1, "", parts);
    }
    let place = Place::new("bert-classification");
    place.write("model/tokenizer.json", "{\"version\": ");
    place.refuses_training(1, "", &["tokenizer.json"]);
    std::fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    place.refuses_training(1, "", &["model", "no tokenizer", "vocab.txt"]);
    std::fs::remove_file(place.path("model/config.json")).unwrap();
    place.refuses_training(1, "", &["model", "no config.json"]);
    place.refuses(1, "inspect model", &["config.json"]);
    place.refuses(1, "inspect nowhere", &["nowhere", "no such directory"]);
}

#[test]
fn texts_with_labels() {
    let place = Place::new("bert-classification");
    let bad = |name: &str, contents: &[u8], flags: &str, parts: &[&str]| {
        place.write(name, contents);
        place.refuses(1, &format!("train --model model --task classification --output out --data {name} {flags}"), parts);
    };
    let line = |more: &str| format!("{GOOD}{more}\n").into_bytes();
    bad("d.jsonl", b"", "", &["d.jsonl", "no examples"]);
    bad("d.jsonl", b"\n\n", "", &["d.jsonl", "no examples"]);
    bad("d.jsonl", &line("{\"text\": "), "", &["d.jsonl, line 3", "JSON"]);
    bad("d.jsonl", &line("[1]"), "", &["d.jsonl, line 3", "object"]);
    bad("d.jsonl", &line("{\"txt\": \"c\", \"label\": \"entailment\"}"), "", &["d.jsonl, line 3", "\"text\"", "--text-column"]);
    bad("d.jsonl", &line("{\"text\": 5, \"label\": \"entailment\"}"), "", &["d.jsonl, line 3", "\"text\"", "number"]);
    bad("d.jsonl", &line("{\"text\": \"c\"}"), "", &["d.jsonl, line 3", "\"label\""]);
    bad("d.jsonl", &line("{\"text\": \"c\", \"label\": [1]}"), "", &["d.jsonl, line 3", "\"label\"", "list"]);
    bad("d.jsonl", &line(""), "--label-column class", &["d.jsonl, line 1", "--label-column"]);
    bad("d.jsonl", &[GOOD.as_bytes(), b"{\"text\": \"\xff\"}\n"].concat(), "", &["d.jsonl, line 3", "UTF-8"]);
    bad("d.jsonl", b"{\"text\": \"c\", \"label\": \"x\"}\n", "", &["d.jsonl, line 1", "only label", "\"x\""]);
    bad("d.json", b"[{\"text\": \"c\", \"label\": 0},\n {\"text\" 1}]", "", &["d.json", "line 2"]);
    bad("d.json", &line("{\"text\": \"c\"}"), "", &["d.json, line 3", "\"label\""]);
    bad("d.csv", b"text,label\na,0\nb\n", "", &["d.csv, line 3"]);
    bad("d.csv", b"sentence,label\na,0\nb,1\n", "", &["d.csv", "\"text\"", "sentence", "--text-column"]);
    bad("d.tsv", b"text\tlabel\na\t0\nb\xfe\t1\n", "", &["d.tsv, line 3", "UTF-8"]);
    bad("d.doc", b"", "", &["d.doc", ".jsonl"]);
    place.refuses(1, "train --model model --task classification --output out --data none.jsonl", &["none.jsonl", "No such file"]);

    // Labels that the training data does not know.
    place.write("d.jsonl", line("{\"text\": \"c\", \"label\": \"perhaps\"}"));
    place.refuses_training(1, "--validation d.jsonl", &["d.jsonl, line 3", "\"perhaps\"", "entailment"]);
    place.train("--task classification --data data.jsonl --output adapted");
    place.refuses(1, "eval --model model --adapter adapted --data d.jsonl", &["d.jsonl, line 3", "\"perhaps\"", "entailment"]);
    place.write("d.jsonl", "{\"text\": \"c\"}\n");
    place.refuses(1, "eval --model model --adapter adapted --data d.jsonl --json", &["d.jsonl, line 1", "label"]);
}

#[test]
fn words_choices_and_questions() {
    for (bundle, task, good, bad, parts) in [
        (
            "bert-tagging",
            "tagging",
            "{\"tokens\": [\"a\", \"b\"], \"tags\": [\"O\", \"B-person\"]}",
            "{\"tokens\": [\"a\", \"b\"], \"tags\": [\"O\"]}",
            &["2", "1", "tags"][..],
        ),
        (
            "bert-tagging",
            "tagging",
            "{\"tokens\": [\"a\", \"b\"], \"tags\": [\"O\", \"B-person\"]}",
            "{\"tokens\": \"a\", \"tags\": [\"O\"]}",
            &["tokens"],
        ),
        (
            "bert-multiple-choice",
            "multiple-choice",
            "{\"text\": \"a\", \"choices\": [\"b\", \"c\"], \"label\": 1}",
            "{\"text\": \"a\", \"choices\": [\"b\", \"c\"], \"label\": 2}",
            &["label", "2"],
        ),
        (
            "bert-multiple-choice",
            "multiple-choice",
            "{\"text\": \"a\", \"choices\": [\"b\", \"c\"], \"label\": 1}",
            "{\"text\": \"a\", \"choices\": [], \"label\": 0}",
            &["choice"],
        ),
        (
            "bert-qa",
            "qa",
            "{\"id\": \"1\", \"context\": \"a b\", \"question\": \"c\", \"answers\": {\"text\": [\"b\"], \"answer_start\": [2]}}",
            "{\"id\": \"2\", \"question\": \"c\"}",
            &["\"context\""],
        ),
        (
            "bert-qa",
            "qa",
            "{\"id\": \"1\", \"context\": \"a b\", \"question\": \"c\", \"answers\": {\"text\": [\"b\"], \"answer_start\": [2]}}",
            "{\"id\": \"2\", \"context\": \"a b\", \"question\": \"c\", \"answers\": {\"text\": [\"b\"], \"answer_start\": [9]}}",
            &["answer"],
        ),
    ] {
        let place = Place::new(bundle);
        place.write("d.jsonl", format!("{good}\n{good}\n{bad}\n"));
        let line = format!("train --model model --task {task} --output out --data d.jsonl");
        place.refuses(1, &line, &[&["d.jsonl, line 3"], parts].concat());
    }
    let place = Place::new("bert-tagging");
    place.write("d.conll", "a O\nb B-person\n\nc\n");
    place.refuses(1, "train --model model --task tagging --output out --data d.conll", &["d.conll, line 4"]);
    place.write("d.conll", "a O\nb B-person\n");
    place.refuses(1, "train --model model --task tagging --output out --data d.conll --tag-column 5", &["d.conll, line 1", "5"]);
}

#[test]
fn adapters_that_do_not_fit() {
    let place = Place::new("bert-classification");
    let other = |bundle: &str| golden(bundle).join("adapter").display().to_string();
    let eval = |adapter: &str| format!("eval --model model --data data.jsonl --adapter {adapter}");
    place.refuses(1, &eval(&other("bert-classification-d64")), &["layers"]);
    place.refuses(1, &(eval(&other("roberta-classification-peft")) + " --task classification"), &["32", "48"]);
    place.refuses(1, &eval("nowhere"), &["nowhere"]);
    place.refuses(1, &eval("model"), &["adapter_config.json"]);
    let from = |adapter: &str, flags: &str| format!("--init-adapter {adapter} {flags}");
    place.refuses_training(1, &from(&other("bert-classification-d64"), ""), &["layers"]);
    // The other way round its layers do not exist here, which is no fault of --prefix-layers.
    let smaller = Place::new("bert-classification-d64");
    smaller.refuses_training(1, &from(&other("bert-classification"), ""), &["the adapter does not fit model", "3 layers", "has 2"]);
    place.refuses_training(2, &from("adapter", "--prefix-length 9"), &["--prefix-length 9", "6"]);
    place.refuses_training(2, &from("adapter", "--prefix-layers 1-2"), &["--prefix-layers 1-2", "1-3"]);
    place.refuses_training(2, &from("adapter", "--head dense"), &["--head dense", "linear"]);
    place.refuses_training(2, &from("adapter", "--prefix-projection"), &["--prefix-projection", "--init-adapter"]);

    // Its own adapter, for another task, and told to be for another task.
    place.train("--task classification --data data.jsonl --output own");
    place.refuses(2, &(eval("own") + " --task tagging"), &["--task tagging", "classification"]);
    let tagging = Place::new("bert-tagging");
    tagging.train("--task tagging --data data.jsonl --output own");
    place.refuses(1, &eval(&tagging.path("own").display().to_string()), &["layers"]);
    place.refuses(1, &(eval(&other("bert-qa")) + " --task classification"), &["layers"]);

    let spoilt = |spoil: &dyn Fn(), parts: &[&str]| {
        copy(&golden("bert-classification").join("adapter"), &place.path("adapter"));
        spoil();
        place.refuses(1, &eval("adapter"), parts);
        place.refuses_training(1, "--init-adapter adapter", parts);
        place.refuses(1, "inspect adapter", parts);
    };
    let (config, weights) = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors");
    spoilt(&|| place.patch(config, "PREFIX_TUNING", "LORA"), &["adapter_config.json", "peft_type", "LORA"]);
    spoilt(&|| place.patch(config, "PREFIX_TUNING", "PTUNE_PREFIX"), &["ptune.json"]);
    spoilt(&|| place.patch(config, "\"num_virtual_tokens\": 6", "\"num_virtual_tokens\": 7"), &["prompt_embeddings", "6", "7"]);
    spoilt(&|| place.patch(config, "\"token_dim\": 48", "\"token_dim\": 32"), &["adapter_config.json", "token_dim"]);
    spoilt(&|| place.patch(weights, "prompt_embeddings", "prompt_embedding5"), &["prompt_embeddings"]);
    spoilt(
        &|| place.write(weights, &std::fs::read(golden("bert-classification").join(weights)).unwrap()[..4000]),
        &["adapter_model.safetensors", "truncated"],
    );
    let nan = || {
        let mut bytes = std::fs::read(golden("bert-classification").join(weights)).unwrap();
        let length = bytes.len();
        bytes[length - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        place.write(weights, bytes);
    };
    spoilt(&nan, &["adapter_model.safetensors", "NaN"]);
    spoilt(&|| std::fs::remove_file(place.path(weights)).unwrap(), &["adapter_model.safetensors"]);
}
