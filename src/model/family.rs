//! The table of model families, and what every family refuses.

use super::{
    Config, HeadKind, MaskKind, MaskedHead, Slot, Specification, TaskKind, bert, deberta, glm, gpt2, llama, mistral, qwen, roberta,
};
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
    /// The head of transformers' class for a task, which is the one that PEFT loads.
    pub transformers_head: fn(TaskKind) -> HeadKind,
    /// The specification of a configuration that passed [`describe`]'s checks.
    pub specification: fn(&Config) -> Result<Specification>,
    /// Name of a slot's tensor without prefix and without `.weight` or `.bias`; None: the family has no such tensor.
    pub tensor_name: fn(Slot) -> Option<String>,
    /// How the tensor of that name holds the slot.
    pub storage: fn(&Specification, Slot) -> Storage,
    /// Name of a bias that is not named as its matrix (and stands by itself), without prefix.
    pub bias_name: fn(Slot) -> Option<String>,
    /// How the tensors of a masked-language-model head may be named, in the order in which they are looked for.
    pub masked_heads: &'static [&'static MaskedHead],
}

/// How a file's tensor holds a slot's matrix and bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// The matrix is stored \[input, output\], as by transformers' `Conv1D`.
    pub transposed: bool,
    /// The tensor holds the outputs of `parts` slots of one size, and the slot's are the `part`th of them.
    pub part: usize,
    pub parts: usize,
    /// Parts take turns, so many outputs at a time; None: they follow one another whole.
    pub block: Option<usize>,
}

impl Storage {
    /// \[output, input\] by itself.
    pub const PLAIN: Storage = Storage { transposed: false, part: 0, parts: 1, block: None };

    /// The `part`th of `parts` that follow one another.
    pub const fn part(part: usize, parts: usize) -> Storage {
        Storage { part, parts, ..Storage::PLAIN }
    }

    /// Where a slot of `rows` outputs begins in its tensor, if its rows follow one another there.
    pub fn first_row(self, rows: usize) -> Option<usize> {
        (!self.transposed && self.block.is_none_or(|block| block >= rows)).then_some(self.part * rows)
    }

    /// The runs of consecutive rows that make up a slot of `rows` outputs: (first row, the tensor's first row, how many).
    pub fn runs(self, rows: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let block = self.block.unwrap_or(rows).clamp(1, rows.max(1));
        (0..rows).step_by(block).map(move |row| (row, (row / block * self.parts + self.part) * block, block.min(rows - row)))
    }
}

/// Every family that there is.
pub static FAMILIES: &[&Family] = &[
    &bert::FAMILY,
    &roberta::FAMILY,
    &deberta::FAMILY,
    &glm::FAMILY,
    &gpt2::FAMILY,
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen::QWEN2,
    &qwen::QWEN3,
];

/// The family of a `model_type`.
pub fn family_of(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.model_types.contains(&model_type))
}

/// Whether the model's family has a pooler, through which a linear head for whole sequences reads its token.
pub fn has_pooler(spec: &Specification) -> bool {
    family_of(&spec.family).is_none_or(|family| (family.tensor_name)(Slot::Pooler).is_some())
}

/// The head of a task where nothing else is said: transformers', but on encoders the released code's linear one.
pub fn default_head(spec: &Specification, task: TaskKind) -> HeadKind {
    match family_of(&spec.family).map_or(HeadKind::Linear, |family| (family.transformers_head)(task)) {
        HeadKind::Dense => HeadKind::Linear,
        head => head,
    }
}

/// Whether a model has a head for a task: decoders and DeBERTa have only their own, encoders no `score`, and `dense` is for
/// whole sequences.
pub fn offers_head(spec: &Specification, task: TaskKind, head: HeadKind) -> bool {
    match default_head(spec, TaskKind::Classification) {
        HeadKind::Score | HeadKind::Context => head == default_head(spec, task),
        _ => head == HeadKind::Linear || (head == HeadKind::Dense && task.reads_sequences()),
    }
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
    if config.flag("add_cross_attention")? {
        return Err(config.wrong("add_cross_attention", "attention to another sequence is not supported"));
    }
    if config.text("position_embedding_type")?.is_some_and(|kind| kind != "absolute") {
        return Err(config.wrong("position_embedding_type", "only absolute positions are supported"));
    }
    if config.get("pruned_heads").and_then(|heads| heads.as_object()).is_some_and(|heads| !heads.is_empty()) {
        return Err(config.wrong("pruned_heads", "models with pruned heads are not supported"));
    }
    let specification = (family.specification)(config)?;
    if specification.mask == MaskKind::Full && config.flag("is_decoder")? {
        return Err(config.wrong("is_decoder", "decoders of this family are not supported, only encoders"));
    }
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
pub fn activation(config: &Config, field: &str, absent: &str) -> Result<Activation> {
    match config.text(field)?.unwrap_or(absent) {
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
            (
                r#"{"model_type": "gpt_neox"}"#,
                ["gpt_neox", "supported: bert, roberta, xlm-roberta, deberta, glm, gpt2, llama, mistral, qwen2, qwen3"],
            ),
            (r#"{"model_type": null}"#, ["model_type", "missing"]),
            (r#"{"architectures": ["JinaBertForMaskedLM"]}"#, ["architectures", "JinaBertForMaskedLM"]),
            (r#"{"architectures": "BertModel"}"#, ["architectures", "list"]),
            (r#"{"hidden_act": "silu"}"#, ["hidden_act", "silu"]),
            (r#"{"position_embedding_type": "relative_key"}"#, ["position_embedding_type", "relative_key"]),
            (r#"{"quantization_config": {"quant_method": "gptq"}}"#, ["quantization_config", "gptq"]),
            (r#"{"is_decoder": true}"#, ["is_decoder", "encoders"]),
            (r#"{"add_cross_attention": true}"#, ["add_cross_attention", "not supported"]),
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
