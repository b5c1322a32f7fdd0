//! Tokenization: texts, pairs, words and windows become token ids, exactly as transformers' fast tokenizers make them
//! (the `tokenizers` crate is their engine; `files` builds it from a model directory).

mod files;
mod sentencepiece;
mod special;

use crate::model::{Readout, Specification};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tokenizers::utils::truncation::{TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings};
use tokenizers::{Encoding, InputSequence, PostProcessor, PostProcessorWrapper, PreTokenizerWrapper, Token, Tokenizer};

/// A sequence as the model reads it, special tokens included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Token types; empty: all 0, or the model has none.
    pub types: Vec<u32>,
    /// Whether tokens were cut off.
    pub truncated: bool,
}

/// A question with a part of its context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    pub ids: Vec<u32>,
    /// Token types; empty: all 0, or the model has none.
    pub types: Vec<u32>,
    /// The context's tokens in `ids`.
    pub context: Range<usize>,
    /// Where each token of `context` begins and ends in the whole context, in Unicode scalar values.
    pub offsets: Vec<(usize, usize)>,
    /// Index of the token that stands for "no answer".
    pub cls_index: usize,
}

/// The tokenizer of a model directory.
pub struct TextTokenizer {
    directory: PathBuf,
    /// Without truncation, padding and special tokens: those are applied here, where their settings are arguments.
    tokenizer: Tokenizer,
    /// The pre-tokenizer of split words, where it differs (byte-level BPE puts a space before each), and the tokenizer
    /// with it, made when it is first asked for.
    word_pre_tokenizer: Option<PreTokenizerWrapper>,
    word_tokenizer: OnceLock<Tokenizer>,
    /// Adds the special tokens.
    processor: PostProcessorWrapper,
    /// Special tokens before and after a single sequence.
    before: Vec<u32>,
    after: Vec<u32>,
    /// What stands for what the vocabulary does not hold.
    unknown: Option<u32>,
    vocabulary: usize,
    /// Rows of the model's token type table; up to one: types play no part.
    token_types: usize,
    readout: Readout,
}

impl TextTokenizer {
    /// Reads the tokenizer of `directory`: tokenizer.json, else vocab.txt (WordPiece), else vocab.json and merges.txt
    /// (byte-level BPE), else sentencepiece.bpe.model (XLM-RoBERTa).
    ///
    /// Errors: none of these, a broken one, and token ids that the model of `spec` has no embedding for.
    pub fn open(directory: &Path, spec: &Specification) -> Result<TextTokenizer> {
        let files::Parts { tokenizer, processor, word_pre_tokenizer, unknown } = files::open(directory, spec)?;
        let (before, after) = specials(&processor).with_context(|| format!("{}: cannot use the tokenizer", directory.display()))?;
        let tokenizer = TextTokenizer {
            directory: directory.to_path_buf(),
            tokenizer,
            word_pre_tokenizer,
            word_tokenizer: OnceLock::new(),
            processor,
            before,
            after,
            unknown,
            vocabulary: spec.vocabulary,
            token_types: spec.token_types,
            readout: spec.readout,
        };
        tokenizer.check(&tokenizer.before)?;
        tokenizer.check(&tokenizer.after)?;
        Ok(tokenizer)
    }

    /// Which token of a sequence a head for whole sequences reads.
    pub fn readout(&self) -> Readout {
        self.readout
    }

    /// A text or a pair with its special tokens. Above `max_length` tokens the longer of the two is cut first.
    pub fn encode_text(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoded> {
        let first = self.encode(text, 0)?;
        let second = pair.map(|pair| self.encode(pair, 1)).transpose()?;
        let room = self.room(second.is_some(), max_length)?;
        let tokens = first.len() + second.as_ref().map_or(0, Encoding::len);
        let (mut first, mut second) = truncate(first, second, room, TruncationStrategy::LongestFirst, 0)?;
        for encoding in [Some(&mut first), second.as_mut()].into_iter().flatten() {
            encoding.set_overflowing(Vec::new());
        }
        let encoding = self.processor.process(first, second, true).map_err(plain)?;
        self.check(encoding.get_ids())?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), types: self.types(&encoding)?, truncated: tokens > room })
    }

    /// The tokens of each word of a sentence, without special tokens. A word of which nothing is left (a lone control
    /// character, an empty string) has none; the caller says what that means.
    pub fn encode_words(&self, words: &[String]) -> Result<Vec<Vec<u32>>> {
        let tokenizer = match &self.word_pre_tokenizer {
            None => &self.tokenizer,
            Some(pre_tokenizer) => self.word_tokenizer.get_or_init(|| {
                let mut tokenizer = self.tokenizer.clone();
                tokenizer.with_pre_tokenizer(Some(pre_tokenizer.clone()));
                tokenizer
            }),
        };
        let sentence: Vec<&str> = words.iter().map(String::as_str).collect();
        let encoding = tokenizer.encode(InputSequence::from(sentence), false).map_err(plain)?;
        self.check(encoding.get_ids())?;
        let mut tokens = vec![Vec::new(); words.len()];
        for (&id, word) in encoding.get_ids().iter().zip(encoding.get_word_ids()) {
            let word = word.context("a token of split words belongs to no word")?;
            tokens[word as usize].push(id);
        }
        Ok(tokens)
    }

    /// The tokens of a part of a text, without special tokens around them.
    pub fn encode_part(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(plain)?;
        self.check(encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens; special ones are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(plain)
    }

    /// The special tokens that are put before a text.
    pub fn tokens_before(&self) -> &[u32] {
        &self.before
    }

    /// The special tokens that are put behind a text.
    pub fn tokens_after(&self) -> &[u32] {
        &self.after
    }

    /// The token that is spelled so.
    pub fn token(&self, name: &str) -> Option<u32> {
        self.tokenizer.token_to_id(name)
    }

    /// Whether any of the tokens stands for what the vocabulary does not hold.
    pub fn has_unknown(&self, ids: &[u32]) -> bool {
        self.unknown.is_some_and(|unknown| ids.contains(&unknown))
    }

    /// The tokens that end a text, the tokenizer's own first. Error: there is none.
    pub fn end_tokens(&self) -> Result<Vec<u32>> {
        special::end_tokens(&self.directory, &self.tokenizer, self.vocabulary)
    }

    /// Adds the special tokens of a single sequence.
    pub fn wrap(&self, ids: Vec<u32>) -> Encoded {
        Encoded { ids: [&self.before, ids.as_slice(), &self.after].concat(), types: Vec::new(), truncated: false }
    }

    /// How many tokens [`TextTokenizer::wrap`] adds.
    pub fn specials_single(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// The special tokens that [`TextTokenizer::wrap`] puts before a sequence.
    pub fn specials_before(&self) -> usize {
        self.before.len()
    }

    /// A question (without the blanks before it) and its context in windows of at most `max_length` tokens. Only the
    /// context is cut; a window repeats the last `stride` context tokens of the one before it.
    pub fn encode_windows(&self, question: &str, context: &str, max_length: usize, stride: usize) -> Result<Vec<Window>> {
        // Python's lstrip: White_Space and the four information separators.
        let question = question.trim_start_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c));
        let (question, context) = (self.encode(question, 0)?, self.encode(context, 1)?);
        let room = self.room(true, max_length)?;
        let questions = question.len();
        if questions + context.len() > room {
            let left = room.saturating_sub(questions);
            ensure!(left > 0, "--max-length {max_length} leaves no room for the context behind a question of {questions} tokens; raise it");
            ensure!(
                stride < left,
                "--doc-stride {stride} is not below the {left} context tokens that --max-length {max_length} leaves behind a question of {questions} tokens; lower the first or raise the second"
            );
        }
        let (question, context) = truncate(question, Some(context), room, TruncationStrategy::OnlySecond, stride)?;
        let mut first = self.processor.process(question, context, true).map_err(plain)?;
        let others = first.take_overflowing();
        std::iter::once(first).chain(others).map(|encoding| self.window(&encoding)).collect()
    }

    fn window(&self, encoding: &Encoding) -> Result<Window> {
        self.check(encoding.get_ids())?;
        let sequences = encoding.get_sequence_ids();
        let inside = |sequence: &Option<usize>| *sequence == Some(1);
        // An empty context has no tokens: an empty range at the end.
        let start = sequences.iter().position(inside).unwrap_or(sequences.len());
        let end = sequences.iter().rposition(inside).map_or(start, |last| last + 1);
        // No answer is the first special token or, where there is none, the first token, as in transformers' scripts.
        let cls_index = match self.before.first() {
            Some(cls) => encoding.get_ids().iter().position(|id| id == cls).context("a window without its first special token")?,
            None => 0,
        };
        Ok(Window {
            ids: encoding.get_ids().to_vec(),
            types: self.types(encoding)?,
            context: start..end,
            offsets: encoding.get_offsets()[start..end].to_vec(),
            cls_index,
        })
    }

    /// Tokens of the first (0) or second (1) text. The processor sets types anew, but not those of overflowing windows.
    fn encode(&self, text: &str, place: u32) -> Result<Encoding> {
        let mut encoding = self.tokenizer.encode_char_offsets(text, false).map_err(plain)?;
        encoding.set_type_ids(vec![place; encoding.len()]);
        Ok(encoding)
    }

    /// Tokens that `max_length` leaves beside the special ones.
    fn room(&self, pair: bool, max_length: usize) -> Result<usize> {
        let added = self.processor.added_tokens(pair);
        ensure!(max_length > added, "--max-length {max_length} leaves no room for text beside {added} special tokens; raise it");
        Ok(max_length - added)
    }

    /// Token types of an encoding; empty where all are 0 or the model has no use for them.
    fn types(&self, encoding: &Encoding) -> Result<Vec<u32>> {
        let types = encoding.get_type_ids();
        if self.token_types <= 1 || types.iter().all(|&kind| kind == 0) {
            return Ok(Vec::new());
        }
        if let Some(kind) = types.iter().find(|&&kind| kind as usize >= self.token_types) {
            bail!(
                "{}: the tokenizer does not belong to the model: its template gives token type {kind}, the model has {}",
                self.directory.display(),
                self.token_types
            );
        }
        Ok(types.to_vec())
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            None => Ok(()),
            Some(&id) => bail!(
                "{}: the tokenizer does not belong to the model: token {:?} has id {id}, the model {} embeddings",
                self.directory.display(),
                self.tokenizer.id_to_token(id).unwrap_or_default(),
                self.vocabulary
            ),
        }
    }
}

fn truncate(
    first: Encoding,
    second: Option<Encoding>,
    room: usize,
    strategy: TruncationStrategy,
    stride: usize,
) -> Result<(Encoding, Option<Encoding>)> {
    let params = TruncationParams { direction: TruncationDirection::Right, max_length: room, strategy, stride };
    truncate_encodings(first, second, &params).map_err(plain)
}

/// The special tokens around a single sequence, seen on a sequence of one token.
fn specials(processor: &PostProcessorWrapper) -> Result<(Vec<u32>, Vec<u32>)> {
    let token = Encoding::from_tokens(vec![Token::new(0, "x".to_string(), (0, 1))], 0);
    let wrapped = processor.process(token, None, true).map_err(plain)?;
    let place = wrapped.get_special_tokens_mask().iter().position(|&special| special == 0).context("special tokens replace the text")?;
    let (before, after) = wrapped.get_ids().split_at(place);
    Ok((before.to_vec(), after[1..].to_vec()))
}

/// The crate's errors, as ours.
fn plain(error: tokenizers::Error) -> anyhow::Error {
    anyhow!("tokenizer: {error}")
}

#[cfg(test)]
mod tests;
