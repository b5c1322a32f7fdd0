//! Files, flags and disks that are not as they should be: every command ends with one line that says what is wrong and
//! where, with the right exit code, and with everything on the disk as it was.

use crate::bundle::golden;
use crate::command::{Run, copy, files, json, program, ptune, text};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with the model and the data of a bundle, to spoil.
struct Place(tempfile::TempDir);

/// Two good lines to put bad ones behind.
const GOOD: &str = "{\"text\": \"a b\", \"label\": \"entailment\"}\n{\"text\": \"c\", \"label\": \"not_entailment\"}\n";

impl Place {
    fn new(bundle: &str) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        copy(&golden(bundle).join("model"), &place.path("model"));
        copy(&golden(bundle).join("adapter"), &place.path("adapter"));
        std::fs::copy(golden(bundle).join("data.jsonl"), place.path("data.jsonl")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    /// Replaces the first occurrence of a text, which must be there, with one of the same length.
    fn patch(&self, name: &str, from: &str, to: &str) {
        let mut bytes = std::fs::read(self.path(name)).unwrap();
        assert!(!name.ends_with(".safetensors") || from.len() == to.len(), "{from}");
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap_or_else(|| panic!("no {from} in {name}"));
        bytes.splice(at..at + from.len(), to.bytes());
        self.write(name, bytes);
    }

    fn run(&self, line: &str) -> Run {
        let mut command = program();
        Run::from(command.current_dir(self.0.path()).args(line.split_whitespace()).output().unwrap())
    }

    /// Asserts that a command fails with this message and changes nothing.
    fn refuses(&self, code: i32, line: &str, parts: &[&str]) {
        let before = files(self.0.path());
        self.run(line).error(code, parts);
        let after = files(self.0.path());
        assert!(after == before, "{line}: changed the folder: {:?}", after.keys().collect::<Vec<_>>());
    }

    /// The same for a training with usual flags.
    fn refuses_training(&self, code: i32, flags: &str, parts: &[&str]) {
        self.refuses(code, &format!("train --model model --task classification --data data.jsonl --output out {flags}"), parts);
    }

    /// Trains for two steps.
    fn train(&self, flags: &str) {
        self.run(&format!("train --model model --max-steps 2 --batch-size 8 --quiet {flags}")).ok();
    }
}

const WEIGHTS: &str = "model/model.safetensors";

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
    place.refuses(1, &eval(&other("roberta-classification")), &["base_model.classifier"].map(|_| "labels")[..0].as_ref());
    place.refuses(1, &(eval(&other("roberta-classification-peft")) + " --task classification"), &["32", "48"]);
    place.refuses(1, &eval("nowhere"), &["nowhere"]);
    place.refuses(1, &eval("model"), &["adapter_config.json"]);
    let from = |adapter: &str, flags: &str| format!("--init-adapter {adapter} {flags}");
    place.refuses_training(1, &from(&other("bert-classification-d64"), ""), &["layers"]);
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

#[test]
fn numbers_out_of_range() {
    let place = Place::new("bert-classification");
    for flags in [
        "--learning-rate -1",
        "--learning-rate 0",
        "--learning-rate NaN",
        "--learning-rate 1e999",
        "--learning-rate fast",
        "--batch-size 0",
        "--batch-size -1",
        "--batch-size 18446744073709551615",
        "--batch-size 18446744073709551616",
        "--gradient-accumulation 0",
        "--prefix-dropout 1",
        "--prefix-dropout -0.1",
        "--hidden-dropout nan",
        "--attention-dropout 1.5",
        "--prefix-layers 9-3",
        "--prefix-layers 0",
        "--prefix-layers 2-4",
        "--prefix-layers 1-99999999999",
        "--prefix-length 100000000",
        "--prefix-length -1",
        "--prefix-length 1.5",
        "--prefix-projection 0",
        "--prefix-projection 99999999999",
        "--warmup -3",
        "--warmup 2.5",
        "--warmup nan",
        "--warmup 100000",
        "--weight-decay -1",
        "--weight-decay inf",
        "--max-grad-norm -0.5",
        "--epochs 0",
        "--max-steps 0",
        "--max-steps 99999999999",
        "--max-length 0",
        "--max-length 99999999999",
        "--doc-stride -1",
        "--max-train-samples 0",
        "--seed -1",
        "--seed 18446744073709551615",
        "--save-every 0",
        "--save-limit 0",
        "--threads 0",
        "--threads 99999999999",
        "--eval-every 2",
        "--patience 2",
        "--metric accuracy",
        "--device cuda",
        "--device cuda:1",
        "--device tpu",
        "--schedule cosine",
        "--head none",
        "--positions x",
    ] {
        let flag = flags.split_whitespace().next().unwrap();
        place.refuses_training(2, flags, &[flag]);
    }
    place.refuses_training(2, "--validation data.jsonl --metric bleu", &["--metric bleu", "accuracy"]);
    place.refuses_training(2, "--validation data.jsonl --patience 0", &["--patience"]);
    place.refuses_training(2, "--prefix-length 0 --prefix-layers 1", &["--prefix-length 0", "--prefix-layers"]);
    place.refuses_training(2, "--no-such-flag", &["--no-such-flag"]);
    place.refuses(2, "tune", &["tune"]);
    place.refuses(2, "train --model model --data data.jsonl --output out", &["--task"]);
    place.refuses(2, "train --model model --task regression --data data.jsonl --output out", &["regression", "classification"]);
    place.refuses(
        2,
        "train --model model --task qa --data data.jsonl --output out --max-length 64 --doc-stride 64",
        &["--doc-stride 64", "--max-length 64"],
    );
    place.refuses(2, "eval --model model --data data.jsonl", &["--adapter"]);
    for flags in ["--batch-size 0", "--batch-size -3", "--max-length 0", "--threads 0", "--device cuda"] {
        let flag = flags.split_whitespace().next().unwrap();
        place.refuses(2, &format!("eval --model model --adapter adapter --data data.jsonl {flags}"), &[flag]);
        place.refuses(2, &format!("predict --model model --adapter adapter --input data.jsonl --output p.jsonl {flags}"), &[flag]);
    }
}

#[test]
fn sizes_that_do_not_fit() {
    let place = Place::new("bert-classification");
    place.write("d.jsonl", format!("{GOOD}{{\"text\": \"{}\", \"label\": \"entailment\"}}\n", "word ".repeat(200)));
    let long = |flags: &str| format!("train --model model --task classification --data d.jsonl --output out {flags}");
    place.refuses(1, &long("--prefix-length 80"), &["prefix of 80", "128", "192", "--max-length 112", "--prefix-length 64"]);
    place.refuses(1, &long("--prefix-length 1000000"), &["prefix of 1000000", "192"]);
    place.refuses(1, &long("--prefix-length 5 --max-length 300 --positions unshifted"), &["192", "--max-length 192"]);
    place.refuses(1, &long("--max-length 2"), &["d.jsonl, line 1", "--max-length 2"]);
    // Only the head is trained with --max-length 192: that fits.
    place.run(&long("--prefix-length 0 --max-length 192 --max-steps 1")).ok();
    std::fs::remove_dir_all(place.path("out")).unwrap();
    // More memory than there is. A limit makes it less than any machine has.
    let mut command = Command::new("sh");
    command.current_dir(place.path("")).args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ptune")]);
    command.args(long("--positions unshifted --prefix-length 1000000 --threads 1").split_whitespace());
    Run::from(command.output().unwrap()).error(1, &["cannot allocate", "shorter prefix"]);
    assert!(!place.path("out").exists());
}

#[test]
fn configuration_files() {
    let place = Place::new("bert-classification");
    for (contents, parts) in [
        ("seed = 1\nlearning_rate = 1", &["c.toml", "line 2", "learning_rate"][..]),
        ("seed = 'x'", &["c.toml", "line 1"]),
        ("seed = 1\nseed = 2", &["c.toml", "line 2"]),
        ("\nseed = ", &["c.toml", "line 2"]),
        ("prefix-dropout = 2", &["--prefix-dropout 2"]),
        ("learning-rate = nan", &["--learning-rate"]),
        ("batch-size = -4", &["c.toml", "line 1"]),
        ("device = 'cuda'", &["--device cuda"]),
    ] {
        place.write("c.toml", contents);
        place.refuses_training(2, "--config c.toml", parts);
    }
    place.write("c.toml", [0xff, 0xfe]);
    place.refuses_training(1, "--config c.toml", &["c.toml"]);
    place.refuses_training(1, "--config none.toml", &["none.toml"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let place = Place::new("bert-classification");
    let train =
        |output: &str| format!("train --model model --task classification --data data.jsonl --max-steps 1 --quiet --output {output}");
    let before = files(place.0.path());
    for (output, part) in [("data.jsonl", "data.jsonl"), ("data.jsonl/below", "below"), ("/proc/none", "/proc/none")] {
        let ended = place.run(&train(output));
        let code = ended.code.unwrap();
        assert!(code == 1 || code == 2, "{ended:?}");
        ended.error(code, &[part]);
    }
    place.refuses(1, &train("model"), &["model", "already used"]);
    let predict = |output: &str| format!("predict --model model --adapter adapter --input data.jsonl --output {output}");
    place.refuses(2, &predict("data.jsonl"), &["--output data.jsonl", "input"]);
    place.refuses(2, &predict("model"), &["--output model", "folder"]);
    place.refuses(1, &predict("none/p.jsonl"), &["none"]);
    assert!(files(place.0.path()) == before);

    // A failed prediction leaves the file that was there.
    place.write("p.jsonl", "precious");
    place.write("d.jsonl", "{\"text\": \"a\"}\n{\"text\": \n");
    place.refuses(1, "predict --model model --adapter adapter --input d.jsonl --output p.jsonl", &["d.jsonl, line 2"]);
    assert_eq!(text(&place.path("p.jsonl")), "precious");
    let mut command = program();
    command.current_dir(place.0.path()).args("eval --json --model model --adapter adapter --data data.jsonl".split(' '));
    command.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    Run::from(command.output().unwrap()).error(1, &["standard output"]);
}

/// Runs the program where no file may grow beyond so many blocks of 512 bytes: writes fail as on a full disk.
fn with_small_disk(place: &Place, blocks: usize, line: &str) -> Run {
    let mut command = Command::new("sh");
    let limit = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    command.current_dir(place.0.path()).args(["-c", &limit, env!("CARGO_BIN_EXE_ptune")]).args(line.split_whitespace());
    command.output().unwrap().into()
}

#[test]
fn a_full_disk_leaves_the_last_good_state() {
    let (whole, place) = (Place::new("bert-classification"), Place::new("bert-classification"));
    let train =
        "train --model model --task classification --data data.jsonl --output out --max-steps 6 --save-every 2 --batch-size 8 --quiet";
    whole.run(train).ok();
    // Nothing fits: the first adapter cannot be written, and no half of it is there.
    with_small_disk(&place, 8, train).error(1, &["adapter_model.safetensors", "too large"]);
    assert!(!files(&place.path("out")).keys().any(|name| name.ends_with(".safetensors") || name.contains(".tmp")));

    // The adapter fits, a checkpoint's optimizer state does not; then there is space again.
    let size = std::fs::metadata(whole.path("out/adapter_model.safetensors")).unwrap().len() as usize;
    for _ in 0..2 {
        with_small_disk(&place, 2 * size / 512, &format!("{train} --resume")).error(1, &["checkpoint-2", "state.safetensors", "too large"]);
        place.run("eval --model model --adapter out --data data.jsonl").ok();
        assert!(!files(&place.path("out")).keys().any(|name| name.contains("checkpoint-")));
    }
    place.run(&format!("{train} --resume")).ok();
    let bytes = |place: &Place, name: &str| std::fs::read(place.path(name)).unwrap();
    for name in ["out/adapter_model.safetensors", "out/checkpoint-6/state.safetensors", "out/trainer_state.json"] {
        assert!(bytes(&place, name) == bytes(&whole, name), "{name} differs");
    }
    // A prediction that cannot be written leaves the one that was there.
    place.write("p.jsonl", "precious");
    let predict = "predict --model model --adapter out --input data.jsonl --output p.jsonl --with logits";
    with_small_disk(&place, 1, predict).error(1, &["p.jsonl", "too large"]);
    assert_eq!(text(&place.path("p.jsonl")), "precious");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    // The rate is 0 in the first step, so its adapter is good, and absurd in the second.
    let place = Place::new("bert-classification");
    let train = "train --model model --task classification --data data.jsonl --validation data.jsonl --output out --learning-rate 1e30 --warmup 2 \
                 --max-steps 9 --batch-size 8 --eval-every 1 --save-every 1 --quiet";
    place.run(train).error(1, &["step 3", "learning rate", "--learning-rate"]);
    assert_eq!(json(&place.path("out/trainer_state.json"))["best_global_step"], 1);
    place.run("eval --model model --adapter out --data data.jsonl").ok();
    let best = |name: &str| std::fs::read(place.path(name).join("adapter_model.safetensors")).unwrap();
    assert!(best("out") == best("out/checkpoint-1"));

    // The frozen model itself is at fault.
    let place = Place::new("bert-classification");
    let mut bytes = std::fs::read(place.path(WEIGHTS)).unwrap();
    let length = bytes.len();
    bytes[length / 2..length / 2 + 20_000].chunks_exact_mut(2).for_each(|value| value.copy_from_slice(&half::f16::INFINITY.to_le_bytes()));
    place.write(WEIGHTS, bytes);
    let train = "train --model model --task classification --data data.jsonl --output out --quiet";
    place.run(train).error(1, &["step 1", "frozen model"]);
    assert!(!Path::new(&place.path("out/adapter_model.safetensors")).exists());
    place.refuses(1, "eval --model model --adapter adapter --data data.jsonl", &["not finite"]);
    ptune(["inspect".as_ref(), place.path("model").as_os_str()]).ok();
}
