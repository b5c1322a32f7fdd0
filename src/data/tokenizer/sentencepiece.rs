//! SentencePiece model files, as far as XLM-RoBERTa needs them: pieces with their scores and the character map, out of
//! a protocol buffer (sentencepiece_model.proto).

use anyhow::{Context, Result, bail, ensure};

/// The pieces in the order of their ids, and the compiled character map of the normalizer.
pub struct SentencePiece {
    pub pieces: Vec<(String, f64)>,
    pub charsmap: Vec<u8>,
}

// Field numbers of sentencepiece_model.proto.
const MODEL_PIECES: u64 = 1;
const MODEL_TRAINER: u64 = 2;
const MODEL_NORMALIZER: u64 = 3;
const PIECE_TEXT: u64 = 1;
const PIECE_SCORE: u64 = 2;
const PIECE_TYPE: u64 = 3;
const TRAINER_MODEL_TYPE: u64 = 3;
const TRAINER_BYTE_FALLBACK: u64 = 35;
const NORMALIZER_CHARSMAP: u64 = 2;

const UNIGRAM: u64 = 1;
const USER_DEFINED: u64 = 4;

impl SentencePiece {
    /// Errors: not such a file, another algorithm than unigram, another layout than XLM-RoBERTa's.
    pub fn read(bytes: &[u8]) -> Result<SentencePiece> {
        let mut model = SentencePiece { pieces: Vec::new(), charsmap: Vec::new() };
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next().context("not a SentencePiece model")? {
            match (field, value) {
                (MODEL_PIECES, Value::Bytes(piece)) => {
                    let piece = read_piece(piece).with_context(|| format!("piece {}", model.pieces.len()))?;
                    model.pieces.push(piece);
                }
                (MODEL_TRAINER, Value::Bytes(trainer)) => check_trainer(trainer)?,
                (MODEL_NORMALIZER, Value::Bytes(normalizer)) => {
                    let mut fields = Fields(normalizer);
                    while let Some((field, value)) = fields.next().context("the normalizer")? {
                        if let (NORMALIZER_CHARSMAP, Value::Bytes(map)) = (field, value) {
                            model.charsmap = map.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        let first: Vec<&str> = model.pieces.iter().take(3).map(|(text, _)| text.as_str()).collect();
        ensure!(
            first == ["<unk>", "<s>", "</s>"],
            "not XLM-RoBERTa's: its first pieces are <unk>, <s>, </s>, here {first:?}; add a tokenizer.json"
        );
        Ok(model)
    }
}

fn read_piece(bytes: &[u8]) -> Result<(String, f64)> {
    let (mut text, mut score) = (None, 0.0);
    let mut fields = Fields(bytes);
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (PIECE_TEXT, Value::Bytes(bytes)) => text = Some(std::str::from_utf8(bytes).context("not UTF-8")?.to_string()),
            (PIECE_SCORE, Value::Word(bits)) => score = f64::from(f32::from_bits(bits)),
            (PIECE_TYPE, Value::Number(USER_DEFINED)) => bail!("user-defined pieces are not supported; add a tokenizer.json"),
            _ => {}
        }
    }
    Ok((text.context("has no text")?, score))
}

fn check_trainer(bytes: &[u8]) -> Result<()> {
    let mut fields = Fields(bytes);
    while let Some((field, value)) = fields.next().context("the training settings")? {
        match (field, value) {
            (TRAINER_MODEL_TYPE, Value::Number(kind)) if kind != UNIGRAM => bail!("not a unigram model; add a tokenizer.json"),
            (TRAINER_BYTE_FALLBACK, Value::Number(1)) => bail!("byte fallback is not supported; add a tokenizer.json"),
            _ => {}
        }
    }
    Ok(())
}

enum Value<'a> {
    Number(u64),
    Word(u32),
    Long,
    Bytes(&'a [u8]),
}

/// The fields of a protocol buffer message, in their order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next field's number and value, None at the end.
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => {
                self.bytes(8)?;
                Value::Long
            }
            2 => {
                let length = self.number()?;
                Value::Bytes(self.bytes(length)?)
            }
            5 => {
                let bytes = self.bytes(4)?;
                Value::Word(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            other => bail!("unknown wire type {other}"),
        };
        Ok(Some((tag >> 3, value)))
    }

    /// A variable-length integer: seven bits a byte, the lowest first.
    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        bail!("a number of more than 64 bits")
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8]> {
        let length = usize::try_from(length).ok().filter(|&length| length <= self.0.len()).context("the file ends early")?;
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(bytes)
    }
}
