//! From the files of a model directory to a tokenizer: which file is read, and which settings of
//! `tokenizer_config.json` stand above it, as in transformers.

use super::plain;
use super::sentencepiece::SentencePiece;
use crate::model::Specification;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};
use std::path::Path;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, Precompiled};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PostProcessor, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

/// A tokenizer taken apart: it neither cuts, pads nor adds special tokens; the processor does the last.
pub struct Parts {
    pub tokenizer: Tokenizer,
    pub processor: PostProcessorWrapper,
    /// For words that are already split, where that is another one.
    pub word_pre_tokenizer: Option<PreTokenizerWrapper>,
    /// The token for what the vocabulary does not hold.
    pub unknown: Option<u32>,
}

const CONFIG: &str = "tokenizer_config.json";
const CLASS: &str = "tokenizer_class";

/// The family of models with a vocabulary of GPT-2's and these tokens of its own behind it, in the order of their ids
/// (THUDM/GLM's tokenizer).
const GLM: &str = "glm";
const GLM_TOKENS: [&str; 9] =
    ["<|endoftext|>", "<|startofpiece|>", "<|endofpiece|>", "[CLS]", "[MASK]", "[SEP]", "[UNK]", "[gMASK]", "[sMASK]"];

pub fn open(directory: &Path, spec: &Specification) -> Result<Parts> {
    let config = Config::read(directory)?;
    let has = |name: &str| directory.join(name).is_file();
    let (mut tokenizer, name) = if has("tokenizer.json") {
        (whole(directory, &config, spec)?, "tokenizer.json")
    } else if has("vocab.txt") {
        (word_piece(directory, &config)?, "vocab.txt")
    } else if has("vocab.json") && has("merges.txt") {
        (byte_level(directory, &config, spec)?, "vocab.json")
    } else if has("sentencepiece.bpe.model") {
        (sentence_piece(directory, &config, spec)?, "sentencepiece.bpe.model")
    } else {
        bail!(
            "{}: no tokenizer; expected tokenizer.json, vocab.txt, vocab.json with merges.txt, or sentencepiece.bpe.model",
            directory.display()
        )
    };
    tokenizer.with_truncation(None).map_err(plain)?.with_padding(None);
    let file = directory.join(name);
    let processor = match tokenizer.get_post_processor() {
        // GLM's class puts special tokens around a text whatever its files say.
        Some(processor) if spec.family != GLM || processor.added_tokens(false) > 0 => processor.clone(),
        _ => family_processor(&tokenizer, &config, &spec.family).with_context(|| file.display().to_string())?,
    };
    tokenizer.with_post_processor(None::<PostProcessorWrapper>);
    // Not where a pattern splits the text first, as in Llama 3 and Qwen: each of its pieces would get a space.
    let word_pre_tokenizer = match tokenizer.get_pre_tokenizer() {
        Some(pre_tokenizer @ PreTokenizerWrapper::ByteLevel(_)) => with_prefix_space(pre_tokenizer, true)?,
        _ => None,
    };
    let unknown = match config.optional_token("unk_token")? {
        Some(token) => tokenizer.token_to_id(&token),
        None => ["[UNK]", "<unk>"].iter().find_map(|token| tokenizer.token_to_id(token)),
    };
    Ok(Parts { tokenizer, processor, word_pre_tokenizer, unknown })
}

/// tokenizer.json, and what tokenizer_config.json says differently: transformers' BERT and RoBERTa classes give its
/// settings to the normalizer and the pre-tokenizer, Llama's adds the special tokens that it says. A setting that is not
/// written there leaves tokenizer.json alone.
fn whole(directory: &Path, config: &Config, spec: &Specification) -> Result<Tokenizer> {
    let path = directory.join("tokenizer.json");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| anyhow!("{}: not a tokenizer: {error}", path.display()))?;
    if config.is_class("Bert", &spec.family, &["bert"])
        && let Some(normalizer) = tokenizer.get_normalizer()
    {
        let mut json = serde_json::to_value(normalizer)?;
        if json["type"] == "BertNormalizer" {
            for (setting, field) in
                [("do_lower_case", "lowercase"), ("tokenize_chinese_chars", "handle_chinese_chars"), ("strip_accents", "strip_accents")]
            {
                if config.settings.contains_key(setting) {
                    json[field] = config.flag(setting)?.map_or(Value::Null, Value::Bool);
                }
            }
            let normalizer: BertNormalizer = from_json(&json).with_context(|| format!("{}: {CONFIG}", directory.display()))?;
            tokenizer.with_normalizer(Some(normalizer)).map_err(plain)?;
        }
    }
    let byte_level = [("Roberta", "roberta"), ("Deberta", "deberta"), ("GPT2", "gpt2")];
    if byte_level.iter().any(|(class, family)| config.is_class(class, &spec.family, &[*family]))
        && let Some(space) = config.flag("add_prefix_space")?
    {
        let changed = tokenizer.get_pre_tokenizer().map(|pre_tokenizer| with_prefix_space(pre_tokenizer, space)).transpose()?.flatten();
        if let Some(pre_tokenizer) = changed {
            tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
        }
        if let Some(PostProcessorWrapper::Roberta(processor)) = tokenizer.get_post_processor() {
            let processor = processor.clone().add_prefix_space(space);
            tokenizer.with_post_processor(Some(processor));
        }
    }
    if config.is_class("Llama", "", &[]) {
        let processor = llama_processor(&tokenizer, config).with_context(|| path.display().to_string())?;
        tokenizer.with_post_processor(Some(processor));
    }
    Ok(tokenizer)
}

/// BERT's WordPiece: a token a line, its id the number of the line.
fn word_piece(directory: &Path, config: &Config) -> Result<Tokenizer> {
    config.expect_class(&["Bert", "DistilBert", "Electra"], "vocab.txt")?;
    let path = directory.join("vocab.txt");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let vocabulary: Map<String, Value> = text.lines().enumerate().map(|(id, token)| (token.to_string(), Value::from(id))).collect();
    let unknown = config.token("unk_token", "[UNK]")?;
    let json = serde_json::json!({
        "type": "WordPiece",
        "vocab": vocabulary,
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    });
    let model: WordPiece = from_json(&json).with_context(|| format!("{}: not a vocabulary", path.display()))?;
    let lower = config.flag("do_lower_case")?.unwrap_or(true);
    let chinese = config.flag("tokenize_chinese_chars")?.unwrap_or(true);
    let normalizer = BertNormalizer::new(true, chinese, config.flag("strip_accents")?, lower);
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(normalizer)).map_err(plain)?.with_pre_tokenizer(Some(BertPreTokenizer));
    let names = [("pad_token", "[PAD]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]"), ("mask_token", "[MASK]")];
    let mut specials = vec![AddedToken::from(unknown, true)];
    for (name, default) in names {
        specials.push(AddedToken::from(config.token(name, default)?, true));
    }
    config.add_other_tokens(&mut tokenizer, directory)?;
    add_special_tokens(&mut tokenizer, specials)?;
    let processor = family_processor(&tokenizer, config, "bert").with_context(|| path.display().to_string())?;
    tokenizer.with_post_processor(Some(processor));
    Ok(tokenizer)
}

/// Byte-level BPE: RoBERTa's, GPT-2's, GLM's, or DeBERTa's with BERT's special tokens.
fn byte_level(directory: &Path, config: &Config, spec: &Specification) -> Result<Tokenizer> {
    let glm = spec.family == GLM;
    config.expect_class(if glm { &["GLMGPT2", "GPT2"] } else { &["Roberta", "Deberta", "GPT2"] }, "vocab.json")?;
    let deberta = !glm && config.is_class("Deberta", &spec.family, &["deberta"]);
    let gpt2 = !glm && config.is_class("GPT2", &spec.family, &["gpt2"]);
    let path = directory.join("vocab.json");
    let merges = directory.join("merges.txt");
    let name = |path: &Path| path.to_str().map(str::to_string).with_context(|| format!("{}: the path is not UTF-8", path.display()));
    let model = BPE::from_file(&name(&path)?, &name(&merges)?)
        .build()
        .map_err(|error| anyhow!("{}: not a vocabulary with the merges of merges.txt: {error}", path.display()))?;
    let mut tokenizer = Tokenizer::new(model);
    let space = config.flag("add_prefix_space")?.unwrap_or(false);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(space)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    config.add_other_tokens(&mut tokenizer, directory)?;
    let family = if glm {
        tokenizer.add_special_tokens(GLM_TOKENS.map(|token| AddedToken::from(token, true))).map_err(plain)?;
        GLM
    } else if gpt2 {
        let end = AddedToken::from(config.token("eos_token", "<|endoftext|>")?, true);
        add_special_tokens(&mut tokenizer, vec![end])?;
        "gpt2"
    } else if deberta {
        add_deberta_tokens(&mut tokenizer, config)?;
        "deberta"
    } else {
        add_roberta_tokens(&mut tokenizer, config)?;
        "roberta"
    };
    let processor = family_processor(&tokenizer, config, family).with_context(|| path.display().to_string())?;
    tokenizer.with_post_processor(Some(processor));
    Ok(tokenizer)
}

/// XLM-RoBERTa's unigram model. Ids are fairseq's: four tokens of its own first, then the pieces behind
/// SentencePiece's three, then the mask.
fn sentence_piece(directory: &Path, config: &Config, spec: &Specification) -> Result<Tokenizer> {
    let path = directory.join("sentencepiece.bpe.model");
    ensure!(spec.family == "xlm-roberta", "{}: read for xlm-roberta only; {} needs a tokenizer.json", path.display(), spec.family);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let SentencePiece { pieces, charsmap } = SentencePiece::read(&bytes).with_context(|| path.display().to_string())?;
    let own = [("bos_token", "<s>"), ("pad_token", "<pad>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];
    let mut vocabulary = Vec::with_capacity(pieces.len() + 2);
    for (name, default) in own {
        vocabulary.push((config.token(name, default)?, 0.0));
    }
    vocabulary.extend(pieces.into_iter().skip(3));
    vocabulary.push((config.token("mask_token", "<mask>")?, 0.0));
    let model = Unigram::from(vocabulary, Some(3), false).map_err(plain)?;
    let mut tokenizer = Tokenizer::new(model);
    if !charsmap.is_empty() {
        let normalizer = Precompiled::from(&charsmap).map_err(|error| anyhow!("{}: broken character map: {error:?}", path.display()))?;
        tokenizer.with_normalizer(Some(normalizer)).map_err(plain)?;
    }
    let metaspace = Metaspace::new('▁', PrependScheme::Always, true);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), metaspace.into()])));
    config.add_other_tokens(&mut tokenizer, directory)?;
    add_roberta_tokens(&mut tokenizer, config)?;
    let processor = family_processor(&tokenizer, config, "xlm-roberta").with_context(|| path.display().to_string())?;
    tokenizer.with_post_processor(Some(processor));
    Ok(tokenizer)
}

fn add_roberta_tokens(tokenizer: &mut Tokenizer, config: &Config) -> Result<()> {
    let names = [
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("unk_token", "<unk>"),
        ("sep_token", "</s>"),
        ("pad_token", "<pad>"),
        ("cls_token", "<s>"),
    ];
    let mut tokens = Vec::new();
    for (name, default) in names {
        let token = config.token(name, default)?;
        if tokens.iter().all(|known: &AddedToken| known.content != token) {
            tokens.push(AddedToken::from(token, true));
        }
    }
    // The mask takes the space before it along.
    tokens.push(AddedToken::from(config.token("mask_token", "<mask>")?, true).lstrip(true));
    add_special_tokens(tokenizer, tokens)
}

fn add_deberta_tokens(tokenizer: &mut Tokenizer, config: &Config) -> Result<()> {
    let mut tokens = Vec::new();
    for (name, default) in [("pad_token", "[PAD]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]"), ("unk_token", "[UNK]")] {
        tokens.push(AddedToken::from(config.token(name, default)?, true));
    }
    tokens.push(AddedToken::from(config.token("mask_token", "[MASK]")?, true).lstrip(true));
    add_special_tokens(tokenizer, tokens)
}

/// Adds those that the vocabulary has. (One that matters and is missing is noticed where it is used.)
fn add_special_tokens(tokenizer: &mut Tokenizer, mut tokens: Vec<AddedToken>) -> Result<()> {
    tokens.retain(|token| {
        tokenizer.token_to_id(&token.content).is_some() && !tokenizer.get_added_vocabulary().is_special_token(&token.content)
    });
    tokenizer.add_special_tokens(tokens).map_err(plain)?;
    Ok(())
}

/// The special tokens of a family, for files that do not carry them.
fn family_processor(tokenizer: &Tokenizer, config: &Config, family: &str) -> Result<PostProcessorWrapper> {
    let special = |name: &str, default: &str| -> Result<(String, u32)> {
        let token = config.token(name, default)?;
        let id = tokenizer.token_to_id(&token).with_context(|| format!("the special token {token:?} is not in it"))?;
        Ok((token, id))
    };
    Ok(match family {
        "bert" | "deberta" => {
            let (cls, sep) = (special("cls_token", "[CLS]")?, special("sep_token", "[SEP]")?);
            let single = format!("{}:0 $A:0 {}:0", cls.0, sep.0);
            let pair = format!("{}:0 $A:0 {1}:0 $B:1 {1}:1", cls.0, sep.0);
            template(&single, &pair, vec![cls, sep])?
        }
        "roberta" => {
            let space = match tokenizer.get_pre_tokenizer() {
                Some(PreTokenizerWrapper::ByteLevel(pre_tokenizer)) => pre_tokenizer.add_prefix_space,
                _ => false,
            };
            let trim = config.flag("trim_offsets")?.unwrap_or(true);
            let (sep, cls) = (special("sep_token", "</s>")?, special("cls_token", "<s>")?);
            RobertaProcessing::new(sep, cls).trim_offsets(trim).add_prefix_space(space).into()
        }
        "xlm-roberta" => {
            let (cls, sep) = (special("cls_token", "<s>")?, special("sep_token", "</s>")?);
            let single = format!("{} $A {}", cls.0, sep.0);
            let pair = format!("{} $A {1} {1} $B {1}", cls.0, sep.0);
            template(&single, &pair, vec![cls, sep])?
        }
        GLM => {
            let (cls, end) = (special("cls_token", "[CLS]")?, special("eos_token", "<|endoftext|>")?);
            let single = format!("{} $A {}", cls.0, end.0);
            let pair = format!("{} $A {1} $B {1}", cls.0, end.0);
            template(&single, &pair, vec![cls, end])?
        }
        // None at all; offsets keep the space before a word.
        "gpt2" | "qwen2" | "qwen3" => ByteLevel::default().trim_offsets(false).into(),
        "llama" | "mistral" => llama_processor(tokenizer, config)?,
        other => bail!("the tokenizer adds no special tokens (no post_processor), and none are known for {other}"),
    })
}

/// Begin and end of a text as the settings say: by default the begin alone.
fn llama_processor(tokenizer: &Tokenizer, config: &Config) -> Result<PostProcessorWrapper> {
    let (mut around, mut specials) = ([String::new(), String::new()], Vec::new());
    for (side, (flag, default), (name, token)) in
        [(0, ("add_bos_token", true), ("bos_token", "<s>")), (1, ("add_eos_token", false), ("eos_token", "</s>"))]
    {
        if config.flag(flag)?.unwrap_or(default) {
            let token = config.token(name, token)?;
            let id = tokenizer.token_to_id(&token).with_context(|| format!("the special token {token:?} is not in it"))?;
            around[side] = token.clone();
            specials.push((token, id));
        }
    }
    let [begin, end] = &around;
    let part = |text: &str, kind: usize| {
        let special = |token: &String| if token.is_empty() { String::new() } else { format!("{token}:{kind}") };
        format!("{} ${text}:{kind} {}", special(begin), special(end)).trim().to_string()
    };
    template(&part("A", 0), &format!("{} {}", part("A", 0), part("B", 1)), specials)
}

fn template(single: &str, pair: &str, specials: Vec<(String, u32)>) -> Result<PostProcessorWrapper> {
    let mut builder = TemplateProcessing::builder();
    builder.try_single(single).map_err(|error| anyhow!("{error}"))?;
    builder.try_pair(pair).map_err(|error| anyhow!("{error}"))?;
    Ok(builder.special_tokens(specials).build()?.into())
}

/// The pre-tokenizer with every byte-level part's `add_prefix_space` set; None where that changes nothing.
fn with_prefix_space(pre_tokenizer: &PreTokenizerWrapper, space: bool) -> Result<Option<PreTokenizerWrapper>> {
    fn set(json: &mut Value, space: bool) -> bool {
        match json {
            Value::Array(parts) => parts.iter_mut().fold(false, |changed, part| set(part, space) | changed),
            Value::Object(part) if part.get("type").is_some_and(|kind| kind == "ByteLevel") => {
                part.insert("add_prefix_space".to_string(), Value::Bool(space)) != Some(Value::Bool(space))
            }
            Value::Object(part) => part.values_mut().fold(false, |changed, value| set(value, space) | changed),
            _ => false,
        }
    }
    let mut json = serde_json::to_value(pre_tokenizer)?;
    Ok(if set(&mut json, space) { Some(from_json(&json)?) } else { None })
}

/// A part of a tokenizer from its JSON form. The crate reads some only from text, not from a parsed value.
fn from_json<T: serde::de::DeserializeOwned>(json: &Value) -> Result<T> {
    Ok(serde_json::from_str(&json.to_string())?)
}

/// A JSON object, empty where there is no such file.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{}: broken JSON", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// tokenizer_config.json; empty where there is none.
pub struct Config {
    pub path: String,
    pub settings: Map<String, Value>,
}

impl Config {
    pub fn read(directory: &Path) -> Result<Config> {
        let path = directory.join(CONFIG);
        let mut settings = read_object(&path)?;
        // Some checkpoints name the class in the model's configuration instead.
        if !settings.contains_key(CLASS)
            && let Some(class) = read_object(&directory.join("config.json"))?.remove(CLASS)
        {
            settings.insert(CLASS.to_string(), class);
        }
        Ok(Config { path: path.display().to_string(), settings })
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.settings.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => bail!("{}: {name} must be true or false, found {other}", self.path),
        }
    }

    /// A special token, written as a string or as an object with its content.
    fn token(&self, name: &str, default: &str) -> Result<String> {
        Ok(self.optional_token(name)?.unwrap_or_else(|| default.to_string()))
    }

    pub fn optional_token(&self, name: &str) -> Result<Option<String>> {
        match self.settings.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(token)) => Ok(Some(token.clone())),
            Some(other) => match other.get("content") {
                Some(Value::String(token)) => Ok(Some(token.clone())),
                _ => bail!("{}: {name} must be a string or an object with \"content\"", self.path),
            },
        }
    }

    fn class(&self) -> Option<&str> {
        self.settings.get(CLASS).and_then(Value::as_str).map(|class| class.strip_suffix("Fast").unwrap_or(class))
    }

    /// Whether transformers would use this class: it is named, or it is the default of the model's family.
    fn is_class(&self, class: &str, family: &str, families: &[&str]) -> bool {
        match self.class() {
            Some(named) => named == format!("{class}Tokenizer"),
            None => families.contains(&family),
        }
    }

    /// A vocabulary file alone does not tell how text is split; a class that does it otherwise is refused.
    fn expect_class(&self, classes: &[&str], file: &str) -> Result<()> {
        match self.class() {
            Some(named) if named != "PreTrainedTokenizer" && classes.iter().all(|class| named != format!("{class}Tokenizer")) => {
                bail!(
                    "{}: the tokenizer_class {named} cannot be built from {file}; add the tokenizer.json that transformers saves",
                    self.path.trim_end_matches(CONFIG)
                )
            }
            _ => Ok(()),
        }
    }

    /// Tokens that were added to the vocabulary later: `added_tokens_decoder`, else added_tokens.json.
    fn add_other_tokens(&self, tokenizer: &mut Tokenizer, directory: &Path) -> Result<()> {
        let mut tokens: Vec<(u32, AddedToken)> = Vec::new();
        let path = directory.join("added_tokens.json");
        if let Some(decoder) = self.settings.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in decoder {
                let broken = || format!("{}: added_tokens_decoder: token {id}", self.path);
                tokens.push((id.parse().with_context(broken)?, serde_json::from_value(token.clone()).with_context(broken)?));
            }
        } else if path.is_file() {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let added: Map<String, Value> = serde_json::from_str(&text).with_context(|| format!("{}: broken JSON", path.display()))?;
            for (token, id) in added {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let id = id.with_context(|| format!("{}: token {token:?} has no id", path.display()))?;
                tokens.push((id, AddedToken::from(token, false)));
            }
        }
        tokens.sort_by_key(|(id, _)| *id);
        for (id, token) in tokens {
            let content = token.content.clone();
            if token.special { tokenizer.add_special_tokens([token]) } else { tokenizer.add_tokens([token]) }.map_err(plain)?;
            let found = tokenizer.token_to_id(&content);
            ensure!(
                found == Some(id),
                "{}: the added token {content:?} should have id {id}, the vocabulary gives {found:?}",
                directory.display()
            );
        }
        Ok(())
    }
}
