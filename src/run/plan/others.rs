//! What other ways of tuning the same model take on a device: full fine-tuning with AdamW in mixed precision, LoRA, and
//! prefix tuning as PEFT does it, all in PyTorch and transformers.
//!
//! Pure formulas of shapes. They count what has to be held between forward and backward with fused attention (nothing of
//! size tokens²), and no more: not the memory that an allocator cannot use, no workspace, no gradients in flight, no
//! context. So a measured peak lies above them.
//!
//! States, bytes a parameter. AdamW in mixed precision (ZeRO, Rajbhandari et al. 2020, section 3.1): 2 + 2 for weight and
//! gradient in 16 bits, 12 for weight and two moments in fp32. Frozen: 2. LoRA's and PEFT's own parameters are fp32: 16
//! for weight, gradient, two moments.
//!
//! Saved for the backward, bytes a token and layer, h hidden, f feed-forward, q queries, k keys:
//!
//! | tensor | wanted by | bytes |
//! |---|---|---|
//! | queries, keys, values, output, log-sum-exp | attention | 2q + 4k + 2q + 4 heads |
//! | input of each of two norms; RMSNorm is computed in fp32 | the norm | 2 x 2h; RMSNorm 2 x 4h |
//! | normalised RMSNorm, where its weight is trained | the weight | 2 x 2h |
//! | output of each norm, where the layer behind it is trained | the layer | 2 x 2h |
//! | input of the activation; of a gated one gate, gate's activation, up | the activation | 2f; 6f |
//! | output of the activation, where the layer behind it is trained | the layer | 2f |
//! | masks of hidden dropout, a byte an element | the dropout | 2 x h |
//! | LoRA: the input of each adapted layer, cast to fp32 | its first matrix | 4h each |
//! | prefix: keys and values behind the prefix, of as many heads as queries | attention | 4q (n + p) / n for 4k |
//!
//! Full fine-tuning of a model with f = 4h so keeps 32 h and the masks. With activation checkpointing a layer keeps its
//! input, 2h, and one layer at a time all of the above. PEFT refuses to checkpoint a prefix.

use crate::backend::NormKind;
use crate::model::{MaskKind, Slot, Specification};

/// A way of tuning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    FullFinetuning {
        checkpointing: bool,
    },
    /// On the projections to queries and to values, as PEFT's defaults for most families are.
    Lora {
        rank: usize,
        checkpointing: bool,
    },
    PrefixTuning {
        length: usize,
    },
}

impl std::fmt::Display for Method {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, checkpointing) = match self {
            Method::FullFinetuning { checkpointing } => ("full fine-tuning".to_string(), *checkpointing),
            Method::Lora { rank, checkpointing } => (format!("LoRA of rank {rank}"), *checkpointing),
            Method::PrefixTuning { length } => (format!("prefix tuning (PEFT), prefix {length}"), false),
        };
        write!(formatter, "{name}{}", if checkpointing { ", activation checkpointing" } else { "" })
    }
}

/// The tokens of a micro-batch, padding included: sequences of equal length.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub tokens: usize,
    pub longest: usize,
}

/// Bytes of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub name: &'static str,
    pub bytes: u64,
    pub formula: String,
}

/// What a way of tuning takes.
#[derive(Clone, Debug)]
pub struct Estimate {
    pub method: Method,
    pub parts: Vec<Part>,
    /// Parameters that are trained.
    pub trained: u64,
    /// Floating-point operations of a step of one micro-batch.
    pub flops: f64,
    /// Bytes that the optimizer moves in a step.
    pub optimizer_bytes: u64,
}

/// What a run here is held against.
pub fn methods(prefix_length: usize) -> impl Iterator<Item = Method> {
    let checkpointed = |checkpointing| [Method::FullFinetuning { checkpointing }, Method::Lora { rank: 8, checkpointing }];
    let prefix = (prefix_length > 0).then_some(Method::PrefixTuning { length: prefix_length });
    [false, true].into_iter().flat_map(checkpointed).chain(prefix)
}

impl Estimate {
    pub fn is_full_finetuning(&self) -> bool {
        matches!(self.method, Method::FullFinetuning { .. })
    }

    /// Device memory of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// The least time of a step: products at a rate, then the optimizer at the memory's.
    pub fn seconds(&self, flops_per_second: f64, bytes_per_second: f64) -> f64 {
        self.flops / flops_per_second + self.optimizer_bytes as f64 / bytes_per_second
    }
}

/// Bytes of states for a trained parameter: weight, gradient, two moments, in fp32 or as mixed precision has them.
const TRAINED: usize = 16;
/// Bytes of a frozen one, and of an activation.
const HALF: usize = 2;
const SINGLE: usize = 4;
/// Of a trained parameter an update reads the gradient in 16 bits, reads and writes weight and two moments in fp32, and
/// writes the weight in 16 bits. Where all is fp32 it moves as much: the gradient is wider, but no weight is written twice.
const MOVED: usize = 28;

/// Work and memory of a step of one micro-batch.
pub fn estimate(spec: &Specification, method: Method, batch: Batch) -> Estimate {
    let parameters = spec.parameters();
    let trained = match method {
        Method::FullFinetuning { .. } => parameters,
        Method::Lora { rank, .. } => spec.layers * rank * (2 * spec.hidden_size + spec.query_size() + spec.kv_size()),
        Method::PrefixTuning { length } => 2 * spec.layers * length * spec.kv_size(),
    };
    let mut parts = Vec::new();
    let mut part = |name, bytes: usize, formula: String| parts.push(Part { name, bytes: bytes as u64, formula });
    match method {
        Method::FullFinetuning { .. } => {
            part("weights and gradients", 2 * HALF * parameters, format!("(2 + 2) B x {parameters} parameters"));
            part("optimizer", 3 * SINGLE * parameters, format!("(4 + 4 + 4) B x {parameters} parameters"));
        }
        Method::Lora { .. } | Method::PrefixTuning { .. } => {
            part("frozen weights", HALF * parameters, format!("2 B x {parameters} parameters"));
            part("trained parameters", TRAINED * trained, format!("(4 + 4 + 4 + 4) B x {trained} parameters"));
        }
    }
    let sequences = batch.tokens.div_ceil(batch.longest.max(1));
    if let Method::PrefixTuning { length } = method {
        let bytes = HALF * 2 * spec.layers * length * spec.kv_size() * sequences;
        part("prefix of every sequence", bytes, format!("2 B x 2 x {} layers x {length} x {} x {sequences}", spec.layers, spec.kv_size()));
    }
    let (layer, last) = (saved_by_layer(spec, method, batch), saved_by_last_norm(spec, method));
    let (of_layers, formula) = if checkpoints(method) {
        (spec.layers * HALF * spec.hidden_size, format!("{} layers x 2 h", spec.layers))
    } else {
        (spec.layers * layer, format!("{} layers x {layer}", spec.layers))
    };
    part("saved activations", batch.tokens * (of_layers + last), format!("{} tokens x ({formula} + {last}) B", batch.tokens));
    if checkpoints(method) {
        part("recomputed layer", batch.tokens * layer, format!("{} tokens x {layer} B", batch.tokens));
    }
    let flops = batch.tokens as f64 * flops_per_token(spec, method, batch.longest);
    Estimate { method, parts, trained: trained as u64, flops, optimizer_bytes: (MOVED * trained) as u64 }
}

fn checkpoints(method: Method) -> bool {
    matches!(method, Method::FullFinetuning { checkpointing: true } | Method::Lora { checkpointing: true, .. })
}

/// Bytes a token that a layer saves, by the table above.
fn saved_by_layer(spec: &Specification, method: Method, batch: Batch) -> usize {
    let (h, f, q, kv) = (spec.hidden_size, spec.ffn_size, spec.query_size(), spec.kv_size());
    let full = matches!(method, Method::FullFinetuning { .. });
    let gated = spec.activation.arity() == 2;
    let keys_and_values = match method {
        Method::PrefixTuning { length } => (2 * HALF * q * (batch.longest + length)).div_ceil(batch.longest.max(1)),
        Method::FullFinetuning { .. } | Method::Lora { .. } => 2 * HALF * kv,
    };
    let attention = 2 * HALF * q + keys_and_values + SINGLE * spec.heads;
    let norms = 2 * saved_by_norm(spec, full);
    let activation = HALF * f * if gated { 3 } else { 1 };
    let masks = if spec.hidden_dropout > 0.0 && spec.block_dropout { 2 * h } else { 0 };
    let inputs = match method {
        Method::FullFinetuning { .. } => HALF * (2 * h + f),
        Method::Lora { .. } => 2 * SINGLE * h,
        Method::PrefixTuning { .. } => 0,
    };
    attention + norms + activation + masks + inputs
}

/// Of one norm, its output not counted.
fn saved_by_norm(spec: &Specification, trained: bool) -> usize {
    match (spec.norm, trained) {
        (NormKind::LayerNorm, _) => HALF * spec.hidden_size,
        (NormKind::RmsNorm, false) => SINGLE * spec.hidden_size,
        (NormKind::RmsNorm, true) => (SINGLE + HALF) * spec.hidden_size,
    }
}

/// Bytes a token of the norm behind the layers, and of the head's input where that is trained.
fn saved_by_last_norm(spec: &Specification, method: Method) -> usize {
    let full = matches!(method, Method::FullFinetuning { .. });
    let output = if full { HALF * spec.hidden_size } else { 0 };
    if spec.final_norm { saved_by_norm(spec, full) + output } else { 0 }
}

/// Floating-point operations a token of a step. Linear layers: 2 a weight for the forward, as many for the gradient of
/// the input, as many for that of the weight where it is trained. Attention: 4 a query, key and dimension forward, 10
/// backward (scores are made once more). Checkpointing adds a forward.
pub fn flops_per_token(spec: &Specification, method: Method, length: usize) -> f64 {
    let prefix = if let Method::PrefixTuning { length } = method { length } else { 0 };
    let pass = linear_flops(spec);
    let seen = match spec.mask {
        MaskKind::Causal => (length + 1) as f64 / 2.0,
        MaskKind::Full | MaskKind::Separator => length as f64,
    };
    let attention = (spec.layers * spec.query_size()) as f64 * (seen + prefix as f64);
    let passes = if matches!(method, Method::FullFinetuning { .. }) { 3.0 } else { 2.0 };
    let adapters = match method {
        // Forward, input and weight gradient of two thin matrices.
        Method::Lora { rank, .. } => 6.0 * (spec.layers * rank * (2 * spec.hidden_size + spec.query_size() + spec.kv_size())) as f64,
        Method::FullFinetuning { .. } | Method::PrefixTuning { .. } => 0.0,
    };
    let again = if checkpoints(method) { pass + 4.0 * attention } else { 0.0 };
    passes * pass + 14.0 * attention + adapters + again
}

/// A forward's, a token, through the linear layers of all layers; layers that share weights count each.
fn linear_flops(spec: &Specification) -> f64 {
    let slots: [fn(usize) -> Slot; 7] = [Slot::Query, Slot::Key, Slot::Value, Slot::AttentionOutput, Slot::Gate, Slot::Up, Slot::Down];
    let weights = slots.iter().filter_map(|slot| spec.shape(slot(0))).map(|[rows, cols]| rows * cols).sum::<usize>();
    let projection = spec.shape(Slot::EmbeddingProjection).map_or(0, |[rows, cols]| rows * cols);
    2.0 * (spec.layers * weights + projection) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{architecture, describe};

    const GIB: f64 = (1u64 << 30) as f64;
    const FULL: Method = Method::FullFinetuning { checkpointing: false };
    const CHECKPOINTED: Method = Method::FullFinetuning { checkpointing: true };

    fn spec(name: &str) -> Specification {
        describe(&architecture(name).unwrap().unwrap()).unwrap().1
    }

    fn part<'a>(estimate: &'a Estimate, name: &str) -> &'a Part {
        estimate.parts.iter().find(|part| part.name == name).unwrap_or_else(|| panic!("no {name} in {estimate:?}"))
    }

    /// 16 bytes a parameter: 158 GB of states for GLM-10B, and at least 150 GiB with checkpointing, at 16384 tokens.
    #[test]
    fn states_of_glm_10b() {
        let glm = spec("glm-10b");
        let batch = Batch { tokens: 16384, longest: 512 };
        let full = estimate(&glm, CHECKPOINTED, batch);
        let states = part(&full, "weights and gradients").bytes + part(&full, "optimizer").bytes;
        assert_eq!(states, 16 * 9_880_682_496);
        assert_eq!((states as f64 / 1e9).round(), 158.0);
        assert!((150.0..170.0).contains(&(full.bytes() as f64 / GIB)), "{}", full.bytes() as f64 / GIB);
        assert!(estimate(&glm, FULL, batch).bytes() > full.bytes() + 80 * GIB as u64);
        // What is frozen has 2 bytes: 19.76 GB; a prefix of 128 has 50.3 million parameters and 805 MB of states.
        let prefix = estimate(&glm, Method::PrefixTuning { length: 128 }, batch);
        assert_eq!((part(&prefix, "frozen weights").bytes as f64 / 1e7).round(), 1976.0);
        assert_eq!((prefix.trained, part(&prefix, "trained parameters").bytes), (50_331_648, 805_306_368));
    }

    /// 32 h bytes a token and layer where f = 4 h, beside log-sum-exp and dropout masks; a layer's input is 2 h.
    #[test]
    fn what_a_layer_saves() {
        for name in ["glm-10b", "roberta-large"] {
            let spec = Specification { hidden_dropout: 0.0, ..spec(name) };
            let h = spec.hidden_size;
            let batch = Batch { tokens: 1024, longest: 256 };
            assert_eq!(saved_by_layer(&spec, FULL, batch), 32 * h + 4 * spec.heads);
            let dropping = Specification { hidden_dropout: 0.1, block_dropout: true, ..spec.clone() };
            assert_eq!(saved_by_layer(&dropping, FULL, batch), 34 * h + 4 * spec.heads);
            let input = part(&estimate(&spec, CHECKPOINTED, batch), "saved activations").bytes as usize;
            let last = if spec.final_norm { 4 * h } else { 0 };
            assert_eq!(input, batch.tokens * (spec.layers * 2 * h + last));
        }
    }

    /// A Llama of 4 layers (h 2048, f 5632, 32 heads on 8) on two sequences of 512 tokens: what torch's hooks counted as
    /// saved for the backward, in MiB. The formulas are held to 4 %; with LoRA and checkpointing to 15 %, where the
    /// adapters' inputs of one layer are counted with what is recomputed.
    #[test]
    fn what_pytorch_was_seen_to_save() {
        let base = spec("llama-3.2-1b");
        let llama = Specification {
            layers: 4,
            layer_weights: (0..4).collect(),
            hidden_size: 2048,
            embedding_size: 2048,
            ffn_size: 5632,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            hidden_dropout: 0.0,
            ..base
        };
        let lora = |checkpointing| Method::Lora { rank: 8, checkpointing };
        for (method, measured, tolerance) in [
            (FULL, 360.7, 0.04),
            (CHECKPOINTED, 32.0, 0.04),
            (lora(false), 305.2, 0.04),
            (lora(true), 28.0, 0.15),
            (Method::PrefixTuning { length: 64 }, 273.2, 0.04),
        ] {
            let estimate = estimate(&llama, method, Batch { tokens: 1024, longest: 512 });
            let mib = part(&estimate, "saved activations").bytes as f64 / f64::from(1 << 20);
            assert!((mib / measured - 1.0).abs() < tolerance, "{method}: {mib} MiB, {measured} measured");
        }
    }

    /// GLM-10B at 512 tokens behind 128: 40.42 GFLOP a token where frozen. RoBERTa-large at 256 behind 128: 1.34. A full
    /// pass more is 59.39 and 1.90 without the prefix, of which full fine-tuning has none.
    #[test]
    fn flops_of_a_token() {
        for (name, length, frozen, full) in [("glm-10b", 512, 40.42, 59.39), ("roberta-large", 256, 1.34, 1.90)] {
            let spec = spec(name);
            let giga = |method| flops_per_token(&spec, method, length) / 1e9;
            assert!(
                (giga(Method::PrefixTuning { length: 128 }) - frozen).abs() < 0.005,
                "{name}: {}",
                giga(Method::PrefixTuning { length: 128 })
            );
            assert!((giga(FULL) - full).abs() < 0.005, "{name}: {}", giga(FULL));
            // A third forward for a fourth.
            assert!((1.3..1.34).contains(&(giga(CHECKPOINTED) / giga(FULL))));
            assert!(
                (1.0..1.02).contains(&(giga(Method::Lora { rank: 8, checkpointing: false }) / giga(Method::PrefixTuning { length: 0 })))
            );
        }
    }

    /// At 790 TFLOP/s and 4.3 TB/s: the products of 16384 tokens, and 28 bytes a parameter.
    #[test]
    fn time_of_a_step() {
        let glm = spec("glm-10b");
        let full = estimate(&glm, FULL, Batch { tokens: 16384, longest: 512 });
        let seconds = full.seconds(790e12, 4.3e12);
        assert!((seconds - (16384.0 * 59.392e9 / 790e12 + 28.0 * 9.8807e9 / 4.3e12)).abs() < 1e-3, "{seconds}");
        let prefix = estimate(&glm, Method::PrefixTuning { length: 128 }, Batch { tokens: 16384, longest: 512 });
        assert!((prefix.seconds(790e12, 4.3e12) - 0.838).abs() < 2e-3);
    }
}
