//! Names of masked-language-model heads: a dense layer, the activation and a norm (the transform), then the word
//! embedding, or a matrix of its own, and a bias. They stand beside the model, without its prefix.

use super::Slot;
use crate::backend::Activation;

/// The tensors of a head, as one generation of a class names them.
#[derive(Debug, PartialEq, Eq)]
pub struct MaskedHead {
    /// Without `.weight` and `.bias`.
    pub transform: &'static str,
    pub norm: &'static str,
    /// The output layer, where it is not the word embedding.
    pub decoder: &'static str,
    /// The output layer's bias.
    pub bias: &'static str,
    /// None: the model's own.
    pub activation: Option<Activation>,
}

/// BERT's, and DeBERTa's in transformers.
pub const BERT: MaskedHead = MaskedHead {
    transform: "cls.predictions.transform.dense",
    norm: "cls.predictions.transform.LayerNorm",
    decoder: "cls.predictions.decoder",
    bias: "cls.predictions.bias",
    activation: None,
};

pub const ROBERTA: MaskedHead = MaskedHead {
    transform: "lm_head.dense",
    norm: "lm_head.layer_norm",
    decoder: "lm_head.decoder",
    bias: "lm_head.bias",
    activation: Some(Activation::GeluErf),
};

/// Of the DeBERTa that Microsoft published.
pub const DEBERTA: MaskedHead = MaskedHead {
    transform: "lm_predictions.lm_head.dense",
    norm: "lm_predictions.lm_head.LayerNorm",
    decoder: "lm_predictions.lm_head.decoder",
    bias: "lm_predictions.lm_head.bias",
    activation: None,
};

impl MaskedHead {
    /// Name of a slot's tensor, if it is one of the head's.
    pub fn name(&self, slot: Slot) -> Option<&'static str> {
        match slot {
            Slot::HeadTransform => Some(self.transform),
            Slot::HeadNorm => Some(self.norm),
            Slot::LanguageHead => Some(self.decoder),
            _ => None,
        }
    }

    /// The tensors that every such head has.
    pub fn tensors(&self) -> [String; 5] {
        let both = |name: &str| [format!("{name}.weight"), format!("{name}.bias")];
        let ([dense, dense_bias], [gamma, beta]) = (both(self.transform), both(self.norm));
        [dense, dense_bias, gamma, beta, self.bias.to_string()]
    }
}
