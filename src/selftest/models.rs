//! A tiny model of every kind that a specification can describe, with random weights, and something to train it on.

use crate::backend::{Activation, DType, NormKind};
use crate::data::{Feature, FeatureSet, Sequence};
use crate::engine::{EngineOptions, PrefixOptions};
use crate::model::{Biases, HeadKind, HeadSpec, MaskKind, NormPlace, Positions, Readout, Rotary, Specification, TaskKind};

/// What is trained, and how.
pub struct Model {
    pub name: &'static str,
    pub spec: Specification,
    /// Element type of its file.
    pub dtype: DType,
    pub task: TaskKind,
    pub head: HeadKind,
    pub prefix: usize,
    /// None: a prompt in front of the input.
    pub layers: Vec<usize>,
    pub projection: Option<usize>,
}

const VOCABULARY: usize = 50;
/// Tokens of the sequences: on both sides of a tile of queries, and one alone.
const LENGTHS: [usize; 4] = [70, 1, 9, 64];
const LABELS: usize = 3;

/// BERT's: LayerNorm behind the residual, token types, biases everywhere.
fn bert() -> Specification {
    Specification {
        family: "synthetic".into(),
        layers: 3,
        layer_weights: vec![0, 1, 2],
        hidden_size: 48,
        embedding_size: 48,
        heads: 3,
        kv_heads: 3,
        head_dim: 16,
        ffn_size: 96,
        vocabulary: VOCABULARY,
        token_types: 2,
        positions: Positions::Learned { table: 128, first: 0, padding_id: None },
        window: None,
        mask: MaskKind::Full,
        readout: Readout::First,
        query_key_norm: false,
        block_dropout: true,
        norm: NormKind::LayerNorm,
        norm_place: NormPlace::Post,
        norm_epsilon: 1e-12,
        embedding_norm: true,
        final_norm: false,
        activation: Activation::GeluErf,
        biases: Biases::ALL,
        tied_head: false,
        hidden_dropout: 0.1,
        attention_dropout: 0.1,
        initializer_range: 0.02,
        labels: None,
    }
}

/// One model a kind. All are smooth: of one unit at ReLU's kink rounding changes the whole gradient, so that a gradient through
/// it has no bound; ReLU is among the operations that are checked by themselves.
pub fn models() -> Vec<Model> {
    let post = Model {
        name: "post-norm (BERT)",
        spec: bert(),
        dtype: DType::F16,
        task: TaskKind::Classification,
        head: HeadKind::Linear,
        prefix: 7,
        layers: vec![0, 1, 2],
        projection: None,
    };
    let padded = Model {
        name: "padded positions (RoBERTa)",
        spec: Specification {
            positions: Positions::Learned { table: 130, first: 2, padding_id: Some(1) },
            token_types: 1,
            head_dim: 64,
            heads: 2,
            kv_heads: 2,
            hidden_size: 128,
            embedding_size: 128,
            ..bert()
        },
        dtype: DType::F32,
        task: TaskKind::Tagging,
        head: HeadKind::Dense,
        prefix: 20,
        layers: vec![1, 2],
        projection: Some(9),
    };
    let pre = Model {
        name: "pre-norm, RMS, grouped heads",
        spec: Specification {
            norm: NormKind::RmsNorm,
            norm_place: NormPlace::Pre,
            embedding_norm: false,
            final_norm: true,
            activation: Activation::GeluTanh,
            biases: Biases::NONE,
            heads: 4,
            kv_heads: 2,
            head_dim: 24,
            token_types: 0,
            ..bert()
        },
        dtype: DType::BF16,
        task: TaskKind::Qa,
        head: HeadKind::Linear,
        prefix: 5,
        layers: vec![0, 1, 2],
        projection: None,
    };
    let shared = Model {
        name: "shared layers, narrow embeddings",
        spec: Specification {
            layers: 4,
            layer_weights: vec![0, 1, 1, 0],
            embedding_size: 24,
            head_dim: 8,
            heads: 6,
            kv_heads: 6,
            ..bert()
        },
        dtype: DType::F16,
        task: TaskKind::MultipleChoice,
        head: HeadKind::Dense,
        prefix: 1,
        layers: vec![0, 2, 3],
        projection: None,
    };
    let causal = Model {
        name: "causal mask",
        spec: Specification { mask: MaskKind::Causal, norm_place: NormPlace::Pre, embedding_norm: false, final_norm: true, ..bert() },
        task: TaskKind::Tagging,
        layers: vec![0, 1, 2],
        ..post
    };
    let separated = Model {
        name: "separators, two positions (GLM)",
        spec: Specification {
            mask: MaskKind::Separator,
            positions: Positions::TwoDimensional { table: 129 },
            token_types: 0,
            ..causal.spec.clone()
        },
        dtype: DType::BF16,
        task: TaskKind::Qa,
        layers: vec![1, 2],
        ..post
    };
    let rotated = Model {
        name: "rotations, gates, head norms (Qwen3)",
        spec: Specification {
            positions: Positions::Rotary(Rotary { limit: 128, frequencies: (0..12).map(|i| 0.5_f64.powi(i)).collect(), factor: 1.0 }),
            mask: MaskKind::Causal,
            activation: Activation::SwiGlu,
            query_key_norm: true,
            block_dropout: false,
            ..pre.spec.clone()
        },
        dtype: DType::F16,
        task: TaskKind::Classification,
        head: HeadKind::Score,
        layers: vec![0, 2],
        ..post
    };
    let relative = Model {
        name: "relative positions (DeBERTa)",
        spec: Specification {
            positions: Positions::Relative { span: 20, keys: true, queries: true },
            token_types: 0,
            biases: Biases { except_key: true, ..Biases::ALL },
            ..bert()
        },
        dtype: DType::BF16,
        head: HeadKind::Context,
        layers: vec![0, 1, 2],
        ..post
    };
    let prompted = Model { name: "a prompt, narrow embeddings", spec: shared.spec.clone(), layers: Vec::new(), prefix: 3, ..shared };
    let in_front = Model { name: "a prompt in front of questions", spec: pre.spec.clone(), layers: Vec::new(), ..pre };
    vec![post, padded, pre, shared, causal, separated, rotated, relative, prompted, in_front]
}

impl Model {
    /// All dropouts on.
    pub fn options(&self) -> EngineOptions {
        let prefix = PrefixOptions {
            length: self.prefix,
            layers: self.layers.clone(),
            projection: self.projection,
            shifted: self.spec.shifts(),
            dropout: 0.2,
        };
        let head = HeadSpec::new(self.task, self.head, LABELS, &self.spec);
        EngineOptions { hidden_dropout: 0.1, attention_dropout: 0.1, seed: 7, ..EngineOptions::new(prefix, vec![head]) }
    }

    /// Four sequences: as many features, or two of two choices.
    pub fn features(&self) -> FeatureSet {
        let mut set = FeatureSet::default();
        for (number, length) in LENGTHS.into_iter().enumerate() {
            let ids = (0..length).map(|i| ((i * 7 + number * 3) % VOCABULARY) as u32).collect();
            let types = if self.spec.token_types > 1 { (0..length).map(|i| u32::from(i > 4)).collect() } else { Vec::new() };
            let readout = match self.task {
                TaskKind::Tagging => (0..length as u32).step_by(2).collect(),
                TaskKind::Qa => (0..length as u32).collect(),
                _ if self.head == HeadKind::Score => vec![length as u32 - 1],
                _ => vec![0],
            };
            set.sequences.push(Sequence { ids, types, readout, separator: length as u32 / 3, ..Sequence::default() });
        }
        let choices = if self.task == TaskKind::MultipleChoice { 2 } else { 1 };
        for example in 0..LENGTHS.len() / choices {
            let rows = set.sequences[example].readout.len();
            let targets = match self.task {
                TaskKind::Tagging => (0..rows).map(|row| (row % LABELS) as i32).collect(),
                TaskKind::Qa => vec![0, rows as i32 - 1],
                TaskKind::MultipleChoice => vec![(example % 2) as i32],
                TaskKind::Classification | TaskKind::CausalLm => vec![(example % LABELS) as i32],
            };
            set.features.push(Feature { example, first_sequence: example * choices, sequences: choices, targets });
        }
        set.examples = set.features.len();
        set
    }
}
