//! Golden bundles: what reference software computed for small models (`tests/golden/README.md` gives the format).

use ptune::backend::Backend;
use ptune::checkpoint::{Adapter, FrozenModel};
use ptune::data::{Feature, FeatureSet, Sequence};
use ptune::engine::{Capacity, Engine, EngineOptions, PrefixOptions};
use ptune::model::{HeadSpec, TaskKind};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub const BUNDLES: [&str; 19] = [
    "bert-classification",
    "bert-classification-d64",
    "bert-cloze",
    "bert-multiple-choice",
    "bert-qa",
    "bert-tagging",
    "glm-classification",
    "glm-cloze",
    "gpt2-classification",
    "llama-causal-lm",
    "llama-classification",
    "qwen2-classification",
    "qwen3-classification",
    "roberta-classification",
    "roberta-classification-peft",
    "roberta-cloze",
    "deberta-classification",
    "deberta-cloze",
    "deberta-tagging",
];

/// Prompts on the models and texts of other bundles.
pub const PROMPTS: [&str; 2] = ["bert-prompt-classification", "llama-prompt-causal-lm"];

pub struct Bundle {
    /// Where model and data are.
    source: PathBuf,
    pub directory: PathBuf,
    pub case: serde_json::Value,
    pub model: FrozenModel,
    pub adapter: Adapter,
    expected: HashMap<String, Vec<f64>>,
    pub task: TaskKind,
}

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

impl Bundle {
    pub fn open(name: &str) -> Bundle {
        let directory = golden(name);
        let case: serde_json::Value = serde_json::from_slice(&std::fs::read(directory.join("case.json")).unwrap()).unwrap();
        let source = case["base"].as_str().map_or(directory.clone(), golden);
        let files = [&source, &directory].map(|folder| std::fs::read(folder.join("expected.safetensors")).unwrap());
        let files = files.iter().map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
        let tensors: Vec<_> = files.collect();
        // What a bundle gives takes the place of its base's.
        let expected = tensors
            .iter()
            .flat_map(|tensors| tensors.iter())
            .map(|(name, view)| {
                let values = view.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
                let values = match view.dtype() {
                    safetensors::Dtype::F32 => values.map(|b| f64::from(f32::from_le_bytes(b))).collect(),
                    safetensors::Dtype::I32 => values.map(|b| f64::from(i32::from_le_bytes(b))).collect(),
                    other => panic!("{name}: {other:?}"),
                };
                (name.to_string(), values)
            })
            .collect();
        let task = match case["task"].as_str().unwrap() {
            "classification" => TaskKind::Classification,
            "multiple-choice" => TaskKind::MultipleChoice,
            "tagging" => TaskKind::Tagging,
            "question-answering" => TaskKind::Qa,
            "causal-lm" => TaskKind::CausalLm,
            "cloze" => TaskKind::Classification,
            other => panic!("task {other}"),
        };
        let model = FrozenModel::open(&source.join("model")).unwrap();
        let adapter = Adapter::read(&directory.join("adapter")).unwrap();
        Bundle { source, directory, case, model, adapter, expected, task }
    }

    pub fn expected(&self, name: &str) -> &[f64] {
        self.expected.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.directory.display()))
    }

    pub fn has(&self, name: &str) -> bool {
        self.expected.contains_key(name)
    }

    /// Of a kind of engine: "tolerance_fp32_engine" or "tolerance_fp16_activation_engine".
    pub fn tolerance(&self, engine: &str, name: &str) -> f64 {
        self.case[engine][name].as_f64().unwrap()
    }

    /// Names of tensors whose exact gradient is zero.
    pub fn unstable(&self) -> Vec<String> {
        self.case["unstable"].as_array().map_or(Vec::new(), |list| list.iter().map(|v| v.as_str().unwrap().to_string()).collect())
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        self.expected(name).iter().map(|&value| value as i64).collect()
    }

    /// Features made of the bundle's own token ids: the engine is tested apart from tokenization.
    pub fn features(&self) -> FeatureSet {
        let (ids, lengths) = (self.integers("input_ids"), self.integers("input_lengths"));
        let types = if self.has("token_type_ids") && self.model.spec.token_types > 0 {
            self.integers("token_type_ids")
        } else {
            vec![0; ids.len()]
        };
        let mut words = if self.has("word_first_token") { self.integers("word_first_token") } else { Vec::new() }.into_iter();
        let lines = std::fs::read_to_string(self.source.join("data.jsonl")).unwrap();
        let examples: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let labels = self.model.spec.labels.clone().unwrap_or_default();
        let index = |name: &serde_json::Value| labels.iter().position(|label| Some(label.as_str()) == name.as_str()).unwrap() as i32;
        let mut set = FeatureSet { examples: examples.len(), ..FeatureSet::default() };
        let mut at = 0;
        for (number, &length) in lengths.iter().enumerate() {
            let range = at..at + length as usize;
            if self.task == TaskKind::CausalLm {
                // Aligned with the tokens: a row predicts the one behind it.
                let labels = &self.integers("labels")[range.clone()];
                let readout = (1..labels.len()).filter(|&token| labels[token] >= 0).map(|token| token as u32 - 1).collect();
                set.features.push(Feature {
                    example: number,
                    first_sequence: number,
                    sequences: 1,
                    targets: labels.iter().filter(|&&label| label >= 0).map(|&label| label as i32).collect(),
                });
                let ids = ids[range.clone()].iter().map(|&id| id as u32).collect();
                set.sequences.push(Sequence { ids, readout, ..Sequence::default() });
                at = range.end;
                continue;
            }
            let sequence: Vec<u32> = ids[range.clone()].iter().map(|&id| id as u32).collect();
            let separator = if self.has("sep") { self.integers("sep")[number] as u32 } else { 0 };
            let cloze = self.case["task"] == "cloze" && self.has("sep");
            let blank = cloze.then(|| self.integers("positions")[range.start + separator as usize] as u32);
            let readout = match self.task {
                TaskKind::Classification if cloze => vec![separator],
                TaskKind::Classification if self.has("mask_index") => vec![self.integers("mask_index")[number] as u32],
                TaskKind::Classification | TaskKind::MultipleChoice | TaskKind::CausalLm => vec![self.model.spec.readout.of(&sequence)],
                TaskKind::Qa => (0..length as u32).collect(),
                TaskKind::Tagging => {
                    let count = examples[number]["tokens"].as_array().unwrap().len();
                    words.by_ref().take(count).map(|index| index as u32).collect()
                }
            };
            set.sequences.push(Sequence {
                ids: sequence,
                // Of a model without token types the reference saw none.
                types: if self.model.spec.token_types == 0 { Vec::new() } else { types[range].iter().map(|&kind| kind as u32).collect() },
                readout,
                separator,
                blank,
                ..Sequence::default()
            });
            at += length as usize;
        }
        match self.task {
            TaskKind::CausalLm => {}
            TaskKind::Qa => {
                let (start, end) = (self.integers("feature_start"), self.integers("feature_end"));
                let example = self.integers("feature_example");
                for window in 0..start.len() {
                    let targets = vec![start[window] as i32, end[window] as i32];
                    set.features.push(Feature { example: example[window] as usize, first_sequence: window, sequences: 1, targets });
                }
            }
            _ => {
                let mut first_sequence = 0;
                for (number, example) in examples.iter().enumerate() {
                    let (sequences, targets) = match self.task {
                        TaskKind::MultipleChoice => {
                            (example["choices"].as_array().unwrap().len(), vec![example["label"].as_i64().unwrap() as i32])
                        }
                        TaskKind::Tagging => (1, example["tags"].as_array().unwrap().iter().map(index).collect()),
                        _ => (1, vec![index(&example["label"])]),
                    };
                    set.features.push(Feature { example: number, first_sequence, sequences, targets });
                    first_sequence += sequences;
                }
            }
        }
        set
    }

    /// Label and word pairs of a cloze, as JSON.
    pub fn verbalizer(&self) -> Option<String> {
        self.case.get("verbalizer").map(serde_json::Value::to_string)
    }

    pub fn head(&self) -> HeadSpec {
        if let Some(words) = self.case.get("verbalizer_ids") {
            return HeadSpec::words(
                words.as_object().unwrap().values().map(|id| id.as_u64().unwrap() as u32).collect(),
                self.model.spec.mask,
            );
        }
        let classes = self.model.spec.labels.as_ref().map_or(1, Vec::len);
        HeadSpec::new(self.task, self.adapter.metadata.head, classes, &self.model.spec)
    }

    /// The bundle's settings: no dropout anywhere.
    pub fn options(&self) -> EngineOptions {
        let prefix = PrefixOptions {
            length: self.adapter.metadata.prefix_length,
            layers: self.adapter.metadata.prefix_layers.clone(),
            projection: None,
            shifted: self.model.spec.shifts(),
            dropout: 0.0,
        };
        EngineOptions { seed: 42, ..EngineOptions::new(prefix, vec![self.head()]) }
    }

    /// An engine with the bundle's adapter.
    pub fn engine(&self, backend: Box<dyn Backend>, set: &FeatureSet, batch: usize) -> Engine {
        let options = self.options();
        let capacity = Capacity::for_items(set, &options.heads[0], batch, true);
        let mut engine = Engine::new(backend, &self.model, options, capacity).unwrap();
        engine.load_adapter(&self.adapter).unwrap();
        engine
    }
}
