//! Memory of training steps, mode by mode: planned, and measured where there is a device for it, beside what other ways of
//! tuning the same model take by formulas.

use super::step::{StepOptions, step};
use super::{Report, now, with_unit};
use crate::checkpoint::WeightFormat;
use crate::engine::{Bytes, MemoryMode};
use crate::run::base::BaseOptions;
use crate::run::device;
use crate::run::plan::{self, PlanOptions};
use crate::run::plot::{Bar, stacked_bars};
use crate::run::terminal::Terminal;
use crate::run::trainer::write_text;
use crate::run::values::{Device, Offset};
use crate::usage;
use anyhow::Result;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;

#[derive(Clone, Debug, clap::Args)]
pub struct MemoryOptions {
    /// Published shapes by name; weights are drawn at random
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "roberta-large,glm-2b,glm-10b", help_heading = "Cases")]
    pub architectures: Vec<String>,
    /// Modes: what is recomputed (none, up-projection, layer), with +offloaded behind it where activations are offloaded, and
    /// +streamed where weights are streamed
    #[arg(
        long,
        value_name = "MODE,...",
        value_delimiter = ',',
        default_value = "none,up-projection,layer,layer+streamed,layer+offloaded+streamed",
        help_heading = "Cases"
    )]
    pub modes: Vec<MemoryMode>,
    /// How the layers' matrices are kept in all of them: fp16, or int8 (8 bits and a factor a row)
    #[arg(long, value_name = "FORMAT", default_value = "fp16", hide_possible_values = true, help_heading = "Cases")]
    pub weight_format: WeightFormat,
    /// Plan alone; nothing runs
    #[arg(long, help_heading = "Cases")]
    pub plan_only: bool,
    /// Prefix positions per layer
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Step")]
    pub prefix_length: usize,
    /// Tokens of a step
    #[arg(long, value_name = "N", default_value_t = 8192, help_heading = "Step")]
    pub tokens: usize,
    /// Length of every sequence; shorter where a model's positions are fewer
    #[arg(long, value_name = "L", default_value_t = 256, help_heading = "Step")]
    pub length: usize,
    /// Steps that are timed
    #[arg(long, value_name = "K", default_value_t = 3, help_heading = "Step")]
    pub steps: u64,
    /// auto, cpu, cuda or cuda:N; auto without a GPU plans alone
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    pub device: Device,
    /// Draw all figures as bars (SVG)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub plot: Option<PathBuf>,
}

/// Plans and measures every architecture in every mode.
pub fn memory(options: &MemoryOptions, terminal: &Terminal) -> Result<Report> {
    let device = device::resolve(options.device, terminal)?;
    let no_gpu = device == Device::Cpu && options.device == Device::Auto;
    let measures = !(options.plan_only || no_gpu);
    if no_gpu && !options.plan_only {
        terminal.line("there is no GPU: everything is planned, nothing is measured (--device cpu measures here)");
    }
    let mut cases = Vec::new();
    let mut others = Vec::new();
    for name in &options.architectures {
        let base = BaseOptions { architecture: Some(name.clone()), random_weights: Some(0), ..BaseOptions::default() };
        base.validate()?;
        let spec = base.shape()?.spec;
        let length = options.length.min(spec.longest_sequence(0));
        if length == 0 || options.tokens == 0 {
            usage!("--length and --tokens must be above 0");
        }
        let shifted = spec.longest_sequence(options.prefix_length) >= length;
        let positions = if shifted { Offset::Shifted } else { Offset::Unshifted };
        let planned = plan::plan(&PlanOptions {
            base: base.clone(),
            prefix_length: options.prefix_length,
            prefix_projection: None,
            tokens_per_step: Some(options.tokens),
            batch_size: None,
            length,
            positions: Some(positions),
            budget: None,
            recompute: None,
            weights: None,
            offload_activations: None,
            layer_major: None,
            weight_format: options.weight_format,
            micro_batch_tokens: None,
            context: None,
            // What is not measured is planned for a GPU.
            device: if measures { device } else { Device::Cuda(0) },
            tflops: None,
            bandwidth: None,
            bus: None,
            plot: None,
        })?
        .json;
        others.push(json!({"architecture": name, "methods": planned["others"]}));
        for &mode in &options.modes {
            let planned_mode = MemoryMode::every().position(|known| known == mode).map_or(&Value::Null, |index| &planned["modes"][index]);
            let measured = if measures {
                terminal.line(format!("measuring {name}, {mode}"));
                measure(options, &base, length, positions, mode, device, terminal)
            } else {
                Value::Null
            };
            cases.push(json!({
                "architecture": name,
                "mode": mode.to_string(),
                "planned": planned_mode,
                "full_finetuning_bytes": planned["full_finetuning_bytes"],
                "measured": measured,
            }));
        }
    }
    let report = json!({
        "kind": "memory",
        "schema": 1,
        "date": now(),
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("PTUNE_COMMIT"),
        "settings": {
            "tokens": options.tokens,
            "length": options.length,
            "prefix_length": options.prefix_length,
            "weight_format": options.weight_format.name(),
            "steps": options.steps,
        },
        "cases": cases,
        "others": others,
    });
    if let Some(path) = &options.plot {
        write_text(path, &chart(&report)?)?;
    }
    Ok(Report { text: text(&report), json: report })
}

/// A case's figures; what keeps it from running is part of the record.
fn measure(
    options: &MemoryOptions,
    base: &BaseOptions,
    length: usize,
    positions: Offset,
    mode: MemoryMode,
    device: Device,
    terminal: &Terminal,
) -> Value {
    let options = StepOptions {
        base: base.clone(),
        prefix_length: options.prefix_length,
        tokens: options.tokens,
        length: Some(length),
        lengths: None,
        steps: options.steps,
        positions,
        prefix_dropout: 0.1,
        hidden_dropout: 0.1,
        attention_dropout: None,
        seed: 42,
        recompute: mode.recompute,
        weights: mode.weights,
        offload_activations: mode.offload,
        micro_batch_tokens: None,
        layer_major: mode.together,
        weight_format: options.weight_format,
        profile_steps: None,
        print_config: false,
        device,
    };
    match step(&options, terminal) {
        Ok(report) => json!({
            "status": "measured",
            "machine": report.json["machine"],
            "arena_bytes": report.json["memory"]["planned_bytes"],
            "device_grown_bytes": report.json["memory"]["device_grown_bytes"],
            "device_used_bytes": report.json["memory"]["device_used_bytes"],
            "peak_resident_bytes": report.json["memory"]["peak_resident_bytes"],
            "step_seconds": report.json["step"]["seconds"],
            "tokens_per_second": report.json["step"]["tokens_per_second"],
        }),
        Err(error) => {
            let reason = format!("{error:#}");
            let status = if reason.contains("cannot allocate") || reason.contains("cannot pin") { "out of memory" } else { "failed" };
            json!({"status": status, "reason": reason})
        }
    }
}

fn bytes(value: &Value) -> String {
    value.as_u64().map_or("-".into(), |bytes| Bytes(bytes as usize).to_string())
}

fn text(report: &Value) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut row = |cells: [&str; 6]| {
        let [name, mode, planned, host, measured, speed] = cells;
        let _ = writeln!(text, "{name:<18} {mode:<44} {planned:>10} {host:>10} {measured:>14} {speed:>16}");
    };
    row(["model", "mode, or another way (formulas)", "planned", "host", "measured", "speed"]);
    for case in report["cases"].as_array().into_iter().flatten() {
        let measured = &case["measured"];
        let (memory, speed) = match measured["status"].as_str() {
            Some("measured") => {
                let speed = measured["tokens_per_second"].as_f64().map_or("-".into(), |speed| with_unit(speed, "tokens/s"));
                let memory = [&measured["device_grown_bytes"], &measured["peak_resident_bytes"]].into_iter().find(|value| !value.is_null());
                (memory.map_or("-".into(), bytes), speed)
            }
            Some(status) => (status.to_string(), "-".into()),
            None => ("-".into(), "-".into()),
        };
        let planned = &case["planned"];
        row([
            case["architecture"].as_str().unwrap_or_default(),
            case["mode"].as_str().unwrap_or_default(),
            &bytes(&planned["device_peak_bytes"]),
            &bytes(&planned["host_peak_bytes"]),
            &memory,
            &speed,
        ]);
    }
    for other in report["others"].as_array().into_iter().flatten() {
        for method in other["methods"].as_array().into_iter().flatten() {
            let (name, how) = (other["architecture"].as_str().unwrap_or_default(), method["method"].as_str().unwrap_or_default());
            row([name, how, &bytes(&method["device_peak_bytes"]), "-", "-", "-"]);
        }
    }
    text
}

/// A bar a figure.
fn chart(report: &Value) -> Result<String> {
    let gib = |value: &Value| value.as_f64().unwrap_or(0.0) / (1u64 << 30) as f64;
    let mut bars = Vec::new();
    for case in report["cases"].as_array().into_iter().flatten() {
        let name = format!("{}, {}", case["architecture"].as_str().unwrap_or_default(), case["mode"].as_str().unwrap_or_default());
        bars.push(Bar { name: name.clone(), parts: vec![gib(&case["planned"]["device_peak_bytes"])] });
        if let Some(used) = case["measured"]["device_grown_bytes"].as_f64() {
            bars.push(Bar { name: format!("{name}: measured"), parts: vec![0.0, used / (1u64 << 30) as f64] });
        }
    }
    for other in report["others"].as_array().into_iter().flatten() {
        for method in other["methods"].as_array().into_iter().flatten() {
            let name = format!("{}, {}", other["architecture"].as_str().unwrap_or_default(), method["method"].as_str().unwrap_or_default());
            bars.push(Bar { name, parts: vec![0.0, 0.0, gib(&method["device_peak_bytes"])] });
        }
    }
    stacked_bars("GiB of device memory", &["ptune, planned", "ptune, measured", "others, by formulas"], &bars)
}
