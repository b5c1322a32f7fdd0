//! What a transformer is: everything the engine must know of a model, and nothing of where it came from.

use super::rotary::Rotary;
use crate::backend::{Activation, NormKind};

/// Where a block normalises: after adding the residual (BERT) or before each branch (GPT, Llama).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    Post,
    Pre,
}

/// Which tokens of its sequence a token sees. All see the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskKind {
    Full,
    /// Those before it and itself.
    Causal,
    /// As causal, and the tokens before the sequence's separator see one another (GLM).
    Separator,
}

/// Which linear layers have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    pub query_key_value: bool,
    /// Not that of keys, even so.
    pub except_key: bool,
    pub attention_output: bool,
    pub feed_forward: bool,
}

impl Biases {
    pub const ALL: Biases = Biases { query_key_value: true, except_key: false, attention_output: true, feed_forward: true };
    pub const NONE: Biases = Biases { query_key_value: false, except_key: false, attention_output: false, feed_forward: false };
}

/// How a token's position enters.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// A learned table; the first token has index `first` (+ prefix length where positions are shifted).
    /// With `padding_id`, a token of that id takes index `padding_id` and does not advance the count (RoBERTa).
    Learned { table: usize, first: usize, padding_id: Option<u32> },
    /// Two learned tables: a token's position, and its place in the answer that fills a blank, whose tokens have the
    /// blank's position (GLM). Never shifted by a prefix.
    TwoDimensional { table: usize },
    /// By the distance of two tokens of a sequence, cut at `span` both ways, through a learned table of 2 `span` rows
    /// (DeBERTa): each layer projects the table to keys, which meet queries, and to queries, which meet keys.
    Relative { span: usize, keys: bool, queries: bool },
    /// Queries and keys are rotated by it; the first token has position 0 (+ prefix length where positions are shifted).
    Rotary(Rotary),
}

/// The token that a head for whole sequences reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readout {
    First,
    /// The last one that is not padding, as transformers' decoder classes take it.
    Last {
        padding_id: Option<u32>,
    },
}

impl Readout {
    /// Its index.
    pub fn of(self, ids: &[u32]) -> u32 {
        match self {
            Readout::First => 0,
            Readout::Last { padding_id } => ids.iter().rposition(|&id| Some(id) != padding_id).unwrap_or(0) as u32,
        }
    }
}

/// A transformer. `layer_weights[l]` names the weights that layer l uses (shared layers name the same).
#[derive(Clone, Debug, PartialEq)]
pub struct Specification {
    /// `model_type` of its config.json.
    pub family: String,
    pub layers: usize,
    pub layer_weights: Vec<usize>,
    pub hidden_size: usize,
    /// Width of the embedding tables; where it is not the hidden size, a linear layer maps it there.
    pub embedding_size: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn_size: usize,
    pub vocabulary: usize,
    /// 0: no token type embedding.
    pub token_types: usize,
    pub positions: Positions,
    pub mask: MaskKind,
    /// The most positions, prefix included, that attention reaches back; what is longer is refused.
    pub window: Option<usize>,
    pub readout: Readout,
    pub norm: NormKind,
    pub norm_place: NormPlace,
    pub norm_epsilon: f64,
    /// A norm directly on the embeddings.
    pub embedding_norm: bool,
    /// A norm after the last layer (pre-norm models).
    pub final_norm: bool,
    pub activation: Activation,
    pub biases: Biases,
    /// Whether each head's queries and keys go through an RMS norm before they are rotated.
    pub query_key_norm: bool,
    /// Whether a language-model head is the word embedding.
    pub tied_head: bool,
    /// Whether dropout acts on the embeddings and on the blocks' outputs; else on probabilities and in the head alone.
    pub block_dropout: bool,
    /// Rates of the checkpoint's config.json.
    pub hidden_dropout: f64,
    pub attention_dropout: f64,
    /// Deviation of newly made weights (a pooler that the checkpoint lacks).
    pub initializer_range: f64,
    /// `id2label` in order of ids, where it has real names.
    pub labels: Option<Vec<String>>,
}

/// A frozen tensor by its role. Layer indices are indices of weights, not of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    WordEmbedding,
    PositionEmbedding,
    TypeEmbedding,
    EmbeddingNorm,
    EmbeddingProjection,
    /// The table of relative positions, and what projects it to a layer's keys and queries.
    RelativeEmbedding,
    RelativeKey(usize),
    RelativeQuery(usize),
    Query(usize),
    Key(usize),
    Value(usize),
    /// Of each head, before the rotation.
    QueryNorm(usize),
    KeyNorm(usize),
    AttentionOutput(usize),
    /// Post-norm: after the attention's residual. Pre-norm: before attention.
    AttentionNorm(usize),
    /// Where the activation is gated.
    Gate(usize),
    Up(usize),
    Down(usize),
    /// Post-norm: after the feed-forward's residual. Pre-norm: before the feed-forward.
    FeedForwardNorm(usize),
    FinalNorm,
    Pooler,
    /// The language-model head's matrix, where it is not the word embedding.
    LanguageHead,
    /// Of a masked-language-model head: the dense layer and the norm in front of its output layer.
    HeadTransform,
    HeadNorm,
}

impl Slot {
    /// Whether it is a norm's gamma (and beta).
    pub fn is_norm(self) -> bool {
        use Slot::*;
        matches!(self, EmbeddingNorm | QueryNorm(_) | KeyNorm(_) | AttentionNorm(_) | FeedForwardNorm(_) | FinalNorm | HeadNorm)
    }

    /// Whether it belongs to a language-model head, which stands beside the model and not in it.
    pub fn is_beside(self) -> bool {
        matches!(self, Slot::LanguageHead | Slot::HeadTransform | Slot::HeadNorm)
    }
}

impl Specification {
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    pub fn query_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// What comes out of the first layer of the feed-forward: gate and up, or up alone.
    pub fn up_size(&self) -> usize {
        self.activation.arity() * self.ffn_size
    }

    /// Distinct sets of layer weights.
    pub fn weight_sets(&self) -> usize {
        self.layer_weights.iter().max().map_or(0, |last| last + 1)
    }

    /// [output, input] of a slot's matrix (one row for a norm), or None where the model has no such tensor.
    pub fn shape(&self, slot: Slot) -> Option<[usize; 2]> {
        let (hidden, embedding) = (self.hidden_size, self.embedding_size);
        Some(match slot {
            Slot::WordEmbedding => [self.vocabulary, embedding],
            Slot::PositionEmbedding => match self.positions {
                Positions::Learned { table, .. } | Positions::TwoDimensional { table } => [table, embedding],
                Positions::Relative { .. } | Positions::Rotary(_) => return None,
            },
            Slot::TypeEmbedding => match self.positions {
                Positions::TwoDimensional { table } => [table, embedding],
                _ if self.token_types > 0 => [self.token_types, embedding],
                _ => return None,
            },
            Slot::RelativeEmbedding | Slot::RelativeKey(_) | Slot::RelativeQuery(_) => match (slot, &self.positions) {
                (Slot::RelativeEmbedding, &Positions::Relative { span, .. }) => [2 * span, hidden],
                (Slot::RelativeKey(_), Positions::Relative { keys: true, .. }) => [self.query_size(), hidden],
                (Slot::RelativeQuery(_), Positions::Relative { queries: true, .. }) => [self.query_size(), hidden],
                _ => return None,
            },
            Slot::EmbeddingNorm if self.embedding_norm => [1, embedding],
            Slot::EmbeddingProjection if embedding != hidden => [hidden, embedding],
            Slot::Query(_) => [self.query_size(), hidden],
            Slot::Key(_) | Slot::Value(_) => [self.kv_size(), hidden],
            Slot::QueryNorm(_) | Slot::KeyNorm(_) if self.query_key_norm => [1, self.head_dim],
            Slot::AttentionOutput(_) => [hidden, self.query_size()],
            Slot::Gate(_) if self.activation.arity() == 2 => [self.ffn_size, hidden],
            Slot::Up(_) => [self.ffn_size, hidden],
            Slot::Down(_) => [hidden, self.ffn_size],
            Slot::AttentionNorm(_) | Slot::FeedForwardNorm(_) => [1, hidden],
            Slot::FinalNorm if self.final_norm => [1, hidden],
            Slot::Pooler | Slot::HeadTransform => [hidden, hidden],
            Slot::HeadNorm => [1, hidden],
            Slot::LanguageHead if !self.tied_head => [self.vocabulary, hidden],
            Slot::EmbeddingNorm
            | Slot::EmbeddingProjection
            | Slot::FinalNorm
            | Slot::LanguageHead
            | Slot::QueryNorm(_)
            | Slot::KeyNorm(_)
            | Slot::Gate(_) => return None,
        })
    }

    /// Every slot of the model but the pooler and those of language-model heads, in the order of the forward.
    pub fn slots(&self) -> Vec<Slot> {
        let mut slots =
            vec![Slot::WordEmbedding, Slot::PositionEmbedding, Slot::TypeEmbedding, Slot::EmbeddingNorm, Slot::EmbeddingProjection];
        slots.push(Slot::RelativeEmbedding);
        for set in 0..self.weight_sets() {
            slots.extend([
                Slot::Query(set),
                Slot::Key(set),
                Slot::Value(set),
                Slot::RelativeKey(set),
                Slot::RelativeQuery(set),
                Slot::QueryNorm(set),
                Slot::KeyNorm(set),
                Slot::AttentionOutput(set),
                Slot::AttentionNorm(set),
                Slot::Gate(set),
                Slot::Up(set),
                Slot::Down(set),
                Slot::FeedForwardNorm(set),
            ]);
        }
        slots.push(Slot::FinalNorm);
        slots.retain(|&slot| self.shape(slot).is_some());
        slots
    }

    /// Whether a slot's tensor has a bias (a beta, for a norm).
    pub fn has_bias(&self, slot: Slot) -> bool {
        match slot {
            Slot::WordEmbedding | Slot::PositionEmbedding | Slot::TypeEmbedding | Slot::LanguageHead => false,
            Slot::QueryNorm(_) | Slot::KeyNorm(_) => false,
            Slot::EmbeddingNorm | Slot::AttentionNorm(_) | Slot::FeedForwardNorm(_) | Slot::FinalNorm | Slot::HeadNorm => {
                self.norm == NormKind::LayerNorm
            }
            Slot::Pooler | Slot::EmbeddingProjection | Slot::RelativeQuery(_) | Slot::HeadTransform => true,
            Slot::RelativeEmbedding | Slot::RelativeKey(_) => false,
            Slot::Query(_) | Slot::Value(_) => self.biases.query_key_value,
            Slot::Key(_) => self.biases.query_key_value && !self.biases.except_key,
            Slot::AttentionOutput(_) => self.biases.attention_output,
            Slot::Gate(_) | Slot::Up(_) | Slot::Down(_) => self.biases.feed_forward,
        }
    }

    /// Parameters of the frozen model without the pooler.
    pub fn parameters(&self) -> usize {
        self.slots()
            .iter()
            .map(|&slot| {
                let [rows, cols] = self.shape(slot).unwrap_or([0, 0]);
                let bias = if !self.has_bias(slot) {
                    0
                } else if rows == 1 {
                    cols
                } else {
                    rows
                };
                rows * cols + bias
            })
            .sum()
    }

    /// Whether token positions can be shifted by a prefix.
    pub fn shifts(&self) -> bool {
        !matches!(self.positions, Positions::TwoDimensional { .. })
    }

    /// Position index of a sequence's token `index`, of a model whose tokens all count.
    pub fn position_of(&self, index: usize, shift: usize) -> u32 {
        match self.positions {
            Positions::Learned { first, .. } => (first + shift + index) as u32,
            Positions::Rotary(_) => (shift + index) as u32,
            Positions::TwoDimensional { .. } | Positions::Relative { .. } => index as u32,
        }
    }

    /// Position indices of one sequence's tokens, `shift` being the prefix length or 0.
    pub fn position_ids<'a>(&self, ids: &'a [u32], shift: usize) -> impl Iterator<Item = u32> + 'a {
        let (first, padding_id) = match self.positions {
            Positions::Learned { first, padding_id, .. } => (first, padding_id),
            Positions::TwoDimensional { .. } | Positions::Relative { .. } | Positions::Rotary(_) => (0, None),
        };
        let mut next = (first + shift) as u32;
        ids.iter().map(move |&id| match padding_id {
            Some(padding) if id == padding => padding,
            _ => {
                next += 1;
                next - 1
            }
        })
    }

    /// The longest sequence that the model has positions for behind `shift` prefix positions.
    pub fn longest_sequence(&self, shift: usize) -> usize {
        match &self.positions {
            Positions::Rotary(rotary) => rotary.limit.saturating_sub(shift),
            Positions::Learned { table, first, .. } => table.saturating_sub(first + shift),
            // The last row is no position's.
            Positions::TwoDimensional { table } => table.saturating_sub(1),
            Positions::Relative { .. } => usize::MAX,
        }
    }

    /// What attention multiplies its scores by: 1 / √(head dim), shared among the terms of relative positions.
    pub fn attention_scale(&self) -> f64 {
        let terms = match self.positions {
            Positions::Relative { keys, queries, .. } => 1 + usize::from(keys) + usize::from(queries),
            _ => 1,
        };
        1.0 / ((terms * self.head_dim) as f64).sqrt()
    }
}

#[cfg(test)]
impl Specification {
    /// A small BERT for unit tests: 2 layers, hidden size 4, positions of 64 tokens.
    pub fn tiny() -> Specification {
        Specification {
            family: "bert".into(),
            layers: 2,
            layer_weights: vec![0, 1],
            hidden_size: 4,
            embedding_size: 4,
            heads: 2,
            kv_heads: 2,
            head_dim: 2,
            ffn_size: 8,
            vocabulary: 10,
            token_types: 2,
            positions: Positions::Learned { table: 64, first: 0, padding_id: None },
            mask: MaskKind::Full,
            window: None,
            readout: Readout::First,
            norm: NormKind::LayerNorm,
            norm_place: NormPlace::Post,
            norm_epsilon: 1e-12,
            embedding_norm: true,
            final_norm: false,
            activation: Activation::GeluErf,
            biases: Biases::ALL,
            query_key_norm: false,
            tied_head: true,
            block_dropout: true,
            hidden_dropout: 0.1,
            attention_dropout: 0.1,
            initializer_range: 0.02,
            labels: None,
        }
    }
}
