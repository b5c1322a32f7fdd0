//! DeBERTa, version 1 (the released code's `model/deberta.py`): BERT's blocks with relative positions in attention and none in the
//! embeddings. Queries, keys and values of a layer are one tensor, head by head; its biases stand apart, keys have none.

use super::bert::{encoder, padding_id, tensor_name as bert_name};
use super::family::{Family, Storage};
use super::{Biases, Config, HeadKind, Positions, Slot, Specification, masked_head};
use anyhow::Result;

pub static FAMILY: Family = Family {
    model_types: &["deberta"],
    architectures: &["DebertaModel", "DebertaFor", "DebertaPrefixFor"],
    prefixes: &["deberta.", ""],
    transformers_head: |task| if task.reads_sequences() { HeadKind::Context } else { HeadKind::Linear },
    specification,
    tensor_name,
    storage,
    bias_name,
    masked_heads: &[&masked_head::DEBERTA, &masked_head::BERT],
};

fn specification(config: &Config) -> Result<Specification> {
    padding_id(config, 0)?;
    // transformers' default of position_biased_input is true.
    let biased_input = config.get("position_biased_input").is_none() || config.flag("position_biased_input")?;
    let hidden = config.size("hidden_size")?;
    let other_size = |field: &str| Ok::<_, anyhow::Error>(config.positive(field)?.is_some_and(|size| size != hidden));
    for (field, refused, remedy) in [
        ("relative_attention", !config.flag("relative_attention")?, "only models with relative attention are supported"),
        ("position_biased_input", biased_input, "only models without absolute positions are supported: it must be false"),
        ("talking_head", config.flag("talking_head")?, "talking heads are not supported"),
        ("embedding_size", other_size("embedding_size")?, "only hidden_size is supported"),
        ("pooler_hidden_size", other_size("pooler_hidden_size")?, "only hidden_size is supported"),
        ("pooler_hidden_act", config.text("pooler_hidden_act")?.is_some_and(|name| name != "gelu"), "only gelu is supported"),
        ("pooler_dropout", config.rate("pooler_dropout")?.is_some_and(|rate| rate > 0.0), "only 0 is supported"),
    ] {
        if refused {
            return Err(config.wrong(field, remedy));
        }
    }
    let [keys, queries] = terms(config)?;
    let positions = Positions::Relative { span: span(config)?, keys, queries };
    Ok(Specification {
        token_types: config.count("type_vocab_size")?.unwrap_or(0),
        norm_epsilon: config.positive_number("layer_norm_eps")?.unwrap_or(1e-7),
        biases: Biases { except_key: true, ..Biases::ALL },
        ..encoder(config, positions)?
    })
}

/// Distance at which relative positions are cut: `max_relative_positions`, or where that is below 1 the longest text.
fn span(config: &Config) -> Result<usize> {
    match config.get("max_relative_positions").and_then(|value| value.as_i64()) {
        Some(number) if number < 1 => config.size("max_position_embeddings"),
        _ => config.positive("max_relative_positions")?.map_or_else(|| config.size("max_position_embeddings"), Ok),
    }
}

/// Whether relative keys (c2p) and relative queries (p2c) take part: `pos_att_type`, "c2p|p2c" or a list.
fn terms(config: &Config) -> Result<[bool; 2]> {
    const FIELD: &str = "pos_att_type";
    let wrong = || config.wrong(FIELD, "supported: c2p, p2c, or both as \"c2p|p2c\"");
    let names: Vec<&str> = match config.get(FIELD) {
        Some(serde_json::Value::String(text)) => text.split('|').map(str::trim).collect(),
        Some(serde_json::Value::Array(list)) => list.iter().map(|name| name.as_str().unwrap_or_default()).collect(),
        _ => return Err(wrong()),
    };
    let [keys, queries] = ["c2p", "p2c"].map(|term| names.iter().filter(|name| name.eq_ignore_ascii_case(term)).count());
    if keys > 1 || queries > 1 || keys + queries != names.len() || names.is_empty() {
        return Err(wrong());
    }
    Ok([keys == 1, queries == 1])
}

fn tensor_name(slot: Slot) -> Option<String> {
    let (layer, part) = match slot {
        Slot::RelativeEmbedding => return Some("encoder.rel_embeddings".into()),
        Slot::Query(layer) | Slot::Key(layer) | Slot::Value(layer) => (layer, "in_proj"),
        Slot::RelativeKey(layer) => (layer, "pos_proj"),
        Slot::RelativeQuery(layer) => (layer, "pos_q_proj"),
        Slot::Pooler => return None,
        other => return bert_name(other),
    };
    Some(format!("encoder.layer.{layer}.attention.self.{part}"))
}

/// in_proj has query, key and value of head 0, then of head 1, ...
fn storage(spec: &Specification, slot: Slot) -> Storage {
    let number = match slot {
        Slot::Query(_) => 0,
        Slot::Key(_) => 1,
        Slot::Value(_) => 2,
        _ => return Storage::PLAIN,
    };
    Storage { block: Some(spec.head_dim), ..Storage::part(number, 3) }
}

fn bias_name(slot: Slot) -> Option<String> {
    let (layer, name) = match slot {
        Slot::Query(layer) => (layer, "q_bias"),
        Slot::Value(layer) => (layer, "v_bias"),
        _ => return None,
    };
    Some(format!("encoder.layer.{layer}.attention.self.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn with(fields: &str) -> Result<Specification> {
        let text = r#"{"model_type": "deberta", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9,
            "intermediate_size": 8, "max_position_embeddings": 12, "relative_attention": true, "position_biased_input": false,
            "pos_att_type": "c2p|p2c", "max_relative_positions": -1}"#;
        let mut value: serde_json::Value = serde_json::from_str(text)?;
        let changes: serde_json::Value = serde_json::from_str(fields)?;
        value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        specification(&Config::parse(Path::new("config.json"), value.to_string().as_bytes())?)
    }

    #[test]
    fn positions_and_scale() {
        let spec = with("{}").unwrap();
        assert_eq!(spec.positions, Positions::Relative { span: 12, keys: true, queries: true });
        assert_eq!((spec.attention_scale(), spec.token_types, spec.norm_epsilon), (1.0 / 12f64.sqrt(), 0, 1e-7));
        let spec = with(r#"{"max_relative_positions": 5, "pos_att_type": ["p2c"]}"#).unwrap();
        assert_eq!(spec.positions, Positions::Relative { span: 5, keys: false, queries: true });
        assert_eq!(spec.attention_scale(), 1.0 / 8f64.sqrt());
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (field, value) in [
            ("relative_attention", "false"),
            ("position_biased_input", "null"),
            ("talking_head", "true"),
            ("pos_att_type", "\"c2p|p2p\""),
            ("pos_att_type", "\"\""),
            ("pooler_dropout", "0.1"),
            ("pooler_hidden_act", "\"tanh\""),
            ("embedding_size", "4"),
            ("max_relative_positions", "1.5"),
        ] {
            let message = format!("{:#}", with(&format!("{{\"{field}\": {value}}}")).expect_err(field));
            assert!(message.contains(&format!("field {field} is ")), "{message}");
        }
    }
}
