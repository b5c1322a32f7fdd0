//! Whole training steps on the emulated device: the golden bundles within their tolerances for fp16 activations, and
//! what must not change a result.

use crate::bundle::{BUNDLES, Bundle, PROMPTS};
use crate::golden::{self, Bounds};
use crate::invariants::State;
use ptune::backend::cuda::{Cuda, Emulated, Timing};
use ptune::backend::{Backend, DType};
use ptune::data::FeatureSet;
use ptune::engine::{Capacity, Engine, EngineOptions, StepReport, Update};

const UPDATE: Update = Update { learning_rate: 1e-2, weight_decay: 0.01, max_grad_norm: Some(1.0) };

/// Everything on the device happens as late as may be.
fn device(dtype: DType, order: u32) -> Box<dyn Backend> {
    timed(dtype, order, Timing::Late)
}

fn timed(dtype: DType, order: u32, timing: Timing) -> Box<dyn Backend> {
    Box::new(Cuda::new(Emulated::with_timing(order, timing), dtype).unwrap())
}

#[test]
fn bundles_in_fp16() {
    for name in BUNDLES.into_iter().chain(PROMPTS) {
        golden::check(name, &|| device(DType::F16, 0), |bundle| Bounds::of(bundle, "tolerance_fp16_activation_engine"));
    }
}

fn options(bundle: &Bundle) -> EngineOptions {
    let mut options = bundle.options();
    (options.prefix.dropout, options.hidden_dropout, options.attention_dropout) = (0.2, 0.1, 0.1);
    options
}

fn engine(bundle: &Bundle, set: &FeatureSet, options: EngineOptions, backend: Box<dyn Backend>) -> Engine {
    let capacity = Capacity::for_items(set, &options.heads[0], 8, true);
    Engine::new(backend, &bundle.model, options, capacity).unwrap()
}

fn step(engine: &mut Engine, set: &FeatureSet, number: u64, features: &[usize], size: usize) {
    engine.begin_step(number, features.iter().map(|&feature| set.targets(feature)).sum());
    let mut ordinal = 0;
    for chunk in features.chunks(size) {
        engine.accumulate(set, chunk, ordinal).unwrap();
        ordinal += chunk.iter().map(|&feature| set.features[feature].sequences).sum::<usize>();
    }
    engine.finish_step(&UPDATE);
}

fn run(bundle: &Bundle, options: EngineOptions, backend: Box<dyn Backend>) -> (State, Vec<StepReport>) {
    let set = bundle.features();
    let mut engine = engine(bundle, &set, options, backend);
    let features: Vec<usize> = (0..4).collect();
    let mut reports = Vec::new();
    for number in 0..2 {
        step(&mut engine, &set, number, &features, 4);
        reports.extend(engine.take_report());
    }
    reports.extend(engine.flush_report());
    assert_eq!(reports.len(), 2);
    (State::of(&mut engine), reports)
}

/// Every kind of head and readout, with all dropouts on, in both types; work on the device happens at once or late.
#[test]
fn any_order_of_threads_gives_the_same_bits() {
    for (name, dtype) in [
        ("bert-qa", DType::F16),
        ("bert-tagging", DType::BF16),
        ("roberta-classification-peft", DType::F16),
        ("deberta-tagging", DType::F16),
        ("deberta-classification", DType::BF16),
    ] {
        let bundle = Bundle::open(name);
        let mut options = options(&bundle);
        options.prefix.projection = (name == "bert-tagging").then_some(9);
        let first = run(&bundle, options.clone(), device(dtype, 0));
        for (order, timing) in [(0, Timing::Now), (1, Timing::Late), (5, Timing::Now)] {
            let found = run(&bundle, options.clone(), timed(dtype, order, timing));
            assert_eq!(found, first, "{name}: order {order}, {timing:?}");
        }
    }
}

/// The masks are the CPU backend's: with others, losses and gradients would differ in the second digit.
#[test]
fn a_step_with_dropout_is_the_cpus() {
    for name in ["bert-classification", "bert-multiple-choice", "bert-qa", "bert-tagging", "deberta-classification", "deberta-tagging"] {
        let bundle = Bundle::open(name);
        let set = bundle.features();
        let features: Vec<usize> = (3..9).collect();
        let found = [device(DType::F16, 0), Box::new(ptune::backend::cpu::Cpu::<f64>::new())].map(|backend| {
            let mut engine = engine(&bundle, &set, options(&bundle), backend);
            step(&mut engine, &set, 5, &features, 6);
            let names: Vec<String> = engine.trainables().into_iter().map(|tensor| tensor.name).collect();
            let gradients: Vec<f64> = names.iter().flat_map(|name| engine.gradient(name).unwrap()).collect();
            (engine.flush_report().unwrap(), gradients)
        });
        let [(found, gradient), (expected, exact)] = found;
        assert!((found.loss / expected.loss - 1.0).abs() < 2e-3, "{name}: loss {} and {}", found.loss, expected.loss);
        let distance = gradient.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        assert!(distance < 1e-2 * expected.grad_norm, "{name}: gradients differ by {distance:e} of {:e}", expected.grad_norm);
    }
}

/// Micro-batches add up to the large batch's gradient, to fp16's precision.
#[test]
fn accumulation_equals_the_large_batch() {
    for name in ["bert-multiple-choice", "bert-tagging"] {
        let bundle = Bundle::open(name);
        let set = bundle.features();
        let features: Vec<usize> = (3..9).collect();
        let [whole, parts] = [6, 2].map(|size| {
            let mut engine = engine(&bundle, &set, options(&bundle), device(DType::F16, 0));
            step(&mut engine, &set, 5, &features, size);
            (engine.gradient("prompt_embeddings").unwrap(), engine.flush_report().unwrap())
        });
        assert!((whole.1.loss / parts.1.loss - 1.0).abs() < 1e-5, "{name}: {} and {}", whole.1.loss, parts.1.loss);
        let distance = whole.0.iter().zip(&parts.0).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        assert!(distance < 2e-3 * whole.1.grad_norm, "{name}: {distance:e} of {:e}", whole.1.grad_norm);
    }
}

/// An engine whose gradients overflow fp16 at any large scale: the head's weights are huge, and wrong about some items.
fn overflowing(bundle: &Bundle, set: &FeatureSet, state: Option<&State>) -> Engine {
    let mut engine = engine(bundle, set, options(bundle), device(DType::F16, 0));
    let name = "base_model.classifier.weight";
    let values: Vec<f64> = (0..engine.values(name).unwrap().len()).map(|i| if i % 7 < 4 { 3000.0 } else { -3000.0 }).collect();
    engine.set_values(name, &values).unwrap();
    if let Some(state) = state {
        state.restore(&mut engine);
    }
    engine
}

/// Overflowing steps change nothing and halve the scale until gradients fit; when reports are read, and a stop in the
/// middle, change no bit of it.
#[test]
fn the_loss_scale_adapts() {
    const STEPS: u64 = 16;
    let bundle = Bundle::open("bert-classification");
    let set = bundle.features();
    let features: Vec<usize> = (0..6).collect();
    let mut whole = overflowing(&bundle, &set, None);
    let before = whole.adapter_tensors();
    let mut reports = Vec::new();
    for number in 0..STEPS {
        step(&mut whole, &set, number, &features, 6);
        reports.extend(whole.take_report());
        if number == 1 {
            reports.extend(whole.flush_report());
            assert!(whole.adapter_tensors() == before, "a step that overflowed changed something");
        }
    }
    reports.extend(whole.flush_report());
    assert_eq!(reports.len(), STEPS as usize);
    assert!(reports[0].skipped && reports[1].skipped && reports[0].loss.is_finite() && !reports[STEPS as usize - 1].skipped);
    let scales: Vec<f64> = reports.iter().map(|report| report.scale.unwrap()).collect();
    assert_eq!((scales[0], scales[1], scales[2]), (scales[0], scales[0], scales[0] / 2.0));
    let state = State::of(&mut whole);
    let updates = STEPS - reports.iter().filter(|report| report.skipped).count() as u64;
    assert!(state.update_counts.values().all(|&steps| steps == updates), "{:?} of {updates}", state.update_counts);

    let mut first = overflowing(&bundle, &set, None);
    for number in 0..2 {
        step(&mut first, &set, number, &features, 6);
    }
    let mut second = overflowing(&bundle, &set, Some(&State::of(&mut first)));
    for number in 2..STEPS {
        step(&mut second, &set, number, &features, 6);
    }
    assert!(State::of(&mut second) == state, "a stop in the middle changed something");
}
