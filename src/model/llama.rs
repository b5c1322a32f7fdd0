//! Llama 2 and 3, and what their kin (Mistral, Qwen) share with them: a pre-norm decoder with RMS norms, rotary positions,
//! grouped key/value heads and a gated feed-forward.

use super::family::Family;
use super::{Biases, Config, HeadKind, MaskKind, NormPlace, Positions, Readout, Rotary, Slot, Specification, Storage, TaskKind};
use crate::backend::{Activation, NormKind};
use anyhow::Result;

pub static FAMILY: Family = Family {
    model_types: &["llama"],
    architectures: &["Llama"],
    prefixes: &["model.", ""],
    transformers_head,
    specification: |config| {
        let (attention, feed_forward) = (config.flag("attention_bias")?, config.flag("mlp_bias")?);
        decoder(config, Biases { query_key_value: attention, attention_output: attention, feed_forward, except_key: false })
    },
    tensor_name,
    storage: |_, _| Storage::PLAIN,
    bias_name: |_| None,
    masked_heads: &[],
};

/// `score`, but for question answering.
pub fn transformers_head(task: TaskKind) -> HeadKind {
    if task == TaskKind::Qa { HeadKind::Linear } else { HeadKind::Score }
}

/// What the families share. Sizes must be given; the rest defaults to what transformers' classes default to.
pub fn decoder(config: &Config, biases: Biases) -> Result<Specification> {
    let (layers, hidden_size, heads) =
        (config.size("num_hidden_layers")?, config.size("hidden_size")?, config.size("num_attention_heads")?);
    let kv_heads = config.positive("num_key_value_heads")?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.wrong("num_attention_heads", format_args!("it must be divisible by num_key_value_heads {kv_heads}")));
    }
    let head_dim = match config.positive("head_dim")? {
        Some(given) => given,
        None if !hidden_size.is_multiple_of(heads) => {
            return Err(config.wrong("hidden_size", format_args!("it must be divisible by num_attention_heads {heads}, or give head_dim")));
        }
        None => hidden_size / heads,
    };
    if !head_dim.is_multiple_of(2) {
        let field = if config.get("head_dim").is_some() { "head_dim" } else { "hidden_size" };
        return Err(config.wrong(field, format_args!("heads of {head_dim} dims cannot be rotated: they must be even")));
    }
    if config.text("hidden_act")?.is_some_and(|name| name != "silu") {
        return Err(config.wrong("hidden_act", "this activation is not supported (supported: silu)"));
    }
    Ok(Specification {
        family: config.text("model_type")?.unwrap_or_default().to_string(),
        layers,
        layer_weights: (0..layers).collect(),
        hidden_size,
        embedding_size: hidden_size,
        heads,
        kv_heads,
        head_dim,
        ffn_size: config.size("intermediate_size")?,
        vocabulary: config.size("vocab_size")?,
        token_types: 0,
        positions: Positions::Rotary(Rotary::read(config, head_dim)?),
        mask: MaskKind::Causal,
        window: None,
        readout: last_token(config),
        norm: NormKind::RmsNorm,
        norm_place: NormPlace::Pre,
        norm_epsilon: config.positive_number("rms_norm_eps")?.unwrap_or(1e-6),
        embedding_norm: false,
        final_norm: true,
        activation: Activation::SwiGlu,
        biases,
        query_key_norm: false,
        tied_head: config.flag("tie_word_embeddings")?,
        block_dropout: false,
        hidden_dropout: 0.0,
        attention_dropout: config.rate("attention_dropout")?.unwrap_or(0.0),
        initializer_range: config.positive_number("initializer_range")?.unwrap_or(0.02),
        labels: config.labels()?,
    })
}

/// The last token that is not `pad_token_id`. (Where there is none, files say null or -1.)
pub fn last_token(config: &Config) -> Readout {
    Readout::Last { padding_id: config.get("pad_token_id").and_then(|id| id.as_u64()).and_then(|id| u32::try_from(id).ok()) }
}

pub fn tensor_name(slot: Slot) -> Option<String> {
    let (layer, part) = match slot {
        Slot::WordEmbedding => return Some("embed_tokens".into()),
        Slot::FinalNorm => return Some("norm".into()),
        Slot::PositionEmbedding | Slot::TypeEmbedding | Slot::EmbeddingNorm | Slot::EmbeddingProjection | Slot::Pooler => return None,
        Slot::HeadTransform | Slot::HeadNorm => return None,
        Slot::RelativeEmbedding | Slot::RelativeKey(_) | Slot::RelativeQuery(_) => return None,
        Slot::LanguageHead => return Some("lm_head".into()),
        Slot::Query(layer) => (layer, "self_attn.q_proj"),
        Slot::Key(layer) => (layer, "self_attn.k_proj"),
        Slot::Value(layer) => (layer, "self_attn.v_proj"),
        Slot::QueryNorm(layer) => (layer, "self_attn.q_norm"),
        Slot::KeyNorm(layer) => (layer, "self_attn.k_norm"),
        Slot::AttentionOutput(layer) => (layer, "self_attn.o_proj"),
        Slot::AttentionNorm(layer) => (layer, "input_layernorm"),
        Slot::Gate(layer) => (layer, "mlp.gate_proj"),
        Slot::Up(layer) => (layer, "mlp.up_proj"),
        Slot::Down(layer) => (layer, "mlp.down_proj"),
        Slot::FeedForwardNorm(layer) => (layer, "post_attention_layernorm"),
    };
    Some(format!("layers.{layer}.{part}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::describe;
    use std::path::Path;

    /// The specification of a small configuration with some fields set.
    pub fn with(fields: &str) -> Result<Specification> {
        let mut value = serde_json::json!({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 512});
        let changes: serde_json::Value = serde_json::from_str(fields).unwrap();
        value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config = Config::parse(Path::new("config.json"), value.to_string().as_bytes()).unwrap();
        describe(&config).map(|(_, specification)| specification)
    }

    #[test]
    fn both_generations_of_transformers() {
        let old = with(r#"{"torch_dtype": "float16", "rope_theta": 500000.0, "rope_scaling": null, "pretraining_tp": 1}"#).unwrap();
        let new = with(r#"{"dtype": "float16", "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}"#).unwrap();
        assert_eq!(old, new);
        assert_eq!((old.heads, old.kv_heads, old.head_dim, old.norm_epsilon), (4, 4, 16, 1e-6));
        assert_eq!((old.biases, old.readout), (Biases::NONE, Readout::Last { padding_id: None }));
        let other =
            with(r#"{"num_key_value_heads": 2, "head_dim": 32, "attention_bias": true, "pad_token_id": -1, "is_decoder": true}"#).unwrap();
        assert_eq!((other.kv_size(), other.query_size()), (64, 128));
        assert_eq!(other.biases, Biases { query_key_value: true, attention_output: true, feed_forward: false, except_key: false });
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (fields, parts) in [
            (r#"{"num_key_value_heads": 3}"#, ["num_attention_heads", "num_key_value_heads 3"]),
            (r#"{"num_attention_heads": 5, "num_key_value_heads": 1}"#, ["hidden_size", "head_dim"]),
            (r#"{"head_dim": 15}"#, ["head_dim", "even"]),
            (r#"{"hidden_act": "gelu"}"#, ["hidden_act", "gelu"]),
            (r#"{"max_position_embeddings": null}"#, ["max_position_embeddings", "missing"]),
            (r#"{"rope_scaling": {"type": "mrope"}}"#, ["rope_scaling.type", "mrope"]),
            (r#"{"architectures": ["MistralForCausalLM"]}"#, ["architectures", "Mistral"]),
        ] {
            let message = format!("{:#}", with(fields).expect_err(fields));
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }

    #[test]
    fn the_last_token_that_is_not_padding() {
        let padded = Readout::Last { padding_id: Some(9) };
        assert_eq!([padded.of(&[9, 1, 2, 9, 9]), padded.of(&[1, 2]), padded.of(&[9, 9])], [2, 1, 0]);
        assert_eq!([Readout::Last { padding_id: None }.of(&[1, 9]), Readout::First.of(&[1, 9])], [1, 0]);
    }
}
