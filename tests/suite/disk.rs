//! Weights that stay on the disk (`--weights disk`): the bits of resident ones, whatever a checkpoint stores apart, fused,
//! transposed or in another type; no layer in host memory; and nothing that a budget chooses.

use crate::bundle::{Bundle, golden};
use crate::command::{Run, copy, program};
use crate::invariants::State;
use ptune::backend::cpu::Cpu;
use ptune::backend::cuda::Absent;
use ptune::backend::{Backend, DType, Sizing};
use ptune::checkpoint::{FrozenModel, WeightFormat};
use ptune::engine::{Capacity, Engine, EngineOptions, MemoryMode, Plan, Residency, StepReport, Update};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::path::Path;

fn options(bundle: &Bundle, memory: MemoryMode) -> EngineOptions {
    let mut options = EngineOptions { memory, ..bundle.options() };
    (options.prefix.dropout, options.hidden_dropout, options.attention_dropout) = (0.2, 0.1, 0.1);
    options
}

/// Steps of micro-batches of two: what they leave and report.
fn train(bundle: &Bundle, options: EngineOptions, backend: Box<dyn Backend>) -> (State, Vec<StepReport>) {
    let set = bundle.features();
    let capacity = Capacity::for_items(&set, &options.heads[0], 2, true);
    let mut engine = Engine::new(backend, &bundle.model, options, capacity).unwrap();
    let features: Vec<usize> = (0..4).collect();
    let mut reports = Vec::new();
    for number in 0..3 {
        engine.begin_step(number, features.iter().map(|&feature| set.targets(feature)).sum());
        let mut ordinal = 0;
        for chunk in features.chunks(2) {
            engine.accumulate(&set, chunk, ordinal).unwrap();
            ordinal += chunk.iter().map(|&feature| set.features[feature].sequences).sum::<usize>();
        }
        engine.finish_step(&Update { learning_rate: 1e-2, weight_decay: 0.01, max_grad_norm: Some(1.0) });
        reports.extend(engine.flush_report());
    }
    engine.check().unwrap();
    (State::of(&mut engine), reports)
}

fn modes() -> impl Iterator<Item = MemoryMode> {
    MemoryMode::of(Residency::Disk).flat_map(|mode| [1, 2].map(|together| MemoryMode { together, ..mode }))
}

/// The bundle with its model's tensors of some names in fp32, which holds the same numbers.
fn widened(name: &str, folder: &Path, wide: impl Fn(&str) -> bool) -> Bundle {
    let mut bundle = Bundle::open(name);
    copy(&bundle.model.directory, folder);
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let number = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes();
    let retyped = tensors.iter().map(|(name, view)| match wide(name) {
        true => (name, Dtype::F32, view.shape().to_vec(), view.data().chunks_exact(2).flat_map(number).collect()),
        false => (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()),
    });
    let retyped: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = retyped.collect();
    let views = retyped.iter().map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &folder.join("model.safetensors")).unwrap();
    bundle.model = FrozenModel::open(folder).unwrap();
    bundle
}

fn plan(bundle: &Bundle, weights: Residency, weight_format: WeightFormat, sizing: &dyn Sizing) -> Plan {
    let options = EngineOptions { weight_format, ..options(bundle, MemoryMode { weights, ..MemoryMode::default() }) };
    let capacity = Capacity::for_items(&bundle.features(), &options.heads[0], 2, true);
    Plan::new(&bundle.model, &options, capacity, sizing).unwrap()
}

/// Queries, keys and values apart, and fused; a gate; matrices of relative positions; and all of them transposed. Everything on
/// the device happens as late as may be.
#[cfg(feature = "emulation")]
#[test]
fn a_device_computes_the_bits_of_resident_weights() {
    use ptune::backend::cuda::{Cuda, Emulated, Timing};
    let device = |dtype| -> Box<dyn Backend> { Box::new(Cuda::new(Emulated::with_timing(0, Timing::Late), dtype).unwrap()) };
    for (name, dtype) in [
        ("bert-classification", DType::F16),
        ("bert-classification", DType::BF16),
        ("llama-classification", DType::F16),
        ("glm-classification", DType::F16),
        ("gpt2-classification", DType::F16),
        ("deberta-tagging", DType::F16),
    ] {
        let bundle = Bundle::open(name);
        let resident = train(&bundle, options(&bundle, MemoryMode::default()), device(dtype));
        for memory in modes() {
            assert!(train(&bundle, options(&bundle, memory), device(dtype)) == resident, "{name} in {dtype:?}: {memory:?}");
        }
        let mapped = plan(&bundle, Residency::Disk, WeightFormat::Fp16, device(dtype).as_ref()).mapped;
        assert_eq!(mapped > 0, dtype == DType::F16 && !name.starts_with("gpt2"), "{name} in {dtype:?}: {mapped}");
    }
    // All in fp32, and queries alone, which then come from host memory beside keys and values from the file.
    for (name, part) in [("bert-classification", ""), ("bert-classification", "query"), ("llama-classification", "q_proj")] {
        let folder = tempfile::tempdir().unwrap();
        let (plain, wide) = (Bundle::open(name), widened(name, folder.path(), |tensor| tensor.contains(part)));
        let resident = train(&plain, options(&plain, MemoryMode::default()), device(DType::F16));
        for memory in modes().step_by(3) {
            assert!(train(&wide, options(&wide, memory), device(DType::F16)) == resident, "{name}, fp32 of {part}: {memory:?}");
        }
        let mapped = |bundle| plan(bundle, Residency::Disk, WeightFormat::Fp16, device(DType::F16).as_ref()).mapped;
        assert!(mapped(&wide) < mapped(&plain) && (mapped(&wide) > 0) != part.is_empty(), "{name}, fp32 of {part}");
    }
}

#[test]
fn the_cpu_computes_the_bits_of_resident_weights() {
    for name in ["bert-classification", "llama-classification", "glm-classification", "gpt2-classification", "deberta-tagging"] {
        let folder = tempfile::tempdir().unwrap();
        let (plain, wide) = (Bundle::open(name), widened(name, folder.path(), |_| true));
        for bundle in [plain, wide] {
            let resident = train(&bundle, options(&bundle, MemoryMode::default()), Box::new(Cpu::<f32>::new()));
            for memory in modes() {
                assert!(train(&bundle, options(&bundle, memory), Box::new(Cpu::<f32>::new())) == resident, "{name}: {memory:?}");
            }
        }
    }
}

/// What lies in the files lies in no host memory: with matrices of one 16-bit type, all that streamed layers have there.
#[test]
fn files_take_the_place_of_host_memory() {
    let bundle = Bundle::open("bert-classification");
    let gpu = Absent::new(DType::F16);
    let [resident, streamed, disk] =
        [Residency::Resident, Residency::Streamed, Residency::Disk].map(|weights| plan(&bundle, weights, WeightFormat::Fp16, &gpu));
    let spec = &bundle.model.spec;
    let layers = spec.layers * 2 * (4 * spec.hidden_size * spec.hidden_size + 2 * spec.hidden_size * spec.ffn_size);
    assert_eq!((resident.mapped, streamed.mapped, disk.mapped), (0, 0, layers));
    // Places in host memory begin at multiples of 256 bytes.
    let embeddings = (2 * spec.vocabulary * spec.embedding_size).next_multiple_of(256);
    assert_eq!(disk.host, embeddings);
    assert!(streamed.host >= layers + embeddings && disk.total == streamed.total, "{} and {}", disk.total, streamed.total);
    // 8 bits are made in memory, and stay there.
    let [streamed, disk] = [Residency::Streamed, Residency::Disk].map(|weights| plan(&bundle, weights, WeightFormat::Int8, &gpu));
    assert_eq!((disk.mapped, disk.host, disk.total), (0, streamed.host, streamed.total));
}

fn run(folder: &Path, line: &str) -> Run {
    Run::from(program().current_dir(folder).args(line.split_whitespace()).output().unwrap())
}

/// The plan of a model in files: no layer in host memory; and a budget chooses it only where it was asked for.
#[test]
fn plans_show_files_apart() {
    let here = Path::new(".");
    let model = golden("bert-classification").join("model");
    let line = format!("plan --model {} --length 32 --tokens-per-step 128 --json", model.display());
    let json = |more: &str| -> Value { serde_json::from_str(&run(here, &format!("{line} {more}")).ok()).unwrap() };
    let (streamed, disk) = (json("--weights streamed"), json("--weights disk"));
    let bytes = |plan: &Value, name: &str| plan[name].as_u64().unwrap();
    assert_eq!((disk["weights"].as_str(), bytes(&streamed, "mapped_bytes")), (Some("disk"), 0));
    assert_eq!(bytes(&disk, "device_peak_bytes"), bytes(&streamed, "device_peak_bytes"));
    assert!(bytes(&disk, "host_peak_bytes") + bytes(&disk, "mapped_bytes") <= bytes(&streamed, "host_peak_bytes"));
    assert!(bytes(&disk, "mapped_bytes") > 0);
    let text = run(here, &format!("plan --model {} --length 32 --tokens-per-step 128 --weights disk", model.display())).ok();
    assert!(text.contains("weights disk") && text.contains("frozen matrices read in their files"), "{text}");

    assert!(MemoryMode::every().all(|mode| mode.weights != Residency::Disk));
    let error = run(here, &format!("{line} --budget 1")).error(1, &["weights streamed"]);
    let least = error.split("at least ").nth(1).and_then(|rest| rest.split(" are").next()).unwrap().to_string();
    let (number, unit) = least.split_once(' ').unwrap();
    let budget = format!("--budget {}{unit}", number.parse::<f64>().unwrap() * 1.005);
    assert_ne!(json(&budget)["weights"], "disk");
    assert!(json(&budget)["modes"].as_array().unwrap().iter().all(|mode| mode["weights"] != "disk"));
    assert_eq!(json(&format!("{budget} --weights disk"))["weights"], "disk");
    for command in ["plan --architecture bert-tiny --length 32", "bench step --architecture bert-tiny --random-weights"] {
        run(here, &format!("{command} --weights disk")).error(2, &["--weights disk", "--weights streamed"]);
    }
}

/// A run by its command, on the CPU and on a device; and gone on with in another mode.
#[test]
fn a_run_reads_its_weights_from_the_disk() {
    let bundle = golden("bert-classification");
    let devices = if cfg!(feature = "emulation") { &["cpu", "emulated"][..] } else { &["cpu"] };
    for device in devices {
        let trained = |more: &str| {
            let folder = tempfile::tempdir().unwrap();
            let files = format!("--model {} --data {}", bundle.join("model").display(), bundle.join("data.jsonl").display());
            let line = format!("train {files} --task classification --output run --prefix-length 5 --batch-size 8 --max-steps 4");
            let mut command = program();
            command.current_dir(folder.path()).env("PTUNE_EMULATED_TIMING", "late");
            command.args(line.split_whitespace()).args(["--device", device, "--learning-rate", "1e-2"]);
            let said = Run::from(command.args(more.split_whitespace()).output().unwrap()).ok();
            let config = std::fs::read_to_string(folder.path().join("run/config.toml")).unwrap();
            (std::fs::read(folder.path().join("run/adapter_model.safetensors")).unwrap(), said, config)
        };
        let (resident, ..) = trained("");
        let (disk, said, config) = trained("--weights disk --recompute layer");
        assert!(resident == disk, "{device}");
        assert!(said.contains("stay where their file is mapped") && config.contains("weights = \"disk\""), "{said}{config}");
    }
    let files = format!("--model {} --data {}", bundle.join("model").display(), bundle.join("data.jsonl").display());
    let line = format!("train {files} --task classification --output run --random-weights --weights disk");
    run(tempfile::tempdir().unwrap().path(), &line).error(2, &["--weights disk", "--random-weights"]);
}
