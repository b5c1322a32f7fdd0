//! Causal language modelling: a prompt and the response that is to follow it. The model reads
//! [BOS] prompt response EOS, prompt and response encoded apart; BOS is what the tokenizer puts before a text. The loss
//! is on the response's tokens and EOS.
//!
//! A sequence longer than the limit loses the beginning of its prompt first (never BOS, and never the last token in
//! front of the response), and then the end of its response, EOS with it, so that nothing is taught to end where the
//! limit ends.

use super::encoding::{EncodedExample, Limits};
use super::prediction::{Outcome, Prediction, Scores};
use super::wrong_content;
use crate::data::{Content, Example, Sequence, TextTokenizer};
use crate::model::TaskKind;
use anyhow::{Context, Result, bail, ensure};

/// What stands around prompt and response.
pub(super) struct Frame<'a> {
    tokenizer: &'a TextTokenizer,
    before: &'a [u32],
    end: u32,
    max_length: usize,
}

impl<'a> Frame<'a> {
    /// Errors: a tokenizer without a token that ends a text; a limit that leaves no room.
    pub fn new(tokenizer: &'a TextTokenizer, limits: &Limits) -> Result<Frame<'a>> {
        let (before, max_length) = (tokenizer.tokens_before(), limits.max_length);
        let least = before.len() + 2;
        ensure!(max_length >= least, "--max-length {max_length} leaves no room for a prompt and a response; raise it to {least} at least");
        Ok(Frame { tokenizer, before, end: tokenizer.end_tokens()?[0], max_length })
    }

    /// The prompt, and the response where there is one and it is wanted. Rows that predict the response's tokens are read; of a prompt
    /// alone the last.
    pub fn encode(&self, example: &Example, with_response: bool) -> Result<EncodedExample> {
        let Content::Prompt { prompt, response } = &example.content else { return wrong_content(example, TaskKind::CausalLm) };
        let place = || example.place.clone();
        let mut prompt = self.tokenizer.encode_part(prompt).with_context(place)?;
        let mut response = match response.as_ref().filter(|_| with_response) {
            Some(response) => {
                let mut tokens = self.tokenizer.encode_part(response).with_context(place)?;
                tokens.push(self.end);
                tokens
            }
            None => Vec::new(),
        };
        if prompt.is_empty() && self.before.is_empty() {
            bail!("{}: an empty prompt, and the tokenizer puts no token before a text: there is nothing to predict from", example.place);
        }
        let room = self.max_length - self.before.len();
        let excess = (prompt.len() + response.len()).saturating_sub(room);
        // Something must stand in front of the response.
        let kept = usize::from(self.before.is_empty());
        let cut = excess.min(prompt.len() - kept.min(prompt.len()));
        prompt.drain(..cut);
        response.truncate(response.len() - (excess - cut));
        let ids = [self.before, prompt.as_slice(), response.as_slice()].concat();
        let first = (ids.len() - response.len().max(1)) as u32 - u32::from(!response.is_empty());
        let sequence = Sequence { readout: (first..first + response.len().max(1) as u32).collect(), ids, ..Sequence::default() };
        let targets = response.iter().map(|&token| token as i32).collect();
        Ok(EncodedExample::single(vec![sequence], targets, excess > 0))
    }
}

/// Log-probability of a response, and how many of its tokens are the likeliest ones, of the pairs that the engine gives
/// for its rows.
fn sums(values: &[f32]) -> (f64, f64) {
    values.chunks_exact(2).fold((0.0, 0.0), |(log, hits), pair| (log + f64::from(pair[0]), hits + f64::from(pair[1])))
}

/// Sum of the log-probabilities of an example's response.
pub(super) fn log_probability(prediction: &Prediction) -> f32 {
    prediction.features.clone().map(|feature| sums(&prediction.logits[feature]).0).sum::<f64>() as f32
}

/// Share of response tokens that are the likeliest, and perplexity: exp of the mean loss.
pub(super) fn score(predictions: &[Prediction]) -> Scores {
    let (mut log, mut hits, mut tokens) = (0.0, 0.0, 0usize);
    for prediction in predictions {
        for feature in prediction.features.clone() {
            let values = &prediction.logits[feature];
            let (own_log, own_hits) = sums(values);
            (log, hits, tokens) = (log + own_log, hits + own_hits, tokens + values.len() / 2);
        }
    }
    let mean = |sum: f64| if tokens == 0 { 0.0 } else { sum / tokens as f64 };
    Scores::new([("token_accuracy", mean(hits)), ("perplexity", mean(-log).exp())])
}

/// Before the text is generated.
pub(super) fn predict() -> Outcome {
    Outcome::Continuation(None)
}
