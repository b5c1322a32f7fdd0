//! Peak resident memory of a training run against its plan.

use crate::command::{json, program};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const HIDDEN: usize = 256;
const LAYERS: usize = 4;
const FEED_FORWARD: usize = 1024;
const POSITIONS: usize = 160;
/// Most of the checkpoint is embeddings, as in multilingual models: more than the allowance, so that a second copy of
/// the checkpoint would be seen, while the layers stay quick to compute.
const VOCABULARY: usize = 230_000;

/// A BERT of random fp16 weights, with the vocabulary of a WordPiece tokenizer.
fn write_model(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let config = json!({
        "model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "intermediate_size": FEED_FORWARD, "hidden_act": "gelu", "vocab_size": VOCABULARY, "type_vocab_size": 2,
        "max_position_embeddings": POSITIONS, "layer_norm_eps": 1e-12, "torch_dtype": "float16",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "pad_token_id": 0,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut words: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(String::from).to_vec();
    words.extend((words.len()..VOCABULARY).map(|index| format!("w{index}")));
    std::fs::write(folder.join("vocab.txt"), words.join("\n")).unwrap();

    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: &str, shape: &[usize]| shapes.push((name.to_string(), shape.to_vec()));
    add("embeddings.word_embeddings.weight", &[VOCABULARY, HIDDEN]);
    add("embeddings.position_embeddings.weight", &[POSITIONS, HIDDEN]);
    add("embeddings.token_type_embeddings.weight", &[2, HIDDEN]);
    let mut norms = vec!["embeddings.LayerNorm".to_string()];
    let mut linears = vec![("pooler.dense".to_string(), HIDDEN, HIDDEN)];
    for layer in 0..LAYERS {
        let prefix = format!("encoder.layer.{layer}");
        for name in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            linears.push((format!("{prefix}.{name}"), HIDDEN, HIDDEN));
        }
        linears.push((format!("{prefix}.intermediate.dense"), FEED_FORWARD, HIDDEN));
        linears.push((format!("{prefix}.output.dense"), HIDDEN, FEED_FORWARD));
        norms.extend([format!("{prefix}.attention.output.LayerNorm"), format!("{prefix}.output.LayerNorm")]);
    }
    for (name, outputs, inputs) in &linears {
        add(&format!("{name}.weight"), &[*outputs, *inputs]);
        add(&format!("{name}.bias"), &[*outputs]);
    }
    for name in &norms {
        add(&format!("{name}.weight"), &[HIDDEN]);
        add(&format!("{name}.bias"), &[HIDDEN]);
    }
    let mut state = 1u64;
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(name, shape)| {
            let value = |_| {
                if name.contains("LayerNorm.weight") {
                    return half::f16::ONE.to_le_bytes();
                }
                // Of magnitude up to 2^-5: sign and fraction at random, exponent of 2^-6.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 48) as u16 & 0x83ff | 0x2400).to_le_bytes()
            };
            (0..shape.iter().product()).flat_map(value).collect()
        })
        .collect();
    let views = shapes.iter().zip(&data).map(|((name, shape), data)| (name, TensorView::new(Dtype::F16, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Sentences that use the whole vocabulary; of two classes.
fn write_data(path: &Path, examples: usize, words: usize) {
    let line = |index: usize| {
        let text: Vec<String> = (0..words).map(|word| format!("w{}", 5 + (index * 7919 + word * 104_729) % (VOCABULARY - 5))).collect();
        json!({ "text": text.join(" "), "label": (["no", "yes"][index % 2]) }).to_string()
    };
    std::fs::write(path, (0..examples).map(|index| line(index) + "\n").collect::<String>()).unwrap();
}

/// VmHWM of a process in bytes, while it lives.
fn high_water(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[test]
fn resident_memory_stays_within_the_plan_the_files_and_100_mib() {
    let folder = tempfile::tempdir().unwrap();
    write_model(&folder.path().join("model"));
    write_data(&folder.path().join("data.jsonl"), 24, 96);
    let mut command = program();
    command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.args("train --model model --task classification --data data.jsonl --validation data.jsonl --output run".split(' '));
    command.args("--max-steps 2 --batch-size 12 --max-length 128 --prefix-length 16 --threads 2".split(' '));
    let mut child = command.spawn().unwrap();
    let mut seen = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        seen = high_water(child.id()).unwrap_or(0).max(seen);
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());

    let results = json(&folder.path().join("run/train_results.json"));
    let bytes = |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| panic!("{results}"));
    let (planned, mapped) = (bytes(&results["planned_bytes"]), bytes(&results["mapped_bytes"]));
    let peak = bytes(&results["timing"]["peak_resident_bytes"]);
    assert_eq!(mapped, std::fs::metadata(folder.path().join("model/model.safetensors")).unwrap().len());
    assert!(mapped > 110 << 20 && planned > 20 << 20, "{results}");
    // What the run says of itself is not less than what was seen from outside, but for what it takes to write that down and to
    // end, and not much more.
    assert!(peak + (1 << 20) >= seen && peak < seen + (64 << 20), "{peak} reported, {seen} seen");
    assert!(peak < planned + mapped + (100 << 20), "peak {peak}, planned {planned}, mapped {mapped}");
    println!("peak {peak}, planned {planned}, mapped {mapped}, seen {seen}");
}
