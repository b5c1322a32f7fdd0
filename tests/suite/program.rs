//! Whole commands against the golden bundles: PEFT's adapters in, the reference software's ids, logits, losses and
//! trained tensors out, and adapters written so that PEFT reads them.

use crate::bundle::{BUNDLES, Bundle};
use crate::command::{copy, files, json, json_lines, ptune, tensors, text};
use ptune::model::TaskKind;
use serde_json::Value;
use std::path::Path;

/// Flags that only tell what the bundle's files do not: limits, and multiple choice, which PEFT calls a classification.
fn facts(bundle: &Bundle) -> Vec<String> {
    let setting = |name: &str| bundle.case["settings"][name].as_u64().map(|value| value.to_string());
    let mut flags = Vec::new();
    for (flag, value) in [("--max-length", setting("max_length")), ("--doc-stride", setting("doc_stride"))] {
        flags.extend(value.map(|value| [flag.to_string(), value]).into_iter().flatten());
    }
    if let Some(verbalizer) = bundle.verbalizer() {
        flags.extend(["--task", "classification", "--verbalizer"].map(String::from));
        flags.push(verbalizer);
    }
    if bundle.task == TaskKind::MultipleChoice {
        flags.extend(["--task", "multiple-choice"].map(String::from));
    }
    flags
}

/// Five steps from the bundle's adapter, as the bundle was trained.
fn train(bundle: &Bundle, output: &Path, more: &[&str]) {
    let path = |name: &str| bundle.directory.join(name).into_os_string();
    let mut arguments: Vec<std::ffi::OsString> = vec!["train".into()];
    for (flag, value) in [("--model", path("model")), ("--init-adapter", path("adapter")), ("--data", path("data.jsonl"))] {
        arguments.extend([flag.into(), value]);
    }
    arguments.extend(["--output".into(), output.into()]);
    let fixed = "--data-order sequential --batch-size 8 --max-steps 5 --learning-rate 1e-2 --prefix-dropout 0 --hidden-dropout 0 \
                 --attention-dropout 0 --quiet";
    arguments.extend(fixed.split_whitespace().chain(more.iter().copied()).map(Into::into));
    arguments.extend(facts(bundle).into_iter().map(Into::into));
    assert_eq!(ptune(arguments).ok(), "", "--quiet");
}

/// The lines that `predict` writes for the bundle's data.
fn predict(bundle: &Bundle, adapter: &Path, output: &Path) -> Vec<Value> {
    let mut arguments = vec!["predict".into(), "--quiet".into(), "--model".into(), bundle.directory.join("model").into_os_string()];
    arguments.extend(["--adapter".into(), adapter.into(), "--input".into(), bundle.directory.join("data.jsonl").into()]);
    arguments.extend(["--output".into(), output.into(), "--with".into(), "logits,input_ids".into(), "--batch-size".into(), "8".into()]);
    arguments.extend(facts(bundle).into_iter().map(Into::into));
    ptune(arguments).ok();
    json_lines(output)
}

#[test]
fn training_gives_what_the_reference_gives() {
    for name in BUNDLES {
        let bundle = Bundle::open(name);
        let unpadded = if bundle.task == TaskKind::Qa { "unpadded." } else { "" };
        for (kind, flags) in [
            ("trained", ["--schedule", "constant", "--max-grad-norm", "0"]),
            ("trained_clipped_linear", ["--schedule", "linear", "--max-grad-norm", "1"]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("run");
            train(&bundle, &output, &flags);

            let bound = bundle.tolerance("tolerance_fp32_engine", &format!("{kind}_delta_rel_l2"));
            let unstable = bundle.unstable();
            let start = tensors(&bundle.directory.join("adapter/adapter_model.safetensors"));
            for (tensor, (_, found)) in
                tensors(&output.join("adapter_model.safetensors")).iter().filter(|(tensor, _)| !unstable.contains(tensor))
            {
                let expected = bundle.expected(&format!("{unpadded}{kind}.{tensor}"));
                assert_eq!(found.len(), expected.len(), "{name}: {tensor}");
                let squares = |pairs: &mut dyn Iterator<Item = (f64, f64)>| pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                let off = squares(&mut found.iter().map(|&a| f64::from(a)).zip(expected.iter().copied()));
                let way = squares(&mut start[tensor].1.iter().map(|&a| f64::from(a)).zip(expected.iter().copied()));
                assert!((off / way).sqrt() <= bound, "{name}: {kind} {tensor} off by {:e}", (off / way).sqrt());
            }

            let metrics = json_lines(&output.join("metrics.jsonl"));
            assert_eq!(metrics.len(), 5, "{name}");
            for (step, row) in metrics.iter().enumerate() {
                assert_eq!(row["step"], step + 1);
                let rate = if kind == "trained" { 1e-2 } else { 1e-2 * (1.0 - step as f64 / 5.0) };
                assert!((row["learning_rate"].as_f64().unwrap() - rate).abs() < 1e-15, "{name}: {row}");
                let loss = bundle.expected(&format!("{unpadded}{kind}_losses"))[step];
                assert!(
                    (row["loss"].as_f64().unwrap() - loss).abs() <= bundle.tolerance("tolerance_fp32_engine", "loss_abs"),
                    "{name}: {kind} {row}, not {loss}"
                );
                let norm = bundle.expected(&format!("{unpadded}{kind}_grad_norms"))[step];
                let ratio = row["grad_norm"].as_f64().unwrap() / norm;
                assert!((ratio - 1.0).abs() <= bound, "{name}: {kind} {row}, not {norm}");
            }
        }
    }
}

/// All numbers in a JSON value, in order.
fn numbers(value: &Value, found: &mut Vec<f64>) {
    match value {
        Value::Array(list) => list.iter().for_each(|inner| numbers(inner, found)),
        other => found.push(other.as_f64().unwrap_or_else(|| panic!("{other} is no number"))),
    }
}

#[test]
fn predictions_with_adapters_of_peft() {
    for name in BUNDLES {
        let bundle = Bundle::open(name);
        let folder = tempfile::tempdir().unwrap();
        let lines = predict(&bundle, &bundle.directory.join("adapter"), &folder.path().join("out.jsonl"));
        let data = json_lines(&bundle.directory.join("data.jsonl"));
        assert_eq!(lines.len(), data.len(), "{name}");

        let (mut ids, mut logits, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (line, example)) in lines.iter().zip(&data).enumerate() {
            keys = line.as_object().unwrap().keys().cloned().collect();
            if bundle.task != TaskKind::Qa {
                assert_eq!(line["index"], index);
                numbers(&line["input_ids"], &mut ids);
                numbers(&line["logits"], &mut logits);
                continue;
            }
            assert_eq!(line["id"], example["id"]);
            assert!(example["context"].as_str().unwrap().contains(line["prediction_text"].as_str().unwrap()));
            for window in line["features"].as_array().unwrap() {
                numbers(&window["input_ids"], &mut ids);
                let (start, end) = (window["start_logits"].as_array().unwrap(), window["end_logits"].as_array().unwrap());
                start.iter().zip(end).for_each(|(start, end)| logits.extend([start, end].map(|value| value.as_f64().unwrap())));
            }
        }
        let expected_keys: &[&str] = match bundle.task {
            TaskKind::Qa => &["id", "prediction_text", "features"],
            TaskKind::Tagging => &["index", "tags", "logits", "input_ids"],
            _ => &["index", "prediction", "logits", "input_ids"],
        };
        assert_eq!(keys, expected_keys, "{name}");
        assert_eq!(ids, bundle.expected("input_ids"), "{name}");
        let expected = bundle.expected("logits");
        assert_eq!(logits.len(), expected.len(), "{name}");
        let off = logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off <= bundle.tolerance("tolerance_fp32_engine", "logits_max_abs"), "{name}: logits off by {off:e}");
    }
}

/// Columns of the logits that stand for one decision.
fn width(bundle: &Bundle) -> usize {
    match bundle.task {
        TaskKind::MultipleChoice => 2,
        _ => bundle.model.spec.labels.as_ref().unwrap().len(),
    }
}

#[test]
fn evaluation_agrees_with_the_reference_logits() {
    for name in BUNDLES.into_iter().filter(|name| *name != "bert-qa" && *name != "llama-causal-lm") {
        let bundle = Bundle::open(name);
        let path = |name: &str| bundle.directory.join(name).into_os_string();
        let mut arguments = vec!["eval".into(), "--json".into(), "--model".into(), path("model"), "--adapter".into(), path("adapter")];
        arguments.extend(["--data".into(), path("data.jsonl")]);
        arguments.extend(facts(&bundle).into_iter().map(Into::into));
        let scores: Value = serde_json::from_str(&ptune(arguments).ok()).unwrap();

        let targets: Vec<i32> = bundle.features().features.into_iter().flat_map(|feature| feature.targets).collect();
        let (mut right, mut loss) = (0, 0.0);
        let rows = bundle.expected("logits").chunks(width(&bundle));
        assert_eq!(rows.len(), targets.len(), "{name}");
        for (row, &target) in rows.zip(&targets) {
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            right += usize::from(best == target as usize);
            loss += row.iter().map(|value| value.exp()).sum::<f64>().ln() - row[target as usize];
        }
        let near = |key: &str, expected: f64, bound: f64| {
            let found = scores[key].as_f64().unwrap_or_else(|| panic!("{name}: no {key} in {scores}"));
            assert!((found - expected).abs() <= bound, "{name}: {key} {found}, not {expected}");
        };
        near("accuracy", right as f64 / targets.len() as f64, 1e-12);
        near("loss", loss / targets.len() as f64, bundle.tolerance("tolerance_fp32_engine", "loss_abs"));
        assert_eq!(scores["examples"], bundle.features().examples, "{name}");
    }
}

/// Why PEFT would not compute the same; None where it does.
fn obstacle(name: &str) -> Option<&'static str> {
    match name {
        "bert-qa" => Some("token types"),
        "glm-cloze" | "glm-classification" => Some("GLM of 2021"),
        "roberta-classification" => Some("pooler"),
        "bert-cloze" | "roberta-cloze" => Some("masked-language-model heads"),
        "deberta-classification" | "deberta-cloze" | "deberta-tagging" => Some("takes no prefix"),
        _ => None,
    }
}

#[test]
fn adapters_are_written_to_the_letter_and_read_again() {
    for name in BUNDLES {
        let bundle = Bundle::open(name);
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("run");
        train(&bundle, &output, &[]);

        // The reference file differs in the path of the model alone and, where PEFT computes something else, in the type.
        let model = bundle.directory.join("model");
        let mut expected = text(&bundle.directory.join("adapter/adapter_config.json"))
            .replace("\"base_model_name_or_path\": \"model\"", &format!("\"base_model_name_or_path\": \"{}\"", model.display()));
        if obstacle(name).is_some() {
            expected = expected.replace("PREFIX_TUNING", "PTUNE_PREFIX");
        }
        assert_eq!(text(&output.join("adapter_config.json")).trim_end(), expected.trim_end(), "{name}");
        let header = |folder: &Path| {
            let file = tensors(&folder.join("adapter_model.safetensors"));
            file.into_iter().map(|(tensor, (shape, _))| (tensor, shape)).collect::<Vec<_>>()
        };
        assert_eq!(header(&output), header(&bundle.directory.join("adapter")), "{name}");
        let bytes = std::fs::read(output.join("adapter_model.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().and_then(|pairs| pairs.get("format")).map(String::as_str), Some("pt"), "{name}");
        assert_eq!(json(&output.join("train_results.json"))["peft_type"] == "PREFIX_TUNING", obstacle(name).is_none(), "{name}");

        let own = predict(&bundle, &output, &folder.path().join("own.jsonl"));
        assert_ne!(own, predict(&bundle, &bundle.directory.join("adapter"), &folder.path().join("before.jsonl")), "{name}");
        // What is left without ptune.json is what PEFT would have written.
        let stripped = folder.path().join("stripped");
        copy(&output, &stripped);
        for file in files(&stripped).keys().filter(|file| !file.starts_with("adapter_")) {
            std::fs::remove_file(stripped.join(file)).unwrap();
        }
        match obstacle(name) {
            None => assert_eq!(predict(&bundle, &stripped, &folder.path().join("again.jsonl")), own, "{name}"),
            Some(_) => {
                let words = ["inspect".as_ref(), stripped.as_os_str()];
                ptune(words).error(1, &["ptune.json", "PTUNE_PREFIX"]);
            }
        }
        ptune(["inspect".as_ref(), output.as_os_str()]).ok();
    }
}

#[test]
fn the_log_says_why_peft_cannot_read_an_adapter() {
    for name in BUNDLES {
        let bundle = Bundle::open(name);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| bundle.directory.join(name).into_os_string();
        let mut arguments = vec!["train".into(), "--model".into(), path("model"), "--data".into(), path("data.jsonl")];
        arguments.extend(["--init-adapter".into(), path("adapter"), "--output".into(), folder.path().join("run").into()]);
        arguments.extend(["--max-steps".into(), "1".into()]);
        arguments.extend(facts(&bundle).into_iter().map(Into::into));
        let said = ptune(arguments).ok();
        let line = said.lines().find(|line| line.contains("not PREFIX_TUNING"));
        match obstacle(name) {
            None => assert_eq!(line, None, "{name}"),
            Some(part) => assert!(line.is_some_and(|line| line.contains(part)), "{name}: {said}"),
        }
        for part in ["memory plan", "trained: prompt_embeddings", "% of the model", "finished: 1 steps"] {
            assert!(said.contains(part), "{name}: {part:?} is not in {said}");
        }
    }
}

/// Every task on decoders, from data to an adapter with the tensors that PEFT's classes have.
#[test]
fn decoders_have_transformers_heads() {
    let data = |bundle: &str| Bundle::open(bundle).directory.join("data.jsonl");
    let [tagging, qa, choices] = ["bert-tagging", "bert-qa", "bert-multiple-choice"].map(data);
    for (model, tags) in [("gpt2-classification", "classifier"), ("llama-classification", "score"), ("qwen3-classification", "score")] {
        let model = Bundle::open(model).directory.join("model");
        for (task, data, layer, bias) in
            [("tagging", &tagging, tags, true), ("qa", &qa, "qa_outputs", true), ("multiple-choice", &choices, "score", false)]
        {
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("run");
            let mut arguments: Vec<std::ffi::OsString> = vec!["train".into(), "--model".into(), model.clone().into()];
            arguments.extend(["--data".into(), data.into(), "--output".into(), output.clone().into()]);
            let stride = if task == "qa" { "--doc-stride 16" } else { "" };
            let fixed = format!("--task {task} --prefix-length 4 --max-steps 2 --batch-size 4 --max-length 96 {stride} --quiet");
            arguments.extend(fixed.split_whitespace().map(Into::into));
            ptune(arguments).ok();
            let mut expected = vec![format!("base_model.{layer}.weight"), "prompt_embeddings".to_string()];
            if bias {
                expected.insert(0, format!("base_model.{layer}.bias"));
            }
            let names: Vec<String> = tensors(&output.join("adapter_model.safetensors")).into_keys().collect();
            assert_eq!(names, expected, "{} {task}", model.display());
            assert_eq!(json(&output.join("adapter_config.json"))["peft_type"], "PREFIX_TUNING", "{} {task}", model.display());

            let mut arguments: Vec<std::ffi::OsString> = vec!["eval".into(), "--json".into(), "--model".into(), model.clone().into()];
            arguments.extend(["--adapter".into(), output.into(), "--data".into(), data.into()]);
            let scores: Value = serde_json::from_str(&ptune(arguments).ok()).unwrap();
            assert!(scores["loss"].as_f64().is_some_and(f64::is_finite), "{} {task}: {scores}", model.display());
        }
        let mut arguments: Vec<std::ffi::OsString> = vec!["train".into(), "--model".into(), model.into(), "--data".into()];
        arguments.extend([(&tagging).into(), "--output".into(), "unused".into(), "--task".into(), "tagging".into()]);
        arguments.extend(["--head".into(), "dense".into()]);
        ptune(arguments).error(2, &["--head dense"]);
    }
}
