//! Times the CPU backend on a model of MiniLM's shape with random weights: one optimizer step (forward, backward,
//! AdamW; all dropouts on) and one evaluation, in tokens a second. `cargo bench`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ptune::backend::Stream;
use ptune::backend::cpu::Cpu;
use ptune::checkpoint::FrozenModel;
use ptune::data::{Feature, FeatureSet, Sequence};
use ptune::engine::{Capacity, Engine, EngineOptions, PrefixOptions, Update};
use ptune::model::{HeadKind, HeadSpec, TaskKind};
use safetensors::{Dtype, tensor::TensorView};
use std::path::Path;

const LAYERS: usize = 6;
const HIDDEN: usize = 384;
const FFN: usize = 1536;
const VOCABULARY: usize = 30522;
const SEQUENCES: usize = 32;

fn write_model(directory: &Path) {
    let config = serde_json::json!({
        "model_type": "bert", "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": 12,
        "intermediate_size": FFN, "vocab_size": VOCABULARY, "max_position_embeddings": 512, "type_vocab_size": 2,
        "hidden_act": "gelu", "attention_probs_dropout_prob": 0.1
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_string(), vec![VOCABULARY, HIDDEN]),
        ("embeddings.position_embeddings.weight".to_string(), vec![512, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".to_string(), vec![2, HIDDEN]),
    ];
    let mut linear = |name: String, rows: usize, cols: usize| {
        shapes.push((format!("{name}.weight"), if cols == 0 { vec![rows] } else { vec![rows, cols] }));
        shapes.push((format!("{name}.bias"), vec![rows]));
    };
    linear("embeddings.LayerNorm".into(), HIDDEN, 0);
    linear("pooler.dense".into(), HIDDEN, HIDDEN);
    for layer in 0..LAYERS {
        let layer = format!("encoder.layer.{layer}");
        for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            linear(format!("{layer}.{part}"), HIDDEN, HIDDEN);
        }
        linear(format!("{layer}.attention.output.LayerNorm"), HIDDEN, 0);
        linear(format!("{layer}.intermediate.dense"), FFN, HIDDEN);
        linear(format!("{layer}.output.dense"), HIDDEN, FFN);
        linear(format!("{layer}.output.LayerNorm"), HIDDEN, 0);
    }
    let mut random = Stream::new([1, 2]);
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(name, shape)| {
            let mean = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
            let count: usize = shape.iter().product();
            (0..count.div_ceil(2))
                .flat_map(|_| random.normal_pair())
                .take(count)
                .flat_map(|value| half::f16::from_f64(mean + 0.02 * value).to_le_bytes())
                .collect()
        })
        .collect();
    let views: Vec<_> = shapes
        .iter()
        .zip(&data)
        .map(|((name, shape), bytes)| (name.clone(), TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()))
        .collect();
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors")).unwrap();
}

fn sentences(length: usize) -> FeatureSet {
    let mut random = Stream::new([3, 4]);
    let mut set = FeatureSet { examples: SEQUENCES, ..FeatureSet::default() };
    for example in 0..SEQUENCES {
        let ids = (0..length).map(|_| random.below(VOCABULARY) as u32).collect();
        set.sequences.push(Sequence { ids, readout: vec![0], ..Sequence::default() });
        set.features.push(Feature { example, first_sequence: example, sequences: 1, targets: vec![(example % 2) as i32] });
    }
    set
}

fn step(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let model = FrozenModel::open(folder.path()).unwrap();
    for length in [32, 128] {
        let set = sentences(length);
        let features: Vec<usize> = (0..SEQUENCES).collect();
        let options = EngineOptions {
            prefix: PrefixOptions { length: 20, layers: (0..LAYERS).collect(), projection: None, shifted: true, dropout: 0.1 },
            head: HeadSpec::new(TaskKind::Classification, HeadKind::Linear, 2, &model.spec),
            hidden_dropout: 0.1,
            attention_dropout: 0.1,
            seed: 42,
        };
        let capacity = Capacity::for_items(&set, &options.head, SEQUENCES, true);
        let mut engine = Engine::new(Box::new(Cpu::<f32>::new()), &model, options, capacity).unwrap();
        let mut group = criterion.benchmark_group(format!("minilm, {SEQUENCES} x {length} tokens"));
        group.sample_size(10).throughput(Throughput::Elements((SEQUENCES * length) as u64));
        let mut number = 0;
        group.bench_function("train step", |bencher| {
            bencher.iter(|| {
                engine.begin_step(number, SEQUENCES);
                engine.accumulate(&set, &features, 0).unwrap();
                engine.finish_step(&Update { learning_rate: 1e-3, weight_decay: 0.0, max_grad_norm: Some(1.0) });
                number += 1;
                engine.flush_report()
            });
        });
        group.bench_function("evaluation", |bencher| bencher.iter(|| engine.forward(&set, &features).unwrap()));
        group.finish();
    }
}

criterion_group!(benches, step);
criterion_main!(benches);
