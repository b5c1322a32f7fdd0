//! README.md's section "Measured" is what benches/results/*.json say, and its table of planned memory what `ptune plan` says.
//! UPDATE_README=1 writes them.

use crate::command::{Run, program};
use serde_json::Value;
use std::path::Path;

const BEGIN: &str = "<!-- made from benches/results by tests/suite/measured.rs; UPDATE_README=1 writes it anew -->\n";
const PLANNED: &str = "<!-- made from `ptune plan` by tests/suite/measured.rs; UPDATE_README=1 writes it anew -->\n";
const END: &str = "<!-- end -->\n";
const NOTHING: &str = "Nothing was measured on a GPU yet: no speed is claimed.\n";

fn number(value: &Value, field: &str) -> Option<f64> {
    value.pointer(field).and_then(Value::as_f64)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.pointer(field).and_then(Value::as_str).unwrap_or("-")
}

/// A number in a unit, or a dash where it was not measured.
fn cell(value: Option<f64>, unit: f64, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{:.digits$}", value / unit))
}

/// Whole numbers with a comma between thousands.
fn grouped(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| ptune::run::memory::grouped(value.round() as u64))
}

fn day(report: &Value) -> &str {
    text(report, "/date").split('T').next().unwrap_or("-")
}

/// The model's name, and the mode that it was trained in where that is not the plain one.
fn model(report: &Value) -> String {
    let name = text(report, "/model/name");
    let recompute = report.pointer("/settings/recompute").and_then(Value::as_str).filter(|&what| what != "none");
    let weights = report.pointer("/settings/weights").and_then(Value::as_str).filter(|&what| what != "resident");
    let offloaded = (report["settings"]["offload_activations"] == true).then_some("offloaded");
    let format = report.pointer("/settings/weight_format").and_then(Value::as_str).filter(|&what| what != "fp16");
    let together = number(report, "/settings/layer_major").filter(|&count| count > 1.0);
    let recompute = recompute.map(|what| format!("recompute {what}"));
    let others = [offloaded, weights, format].into_iter().flatten().map(String::from);
    let together = together.map(|count| format!("{count} micro-batches a layer"));
    let mode: Vec<String> = recompute.into_iter().chain(others).chain(together).collect();
    if mode.is_empty() { name.into() } else { format!("{name} ({})", mode.join(", ")) }
}

/// Tables of steps and of single operations.
fn render(reports: &[Value]) -> String {
    let of_kind = |kind: &'static str| reports.iter().filter(move |report| report["kind"] == kind);
    let mut out = String::new();
    if of_kind("step").next().is_some() {
        out += "Training steps (all dropouts on; the share is of the matrix products' rate measured by the same command):\n\n";
        out += "| GPU | model | tokens a step | longest | prefix | ms | tokens/s | TFLOP/s | share | planned GiB | measured GiB | date |\n";
        out += "|---|---|---|---|---|---|---|---|---|---|---|---|\n";
    }
    for report in of_kind("step") {
        let cells = [
            text(report, "/machine/device").to_string(),
            model(report),
            grouped(number(report, "/settings/tokens")),
            grouped(number(report, "/settings/longest")),
            grouped(number(report, "/settings/prefix_length")),
            cell(number(report, "/step/seconds"), 1e-3, 1),
            grouped(number(report, "/step/tokens_per_second")),
            cell(number(report, "/step/flops_per_second"), 1e12, 1),
            cell(number(report, "/step/share_of_product_rate"), 0.01, 0) + " %",
            cell(number(report, "/memory/planned_bytes"), f64::from(1 << 30), 2),
            cell(number(report, "/memory/device_grown_bytes"), f64::from(1 << 30), 2),
            day(report).to_string(),
        ];
        out += &format!("| {} |\n", cells.join(" | "));
    }
    for report in of_kind("kernels") {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &format!(
            "Single operations, {} on {} ({} tokens in sequences of {}, head dim {}; {}):\n\n",
            text(report, "/settings/element_type"),
            text(report, "/machine/device"),
            grouped(number(report, "/settings/tokens")),
            grouped(number(report, "/settings/length")),
            grouped(number(report, "/settings/head_dim")),
            day(report)
        );
        out += "| operation | dropout | prefix | µs | GB/s | of copies | TFLOP/s | of products |\n|---|---|---|---|---|---|---|---|\n";
        for kernel in report["kernels"].as_array().into_iter().flatten().filter(|kernel| kernel["part"] != true) {
            let work = |field: &str, unit: f64| cell(number(kernel, field).filter(|&value| value > 0.0), unit, 0);
            let cells = [
                text(kernel, "/name").to_string(),
                if kernel["dropout"] == true { "yes" } else { "no" }.to_string(),
                grouped(number(kernel, "/prefix_length")),
                cell(number(kernel, "/seconds"), 1e-6, 1),
                work("/bytes_per_second", 1e9),
                work("/share_of_copy_rate", 0.01) + " %",
                work("/flops_per_second", 1e12),
                work("/share_of_product_rate", 0.01) + " %",
            ];
            out += &format!("| {} |\n", cells.join(" | ").replace("- %", "-"));
        }
    }
    for report in of_kind("memory") {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &format!(
            "Memory of steps of {} tokens, prefix {} ({}):\n\n",
            grouped(number(report, "/settings/tokens")),
            grouped(number(report, "/settings/prefix_length")),
            day(report)
        );
        out += "| GPU | model | mode | planned GiB | measured GiB | tokens/s | full fine-tuning, planned GiB |\n|---|---|---|---|---|---|---|\n";
        for case in report["cases"].as_array().into_iter().flatten() {
            let gib = |field: &str| cell(number(case, field), f64::from(1 << 30), 2);
            let measured = match text(case, "/measured/status") {
                "measured" => gib("/measured/device_grown_bytes"),
                status => status.to_string(),
            };
            let cells = [
                text(case, "/measured/machine/device").to_string(),
                text(case, "/architecture").to_string(),
                text(case, "/mode").to_string(),
                gib("/planned/device_peak_bytes"),
                measured,
                grouped(number(case, "/measured/tokens_per_second")),
                gib("/full_finetuning_bytes"),
            ];
            out += &format!("| {} |\n", cells.join(" | "));
        }
    }
    if out.is_empty() { NOTHING.into() } else { out }
}

/// Ways to tune GLM-10B, planned.
fn planned() -> String {
    let line = "plan --architecture glm-10b --prefix-length 128 --tokens-per-step 16384 --json";
    let plan = |more: &str| -> Value {
        let output = program().args(line.split_whitespace().chain(more.split_whitespace())).output().unwrap();
        serde_json::from_str(&Run::from(output).ok()).unwrap()
    };
    let mut out = "| way | device GiB | host GiB | ms a step, at least |\n|---|---|---|---|\n".to_string();
    let mut row = |name: &str, way: &Value| {
        let gib = |field: &str| cell(number(way, field), f64::from(1 << 30), 1);
        let cells = [name.into(), gib("/device_peak_bytes"), gib("/host_peak_bytes"), cell(number(way, "/step_seconds"), 1e-3, 0)];
        out += &format!("| {} |\n", cells.join(" | "));
    };
    let plain = plan("");
    row("recompute nothing", &plain);
    row("recompute up-projections", &plan("--recompute up-projection"));
    row("recompute layers", &plan("--recompute layer"));
    for budget in ["24GiB", "4GiB"] {
        let chosen = plan(&format!("--budget {budget}"));
        let offloaded = if chosen["offload_activations"] == true { ", offloaded" } else { "" };
        let (recompute, weights) = (text(&chosen, "/recompute"), text(&chosen, "/weights"));
        let tokens = grouped(number(&chosen, "/micro_batch_tokens"));
        row(
            &format!("`--budget {budget}`: recompute {recompute}{offloaded}, weights {weights}, micro-batches of {tokens} tokens"),
            &chosen,
        );
    }
    for other in plain["others"].as_array().into_iter().flatten() {
        row(&format!("{}, by formula", text(other, "/method")), other);
    }
    out
}

/// What a file holds: one measurement, or those of a run of the suite.
fn measurements(path: &Path, report: Value) -> Vec<Value> {
    assert_eq!(report["schema"], 1, "{path:?}");
    assert!(!report.to_string().contains("emulated"), "{path:?} was not measured on a GPU");
    match report["kind"].as_str().unwrap_or_default() {
        "step" | "kernels" | "memory" => vec![report],
        "suite" => {
            assert_eq!(report["tiny"], false, "{path:?}: tiny shapes say nothing of speed");
            let parts = report["parts"].as_array().into_iter().flatten();
            parts.filter_map(|part| part.get("measured").cloned()).flat_map(|report| measurements(path, report)).collect()
        }
        other => panic!("{path:?}: what kind is {other:?}?"),
    }
}

fn reports(folder: &Path) -> Vec<Value> {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let report = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        measurements(path, report)
    };
    paths.iter().flat_map(read).collect()
}

#[test]
fn the_readme_says_what_was_measured() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let mut wanted = readme.clone();
    for (begin, rendered) in [(BEGIN, render(&reports(&root.join("benches/results")))), (PLANNED, planned())] {
        let start = wanted.find(begin).expect("README.md has the section's beginning") + begin.len();
        let end = start + wanted[start..].find(END).expect("README.md has the section's end");
        wanted.replace_range(start..end, &rendered);
    }
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(root.join("README.md"), wanted).unwrap();
    } else {
        assert!(readme == wanted, "README.md's tables are older than what they are made from: run this test with UPDATE_README=1");
    }
}

#[test]
fn tables_hold_the_figures() {
    assert_eq!(render(&[]), NOTHING);
    let step = serde_json::json!({
        "kind": "step", "schema": 1, "date": "2026-01-31T10:00:00Z", "machine": {"device": "GPU X"}, "model": {"name": "roberta-large"},
        "settings": {"tokens": 16384, "longest": 256, "prefix_length": 128},
        "step": {"seconds": 0.1, "tokens_per_second": 163840.0, "flops_per_second": 3e14, "share_of_product_rate": 0.456},
        "memory": {"planned_bytes": 3u64 << 30, "device_grown_bytes": null},
    });
    let kernels = serde_json::json!({
        "kind": "kernels", "schema": 1, "date": "2026-01-31T10:00:00Z", "machine": {"device": "GPU X"},
        "settings": {"element_type": "fp16", "tokens": 16384, "length": 512, "head_dim": 64},
        "kernels": [
            {"name": "norm forward", "part": false, "dropout": true, "prefix_length": 0, "seconds": 5e-5, "bytes_per_second": 2e12,
             "flops_per_second": 0.0, "share_of_copy_rate": 0.8, "share_of_product_rate": 0.0},
            {"name": "a launch of it", "part": true},
        ],
    });
    let memory = serde_json::json!({
        "kind": "memory", "schema": 1, "date": "2026-01-31T10:00:00Z", "settings": {"tokens": 8192, "prefix_length": 128},
        "cases": [
            {"architecture": "glm-10b", "mode": "layer", "planned": {"device_peak_bytes": 24u64 << 30}, "full_finetuning_bytes": 152u64 << 30,
             "measured": {"status": "measured", "device_grown_bytes": 25u64 << 30, "tokens_per_second": 9000.4, "machine": {"device": "GPU X"}}},
            {"architecture": "glm-10b", "mode": "none", "planned": {"device_peak_bytes": 50u64 << 30}, "measured": {"status": "out of memory"}},
        ],
    });
    let text = render(&[memory]);
    assert!(text.contains("| GPU X | glm-10b | layer | 24.00 | 25.00 | 9,000 | 152.00 |\n"), "{text}");
    assert!(text.contains("| - | glm-10b | none | 50.00 | out of memory | - | - |\n"), "{text}");
    let mut streamed = step.clone();
    (streamed["settings"]["recompute"], streamed["settings"]["weights"]) = ("layer".into(), "streamed".into());
    assert!(render(&[streamed]).contains("| GPU X | roberta-large (recompute layer, streamed) | 16,384 |"));
    let text = render(&[kernels.clone(), step.clone()]);
    let parts = [
        serde_json::json!({"name": "selftest", "status": "passed"}),
        serde_json::json!({"measured": kernels}),
        serde_json::json!({"measured": step}),
    ];
    let suite = serde_json::json!({"kind": "suite", "schema": 1, "tiny": false, "parts": parts});
    assert_eq!(render(&measurements(Path::new("suite.json"), suite)), text);
    let step = "| GPU X | roberta-large | 16,384 | 256 | 128 | 100.0 | 163,840 | 300.0 | 46 % | 3.00 | - | 2026-01-31 |\n";
    assert!(text.contains(step), "{text}");
    assert!(text.contains("| norm forward | yes | 0 | 50.0 | 2000 | 80 % | - | - |\n") && !text.contains("a launch of it"), "{text}");
}
