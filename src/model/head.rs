//! Tasks, and the head that each puts on the frozen model (as the released code's `model/*_classification.py`, `multiple_choice.py` and `question_answering.py`).

use super::family::has_pooler;
use super::{MaskKind, Specification};
use crate::backend::Activation;
use crate::data::Grouping;
use serde::{Deserialize, Serialize};

/// What is asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// One label for a text or a pair of texts.
    Classification,
    /// One of several choices, each read together with the text.
    MultipleChoice,
    /// A label for every word.
    Tagging,
    /// The span of a context that answers a question.
    Qa,
    /// The text that follows a prompt.
    CausalLm,
}

impl TaskKind {
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Classification => "classification",
            TaskKind::MultipleChoice => "multiple-choice",
            TaskKind::Tagging => "tagging",
            TaskKind::Qa => "qa",
            TaskKind::CausalLm => "causal-lm",
        }
    }

    /// Whether its head reads one row a sequence.
    pub fn reads_sequences(self) -> bool {
        matches!(self, TaskKind::Classification | TaskKind::MultipleChoice)
    }
}

/// The head for sequences: the released code's, or the one of transformers' RoBERTa classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// The model's frozen pooler (where its family has one), then one trained linear layer.
    Linear,
    /// A trained dense layer, tanh and a trained output layer; the pooler is not used.
    Dense,
    /// DeBERTa's: a trained pooler (dense layer and GELU), then one trained linear layer.
    Context,
    /// Of transformers' decoder classes: a linear layer named `score` on the last token, without a bias; for tagging on
    /// the tokens, with one.
    Score,
}

impl HeadKind {
    pub fn name(self) -> &'static str {
        match self {
            HeadKind::Linear => "linear",
            HeadKind::Dense => "dense",
            HeadKind::Context => "context",
            HeadKind::Score => "score",
        }
    }
}

/// The rows that a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// One a sequence.
    Sequences,
    /// The first token of every word.
    Words,
    Tokens,
}

/// What stands between the rows that a head reads and its output layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    None,
    /// tanh(W h + b) with the model's frozen pooler.
    Frozen,
    /// The same with a trained dense layer, with hidden dropout in front.
    Dense,
    /// gelu(W h + b), trained, without it.
    Context,
    /// norm(f(W h + b)), frozen: a masked-language-model head in front of its output layer.
    Masked,
}

impl Pooling {
    /// Whether its layer is trained.
    pub fn trains(self) -> bool {
        matches!(self, Pooling::Dense | Pooling::Context)
    }

    pub fn activation(self) -> Activation {
        match self {
            Pooling::Context => Activation::GeluErf,
            _ => Activation::Tanh,
        }
    }
}

/// The last layer of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Trained, with `columns` outputs.
    Trained,
    /// The frozen language-model head's rows of these tokens (and a masked one's biases); nothing is trained.
    Words(Vec<u32>),
    /// The frozen language-model head: every row that is read is to predict a token. Its logits never exist all at once,
    /// so there are no columns.
    Vocabulary,
}

/// A head as the engine builds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadSpec {
    /// Its name where an adapter has several heads; None: it is the only one.
    pub name: Option<String>,
    pub pooling: Pooling,
    pub output: Output,
    /// Outputs of the last layer.
    pub columns: usize,
    /// Whether the last layer has a bias.
    pub bias: bool,
    pub reads: Reads,
    pub grouping: Grouping,
    /// Whether hidden dropout acts on the last layer's input.
    pub dropout: bool,
    /// Name of the head's module in the adapter's file, under `base_model.`.
    pub module: &'static str,
}

/// A trained layer of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadLayer {
    /// As the adapter's file names it, without `.weight` and `.bias`.
    pub name: String,
    /// \[output, input\].
    pub shape: [usize; 2],
    pub bias: bool,
}

impl HeadSpec {
    /// The head of a task on a model. `classes` counts labels; multiple choice and question answering have a fixed number
    /// of columns.
    pub fn new(task: TaskKind, kind: HeadKind, classes: usize, spec: &Specification) -> HeadSpec {
        let score = kind == HeadKind::Score;
        let pooling = match kind {
            HeadKind::Linear if has_pooler(spec) => Pooling::Frozen,
            HeadKind::Linear => Pooling::None,
            HeadKind::Dense => Pooling::Dense,
            HeadKind::Context => Pooling::Context,
            HeadKind::Score => Pooling::None,
        };
        let module = if score { "score" } else { "classifier" };
        let whole = HeadSpec {
            name: None,
            pooling,
            output: Output::Trained,
            columns: classes,
            bias: !score,
            reads: Reads::Sequences,
            grouping: HeadSpec::grouping(task),
            dropout: !score,
            module,
        };
        let tokens = HeadSpec { pooling: Pooling::None, bias: true, reads: Reads::Words, dropout: true, ..whole.clone() };
        match task {
            TaskKind::Classification => whole,
            TaskKind::MultipleChoice => HeadSpec { columns: 1, ..whole },
            TaskKind::Tagging => tokens,
            TaskKind::Qa => HeadSpec { columns: 2, reads: Reads::Tokens, dropout: false, module: "qa_outputs", ..tokens },
            TaskKind::CausalLm => HeadSpec::next_tokens(),
        }
    }

    /// How the logits of a task fall into groups, unless its labels are words.
    pub fn grouping(task: TaskKind) -> Grouping {
        match task {
            TaskKind::Classification | TaskKind::Tagging => Grouping::PerRow,
            TaskKind::MultipleChoice | TaskKind::Qa => Grouping::PerColumn,
            TaskKind::CausalLm => Grouping::PerToken,
        }
    }

    /// The language-model head over its whole vocabulary.
    pub fn next_tokens() -> HeadSpec {
        HeadSpec::frozen(Output::Vocabulary, 0, Grouping::PerToken)
    }

    /// Labels as words of one token each.
    pub fn words(tokens: Vec<u32>, mask: MaskKind) -> HeadSpec {
        let columns = tokens.len();
        let pooling = if mask == MaskKind::Full { Pooling::Masked } else { Pooling::None };
        HeadSpec { pooling, ..HeadSpec::frozen(Output::Words(tokens), columns, Grouping::PerRow) }
    }

    /// Labels as sequences of their own, each with the log-probability of its words as its score.
    pub fn scored_sequences() -> HeadSpec {
        HeadSpec::frozen(Output::Vocabulary, 1, Grouping::PerSequence)
    }

    fn frozen(output: Output, columns: usize, grouping: Grouping) -> HeadSpec {
        let reads = if grouping == Grouping::PerRow { Reads::Sequences } else { Reads::Words };
        HeadSpec { name: None, pooling: Pooling::None, output, columns, bias: false, reads, grouping, dropout: false, module: "" }
    }

    /// The same as one of several heads.
    pub fn named(self, name: &str) -> HeadSpec {
        HeadSpec { name: Some(name.to_string()), ..self }
    }

    /// What stands in front of the names of a head's tensors where an adapter has several.
    pub fn scope(name: &str) -> String {
        format!("heads.{name}.")
    }

    /// Whether anything of the head is trained.
    pub fn is_trained(&self) -> bool {
        self.output == Output::Trained
    }

    /// Whether the head reads every token, so that the last layer computes all of them.
    pub fn reads_every_token(&self) -> bool {
        self.reads == Reads::Tokens
    }

    /// The trained layers, first to last.
    pub fn layers(&self, hidden_size: usize) -> Vec<HeadLayer> {
        if !self.is_trained() {
            return Vec::new();
        }
        let scope = self.name.as_deref().map(HeadSpec::scope).unwrap_or_default();
        let module = format!("{scope}base_model.{}", self.module);
        let layer = |name, outputs, bias| HeadLayer { name, shape: [outputs, hidden_size], bias };
        match self.pooling {
            Pooling::Dense => {
                vec![layer(format!("{module}.dense"), hidden_size, true), layer(format!("{module}.out_proj"), self.columns, self.bias)]
            }
            Pooling::Context => {
                vec![layer(format!("{scope}base_model.pooler.dense"), hidden_size, true), layer(module, self.columns, self.bias)]
            }
            Pooling::None | Pooling::Frozen | Pooling::Masked => vec![layer(module, self.columns, self.bias)],
        }
    }
}
