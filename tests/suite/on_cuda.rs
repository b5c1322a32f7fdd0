//! Whole commands on the emulated CUDA device: the same training, evaluation and prediction as on the CPU, in fp16.

use crate::bundle::golden;
use crate::command::{Run, files, json_lines, program};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Every kind of dropout, projection, micro-batches and a validation on the way.
const FLAGS: &str = "--prefix-length 5 --prefix-projection 12 --prefix-dropout 0.2 --hidden-dropout 0.1 --attention-dropout 0.1 \
    --batch-size 5 --gradient-accumulation 2 --learning-rate 1e-2 --eval-every 4 --save-every 3 --task classification";

fn train(folder: &Path, bundle: &str, device: &str, more: &str) -> Command {
    let mut command = program();
    let data = golden(bundle).join("data.jsonl");
    command.current_dir(folder).args(["train", "--output", "run", "--device", device]);
    command.arg("--model").arg(golden(bundle).join("model")).arg("--data").arg(&data).arg("--validation").arg(&data);
    command.args(FLAGS.split_whitespace()).args(more.split_whitespace());
    command
}

fn finish(mut command: Command) -> String {
    Run::from(command.output().unwrap()).ok()
}

fn losses(folder: &Path) -> Vec<f64> {
    json_lines(&folder.join("run/metrics.jsonl")).iter().filter_map(|row| row.get("loss").and_then(Value::as_f64)).collect()
}

#[test]
fn trains_as_the_cpu_does() {
    for bundle in ["bert-classification", "roberta-classification"] {
        let [cpu, cuda, again] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        finish(train(cpu.path(), bundle, "cpu", "--max-steps 6"));
        let said = finish(train(cuda.path(), bundle, "emulated", "--max-steps 6"));
        assert!(said.contains("emulated CUDA, fp16"), "{said}");
        let [expected, found] = [cpu.path(), cuda.path()].map(losses);
        assert_eq!((expected.len(), found.len()), (6, 6));
        for (step, (expected, found)) in expected.iter().zip(&found).enumerate() {
            // The same masks and examples: in the first step only rounding differs (a loss of order one in fp16); later
            // AdamW may turn small differences of gradients into whole steps of the rate.
            let tolerance = if step == 0 { 4.0 * 2f64.powi(-11) } else { 0.05 };
            assert!((expected - found).abs() <= tolerance, "{bundle}, step {step}: {found}, on the CPU {expected}");
        }

        // Stopped after four steps and gone on with: the same bits.
        // Once more, everything on the device as late as may be.
        let mut late = train(again.path(), bundle, "emulated", "--max-steps 6");
        late.env("PTUNE_EMULATED_TIMING", "late");
        finish(late);
        let [first, second] = [cuda.path(), again.path()].map(|folder| files(&folder.join("run/checkpoint-6")));
        assert!(first == second, "two runs differ");
        std::fs::remove_dir_all(again.path().join("run/checkpoint-6")).unwrap();
        std::fs::remove_file(again.path().join("run/train_results.json")).unwrap();
        finish(train(again.path(), bundle, "emulated", "--max-steps 6 --resume"));
        assert!(files(&again.path().join("run/checkpoint-6")) == first, "a resumed run differs");
    }
}

#[test]
fn evaluates_and_predicts() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = golden("bert-tagging");
    let predictions = ["cpu", "emulated"].map(|device| {
        let mut command = program();
        let output = folder.path().join(device);
        command.args(["predict", "--device", device, "--with", "logits", "--model"]).arg(bundle.join("model"));
        command.arg("--adapter").arg(bundle.join("adapter")).arg("--input").arg(bundle.join("data.jsonl")).arg("--output").arg(&output);
        command.args(["--task", "tagging"]);
        finish(command);
        json_lines(&output)
    });
    assert_eq!(predictions[0].len(), predictions[1].len());
    let logits = |rows: &[Value]| -> Vec<f64> {
        fn numbers(value: &Value, to: &mut Vec<f64>) {
            match value {
                Value::Array(values) => values.iter().for_each(|value| numbers(value, to)),
                other => to.extend(other.as_f64()),
            }
        }
        let mut found = Vec::new();
        rows.iter().for_each(|row| numbers(&row["logits"], &mut found));
        found
    };
    let [cpu, cuda] = [&predictions[0], &predictions[1]].map(|rows| logits(rows));
    assert!(!cpu.is_empty() && cpu.len() == cuda.len());
    let largest = cpu.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    for (cpu, cuda) in cpu.iter().zip(&cuda) {
        // A few layers, each rounding its output a few times.
        assert!((cpu - cuda).abs() <= 16.0 * 2f64.powi(-11) * largest, "{cuda}, on the CPU {cpu}");
    }
}

/// The checks that a user runs, a third of them.
#[test]
fn selftest_passes() {
    for device in ["cpu", "emulated"] {
        let said = finish({
            let mut command = program();
            command.args(["selftest", "--quick", "--device", device]);
            command
        });
        for part in ["attention, backward", "post-norm (BERT)", "planned memory", "all checks passed"] {
            assert!(said.contains(part), "{device}: {said}");
        }
        assert_eq!(said.contains("mma_bf16"), device == "emulated");
    }
}
