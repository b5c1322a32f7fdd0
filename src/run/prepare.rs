//! What every run does before its first step: read, encode, and check that everything fits together.

use super::memory::grouped;
use super::terminal::Terminal;
use super::values::{LabelWords, PrefixStart};
use crate::checkpoint::{Adapter, FrozenModel, POOLER};
use crate::data::{Columns, Content, Example, TagScheme, TextTokenizer, read_examples, scheme_of, to_iob2};
use crate::model::{HeadKind, MaskKind, Pooling, Specification, TaskKind};
use crate::task::{Encoding, Limits, Task, TaskName, labels_for, labels_of_head, misplaced, require_labels};
use crate::usage;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Instant;

/// Examples and their encoding.
pub struct Split {
    pub examples: Vec<Example>,
    pub encoding: Encoding,
}

/// Reads a data file and encodes it; says what it found.
pub struct Reader<'a> {
    pub task: TaskName,
    /// By which a named task's inputs are built.
    pub template: usize,
    pub columns: Columns,
    pub limits: Limits,
    pub tokenizer: &'a TextTokenizer,
    pub terminal: &'a Terminal,
}

impl Reader<'_> {
    /// The examples of a file; an error where there are none.
    pub fn read(&self, path: &Path) -> Result<Vec<Example>> {
        let examples = match self.task {
            TaskName::Kind(kind) => read_examples(path, kind, &self.columns)?,
            TaskName::Named(task) => {
                let official = task.read(path, self.template, &self.columns)?;
                if official.skipped > 0 {
                    self.terminal.warn(format!(
                        "{}: {} rows lack fields and are left out",
                        path.display(),
                        grouped(official.skipped as u64)
                    ));
                }
                official.examples
            }
        };
        if examples.is_empty() && self.columns.choice.is_none() {
            bail!("{}: there is no example in this file", path.display());
        }
        Ok(examples)
    }

    /// The same, of which every one must be labelled for a purpose; says where answers do not stand where they are said to.
    pub fn read_labelled(&self, path: &Path, purpose: &'static str) -> Result<Vec<Example>> {
        let columns = Columns { labels_for: Some(purpose), ..self.columns.clone() };
        let examples = Reader { columns, ..*self }.read(path)?;
        require_labels(&examples, purpose)?;
        misplaced(&examples).into_iter().for_each(|warning| self.terminal.warn(warning));
        Ok(examples)
    }

    /// Encodes examples, on all threads.
    pub fn encode(&self, what: &str, task: &Task, examples: Vec<Example>) -> Result<Split> {
        let started = Instant::now();
        let encoding = task.encode(&examples, self.tokenizer, &self.limits)?;
        let set = &encoding.set;
        let windows = match set.features.len() {
            features if features == examples.len() => String::new(),
            features => format!(", {} windows", grouped(features as u64)),
        };
        let tokens: usize = set.sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let truncated = match encoding.truncated {
            0 => String::new(),
            count => format!(", {} cut to --max-length {}", grouped(count as u64), self.limits.max_length),
        };
        self.terminal.line(format!(
            "{what}: {} examples{windows}, {} tokens, longest sequence {}{truncated} ({:.1} s)",
            grouped(examples.len() as u64),
            grouped(tokens as u64),
            set.longest_sequence(),
            started.elapsed().as_secs_f64()
        ));
        Ok(Split { examples, encoding })
    }
}

/// Turns tags that spell spans into IOB2, where the labels that are known already are not of another scheme: what is given
/// holds, else what the tags show. The scheme that they had; None where they are left as they are.
pub fn learn_as_iob2(
    examples: &mut [Example],
    given: Option<TagScheme>,
    known: Option<&[String]>,
    terminal: &Terminal,
) -> Result<Option<TagScheme>> {
    let of_another = |label: &String| ["E-", "S-", "L-", "U-"].iter().any(|letter| label.starts_with(letter));
    if known.is_some_and(|labels| labels.iter().any(of_another)) {
        return Ok(None);
    }
    let Some(scheme) = given.or_else(|| scheme_of(examples)) else { return Ok(None) };
    if given.is_some() || scheme != TagScheme::Iob2 {
        to_iob2(examples, scheme).with_context(|| "--tag-scheme names another")?;
    }
    if scheme != TagScheme::Iob2 {
        terminal.line(format!("tags: {}, learned as IOB2", scheme.name()));
    }
    Ok(Some(scheme))
}

/// The tokens that a prefix starts from: the text with the special tokens that stand in front of one; None where it does
/// not start from a text.
pub fn prefix_text(start: &PrefixStart, tokenizer: &TextTokenizer) -> Result<Option<Vec<u32>>> {
    let text = match start {
        PrefixStart::Normal | PrefixStart::Zero => return Ok(None),
        PrefixStart::Text(text) => text.clone(),
        PrefixStart::File(path) => {
            std::fs::read_to_string(path).with_context(|| format!("--prefix-init {start}: cannot read the file as text"))?
        }
    };
    let tokens = [tokenizer.tokens_before(), &tokenizer.encode_part(&text)?].concat();
    if tokens.is_empty() {
        usage!("--prefix-init {start}: the text has no token");
    }
    Ok(Some(tokens))
}

/// Whether an example is a question that its context does not answer.
pub fn is_unanswerable(example: &Example) -> bool {
    matches!(&example.content, Content::Question { answers: Some(answers), .. } if answers.is_empty())
}

/// Whether the model has the head that scores words.
pub fn check_words(model: &FrozenModel, words: Option<&LabelWords>) -> Result<()> {
    match words.filter(|_| model.spec.mask == MaskKind::Full) {
        Some(_) => model.masked_head().map(|_| ()),
        None => Ok(()),
    }
}

/// Names of the classes: those of the verbalizer, of the adapter to start from, of the named task, or of the model's
/// config.json or the data.
pub fn labels(
    name: TaskName,
    examples: &[Example],
    spec: &Specification,
    adapter: Option<&Adapter>,
    words: Option<&LabelWords>,
    terminal: &Terminal,
) -> Result<Vec<String>> {
    let kind = name.kind();
    if matches!(kind, TaskKind::MultipleChoice | TaskKind::Qa | TaskKind::CausalLm) {
        return Ok(Vec::new());
    }
    if let Some(words) = words {
        return Ok(words.labels.clone());
    }
    let own = name.named().map(|task| task.labels).filter(|labels| !labels.is_empty());
    let own = own.map(|labels| labels.iter().map(|label| label.to_string()).collect::<Vec<_>>());
    let Some(adapter) = adapter else { return own.map_or_else(|| labels_for(kind, examples, spec), Ok) };
    if let Some(labels) = &adapter.metadata.labels {
        return Ok(labels.clone());
    }
    if let Some(own) = own.filter(|own| head_outputs(kind, adapter.metadata.head, spec, adapter) == Some(own.len())) {
        return Ok(own);
    }
    let outputs = head_outputs(kind, adapter.metadata.head, spec, adapter).context("the adapter holds no head for this task")?;
    if outputs < 2 {
        bail!("the adapter's head has one output, which is a score of a choice: give --task multiple-choice");
    }
    let labels = labels_of_head(outputs, examples, spec);
    if spec.labels.as_ref() != Some(&labels) {
        terminal.warn(format!(
            "neither the adapter nor the model's config.json names the classes; taken to be, in this order: {}",
            labels.join(", ")
        ));
    }
    Ok(labels)
}

/// Rows of the last layer of an adapter's head.
fn head_outputs(kind: TaskKind, head: HeadKind, spec: &Specification, adapter: &Adapter) -> Option<usize> {
    let last = crate::model::HeadSpec::new(kind, head, 1, spec).layers(spec.hidden_size).pop()?;
    adapter.tensors.get(&format!("{}.weight", last.name)).map(|tensor| tensor.shape[0])
}

/// What is to be said about the pooler that a head stands on, where the model has none.
pub fn pooler_note(model: &FrozenModel, pooling: Pooling, adapter: Option<&Adapter>) -> Option<&'static str> {
    if pooling != Pooling::Frozen || model.has_pooler() {
        return None;
    }
    let stored = adapter.is_some_and(|adapter| adapter.tensors.contains_key(&format!("{POOLER}.weight")));
    Some(if stored {
        "the model has no pooler: the one stored with the adapter is used"
    } else {
        "the model has no pooler: a frozen random one is made from --seed and stored with the adapter (or choose --head dense)"
    })
}
