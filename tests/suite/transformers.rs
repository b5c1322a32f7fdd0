//! Checkpoints that transformers 4 and 5 themselves wrote, as safetensors and as files of torch.save: each loads, and
//! its hidden states are those that transformers computed (`tests/golden/transformers-*/README.md`).

use crate::bundle::golden;
use crate::command::{json, ptune};
use ptune::backend::Backend;
use ptune::backend::cpu::Cpu;
use ptune::checkpoint::{FrozenModel, StateTensors};
use ptune::data::{Feature, FeatureSet, Sequence};
use ptune::engine::{Capacity, Engine, EngineOptions, PrefixOptions};
use ptune::model::{HeadKind, HeadSpec, TaskKind};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// The folders of every family, by the major version of transformers that wrote them.
pub fn fixtures() -> Vec<(u32, PathBuf)> {
    let mut found = Vec::new();
    for major in [4, 5] {
        let folder = golden(&format!("transformers-{major}"));
        let families = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        found.extend(families.map(|path| (major, path)));
    }
    found.sort();
    assert!(found.len() >= 16, "{found:?}");
    found
}

/// The `model_type` of a model directory's config.json.
pub fn model_type(model: &Path) -> String {
    json(&model.join("config.json"))["model_type"].as_str().unwrap().to_string()
}

/// What transformers read and computed.
struct Reference {
    set: FeatureSet,
    hidden: Vec<f64>,
}

impl Reference {
    fn read(file: &Path) -> Reference {
        let bytes = std::fs::read(file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| tensors.tensor(name).unwrap().data().chunks_exact(4).map(|b| <[u8; 4]>::try_from(b).unwrap());
        let integers = |name: &str| words(name).map(u32::from_le_bytes).collect::<Vec<_>>();
        let (ids, types, lengths) = (integers("input_ids"), integers("token_type_ids"), integers("input_lengths"));
        let mut set = FeatureSet { examples: lengths.len(), ..FeatureSet::default() };
        let mut at = 0;
        for (example, length) in lengths.into_iter().enumerate() {
            let range = at..at + length as usize;
            at = range.end;
            let (ids, types) = (ids[range.clone()].to_vec(), types[range].to_vec());
            let sequence = Sequence { ids, types, readout: (0..length).collect(), ..Sequence::default() };
            set.sequences.push(sequence);
            set.features.push(Feature { example, first_sequence: example, sequences: 1, targets: vec![0; length as usize] });
        }
        Reference { set, hidden: words("hidden").map(|b| f64::from(f32::from_le_bytes(b))).collect() }
    }
}

/// The last hidden state of every token: logits of a tagging head whose matrix is the identity.
fn hidden_states(backend: Box<dyn Backend>, model: &FrozenModel, set: &FeatureSet) -> Vec<f64> {
    let width = model.spec.hidden_size;
    let head = HeadSpec::new(TaskKind::Tagging, HeadKind::Linear, width, &model.spec);
    let capacity = Capacity::for_items(set, &head, set.features.len(), false);
    let prefix = PrefixOptions { length: 0, layers: vec![], projection: None, shifted: true, dropout: 0.0 };
    let options = EngineOptions::new(prefix, vec![head]);
    let mut engine = Engine::new(backend, model, options, capacity).unwrap();
    for tensor in engine.trainables() {
        let [rows, cols] = tensor.shape;
        let one = |index: usize| if rows == width && index / cols == index % cols { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..rows * cols).map(one).collect();
        engine.write_state(&tensor.name, 0, &values).unwrap();
    }
    engine.forward(set, &(0..set.features.len()).collect::<Vec<_>>()).unwrap().concat()
}

/// What does not agree. transformers computes norms and rotations in fp32 even where all else is fp64.
fn disagreements(model: &Path, reference: &Reference, what: &str) -> Vec<String> {
    let model = match FrozenModel::open(model) {
        Ok(model) => model,
        Err(error) => return vec![format!("{what}: {error:#}")],
    };
    let mut found = Vec::new();
    for (backend, bound) in [(Box::new(Cpu::<f64>::new()) as Box<dyn Backend>, 1e-5), (Box::new(Cpu::<f32>::new()), 1e-4)] {
        let hidden = hidden_states(backend, &model, &reference.set);
        assert_eq!(hidden.len(), reference.hidden.len(), "{what}");
        let off = hidden.iter().zip(&reference.hidden).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        if off.is_nan() || off > bound {
            found.push(format!("{what}: hidden states off by {off:e}"));
        }
    }
    found
}

#[test]
fn checkpoints_of_both_generations_of_transformers() {
    let mut wrong = Vec::new();
    for (major, folder) in fixtures() {
        let model = folder.join("safetensors");
        let what = format!("transformers {major}, {}", folder.file_name().unwrap().display());
        let reference = Reference::read(&folder.join("expected.safetensors"));
        wrong.extend(disagreements(&model, &reference, &what));

        // The same as torch.save wrote it.
        let place = tempfile::tempdir().unwrap();
        let (input, output) = (place.path().join("input"), place.path().join("output"));
        std::fs::create_dir(&input).unwrap();
        for (from, name) in std::fs::read_dir(folder.join("pytorch")).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path(), entry.file_name())
        }) {
            std::fs::copy(from, input.join(name)).unwrap();
        }
        std::fs::copy(model.join("config.json"), input.join("config.json")).unwrap();
        let words = ["convert".as_ref(), "--input".as_ref(), input.as_os_str(), "--output".as_ref(), output.as_os_str()];
        let run = ptune(words);
        if run.code != Some(0) || !run.stdout.contains("none missing") {
            wrong.push(format!("{what}, converted: {run:?}"));
            continue;
        }
        wrong.extend(disagreements(&output, &reference, &format!("{what}, converted")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
