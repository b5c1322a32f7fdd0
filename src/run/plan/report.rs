//! What a plan says: a table for people, one JSON object for programs, a chart.

use super::candidates::{Candidate, StepTime};
use super::others::Estimate;
use super::{Found, PlanOptions, Target};
use crate::engine::{Bytes, MemoryMode};
use crate::run::bench::{Report, with_unit};
use crate::run::memory::grouped;
use crate::run::plot::{Bar, stacked_bars};
use crate::run::trainer::write_text;
use anyhow::Result;
use serde_json::{Value, json};
use std::fmt::Write;

/// What the parts of a chart are called, from the bottom up.
const KINDS: [&str; 5] = ["weights", "gradients and optimizer", "saved activations", "working memory", "CUDA context"];

/// Which of them a part of a plan belongs to.
fn kind(part: &str) -> usize {
    match part {
        "frozen weights" | "streamed layers" | "dequantised weights" | "weights and gradients" => 0,
        "trained tensors" | "gradients" | "first moments" | "second moments" | "projected prefix" => 1,
        "optimizer" | "trained parameters" | "prefix of every sequence" => 1,
        "saved activations" => 2,
        _ => 3,
    }
}

/// All of it; the chart is written where `options` say.
pub fn report(options: &PlanOptions, target: &Target, found: &Found) -> Result<Report> {
    if let Some(path) = &options.plot {
        write_text(path, &target.chart(options, found)?)?;
    }
    Ok(Report { text: target.text(options, found), json: target.json(options, found) })
}

impl Target {
    fn text(&self, options: &PlanOptions, found: &Found) -> String {
        let (spec, chosen) = (&self.shape.spec, &found.chosen);
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<20} {value}");
        };
        let (parameters, h) = (grouped(spec.parameters() as u64), spec.hidden_size);
        line("model", format!("{}: {parameters} parameters, {} layers of {h}", options.base.name(), spec.layers));
        let (tokens, length) = (grouped(found.tokens as u64), options.length);
        line("step", format!("{tokens} tokens in sequences of {length}; prefix {}", options.prefix_length));
        let batches = format!("{} micro-batch{}", found.batches, if found.batches == 1 { "" } else { "es" });
        let of = grouped(chosen.micro_batch_tokens as u64);
        let format = options.weight_format.name();
        line("mode", format!("{} in {format}; {batches} of up to {of} tokens", chosen.memory.describe()));
        for region in &chosen.regions {
            line(&format!("  {}", region.name), format!("{:>10}  {}", Bytes(region.bytes).to_string(), region.formula));
            for (name, bytes) in &region.parts {
                line("", format!("{:>10}  {name}: {}", "", Bytes(*bytes)));
            }
        }
        if self.context > 0 {
            let how = if options.context.is_some() { "as given" } else { "assumed" };
            line("  CUDA context", format!("{:>10}  {how}", Bytes(self.context).to_string()));
        }
        line("memory", format!("{:>10}  planned, in all", Bytes(self.peak(chosen)).to_string()));
        if chosen.mapped > 0 {
            line("mapped", format!("{:>10}  frozen matrices read in their files", Bytes(chosen.mapped).to_string()));
        }
        line("host", format!("{:>10}  at most", Bytes(self.host_peak(chosen)).to_string()));
        let given = [options.tflops, options.bandwidth, options.bus].iter().any(Option::is_some);
        line(
            "time",
            format!(
                "{:.1} ms a step at least, {} tokens/s at most, at {} in products, {} in copies, {} to the host ({})",
                1e3 * found.time.seconds,
                grouped((found.tokens as f64 / found.time.seconds).round() as u64),
                with_unit(self.speed.product, "FLOP/s"),
                with_unit(self.speed.copy, "B/s"),
                with_unit(self.speed.bus, "B/s"),
                if given { "as given" } else { "an H200's, assumed" }
            ),
        );
        let heads = ("by mode, and otherwise (formulas)", "memory", "ms a step", "FLOPs");
        let _ = writeln!(text, "\n{:<58} {:>10} {:>10} {:>11}", heads.0, heads.1, heads.2, heads.3);
        let mut row = |name: String, bytes: usize, seconds: f64, more: String| {
            let _ = writeln!(text, "{name:<58} {:>10} {:>10.1} {more:>11}", Bytes(bytes).to_string(), 1e3 * seconds);
        };
        let plain = found.modes.first().map_or(found.time.flops, |(time, _)| time.flops);
        let more = |flops: f64| format!("{:+.1}%", 100.0 * (flops / plain - 1.0));
        for (time, candidate) in &found.modes {
            let name = MemoryMode { together: 1, ..candidate.memory }.describe();
            row(name, self.peak(candidate), time.seconds, more(time.flops));
        }
        for other in &found.others {
            row(other.method.to_string(), self.peak_of(other), self.seconds_of(other), more(other.flops));
        }
        text
    }

    /// Bytes of another way on the same device.
    fn peak_of(&self, other: &Estimate) -> usize {
        other.bytes() as usize + self.context
    }

    fn seconds_of(&self, other: &Estimate) -> f64 {
        other.seconds(self.speed.product, self.speed.copy)
    }

    fn json(&self, options: &PlanOptions, found: &Found) -> Value {
        let chosen = &found.chosen;
        let parts = |candidate: &Candidate| {
            let of_which = |(name, bytes): &(&str, usize)| json!({"name": name, "bytes": bytes});
            let regions = candidate.regions.iter();
            let mut parts: Vec<Value> =
                regions.map(|part| json!({"name": part.name, "bytes": part.bytes, "formula": part.formula, "of_which": part.parts.iter().map(of_which).collect::<Vec<_>>()})).collect();
            if self.context > 0 {
                let formula = if options.context.is_some() { "given" } else { "assumed" };
                parts.push(json!({"name": "CUDA context", "bytes": self.context, "formula": formula}));
            }
            parts
        };
        let device_peak = |candidate: &Candidate| if self.context > 0 { self.peak(candidate) } else { 0 };
        let mode = |(time, candidate): &(StepTime, Candidate)| {
            json!({
                "recompute": candidate.memory.recompute.name(),
                "weights": candidate.memory.weights.name(),
                "offload_activations": candidate.memory.offload,
                "layer_major": candidate.memory.together,
                "micro_batch_tokens": candidate.micro_batch_tokens,
                "device_peak_bytes": device_peak(candidate),
                "host_peak_bytes": self.host_peak(candidate),
                "parts": parts(candidate),
                "step_seconds": time.seconds,
                "step_flops": time.flops,
            })
        };
        let other = |other: &Estimate| {
            json!({
                "method": other.method.to_string(),
                "device_peak_bytes": self.peak_of(other),
                "step_seconds": self.seconds_of(other),
                "step_flops": other.flops,
                "parts": other.parts.iter().map(|part| json!({"name": part.name, "bytes": part.bytes, "formula": part.formula})).collect::<Vec<_>>(),
            })
        };
        let full = found.others.iter().filter(|other| other.is_full_finetuning()).map(|other| self.peak_of(other)).min();
        json!({
            "kind": "plan",
            "schema": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "model": options.base.name(),
            "parameters": self.shape.spec.parameters(),
            "tokens_per_step": found.tokens,
            "length": options.length,
            "prefix_length": options.prefix_length,
            "recompute": chosen.memory.recompute.name(),
            "weights": chosen.memory.weights.name(),
            "offload_activations": chosen.memory.offload,
            "layer_major": chosen.memory.together,
            "weight_format": options.weight_format.name(),
            "micro_batch_tokens": chosen.micro_batch_tokens,
            "micro_batches": found.batches,
            "device_peak_bytes": device_peak(chosen),
            "host_peak_bytes": self.host_peak(chosen),
            "parts": parts(chosen),
            "mapped_bytes": chosen.mapped,
            "step_seconds": found.time.seconds,
            "step_flops": found.time.flops,
            "full_finetuning_bytes": full,
            "product_flops_per_second": self.speed.product,
            "copy_bytes_per_second": self.speed.copy,
            "bus_bytes_per_second": self.speed.bus,
            "modes": found.modes.iter().map(mode).collect::<Vec<_>>(),
            "others": found.others.iter().map(other).collect::<Vec<_>>(),
        })
    }

    /// Device memory by part, a bar a way.
    fn chart(&self, options: &PlanOptions, found: &Found) -> Result<String> {
        let bar = |name: String, parts: &mut dyn Iterator<Item = (&str, usize)>| {
            let mut sums = vec![0.0; KINDS.len()];
            parts.for_each(|(part, bytes)| sums[kind(part)] += bytes as f64 / (1u64 << 30) as f64);
            sums[KINDS.len() - 1] = self.context as f64 / (1u64 << 30) as f64;
            Bar { name, parts: sums }
        };
        let modes = found.modes.iter().map(|(_, candidate)| {
            let name = format!("ptune: {}", MemoryMode { together: 1, ..candidate.memory }.describe());
            bar(name, &mut candidate.regions.iter().map(|region| (region.name, region.bytes)))
        });
        let others = found
            .others
            .iter()
            .map(|other| bar(other.method.to_string(), &mut other.parts.iter().map(|part| (part.name, part.bytes as usize))));
        let title = format!("{}: planned GiB of device memory, {} tokens a step", options.base.name(), grouped(found.tokens as u64));
        stacked_bars(&title, &KINDS, &modes.chain(others).collect::<Vec<_>>())
    }
}
