//! The table of model families, and what every family refuses.

use super::{Config, HeadKind, Slot, Specification, bert, deberta, glm, roberta};
use crate::backend::Activation;
use anyhow::{Result, bail};

/// A model family: how its `config.json` and its tensors are to be read.
pub struct Family {
    /// Values of `model_type`.
    pub model_types: &'static [&'static str],
    /// What the class names in `architectures` begin with.
    pub architectures: &'static [&'static str],
    /// What may stand before every tensor's name, in the order in which it is looked for.
    pub prefixes: &'static [&'static str],
    /// The head of transformers' class for sequence classification, which is the one that PEFT loads.
    pub transformers_head: HeadKind,
    /// Heads for whole sequences; the first is the default.
    pub heads: &'static [HeadKind],
    /// The specification of a configuration that passed [`describe`]'s checks.
    pub specification: fn(&Config) -> Result<Specification>,
    /// Name of a slot's tensor without prefix and without `.weight` or `.bias`; None: the family has no such tensor.
    pub tensor_name: fn(Slot) -> Option<String>,
    /// Where a slot's matrix is rows of a larger tensor: which.
    pub part: fn(&Specification, Slot) -> Option<TensorRows>,
    /// Name of a bias that is not named as its matrix, without prefix.
    pub bias_name: fn(Slot) -> Option<String>,
}

/// Some rows of a tensor of `of` rows: row r is the tensor's row `first + r / block * step + r % block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorRows {
    pub of: usize,
    pub first: usize,
    pub block: usize,
    pub step: usize,
}

impl TensorRows {
    /// The runs of consecutive rows that make up `rows` rows: (first row, the tensor's first row, how many).
    pub fn runs(self, rows: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..rows).step_by(self.block).map(move |row| (row, self.first + row / self.block * self.step, self.block.min(rows - row)))
    }
}

/// Every family that there is.
pub static FAMILIES: &[&Family] = &[&bert::FAMILY, &roberta::FAMILY, &deberta::FAMILY, &glm::FAMILY];

/// The family of a `model_type`.
pub fn family_of(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.model_types.contains(&model_type))
}

fn supported() -> String {
    FAMILIES.iter().flat_map(|family| family.model_types).copied().collect::<Vec<_>>().join(", ")
}

/// Reads a `config.json`; what is not supported is refused by its name.
pub fn describe(config: &Config) -> Result<(&'static Family, Specification)> {
    let Some(model_type) = config.text("model_type")? else {
        return Err(config.wrong("model_type", format_args!("give one of: {}", supported())));
    };
    let Some(family) = family_of(model_type) else {
        return Err(config.wrong("model_type", format_args!("this model is not supported (supported: {})", supported())));
    };
    check_architectures(config, family)?;
    if let Some(quantization) = config.get("quantization_config") {
        let method = quantization.get("quant_method").and_then(|method| method.as_str()).unwrap_or("unnamed");
        bail!(
            "{}: field quantization_config: quantized checkpoints ({method}) are not supported; use the fp16, bf16 or fp32 one",
            config.file().display()
        );
    }
    for field in ["is_decoder", "add_cross_attention"] {
        if config.flag(field)? {
            return Err(config.wrong(field, "decoders of this family are not supported, only encoders"));
        }
    }
    if config.text("position_embedding_type")?.is_some_and(|kind| kind != "absolute") {
        return Err(config.wrong("position_embedding_type", "only absolute positions are supported"));
    }
    if config.get("pruned_heads").and_then(|heads| heads.as_object()).is_some_and(|heads| !heads.is_empty()) {
        return Err(config.wrong("pruned_heads", "models with pruned heads are not supported"));
    }
    let specification = (family.specification)(config)?;
    Ok((family, specification))
}

/// Remote code often keeps the `model_type` of the family that it departs from; its class names tell.
fn check_architectures(config: &Config, family: &Family) -> Result<()> {
    let Some(classes) = config.get("architectures") else { return Ok(()) };
    let classes = classes.as_array().ok_or_else(|| config.wrong("architectures", "it must be a list of class names"))?;
    for class in classes {
        let name = class.as_str().ok_or_else(|| config.wrong("architectures", "it must be a list of class names"))?;
        if !family.architectures.iter().any(|start| name.starts_with(start)) {
            let expected = family.architectures.join(".., ");
            return Err(config.wrong("architectures", format_args!("this architecture is not supported (supported: {expected}..)")));
        }
    }
    Ok(())
}

/// The activation of a field such as `hidden_act`; all of transformers' tanh GELUs are the same function.
pub fn activation(config: &Config, field: &str) -> Result<Activation> {
    match config.text(field)?.unwrap_or("gelu") {
        "gelu" => Ok(Activation::GeluErf),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        _ => Err(config.wrong(field, "this activation is not supported (supported: gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const BERT: &str = r#"{"model_type": "bert", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
        "intermediate_size": 192, "vocab_size": 500, "max_position_embeddings": 192}"#;

    /// The specification of `BERT` with some fields set.
    fn with(fields: &str) -> Result<Specification> {
        let mut value: serde_json::Value = serde_json::from_str(BERT).unwrap();
        let changes: serde_json::Value = serde_json::from_str(fields).unwrap();
        value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config = Config::parse(Path::new("config.json"), value.to_string().as_bytes()).unwrap();
        describe(&config).map(|(_, specification)| specification)
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let cases = [
            (r#"{"model_type": "gpt_neox"}"#, ["gpt_neox", "supported: bert, roberta, xlm-roberta, deberta, glm"]),
            (r#"{"model_type": null}"#, ["model_type", "missing"]),
            (r#"{"architectures": ["JinaBertForMaskedLM"]}"#, ["architectures", "JinaBertForMaskedLM"]),
            (r#"{"architectures": "BertModel"}"#, ["architectures", "list"]),
            (r#"{"hidden_act": "silu"}"#, ["hidden_act", "silu"]),
            (r#"{"position_embedding_type": "relative_key"}"#, ["position_embedding_type", "relative_key"]),
            (r#"{"quantization_config": {"quant_method": "gptq"}}"#, ["quantization_config", "gptq"]),
            (r#"{"is_decoder": true}"#, ["is_decoder", "encoders"]),
            (r#"{"add_cross_attention": true}"#, ["add_cross_attention", "encoders"]),
            (r#"{"pruned_heads": {"0": [1]}}"#, ["pruned_heads", "not supported"]),
            (r#"{"num_attention_heads": 0}"#, ["num_attention_heads", "at least 1"]),
            (r#"{"num_attention_heads": 5}"#, ["hidden_size", "num_attention_heads 5"]),
            (r#"{"num_hidden_layers": null}"#, ["num_hidden_layers", "missing"]),
            (r#"{"pad_token_id": 500}"#, ["pad_token_id", "vocab_size 500"]),
            (r#"{"hidden_dropout_prob": 1.0}"#, ["hidden_dropout_prob", "below 1"]),
            (r#"{"layer_norm_eps": 0}"#, ["layer_norm_eps", "greater than 0"]),
            (r#"{"model_type": "roberta", "pad_token_id": 191}"#, ["max_position_embeddings", "pad_token_id 191"]),
        ];
        for (fields, parts) in cases {
            let message = format!("{:#}", with(fields).expect_err(fields));
            assert!(message.starts_with("config.json: field "), "{message}");
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }

    #[test]
    fn both_generations_of_transformers() {
        let old = with(r#"{"torch_dtype": "float16", "position_embedding_type": "absolute", "pruned_heads": {}}"#).unwrap();
        let new = with(r#"{"dtype": "float16", "is_decoder": false, "add_cross_attention": false, "quantization_config": null}"#).unwrap();
        assert_eq!(old, new);
        assert_eq!(old.norm_epsilon, 1e-12);
        assert_eq!((old.token_types, old.hidden_dropout, old.attention_dropout), (2, 0.1, 0.1));
        assert_eq!(old.initializer_range, 0.02);
        assert_eq!(old.activation, Activation::GeluErf);
        assert_eq!(with(r#"{"hidden_act": "gelu_fast"}"#).unwrap().activation, Activation::GeluTanh);
    }
}
