//! Qwen2 (and 2.5): Llama with biases on queries, keys and values. Qwen3: Llama with a norm on each head's queries and
//! keys.

use super::family::Family;
use super::llama::{decoder, tensor_name, transformers_head};
use super::{Biases, Config, Specification, Storage};
use anyhow::Result;

pub static QWEN2: Family = Family {
    model_types: &["qwen2"],
    architectures: &["Qwen2For", "Qwen2Model"],
    prefixes: &["model.", ""],
    transformers_head,
    specification: |config| {
        let specification = decoder(config, Biases { query_key_value: true, ..Biases::NONE })?;
        check_windows(config, specification.layers)?;
        Ok(specification)
    },
    tensor_name,
    storage: |_, _| Storage::PLAIN,
    bias_name: |_| None,
    masked_heads: &[],
};

pub static QWEN3: Family = Family {
    model_types: &["qwen3"],
    architectures: &["Qwen3For", "Qwen3Model"],
    prefixes: &["model.", ""],
    transformers_head,
    specification: |config| {
        let attention = config.flag("attention_bias")?;
        let specification =
            decoder(config, Biases { query_key_value: attention, attention_output: attention, feed_forward: false, except_key: false })?;
        check_windows(config, specification.layers)?;
        Ok(Specification { query_key_norm: true, ..specification })
    },
    tensor_name,
    storage: |_, _| Storage::PLAIN,
    bias_name: |_| None,
    masked_heads: &[],
};

/// Refuses sliding windows in some of the layers: those from `max_window_layers` on, or by `layer_types`.
fn check_windows(config: &Config, layers: usize) -> Result<()> {
    let first = config.count("max_window_layers")?.unwrap_or(28);
    if config.flag("use_sliding_window")? && config.get("sliding_window").is_some() && first < layers {
        return Err(config.wrong("use_sliding_window", "sliding windows in some of the layers are not supported"));
    }
    let kinds = config.get("layer_types").and_then(|kinds| kinds.as_array()).map_or(&[][..], Vec::as_slice);
    if kinds.iter().any(|kind| kind != "full_attention") {
        return Err(config.wrong("layer_types", "only full_attention is supported"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::llama::tests::with;
    use super::*;

    #[test]
    fn biases_and_norms_are_each_familys_own() {
        let second = with(r#"{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": false}"#).unwrap();
        assert_eq!((second.biases, second.query_key_norm), (Biases { query_key_value: true, ..Biases::NONE }, false));
        let third = with(r#"{"model_type": "qwen3", "architectures": ["Qwen3Model"], "head_dim": 128}"#).unwrap();
        assert_eq!((third.biases, third.query_key_norm, third.query_size()), (Biases::NONE, true, 512));
    }

    #[test]
    fn windows_in_some_layers_are_refused() {
        for (fields, part) in [
            (r#""use_sliding_window": true, "sliding_window": 64, "max_window_layers": 1"#, "use_sliding_window"),
            (r#""layer_types": ["full_attention", "sliding_attention"]"#, "layer_types"),
            (r#""architectures": ["Qwen2VLForConditionalGeneration"]"#, "architectures"),
        ] {
            let message = format!("{:#}", with(&format!(r#"{{"model_type": "qwen2", {fields}}}"#)).expect_err(fields));
            assert!(message.contains(part), "{message}");
        }
        let none = r#"{"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 64, "max_window_layers": 2}"#;
        assert_eq!(with(none).unwrap().window, None);
    }
}
