//! BERT (and MiniLM, which is a small BERT): post-norm encoder, learned positions from 0, token types.

use super::family::{Family, activation};
use super::{Biases, Config, HeadKind, MaskKind, NormPlace, Positions, Readout, Slot, Specification, Storage, masked_head};
use crate::backend::NormKind;
use anyhow::Result;

pub static FAMILY: Family = Family {
    model_types: &["bert"],
    architectures: &["Bert"],
    prefixes: &["bert.", ""],
    transformers_head: |_| HeadKind::Linear,
    specification,
    tensor_name,
    storage: |_, _| Storage::PLAIN,
    bias_name: |_| None,
    masked_heads: &[&masked_head::BERT],
};

fn specification(config: &Config) -> Result<Specification> {
    let table = config.size("max_position_embeddings")?;
    padding_id(config, 0)?;
    encoder(config, Positions::Learned { table, first: 0, padding_id: None })
}

/// `pad_token_id`, which must be a token.
pub fn padding_id(config: &Config, default: usize) -> Result<usize> {
    let (padding, vocabulary) = (config.count("pad_token_id")?.unwrap_or(default), config.size("vocab_size")?);
    if padding >= vocabulary {
        return Err(config.wrong("pad_token_id", format_args!("it must be below vocab_size {vocabulary}")));
    }
    Ok(padding)
}

/// What BERT and RoBERTa share: everything but the rule of positions. Sizes must be given, since a wrong guess would go
/// unnoticed; the rest defaults to what transformers' `BertConfig` and `RobertaConfig` default to.
pub fn encoder(config: &Config, positions: Positions) -> Result<Specification> {
    let (layers, hidden_size, heads) =
        (config.size("num_hidden_layers")?, config.size("hidden_size")?, config.size("num_attention_heads")?);
    if !hidden_size.is_multiple_of(heads) {
        return Err(config.wrong("hidden_size", format_args!("it must be divisible by num_attention_heads {heads}")));
    }
    Ok(Specification {
        family: config.text("model_type")?.unwrap_or_default().to_string(),
        layers,
        layer_weights: (0..layers).collect(),
        hidden_size,
        embedding_size: hidden_size,
        heads,
        kv_heads: heads,
        head_dim: hidden_size / heads,
        ffn_size: config.size("intermediate_size")?,
        vocabulary: config.size("vocab_size")?,
        token_types: config.count("type_vocab_size")?.unwrap_or(2),
        positions,
        mask: MaskKind::Full,
        window: None,
        readout: Readout::First,
        norm: NormKind::LayerNorm,
        norm_place: NormPlace::Post,
        norm_epsilon: config.positive_number("layer_norm_eps")?.unwrap_or(1e-12),
        embedding_norm: true,
        final_norm: false,
        activation: activation(config, "hidden_act", "gelu")?,
        biases: Biases::ALL,
        query_key_norm: false,
        tied_head: config.flag_or("tie_word_embeddings", true)?,
        block_dropout: true,
        hidden_dropout: config.rate("hidden_dropout_prob")?.unwrap_or(0.1),
        attention_dropout: config.rate("attention_probs_dropout_prob")?.unwrap_or(0.1),
        initializer_range: config.positive_number("initializer_range")?.unwrap_or(0.02),
        labels: config.labels()?,
    })
}

/// Tensor names of BERT and RoBERTa.
pub fn tensor_name(slot: Slot) -> Option<String> {
    let (layer, part) = match slot {
        Slot::WordEmbedding => return Some("embeddings.word_embeddings".into()),
        Slot::PositionEmbedding => return Some("embeddings.position_embeddings".into()),
        Slot::TypeEmbedding => return Some("embeddings.token_type_embeddings".into()),
        Slot::EmbeddingNorm => return Some("embeddings.LayerNorm".into()),
        Slot::Pooler => return Some("pooler.dense".into()),
        Slot::HeadTransform | Slot::HeadNorm => return None,
        Slot::EmbeddingProjection | Slot::FinalNorm | Slot::LanguageHead | Slot::QueryNorm(_) | Slot::KeyNorm(_) | Slot::Gate(_) => {
            return None;
        }
        Slot::RelativeEmbedding | Slot::RelativeKey(_) | Slot::RelativeQuery(_) => return None,
        Slot::Query(layer) => (layer, "attention.self.query"),
        Slot::Key(layer) => (layer, "attention.self.key"),
        Slot::Value(layer) => (layer, "attention.self.value"),
        Slot::AttentionOutput(layer) => (layer, "attention.output.dense"),
        Slot::AttentionNorm(layer) => (layer, "attention.output.LayerNorm"),
        Slot::Up(layer) => (layer, "intermediate.dense"),
        Slot::Down(layer) => (layer, "output.dense"),
        Slot::FeedForwardNorm(layer) => (layer, "output.LayerNorm"),
    };
    Some(format!("encoder.layer.{layer}.{part}"))
}
