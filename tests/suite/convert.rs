//! `ptune convert` as a user runs it: what it writes and says, and what it refuses.

use crate::bundle::golden;
use crate::command::{Run, copy, files, json, program};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A folder to convert in.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    /// With a model `in` of transformers: its config.json and the files of torch.save.
    fn with_model(fixture: &str) -> Place {
        let place = Place::new();
        copy(&golden(fixture).join("pytorch"), &place.path("in"));
        std::fs::copy(golden(fixture).join("safetensors/config.json"), place.path("in/config.json")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Run {
        program().current_dir(self.0.path()).arg("convert").args(line.split_whitespace()).output().unwrap().into()
    }

    fn refuses(&self, code: i32, line: &str, parts: &[&str]) {
        let before = files(self.0.path());
        self.run(line).error(code, parts);
        assert!(files(self.0.path()) == before && !self.path("out").exists(), "{line}: left something behind");
    }
}

type Read = BTreeMap<String, (Vec<usize>, Dtype, Vec<f32>)>;

/// The tensors of the safetensors files of a folder, widened.
fn read(folder: &Path) -> Read {
    let mut found = BTreeMap::new();
    for (_, bytes) in files(folder).into_iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let pairs = view.data().chunks_exact(2).map(|b| [b[0], b[1]]);
            let values = match view.dtype() {
                Dtype::F16 => pairs.map(|b| f16::from_le_bytes(b).to_f32()).collect(),
                Dtype::BF16 => pairs.map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
                _ => view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            };
            assert!(found.insert(name.to_string(), (view.shape().to_vec(), view.dtype(), values)).is_none(), "{name} twice");
        }
    }
    found
}

#[test]
fn tensors_of_every_layout_become_16_bits() {
    let place = Place::new();
    for (dtype, kind) in [("fp16", Dtype::F16), ("bf16", Dtype::BF16)] {
        for name in ["views.pt", "views-legacy.pt"] {
            let output = format!("{dtype}-{name}");
            let input = golden("torch-files").join(name);
            let said = place.run(&format!("--input {} --output {output} --dtype {dtype}", input.display())).ok();
            assert!(said.contains("there is no config.json") && said.contains("left out: 2 of bool, int64"), "{said}");
            assert_eq!(files(&place.path(&output)).keys().collect::<Vec<_>>(), ["model.safetensors"]);
            let expected = std::fs::read(golden("torch-files/views.safetensors")).unwrap();
            let expected = SafeTensors::deserialize(&expected).unwrap();
            let found = read(&place.path(&output));
            assert_eq!(found.len(), expected.len());
            for (name, (shape, dtype, values)) in found {
                let view = expected.tensor(&name).unwrap();
                assert_eq!((shape.as_slice(), dtype), (view.shape(), kind), "{name}");
                let numbers = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                let rounded: Vec<f32> = match kind {
                    Dtype::F16 => numbers.map(|value| f16::from_f32(value).to_f32()).collect(),
                    _ => numbers.map(|value| bf16::from_f32(value).to_f32()).collect(),
                };
                assert_eq!(values, rounded, "{name}");
            }
        }
    }
    let said = place.run(&format!("--input {} --output module", golden("torch-files/module.pt").display())).ok();
    assert!(said.contains("3 tensors of fp32"), "{said}");
    assert_eq!(
        read(&place.path("module")).into_keys().collect::<Vec<_>>(),
        ["transformer.bias", "transformer.weight", "word_embeddings.weight"]
    );
}

#[test]
fn a_model_is_converted_with_what_belongs_to_it() {
    let place = Place::with_model("transformers-4/bert");
    std::fs::write(place.path("in/vocab.txt"), "[PAD]\n").unwrap();
    std::fs::write(place.path("in/training_args.bin"), "x").unwrap();
    let said = place.run("--input in --output out").ok();
    for part in [
        "reading in/pytorch_model.bin",
        "of fp16",
        "written: out/model.safetensors",
        "that the model reads, none missing",
        "that it does not read: cls.",
        "left out: cls.predictions.decoder.weight, which is bert.embeddings.word_embeddings.weight once more",
        "copied: config.json, vocab.txt",
        "of host memory at most",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert_eq!(files(&place.path("out")).into_keys().collect::<Vec<_>>(), ["config.json", "model.safetensors", "vocab.txt"]);
    let (found, expected) = (read(&place.path("out")), read(&golden("transformers-4/bert/safetensors")));
    for (name, tensor) in &expected {
        assert_eq!(&found[name], tensor, "{name}");
    }
    assert!(found.keys().eq(expected.keys()), "what is there twice is written once");

    // As shards, from a file, within the same folder, quietly; then from the shards back to one file.
    assert_eq!(place.run("--input in/pytorch_model.bin --output in --shard-size 20kB --quiet").ok(), "");
    let index = json(&place.path("in/model.safetensors.index.json"));
    let written = files(&place.path("in"));
    let shards: Vec<&String> = written.keys().filter(|name| name.starts_with("model-")).collect();
    assert_eq!(shards, ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]);
    assert!(shards.iter().all(|name| written[*name].len() < 24_000));
    assert_eq!(index["weight_map"].as_object().unwrap().len(), found.len());
    assert_eq!(index["metadata"]["total_size"], found.values().map(|tensor| tensor.2.len() * 2).sum::<usize>());
    assert_eq!(read(&place.path("in")), found);
    program().current_dir(place.0.path()).args(["inspect", "in"]).output().map(Run::from).unwrap().ok();
    place.run("--input in --output again --dtype fp16").ok();
    assert_eq!(read(&place.path("again")), found);
    place.run("--input in/model.safetensors.index.json --output bf16 --dtype bf16").ok();
    assert!(read(&place.path("bf16")).values().all(|tensor| tensor.1 == Dtype::BF16));
}

/// A model directory of PyTorch alone leads to the command that helps.
#[test]
fn a_model_that_is_not_converted_names_the_command() {
    for fixture in ["transformers-4/bert", "transformers-4/mistral"] {
        let place = Place::with_model(fixture);
        let run = program().current_dir(place.0.path()).args(["inspect", "in"]).output().unwrap();
        Run::from(run).error(1, &["pytorch_model.bin", "ptune convert --input in --output DIR"]);
    }
}

/// Puts an fp32 model at `in`, the third value of one of its tensors set.
fn with_value(place: &Place, tensor: &str, value: f32) {
    let source = golden("transformers-4/roberta/safetensors");
    copy(&source, &place.path("in"));
    let mut bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let at = header + 8 + metadata.info(tensor).unwrap().data_offsets.0 + 8;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(place.path("in/model.safetensors"), bytes).unwrap();
}

#[test]
fn values_that_16_bits_cannot_hold() {
    let (query, unused) = ("roberta.encoder.layer.1.attention.self.query.weight", "lm_head.dense.bias");
    let place = Place::new();
    with_value(&place, query, -70000.0);
    place.refuses(1, "--input in --output out", &[query, "holds -70000", "fp16", "--dtype bf16"]);
    place.run("--input in --output bf16 --dtype bf16").ok();
    with_value(&place, query, f32::NAN);
    place.refuses(1, "--input in --output out --dtype bf16", &[query, "holds NaN", "damaged"]);
    // What the model does not read may be infinite, as masks are, but not become so.
    with_value(&place, unused, f32::NEG_INFINITY);
    place.run("--input in --output infinite").ok();
    assert_eq!(read(&place.path("infinite"))[unused].2[2], f32::NEG_INFINITY);
    with_value(&place, unused, 1e9);
    place.refuses(1, "--input in --output out", &[unused, "--dtype bf16"]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = Place::with_model("transformers-4/bert");
    place.refuses(2, "--input in", &["--output"]);
    place.refuses(2, "--input in --output out --dtype fp8", &["--dtype", "fp8"]);
    for size in ["0", "x", "5TB", "99999999999999999999", "-1"] {
        place.refuses(2, &format!("--input in --output out --shard-size {size}"), &["--shard-size"]);
    }
    place.refuses(1, "--input nowhere --output out", &["nowhere", "no such file"]);
    std::fs::write(place.path("file"), "x").unwrap();
    place.refuses(2, "--input in --output file", &["--output file", "not a directory"]);
    place.refuses(1, "--input file --output out", &["file", "torch.save"]);
    place.refuses(1, "--input in --output file/out", &["file/out"]);
    std::fs::create_dir(place.path("empty")).unwrap();
    place.refuses(1, "--input empty --output out", &["empty", "no weights"]);

    // A directory with weights stays as it is.
    place.run("--input in --output done").ok();
    place.refuses(1, "--input in --output done", &["done", "model.safetensors is there already"]);

    // Shards that are missing, or hold something else; more than one candidate.
    copy(&golden("transformers-4/mistral/pytorch"), &place.path("shards"));
    std::fs::remove_file(place.path("shards/pytorch_model-00002-of-00003.bin")).unwrap();
    place.refuses(1, "--input shards --output out", &["pytorch_model-00002-of-00003.bin is missing"]);
    std::fs::copy(place.path("in/pytorch_model.bin"), place.path("shards/pytorch_model-00002-of-00003.bin")).unwrap();
    place.refuses(1, "--input shards --output out", &["pytorch_model-00002-of-00003.bin", "is not in it"]);
    std::fs::copy(place.path("shards/pytorch_model-00001-of-00003.bin"), place.path("shards/pytorch_model-00002-of-00003.bin")).unwrap();
    place.refuses(1, "--input shards --output out", &["in another shard too"]);
    std::fs::remove_file(place.path("shards/pytorch_model.bin.index.json")).unwrap();
    place.refuses(1, "--input shards --output out", &["more than one file of weights", "--input"]);
    std::fs::create_dir(place.path("parts")).unwrap();
    for part in ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"] {
        std::fs::copy(place.path("in/pytorch_model.bin"), place.path("parts").join(part)).unwrap();
    }
    place.refuses(1, "--input parts --output out", &["cut for several devices"]);

    // A configuration that asks for more than there is, and one of a model that is not known.
    let config = std::fs::read_to_string(place.path("in/config.json")).unwrap();
    std::fs::write(place.path("in/config.json"), config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")).unwrap();
    place.refuses(1, "--input in --output out", &["bert.encoder.layer.2", "missing", "15 more tensors", "nothing was written"]);
    std::fs::write(place.path("in/config.json"), config.replace("\"vocab_size\": 99", "\"vocab_size\": 98")).unwrap();
    place.refuses(1, "--input in --output out", &["word_embeddings.weight has shape [99, 32]", "[98, 32]"]);
    std::fs::write(place.path("in/config.json"), config.replace("\"bert\"", "\"t5\"")).unwrap();
    let said = place.run("--input in --output unknown").ok();
    assert!(said.contains("note: ") && said.contains("\"t5\"") && said.contains("not checked"), "{said}");
    assert!(read(&place.path("unknown")).contains_key("cls.predictions.decoder.weight"));
}

/// Hostile and damaged files through the whole command; `src/checkpoint/torch/tests.rs` has all kinds of them.
#[test]
fn hostile_files_are_refused() {
    let place = Place::with_model("transformers-4/bert");
    let good = std::fs::read(place.path("in/pytorch_model.bin")).unwrap();
    let spoilt = |bytes: &[u8], parts: &[&str]| {
        std::fs::write(place.path("in/pytorch_model.bin"), bytes).unwrap();
        place.refuses(1, "--input in --output out", &[&["in/pytorch_model.bin"], parts].concat());
    };
    let patch = |from: &[u8], to: &[u8]| {
        let at = good.windows(from.len()).position(|window| window == from).unwrap();
        [&good[..at], to, &good[at + from.len()..]].concat()
    };
    spoilt(&good[..good.len() / 2], &["truncated"]);
    spoilt(&[], &["empty"]);
    spoilt(&good[64..], &["torch.save"]);
    // A command to execute in place of a name of the same length.
    let name = b"ctorch._utils\n_rebuild_tensor_v2\n";
    spoilt(&patch(name, b"cos\nsystem\ncos\nsystem\ncos\nsystem\n"), &["pickle, byte", "os.system", "nothing was run"]);
    spoilt(&patch(b"HalfStorage", b"EvilStorage"), &["torch.EvilStorage"]);
    std::fs::write(place.path("in/pytorch_model.bin"), &good).unwrap();
    place.run("--input in --output out").ok();
}
