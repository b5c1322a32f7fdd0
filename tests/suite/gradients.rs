//! Gradients in f64 against finite differences, with every dropout on: prefix, projection and heads, for the
//! specifications of today and for one that uses everything a specification can say.

use crate::bundle::Bundle;
use ptune::backend::cpu::Cpu;
use ptune::backend::{Activation, DType, NormKind, Stream};
use ptune::checkpoint::FrozenModel;
use ptune::data::{Feature, FeatureSet, Grouping, Sequence};
use ptune::engine::{Capacity, Engine, EngineOptions, MemoryMode, PrefixOptions, Update};
use ptune::model::{Biases, HeadKind, HeadSpec, MaskKind, NormPlace, Positions, Readout, Rotary, Specification, TaskKind};

const STEP: u64 = 3;

fn loss(engine: &mut Engine, set: &FeatureSet) -> f64 {
    let features: Vec<usize> = (0..set.features.len()).collect();
    engine.begin_step(STEP, features.iter().map(|&feature| set.targets(feature)).sum());
    engine.accumulate(set, &features, 0).unwrap();
    engine.finish_step(&Update { learning_rate: 0.0, weight_decay: 0.0, max_grad_norm: None });
    engine.flush_report().unwrap().loss
}

/// Central differences of the loss along single elements and one random direction of each trained tensor. Truncation
/// is h² f''' / 6, rounding 1e-16 / h: both below 1e-9 of a gradient of order one, so 1e-6 of the tensor's largest
/// element leaves room for curvature.
fn check_gradients(model: &FrozenModel, options: EngineOptions, set: &FeatureSet, name: &str) {
    // Several chunks of rows, where logits are made in chunks.
    let capacity = Capacity { logit_rows: 5, ..Capacity::for_items(set, &options.heads[0], set.features.len(), true) };
    let per_column = options.heads[0].grouping == Grouping::PerColumn && !options.heads[0].pooling.trains();
    let mut engine = Engine::new(Box::new(Cpu::<f64>::new()), model, options, capacity).unwrap();
    let mut random = Stream::new([5, 6]);
    for tensor in engine.trainables() {
        // Larger values than the initial ones, so that every nonlinearity takes part.
        let count = tensor.shape[0] * tensor.shape[1];
        let values: Vec<f64> = (0..count).map(|_| 0.3 * random.normal_pair()[0]).collect();
        engine.set_values(&tensor.name, &values).unwrap();
    }
    loss(&mut engine, set);
    let names: Vec<String> = engine.trainables().into_iter().map(|tensor| tensor.name).collect();
    let gradients: Vec<Vec<f64>> = names.iter().map(|name| engine.gradient(name).unwrap()).collect();
    for (tensor, gradient) in names.iter().zip(&gradients) {
        let start = engine.values(tensor).unwrap();
        let largest = gradient.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        if per_column && tensor.ends_with(".bias") && !tensor.starts_with("prefix_encoder") {
            // A constant added to every row of a softmax: the exact gradient is zero.
            assert!(largest < 1e-12, "{name}: {tensor} should have no gradient");
            continue;
        }
        assert!(largest > 1e-6, "{name}: {tensor} has no gradient");
        let mut slope = |direction: &[f64]| {
            let h = 1e-4;
            let mut at = |sign: f64| {
                let moved: Vec<f64> = start.iter().zip(direction).map(|(x, d)| x + sign * h * d).collect();
                engine.set_values(tensor, &moved).unwrap();
                loss(&mut engine, set)
            };
            // Fourth order: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h.
            (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h)
        };
        for _ in 0..8 {
            let element = random.below(start.len());
            let mut direction = vec![0.0; start.len()];
            direction[element] = 1.0;
            let difference = (slope(&direction) - gradient[element]).abs();
            assert!(difference <= 1e-6 * largest, "{name}: {tensor}[{element}] off by {difference:e} of {largest:e}");
        }
        let direction: Vec<f64> = (0..start.len()).map(|_| random.normal_pair()[0] / (start.len() as f64).sqrt()).collect();
        let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let difference = (slope(&direction) - expected).abs();
        assert!(difference <= 1e-6 * norm, "{name}: {tensor} along a direction off by {difference:e} of {norm:e}");
        engine.set_values(tensor, &start).unwrap();
    }
}

/// A bundle's first items.
fn first_items(bundle: &Bundle, count: usize) -> FeatureSet {
    let mut set = bundle.features();
    set.features.truncate(count);
    set
}

fn with_dropout(mut options: EngineOptions) -> EngineOptions {
    options.prefix.dropout = 0.2;
    options.hidden_dropout = 0.1;
    options.attention_dropout = 0.15;
    options
}

#[test]
fn every_task_and_head() {
    for name in [
        "bert-classification",
        "bert-multiple-choice",
        "bert-qa",
        "bert-tagging",
        "gpt2-classification",
        "qwen3-classification",
        "roberta-classification-peft",
        "deberta-classification",
        "deberta-tagging",
    ] {
        let bundle = Bundle::open(name);
        check_gradients(&bundle.model, with_dropout(bundle.options()), &first_items(&bundle, 3), name);
    }
}

#[test]
fn projection_layer_subset_and_head_alone() {
    let bundle = Bundle::open("bert-classification");
    let set = first_items(&bundle, 3);
    let mut options = with_dropout(bundle.options());
    options.prefix.projection = Some(7);
    check_gradients(&bundle.model, options.clone(), &set, "projection");
    options.prefix.layers = vec![1];
    check_gradients(&bundle.model, options.clone(), &set, "projection of one layer");
    options.prefix.projection = None;
    options.prefix.layers = vec![2];
    options.prefix.shifted = false;
    check_gradients(&bundle.model, options.clone(), &set, "last layer only");
    options.prefix.length = 0;
    check_gradients(&bundle.model, options, &set, "head alone");
}

/// A model of random weights.
pub fn random_model(spec: Specification, dtype: DType) -> FrozenModel {
    FrozenModel::synthetic(spec, dtype, 0.3, 1).unwrap()
}

/// Everything that a specification can say, at once: pre-norm RMS norms without betas, grouped heads, layers that share
/// weights, an embedding narrower than the hidden size with its own norm, no token types, no linear biases.
pub fn synthetic(place: NormPlace, mask: MaskKind) -> Specification {
    Specification {
        family: "synthetic".into(),
        layers: 4,
        layer_weights: vec![0, 1, 1, 0],
        hidden_size: 24,
        embedding_size: 10,
        heads: 6,
        kv_heads: 2,
        head_dim: 6,
        ffn_size: 37,
        vocabulary: 50,
        token_types: 0,
        positions: Positions::Learned { table: 100, first: 2, padding_id: Some(1) },
        mask,
        window: None,
        readout: Readout::First,
        norm: NormKind::RmsNorm,
        norm_place: place,
        norm_epsilon: 1e-5,
        embedding_norm: place == NormPlace::Post,
        final_norm: place == NormPlace::Pre,
        activation: Activation::GeluTanh,
        biases: Biases::NONE,
        query_key_norm: false,
        tied_head: false,
        block_dropout: true,
        hidden_dropout: 0.1,
        attention_dropout: 0.1,
        initializer_range: 0.02,
        labels: None,
    }
}

/// Sequences on both sides of a block of queries, one of a single token.
fn synthetic_set(task: TaskKind) -> FeatureSet {
    let mut set = FeatureSet { examples: 4, ..FeatureSet::default() };
    for (example, length) in [70, 1, 9, 64].into_iter().enumerate() {
        let ids: Vec<u32> = (0..length).map(|i| ((i * 7 + example * 3) % 50) as u32).collect();
        let (readout, targets) = match task {
            TaskKind::Tagging => {
                ((0..length as u32).step_by(2).collect::<Vec<_>>(), (0..length as i32).step_by(2).map(|i| i % 3).collect())
            }
            TaskKind::Qa => ((0..length as u32).collect(), vec![0, length as i32 - 1]),
            _ => (vec![length as u32 - 1], vec![(example % 3) as i32]),
        };
        set.sequences.push(Sequence { ids, readout, separator: length as u32 / 3, ..Sequence::default() });
        set.features.push(Feature { example, first_sequence: example, sequences: 1, targets });
    }
    set
}

#[test]
fn one_forward_and_backward_serve_every_specification() {
    let rotary = Positions::Rotary(Rotary { limit: 100, frequencies: vec![1.0, 0.3, 0.1], factor: 1.2 });
    let cases = [
        (synthetic(NormPlace::Pre, MaskKind::Full), DType::F16, HeadKind::Linear),
        (synthetic(NormPlace::Post, MaskKind::Separator), DType::F32, HeadKind::Linear),
        (
            Specification {
                positions: rotary.clone(),
                query_key_norm: true,
                activation: Activation::SwiGlu,
                biases: Biases { query_key_value: true, ..Biases::NONE },
                block_dropout: false,
                ..synthetic(NormPlace::Pre, MaskKind::Causal)
            },
            DType::BF16,
            HeadKind::Score,
        ),
        (
            Specification {
                positions: rotary,
                activation: Activation::SwiGlu,
                biases: Biases::ALL,
                ..synthetic(NormPlace::Post, MaskKind::Causal)
            },
            DType::F32,
            HeadKind::Score,
        ),
    ];
    for (spec, dtype, head) in cases {
        let name = format!("{:?} {:?}", spec.norm_place, spec.mask);
        let model = FrozenModel::synthetic(spec, dtype, 0.3, 1).unwrap();
        for task in [TaskKind::Classification, TaskKind::Tagging, TaskKind::Qa] {
            let prefix = PrefixOptions { length: 3, layers: vec![0, 1, 3], projection: None, shifted: true, dropout: 0.2 };
            let options = EngineOptions {
                hidden_dropout: 0.1,
                attention_dropout: 0.1,
                seed: 7,
                ..EngineOptions::new(prefix, vec![HeadSpec::new(task, head, 3, &model.spec)])
            };
            check_gradients(&model, options, &synthetic_set(task), &format!("{name} {task:?}"));
        }
    }
}

/// A sequence of every length with an answer behind its separator; the head reads the rows that predict it.
fn answers(grouping: Grouping) -> FeatureSet {
    let mut set = FeatureSet { examples: 3, ..FeatureSet::default() };
    for (example, length) in [70, 5, 33].into_iter().enumerate() {
        let first_sequence = set.sequences.len();
        let labels: &[u32] = if grouping == Grouping::PerSequence { &[3, 1, 2] } else { &[3] };
        for &count in labels {
            let ids: Vec<u32> = (0..length + count - 1).map(|i| (i * 7 + example as u32 * 3 + count) % 50).collect();
            let rows = if grouping == Grouping::PerRow { 1 } else { count };
            set.sequences.push(Sequence {
                ids,
                readout: (length - 1..length - 1 + rows).collect(),
                predicts: (0..rows).map(|i| (i * 11 + count) % 50).collect(),
                separator: length - 1,
                blank: Some(length / 2),
                ..Sequence::default()
            });
        }
        let targets = match grouping {
            // One row of one sequence is to predict nothing.
            Grouping::PerToken => vec![7, if example == 0 { -100 } else { 49 }, 0],
            _ => vec![(example % 2) as i32],
        };
        set.features.push(Feature { example, first_sequence, sequences: labels.len(), targets });
    }
    set
}

/// The language-model head over all of its vocabulary, by words and for scores of sequences; separators and
/// two-dimensional positions, which are not shifted.
#[test]
fn frozen_language_model_heads() {
    let two_dimensional = Positions::TwoDimensional { table: 101 };
    let learned = Positions::Learned { table: 100, first: 0, padding_id: None };
    for (mask, positions, tied_head, head) in [
        (MaskKind::Causal, learned.clone(), false, HeadSpec::next_tokens()),
        (MaskKind::Separator, two_dimensional.clone(), true, HeadSpec::scored_sequences()),
        (MaskKind::Full, learned.clone(), false, HeadSpec::words(vec![5, 0, 49], MaskKind::Full)),
        (MaskKind::Full, learned.clone(), true, HeadSpec::words(vec![5, 0, 49], MaskKind::Full)),
        (MaskKind::Separator, two_dimensional, false, HeadSpec::words(vec![5, 0, 49], MaskKind::Separator)),
    ] {
        let spec = Specification { embedding_size: 24, positions, tied_head, ..synthetic(NormPlace::Pre, mask) };
        let model = random_model(spec, DType::F16);
        let name = format!("{mask:?} {head:?}");
        let set = answers(head.grouping);
        let prefix = PrefixOptions { length: 3, layers: vec![0, 1, 3], projection: None, shifted: model.spec.shifts(), dropout: 0.2 };
        let options = EngineOptions { hidden_dropout: 0.1, attention_dropout: 0.1, seed: 7, ..EngineOptions::new(prefix, vec![head]) };
        check_gradients(&model, options, &set, &name);
    }
}

/// Relative positions: texts longer than the span and shorter, both terms and each alone; the head's rows are the queries of
/// the last layer.
#[test]
fn relative_positions() {
    for (span, keys, queries) in [(20, true, true), (100, true, true), (30, true, false), (30, false, true)] {
        let spec = Specification {
            kv_heads: 6,
            positions: Positions::Relative { span, keys, queries },
            biases: Biases { except_key: true, ..Biases::ALL },
            ..synthetic(NormPlace::Post, MaskKind::Full)
        };
        let model = random_model(spec, DType::F16);
        for task in [TaskKind::Classification, TaskKind::Tagging] {
            let prefix = PrefixOptions { length: 3, layers: vec![0, 1, 3], projection: None, shifted: true, dropout: 0.2 };
            let options = EngineOptions {
                hidden_dropout: 0.1,
                attention_dropout: 0.1,
                seed: 7,
                ..EngineOptions::new(prefix, vec![HeadSpec::new(task, HeadKind::Context, 3, &model.spec)])
            };
            check_gradients(&model, options, &synthetic_set(task), &format!("span {span} {keys} {queries} {task:?}"));
        }
    }
}

/// Trained embeddings in front of the input, alone and through a projection: every place of the norms, narrow embeddings,
/// every mask and kind of positions, one layer, and a head that reads every token.
#[test]
fn prompts() {
    let rotary = Positions::Rotary(Rotary { limit: 100, frequencies: vec![1.0, 0.3, 0.1], factor: 1.2 });
    let wide = |spec: Specification| Specification { embedding_size: 24, ..spec };
    let relative = Specification {
        kv_heads: 6,
        positions: Positions::Relative { span: 20, keys: true, queries: true },
        biases: Biases { except_key: true, ..Biases::ALL },
        token_types: 2,
        ..wide(synthetic(NormPlace::Post, MaskKind::Full))
    };
    let rotated = Specification {
        positions: rotary,
        query_key_norm: true,
        activation: Activation::SwiGlu,
        ..wide(synthetic(NormPlace::Pre, MaskKind::Causal))
    };
    let blocks =
        Specification { positions: Positions::TwoDimensional { table: 101 }, ..wide(synthetic(NormPlace::Pre, MaskKind::Separator)) };
    let one_layer = Specification { layers: 1, layer_weights: vec![0], ..synthetic(NormPlace::Post, MaskKind::Full) };
    let cases = [
        (synthetic(NormPlace::Post, MaskKind::Full), TaskKind::Tagging),
        (synthetic(NormPlace::Pre, MaskKind::Causal), TaskKind::Classification),
        (wide(synthetic(NormPlace::Pre, MaskKind::Full)), TaskKind::Qa),
        (relative, TaskKind::Classification),
        (rotated, TaskKind::Tagging),
        (blocks, TaskKind::Classification),
        (one_layer, TaskKind::Qa),
    ];
    for (number, (spec, task)) in cases.into_iter().enumerate() {
        let model = random_model(spec, DType::F16);
        for (memory, projection) in MemoryMode::every().zip([None, Some(5), None]) {
            let prefix = PrefixOptions { length: 3, layers: Vec::new(), projection, shifted: model.spec.shifts(), dropout: 0.0 };
            let options = EngineOptions {
                hidden_dropout: 0.1,
                attention_dropout: 0.1,
                seed: 7,
                memory,
                ..EngineOptions::new(prefix, vec![HeadSpec::new(task, HeadKind::Linear, 3, &model.spec)])
            };
            check_gradients(&model, options, &synthetic_set(task), &format!("prompt {number} {projection:?} {memory:?}"));
        }
    }
}
