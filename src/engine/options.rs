//! What is to be trained, on what, and how large a batch may be.

use crate::checkpoint::WeightFormat;
use crate::data::{FeatureSet, Grouping};
use crate::model::{HeadSpec, Positions, Specification};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The per-layer prefixes (the released code's `prefix_encoder.py` and `get_prompt`).
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixOptions {
    /// Positions of the prefix; 0 trains the head alone.
    pub length: usize,
    /// Layers that have a prefix, ascending, from 0. None: it is a prompt, of embeddings in front of the input alone.
    pub layers: Vec<usize>,
    /// Hidden size of the two-layer tanh MLP that makes the prefix; None: the prefix itself is trained.
    pub projection: Option<usize>,
    /// Whether token positions start at the prefix length.
    pub shifted: bool,
    /// Dropout rate of prefix keys and values.
    pub dropout: f64,
}

/// Tokens that a text has at least: special ones and a few words. No remedy leaves room for less.
const LEAST_TEXT: usize = 8;

impl PrefixOptions {
    /// Layers with a prefix; none where its length is 0.
    pub fn active_layers(&self) -> &[usize] {
        if self.length == 0 { &[] } else { &self.layers }
    }

    /// Rows that a prompt puts in front of each sequence; 0 where it is a prefix.
    pub fn prompt(&self) -> usize {
        if self.layers.is_empty() { self.length } else { 0 }
    }

    /// Positions of a prefix in attention; 0 where it is a prompt, whose rows are tokens to it.
    pub fn in_attention(&self) -> usize {
        self.length - self.prompt()
    }

    /// What is added to token positions; those behind a prompt are counted with it.
    pub fn shift(&self) -> usize {
        if self.shifted { self.length } else { self.prompt() }
    }

    /// The longest sequence that the model has positions for behind prefix or prompt.
    pub fn room(&self, spec: &Specification) -> usize {
        spec.longest_sequence(self.shift() - self.prompt()).saturating_sub(self.prompt())
    }

    /// The longest sequence that [`PrefixOptions::check_positions`] takes.
    pub fn longest(&self, spec: &Specification) -> usize {
        spec.window.map_or(usize::MAX, |window| window.saturating_sub(self.length)).min(self.room(spec))
    }

    /// A batch's largest, with a prompt in front of each sequence.
    pub fn widened(&self, capacity: Capacity) -> Capacity {
        let prompt = self.prompt();
        Capacity { tokens: capacity.tokens + prompt * capacity.sequences, longest: capacity.longest + prompt, ..capacity }
    }

    /// Refuses a prefix and sequences that the model has no positions for, or that its window does not span; says what
    /// would fit.
    pub fn check_positions(&self, spec: &Specification, longest: usize) -> Result<()> {
        if let Some(window) = spec.window.filter(|&window| self.length + longest > window) {
            let remedy = match window.checked_sub(self.length) {
                None | Some(0) => format!("a prefix of less than {window}"),
                Some(room) => format!("--max-length {room}"),
            };
            bail!(
                "a prefix of {} and the longest sequence of {longest} tokens exceed the model's sliding window of {window}, which is not supported: use {remedy}",
                self.length
            );
        }
        let table = match spec.positions {
            Positions::Learned { .. } => "the model's position table holds",
            Positions::Rotary(_) => "the model's max_position_embeddings is",
            Positions::TwoDimensional { .. } => "the model's max_sequence_length is",
            Positions::Relative { .. } => return Ok(()),
        };
        let shift = self.shift();
        let room = self.room(spec);
        if longest <= room {
            return Ok(());
        }
        let whole = spec.longest_sequence(0);
        if shift == 0 {
            bail!("the longest sequence has {longest} tokens, {table} {whole}: use --max-length {whole}");
        }
        let mut remedies = Vec::new();
        if room >= LEAST_TEXT {
            remedies.push(format!("--max-length {room}"));
        }
        if longest < whole {
            remedies.push(format!("--prefix-length {}", whole - longest));
        }
        if longest <= whole && self.prompt() == 0 {
            remedies.push("--positions unshifted".to_string());
        }
        if remedies.is_empty() {
            remedies.push(format!("a shorter prefix and --max-length of at most {whole}"));
        }
        bail!(
            "a prefix of {shift} and the longest sequence of {longest} tokens need {} positions, {table} {whole}: use {}",
            shift + longest,
            remedies.join(" or ")
        );
    }

    /// [P, columns] of the flat table: \[layer\]\[key, value\]\[head\]\[dim\], or the embeddings of a prompt.
    pub fn table_shape(&self, spec: &Specification) -> [usize; 2] {
        if self.prompt() > 0 {
            return [self.length, spec.embedding_size];
        }
        [self.length, self.layers.len() * 2 * spec.kv_size()]
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    pub prefix: PrefixOptions,
    /// One a data set: a batch goes through one of them, by its place in this list.
    pub heads: Vec<HeadSpec>,
    /// Rate in the frozen model and before the head's last layer.
    pub hidden_dropout: f64,
    /// Rate on attention probabilities.
    pub attention_dropout: f64,
    pub seed: u64,
    pub memory: MemoryMode,
    /// How the layers' matrices are kept. No memory mode: 8 bits change what is computed.
    pub weight_format: WeightFormat,
}

impl EngineOptions {
    /// Without dropout, in the plainest memory mode, with weights of 16 bits.
    pub fn new(prefix: PrefixOptions, heads: Vec<HeadSpec>) -> EngineOptions {
        let (memory, weight_format) = (MemoryMode::default(), WeightFormat::default());
        EngineOptions { prefix, heads, hidden_dropout: 0.0, attention_dropout: 0.0, seed: 0, memory, weight_format }
    }
}

/// How time is spent to save memory. No mode changes a bit of what is computed, given the same micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMode {
    pub recompute: Recompute,
    pub weights: Residency,
    /// Whether what stands for the layers' inputs waits for the backward in host memory; only where layers are made again.
    pub offload: bool,
    /// Micro-batches of a step that go through a layer before the next layer comes (layer-major): each layer's weights are
    /// streamed once for all of them.
    pub together: usize,
}

impl Default for MemoryMode {
    fn default() -> MemoryMode {
        MemoryMode { recompute: Recompute::None, weights: Residency::Resident, offload: false, together: 1 }
    }
}

/// `layer`; `layer+offloaded`, `layer+streamed` or both where activations are offloaded or weights streamed; of one
/// micro-batch at a time.
impl FromStr for MemoryMode {
    type Err = String;

    fn from_str(text: &str) -> Result<MemoryMode, String> {
        let known = MemoryMode::every().find(|mode| mode.to_string() == text);
        known.ok_or_else(|| format!("`{text}` is no mode; write none, up-projection, layer or layer+offloaded, and +streamed behind it"))
    }
}

impl fmt::Display for MemoryMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offloaded = if self.offload { "+offloaded" } else { "" };
        let weights = if self.weights == Residency::Resident { String::new() } else { format!("+{}", self.weights.name()) };
        write!(formatter, "{}{offloaded}{weights}", self.recompute.name())
    }
}

/// Where the layers' weights live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Residency {
    /// In the arena, or in their files where the backend reads those.
    #[default]
    Resident,
    /// In host memory; two layers at a time are in the arena.
    Streamed,
    /// As streamed, but where they are stored as they are used in the checkpoint's mapped files, which need not fit into host
    /// memory.
    Disk,
}

impl Residency {
    /// As options name it.
    pub fn name(self) -> &'static str {
        match self {
            Residency::Resident => "resident",
            Residency::Streamed => "streamed",
            Residency::Disk => "disk",
        }
    }
}

impl MemoryMode {
    /// In words, for the log.
    pub fn describe(self) -> String {
        let offloaded = if self.offload { ", activations offloaded" } else { "" };
        let together = if self.together > 1 { format!(", {} micro-batches a layer", self.together) } else { String::new() };
        format!("recompute {}{offloaded}, weights {}{together}", self.recompute.name(), self.weights.name())
    }

    /// Those that a budget chooses from, one micro-batch at a time: all but those that read files in each step, whose speed
    /// nothing here knows.
    pub fn every() -> impl Iterator<Item = MemoryMode> {
        [Residency::Resident, Residency::Streamed].into_iter().flat_map(MemoryMode::of)
    }

    /// Those whose weights live in one place, one micro-batch at a time.
    pub fn of(weights: Residency) -> impl Iterator<Item = MemoryMode> {
        let kept = [(Recompute::None, false), (Recompute::UpProjection, false), (Recompute::Layer, false), (Recompute::Layer, true)];
        kept.into_iter().map(move |(recompute, offload)| MemoryMode { recompute, weights, offload, together: 1 })
    }
}

/// What the backward makes again instead of the forward keeping it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    #[default]
    None,
    /// The output of each layer's up-projection.
    UpProjection,
    /// All of a layer but its down-projection, from its input.
    Layer,
}

impl Recompute {
    /// As options name it.
    pub fn name(self) -> &'static str {
        match self {
            Recompute::None => "none",
            Recompute::UpProjection => "up-projection",
            Recompute::Layer => "layer",
        }
    }
}

/// Initial values of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixInit {
    /// N(0, 0.02), as the released code effectively starts.
    Normal,
    /// Zero keys and values (for a projection: its last layer).
    Zero,
}

/// The largest batch that the plan has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub tokens: usize,
    pub sequences: usize,
    /// Tokens of the longest sequence, without prefix.
    pub longest: usize,
    /// Rows that the head reads.
    pub rows: usize,
    /// Logit groups.
    pub groups: usize,
    /// Rows whose logits over the vocabulary exist at a time; 0: as many as a fixed number of bytes holds.
    pub logit_rows: usize,
    /// Tokens that are generated behind each sequence at most; 0: none, and no key/value cache.
    pub generated: usize,
    /// Whether a backward runs.
    pub training: bool,
}

impl Capacity {
    /// Room for any `batch_size` features of a set: the sums of the largest ones.
    pub fn for_items(set: &FeatureSet, head: &HeadSpec, batch_size: usize, training: bool) -> Capacity {
        let largest = |of: &dyn Fn(usize) -> usize| {
            let mut sizes: Vec<usize> = (0..set.features.len()).map(of).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            sizes.iter().take(batch_size).sum()
        };
        Capacity {
            tokens: largest(&|feature| set.tokens(feature)),
            sequences: largest(&|feature| set.features[feature].sequences),
            longest: set.longest_sequence(),
            rows: largest(&|feature| set.rows(feature)),
            groups: match head.grouping {
                Grouping::PerRow => largest(&|feature| set.rows(feature)),
                Grouping::PerColumn | Grouping::PerSequence => head.columns * batch_size.min(set.features.len()),
                Grouping::PerToken => 0,
            },
            logit_rows: 0,
            generated: 0,
            training,
        }
    }

    /// Room for either.
    pub fn union(self, other: Capacity) -> Capacity {
        Capacity {
            tokens: self.tokens.max(other.tokens),
            sequences: self.sequences.max(other.sequences),
            longest: self.longest.max(other.longest),
            rows: self.rows.max(other.rows),
            groups: self.groups.max(other.groups),
            logit_rows: self.logit_rows.max(other.logit_rows),
            generated: self.generated.max(other.generated),
            training: self.training || other.training,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_names() {
        for name in ["none", "up-projection", "layer+streamed", "layer+offloaded", "layer+offloaded+streamed"] {
            assert_eq!(name.parse::<MemoryMode>().unwrap().to_string(), name);
        }
        assert!("layers".parse::<MemoryMode>().unwrap_err().contains("up-projection"));
    }

    fn spec(table: usize, first: usize) -> Specification {
        Specification { positions: Positions::Learned { table, first, padding_id: None }, ..Specification::tiny() }
    }

    fn check(length: usize, shifted: bool, longest: usize) -> Result<()> {
        let prefix = PrefixOptions { length, layers: vec![0, 1], projection: None, shifted, dropout: 0.0 };
        prefix.check_positions(&spec(514, 2), longest)
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

    #[test]
    fn prefix_and_text_must_fit_a_sliding_window() {
        let check = |length: usize, shifted: bool, longest: usize| {
            let prefix = PrefixOptions { length, layers: vec![0, 1], projection: None, shifted, dropout: 0.0 };
            prefix.check_positions(&Specification { window: Some(100), ..spec(514, 0) }, longest)
        };
        assert!(check(20, true, 80).is_ok() && check(20, false, 80).is_ok() && check(0, true, 100).is_ok());
        for shifted in [true, false] {
            let message = check(20, shifted, 81).unwrap_err().to_string();
            assert!(message.contains("sliding window of 100") && message.contains("--max-length 80"), "{message}");
        }
        assert!(check(120, true, 1).unwrap_err().to_string().contains("a prefix of less than 100"));
    }
}
