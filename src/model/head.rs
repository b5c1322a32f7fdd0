//! Tasks, and the head that each puts on the frozen model (ptuning-v2.md §2.6).

use super::spec::{SequenceState, Specification};
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
}

/// The head for sequences: the released code's, or the one of transformers' RoBERTa classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// The model's frozen pooler (where its family has one), then one trained linear layer.
    Linear,
    /// A trained dense layer, tanh and a trained output layer; the pooler is not used.
    Dense,
}

/// What stands between the rows that a head reads and its output layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    None,
    /// tanh(W h + b) with the model's frozen pooler.
    Frozen,
    /// The same with a trained dense layer.
    Dense,
}

/// Which tokens' final states a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// One of every sequence.
    One,
    /// Those that have a target.
    Some,
    /// Every one, so that the last layer computes all of them.
    Every,
}

/// The last layer of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Trained, with `columns` outputs.
    Trained,
    /// The frozen language-model head's rows of these tokens; nothing is trained.
    Words(Vec<u32>),
    /// The frozen language-model head: every row that is read is to predict a token. Its logits never exist all at once,
    /// so there are no columns.
    Vocabulary,
}

/// A head as the engine builds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadSpec {
    pub pooling: Pooling,
    pub output: Output,
    pub reads: Reads,
    /// Outputs of the last layer.
    pub columns: usize,
    pub grouping: Grouping,
    /// Whether hidden dropout acts on the last layer's input.
    pub dropout: bool,
    /// Name of the head's module in the adapter's file, under `base_model.`.
    pub module: &'static str,
}

impl HeadSpec {
    /// The head of a task on a model. `classes` counts labels; multiple choice and question answering have a fixed number
    /// of columns.
    pub fn new(task: TaskKind, kind: HeadKind, classes: usize, spec: &Specification) -> HeadSpec {
        let pooling = match (kind, spec.sequence_state) {
            (HeadKind::Dense, _) => Pooling::Dense,
            (HeadKind::Linear, SequenceState::Pooled) => Pooling::Frozen,
            (HeadKind::Linear, SequenceState::First) => Pooling::None,
        };
        let (pooling, columns, reads, dropout, module) = match task {
            TaskKind::Classification => (pooling, classes, Reads::One, true, "classifier"),
            TaskKind::MultipleChoice => (pooling, 1, Reads::One, true, "classifier"),
            TaskKind::Tagging => (Pooling::None, classes, Reads::Some, true, "classifier"),
            TaskKind::Qa => (Pooling::None, 2, Reads::Every, false, "qa_outputs"),
            TaskKind::CausalLm => return HeadSpec::next_tokens(),
        };
        HeadSpec { pooling, output: Output::Trained, reads, columns, grouping: HeadSpec::grouping(task), dropout, module }
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
    pub fn words(tokens: Vec<u32>) -> HeadSpec {
        let columns = tokens.len();
        HeadSpec::frozen(Output::Words(tokens), columns, Grouping::PerRow)
    }

    /// Labels as sequences of their own, each with the log-probability of its words as its score.
    pub fn scored_sequences() -> HeadSpec {
        HeadSpec::frozen(Output::Vocabulary, 1, Grouping::PerSequence)
    }

    fn frozen(output: Output, columns: usize, grouping: Grouping) -> HeadSpec {
        let reads = if grouping == Grouping::PerRow { Reads::One } else { Reads::Some };
        HeadSpec { pooling: Pooling::None, output, reads, columns, grouping, dropout: false, module: "" }
    }

    /// Whether anything of the head is trained.
    pub fn is_trained(&self) -> bool {
        self.output == Output::Trained
    }

    /// Whether the head reads every token, so that the last layer computes all of them.
    pub fn reads_every_token(&self) -> bool {
        self.reads == Reads::Every
    }

    /// Names and [output, input] of the trained layers, first to last, as the adapter's file names them without
    /// `.weight` and `.bias`.
    pub fn layers(&self, hidden_size: usize) -> Vec<(String, [usize; 2])> {
        if !self.is_trained() {
            return Vec::new();
        }
        let module = format!("base_model.{}", self.module);
        match self.pooling {
            Pooling::Dense => {
                vec![(format!("{module}.dense"), [hidden_size, hidden_size]), (format!("{module}.out_proj"), [self.columns, hidden_size])]
            }
            Pooling::None | Pooling::Frozen => vec![(module, [self.columns, hidden_size])],
        }
    }
}
