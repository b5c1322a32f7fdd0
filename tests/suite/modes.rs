//! Memory modes: what `ptune plan` says, that a run keeps to its budget, and that no mode changes a bit of a result.

use crate::bundle::golden;
use crate::command::{Run, files, json, program};
use ptune::backend::cpu::Cpu;
use ptune::backend::cuda::Absent;
use ptune::backend::{Activation, DType, NormKind, Stream};
use ptune::checkpoint::{FrozenModel, WeightFormat};
use ptune::data::{Feature, FeatureSet, Sequence};
use ptune::engine::{Capacity, Engine, EngineOptions, MemoryMode, Plan, PrefixOptions, Update};
use ptune::model::{Biases, HeadKind, HeadSpec, MaskKind, NormPlace, Positions, Readout, Specification, TaskKind};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const GIB: f64 = (1u64 << 30) as f64;

fn run(command: &mut Command) -> Run {
    Run::from(command.output().unwrap())
}

fn plan(line: &str) -> Run {
    run(program().arg("plan").args(line.split_whitespace()))
}

fn plan_json(line: &str) -> Value {
    serde_json::from_str(&plan(&format!("{line} --json")).ok()).unwrap()
}

const GLM: &str = "--architecture glm-10b --prefix-length 128 --tokens-per-step 16384";

/// What has to be kept for the backward, by hand, at GLM-10B's size, and its parameters' bytes.
#[test]
fn glm_10b_on_one_gpu() {
    let gib = |value: &Value| value.as_f64().unwrap() / GIB;
    let plain = plan_json(GLM);
    assert!((78.0..84.0).contains(&gib(&plain["device_peak_bytes"])), "{plain}");
    assert_eq!(plain["micro_batch_tokens"], 16384);
    // 16 bytes of states a parameter, and the layers' inputs.
    assert!(gib(&plain["full_finetuning_bytes"]) > 150.0, "{plain}");
    let layer = plan_json(&format!("{GLM} --recompute layer"));
    assert!(gib(&layer["device_peak_bytes"]) < 30.0, "{layer}");
    let parts = layer["parts"].as_array().unwrap();
    let sum: u64 = parts.iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, layer["device_peak_bytes"].as_u64().unwrap());
    let weights = parts.iter().find(|part| part["name"] == "frozen weights").unwrap();
    // 9.88e9 parameters of 16 bits; norms have 32.
    assert!((weights["bytes"].as_f64().unwrap() / (2.0 * 9.880682e9) - 1.0).abs() < 1e-3);
    // Kept: a layer input of H fp16 values a token and layer.
    let saved = parts.iter().find(|part| part["name"] == "saved activations").unwrap();
    assert!((saved["bytes"].as_f64().unwrap() / (48.0 * 16384.0 * 2.0 * 4096.0) - 1.0).abs() < 1e-2);
    // The recomputed share of the work, linear layers alone: (8 H^2 + 2 H F) of 2 (8 H^2 + 4 H F).
    let more = layer["step_flops"].as_f64().unwrap() / plain["step_flops"].as_f64().unwrap() - 1.0;
    assert!((0.30..0.36).contains(&more), "{more}");
    assert!(plain["step_seconds"].as_f64().unwrap() < layer["step_seconds"].as_f64().unwrap());
    // Within the second that a user waits; several tests run at once here.
    let folder = tempfile::tempdir().unwrap();
    let (started, file) = (std::time::Instant::now(), folder.path().join("plan.svg"));
    let said = plan(&format!("{GLM} --plot {}", file.display())).ok();
    assert!(started.elapsed().as_secs_f64() < 5.0, "{:?}", started.elapsed());
    assert!(said.contains("full fine-tuning, activation checkpointing") && said.contains("recompute layer, weights streamed"), "{said}");
    let chart = std::fs::read_to_string(&file).unwrap();
    assert!(chart.starts_with("<svg") && chart.contains("LoRA"));
}

#[test]
fn budgets_choose_the_fastest_mode_that_fits() {
    let chosen = plan_json(&format!("{GLM} --budget 30GiB"));
    assert!(chosen["device_peak_bytes"].as_f64().unwrap() <= 30.0 * GIB);
    // Smaller micro-batches cost less than making anything again.
    assert_eq!(chosen["recompute"], "none");
    assert!(chosen["micro_batch_tokens"].as_u64().unwrap() < 16384);
    // With micro-batches of a given size it has to recompute.
    let chosen = plan_json(&format!("{GLM} --budget 60GiB --recompute up-projection"));
    assert_eq!((&chosen["recompute"], &chosen["micro_batch_tokens"]), (&Value::from("up-projection"), &Value::from(16384)));

    // Down to a few GiB the weights stream; the step is then as long as the bus is busy, or longer.
    let chosen = plan_json(&format!("{GLM} --budget 4GiB"));
    assert_eq!((&chosen["weights"], &chosen["recompute"]), (&Value::from("streamed"), &Value::from("layer")));
    assert!(chosen["device_peak_bytes"].as_f64().unwrap() <= 4.0 * GIB && chosen["host_peak_bytes"].as_f64().unwrap() > 18.0 * GIB);
    assert!(chosen["micro_batch_tokens"].as_u64().unwrap() <= 8192);
    // All micro-batches of a step go through a layer together, so its weights come once and hide behind what is computed.
    assert_eq!((&chosen["offload_activations"], &chosen["layer_major"]), (&Value::from(true), &chosen["micro_batches"]));
    let resident = plan_json(&format!("{GLM} --recompute layer"));
    assert!(chosen["step_seconds"].as_f64().unwrap() < 1.05 * resident["step_seconds"].as_f64().unwrap(), "{chosen}");
    // One micro-batch at a time, the layers come once for each.
    let one = plan_json(&format!("{GLM} --weights streamed --recompute layer --micro-batch-tokens 2048"));
    assert!(one["step_seconds"].as_f64().unwrap() > 1.5 * chosen["step_seconds"].as_f64().unwrap(), "{one}");
    plan(&format!("{GLM} --offload-activations")).error(2, &["--recompute layer"]);
    plan(&format!("{GLM} --layer-major 0")).error(2, &["--layer-major 0"]);
    plan(&format!("{GLM} --budget 2GiB")).error(1, &["at least", "GiB are needed"]);
    plan(&format!("{GLM} --budget 4GiB --weights resident")).error(1, &["at least", "GiB are needed"]);
    for (line, part) in [
        ("--architecture glm-10b --budget 4", "at least"),
        ("--architecture nothing", "known: "),
        ("--architecture bert-base --budget 3XB", "no amount of memory"),
        ("--architecture bert-base --micro-batch-tokens 8", "--length 512"),
        ("--architecture bert-base --tflops -1", "--tflops -1"),
        ("", "--model is missing"),
    ] {
        let ended = plan(line);
        assert!(
            matches!(ended.code, Some(1 | 2)) && ended.stderr.contains(part) && ended.stderr.lines().count() == 1,
            "{line}: {ended:#?}"
        );
    }
}

fn training(folder: &Path, line: &str) -> Run {
    let bundle = golden("bert-classification");
    let mut command = program();
    command.current_dir(folder).args(["train", "--task", "classification", "--output", "run", "--prefix-length", "5"]);
    command.args(["--hidden-dropout", "0.1", "--learning-rate", "1e-2"]);
    command.arg("--model").arg(bundle.join("model")).arg("--data").arg(bundle.join("data.jsonl"));
    run(command.args(line.split_whitespace()))
}

fn adapter(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("run/adapter_model.safetensors")).unwrap()
}

/// The modes, a budget that makes the run choose one, and a resumed run under another budget.
#[test]
fn training_in_less_memory_changes_no_bit() {
    let folders: Vec<_> = (0..9).map(|_| tempfile::tempdir().unwrap()).collect();
    let at = |index: usize| folders[index].path();
    training(at(0), "--max-steps 6 --batch-size 8").ok();
    training(at(1), "--max-steps 6 --batch-size 8 --recompute up-projection").ok();
    training(at(2), "--max-steps 6 --batch-size 8 --recompute layer").ok();
    training(at(5), "--max-steps 6 --batch-size 8 --weights streamed").ok();
    assert!([1, 2, 5].iter().all(|&index| adapter(at(0)) == adapter(at(index))));
    // The same partition, a micro-batch at a time and several together.
    let cut = "--max-steps 6 --batch-size 8 --micro-batch-size 3";
    training(at(6), cut).ok();
    let said = training(at(7), &format!("{cut} --recompute layer --weights streamed --offload-activations --layer-major 2")).ok();
    assert!(said.contains("wait in host memory") && said.contains("planned of host memory"), "{said}");
    assert!(adapter(at(6)) == adapter(at(7)));
    training(at(8), "--max-steps 6 --batch-size 8 --offload-activations").error(2, &["--recompute layer"]);

    // What was trained in little memory is used in little memory.
    let predicted = |weights: &str| {
        let bundle = golden("bert-classification");
        let mut command = program();
        command.current_dir(at(7)).args(["predict", "--adapter", "run", "--output", "out.jsonl", "--with", "logits", "--weights", weights]);
        run(command.arg("--model").arg(bundle.join("model")).arg("--input").arg(bundle.join("data.jsonl"))).ok();
        std::fs::read(at(7).join("out.jsonl")).unwrap()
    };
    let resident = predicted("resident");
    assert!(!resident.is_empty() && resident == predicted("streamed") && resident == predicted("disk"));

    // The least that works is in the message; with it the run works, in micro-batches.
    let error = training(at(3), "--max-steps 6 --batch-size 8 --memory-budget 1000").error(1, &["at least"]);
    let least = error.split("at least ").nth(1).and_then(|rest| rest.split(" are").next()).unwrap().to_string();
    let number: f64 = least.split(' ').next().unwrap().parse().unwrap();
    let unit = least.split(' ').nth(1).unwrap();
    let said = training(at(3), &format!("--max-steps 6 --batch-size 8 --memory-budget {}{unit}", number * 1.01)).ok();
    assert!(said.contains("recompute layer, weights") && !said.contains("micro-batches of 8 items"), "{said}");
    let config = std::fs::read_to_string(at(3).join("run/config.toml")).unwrap();
    let size = config.lines().find_map(|line| line.strip_prefix("micro-batch-size = ")).unwrap_or_else(|| panic!("{config}"));
    assert!(config.contains("recompute = \"layer\""), "{config}");

    // The same partition without a budget gives the same bits, and so does a run that is gone on with in another mode.
    training(at(4), &format!("--max-steps 6 --batch-size 8 --micro-batch-size {size} --save-every 3")).ok();
    assert!(adapter(at(3)) == adapter(at(4)));
    let run_folder = at(4).join("run");
    for name in ["train_results.json", "trainer_state.json"] {
        std::fs::remove_file(run_folder.join(name)).unwrap();
    }
    std::fs::remove_dir_all(run_folder.join("checkpoint-6")).unwrap();
    training(at(4), "--resume --recompute layer").ok();
    assert!(adapter(at(3)) == adapter(at(4)));
}

#[test]
fn steps_are_counted_in_tokens() {
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let line = "--tokens-per-step 200 --epochs 2";
    let said = training(folders[0].path(), line).ok();
    assert!(said.contains("of 200 tokens in micro-batches of"), "{said}");
    let results = json(&folders[0].path().join("run/train_results.json"));
    // Each step has about as many tokens.
    let (tokens, steps) = (results["tokens"].as_f64().unwrap(), results["steps"].as_f64().unwrap());
    assert!(steps > 2.0 && tokens / steps <= 200.0 && tokens / steps > 100.0, "{results}");
    let before = files(&folders[0].path().join("run"));
    assert!(before.keys().any(|name| name == "adapter_model.safetensors"));
    training(folders[1].path(), &format!("{line} --micro-batch-tokens 70 --recompute layer")).ok();
    for (line, part) in [
        ("--tokens-per-step 200 --batch-size 3", "exclude each other"),
        ("--micro-batch-tokens 20", "needs --tokens-per-step"),
        ("--tokens-per-step 200 --micro-batch-tokens 2", "an example has"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let error = training(folder.path(), line);
        assert!(error.code == Some(2) && error.stderr.contains(part), "{line}: {error:#?}");
    }
}

/// Draws a transformer: every field that changes what is laid out.
fn random_specification(random: &mut Stream) -> Specification {
    let mut any = |choices: usize| random.below(choices);
    let layers = 1 + any(6);
    let (head_dim, groups) = ([8, 16, 24][any(3)], 1 + any(2));
    let heads = groups * (1 + any(3));
    let hidden_size = [24, 40, 64][any(3)];
    let pre = any(2) == 0;
    let gated = any(2) == 0;
    let shared = layers > 1 && any(4) == 0;
    Specification {
        layers,
        layer_weights: (0..layers).map(|layer| if shared { layer / 2 } else { layer }).collect(),
        hidden_size,
        embedding_size: if any(3) == 0 { 16 } else { hidden_size },
        heads,
        kv_heads: groups,
        head_dim,
        ffn_size: [20, 48, 96][any(3)],
        vocabulary: 50,
        token_types: any(3),
        positions: Positions::Learned { table: 64, first: 0, padding_id: None },
        mask: if any(2) == 0 { MaskKind::Full } else { MaskKind::Causal },
        readout: Readout::First,
        norm: if any(2) == 0 { NormKind::LayerNorm } else { NormKind::RmsNorm },
        norm_place: if pre { NormPlace::Pre } else { NormPlace::Post },
        embedding_norm: !pre || any(3) == 0,
        final_norm: pre,
        activation: if gated { Activation::SwiGlu } else { Activation::GeluTanh },
        biases: Biases::ALL,
        family: "drawn".into(),
        window: None,
        norm_epsilon: 1e-5,
        query_key_norm: false,
        tied_head: true,
        block_dropout: true,
        hidden_dropout: 0.1,
        attention_dropout: 0.1,
        initializer_range: 0.02,
        labels: None,
    }
}

/// The regions of random plans add up to the one allocation, which is all that a step touches (the CPU backend checks each
/// view), on a GPU that is not there too; and every mode gives the bits of the plain one.
#[test]
fn random_models_in_every_mode() {
    let mut random = Stream::new([21, 4]);
    for number in 0..24 {
        let spec = random_specification(&mut random);
        let layers: Vec<usize> = (0..spec.layers).filter(|_| random.below(3) > 0).collect();
        let task = [TaskKind::Classification, TaskKind::Tagging][random.below(2)];
        let prefix = PrefixOptions { length: 1 + random.below(5), layers, projection: None, shifted: true, dropout: 0.2 };
        let head = HeadSpec::new(task, HeadKind::Linear, 3, &spec);
        let options = EngineOptions { hidden_dropout: 0.1, attention_dropout: 0.1, seed: 5, ..EngineOptions::new(prefix, vec![head]) };
        let mut set = FeatureSet { examples: 4, ..FeatureSet::default() };
        for example in 0..4 {
            let length = 1 + random.below(30) as u32;
            let readout: Vec<u32> = if task == TaskKind::Tagging { (0..length).collect() } else { vec![0] };
            let targets = readout.iter().map(|row| (row % 3) as i32).collect();
            let ids = (0..length).map(|i| (i * 7 + example as u32) % 50).collect();
            set.sequences.push(Sequence { ids, readout, ..Sequence::default() });
            set.features.push(Feature { example, first_sequence: example, sequences: 1, targets });
        }
        let model = FrozenModel::synthetic(spec.clone(), DType::F32, 0.3, number).unwrap();
        let capacity = Capacity::for_items(&set, &options.heads[0], 4, true);
        let mut first = None;
        // Every other model has matrices of 8 bits.
        let weight_format = if number % 2 == 0 { WeightFormat::Fp16 } else { WeightFormat::Int8 };
        for (index, mode) in MemoryMode::every().enumerate() {
            // Over the models each mode goes with each count; the first is the plain one.
            let together = if index == 0 { 1 } else { 1 + (index + number as usize) % 3 };
            let memory = MemoryMode { together, ..mode };
            let options = EngineOptions { memory, weight_format, ..options.clone() };
            for plan in [
                Plan::new(&model, &options, capacity, &Cpu::<f32>::new()).unwrap(),
                Plan::new(&model, &options, capacity, &Absent::new(DType::F16)).unwrap(),
            ] {
                assert_eq!(plan.regions.iter().map(|region| region.bytes).sum::<usize>(), plan.total, "{spec:?}");
            }
            let mut engine = Engine::new(Box::new(Cpu::<f32>::new()), &model, options, capacity).unwrap();
            engine.begin_step(0, set.features.iter().map(|feature| feature.targets.len()).sum());
            for feature in 0..4 {
                engine.accumulate(&set, &[feature], feature).unwrap();
            }
            engine.finish_step(&Update { learning_rate: 1e-2, weight_decay: 0.0, max_grad_norm: Some(1.0) });
            let report = engine.flush_report().unwrap();
            let values: Vec<Vec<f64>> =
                engine.trainables().iter().map(|tensor| tensor.name.clone()).map(|name| engine.values(&name).unwrap()).collect();
            assert!(report.loss.is_finite() && report.grad_norm > 0.0, "{spec:?}: {report:?}");
            let outcome = (report, values);
            match &first {
                None => first = Some(outcome),
                Some(first) => assert!(*first == outcome, "{memory:?}: {spec:?} with prefixes in {:?}", engine.options().prefix.layers),
            }
        }
    }
}
