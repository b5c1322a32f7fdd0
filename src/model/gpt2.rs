//! GPT-2: a pre-norm decoder with learned positions. Its linear layers are transformers' `Conv1D`: matrices are stored
//! \[input, output\], and query, key and value as one.

use super::family::{Family, activation};
use super::llama::last_token;
use super::{Biases, Config, HeadKind, MaskKind, NormPlace, Positions, Slot, Specification, Storage};
use crate::backend::NormKind;
use anyhow::Result;

pub static FAMILY: Family = Family {
    model_types: &["gpt2"],
    architectures: &["GPT2"],
    prefixes: &["transformer.", ""],
    transformers_head: |task| if task.reads_sequences() { HeadKind::Score } else { HeadKind::Linear },
    specification,
    tensor_name,
    storage,
    bias_name: |_| None,
    masked_heads: &[],
};

/// Sizes must be given; the rest defaults to what transformers' `GPT2Config` defaults to.
fn specification(config: &Config) -> Result<Specification> {
    let (layers, hidden_size, heads) = (config.size("n_layer")?, config.size("n_embd")?, config.size("n_head")?);
    if !hidden_size.is_multiple_of(heads) {
        return Err(config.wrong("n_embd", format_args!("it must be divisible by n_head {heads}")));
    }
    if !config.flag_or("scale_attn_weights", true)? {
        return Err(config.wrong("scale_attn_weights", "scores that are not scaled are not supported"));
    }
    if config.flag("scale_attn_by_inverse_layer_idx")? {
        return Err(config.wrong("scale_attn_by_inverse_layer_idx", "scores that are scaled by layer are not supported"));
    }
    let dropout = config.rate("resid_pdrop")?.unwrap_or(0.1);
    Ok(Specification {
        family: config.text("model_type")?.unwrap_or_default().to_string(),
        layers,
        layer_weights: (0..layers).collect(),
        hidden_size,
        embedding_size: hidden_size,
        heads,
        kv_heads: heads,
        head_dim: hidden_size / heads,
        ffn_size: config.positive("n_inner")?.unwrap_or(4 * hidden_size),
        vocabulary: config.size("vocab_size")?,
        token_types: 0,
        positions: Positions::Learned { table: config.size("n_positions")?, first: 0, padding_id: None },
        mask: MaskKind::Causal,
        window: None,
        readout: last_token(config),
        norm: NormKind::LayerNorm,
        norm_place: NormPlace::Pre,
        norm_epsilon: config.positive_number("layer_norm_epsilon")?.unwrap_or(1e-5),
        embedding_norm: false,
        final_norm: true,
        activation: activation(config, "activation_function", "gelu_new")?,
        biases: Biases::ALL,
        query_key_norm: false,
        tied_head: config.flag_or("tie_word_embeddings", true)?,
        block_dropout: true,
        hidden_dropout: dropout,
        attention_dropout: config.rate("attn_pdrop")?.unwrap_or(0.1),
        initializer_range: config.positive_number("initializer_range")?.unwrap_or(0.02),
        labels: config.labels()?,
    })
}

fn tensor_name(slot: Slot) -> Option<String> {
    let (layer, part) = match slot {
        Slot::WordEmbedding => return Some("wte".into()),
        Slot::PositionEmbedding => return Some("wpe".into()),
        Slot::FinalNorm => return Some("ln_f".into()),
        Slot::TypeEmbedding | Slot::EmbeddingNorm | Slot::EmbeddingProjection | Slot::Pooler => return None,
        Slot::HeadTransform | Slot::HeadNorm => return None,
        Slot::QueryNorm(_) | Slot::KeyNorm(_) | Slot::Gate(_) => return None,
        Slot::RelativeEmbedding | Slot::RelativeKey(_) | Slot::RelativeQuery(_) => return None,
        Slot::LanguageHead => return Some("lm_head".into()),
        Slot::Query(layer) | Slot::Key(layer) | Slot::Value(layer) => (layer, "attn.c_attn"),
        Slot::AttentionOutput(layer) => (layer, "attn.c_proj"),
        Slot::AttentionNorm(layer) => (layer, "ln_1"),
        Slot::Up(layer) => (layer, "mlp.c_fc"),
        Slot::Down(layer) => (layer, "mlp.c_proj"),
        Slot::FeedForwardNorm(layer) => (layer, "ln_2"),
    };
    Some(format!("h.{layer}.{part}"))
}

fn storage(_: &Specification, slot: Slot) -> Storage {
    let of_three = |part| Storage { transposed: true, ..Storage::part(part, 3) };
    match slot {
        Slot::Query(_) => of_three(0),
        Slot::Key(_) => of_three(1),
        Slot::Value(_) => of_three(2),
        Slot::AttentionOutput(_) | Slot::Up(_) | Slot::Down(_) => Storage { transposed: true, ..Storage::PLAIN },
        _ => Storage::PLAIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Activation;
    use std::path::Path;

    fn with(fields: &str) -> Result<Specification> {
        let text = format!(
            r#"{{"model_type": "gpt2", "n_layer": 2, "n_embd": 48, "n_head": 3, "vocab_size": 99, "n_positions": 64, "n_ctx": 64, {fields}}}"#
        );
        let config = Config::parse(Path::new("config.json"), text.as_bytes()).unwrap();
        crate::model::describe(&config).map(|(_, specification)| specification)
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let found = with(r#""n_inner": null"#).unwrap();
        assert_eq!((found.ffn_size, found.head_dim, found.norm_epsilon, found.activation), (192, 16, 1e-5, Activation::GeluTanh));
        assert_eq!((found.tied_head, found.attention_dropout, found.longest_sequence(14)), (true, 0.1, 50));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (fields, part) in [
            (r#""n_head": 5"#, "n_embd"),
            (r#""scale_attn_weights": false"#, "scale_attn_weights"),
            (r#""scale_attn_by_inverse_layer_idx": true"#, "scale_attn_by_inverse_layer_idx"),
            (r#""activation_function": "swish""#, "activation_function"),
            (r#""add_cross_attention": true"#, "add_cross_attention"),
        ] {
            let message = format!("{:#}", with(fields).expect_err(fields));
            assert!(message.contains(part), "{message}");
        }
    }
}
