//! What must not change a result: the number of threads, how a step is cut into micro-batches, how sequences are
//! packed, a stop in the middle.

use crate::bundle::{BUNDLES, Bundle};
use ptune::backend::cpu::Cpu;
use ptune::checkpoint::{StateTensors, WeightFormat};
use ptune::data::FeatureSet;
use ptune::engine::{Capacity, Engine, EngineOptions, MemoryMode, StepReport, Update};
use std::collections::BTreeMap;

const UPDATE: Update = Update { learning_rate: 1e-2, weight_decay: 0.01, max_grad_norm: Some(1.0) };

fn options(bundle: &Bundle) -> EngineOptions {
    let mut options = bundle.options();
    (options.prefix.dropout, options.hidden_dropout, options.attention_dropout) = (0.2, 0.1, 0.1);
    options
}

/// One step over `features` in micro-batches of `size`.
fn step(engine: &mut Engine, set: &FeatureSet, number: u64, features: &[usize], size: usize) -> StepReport {
    engine.begin_step(number, features.iter().map(|&feature| set.targets(feature)).sum());
    let mut ordinal = 0;
    for chunk in features.chunks(size) {
        engine.accumulate(set, chunk, ordinal).unwrap();
        ordinal += chunk.iter().map(|&feature| set.features[feature].sequences).sum::<usize>();
    }
    engine.finish_step(&UPDATE);
    engine.flush_report().unwrap()
}

fn engine<T: ptune::backend::cpu::Number>(bundle: &Bundle, set: &FeatureSet, options: EngineOptions) -> Engine {
    let capacity = Capacity::for_items(set, &options.heads[0], 8, true);
    Engine::new(Box::new(Cpu::<T>::new()), &bundle.model, options, capacity).unwrap()
}

/// Everything that a checkpoint keeps of an engine.
#[derive(Debug, PartialEq)]
pub struct State {
    tensors: BTreeMap<String, Vec<f32>>,
    pub update_counts: BTreeMap<String, u64>,
}

impl State {
    pub fn of(engine: &mut Engine) -> State {
        let update_counts = engine.update_counts();
        let shapes = engine.state_tensors();
        let read = |(name, shape): (String, Vec<usize>)| {
            let mut values = vec![f32::NAN; shape.iter().product()];
            engine.read_state(&name, 0, &mut values).unwrap();
            (name, values)
        };
        let tensors = shapes.into_iter().map(read).collect();
        State { tensors, update_counts }
    }

    /// As a checkpoint does it: piece by piece.
    pub fn restore(&self, engine: &mut Engine) {
        engine.set_update_counts(&self.update_counts).unwrap();
        for (name, values) in &self.tensors {
            for (piece, part) in values.chunks(1000).enumerate() {
                engine.write_state(name, piece * 1000, part).unwrap();
            }
        }
    }
}

fn three_steps(bundle: &Bundle, options: EngineOptions, micro_batch: usize) -> (State, Vec<StepReport>) {
    let set = bundle.features();
    let mut engine = engine::<f32>(bundle, &set, options);
    let features: Vec<usize> = (0..8).collect();
    let reports = (0..3).map(|number| step(&mut engine, &set, number, &features, micro_batch)).collect();
    (State::of(&mut engine), reports)
}

/// Every family, a prefix that begins above the lowest layer too, matrices of 16 and of 8 bits.
#[test]
fn memory_modes_give_the_same_bits() {
    for (number, name) in BUNDLES.into_iter().enumerate() {
        let bundle = Bundle::open(name);
        for (lowest, weight_format) in [(0, WeightFormat::Fp16), (1, WeightFormat::Fp16), (0, WeightFormat::Int8)] {
            let mut options = EngineOptions { weight_format, ..options(&bundle) };
            options.prefix.layers.retain(|&layer| layer >= lowest);
            let plain = three_steps(&bundle, options.clone(), 3);
            for (index, mode) in MemoryMode::every().enumerate() {
                // Over the bundles each mode goes with each count.
                let memory = MemoryMode { together: 1 + (index + number + lowest) % 3, ..mode };
                let options = EngineOptions { memory, ..options.clone() };
                assert!(three_steps(&bundle, options, 3) == plain, "{name} from layer {lowest} in {weight_format:?}: {memory:?}");
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for name in ["bert-qa", "bert-tagging", "roberta-classification-peft", "deberta-tagging", "bert-prompt-classification"] {
        let bundle = Bundle::open(name);
        let mut options = options(&bundle);
        options.prefix.projection = (name == "bert-tagging").then_some(9);
        let runs = [1, 2, 5].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| three_steps(&bundle, options.clone(), 8))
        });
        assert_eq!(runs[0], runs[1], "{name}: 1 thread against 2");
        assert_eq!(runs[0], runs[2], "{name}: 1 thread against 5");
    }
}

/// In f64 the sums of micro-batches differ from the large batch's by rounding alone (1e-16 times a few thousand
/// terms) only if every mask is the same: any other mask changes the loss in the second digit.
#[test]
fn accumulation_equals_the_large_batch() {
    for name in [
        "bert-classification",
        "bert-multiple-choice",
        "bert-qa",
        "bert-tagging",
        "deberta-classification",
        "bert-prompt-classification",
        "llama-prompt-causal-lm",
    ] {
        let bundle = Bundle::open(name);
        let set = bundle.features();
        let features: Vec<usize> = (3..11).collect();
        let run = |size: usize| {
            let mut engine = engine::<f64>(&bundle, &set, options(&bundle));
            let report = step(&mut engine, &set, 5, &features, size);
            let names: Vec<String> = engine.trainables().into_iter().map(|tensor| tensor.name).collect();
            let gradients: Vec<Vec<f64>> = names.iter().map(|name| engine.gradient(name).unwrap()).collect();
            (report, gradients)
        };
        let (whole, gradients) = run(8);
        for size in [1, 3, 4] {
            let (report, found) = run(size);
            assert!((report.loss / whole.loss - 1.0).abs() < 1e-12, "{name}: micro-batches of {size}");
            for (a, b) in gradients.iter().flatten().zip(found.iter().flatten()) {
                assert!((a - b).abs() < 1e-12 * whole.grad_norm, "{name}: micro-batches of {size}: {a} and {b}");
            }
        }
        // Other ordinals are other masks: the test would see it.
        let mut other = engine::<f64>(&bundle, &set, options(&bundle));
        other.begin_step(5, features.iter().map(|&feature| set.targets(feature)).sum());
        other.accumulate(&set, &features, 1).unwrap();
        other.finish_step(&UPDATE);
        let loss = other.flush_report().unwrap().loss;
        assert!((loss / whole.loss - 1.0).abs() > 1e-9, "{name}: masks do not depend on the ordinal");
    }
}

/// A sequence's logits do not depend on what is packed beside it.
#[test]
fn packing_does_not_leak() {
    for name in [
        "bert-classification",
        "bert-tagging",
        "bert-qa",
        "deberta-classification",
        "deberta-tagging",
        "bert-prompt-classification",
        "llama-prompt-causal-lm",
    ] {
        let bundle = Bundle::open(name);
        let set = bundle.features();
        let mut engine = engine::<f64>(&bundle, &set, bundle.options());
        let together = engine.forward(&set, &[0, 1, 2, 3, 4]).unwrap();
        for (feature, expected) in together.iter().enumerate() {
            let alone = engine.forward(&set, &[feature]).unwrap();
            for (a, b) in alone[0].iter().zip(expected) {
                assert!((a - b).abs() < 1e-12, "{name}: feature {feature} alone and packed: {a} and {b}");
            }
        }
    }
}

#[test]
fn a_restored_engine_goes_on_with_the_same_bits() {
    let bundle = Bundle::open("bert-tagging");
    let set = bundle.features();
    let mut options = options(&bundle);
    options.prefix.projection = Some(9);
    let features: Vec<usize> = (0..8).collect();
    let mut whole = engine::<f32>(&bundle, &set, options.clone());
    for number in 0..4 {
        step(&mut whole, &set, number, &features, 4);
    }
    let mut first = engine::<f32>(&bundle, &set, options.clone());
    for number in 0..2 {
        step(&mut first, &set, number, &features, 4);
    }
    let mut second = engine::<f32>(&bundle, &set, EngineOptions { ..options });
    let state = State::of(&mut first);
    state.restore(&mut second);
    assert_eq!(State::of(&mut second), state);
    for number in 2..4 {
        step(&mut second, &set, number, &features, 4);
    }
    assert_eq!(State::of(&mut whole), State::of(&mut second));
    assert_eq!(whole.adapter_tensors(), second.adapter_tensors());
}

/// A batch without a target changes nothing: neither values nor moments nor step counts.
#[test]
fn a_step_without_targets_leaves_the_trainables_alone() {
    let bundle = Bundle::open("bert-classification");
    let mut set = bundle.features();
    let mut engine = engine::<f32>(&bundle, &set, options(&bundle));
    step(&mut engine, &set, 0, &[0, 1], 2);
    let before = State::of(&mut engine);
    set.features[2].targets = vec![-100];
    let report = step(&mut engine, &set, 1, &[2], 1);
    assert_eq!((report.loss, report.grad_norm), (0.0, 0.0));
    assert_eq!(State::of(&mut engine), before);
}

/// Evaluation does not depend on whether the tables of relative positions are kept or, for their dropout, made anew in
/// each layer, nor on how many of their rows the plan's longest text reaches.
#[test]
fn relative_tables_kept_and_made_anew_agree() {
    for name in ["deberta-classification", "deberta-tagging"] {
        let bundle = Bundle::open(name);
        let set = bundle.features();
        let shortest = (0..set.features.len()).min_by_key(|&feature| set.tokens(feature)).unwrap();
        let mut dropping = engine::<f64>(&bundle, &set, options(&bundle));
        step(&mut dropping, &set, 0, &[0, 1, 2], 3);
        let mut keeping = engine::<f64>(&bundle, &set, bundle.options());
        let small = ptune::data::FeatureSet { features: vec![set.features[shortest].clone()], ..bundle.features() };
        let sequences = set.sequences_of(shortest).to_vec();
        let small = ptune::data::FeatureSet {
            features: vec![ptune::data::Feature { first_sequence: 0, ..small.features[0].clone() }],
            sequences,
            ..small
        };
        let mut short = engine::<f64>(&bundle, &small, bundle.options());
        for tensor in dropping.trainables() {
            let values = dropping.values(&tensor.name).unwrap();
            keeping.set_values(&tensor.name, &values).unwrap();
            short.set_values(&tensor.name, &values).unwrap();
        }
        let expected = dropping.forward(&set, &[shortest]).unwrap().concat();
        let near = |found: Vec<Vec<f64>>| found.concat().iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(keeping.forward(&set, &[shortest]).unwrap()), "{name}: kept");
        assert!(near(short.forward(&small, &[0]).unwrap()), "{name}: fewer rows");
    }
}

/// A gradient that is not finite must not reach what is trained.
#[test]
fn a_bad_gradient_is_not_applied() {
    let bundle = Bundle::open("bert-classification");
    let set = bundle.features();
    let mut engine = engine::<f32>(&bundle, &set, options(&bundle));
    let name = "base_model.classifier.weight";
    let mut values = engine.values(name).unwrap();
    values[0] = f64::from(f32::MAX);
    values[1] = -f64::from(f32::MAX);
    engine.set_values(name, &values).unwrap();
    let before = engine.adapter_tensors();
    let report = step(&mut engine, &set, 0, &[0, 1, 2], 3);
    assert!(!report.loss.is_finite() || !report.grad_norm.is_finite());
    assert_eq!(engine.adapter_tensors(), before);
}
