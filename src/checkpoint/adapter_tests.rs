//! Tests of adapters: against PEFT's own files in tests/golden, and with damaged ones.

use super::super::metadata::tests::metadata;
use super::*;
use std::fs;
use std::path::PathBuf;

fn golden(bundle: &str) -> PathBuf {
    Path::new("tests/golden").join(bundle)
}

fn model(bundle: &str) -> FrozenModel {
    FrozenModel::open(&golden(bundle).join("model")).unwrap()
}

/// A copy of a golden adapter, to be damaged.
fn copy(bundle: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [CONFIG, TENSORS] {
        fs::copy(golden(bundle).join("adapter").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn edit(folder: &Path, file: &str, from: &str, to: &str) {
    let text = fs::read_to_string(folder.join(file)).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    fs::write(folder.join(file), text.replacen(from, to, 1)).unwrap();
}

fn failure<T>(result: Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

#[test]
fn written_files_are_pefts_to_the_letter() {
    let cases = [
        ("bert-classification", TaskKind::Classification, true),
        ("bert-classification-d64", TaskKind::Classification, true),
        ("bert-multiple-choice", TaskKind::MultipleChoice, true),
        ("bert-tagging", TaskKind::Tagging, true),
        ("bert-qa", TaskKind::Qa, false),
        ("gpt2-classification", TaskKind::Classification, true),
        ("llama-classification", TaskKind::Classification, true),
        ("qwen2-classification", TaskKind::Classification, true),
        ("qwen3-classification", TaskKind::Classification, true),
        ("roberta-classification", TaskKind::Classification, false),
        ("roberta-classification-peft", TaskKind::Classification, true),
        ("deberta-classification", TaskKind::Classification, false),
        ("deberta-tagging", TaskKind::Tagging, false),
    ];
    for (bundle, task, loads) in cases {
        let source = golden(bundle).join("adapter");
        let model = model(bundle);
        let mut adapter = Adapter::read(&source).unwrap();
        assert!(adapter.foreign);
        adapter.metadata.task = Some(task);
        // PEFT would have trained the question answering one without token types.
        assert_eq!(adapter.check(&model).unwrap().len(), usize::from(task == TaskKind::Qa), "{bundle}");
        assert_eq!(adapter.metadata.head == HeadKind::Dense, bundle.ends_with("-peft"));
        assert_eq!(adapter.metadata.head == HeadKind::Context, bundle == "deberta-classification");

        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new");
        let export = adapter.write(&target, &model.spec).unwrap();
        assert_eq!(export.peft_type, if loads { PREFIX_TUNING } else { PTUNE_PREFIX }, "{bundle}");
        assert_eq!(export.reasons.is_empty(), loads);
        let written = fs::read_to_string(target.join(CONFIG)).unwrap().replace(PTUNE_PREFIX, PREFIX_TUNING);
        assert_eq!(written, fs::read_to_string(source.join(CONFIG)).unwrap(), "{bundle}");
        assert!(fs::read(target.join(TENSORS)).unwrap() == fs::read(source.join(TENSORS)).unwrap(), "{bundle}: tensors differ");

        let again = Adapter::read(&target).unwrap();
        assert!(!again.foreign);
        assert_eq!((&again.metadata, &again.tensors), (&adapter.metadata, &adapter.tensors));
        let bytes: u64 = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(export.bytes, bytes, "three files and no leftovers");
    }
}

#[test]
fn projected_adapters_are_flat() {
    let folder = copy("bert-classification");
    edit(folder.path(), CONFIG, "\"prefix_projection\": false", "\"prefix_projection\": true");
    edit(folder.path(), CONFIG, "\"encoder_hidden_size\": 48", "\"encoder_hidden_size\": 512");
    let adapter = Adapter::read(folder.path()).unwrap();
    assert_eq!(adapter.metadata.prefix_projection, Some(512));
    let config = peft::config(&adapter.metadata, &model("bert-classification").spec, PREFIX_TUNING).unwrap();
    assert_eq!(config, serde_json::from_slice::<serde_json::Value>(&fs::read(folder.path().join(CONFIG)).unwrap()).unwrap());
}

#[test]
fn missing_keys_of_old_files_are_derived() {
    let folder = copy("roberta-classification-peft");
    fs::write(folder.path().join(CONFIG), r#"{"peft_type": "PREFIX_TUNING", "task_type": null, "num_virtual_tokens": 4}"#).unwrap();
    let adapter = Adapter::read(folder.path()).unwrap();
    assert_eq!((adapter.metadata.prefix_layers.clone(), adapter.metadata.task), (vec![0, 1, 2], None));
    assert!(adapter.check(&model("roberta-classification-peft")).unwrap()[0].contains("task"));
    assert!(failure(adapter.write(&folder.path().join("new"), &model("roberta-classification-peft").spec)).contains("--task"));
}

#[test]
fn damaged_folders_are_explained() {
    let cases = [
        (CONFIG, "PREFIX_TUNING", "LORA", "LORA"),
        (CONFIG, "PREFIX_TUNING", "PTUNE_PREFIX", "ptune.json is missing"),
        (CONFIG, "\"num_virtual_tokens\": 6", "\"num_virtual_tokens\": 7", "6 rows"),
        (CONFIG, "\"token_dim\": 48", "\"token_dim\": 32", "288 columns"),
        (CONFIG, "\"num_layers\": 3", "\"num_layers\": 5", "288 columns"),
        (CONFIG, "\"task_type\"", "task_type", "line 21"),
    ];
    for (file, from, to, part) in cases {
        let folder = copy("bert-classification");
        edit(folder.path(), file, from, to);
        let message = failure(Adapter::read(folder.path()));
        assert!(message.contains(part), "{message}");
    }
    let folder = copy("bert-classification");
    let bytes = fs::read(folder.path().join(TENSORS)).unwrap();
    fs::write(folder.path().join(TENSORS), &bytes[..bytes.len() - 1]).unwrap();
    assert!(failure(Adapter::read(folder.path())).contains("adapter_model.safetensors is truncated"));
    let mut poisoned = bytes;
    let end = poisoned.len();
    poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(folder.path().join(TENSORS), &poisoned).unwrap();
    assert!(failure(Adapter::read(folder.path())).contains("prompt_embeddings contains NaN"));
    fs::rename(folder.path().join(TENSORS), folder.path().join("adapter_model.bin")).unwrap();
    assert!(failure(Adapter::read(folder.path())).contains("safe_serialization"));
    fs::remove_file(folder.path().join("adapter_model.bin")).unwrap();
    assert!(failure(Adapter::read(folder.path())).contains("incomplete"));
    fs::remove_file(folder.path().join(CONFIG)).unwrap();
    assert!(failure(Adapter::read(folder.path())).contains("adapter_config.json"));
    assert!(failure(Adapter::read(&folder.path().join("absent"))).contains("no such directory"));
}

#[test]
fn files_of_two_adapters_are_told_apart() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model("bert-tagging"));
    let adapter = Adapter::read(&golden("bert-tagging").join("adapter")).unwrap();
    adapter.write(folder.path(), &model.spec).unwrap();
    edit(folder.path(), METADATA, "\"prefix_length\": 5", "\"prefix_length\": 6");
    assert!(failure(Adapter::read(folder.path())).contains("different adapters"));
}

#[test]
fn an_adapter_of_another_model_or_task_is_refused() {
    let adapter = Adapter::read(&golden("bert-classification").join("adapter")).unwrap();
    let check = |adapter: &Adapter, bundle: &str| failure(adapter.check(&model(bundle)));
    assert!(check(&adapter, "bert-tagging").contains("3 layers, this one has 4"));
    assert!(check(&adapter, "bert-multiple-choice").contains("size 48, the model's 32"));
    let with = |edit: fn(&mut Adapter)| {
        let mut adapter = adapter.clone();
        edit(&mut adapter);
        check(&adapter, "bert-classification")
    };
    assert!(with(|adapter| adapter.metadata.task = Some(TaskKind::Qa)).contains("base_model.qa_outputs.weight, which qa needs"));
    assert!(with(|adapter| adapter.metadata.task = Some(TaskKind::MultipleChoice)).contains("should have [1, 48]"));
    assert!(with(|adapter| adapter.metadata.head = HeadKind::Dense).contains("base_model.classifier.dense.weight"));
    assert!(with(|adapter| adapter.metadata.labels = Some(vec!["a".into()])).contains("2 outputs for 1 labels"));
    assert!(with(|adapter| drop(adapter.tensors.remove("base_model.classifier.bias"))).contains("classifier.bias"));
    assert!(with(|adapter| drop(adapter.tensors.remove(PREFIX))).contains("prompt_embeddings is missing"));
    assert!(with(|adapter| adapter.metadata.prefix_layers = vec![0, 1]).contains("size 72"));
}

#[test]
fn warnings_and_poolers() {
    let mut model = model("roberta-classification");
    let mut adapter = Adapter::read(&golden("roberta-classification").join("adapter")).unwrap();
    adapter.metadata.fingerprint = Some(model.checkpoint.fingerprint());
    adapter.tensors.insert("base_model.score.weight".into(), HostTensor { shape: vec![1], values: vec![0.0] });
    assert_eq!(adapter.check(&model).unwrap(), ["tensors of the adapter that are not used: base_model.score.weight"]);
    adapter.tensors.remove("base_model.score.weight");
    adapter.metadata.fingerprint = Some("0".into());
    assert!(adapter.check(&model).unwrap()[0].contains("other weights"));
    adapter.metadata.fingerprint = None;

    // The same checkpoint without its pooler.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(model.directory.join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = fs::read(model.directory.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let rest: Vec<_> = tensors.iter().filter(|(name, _)| !name.contains("pooler")).collect();
    safetensors::serialize_to_file(rest, None, &folder.path().join("model.safetensors")).unwrap();
    model = FrozenModel::open(folder.path()).unwrap();
    assert!(failure(adapter.check(&model)).contains("neither"));
    let hidden = model.spec.hidden_size;
    adapter.tensors.insert(format!("{POOLER}.weight"), HostTensor { shape: vec![hidden, hidden], values: vec![0.0; hidden * hidden] });
    assert!(failure(adapter.check(&model)).contains("pooler.dense.bias"));
    adapter.tensors.insert(format!("{POOLER}.bias"), HostTensor { shape: vec![hidden], values: vec![0.0; hidden] });
    assert_eq!(adapter.check(&model).unwrap(), Vec::<String>::new());
}

#[test]
fn a_head_alone_and_a_subset_of_layers() {
    let model = model("bert-classification");
    let mut adapter = Adapter::read(&golden("bert-classification").join("adapter")).unwrap();
    adapter.metadata = Metadata { prefix_layers: vec![1], ..metadata(TaskKind::Classification, 6, 3) };
    let folder = tempfile::tempdir().unwrap();
    assert!(failure(adapter.write(folder.path(), &model.spec)).contains("size 144"));
    let prefix = HostTensor { shape: vec![6, 96], values: vec![0.5; 6 * 96] };
    adapter.tensors.insert(PREFIX.into(), prefix);
    let export = adapter.write(folder.path(), &model.spec).unwrap();
    assert_eq!(export.reasons, ["only 1 of the 3 layers have a prefix"]);
    assert_eq!(Adapter::read(folder.path()).unwrap().metadata.prefix_layers, [1]);

    adapter.foreign = false;
    adapter.metadata.prefix_length = 0;
    adapter.tensors.remove(PREFIX);
    let export = adapter.write(folder.path(), &model.spec).unwrap();
    assert_eq!((export.peft_type, export.reasons), (PTUNE_PREFIX, vec!["it has no prefix".to_string()]));
    let read = Adapter::read(folder.path()).unwrap();
    assert_eq!(read, adapter);
    assert_eq!(read.check(&model).unwrap(), Vec::<String>::new());
}
