//! The frozen language-model head: chunks of its rows, labels as words and as sequences, generated text, a prefix made
//! from text.

use crate::bundle::Bundle;
use crate::gradients::{random_model, synthetic};
use ptune::backend::DType;
use ptune::backend::cpu::Cpu;
use ptune::checkpoint::FrozenModel;
use ptune::data::{Batch, Feature, FeatureSet, Packing, Sequence};
use ptune::engine::{Capacity, Engine, EngineOptions, PrefixOptions, Update};
use ptune::model::{HeadSpec, MaskKind, NormPlace, Positions, Specification};

/// A causal model of random weights, whose positions do not depend on ids.
fn causal() -> FrozenModel {
    let positions = Positions::Learned { table: 100, first: 2, padding_id: None };
    let spec = Specification { embedding_size: 24, positions, ..synthetic(NormPlace::Pre, MaskKind::Causal) };
    random_model(spec, DType::F16)
}

/// Causal models of every kind of position and norm: learned, rotated, rotated behind a norm.
fn causal_models() -> Vec<(&'static str, FrozenModel)> {
    let bundles = ["gpt2-classification", "llama-causal-lm", "qwen3-classification"];
    let bundles = bundles.map(|name| (name, Bundle::open(name).model));
    bundles.into_iter().chain([("synthetic", causal())]).collect()
}

fn options(layers: usize, length: usize, head: HeadSpec) -> EngineOptions {
    let prefix = PrefixOptions { length, layers: (0..layers).collect(), projection: None, shifted: true, dropout: 0.0 };
    EngineOptions { seed: 3, ..EngineOptions::new(prefix, vec![head]) }
}

fn ids(length: usize, salt: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * i * 7 + i * 3 + salt * 5) % 50) as u32).collect()
}

/// One sequence a feature; rows from `first` on predict the tokens behind them.
fn texts(texts: &[Vec<u32>], first: usize) -> FeatureSet {
    let mut set = FeatureSet { examples: texts.len(), ..FeatureSet::default() };
    for (example, ids) in texts.iter().enumerate() {
        let targets: Vec<i32> = ids[first + 1..].iter().map(|&id| id as i32).collect();
        let readout = if targets.is_empty() { vec![ids.len() as u32 - 1] } else { (first as u32..ids.len() as u32 - 1).collect() };
        set.sequences.push(Sequence { ids: ids.clone(), readout, ..Sequence::default() });
        set.features.push(Feature { example, first_sequence: example, sequences: 1, targets });
    }
    set
}

fn prompts(prompts: &[Vec<u32>]) -> FeatureSet {
    let mut set = FeatureSet { examples: prompts.len(), ..FeatureSet::default() };
    for (example, ids) in prompts.iter().enumerate() {
        set.sequences.push(Sequence { ids: ids.clone(), readout: vec![ids.len() as u32 - 1], ..Sequence::default() });
        set.features.push(Feature { example, first_sequence: example, sequences: 1, targets: Vec::new() });
    }
    set
}

fn engine(model: &FrozenModel, options: EngineOptions, capacity: Capacity) -> Engine {
    let mut engine = Engine::new(Box::new(Cpu::<f64>::new()), model, options, capacity).unwrap();
    // Larger than the initial prefix, so that it matters.
    for tensor in engine.trainables() {
        let values: Vec<f64> = (0..tensor.shape[0] * tensor.shape[1]).map(|i| ((i * 37 % 101) as f64 - 50.0) / 40.0).collect();
        engine.set_values(&tensor.name, &values).unwrap();
    }
    engine
}

#[test]
fn chunks_of_rows_change_nothing() {
    let model = causal();
    let set = texts(&[ids(20, 1), ids(7, 2), ids(31, 3)], 2);
    let run = |logit_rows: usize| {
        let options = options(4, 4, HeadSpec::next_tokens());
        let capacity = Capacity { logit_rows, ..Capacity::for_items(&set, &options.heads[0], 3, true) };
        let mut engine = engine(&model, options, capacity);
        let logits = engine.forward(&set, &[0, 1, 2]).unwrap();
        engine.begin_step(0, set.features.iter().map(|feature| feature.targets.len()).sum());
        engine.accumulate(&set, &[0, 1, 2], 0).unwrap();
        engine.finish_step(&Update { learning_rate: 0.0, weight_decay: 0.0, max_grad_norm: None });
        (logits, engine.gradient("prompt_embeddings").unwrap(), engine.flush_report().unwrap().loss)
    };
    let (logits, gradient, loss) = run(0);
    for chunk in [1, 7, 16] {
        let (found, own, own_loss) = run(chunk);
        // A product of another shape may add in another order.
        let near = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-13 * (1.0 + a.abs()));
        assert!(near(&found.concat(), &logits.concat()), "chunks of {chunk}");
        assert!(near(&own, &gradient) && (own_loss - loss).abs() < 1e-12, "chunks of {chunk}");
    }
    // The loss is the mean over all targets, and the pairs are log-probabilities and hits.
    let pairs: Vec<f64> = logits.concat();
    let mean = pairs.iter().step_by(2).sum::<f64>() / (pairs.len() / 2) as f64;
    assert!((mean + loss).abs() < 1e-12 && pairs.iter().skip(1).step_by(2).all(|&hit| hit == 0.0 || hit == 1.0));
}

/// A label of one token scored as a word, and as a sequence: the same loss and gradient, because the scores differ by the
/// row's log-sum-exp alone. A label of several tokens scores the sum of what its tokens score one by one.
#[test]
fn words_and_sequences_agree() {
    let positions = Positions::TwoDimensional { table: 101 };
    let spec = Specification { embedding_size: 24, positions, tied_head: true, ..synthetic(NormPlace::Pre, MaskKind::Separator) };
    let model = random_model(spec, DType::F16);
    let words = [9u32, 31, 4];
    let frame = Sequence { ids: ids(23, 1), separator: 22, blank: Some(8), readout: vec![22], ..Sequence::default() };
    let filled = |tokens: &[u32]| {
        let mut sequence = frame.clone();
        sequence.ids.extend(&tokens[..tokens.len() - 1]);
        sequence.readout = (22..22 + tokens.len() as u32).collect();
        sequence.predicts = tokens.to_vec();
        sequence
    };
    let set = |sequences: Vec<Sequence>| FeatureSet {
        features: vec![Feature { sequences: sequences.len(), targets: vec![1], ..Feature::default() }],
        sequences,
        examples: 1,
    };
    let run = |head: HeadSpec, set: &FeatureSet| {
        let mut options = options(4, 4, head);
        options.prefix.shifted = false;
        let mut engine = engine(&model, options.clone(), Capacity::for_items(set, &options.heads[0], 1, true));
        let logits = engine.forward(set, &[0]).unwrap().concat();
        engine.begin_step(0, 1);
        engine.accumulate(set, &[0], 0).unwrap();
        engine.finish_step(&Update { learning_rate: 0.0, weight_decay: 0.0, max_grad_norm: None });
        (logits, engine.gradient("prompt_embeddings").unwrap(), engine.flush_report().unwrap().loss)
    };
    let (logits, gradient, loss) = run(HeadSpec::words(words.to_vec(), MaskKind::Separator), &set(vec![frame.clone()]));
    let (scores, own, own_loss) = run(HeadSpec::scored_sequences(), &set(words.iter().map(|&word| filled(&[word])).collect()));
    assert!((loss - own_loss).abs() < 1e-12);
    for (logit, score) in logits.iter().zip(&scores) {
        assert!(((logit - logits[0]) - (score - scores[0])).abs() < 1e-12);
    }
    let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
    let distance = gradient.iter().zip(&own).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 1e-6 && distance < 1e-12 * norm, "{distance:e} of {norm:e}");

    let (scores, ..) = run(HeadSpec::scored_sequences(), &set(vec![filled(&[9, 31, 4]), filled(&[31])]));
    let mut expected = 0.0;
    for length in 1..=3 {
        // The sequence up to a token, of which the last row alone is scored.
        let mut part = filled(&words[..length]);
        (part.readout, part.predicts) = (vec![21 + length as u32], vec![words[length - 1]]);
        expected += run(HeadSpec::scored_sequences(), &set(vec![part, filled(&[31])])).0[0];
    }
    assert!((scores[0] - expected).abs() < 1e-12, "{} and {expected}", scores[0]);
}

/// Text from the cache is the text that the whole sequence, read anew for every token, goes on with.
#[test]
fn the_cache_changes_no_token() {
    for (name, model) in causal_models() {
        check_cache(name, &model);
    }
}

fn check_cache(name: &str, model: &FrozenModel) {
    let starts = [ids(3, 1), ids(1, 2), ids(17, 3), ids(9, 4)];
    const LIMIT: usize = 12;
    let all: Vec<usize> = (0..starts.len()).collect();
    // Alone, behind a prefix and behind a prompt.
    for (length, layers) in [(0, model.spec.layers), (5, model.spec.layers), (5, 0)] {
        let options = options(layers, length, HeadSpec::next_tokens());
        let prompts_set = prompts(&starts);
        let capacity = Capacity { generated: LIMIT, ..Capacity::for_items(&prompts_set, &options.heads[0], starts.len(), false) };
        let mut cached = engine(model, options.clone(), capacity);
        let found = cached.generate(&prompts_set, &all, LIMIT, &[]).unwrap();

        let mut texts = starts.clone();
        for step in 0..LIMIT {
            let set = prompts(&texts);
            let capacity = Capacity { generated: 1, ..Capacity::for_items(&set, &options.heads[0], starts.len(), false) };
            let mut plain = engine(model, options.clone(), capacity);
            for (text, next) in texts.iter_mut().zip(plain.generate(&set, &all, 1, &[]).unwrap()) {
                text.extend(&next);
            }
            for (slot, (found, text)) in found.iter().zip(&texts).enumerate() {
                assert_eq!(found[step], *text.last().unwrap(), "{name}: prefix {length} in {layers} layers, text {slot}, token {step}");
            }
        }
        let distinct: std::collections::HashSet<u32> = found.concat().into_iter().collect();
        assert!(distinct.len() > 3, "{name}: {found:?} would hide mistakes");

        // Ended early, each where its stop comes first; the others go on as before. A second run starts afresh.
        let stop = found[2][4];
        let ended = cached.generate(&prompts_set, &all, LIMIT, &[stop]).unwrap();
        for (whole, part) in found.iter().zip(&ended) {
            let end = whole.iter().position(|&token| token == stop).unwrap_or(LIMIT);
            assert_eq!(part, &whole[..end]);
        }
        let message = cached.generate(&prompts_set, &all, LIMIT + 1, &[]).unwrap_err().to_string();
        assert!(message.contains("beyond the memory plan"), "{message}");
    }
}

/// A prefix made from the beginning of a text gives the rest the log-probabilities that it has in the whole text; and so
/// does a prompt, which is the text's own embeddings.
#[test]
fn a_prefix_from_text_is_the_text() {
    for (name, model) in causal_models() {
        check_text_prefix(name, &model, model.spec.layers);
        check_text_prefix(name, &model, 0);
    }
}

fn check_text_prefix(name: &str, model: &FrozenModel, layers: usize) {
    let whole = ids(40, 6);
    const CUT: usize = 13;
    let set = texts(std::slice::from_ref(&whole), CUT);
    let bare = options(model.spec.layers, 0, HeadSpec::next_tokens());
    let mut plain =
        Engine::new(Box::new(Cpu::<f64>::new()), model, bare.clone(), Capacity::for_items(&set, &bare.heads[0], 1, false)).unwrap();
    let expected = plain.forward(&set, &[0]).unwrap().concat();

    let rest = texts(&[whole[CUT..].to_vec()], 0);
    let options = options(layers, CUT, HeadSpec::next_tokens());
    let capacity = Capacity::for_items(&rest, &options.heads[0], 1, true);
    let mut engine = engine(model, options, Capacity { tokens: capacity.tokens.max(CUT), ..capacity });
    engine.set_prefix_from_tokens(&whole[..CUT]).unwrap();
    let found = engine.forward(&rest, &[0]).unwrap().concat();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-10, "{name}, prefix in {layers} layers: {found} and {expected}");
    }
    let message = engine.set_prefix_from_tokens(&whole).unwrap_err().to_string();
    assert!(message.contains("40 tokens for a prefix of 13"), "{message}");
}

/// The positions, blocks and separators that the released GLM gives its models.
#[test]
fn glm_positions_are_the_bundles() {
    let bundle = Bundle::open("glm-cloze");
    let set = bundle.features();
    let head = bundle.head();
    let packing = Packing { spec: bundle.model.spec.clone(), shift: 0, prompt: 0, head: 0, grouping: head.grouping, columns: head.columns };
    let mut batch = Batch::default();
    batch.pack(&packing, &set, &(0..set.features.len()).collect::<Vec<_>>(), 0).unwrap();
    let numbers = |values: &[i32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
    assert_eq!(numbers(&batch.positions), bundle.expected("positions"));
    assert_eq!(numbers(&batch.types), bundle.expected("block_positions"));
    assert_eq!(numbers(&batch.separators), bundle.expected("sep"));
}
