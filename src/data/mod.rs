//! From files to packed batches: readers, tokenization, features, batches, the order of an epoch.

mod batch;
mod feature;
mod order;
mod read;
mod scheme;
mod tokenizer;

pub use batch::{Batch, Packing, RowArrays};
pub use feature::{Feature, FeatureSet, Grouping, Sequence};
pub use order::epoch_order;
#[cfg(test)]
pub(crate) use read::mutated;
pub use read::{Choice, Columns, Expand, Layout, Official, Record, column_names, official_examples, read_examples};
pub(crate) use read::{cell_label, describe, label, objects, string, take};
pub use scheme::{TagScheme, scheme_of, to_iob2};
pub use tokenizer::{Encoded, TextTokenizer, Window};

/// A label as the data spells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// A JSON number: an index into the label list where that has names, else its own name.
    Index(i64),
    /// A string, a CSV field, or a JSON boolean as "true" / "false".
    Name(String),
}

/// What becomes of a sentence that is longer than a sequence may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LongSentences {
    /// It is read in as many parts as it needs, so that every word gets a tag of its own.
    #[default]
    Split,
    /// What does not fit is not read, and its words are outside of everything.
    Truncate,
}

/// An answer of a question: its text and where it starts in the context, in characters (Unicode scalar values).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub text: String,
    pub start: usize,
}

/// One example of a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Text {
        text: String,
        pair: Option<String>,
        label: Option<Label>,
    },
    Choices {
        text: String,
        choices: Vec<String>,
        label: Option<usize>,
    },
    Words {
        words: Vec<String>,
        tags: Option<Vec<Label>>,
        /// The word whose arguments the tags are, of semantic role labelling.
        predicate: Option<usize>,
    },
    /// `response` None: it is to be generated.
    Prompt {
        prompt: String,
        response: Option<String>,
    },
    /// `answers` None: unlabelled; empty: unanswerable.
    Question {
        id: String,
        question: String,
        context: String,
        answers: Option<Vec<Answer>>,
    },
}

impl Content {
    /// Whether it carries what it is scored by.
    pub fn is_labelled(&self) -> bool {
        match self {
            Content::Text { label, .. } => label.is_some(),
            Content::Choices { label, .. } => label.is_some(),
            Content::Words { tags, .. } => tags.is_some(),
            Content::Prompt { response, .. } => response.is_some(),
            Content::Question { answers, .. } => answers.is_some(),
        }
    }

    /// Leaves out what it is scored by.
    pub fn remove_label(&mut self) {
        match self {
            Content::Text { label, .. } => *label = None,
            Content::Choices { label, .. } => *label = None,
            Content::Words { tags, .. } => *tags = None,
            Content::Prompt { response, .. } => *response = None,
            Content::Question { answers, .. } => *answers = None,
        }
    }
}

/// What an official file says of an example beside what the model reads: for submissions, and for scores of questions
/// that several examples stand for, one a candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its number in the file; in nested files the numbers of all levels, outermost first.
    pub id: Vec<i64>,
    /// Whether it is another candidate of the question that the example before it belongs to.
    pub continues: bool,
    /// Text of the candidate that it stands for.
    pub candidate: Option<String>,
    /// Texts that are right answers of its question.
    pub answers: Vec<String>,
}

/// An example and where it was read from, for error messages ("data.jsonl, line 7").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub content: Content,
    pub place: String,
    /// Number of its record in the file, from 1; 0 in files without records.
    pub record: usize,
    /// Of examples of a named task.
    pub origin: Option<Origin>,
}

impl Example {
    pub fn new(content: Content, place: String) -> Example {
        Example { content, place, record: 0, origin: None }
    }
}
