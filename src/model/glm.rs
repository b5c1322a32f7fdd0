//! GLM of 2021 (2B and 10B): pre-norm, two learned positions a token, a mask by separator, and a head that is the word
//! embedding (THUDM/GLM's `modeling_glm.py` and `mpu/transformer.py`). transformers has a later model of the same `model_type`, told apart by its fields.

use super::family::{Family, Storage, activation};
use super::{Biases, Config, HeadKind, MaskKind, NormPlace, Positions, Readout, Slot, Specification};
use crate::backend::NormKind;
use anyhow::Result;

pub static FAMILY: Family = Family {
    model_types: &["glm"],
    // The later model's too, so that it is refused by what it is.
    architectures: &["GLM", "Glm"],
    prefixes: &["", "glm."],
    transformers_head: |_| HeadKind::Linear,
    specification,
    tensor_name,
    storage,
    bias_name: |_| None,
    masked_heads: &[],
};

fn specification(config: &Config) -> Result<Specification> {
    if config.get("num_layers").is_none() || config.get("block_position_encoding").is_none() {
        let problem = "only the GLM of 2021 is supported (num_layers, block_position_encoding), not the later one of transformers (GLM-4)";
        return Err(config.wrong("model_type", problem));
    }
    if !config.flag("block_position_encoding")? {
        return Err(config.wrong("block_position_encoding", "only models with block positions are supported"));
    }
    if config.flag("relative_encoding")? {
        return Err(config.wrong("relative_encoding", "only learned positions are supported"));
    }
    if config.get("spell_length").is_some() {
        return Err(config.wrong("spell_length", "models with a prompt encoder of their own are not supported"));
    }
    if config.positive_number("attention_scale")?.is_some_and(|scale| scale != 1.0) {
        return Err(config.wrong("attention_scale", "only 1.0 is supported"));
    }
    let (layers, hidden_size, heads) = (config.size("num_layers")?, config.size("hidden_size")?, config.size("num_attention_heads")?);
    if !hidden_size.is_multiple_of(heads) {
        return Err(config.wrong("hidden_size", format_args!("it must be divisible by num_attention_heads {heads}")));
    }
    Ok(Specification {
        family: "glm".into(),
        layers,
        layer_weights: (0..layers).collect(),
        hidden_size,
        embedding_size: hidden_size,
        heads,
        kv_heads: heads,
        head_dim: hidden_size / heads,
        ffn_size: 4 * hidden_size,
        vocabulary: config.size("vocab_size")?,
        token_types: 0,
        // One more than there are positions: GLM keeps it for a sentinel.
        positions: Positions::TwoDimensional { table: config.size("max_sequence_length")? + 1 },
        window: None,
        mask: MaskKind::Separator,
        readout: Readout::First,
        query_key_norm: false,
        block_dropout: true,
        norm: NormKind::LayerNorm,
        norm_place: NormPlace::Pre,
        norm_epsilon: config.positive_number("layernorm_epsilon")?.unwrap_or(1e-5),
        embedding_norm: false,
        final_norm: true,
        // The released code has tanh's form; a config.json may say otherwise.
        activation: activation(config, "hidden_act", "gelu_new")?,
        biases: Biases::ALL,
        tied_head: true,
        hidden_dropout: config.rate("output_dropout_prob")?.unwrap_or(0.1),
        attention_dropout: config.rate("attention_dropout_prob")?.unwrap_or(0.1),
        initializer_range: config.positive_number("initializer_range")?.unwrap_or(0.02),
        labels: config.labels()?,
    })
}

fn tensor_name(slot: Slot) -> Option<String> {
    let (layer, part) = match slot {
        Slot::WordEmbedding => return Some("word_embeddings".into()),
        Slot::PositionEmbedding => return Some("transformer.position_embeddings".into()),
        Slot::TypeEmbedding => return Some("transformer.block_position_embeddings".into()),
        Slot::FinalNorm => return Some("transformer.final_layernorm".into()),
        // Three blocks of one matrix.
        Slot::Query(layer) | Slot::Key(layer) | Slot::Value(layer) => (layer, "attention.query_key_value"),
        Slot::AttentionOutput(layer) => (layer, "attention.dense"),
        Slot::AttentionNorm(layer) => (layer, "input_layernorm"),
        Slot::Up(layer) => (layer, "mlp.dense_h_to_4h"),
        Slot::Down(layer) => (layer, "mlp.dense_4h_to_h"),
        Slot::FeedForwardNorm(layer) => (layer, "post_attention_layernorm"),
        _ => return None,
    };
    Some(format!("transformer.layers.{layer}.{part}"))
}

/// Queries, keys and values are three blocks of one matrix.
fn storage(_: &Specification, slot: Slot) -> Storage {
    match slot {
        Slot::Query(_) => Storage::part(0, 3),
        Slot::Key(_) => Storage::part(1, 3),
        Slot::Value(_) => Storage::part(2, 3),
        _ => Storage::PLAIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Activation;
    use crate::model::describe;
    use std::path::Path;

    const GLM: &str = r#"{"model_type": "glm", "architectures": ["GLMModel"], "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "vocab_size": 448, "max_sequence_length": 192, "block_position_encoding": true, "relative_encoding": false,
        "attention_scale": 1.0, "spell_length": null, "output_dropout_prob": 0.2}"#;

    fn with(fields: &str) -> Result<Specification> {
        let mut value: serde_json::Value = serde_json::from_str(GLM).unwrap();
        let changes: serde_json::Value = serde_json::from_str(fields).unwrap();
        value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        describe(&Config::parse(Path::new("config.json"), value.to_string().as_bytes()).unwrap()).map(|(_, specification)| specification)
    }

    #[test]
    fn a_config_is_read() {
        let spec = with("{}").unwrap();
        assert_eq!((spec.layers, spec.head_dim, spec.ffn_size, spec.hidden_dropout), (2, 16, 256, 0.2));
        assert_eq!((spec.activation, spec.norm_epsilon, spec.tied_head), (Activation::GeluTanh, 1e-5, true));
        assert_eq!((spec.shape(Slot::PositionEmbedding), spec.shape(Slot::TypeEmbedding)), (Some([193, 64]), Some([193, 64])));
        assert_eq!(spec.longest_sequence(7), 192, "positions are not shifted");
        assert_eq!(with(r#"{"hidden_act": "gelu"}"#).unwrap().activation, Activation::GeluErf);
    }

    #[test]
    fn what_is_not_this_model_is_refused() {
        let later = r#"{"num_layers": null, "block_position_encoding": null, "num_hidden_layers": 2, "architectures": ["GlmForCausalLM"]}"#;
        for (fields, part) in [
            (later, "GLM-4"),
            (r#"{"block_position_encoding": false}"#, "block_position_encoding"),
            (r#"{"relative_encoding": true}"#, "relative_encoding"),
            (r#"{"spell_length": 3}"#, "spell_length"),
            (r#"{"attention_scale": 8.0}"#, "attention_scale"),
            (r#"{"hidden_size": 66}"#, "num_attention_heads 4"),
        ] {
            let message = format!("{:#}", with(fields).expect_err(fields));
            assert!(message.starts_with("config.json: field ") && message.contains(part), "{message}");
        }
    }
}
