//! What a transformer is: everything the engine must know of a model, and nothing of where it came from.

use crate::backend::{Activation, NormKind};

/// Where a block normalises: after adding the residual (BERT) or before each branch (GPT, Llama).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    Post,
    Pre,
}

/// What a head for whole sequences reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceState {
    /// The first token, through the model's pooler (or a trained dense layer).
    Pooled,
    /// The first token as it is.
    First,
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
    pub attention_output: bool,
    pub feed_forward: bool,
}

impl Biases {
    pub const ALL: Biases = Biases { query_key_value: true, attention_output: true, feed_forward: true };
    pub const NONE: Biases = Biases { query_key_value: false, attention_output: false, feed_forward: false };
}

/// How a token's position enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// A learned table; the first token has index `first` (+ prefix length where positions are shifted).
    /// With `padding_id`, a token of that id takes index `padding_id` and does not advance the count (RoBERTa).
    Learned { table: usize, first: usize, padding_id: Option<u32> },
    /// Two learned tables: a token's position, and its place in the answer that fills a blank, whose tokens have the
    /// blank's position (GLM). Never shifted by a prefix.
    TwoDimensional { table: usize },
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
    pub norm: NormKind,
    pub norm_place: NormPlace,
    pub norm_epsilon: f64,
    /// A norm directly on the embeddings.
    pub embedding_norm: bool,
    /// A norm after the last layer (pre-norm models).
    pub final_norm: bool,
    pub activation: Activation,
    pub biases: Biases,
    /// Whether a language-model head is the word embedding.
    pub tied_head: bool,
    pub sequence_state: SequenceState,
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
    Query(usize),
    Key(usize),
    Value(usize),
    AttentionOutput(usize),
    /// Post-norm: after the attention's residual. Pre-norm: before attention.
    AttentionNorm(usize),
    Up(usize),
    Down(usize),
    /// Post-norm: after the feed-forward's residual. Pre-norm: before the feed-forward.
    FeedForwardNorm(usize),
    FinalNorm,
    Pooler,
    /// The language-model head's matrix, where it is not the word embedding.
    LanguageHead,
}

impl Specification {
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    pub fn query_size(&self) -> usize {
        self.heads * self.head_dim
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
            },
            Slot::TypeEmbedding => match self.positions {
                Positions::TwoDimensional { table } => [table, embedding],
                _ if self.token_types > 0 => [self.token_types, embedding],
                _ => return None,
            },
            Slot::EmbeddingNorm if self.embedding_norm => [1, embedding],
            Slot::EmbeddingProjection if embedding != hidden => [hidden, embedding],
            Slot::Query(_) => [self.query_size(), hidden],
            Slot::Key(_) | Slot::Value(_) => [self.kv_size(), hidden],
            Slot::AttentionOutput(_) => [hidden, self.query_size()],
            Slot::Up(_) => [self.ffn_size, hidden],
            Slot::Down(_) => [hidden, self.ffn_size],
            Slot::AttentionNorm(_) | Slot::FeedForwardNorm(_) => [1, hidden],
            Slot::FinalNorm if self.final_norm => [1, hidden],
            Slot::Pooler => [hidden, hidden],
            Slot::LanguageHead if !self.tied_head => [self.vocabulary, hidden],
            Slot::EmbeddingNorm | Slot::EmbeddingProjection | Slot::FinalNorm | Slot::LanguageHead => return None,
        })
    }

    /// Every slot of the model but the pooler and the language-model head, in the order of the forward.
    pub fn slots(&self) -> Vec<Slot> {
        let mut slots =
            vec![Slot::WordEmbedding, Slot::PositionEmbedding, Slot::TypeEmbedding, Slot::EmbeddingNorm, Slot::EmbeddingProjection];
        for set in 0..self.weight_sets() {
            slots.extend([
                Slot::Query(set),
                Slot::Key(set),
                Slot::Value(set),
                Slot::AttentionOutput(set),
                Slot::AttentionNorm(set),
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
            Slot::EmbeddingNorm | Slot::AttentionNorm(_) | Slot::FeedForwardNorm(_) | Slot::FinalNorm => self.norm == NormKind::LayerNorm,
            Slot::Pooler | Slot::EmbeddingProjection => true,
            Slot::Query(_) | Slot::Key(_) | Slot::Value(_) => self.biases.query_key_value,
            Slot::AttentionOutput(_) => self.biases.attention_output,
            Slot::Up(_) | Slot::Down(_) => self.biases.feed_forward,
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
            Positions::TwoDimensional { .. } => index as u32,
        }
    }

    /// Position indices of one sequence's tokens, `shift` being the prefix length or 0.
    pub fn position_ids<'a>(&self, ids: &'a [u32], shift: usize) -> impl Iterator<Item = u32> + 'a {
        let (first, padding_id) = match self.positions {
            Positions::Learned { first, padding_id, .. } => (first, padding_id),
            Positions::TwoDimensional { .. } => (0, None),
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

    /// The longest sequence that the position table holds behind `shift` prefix positions.
    pub fn longest_sequence(&self, shift: usize) -> usize {
        match self.positions {
            Positions::Learned { table, first, .. } => table.saturating_sub(first + shift),
            // The last row is no position's.
            Positions::TwoDimensional { table } => table.saturating_sub(1),
        }
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
            norm: NormKind::LayerNorm,
            norm_place: NormPlace::Post,
            norm_epsilon: 1e-12,
            embedding_norm: true,
            final_norm: false,
            activation: Activation::GeluErf,
            biases: Biases::ALL,
            tied_head: true,
            sequence_state: SequenceState::Pooled,
            hidden_dropout: 0.1,
            attention_dropout: 0.1,
            initializer_range: 0.02,
            labels: None,
        }
    }
}
