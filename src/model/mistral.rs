//! Mistral: Llama with a sliding window, which what is read must not exceed.

use super::family::Family;
use super::llama::{decoder, tensor_name, transformers_head};
use super::{Biases, Specification, Storage};

pub static FAMILY: Family = Family {
    model_types: &["mistral"],
    architectures: &["Mistral"],
    prefixes: &["model.", ""],
    transformers_head,
    specification: |config| {
        let window = config.positive("sliding_window")?;
        Ok(Specification { window, ..decoder(config, Biases::NONE)? })
    },
    tensor_name,
    storage: |_, _| Storage::PLAIN,
    bias_name: |_| None,
    masked_heads: &[],
};

#[cfg(test)]
mod tests {
    use super::super::llama::tests::with;

    #[test]
    fn the_window_is_read() {
        let fields = r#"{"model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_key_value_heads": 2, "head_dim": 8"#;
        let windowed = with(&format!(r#"{fields}, "sliding_window": 128}}"#)).unwrap();
        assert_eq!((windowed.window, windowed.head_dim, windowed.kv_heads), (Some(128), 8, 2));
        assert_eq!(with(&format!(r#"{fields}, "sliding_window": null}}"#)).unwrap().window, None);
        assert!(format!("{:#}", with(&format!(r#"{fields}, "sliding_window": 0}}"#)).unwrap_err()).contains("sliding_window"));
    }
}
