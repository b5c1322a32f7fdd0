//! PEFT's `adapter_config.json` for PREFIX_TUNING (what its `save_pretrained` writes), and when PEFT would not compute what was trained.

use super::metadata::Metadata;
use crate::model::{Config, HeadKind, MaskKind, Specification, TaskKind, family_of};
use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};
use std::path::Path;

/// PEFT loads it and computes the same.
pub const PREFIX_TUNING: &str = "PREFIX_TUNING";
/// The same, of a prompt in front of the input.
pub const PROMPT_TUNING: &str = "PROMPT_TUNING";
/// PEFT refuses it by this name; only ptune reads it.
pub const PTUNE_PREFIX: &str = "PTUNE_PREFIX";
/// The version whose files these are.
const PEFT_VERSION: &str = "0.21.2";

/// What an `adapter_config.json` tells.
pub struct PeftConfig {
    pub ours: bool,
    /// Whether it is a prompt in front of the input.
    pub prompt: bool,
    pub task: Option<TaskKind>,
    pub tokens: usize,
    /// Absent in files that PEFT wrote long ago.
    pub layers: Option<usize>,
    pub token_dim: Option<usize>,
    pub projected: bool,
    pub projection: Option<usize>,
    pub base_model: String,
}

impl PeftConfig {
    pub fn read(file: &Path) -> Result<PeftConfig> {
        let config = Config::read(file)?;
        let peft_type = config.text("peft_type")?;
        let ours = match peft_type {
            Some(PREFIX_TUNING | PROMPT_TUNING) => false,
            Some(PTUNE_PREFIX) => true,
            Some(_) => return Err(config.wrong("peft_type", "only adapters of PREFIX_TUNING and PROMPT_TUNING can be read")),
            None => return Err(config.wrong("peft_type", "this is not an adapter of PEFT or ptune")),
        };
        if config.count("num_transformer_submodules")?.is_some_and(|modules| modules != 1) {
            return Err(config.wrong("num_transformer_submodules", "adapters of encoder-decoder models are not supported"));
        }
        Ok(PeftConfig {
            ours,
            prompt: peft_type == Some(PROMPT_TUNING),
            task: match config.text("task_type")? {
                Some("SEQ_CLS") => Some(TaskKind::Classification),
                Some("TOKEN_CLS") => Some(TaskKind::Tagging),
                Some("QUESTION_ANS") => Some(TaskKind::Qa),
                Some("CAUSAL_LM") => Some(TaskKind::CausalLm),
                _ => None,
            },
            tokens: config.count("num_virtual_tokens")?.ok_or_else(|| config.wrong("num_virtual_tokens", "give the prefix length"))?,
            layers: config.positive("num_layers")?,
            token_dim: config.positive("token_dim")?,
            projected: config.flag("prefix_projection")?,
            projection: config.positive("encoder_hidden_size")?,
            base_model: config.text("base_model_name_or_path")?.unwrap_or_default().to_string(),
        })
    }
}

/// The file as PEFT writes it, of a prefix or a prompt: keys sorted, `modules_to_save` doubled (but for heads that it has no class for).
pub fn config(metadata: &Metadata, spec: &Specification, peft_type: &str) -> Result<Value> {
    let (task_type, modules) = match metadata.task {
        Some(TaskKind::CausalLm) => ("CAUSAL_LM", vec![]),
        Some(_) if metadata.verbalizer.is_some() => ("CAUSAL_LM", vec![]),
        Some(TaskKind::Classification | TaskKind::MultipleChoice) if metadata.head == HeadKind::Context => {
            ("SEQ_CLS", vec!["pooler", "classifier"])
        }
        Some(TaskKind::Classification | TaskKind::MultipleChoice) => ("SEQ_CLS", ["classifier", "score"].repeat(2)),
        Some(TaskKind::Tagging) => ("TOKEN_CLS", ["classifier", "score"].repeat(2)),
        Some(TaskKind::Qa) => ("QUESTION_ANS", ["qa_outputs"].repeat(2)),
        None if !metadata.heads.is_empty() => ("", vec![]),
        None => bail!("the adapter's task is not known; give it with --task"),
    };
    // It has none for masked-language-model heads, nor for several.
    let known = metadata.has_head() && (metadata.verbalizer.is_none() || spec.mask != MaskKind::Full);
    let task_type = known.then_some(task_type);
    if metadata.is_prompt() {
        return Ok(json!({
            "auto_mapping": null,
            "base_model_name_or_path": metadata.base_model,
            "inference_mode": true,
            "init_weights": null,
            "modules_to_save": (!modules.is_empty()).then_some(modules),
            "num_attention_heads": spec.heads,
            "num_layers": spec.layers,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": metadata.prefix_length,
            "peft_type": peft_type,
            "peft_version": PEFT_VERSION,
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": null,
            "revision": null,
            "task_type": task_type,
            "token_dim": spec.embedding_size,
            "tokenizer_kwargs": null,
            "tokenizer_name_or_path": null,
        }));
    }
    Ok(json!({
        "auto_mapping": null,
        "base_model_name_or_path": metadata.base_model,
        "encoder_hidden_size": metadata.prefix_projection.unwrap_or(spec.kv_size()),
        "inference_mode": true,
        "init_weights": null,
        "modules_to_save": (!modules.is_empty()).then_some(modules),
        "num_attention_heads": spec.kv_heads,
        "num_layers": metadata.prefix_layers.len(),
        "num_transformer_submodules": 1,
        "num_virtual_tokens": metadata.prefix_length,
        "peft_type": peft_type,
        "peft_version": PEFT_VERSION,
        "prefix_projection": metadata.prefix_projection.is_some(),
        "revision": null,
        "task_type": task_type,
        "token_dim": spec.kv_size(),
    }))
}

/// Why PEFT would refuse the adapter or compute something else; empty: it computes the same.
pub fn obstacles(metadata: &Metadata, spec: &Specification, stored_pooler: bool) -> Result<Vec<String>> {
    let family = family_of(&spec.family).ok_or_else(|| anyhow!("no family of model_type {}", spec.family))?;
    let mut reasons = vec![];
    if spec.mask == MaskKind::Separator {
        reasons.push("transformers has no class for the GLM of 2021".into());
    }
    if !metadata.heads.is_empty() {
        reasons.push(format!("it has the heads of {} data sets", metadata.heads.len()));
    }
    let prompt = metadata.is_prompt();
    if family.model_types.contains(&"deberta") && !prompt {
        reasons.push("transformers' DeBERTa takes no prefix".into());
    }
    let cloze = metadata.verbalizer.is_some();
    if cloze && spec.mask == MaskKind::Full {
        reasons.push("PEFT has no class for masked-language-model heads".into());
    }
    let whole = metadata.task.filter(|task| task.reads_sequences() && !cloze);
    if whole.is_some_and(|task| metadata.head != (family.transformers_head)(task)) {
        reasons.push(match metadata.head {
            HeadKind::Linear => format!("its linear head reads the pooler, where PEFT has a dense head for {}", spec.family),
            kind => format!("its head is {}, where PEFT has another one for {}", kind.name(), spec.family),
        });
    } else if whole.is_some() && stored_pooler {
        reasons.push("its pooler, which the checkpoint lacks, is stored with it, and PEFT would not read it".into());
    }
    if let (true, Some(task)) = (prompt, whole) {
        reasons.push(match spec.mask {
            MaskKind::Causal => format!("its {} head reads the last token, where PEFT's reads the last row, padding included", task.name()),
            _ => format!("its {} head reads the text's first token, where PEFT's reads the prompt's", task.name()),
        });
    }
    if metadata.prefix_length == 0 {
        reasons.push("it has no prefix".into());
    } else if !prompt {
        if metadata.prefix_layers.len() < spec.layers {
            reasons.push(format!("only {} of the {} layers have a prefix", metadata.prefix_layers.len(), spec.layers));
        }
        if !metadata.shifted_positions && spec.shifts() {
            reasons.push("positions are not shifted by the prefix length".into());
        }
    }
    if metadata.task == Some(TaskKind::Qa) && spec.token_types > 1 {
        reasons.push("PEFT drops the token types in question answering".into());
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use super::super::metadata::tests::metadata;
    use super::*;

    fn read(fields: Value) -> Result<PeftConfig> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("adapter_config.json");
        let mut all = json!({"peft_type": "PREFIX_TUNING", "task_type": "SEQ_CLS", "num_virtual_tokens": 5});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        std::fs::write(&file, all.to_string()).unwrap();
        PeftConfig::read(&file)
    }

    #[test]
    fn three_keys_are_enough() {
        let config = read(json!({"unknown": 1, "num_layers": null})).unwrap();
        assert_eq!((config.tokens, config.task, config.layers, config.token_dim), (5, Some(TaskKind::Classification), None, None));
        assert_eq!(read(json!({"task_type": "QUESTION_ANS"})).unwrap().task, Some(TaskKind::Qa));
        assert_eq!(read(json!({"task_type": "FEATURE_EXTRACTION"})).unwrap().task, None);
        assert_eq!(read(json!({"task_type": null})).unwrap().task, None);
    }

    #[test]
    fn other_adapters_are_refused_by_name() {
        let cases = [
            (json!({"peft_type": "LORA"}), "LORA"),
            (json!({"peft_type": null}), "peft_type"),
            (json!({"num_transformer_submodules": 2}), "num_transformer_submodules"),
            (json!({"num_virtual_tokens": null}), "num_virtual_tokens"),
            (json!({"num_virtual_tokens": -3}), "-3"),
            (json!({"num_layers": 0}), "num_layers"),
        ];
        for (fields, part) in cases {
            let message = format!("{:#}", read(fields).err().expect(part));
            assert!(message.contains(part) && message.contains("adapter_config.json"), "{message}");
        }
    }

    #[test]
    fn what_peft_would_not_compute() {
        use std::path::Path;
        let spec = |bundle: &str| {
            let config = Config::of_model(&Path::new("tests/golden").join(bundle).join("model")).unwrap();
            crate::model::describe(&config).unwrap().1
        };
        let (bert, roberta) = (spec("bert-classification"), spec("roberta-classification"));
        let reasons = |spec: &Specification, task, edit: fn(&mut Metadata)| {
            let mut metadata = metadata(task, 4, spec.layers);
            edit(&mut metadata);
            obstacles(&metadata, spec, false).unwrap().join("; ")
        };
        assert_eq!(reasons(&bert, TaskKind::Classification, |_| ()), "");
        assert_eq!(reasons(&bert, TaskKind::MultipleChoice, |_| ()), "");
        assert_eq!(reasons(&roberta, TaskKind::Tagging, |_| ()), "");
        assert_eq!(reasons(&roberta, TaskKind::Qa, |_| ()), "");
        assert_eq!(reasons(&roberta, TaskKind::Classification, |metadata| metadata.head = HeadKind::Dense), "");
        assert!(reasons(&bert, TaskKind::Classification, |metadata| metadata.head = HeadKind::Dense).contains("dense"));
        assert!(reasons(&roberta, TaskKind::Classification, |_| ()).contains("linear head"));
        assert!(reasons(&roberta, TaskKind::MultipleChoice, |_| ()).contains("linear head"));
        assert!(reasons(&spec("deberta-tagging"), TaskKind::Tagging, |_| ()).contains("DeBERTa takes no prefix"));
        assert!(reasons(&bert, TaskKind::Qa, |_| ()).contains("token types"));
        assert!(reasons(&bert, TaskKind::Tagging, |metadata| metadata.prefix_layers = vec![1, 2]).contains("only 2 of the 3 layers"));
        assert!(reasons(&bert, TaskKind::Tagging, |metadata| metadata.shifted_positions = false).contains("not shifted"));
        assert!(reasons(&bert, TaskKind::Tagging, |metadata| metadata.prefix_length = 0).contains("no prefix"));
        assert!(obstacles(&metadata(TaskKind::Classification, 4, 3), &bert, true).unwrap()[0].contains("pooler"));
        assert!(
            reasons(&bert, TaskKind::Classification, |metadata| metadata.verbalizer = Some(vec!["a".into()])).contains("masked-language")
        );

        // Of a prompt.
        let prompt = |spec, task| reasons(spec, task, |metadata| metadata.prefix_layers = Vec::new());
        let (deberta, llama) = (spec("deberta-tagging"), spec("llama-causal-lm"));
        for (spec, task) in [(&bert, TaskKind::Tagging), (&deberta, TaskKind::Tagging), (&llama, TaskKind::CausalLm)] {
            assert_eq!(prompt(spec, task), "", "{task:?}");
        }
        assert!(prompt(&bert, TaskKind::MultipleChoice).contains("multiple-choice head reads the text's first token"));
        assert!(prompt(&llama, TaskKind::Classification).contains("padding included"));
        assert!(prompt(&spec("glm-cloze"), TaskKind::Classification).contains("no class"));
    }
}
