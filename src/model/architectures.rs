//! Published models by name, as their `config.json` describes them, for runs that need a model's shape and not its
//! weights. They are read through their families, as files are.

use super::Config;
use anyhow::Result;
use std::path::Path;

/// Name, and the fields of its `config.json` that its specification depends on.
static ARCHITECTURES: &[(&str, &str)] = &[
    (
        "bert-tiny",
        r#"{"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512,
            "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}"#,
    ),
    (
        "minilm-l6",
        r#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
            "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}"#,
    ),
    (
        "minilm-l12",
        r#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536,
            "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}"#,
    ),
    (
        "bert-base",
        r#"{"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}"#,
    ),
    (
        "bert-large",
        r#"{"model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
            "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}"#,
    ),
    (
        "roberta-base",
        r#"{"model_type": "roberta", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}"#,
    ),
    (
        "roberta-large",
        r#"{"model_type": "roberta", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
            "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}"#,
    ),
    (
        "xlm-roberta-base",
        r#"{"model_type": "xlm-roberta", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1,
            "layer_norm_eps": 1e-5, "pad_token_id": 1}"#,
    ),
    (
        "xlm-roberta-large",
        r#"{"model_type": "xlm-roberta", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "intermediate_size": 4096, "vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1,
            "layer_norm_eps": 1e-5, "pad_token_id": 1}"#,
    ),
    (
        "deberta-base",
        r#"{"model_type": "deberta", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "vocab_size": 50265, "max_position_embeddings": 512, "max_relative_positions": -1, "type_vocab_size": 0,
            "relative_attention": true, "position_biased_input": false, "pos_att_type": "c2p|p2c", "layer_norm_eps": 1e-7}"#,
    ),
    (
        "deberta-large",
        r#"{"model_type": "deberta", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
            "vocab_size": 50265, "max_position_embeddings": 512, "max_relative_positions": -1, "type_vocab_size": 0,
            "relative_attention": true, "position_biased_input": false, "pos_att_type": "c2p|p2c", "layer_norm_eps": 1e-7}"#,
    ),
    (
        "deberta-xlarge",
        r#"{"model_type": "deberta", "hidden_size": 1024, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 4096,
            "vocab_size": 50265, "max_position_embeddings": 512, "max_relative_positions": -1, "type_vocab_size": 0,
            "relative_attention": true, "position_biased_input": false, "pos_att_type": "c2p|p2c", "layer_norm_eps": 1e-7}"#,
    ),
    (
        "glm-2b",
        r#"{"model_type": "glm", "hidden_size": 2048, "num_layers": 36, "num_attention_heads": 32, "vocab_size": 50304,
            "max_sequence_length": 1024, "block_position_encoding": true}"#,
    ),
    (
        "glm-10b",
        r#"{"model_type": "glm", "hidden_size": 4096, "num_layers": 48, "num_attention_heads": 64, "vocab_size": 50304,
            "max_sequence_length": 1024, "block_position_encoding": true}"#,
    ),
    ("gpt2", r#"{"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}"#),
    ("gpt2-medium", r#"{"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 50257, "n_positions": 1024}"#),
    ("gpt2-large", r#"{"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20, "vocab_size": 50257, "n_positions": 1024}"#),
    ("gpt2-xl", r#"{"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257, "n_positions": 1024}"#),
    (
        "llama-3.2-1b",
        r#"{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "head_dim": 64, "tie_word_embeddings": true,
            "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}"#,
    ),
    (
        "llama-3.2-3b",
        r#"{"model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "head_dim": 128, "tie_word_embeddings": true,
            "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}"#,
    ),
    (
        "llama-2-7b",
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5, "hidden_act": "silu"}"#,
    ),
    (
        "llama-3-8b",
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5, "hidden_act": "silu"}"#,
    ),
    (
        "mistral-7b",
        r#"{"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 32768, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "sliding_window": null}"#,
    ),
    (
        "qwen2.5-0.5b",
        r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": true}"#,
    ),
    (
        "qwen2.5-7b",
        r#"{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072, "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6, "hidden_act": "silu"}"#,
    ),
    (
        "qwen3-0.6b",
        r#"{"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "head_dim": 128, "tie_word_embeddings": true}"#,
    ),
    (
        "qwen3-8b",
        r#"{"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "head_dim": 128}"#,
    ),
];

/// The names, small models of a family first.
pub fn architecture_names() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name).collect()
}

/// The configuration of a name; None: there is no such name.
pub fn architecture(name: &str) -> Option<Result<Config>> {
    let (name, text) = ARCHITECTURES.iter().find(|(known, _)| *known == name)?;
    Some(Config::parse(Path::new(&format!("architecture {name}")), text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::describe;

    /// Parameters as the published checkpoints have them, without pooler and language-model head (where that is a matrix of its own).
    #[test]
    fn published_sizes() {
        let parameters: Vec<(&str, usize)> = architecture_names()
            .into_iter()
            .map(|name| {
                let config = architecture(name).expect("its own name").expect("a configuration");
                let (_, spec) = describe(&config).unwrap_or_else(|error| panic!("{name}: {error:#}"));
                (name, spec.parameters())
            })
            .collect();
        for (name, expected) in [
            ("bert-tiny", 4_369_408),
            ("minilm-l6", 22_565_376),
            ("bert-base", 108_891_648),
            ("bert-large", 334_092_288),
            ("roberta-base", 124_055_040),
            ("roberta-large", 354_310_144),
            ("xlm-roberta-base", 277_453_056),
            ("deberta-xlarge", 757_804_032),
            ("glm-2b", 1_920_122_880),
            ("glm-10b", 9_880_682_496),
            ("gpt2", 124_439_808),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-2-7b", 6_738_415_616 - 32_000 * 4096),
            ("llama-3-8b", 8_030_261_248 - 128_256 * 4096),
            ("mistral-7b", 7_248_023_552 - 32_768 * 4096),
            ("qwen2.5-7b", 7_615_616_512 - 152_064 * 3584),
            ("qwen3-8b", 8_190_735_360 - 151_936 * 4096),
        ] {
            assert_eq!(parameters.iter().find(|(known, _)| *known == name), Some(&(name, expected)));
        }
        assert!(architecture("bert-huge").is_none());
    }
}
