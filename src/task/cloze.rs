//! Cloze classification: the text marks a blank with [MASK], and the label is the one whose words fill it best. Nothing
//! of the head is trained: a label of one token is scored by the language-model head's row of that token, labels of
//! several tokens by the sum of their log-probabilities, each label as a sequence of its own (the single- and multi-token cloze of THUDM/GLM's `model/downstream.py`).
//!
//! GLM reads [CLS] text <|endoftext|> <|startofpiece|> and fills the blank from there, wherever it is in the text. A
//! causal model knows only what stands before the blank, so it must be at the end of the text; spaces in front of it
//! are left out, because words bring their own. An encoder with a masked-language-model head reads the text with its own
//! mask token at the blank, which stands for one token: so words are of one token each.
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
/// How tokenizers of encoders spell the token of a blank.
const MASKS: [&str; 2] = [BLANK, "<mask>"];

/// The words of the labels as tokens, in order of the labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verbalizer {
    words: Vec<String>,
    tokens: Vec<Vec<u32>>,
    reader: Reader,
}

/// How a model reads a text with a blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// What stands in front of the blank.
    Causal,
    /// GLM: the token of the blank, and the one that the answer begins behind.
    Separator { blank: u32, start: u32 },
    /// The whole text, with a token at the blank that its word is read from.
    Masked { mask: u32, spelled: &'static str },
}

impl Reader {
    fn of(mask: MaskKind, tokenizer: &TextTokenizer) -> Result<Reader> {
        Ok(match mask {
            MaskKind::Causal => Reader::Causal,
            MaskKind::Separator => {
                let mark =
                    |name: &str| tokenizer.token(name).with_context(|| format!("the tokenizer has no token {name}, which a cloze needs"));
                Reader::Separator { blank: mark(BLANK)?, start: mark(START)? }
            }
            MaskKind::Full => {
                let known = MASKS.into_iter().find_map(|spelled| Some((spelled, tokenizer.token(spelled)?)));
                let (spelled, mask) = known.context("the tokenizer has no mask token ([MASK] or <mask>), which a cloze needs")?;
                Reader::Masked { mask, spelled }
            }
        })
    }

    /// The tokens that a text gets beside the words' own, and what a word needs at least.
    fn overhead(self, tokenizer: &TextTokenizer, longest: usize) -> usize {
        let specials = tokenizer.tokens_before().len() + tokenizer.tokens_after().len();
        match self {
            Reader::Masked { .. } => specials + 1,
            _ => specials + 1 + longest,
        }
    }
}

/// A text with its blank, as tokens.
struct Frame {
    ids: Vec<u32>,
    /// Index of the token at which the first token of the word is predicted.
    reads: u32,
    /// Of GLM: index of the blank.
    blank: Option<u32>,
    cut: bool,
}

/// Cuts `excess` tokens: what stands behind the token at `kept`, then what stands before it. Returns the token's new index.
fn cut_around(ids: &mut Vec<u32>, kept: usize, excess: usize) -> usize {
    let behind = excess.min(ids.len() - 1 - kept);
    ids.truncate(ids.len() - behind);
    ids.drain(..excess - behind);
    kept - (excess - behind)
}

impl Verbalizer {
    /// Errors: a tokenizer without the tokens that mark a blank; words without tokens, with unknown tokens, of several tokens
    /// where the blank is one, or the same for two labels.
    pub fn new(labels: &[String], words: &[String], tokenizer: &TextTokenizer, spec: &Specification) -> Result<Verbalizer> {
        let reader = Reader::of(spec.mask, tokenizer)?;
        let mut tokens: Vec<Vec<u32>> = Vec::with_capacity(words.len());
        for (label, word) in labels.iter().zip(words) {
            let own = tokenizer.encode_part(word)?;
            ensure!(!own.is_empty(), "--verbalizer: the word {word:?} of the label {label:?} has no token");
            if tokenizer.has_unknown(&own) {
                bail!("--verbalizer: the tokenizer does not know the word {word:?} of the label {label:?}; choose another");
            }
            if let (Reader::Masked { .. }, count @ 2..) = (reader, own.len()) {
                bail!(
                    "--verbalizer: the word {word:?} of the label {label:?} has {count} tokens; the blank of a masked language model is one: choose a word of one token"
                );
            }
            if let Some(other) = tokens.iter().position(|other| *other == own) {
                bail!("--verbalizer: the labels {:?} and {label:?} have the same tokens; give them different words", labels[other]);
            }
            tokens.push(own);
        }
        Ok(Verbalizer { words: words.to_vec(), tokens, reader })
    }

    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The token of each label, where every label is one.
    pub fn single_tokens(&self) -> Option<Vec<u32>> {
        self.tokens.iter().map(|tokens| if let &[token] = tokens.as_slice() { Some(token) } else { None }).collect()
    }

    /// The text's tokens within `room`, special ones included.
    fn frame(&self, text: &str, tokenizer: &TextTokenizer, room: usize) -> Result<Frame> {
        let (before, after) = (tokenizer.tokens_before(), tokenizer.tokens_after());
        let Some((known, behind)) = text.rsplit_once(BLANK) else {
            bail!("the text has no {BLANK}, which marks where the label's word stands; write it into the text");
        };
        match self.reader {
            Reader::Causal => {
                ensure!(
                    behind.trim().is_empty(),
                    "the {BLANK} must be at the end of the text, because a causal model does not see what follows"
                );
                let mut ids = tokenizer.encode_part(known.trim_end())?;
                let cut = (before.len() + ids.len()).saturating_sub(room);
                ensure!(cut < ids.len() || !before.is_empty() && cut == ids.len(), "nothing stands in front of the {BLANK}");
                ids.drain(..cut);
                let ids = [before, ids.as_slice()].concat();
                Ok(Frame { reads: ids.len() as u32 - 1, ids, blank: None, cut: cut > 0 })
            }
            Reader::Separator { blank, start } => {
                let mut ids = tokenizer.encode_part(text)?;
                let at = ids.iter().rposition(|&id| id == blank).context("the tokenizer does not keep [MASK] as one token")?;
                let excess = (before.len() + ids.len() + after.len() + 1).saturating_sub(room);
                let at = before.len() + cut_around(&mut ids, at, excess);
                let ids = [before, ids.as_slice(), after, &[start]].concat();
                Ok(Frame { reads: ids.len() as u32 - 1, ids, blank: Some(at as u32), cut: excess > 0 })
            }
            Reader::Masked { mask, spelled } => {
                let mut ids = tokenizer.encode_part(&text.replace(BLANK, spelled))?;
                let at =
                    ids.iter().position(|&id| id == mask).with_context(|| format!("the tokenizer does not keep {spelled} as one token"))?;
                let blanks = ids.iter().filter(|&&id| id == mask).count();
                ensure!(blanks == 1, "the text has {blanks} blanks ({spelled}), of which one word fills one; keep one");
                let excess = (before.len() + ids.len() + after.len()).saturating_sub(room);
                let at = before.len() + cut_around(&mut ids, at, excess);
                Ok(Frame { ids: [before, ids.as_slice(), after].concat(), reads: at as u32, blank: None, cut: excess > 0 })
            }
        }
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
        let (limit, least) = (limits.max_length, self.reader.overhead(tokenizer, longest));
        ensure!(
            limit >= least,
            "--max-length {limit} leaves no room for a text beside the {BLANK} and its words; raise it to {least} at least"
        );
        let Frame { ids, reads, blank, cut } = self.frame(text, tokenizer, limit - (longest - 1)).with_context(|| example.place.clone())?;
        let frame = Sequence { ids, separator: if blank.is_some() { reads } else { 0 }, blank, ..Sequence::default() };
        let sequences = if self.single_tokens().is_some() {
            vec![Sequence { readout: vec![reads], ..frame }]
        } else {
            self.tokens.iter().map(|tokens| filled(&frame, reads, tokens)).collect()
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
