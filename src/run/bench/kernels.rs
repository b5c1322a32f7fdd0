//! Single operations of the backend at given shapes, each repeated back to back, beside the machine's rates.

use super::rates::Area;
use super::table::flops_unit;
use super::{Rates, Report, header, joined, machine_line, seconds_of};
use crate::backend::watch::{self, Shared, Work};
use crate::backend::*;
use crate::run::device;
use crate::run::memory::grouped;
use crate::run::settings::check_size;
use crate::run::terminal::Terminal;
use crate::run::values::Device;
use crate::usage;
use anyhow::Result;
use serde_json::{Value, json};
use std::fmt::Write;

/// Seconds that an operation is repeated for, at least.
const LEAST: f64 = 0.1;
/// Runs whose launches are timed one by one, where an operation has several.
const CUT_RUNS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Half {
    Fp16,
    Bf16,
}

#[derive(Clone, Debug, clap::Args)]
pub struct KernelOptions {
    /// Tokens of a batch
    #[arg(long, value_name = "N", default_value_t = 16384, help_heading = "Shapes")]
    pub tokens: usize,
    /// Length of its sequences
    #[arg(long, value_name = "L", default_value_t = 512, help_heading = "Shapes")]
    pub length: usize,
    /// Width of norms and of products
    #[arg(long, value_name = "H", default_value_t = 1024, help_heading = "Shapes")]
    pub hidden: usize,
    /// Width of activations
    #[arg(long, value_name = "F", default_value_t = 4096, help_heading = "Shapes")]
    pub ffn: usize,
    /// Heads of attention
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Shapes")]
    pub heads: usize,
    /// Key and value heads [default: as many]
    #[arg(long, value_name = "N", help_heading = "Shapes")]
    pub kv_heads: Option<usize>,
    /// Dimensions of a head
    #[arg(long, value_name = "D", default_value_t = 64, help_heading = "Shapes")]
    pub head_dim: usize,
    /// Prefix of the cases that have one
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Shapes")]
    pub prefix_length: usize,
    /// Dropout rate of the cases that have it
    #[arg(long, value_name = "RATE", default_value_t = 0.1, help_heading = "Shapes")]
    pub dropout: f64,
    /// Element type on a GPU: fp16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "fp16", hide_possible_values = true, help_heading = "Shapes")]
    pub dtype: Half,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    pub device: Device,
}

impl KernelOptions {
    fn validate(&self) -> Result<()> {
        for (flag, value, least) in [
            ("tokens", self.tokens, 1),
            ("length", self.length, 1),
            ("hidden", self.hidden, 1),
            ("ffn", self.ffn, 1),
            ("heads", self.heads, 1),
            ("kv-heads", self.kv_heads(), 1),
            ("head-dim", self.head_dim, 1),
            ("prefix-length", self.prefix_length, 1),
        ] {
            check_size(flag, Some(value), least)?;
        }
        if !self.heads.is_multiple_of(self.kv_heads()) {
            usage!("--kv-heads {}: does not divide --heads {}", self.kv_heads(), self.heads);
        }
        if !(self.dropout > 0.0 && self.dropout < 1.0) {
            usage!("--dropout {}: the cases that have it need a rate above 0 and below 1", self.dropout);
        }
        device::check(self.device)
    }

    fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }
}

/// What was measured of one operation.
struct Measured {
    name: String,
    dropout: bool,
    prefix: usize,
    seconds: f64,
    work: Work,
}

/// Buffers of all operations, used in turn.
struct Buffers {
    rows: Rows,
    /// \[T, H\].
    hidden: [View; 5],
    /// \[T, F\].
    wide: [View; 2],
    /// \[T, A D\]: query, output, their gradients.
    query: [View; 4],
    /// \[T, G D\]: key, value, their gradients.
    key: [View; 4],
    /// \[P, G D\]: key, value, their gradients.
    prefix: [View; 4],
    /// \[T, A\]: log-sum-exp, delta.
    sums: [View; 2],
    rstd: View,
    gamma: View,
    weights: [View; 2],
}

impl Buffers {
    fn cut(options: &KernelOptions, precision: Precision, half: DType, area: &mut Area) -> Buffers {
        let Precision { activation, master } = precision;
        let (t, h, f) = (options.tokens, options.hidden, options.ffn);
        let (q, kv) = (options.heads * options.head_dim, options.kv_heads() * options.head_dim);
        let sequences = t.div_ceil(options.length);
        Buffers {
            rows: Rows {
                ordinals: area.cut(1, t, DType::I32),
                tokens: area.cut(1, t, DType::I32),
                offsets: area.cut(1, sequences + 1, DType::I32),
                count: t,
                longest: options.length.min(t),
            },
            hidden: std::array::from_fn(|_| area.cut(t, h, activation)),
            wide: std::array::from_fn(|_| area.cut(t, f, activation)),
            query: std::array::from_fn(|_| area.cut(t, q, activation)),
            key: std::array::from_fn(|_| area.cut(t, kv, activation)),
            prefix: std::array::from_fn(|_| area.cut(options.prefix_length, kv, master)),
            sums: std::array::from_fn(|_| area.cut(t, options.heads, master)),
            rstd: area.cut(1, t, master),
            gamma: area.cut(1, h, master),
            weights: [area.cut(f, h, half), area.cut(h, h, half)],
        }
    }

    /// Random operands: sequences of the length that was asked for, normal hidden states.
    fn fill(&self, length: usize, backend: &mut dyn Backend) {
        let integers = |values: Vec<usize>| -> Vec<u8> { values.iter().flat_map(|&value| (value as i32).to_le_bytes()).collect() };
        let (rows, count) = (&self.rows, self.rows.count);
        backend.write(rows.ordinals, &integers((0..count).map(|token| token / length).collect()));
        backend.write(rows.tokens, &integers((0..count).map(|token| token % length).collect()));
        backend.write(rows.offsets, &integers((0..rows.offsets.cols).map(|sequence| count.min(sequence * length)).collect()));
        let halves = self.hidden.into_iter().chain(self.wide).chain(self.query).chain(self.key).chain(self.weights);
        for (number, view) in halves.enumerate() {
            if view.dtype.size() == 2 { backend.fill_normal(view, [number as u32, 0], 1.0) } else { backend.zero(view) }
        }
        let ones = match self.gamma.dtype {
            DType::F64 => 1f64.to_le_bytes().repeat(self.gamma.cols),
            _ => 1f32.to_le_bytes().repeat(self.gamma.cols),
        };
        backend.write(self.gamma, &ones);
        self.prefix.into_iter().chain(self.sums).for_each(|view| backend.zero(view));
    }
}

/// Measures one operation after the other.
struct Bench {
    backend: Box<dyn Backend>,
    log: Shared,
    found: Vec<Measured>,
}

impl Bench {
    /// The time of a run, from many back to back; where it has several launches that are told apart, theirs too.
    fn measure(&mut self, name: &str, dropout: bool, prefix: usize, run: impl Fn(&mut dyn Backend)) {
        let backend = self.backend.as_mut();
        let seconds = seconds_of(backend, LEAST, &run);
        backend.forget_marks();
        self.log.start();
        (0..CUT_RUNS).for_each(|_| run(backend));
        let log = self.log.stop();
        let mut parts: Vec<(String, Work, f64)> = Vec::new();
        for piece in &log.pieces {
            let seconds = backend.seconds_between(piece.from, piece.to) / CUT_RUNS as f64;
            match parts.iter_mut().find(|(label, ..)| *label == piece.label) {
                Some(part) => part.2 += seconds,
                None => parts.push((piece.label.clone(), piece.work, seconds)),
            }
        }
        let sum = |of: fn(&Work) -> f64| parts.iter().map(|(_, work, _)| of(work)).sum();
        // Parts may each compute something that counts once in the whole.
        let flops = if parts.len() > 1 { log.useful / CUT_RUNS as f64 } else { sum(|work| work.flops) };
        let work = Work { bytes: sum(|work| work.bytes), flops };
        self.found.push(Measured { name: name.to_string(), dropout, prefix, seconds, work });
        if parts.len() > 1 {
            let parts =
                parts.into_iter().map(|(label, work, seconds)| Measured { name: format!("  {label}"), dropout, prefix, seconds, work });
            self.found.extend(parts);
        }
    }

    fn rowwise(&mut self, buffers: &Buffers, mask: Dropout) {
        let [residual, branch, normalized, out, gradient] = buffers.hidden;
        let (rstd, gamma, rows) = (buffers.rstd, buffers.gamma, &buffers.rows);
        for dropout in [None, Some(mask)] {
            self.measure("norm forward", dropout.is_some(), 0, |backend| {
                backend.norm_forward(&NormForward {
                    kind: NormKind::LayerNorm,
                    epsilon: 1e-5,
                    residual,
                    branch: Some(branch),
                    dropout: dropout.map(|dropout| (dropout, rows)),
                    gamma,
                    beta: Some(gamma),
                    sum: None,
                    normalized,
                    rstd,
                    out,
                });
            });
            self.measure("norm backward", dropout.is_some(), 0, |backend| {
                backend.norm_backward(&NormBackward {
                    kind: NormKind::LayerNorm,
                    d_out: gradient,
                    d_residual: None,
                    gamma,
                    normalized,
                    rstd,
                    d_sum: out,
                    dropout: dropout.map(|dropout| (dropout, rows, branch)),
                });
            });
        }
        let [z, a] = buffers.wide;
        self.measure("activation forward", false, 0, |backend| backend.activation_forward(Activation::GeluErf, z, a));
        self.measure("activation backward", false, 0, |backend| backend.activation_backward(Activation::GeluErf, z, a, a));
    }

    fn products(&mut self, buffers: &Buffers) {
        let ([x, y, ..], [wide, _], [up, square]) = (buffers.hidden, buffers.wide, buffers.weights);
        for (weight, out) in [(up, wide), (square, y)] {
            let [n, k] = [weight.rows, weight.cols];
            self.measure(&format!("linear {k} to {n}"), false, 0, |backend| backend.linear(x, weight, None, out));
            self.measure(&format!("input gradient {n} to {k}"), false, 0, |backend| backend.linear_backward_input(out, weight, x, false));
        }
    }

    fn attention(&mut self, buffers: &Buffers, options: &KernelOptions, masks: [Dropout; 3]) {
        let ([query, out, d_out, d_query], [key, value, d_key, d_value]) = (buffers.query, buffers.key);
        let ([prefix_key, prefix_value, d_prefix_key, d_prefix_value], [log_sum_exp, delta]) = (buffers.prefix, buffers.sums);
        for (has_prefix, has_dropout) in [(false, false), (false, true), (true, false), (true, true)] {
            let prefix =
                has_prefix.then_some(Prefix { key: prefix_key, value: prefix_value, dropout: has_dropout.then_some([masks[1], masks[2]]) });
            let operands = Attention {
                query,
                key,
                value,
                prefix,
                relative: None,
                query_rows: &buffers.rows,
                key_rows: &buffers.rows,
                separators: None,
                heads: options.heads,
                kv_heads: options.kv_heads(),
                head_dim: options.head_dim,
                scale: 1.0 / (options.head_dim as f64).sqrt(),
                dropout: has_dropout.then_some(masks[0]),
            };
            let saved = AttentionSaved { log_sum_exp, delta, d_out };
            let length = prefix.map_or(0, |prefix| prefix.key.rows);
            self.measure("attention forward", has_dropout, length, |backend| backend.attention_forward(&operands, out, log_sum_exp));
            if !has_prefix && !has_dropout {
                self.measure("attention delta", false, 0, |backend| backend.attention_delta(out, d_out, options.heads, delta));
            }
            self.measure("attention backward", has_dropout, length, |backend| {
                backend.attention_backward(&operands, &saved, d_query, d_key, d_value);
            });
            if has_prefix {
                self.measure("prefix gradient", has_dropout, length, |backend| {
                    backend.prefix_gradient(&operands, &saved, d_prefix_key, d_prefix_value);
                });
            }
        }
    }
}

/// Measures the operations that a step spends its time in.
pub fn kernels(options: &KernelOptions, terminal: &Terminal) -> Result<Report> {
    options.validate()?;
    let device = device::resolve(options.device, terminal)?;
    let half = if options.dtype == Half::Bf16 { DType::BF16 } else { DType::F16 };
    // Opened before the device is measured through another backend, so that its context is made once.
    let (mut backend, log) = watch::timed(device::open_for(device, half, terminal)?);
    let rates = Rates::measure(device::open_for(device, half, terminal)?.as_mut(), half)?;
    terminal.line(format!("rates      {rates}"));

    let mut area = Area::default();
    let buffers = Buffers::cut(options, backend.precision(), half, &mut area);
    area.allocate_for(
        backend.as_mut(),
        &ScratchNeed {
            longest: buffers.rows.longest + options.prefix_length,
            prefix_length: options.prefix_length,
            prefix_dropout: true,
            head_dim: options.head_dim,
            relative: false,
            kv_size: options.kv_heads() * options.head_dim,
            tokens: options.tokens,
            sequences: buffers.rows.sequences(),
            groups: 1,
            parameters: 1,
            widest: options.hidden.max(options.ffn),
        },
    )?;
    // The lengths of the sequences are known to the log from here on.
    log.start();
    buffers.fill(options.length, backend.as_mut());
    let mask = |number| Dropout::new(options.dropout, [number, 1]);
    let mut bench = Bench { backend, log, found: Vec::new() };
    let probabilities = Dropout::of_probabilities(options.dropout, [2, 1]);
    if let (Some(hidden), Some(probabilities), Some(keys), Some(values)) = (mask(1), probabilities, mask(3), mask(4)) {
        bench.rowwise(&buffers, hidden);
        bench.products(&buffers);
        bench.attention(&buffers, options, [probabilities, keys, values]);
    }
    bench.backend.check()?;

    let machine = bench.backend.machine();
    let mut text = format!("machine    {}\n", machine_line(&machine, &bench.backend.describe()));
    let (tokens, heads) = (grouped(options.tokens as u64), options.heads);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "shapes     {tokens} tokens in sequences of {}; hidden {}, ffn {}, {heads} heads of {}; dropout {} where there is any\n",
        buffers.rows.longest, options.hidden, options.ffn, options.head_dim, options.dropout
    );
    text.push_str(&table(&bench.found, &rates));
    let found: Vec<Value> = bench.found.iter().map(|measured| measured.to_json(&rates)).collect();
    let json = joined(
        header("kernels", &machine, &rates),
        json!({
            "settings": {
                "element_type": bench.backend.precision().activation.name(),
                "tokens": options.tokens,
                "length": buffers.rows.longest,
                "hidden": options.hidden,
                "ffn": options.ffn,
                "heads": options.heads,
                "kv_heads": options.kv_heads(),
                "head_dim": options.head_dim,
                "prefix_length": options.prefix_length,
                "dropout": options.dropout,
            },
            "kernels": found,
        }),
    );
    Ok(Report { text, json })
}

impl Measured {
    fn to_json(&self, rates: &Rates) -> Value {
        let Work { bytes, flops } = self.work;
        json!({
            "name": self.name.trim(),
            "part": self.name.starts_with(' '),
            "dropout": self.dropout,
            "prefix_length": self.prefix,
            "seconds": self.seconds,
            "floor_seconds": self.work.floor(rates.copy, rates.product),
            "bytes": bytes,
            "flops": flops,
            "bytes_per_second": bytes / self.seconds,
            "flops_per_second": flops / self.seconds,
            "share_of_copy_rate": bytes / self.seconds / rates.copy,
            "share_of_product_rate": flops / self.seconds / rates.product,
        })
    }
}

fn table(found: &[Measured], rates: &Rates) -> String {
    let (one, unit) = flops_unit(rates);
    let mut text = format!(
        "{:<32} {:>8} {:>6} {:>10} {:>8} {:>7} {:>8} {:>7}\n",
        "operation", "dropout", "prefix", "us", "GB/s", "% copy", unit, "% prod."
    );
    for Measured { name, dropout, prefix, seconds, work } in found {
        let rate = |work: f64, unit: f64, best: f64| match work > 0.0 {
            true => format!("{:>8.1} {:>7.1}", work / seconds / unit, 100.0 * work / seconds / best),
            false => format!("{:>8} {:>7}", "-", "-"),
        };
        let (bytes, flops) = (rate(work.bytes, 1e9, rates.copy), rate(work.flops, one, rates.product));
        let dropout = if *dropout { "yes" } else { "no" };
        let _ = writeln!(text, "{name:<32} {dropout:>8} {prefix:>6} {:>10.2} {bytes} {flops}", 1e6 * seconds);
    }
    text
}
