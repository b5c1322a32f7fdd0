//! RoBERTa and XLM-RoBERTa: BERT's encoder with positions counted from behind the padding index, which padding tokens
//! take themselves (as in transformers' `modeling_roberta.py`).

use super::bert::{encoder, padding_id, tensor_name};
use super::family::Family;
use super::{Config, HeadKind, Positions, Specification, Storage, masked_head};
use anyhow::Result;

pub static FAMILY: Family = Family {
    model_types: &["roberta", "xlm-roberta"],
    architectures: &["Roberta", "XLMRoberta"],
    prefixes: &["roberta.", ""],
    transformers_head: |task| if task.reads_sequences() { HeadKind::Dense } else { HeadKind::Linear },
    specification,
    tensor_name,
    storage: |_, _| Storage::PLAIN,
    bias_name: |_| None,
    masked_heads: &[&masked_head::ROBERTA],
};

fn specification(config: &Config) -> Result<Specification> {
    let (table, padding) = (config.size("max_position_embeddings")?, padding_id(config, 1)?);
    if table <= padding + 1 {
        return Err(config.wrong("max_position_embeddings", format_args!("positions start behind pad_token_id {padding}")));
    }
    encoder(config, Positions::Learned { table, first: padding + 1, padding_id: Some(padding as u32) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn positions_start_behind_the_padding_index() {
        let text = br#"{"model_type": "xlm-roberta", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 8, "vocab_size": 10, "max_position_embeddings": 12, "type_vocab_size": 1}"#;
        let config = Config::parse(Path::new("config.json"), text).unwrap();
        let specification = specification(&config).unwrap();
        assert_eq!(specification.family, "xlm-roberta");
        assert_eq!(specification.positions, Positions::Learned { table: 12, first: 2, padding_id: Some(1) });
        assert_eq!(specification.position_ids(&[0, 5, 1, 2], 3).collect::<Vec<_>>(), [5, 6, 1, 7]);
    }
}
