//! What every run does before its first step: read, encode, and check that everything fits together.

use super::memory::grouped;
use super::terminal::Terminal;
use crate::checkpoint::{Adapter, FrozenModel, POOLER};
use crate::data::{Columns, Content, Example, TextTokenizer, read_examples};
use crate::engine::PrefixOptions;
use crate::model::{HeadKind, Pooling, Specification, TaskKind};
use crate::task::{Encoding, Limits, Task, labels_for};
use anyhow::{Result, bail};
use std::path::Path;
use std::time::Instant;

/// Examples and their encoding.
pub struct Split {
    pub examples: Vec<Example>,
    pub encoding: Encoding,
}

/// Reads a data file and encodes it; says what it found.
pub struct Reader<'a> {
    pub kind: TaskKind,
    pub columns: Columns,
    pub limits: Limits,
    pub tokenizer: &'a TextTokenizer,
    pub terminal: &'a Terminal,
}

impl Reader<'_> {
    /// The examples of a file; an error where there are none.
    pub fn read(&self, path: &Path) -> Result<Vec<Example>> {
        let examples = read_examples(path, self.kind, &self.columns)?;
        if examples.is_empty() {
            bail!("{}: there is no example in this file", path.display());
        }
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

/// Whether an example is a question that its context does not answer.
pub fn is_unanswerable(example: &Example) -> bool {
    matches!(&example.content, Content::Question { answers: Some(answers), .. } if answers.is_empty())
}

/// Names of the classes: the adapter's own, or those of the model's config.json or of the data.
/// An adapter's head must have one output for each.
pub fn labels(kind: TaskKind, examples: &[Example], spec: &Specification, adapter: Option<&Adapter>) -> Result<Vec<String>> {
    if matches!(kind, TaskKind::MultipleChoice | TaskKind::Qa) {
        return Ok(Vec::new());
    }
    let Some(adapter) = adapter else { return labels_for(kind, examples, spec) };
    if let Some(labels) = &adapter.metadata.labels {
        return Ok(labels.clone());
    }
    let outputs = head_outputs(kind, adapter.metadata.head, spec, adapter);
    let labels = match outputs {
        // Nothing names the classes: they are called as transformers calls them.
        Some(outputs) if spec.labels.is_none() && !examples.iter().any(|example| example.content.is_labelled()) => {
            (0..outputs).map(|index| format!("LABEL_{index}")).collect()
        }
        _ => labels_for(kind, examples, spec)?,
    };
    if let Some(outputs) = outputs.filter(|&outputs| outputs != labels.len()) {
        bail!(
            "the adapter's head has {outputs} outputs, but {} labels are known ({}); give the model's config.json the id2label of the adapter",
            labels.len(),
            labels.join(", ")
        );
    }
    Ok(labels)
}

/// Rows of the last layer of an adapter's head.
fn head_outputs(kind: TaskKind, head: HeadKind, spec: &Specification, adapter: &Adapter) -> Option<usize> {
    let (name, _) = crate::model::HeadSpec::new(kind, head, 1).layers(spec.hidden_size).pop()?;
    adapter.tensors.get(&format!("{name}.weight")).map(|tensor| tensor.shape[0])
}

/// Refuses a prefix and sequences that the position table does not hold; says what would fit.
pub fn check_positions(spec: &Specification, prefix: &PrefixOptions, longest: usize) -> Result<()> {
    let shift = if prefix.shifted { prefix.length } else { 0 };
    let room = spec.longest_sequence(shift);
    if longest <= room {
        return Ok(());
    }
    let whole = spec.longest_sequence(0);
    if shift == 0 {
        bail!("the longest sequence has {longest} tokens, the model's position table holds {whole}: use --max-length {whole}");
    }
    let mut remedies = Vec::new();
    if room > 0 {
        remedies.push(format!("--max-length {room}"));
    }
    if longest < whole {
        remedies.push(format!("--prefix-length {}", whole - longest));
    }
    if longest <= whole {
        remedies.push("--positions unshifted".to_string());
    }
    if remedies.is_empty() {
        remedies.push(format!("a shorter prefix and --max-length of at most {whole}"));
    }
    bail!(
        "a prefix of {shift} and the longest sequence of {longest} tokens need {} positions, the model's position table holds {whole}: use {}",
        shift + longest,
        remedies.join(" or ")
    );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Activation, NormKind};
    use crate::model::{NormPlace, Positions};

    fn spec(table: usize, first: usize) -> Specification {
        Specification {
            family: "roberta".into(),
            layers: 2,
            layer_weights: vec![0, 1],
            hidden_size: 4,
            embedding_size: 4,
            heads: 2,
            kv_heads: 2,
            head_dim: 2,
            ffn_size: 8,
            vocabulary: 10,
            token_types: 1,
            positions: Positions::Learned { table, first, padding_id: None },
            norm: NormKind::LayerNorm,
            norm_place: NormPlace::Post,
            norm_epsilon: 1e-5,
            embedding_norm: true,
            final_norm: false,
            activation: Activation::GeluErf,
            linear_bias: true,
            hidden_dropout: 0.1,
            attention_dropout: 0.1,
            initializer_range: 0.02,
            labels: None,
        }
    }

    fn check(length: usize, shifted: bool, longest: usize) -> Result<()> {
        let prefix = PrefixOptions { length, layers: vec![0, 1], projection: None, shifted, dropout: 0.0 };
        check_positions(&spec(514, 2), &prefix, longest)
    }

    #[test]
    fn prefix_and_text_must_fit_the_position_table() {
        assert!(check(20, true, 492).is_ok() && check(20, false, 512).is_ok());
        let message = check(20, true, 493).unwrap_err().to_string();
        for part in ["need 513 positions", "holds 512", "--max-length 492", "--prefix-length 19", "--positions unshifted"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(!check(20, true, 512).unwrap_err().to_string().contains("--prefix-length"));
        assert!(check(0, true, 513).unwrap_err().to_string().contains("--max-length 512"));
        assert!(check(600, true, 600).unwrap_err().to_string().contains("a shorter prefix"));
    }
}
