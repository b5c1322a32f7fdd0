//! Cloze classification: the text marks a blank with [MASK], and the label is the one whose words fill it best. Nothing
//! of the head is trained: a label of one token is scored by the language-model head's row of that token, labels of
//! several tokens by the sum of their log-probabilities, each label as a sequence of its own (ptuning-v2.md §5.2).
//!
//! GLM reads [CLS] text <|endoftext|> <|startofpiece|> and fills the blank from there, wherever it is in the text. A
//! causal model knows only what stands before the blank, so it must be at the end of the text; spaces in front of it
//! are left out, because words bring their own.
//!
//! Where a text is too long, what stands behind the blank is cut from the end, then what stands before it from the
//! beginning.

use super::encoding::{EncodedExample, Limits};
use super::labels::Labels;
use super::wrong_content;
use crate::data::{Content, Example, Sequence, TextTokenizer};
use crate::model::{MaskKind, Specification, TaskKind};
use anyhow::{Context, Result, bail, ensure};

/// How a text marks the blank.
const BLANK: &str = "[MASK]";
/// What GLM's answers begin behind.
const START: &str = "<|startofpiece|>";

/// The words of the labels as tokens, in order of the labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verbalizer {
    words: Vec<String>,
    tokens: Vec<Vec<u32>>,
    /// Of GLM: the token of the blank and the one that the answer begins behind.
    marks: Option<[u32; 2]>,
}

impl Verbalizer {
    /// Errors: a model that is no language model; words without tokens, with unknown tokens, or the same for two labels.
    pub fn new(labels: &[String], words: &[String], tokenizer: &TextTokenizer, spec: &Specification) -> Result<Verbalizer> {
        let marks = match spec.mask {
            MaskKind::Full => bail!(
                "--verbalizer needs a language model (GLM, or a causal one); {} has no head that predicts words here: leave it out to train a head",
                spec.family
            ),
            MaskKind::Causal => None,
            MaskKind::Separator => {
                let mark =
                    |name: &str| tokenizer.token(name).with_context(|| format!("the tokenizer has no token {name}, which a cloze needs"));
                Some([mark(BLANK)?, mark(START)?])
            }
        };
        let mut tokens: Vec<Vec<u32>> = Vec::with_capacity(words.len());
        for (label, word) in labels.iter().zip(words) {
            let own = tokenizer.encode_part(word)?;
            ensure!(!own.is_empty(), "--verbalizer: the word {word:?} of the label {label:?} has no token");
            if tokenizer.has_unknown(&own) {
                bail!("--verbalizer: the tokenizer does not know the word {word:?} of the label {label:?}; choose another");
            }
            if let Some(other) = tokens.iter().position(|other| *other == own) {
                bail!("--verbalizer: the labels {:?} and {label:?} have the same tokens; give them different words", labels[other]);
            }
            tokens.push(own);
        }
        Ok(Verbalizer { words: words.to_vec(), tokens, marks })
    }

    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The token of each label, where every label is one.
    pub fn single_tokens(&self) -> Option<Vec<u32>> {
        self.tokens.iter().map(|tokens| if let &[token] = tokens.as_slice() { Some(token) } else { None }).collect()
    }

    /// Tokens in front of the answer, by the text's own: (ids, index of the blank, whether something was cut).
    fn frame(&self, text: &str, tokenizer: &TextTokenizer, room: usize) -> Result<(Vec<u32>, Option<u32>, bool)> {
        let (before, after) = (tokenizer.tokens_before(), tokenizer.tokens_after());
        let Some((known, behind)) = text.rsplit_once(BLANK) else {
            bail!("the text has no {BLANK}, which marks where the label's word stands; write it into the text");
        };
        let Some([blank, start]) = self.marks else {
            ensure!(
                behind.trim().is_empty(),
                "the {BLANK} must be at the end of the text, because a causal model does not see what follows"
            );
            let mut ids = tokenizer.encode_part(known.trim_end())?;
            let cut = (before.len() + ids.len()).saturating_sub(room);
            ensure!(cut < ids.len() || !before.is_empty() && cut == ids.len(), "nothing stands in front of the {BLANK}");
            ids.drain(..cut);
            return Ok(([before, ids.as_slice()].concat(), None, cut > 0));
        };
        let mut ids = tokenizer.encode_part(text)?;
        let at = ids.iter().rposition(|&id| id == blank).context("the tokenizer does not keep [MASK] as one token")?;
        let excess = (before.len() + ids.len() + after.len() + 1).saturating_sub(room);
        let cut_behind = excess.min(ids.len() - 1 - at);
        ids.truncate(ids.len() - cut_behind);
        ids.drain(..excess - cut_behind);
        let at = before.len() + at - (excess - cut_behind);
        Ok(([before, ids.as_slice(), after, &[start]].concat(), Some(at as u32), excess > 0))
    }

    /// One sequence, or one a label where any has several tokens.
    pub(super) fn encode(&self, example: &Example, labels: &Labels, tokenizer: &TextTokenizer, limits: &Limits) -> Result<EncodedExample> {
        let Content::Text { text, pair, label } = &example.content else { return wrong_content(example, TaskKind::Classification) };
        if pair.is_some() {
            bail!("{}: a cloze reads one text; put both into it, with {BLANK} where the label's word stands", example.place);
        }
        let targets = match label {
            Some(label) => vec![labels.resolve(label, &example.place, TaskKind::Classification)? as i32],
            None => Vec::new(),
        };
        let longest = self.tokens.iter().map(Vec::len).max().unwrap_or(1);
        let least = tokenizer.tokens_before().len() + tokenizer.tokens_after().len() + 1 + longest;
        let limit = limits.max_length;
        ensure!(
            limit >= least,
            "--max-length {limit} leaves no room for a text beside the {BLANK} and its words; raise it to {least} at least"
        );
        let (ids, blank, cut) = self.frame(text, tokenizer, limit - (longest - 1)).with_context(|| example.place.clone())?;
        let first = ids.len() as u32 - 1;
        let frame = Sequence { ids, separator: if blank.is_some() { first } else { 0 }, blank, ..Sequence::default() };
        let sequences = if self.single_tokens().is_some() {
            vec![Sequence { readout: vec![first], ..frame }]
        } else {
            self.tokens.iter().map(|tokens| filled(&frame, first, tokens)).collect()
        };
        Ok(EncodedExample::single(sequences, targets, cut))
    }
}

/// A label's sequence: all of its tokens are to be predicted, and all but the last are read.
fn filled(frame: &Sequence, first: u32, tokens: &[u32]) -> Sequence {
    let mut sequence = frame.clone();
    sequence.ids.extend_from_slice(&tokens[..tokens.len() - 1]);
    sequence.readout = (first..first + tokens.len() as u32).collect();
    sequence.predicts = tokens.to_vec();
    sequence
}
