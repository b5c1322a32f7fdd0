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

    /// Parameters as the published checkpoints have them, without pooler and language model head.
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
        ] {
            assert_eq!(parameters.iter().find(|(known, _)| *known == name), Some(&(name, expected)));
        }
        assert!(architecture("bert-huge").is_none());
    }
}
