//! Flags and configuration files that are wrong in themselves or too large for the model, the machine or each other.

use crate::command::Run;
use crate::place::{GOOD, Place};
use std::process::Command;

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
        "--device tpu",
        "--device cuda:x",
        "--schedule wavy",
        "--method fine-tuning",
        "--method head --prefix-length 4",
        "--method prefix --prefix-length 0",
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
    for flags in ["--batch-size 0", "--batch-size -3", "--max-length 0", "--threads 0", "--device tpu"] {
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
    // No text fits into two tokens.
    let line = place.run(&long("--prefix-length 190")).error(1, &["prefix of 190", "--prefix-length 64", "--positions unshifted"]);
    assert!(!line.contains("--max-length"), "{line}");
    place.refuses(1, &long("--prefix-length 5 --max-length 300 --positions unshifted"), &["192", "--max-length 192"]);
    place.refuses(1, &long("--max-length 2"), &["d.jsonl, line 1", "--max-length 2"]);
    // Only the head is trained with --max-length 192: that fits.
    place.run(&long("--prefix-length 0 --max-length 192 --max-steps 1")).ok();
    std::fs::remove_dir_all(place.path("out")).unwrap();
    // More memory than there is. A limit makes it less than any machine has.
    let mut command = Command::new("sh");
    command.current_dir(place.path("")).args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ptune")]);
    command.args(long("--positions unshifted --prefix-length 1000000 --threads 1").split_whitespace());
    Run::from(command.output().unwrap()).error(1, &["cannot allocate", "GiB", "--memory-budget", "shorter prefix"]);
    assert!(!place.path("out").exists());
}

#[test]
fn configuration_files() {
    let place = Place::new("bert-classification");
    for (contents, parts) in [
        ("seed = 1\nlearning-rates = 1", &["c.toml", "line 2", "learning-rates"][..]),
        ("seed = 'x'", &["c.toml", "line 1"]),
        ("seed = 1\nseed = 2", &["c.toml", "line 2"]),
        ("\nseed = ", &["c.toml", "line 2"]),
        ("prefix-dropout = 2", &["--prefix-dropout 2"]),
        ("learning-rate = nan", &["--learning-rate"]),
        ("batch-size = -4", &["c.toml", "line 1"]),
        ("device = 'cuda:'", &["c.toml", "line 1"]),
    ] {
        place.write("c.toml", contents);
        place.refuses_training(2, "--config c.toml", parts);
    }
    place.write("c.toml", [0xff, 0xfe]);
    place.refuses_training(1, "--config c.toml", &["c.toml"]);
    place.refuses_training(1, "--config none.toml", &["none.toml"]);
}

/// A GPU that is not there: a usage error where the build has no kernels for any, a failure where it has.
#[test]
fn missing_gpu() {
    let place = Place::new("bert-classification");
    place.write("data.jsonl", GOOD);
    let version = place.run("--version").ok();
    let (code, part) = if version.contains("sm_") { (1, "--device cpu") } else { (2, "built without nvcc") };
    for command in [
        "train --model model --task classification --data data.jsonl --output out",
        "eval --model model --adapter adapter --data data.jsonl",
        "predict --model model --adapter adapter --input data.jsonl --output p.jsonl",
    ] {
        place.refuses(code, &format!("{command} --device cuda:99"), &[part]);
    }
}
