//! Frozen matrices of 8 bits: the same numbers as a checkpoint that was rounded beforehand, results that are a little off
//! and not more, and a format that a run, its adapter and its commands agree on.

use crate::bundle::{BUNDLES, Bundle, PROMPTS, golden};
use crate::command::{Run, copy, json, program};
use ptune::backend::cpu::Cpu;
use ptune::backend::{Backend, DType};
use ptune::checkpoint::{FrozenModel, QuantisedRows, WeightFormat, quantise};
use ptune::data::FeatureSet;
use ptune::engine::{Capacity, Engine, EngineOptions};
use ptune::model::TaskKind;
use serde_json::Value;
use std::path::Path;

fn logits(bundle: &Bundle, model: &FrozenModel, set: &FeatureSet, weight_format: WeightFormat, backend: Box<dyn Backend>) -> Vec<f64> {
    let options = EngineOptions { weight_format, ..bundle.options() };
    let capacity = Capacity::for_items(set, &options.heads[0], 8, true);
    let mut engine = Engine::new(backend, model, options, capacity).unwrap();
    engine.load_adapter(&bundle.adapter).unwrap();
    let features: Vec<usize> = (0..set.features.len()).collect();
    features.chunks(8).flat_map(|chunk| engine.forward(set, chunk).unwrap().concat()).collect()
}

/// A matrix of a file's type as products read it, in that type.
fn rounded(bytes: &[u8], dtype: DType, width: usize) -> Vec<u8> {
    let used = if dtype == DType::BF16 { DType::BF16 } else { DType::F16 };
    let QuantisedRows { values, scales } = quantise("w", bytes, dtype, width, used).unwrap();
    let number = |(index, &value): (usize, &i8)| {
        let product = scales[index / width] * f32::from(value);
        match dtype {
            DType::BF16 => half::bf16::from_f32(product).to_le_bytes().to_vec(),
            DType::F16 => half::f16::from_f32(product).to_le_bytes().to_vec(),
            _ => half::f16::from_f32(product).to_f32().to_le_bytes().to_vec(),
        }
    };
    values.iter().enumerate().flat_map(number).collect()
}

fn transposed(bytes: &[u8], size: usize, width: usize) -> Vec<u8> {
    let elements: Vec<&[u8]> = bytes.chunks(size).collect();
    (0..width).flat_map(|column| elements.iter().skip(column).step_by(width).copied().flatten().copied()).collect()
}

/// Rounds the layers' matrices in a file, where they lie.
fn round_file(path: &Path, is_transposed: bool) {
    let mut bytes = std::fs::read(path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let mut count = 0;
    for (name, tensor) in tensors.as_object().unwrap() {
        let layers = [".layer.", "layers.", "h."].iter().any(|part| name.contains(part));
        let (Some([_, width]), true) = (tensor["shape"].as_array().map(Vec::as_slice), layers) else { continue };
        let dtype = match tensor["dtype"].as_str() {
            Some("F16") => DType::F16,
            Some("BF16") => DType::BF16,
            Some("F32") => DType::F32,
            other => panic!("{name}: {other:?}"),
        };
        let [from, to] = [0, 1].map(|end| header + tensor["data_offsets"][end].as_u64().unwrap() as usize);
        let (size, width) = (dtype.size(), width.as_u64().unwrap() as usize);
        let height = (to - from) / size / width;
        let found = match is_transposed {
            true => transposed(&rounded(&transposed(&bytes[from..to], size, width), dtype, height), size, height),
            false => rounded(&bytes[from..to], dtype, width),
        };
        bytes[from..to].copy_from_slice(&found);
        count += 1;
    }
    assert!(count >= 8, "{count} matrices in {}", path.display());
    std::fs::write(path, bytes).unwrap();
}

/// Whatever a family stores transposed, fused or interleaved.
#[test]
fn eight_bits_are_those_of_a_checkpoint_rounded_beforehand() {
    for name in [
        "bert-classification",
        "roberta-classification",
        "deberta-tagging",
        "gpt2-classification",
        "glm-classification",
        "llama-classification",
        "qwen3-classification",
    ] {
        let bundle = Bundle::open(name);
        let folder = tempfile::tempdir().unwrap();
        copy(&bundle.model.directory, folder.path());
        round_file(&folder.path().join("model.safetensors"), bundle.model.spec.family == "gpt2");
        let beforehand = FrozenModel::open(folder.path()).unwrap();
        let set = bundle.features();
        let found = logits(&bundle, &bundle.model, &set, WeightFormat::Int8, Box::new(Cpu::<f64>::new()));
        let expected = logits(&bundle, &beforehand, &set, WeightFormat::Fp16, Box::new(Cpu::<f64>::new()));
        // Matrices lie side by side in one case and apart in the other, so that sums have another order: of f64.
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-12, "{name}: logits are off by {off:e}");
    }
}

/// Weights are off by up to a 254th of their row's largest, and the errors of many add up as the root of their number: they
/// move the logits of these models by a few hundredths of their spread.
#[test]
fn logits_are_off_by_a_little() {
    for name in BUNDLES.into_iter().chain(PROMPTS) {
        let bundle = Bundle::open(name);
        let set = bundle.features();
        let found = logits(&bundle, &bundle.model, &set, WeightFormat::Int8, Box::new(Cpu::<f64>::new()));
        let exact = match bundle.task {
            // What the reference has is a sum of these.
            TaskKind::CausalLm => logits(&bundle, &bundle.model, &set, WeightFormat::Fp16, Box::new(Cpu::<f64>::new())),
            _ => bundle.expected("logits").to_vec(),
        };
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let mean = exact.iter().sum::<f64>() / exact.len() as f64;
        let off = norm(&mut found.iter().zip(&exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().map(|value| value - mean));
        println!("{name}: off by {off:.4} of the spread");
        assert!(off > 1e-5 && off < 0.1, "{name}: off by {off:e} of the logits' spread");
    }
}

/// The same random matrices, 8 bits of them, on the host and on a device; streamed they take the host's memory.
#[cfg(feature = "emulation")]
#[test]
fn random_weights_are_quantised_alike_everywhere() {
    use ptune::backend::cuda::{Cuda, Emulated};
    use ptune::engine::{MemoryMode, Residency};
    let bundle = Bundle::open("bert-classification");
    let config = ptune::model::Config::of_model(&bundle.model.directory).unwrap();
    let random = FrozenModel::random(&config, 3).unwrap();
    let set = bundle.features();
    let device = || Box::new(Cuda::new(Emulated::new(0), DType::F16).unwrap());
    let [host, eight, sixteen] = [
        logits(&bundle, &random, &set, WeightFormat::Int8, Box::new(Cpu::<f32>::new())),
        logits(&bundle, &random, &set, WeightFormat::Int8, device()),
        logits(&bundle, &random, &set, WeightFormat::Fp16, device()),
    ];
    let largest = |other: &[f64]| host.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("off by {} and {}", largest(&eight), largest(&sixteen));
    assert!(largest(&eight) < 5e-3 && eight != sixteen);

    let options = |weight_format, weights| EngineOptions {
        weight_format,
        memory: MemoryMode { weights, ..MemoryMode::default() },
        ..bundle.options()
    };
    let capacity = Capacity::for_items(&set, &bundle.options().heads[0], 8, true);
    let plan = |format, weights| ptune::engine::Plan::new(&random, &options(format, weights), capacity, device().as_ref()).unwrap();
    let home = |format| plan(format, Residency::Streamed).host;
    let matrices = home(WeightFormat::Fp16) as f64;
    let ratio = home(WeightFormat::Int8) as f64 / matrices;
    // A row of 32 has a factor of 4 bytes.
    assert!((0.5..0.65).contains(&ratio), "{ratio}");
    let mut engine = Engine::new(device(), &random, options(WeightFormat::Int8, Residency::Streamed), capacity).unwrap();
    engine.load_adapter(&bundle.adapter).unwrap();
    let features: Vec<usize> = (0..set.features.len()).collect();
    let streamed: Vec<f64> = features.chunks(8).flat_map(|chunk| engine.forward(&set, chunk).unwrap().concat()).collect();
    assert_eq!(streamed, eight);
}

fn run(folder: &Path, line: &str) -> Run {
    Run::from(program().current_dir(folder).args(line.split_whitespace()).output().unwrap())
}

fn plan_json(line: &str) -> Value {
    serde_json::from_str(&run(Path::new("."), &format!("plan {line} --json")).ok()).unwrap()
}

/// Of GLM-10B, 48 layers of 12 H² + norms and biases have a byte a weight, the embeddings two.
#[test]
fn plans_of_glm_10b_in_8_bits() {
    const GLM: &str = "--architecture glm-10b --prefix-length 128 --tokens-per-step 16384 --recompute layer";
    let part = |plan: &Value, name: &str| {
        let parts = plan["parts"].as_array().unwrap().iter();
        parts.filter(|part| part["name"] == name).map(|part| part["bytes"].as_f64().unwrap()).sum::<f64>()
    };
    let (sixteen, eight) = (plan_json(GLM), plan_json(&format!("{GLM} --weight-format int8")));
    assert_eq!((&sixteen["weight_format"], &eight["weight_format"]), (&Value::from("fp16"), &Value::from("int8")));
    let (h, layers) = (4096.0, 48.0);
    let matrices = layers * 12.0 * h * h;
    let factors = layers * 4.0 * (3.0 * h + h + 4.0 * h + h);
    let saved = part(&sixteen, "frozen weights") - part(&eight, "frozen weights");
    assert!((saved / (matrices - factors) - 1.0).abs() < 1e-3, "{saved}");
    // The largest matrix has 4 H² elements of 16 bits.
    assert_eq!((part(&sixteen, "dequantised weights"), part(&eight, "dequantised weights")), (0.0, 8.0 * h * h));
    assert!((10.0e9..10.6e9).contains(&part(&eight, "frozen weights")), "{}", part(&eight, "frozen weights"));
    // Each product's matrix is read as bytes, written and read again.
    assert!(eight["step_seconds"].as_f64() > sixteen["step_seconds"].as_f64() && eight["step_flops"] == sixteen["step_flops"]);
    // Streamed, half as much goes over the bus.
    let streamed =
        |format: &str| plan_json(&format!("{GLM} --weights streamed --weight-format {format}"))["host_peak_bytes"].as_f64().unwrap();
    assert!((streamed("fp16") - streamed("int8")) / saved > 0.99);
}

/// No budget chooses 8 bits by itself, but where they would do, the error says so.
#[test]
fn a_budget_that_is_too_small_names_8_bits() {
    let line = "plan --architecture roberta-large --weights resident --recompute layer --length 128 --tokens-per-step 128";
    let least = run(Path::new("."), &format!("{line} --budget 1")).error(1, &["at least"]);
    assert!(!least.contains("int8"), "{least}");
    let error = run(Path::new("."), &format!("{line} --budget 1150MiB")).error(1, &["at least", "it fits with --weight-format int8"]);
    assert!(error.contains("recompute layer"), "{error}");
    run(Path::new("."), &format!("{line} --budget 1150MiB --weight-format int8")).ok();
}

fn train(folder: &Path, line: &str) -> Run {
    let bundle = golden("bert-classification");
    let files = format!("--model {} --data {}", bundle.join("model").display(), bundle.join("data.jsonl").display());
    run(folder, &format!("train {files} --task classification --output run --prefix-length 5 --batch-size 8 --device cpu {line}"))
}

/// Recorded, resumed, continued and scored in the same format; streamed or not.
#[test]
fn a_run_keeps_its_format() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let at = |index: usize| folders[index].path();
    let adapter = |index: usize| std::fs::read(at(index).join("run/adapter_model.safetensors")).unwrap();
    let text = |index: usize, name: &str| std::fs::read_to_string(at(index).join("run").join(name)).unwrap();
    let line = "--max-steps 4 --save-every 2 --learning-rate 1e-2";
    train(at(0), &format!("{line} --weight-format int8")).ok();
    train(at(1), &format!("{line} --weight-format int8 --weights streamed --recompute layer")).ok();
    train(at(2), line).ok();
    assert!(adapter(0) == adapter(1) && adapter(0) != adapter(2));
    assert!(text(0, "config.toml").contains("weight-format = \"int8\"") && text(2, "config.toml").contains("weight-format = \"fp16\""));
    assert!(text(0, "ptune.json").contains("\"weight_format\": \"int8\"") && !text(2, "ptune.json").contains("weight_format"));
    assert!(text(0, "README.md").contains("| weight-format | int8 |") && text(0, "README.md").contains("had 8 bits in training"));
    assert!(text(2, "README.md").contains("| weight-format | fp16 |") && text(2, "README.md").contains("for equal logits"));
    assert!(run(at(0), "inspect run").ok().contains("weights        int8"));
    assert!(!run(at(2), "inspect run").ok().contains("weights        int8"));

    // Scores are those of the training's format, unless another is asked for.
    let bundle = golden("bert-classification");
    let score = |index: usize, more: &str| {
        let files = format!("--model {} --data {}", bundle.join("model").display(), bundle.join("data.jsonl").display());
        run(at(index), &format!("eval {files} --adapter run --device cpu --json {more}")).ok()
    };
    assert!(score(0, "") == score(0, "--weight-format int8") && score(0, "") != score(0, "--weight-format fp16"));
    assert!(score(2, "") == score(2, "--weight-format fp16") && score(2, "") != score(2, "--weight-format int8"));
    run(at(2), "eval --model m --adapter run --data d --weight-format int4").error(2, &["int4", "--weight-format"]);

    // An interrupted run goes on in its format alone.
    for name in ["train_results.json", "trainer_state.json"] {
        std::fs::remove_file(at(0).join("run").join(name)).unwrap();
    }
    std::fs::remove_dir_all(at(0).join("run/checkpoint-4")).unwrap();
    train(at(0), "--resume --weight-format fp16").error(2, &["--weight-format", "fp16", "int8"]);
    train(at(0), "--resume --weights streamed").ok();
    assert!(adapter(0) == adapter(1));

    // What starts from its adapter takes its format.
    let folder = tempfile::tempdir().unwrap();
    let start = format!("--init-adapter {} --max-steps 1", at(0).join("run").display());
    train(folder.path(), &start).ok();
    assert!(std::fs::read_to_string(folder.path().join("run/config.toml")).unwrap().contains("weight-format = \"int8\""));
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), &format!("{start} --weight-format fp16")).ok();
    assert!(!std::fs::read_to_string(folder.path().join("run/ptune.json")).unwrap().contains("weight_format"));
}

/// Steps are timed in either format, and a grid may have both.
#[test]
fn benches_and_sweeps_take_a_format() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden("bert-classification").join("model");
    for device in if cfg!(feature = "emulation") { &["cpu", "emulated"][..] } else { &["cpu"] } {
        let line = "--random-weights 5 --tokens 50 --length 20 --prefix-length 6 --steps 1 --weight-format int8 --json report";
        run(folder.path(), &format!("bench step --model {} --device {device} {line}", model.display())).ok();
        let report = json(&folder.path().join("report"));
        assert_eq!(report["settings"]["weight_format"], "int8");
        let operations = report["operations"].as_array().unwrap();
        let widened = operations.iter().find(|row| row["name"] == "dequantize").unwrap();
        assert!(widened["bytes"].as_f64().unwrap() > 0.0 && widened["flops"].as_f64() == Some(0.0), "{widened}");
        // Products with what was widened are a step's work as ever.
        assert!(report["step"]["flops"].as_f64().unwrap() > 1e6, "{device}: {report}");
    }
    let line = "bench memory --architectures bert-tiny --modes none,layer+streamed --plan-only --weight-format int8 --json memory";
    run(folder.path(), line).ok();
    let report = json(&folder.path().join("memory"));
    let parts = report["cases"][1]["planned"]["parts"].as_array().unwrap();
    assert!(report["settings"]["weight_format"] == "int8" && parts.iter().any(|part| part["name"] == "dequantised weights"));

    let data = golden("bert-classification").join("data.jsonl");
    let files = format!("--model {} --data {} --validation {}", model.display(), data.display(), data.display());
    let said = run(
        folder.path(),
        &format!(
            "sweep {files} --task classification --output grid --max-steps 1 --prefix-length 3 --device cpu --grid weight-format=fp16,int8"
        ),
    )
    .ok();
    assert!(said.contains("int8"), "{said}");
}
