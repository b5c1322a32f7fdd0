//! `ptune bench`, random weights and profiling, as a user runs them: on the CPU and, where it is built in, on the
//! emulated device.

use crate::bundle::golden;
use crate::command::{Run, files, json, program, ptune, text};
use crate::place::Place;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Devices of this build that compute without a GPU.
const DEVICES: &[&str] = if cfg!(feature = "emulation") { &["cpu", "emulated"] } else { &["cpu"] };

/// A bench of the shape of a small golden model.
fn bench(what: &str, device: &str, more: &str, output: &Path) -> Command {
    let mut command = program();
    command.args(["bench", what, "--device", device, "--json"]).arg(output).args(more.split_whitespace());
    command
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {path} in {value}"))
}

#[test]
fn steps_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let mut losses = Vec::new();
    for device in DEVICES {
        let output = folder.path().join(device);
        let mut command = bench("step", device, "--random-weights 5 --tokens 50 --length 20 --prefix-length 6 --steps 2", &output);
        command.arg("--model").arg(golden("bert-classification").join("model"));
        if *device == "emulated" {
            command.args(["--profile-steps", "2:2"]);
        }
        let text = Run::from(command.output().unwrap()).ok();
        for part in ["random weights of seed 5", "50 tokens in 3 sequences", "tokens/s", "norm forward", "optimizer", "between operations"]
        {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let report = json(&output);
        assert_eq!((&report["kind"], &report["schema"]), (&Value::from("step"), &Value::from(1)));
        for path in [
            "/rates/copy_bytes_per_second",
            "/rates/product_flops_per_second",
            "/step/seconds",
            "/step/tokens_per_second",
            "/memory/planned_bytes",
            "/operations/0/seconds",
        ] {
            assert!(number(&report, path) > 0.0, "{path}: {report}");
        }
        let achieved = number(&report, "/step/flops") / number(&report, "/step/seconds");
        assert!((number(&report, "/step/flops_per_second") / achieved - 1.0).abs() < 1e-9);
        losses.push(number(&report, "/step/loss"));

        // What the specification says: 3 layers of width 48 with a feed-forward of 192, 50 tokens of which the last layer
        // needs 3 queries.
        let operations = report["operations"].as_array().unwrap();
        let named = |name: &str| operations.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}: {report}"));
        assert_eq!(number(named("linear 48 to 192"), "/calls"), 3.0);
        assert_eq!(number(named("linear 48 to 192"), "/flops"), 2.0 * 48.0 * 192.0 * (50.0 + 50.0 + 3.0));
        let pairs = |queries: [f64; 3]| queries.iter().zip([20.0, 20.0, 10.0]).map(|(q, k)| q * (k + 6.0)).sum::<f64>();
        let forward = 4.0 * 48.0 * (2.0 * pairs([20.0, 20.0, 10.0]) + pairs([1.0; 3]));
        assert_eq!(number(named("attention forward"), "/flops"), forward);
        let backward = if *device == "cpu" { &["attention backward"][..] } else { &["attention backward key", "attention backward query"] };
        for name in backward.iter().chain(&["prefix gradient", "attention delta", "embed", "head", "copies to the device"]) {
            assert!(number(named(name), "/seconds") > 0.0, "{name}");
        }
        let sum: f64 = operations.iter().map(|row| number(row, "/seconds")).sum();
        assert!(sum <= number(&report, "/table_step_seconds") * 1.001, "{report}");
    }
    // The same random weights, tokens and masks everywhere; the emulated device rounds to fp16.
    assert!(losses.iter().all(|loss| (loss / losses[0] - 1.0).abs() < 0.02), "{losses:?}");
}

/// Relative positions and their own head; two-dimensional positions, masks by separator and the pre-norm stream; causal
/// masks; rotations, grouped heads, norms of queries and keys, gated activations.
#[test]
fn steps_of_every_kind_of_model() {
    let folder = tempfile::tempdir().unwrap();
    for bundle in ["deberta-classification", "glm-classification", "gpt2-classification", "qwen3-classification"] {
        let mut losses = Vec::new();
        for device in DEVICES {
            let output = folder.path().join(format!("{bundle}-{device}"));
            let mut command = bench("step", device, "--random-weights --tokens 24 --length 10 --prefix-length 4 --steps 1", &output);
            command.arg("--model").arg(golden(bundle).join("model"));
            Run::from(command.output().unwrap()).ok();
            let report = json(&output);
            losses.push(number(&report, "/step/loss"));
            let operations = report["operations"].as_array().unwrap();
            assert!(operations.iter().any(|row| row["name"] == "attention forward" && number(row, "/flops") > 0.0), "{report}");
        }
        assert!(losses.iter().all(|loss| (loss / losses[0] - 1.0).abs() < 0.02), "{bundle}: {losses:?}");
    }
}

/// What others measure the same by: the configuration, the batch and the settings; nothing is measured.
#[test]
fn configurations_are_printed() {
    let mut command = program();
    command
        .args("bench step --architecture glm-10b --random-weights --tokens 700 --length 300 --prefix-length 16 --print-config".split(' '));
    let text = Run::from(command.output().unwrap()).ok();
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&found["config"]["model_type"], number(&found, "/config/hidden_size")), (&Value::from("glm"), 4096.0));
    assert_eq!(found["lengths"], serde_json::json!([300, 300, 100]));
    assert_eq!(
        ["tokens", "longest", "prefix_length", "steps"].map(|name| number(&found["settings"], &format!("/{name}"))),
        [700.0, 300.0, 16.0, 20.0]
    );
}

/// Without the packages that it measures it says so, and records nothing.
#[test]
fn peers_need_their_packages() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("peers.json");
    // Python's own library alone.
    let mut command = Command::new("python3");
    command.args(["-I", "-S", "benches/peers/measure.py", "--architecture", "bert-tiny", "--ptune", env!("CARGO_BIN_EXE_ptune"), "--json"]);
    let run = command.arg(&output).output().unwrap();
    let message = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && message.contains("torch, transformers, peft: not installed"), "{message}");
    assert!(!output.exists());
}

#[test]
fn operations_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    for device in DEVICES {
        let output = folder.path().join(device);
        let shapes = "--tokens 40 --length 16 --hidden 32 --ffn 64 --heads 4 --kv-heads 2 --head-dim 8 --prefix-length 3 --dtype bf16";
        let text = Run::from(bench("kernels", device, shapes, &output).output().unwrap()).ok();
        assert!(text.contains("40 tokens in sequences of 16"), "{text}");
        let report = json(&output);
        let kernels = report["kernels"].as_array().unwrap();
        let found = |name: &str, dropout: bool, prefix: usize| {
            let is = |row: &&Value| row["name"] == name && row["dropout"] == dropout && row["prefix_length"] == prefix;
            kernels.iter().find(is).unwrap_or_else(|| panic!("no {name}, {dropout}, {prefix}: {text}"))
        };
        for (name, cases) in [
            ("norm forward", &[(false, 0), (true, 0)][..]),
            ("norm backward", &[(false, 0), (true, 0)]),
            ("activation forward", &[(false, 0)]),
            ("activation backward", &[(false, 0)]),
            ("linear 32 to 64", &[(false, 0)]),
            ("input gradient 64 to 32", &[(false, 0)]),
            ("attention forward", &[(false, 0), (true, 0), (false, 3), (true, 3)]),
            ("attention backward", &[(false, 0), (true, 0), (false, 3), (true, 3)]),
            ("prefix gradient", &[(false, 3), (true, 3)]),
        ] {
            for &(dropout, prefix) in cases {
                assert!(number(found(name, dropout, prefix), "/seconds") > 0.0);
            }
        }
        // Sequences of 16, 16 and 8.
        let pairs = 2.0 * 16.0 * 16.0 + 8.0 * 8.0 + 40.0 * 3.0;
        assert_eq!(number(found("attention forward", true, 3), "/flops"), 4.0 * 32.0 * pairs);
        assert_eq!(kernels.iter().any(|row| row["name"] == "attention backward key"), *device == "emulated");
    }
}

/// Trains a named architecture on a golden model's texts and tokenizer.
fn train(folder: &Path, output: &str, more: &str) -> Run {
    let bundle = golden("bert-classification");
    let mut command = program();
    command.current_dir(folder).args(["train", "--output", output, "--task", "classification", "--max-steps", "2", "--batch-size", "4"]);
    command.arg("--tokenizer").arg(bundle.join("model")).arg("--data").arg(bundle.join("data.jsonl")).args(more.split_whitespace());
    Run::from(command.output().unwrap())
}

#[test]
fn a_named_architecture_is_trained_without_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let base = "--architecture bert-tiny --random-weights 3 --prefix-length 3 --device cpu";
    let text = train(folder.path(), "first", &format!("{base} --threads 1")).ok();
    assert!(text.contains("bert-tiny with random weights of seed 3"), "{text}");
    train(folder.path(), "second", &format!("{base} --threads 2")).ok();
    train(folder.path(), "other", &base.replace("weights 3", "weights 4")).ok();
    let state = |run: &str| files(&folder.path().join(run).join("checkpoint-2"));
    assert!(state("first") == state("second"), "the number of threads changes something");
    assert!(state("first")["adapter_model.safetensors"] != state("other")["adapter_model.safetensors"], "the seed changes nothing");

    // The configuration of a run holds what it needs to go on.
    std::fs::remove_file(folder.path().join("first/train_results.json")).unwrap();
    std::fs::remove_dir_all(folder.path().join("first/checkpoint-2")).unwrap();
    let before = state("second");
    let resumed = Run::from(program().current_dir(folder.path()).args(["train", "--output", "first", "--resume"]).output().unwrap());
    resumed.ok();
    assert!(state("first") == before, "a resumed run differs");
    if DEVICES.contains(&"emulated") {
        let base = base.replace("cpu", "emulated");
        train(folder.path(), "device", &format!("{base} --profile-steps 1:2")).ok();
    }
}

#[test]
fn wrong_models_and_values_are_named() {
    let place = Place::new("bert-classification");
    let long = "--task classification --data data.jsonl --output out";
    for (line, parts) in [
        ("bench step", &["--model is missing"][..]),
        ("bench step --architecture bert-base", &["bert-base", "--random-weights"]),
        ("bench step --architecture bert --random-weights", &["bert", "known: bert-tiny, ", "roberta-large"]),
        ("bench step --model model --architecture bert-base --random-weights", &["exclude each other"]),
        ("bench step --model model --steps 0", &["--steps 0"]),
        ("bench step --model model --tokens 0", &["--tokens 0"]),
        ("bench step --model model --hidden-dropout 1", &["--hidden-dropout 1"]),
        ("bench step --model model --length 3 --lengths f", &["--lengths"]),
        ("bench step --model model --steps 3 --profile-steps 3:4 --device cpu", &["--profile-steps 3:4", "--steps 3"]),
        ("bench step --model model --profile-steps 1 --device cpu", &["--profile-steps 1", "CPU"]),
        ("bench kernels --heads 4 --kv-heads 3", &["--kv-heads 3", "--heads 4"]),
        ("bench kernels --dropout 0", &["--dropout 0"]),
        (&format!("train --architecture bert-tiny --random-weights {long}"), &["--tokenizer is missing"]),
        (&format!("train --architecture bert-tiny {long}"), &["--random-weights"]),
        (&format!("train --random-weights {long}"), &["--architecture"]),
        (&format!("train --model model --profile-steps 4:3 {long}"), &["--profile-steps", "4:3"]),
        (&format!("train --model model --profile-steps 3 --device cpu {long}"), &["--profile-steps 3", "CPU"]),
    ] {
        place.refuses(2, line, parts);
    }
    place.write("lengths", "12\n-3\n");
    place.refuses(1, "bench step --model model --lengths lengths --device cpu", &["lengths, line 2", "`-3`"]);
    place.refuses(1, "bench step --model model --length 190 --device cpu", &["at most 172", "--positions unshifted"]);
    place.refuses(1, "bench step --model model --json nowhere/file --device cpu", &["nowhere", "no such folder"]);
    place.refuses(1, "bench step --model nowhere --random-weights --device cpu", &["nowhere", "no such directory"]);
    assert_eq!(ptune(["bench"]).code, Some(2));
}

/// A library in a profiler's place, which writes down the ranges that it is told of.
const PROFILER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
typedef void (*function)(void);
struct callbacks { size_t size; int (*table)(int module, function*** table, unsigned* size); };
static FILE* out;
static __thread int depth;
static int push(const char* name) { fprintf(out, "%d %s\n", depth, name); return depth++; }
static int pop(void) { fflush(out); return --depth; }
int InitializeInjectionNvtx2(const void* (*export_table)(unsigned)) {
    const struct callbacks* callbacks = export_table(1);
    function** table;
    unsigned size;
    out = fopen(getenv("RANGES"), "w");
    if (!out || !callbacks || !callbacks->table(1, &table, &size) || size <= 11) return 0;
    *table[9] = (function)push;
    *table[11] = (function)pop;
    return 1;
}
"#;

#[test]
fn profilers_are_told_of_steps_phases_layers_and_operations() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("profiler.c"), PROFILER).unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let built = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(path("profiler.so")).arg(path("profiler.c")).status();
    assert!(built.unwrap().success());
    let bundle = golden("bert-classification");
    let mut command = program();
    command
        .current_dir(folder.path())
        .args("train --task classification --max-steps 2 --batch-size 3 --device cpu --output run".split(' '));
    command.arg("--model").arg(bundle.join("model")).arg("--data").arg(bundle.join("data.jsonl"));
    command.env("NVTX_INJECTION64_PATH", path("profiler.so")).env("RANGES", path("ranges"));
    Run::from(command.output().unwrap()).ok();
    let ranges = std::fs::read_to_string(path("ranges")).unwrap();
    let lines: Vec<&str> = ranges.lines().collect();
    let count = |line: &str| lines.iter().filter(|found| **found == line).count();
    for step in ["0 step 1", "0 step 2"] {
        assert_eq!(count(step), 1, "{ranges}");
    }
    // Three layers forward and back in both steps; the head goes back at once.
    for line in ["2 layer 1", "2 layer 3"] {
        assert_eq!(count(line), 4, "{line}");
    }
    for (line, times) in [("1 batch", 2), ("1 forward", 2), ("1 backward", 2), ("1 optimizer", 2), ("2 embedding", 2), ("2 head", 2)] {
        assert_eq!(count(line), times, "{line}");
    }
    assert_eq!(count("3 attention forward"), 6);
    assert!(count("3 linear 48 to 192") == 6 && count("2 adamw") > 0, "{ranges}");
}

/// Modes of two shapes: planned for a GPU, and measured here.
#[test]
fn memory_is_planned_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    let (file, chart) = (folder.path().join("memory.json"), folder.path().join("memory.svg"));
    let line = "bench memory --architectures bert-tiny --modes none,layer+streamed --tokens 64 --length 16 --prefix-length 4 --steps 1";
    let run = |more: &[&str]| {
        let paths = ["--json", file.to_str().unwrap(), "--plot", chart.to_str().unwrap()];
        ptune(line.split_whitespace().chain(more.iter().copied()).chain(paths)).ok()
    };
    let said = run(&["--plan-only"]);
    let planned = json(&file);
    let bytes = |case: usize| planned["cases"][case]["planned"]["device_peak_bytes"].as_u64().unwrap();
    assert!(bytes(0) > 0 && planned["cases"][0]["measured"].is_null() && planned["cases"][1]["mode"] == "layer+streamed", "{planned}");
    assert!(said.contains("full fine-tuning, activation checkpointing"), "{said}");
    assert!(text(&chart).starts_with("<svg"));

    run(&["--device", "cpu"]);
    let measured = json(&file);
    for case in measured["cases"].as_array().unwrap() {
        assert!(case["measured"]["status"] == "measured" && case["measured"]["tokens_per_second"].as_f64().unwrap() > 0.0, "{case}");
    }
    ptune("bench memory --modes layers".split_whitespace()).error(2, &["is no mode", "up-projection"]);
    ptune("bench memory --architectures nothing".split_whitespace()).error(2, &["known: "]);
}
