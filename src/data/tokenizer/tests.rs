//! The tokenizer against the parity bundles, its files against each other, and its refusals.

use super::*;
use crate::data::{Columns, Content, read_examples};
use crate::model::{Positions, TaskKind};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// A specification with what a tokenizer looks at; the rest is small.
fn specification(family: &str, vocabulary: usize, token_types: usize) -> Specification {
    let positions = Positions::Learned { table: 512, first: 0, padding_id: None };
    Specification { family: family.to_string(), vocabulary, token_types, positions, ..Specification::tiny() }
}

struct Bundle {
    path: PathBuf,
    case: Value,
    expected: Vec<u8>,
}

impl Bundle {
    fn open(name: &str) -> Bundle {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name);
        let case = serde_json::from_slice(&std::fs::read(path.join("case.json")).unwrap()).unwrap();
        let expected = std::fs::read(path.join("expected.safetensors")).unwrap();
        Bundle { path, case, expected }
    }

    fn tokenizer(&self) -> TextTokenizer {
        let config: Value = serde_json::from_slice(&std::fs::read(self.path.join("model/config.json")).unwrap()).unwrap();
        let size = |name: &str| config[name].as_u64().unwrap() as usize;
        let types = config["type_vocab_size"].as_u64().unwrap_or(0) as usize;
        let spec = specification(config["model_type"].as_str().unwrap(), size("vocab_size"), types);
        TextTokenizer::open(&self.path.join("model"), &spec).unwrap()
    }

    fn examples(&self, task: TaskKind) -> Vec<Content> {
        let examples = read_examples(&self.path.join("data.jsonl"), task, &Columns::default()).unwrap();
        examples.into_iter().map(|example| example.content).collect()
    }

    fn setting(&self, name: &str) -> usize {
        self.case["settings"][name].as_u64().unwrap() as usize
    }

    fn expected(&self, name: &str) -> Option<Vec<u32>> {
        let tensors = SafeTensors::deserialize(&self.expected).unwrap();
        let tensor = tensors.tensor(name).ok()?;
        Some(tensor.data().chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect())
    }

    /// Compares ids, lengths and, where the bundle has them, types.
    fn check(&self, sequences: &[(Vec<u32>, Vec<u32>)]) {
        let lengths: Vec<u32> = sequences.iter().map(|(ids, _)| ids.len() as u32).collect();
        assert_eq!(Some(lengths), self.expected("input_lengths"), "{}", self.path.display());
        let ids: Vec<u32> = sequences.iter().flat_map(|(ids, _)| ids.clone()).collect();
        assert_eq!(Some(ids), self.expected("input_ids"), "{}", self.path.display());
        let all_zero = |ids: &[u32]| vec![0; ids.len()];
        let types = sequences.iter().flat_map(|(ids, types)| if types.is_empty() { all_zero(ids) } else { types.clone() });
        match self.expected("token_type_ids") {
            // A model without types is not told them.
            Some(expected) if self.tokenizer().token_types > 1 => {
                assert_eq!(types.collect::<Vec<_>>(), expected, "{}", self.path.display())
            }
            _ => assert!(types.sum::<u32>() == 0, "{}", self.path.display()),
        }
    }
}

#[test]
fn texts_and_choices_of_the_bundles() {
    for name in [
        "bert-classification",
        "bert-classification-d64",
        "bert-multiple-choice",
        "gpt2-classification",
        "llama-classification",
        "qwen2-classification",
        "qwen3-classification",
        "roberta-classification",
        "roberta-classification-peft",
        "deberta-classification",
    ] {
        let bundle = Bundle::open(name);
        let tokenizer = bundle.tokenizer();
        let task = if name.contains("choice") { TaskKind::MultipleChoice } else { TaskKind::Classification };
        let mut sequences = Vec::new();
        for content in bundle.examples(task) {
            let pairs: Vec<(String, Option<String>)> = match content {
                Content::Text { text, pair, .. } => vec![(text, pair)],
                Content::Choices { text, choices, .. } => choices.into_iter().map(|choice| (text.clone(), Some(choice))).collect(),
                _ => unreachable!(),
            };
            for (text, pair) in pairs {
                let encoded = tokenizer.encode_text(&text, pair.as_deref(), bundle.setting("max_length")).unwrap();
                assert!(!encoded.truncated);
                sequences.push((encoded.ids, encoded.types));
            }
        }
        bundle.check(&sequences);
    }
}

#[test]
fn words_of_the_bundles() {
    for name in ["bert-tagging", "deberta-tagging"] {
        let bundle = Bundle::open(name);
        let tokenizer = bundle.tokenizer();
        let (mut sequences, mut first_tokens) = (Vec::new(), Vec::new());
        for content in bundle.examples(TaskKind::Tagging) {
            let Content::Words { words, .. } = content else { unreachable!() };
            let tokens = tokenizer.encode_words(&words).unwrap();
            let mut next = tokenizer.specials_before() as u32;
            for word in &tokens {
                first_tokens.push(next);
                next += word.len() as u32;
            }
            let encoded = tokenizer.wrap(tokens.concat());
            sequences.push((encoded.ids, encoded.types));
        }
        bundle.check(&sequences);
        assert_eq!(Some(first_tokens), bundle.expected("word_first_token"));
    }
}

#[test]
fn windows_of_the_bundle() {
    let bundle = Bundle::open("bert-qa");
    let tokenizer = bundle.tokenizer();
    let (mut sequences, mut examples, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (example, content) in bundle.examples(TaskKind::Qa).into_iter().enumerate() {
        let Content::Question { question, context, answers, .. } = content else { unreachable!() };
        let answer = &answers.unwrap()[0];
        let (from, to) = (answer.start, answer.start + answer.text.chars().count());
        for window in tokenizer.encode_windows(&question, &context, bundle.setting("max_length"), bundle.setting("doc_stride")).unwrap() {
            // The targets of the released code's `tasks/qa/dataset.py`: the answer's tokens where the window holds all of it, else the CLS token.
            let first = window.offsets.iter().rposition(|&(start, _)| start <= from);
            let last = window.offsets.iter().position(|&(_, end)| end >= to);
            let (start, end) = match (first, last) {
                (Some(first), Some(last)) => (window.context.start + first, window.context.start + last),
                _ => (window.cls_index, window.cls_index),
            };
            examples.push(example as u32);
            starts.push(start as u32);
            ends.push(end as u32);
            sequences.push((window.ids, window.types));
        }
    }
    assert!(examples.windows(2).any(|pair| pair[0] == pair[1]), "no example has two windows");
    bundle.check(&sequences);
    assert_eq!(Some(examples), bundle.expected("feature_example"));
    assert_eq!(Some(starts), bundle.expected("feature_start"));
    assert_eq!(Some(ends), bundle.expected("feature_end"));
}

const HARD: [&str; 6] = [
    "Émile's  café\u{a0}— 3½ \u{1F600}!",
    " leading 中文 trailing ",
    "",
    "soft\u{ad}hyphen \u{200b}",
    "don't [MASK] <mask> </s>",
    "a\tb\r\nc",
];

/// tokenizer.json of a bundle's model, for tests that write another form of it.
fn tokenizer_json(bundle: &Bundle) -> Value {
    serde_json::from_slice(&std::fs::read(bundle.path.join("model/tokenizer.json")).unwrap()).unwrap()
}

fn assert_same(left: &TextTokenizer, right: &TextTokenizer) {
    for text in HARD {
        for pair in [None, Some(HARD[0])] {
            assert_eq!(left.encode_text(text, pair, 40).unwrap(), right.encode_text(text, pair, 40).unwrap(), "{text:?}");
        }
    }
    let words: Vec<String> = HARD.iter().map(|word| word.to_string()).collect();
    assert_eq!(left.encode_words(&words).unwrap(), right.encode_words(&words).unwrap());
    let context = HARD.join(" ");
    assert_eq!(left.encode_windows(" q?", &context, 30, 5).unwrap(), right.encode_windows(" q?", &context, 30, 5).unwrap());
}

#[test]
fn vocabulary_files_give_what_tokenizer_json_gives() {
    let bundle = Bundle::open("bert-classification");
    let json = tokenizer_json(&bundle);
    let mut tokens: Vec<(u64, &String)> =
        json["model"]["vocab"].as_object().unwrap().iter().map(|(t, id)| (id.as_u64().unwrap(), t)).collect();
    tokens.sort();
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<String> = tokens.into_iter().map(|(_, token)| format!("{token}\n")).collect();
    std::fs::write(folder.path().join("vocab.txt"), lines.concat()).unwrap();
    let spec = specification("bert", 500, 2);
    let from_files = TextTokenizer::open(folder.path(), &spec).unwrap();
    assert_same(&from_files, &bundle.tokenizer());
    // A cased model's setting changes the ids, wherever it is written.
    std::fs::write(folder.path().join(CONFIG), r#"{"do_lower_case": false}"#).unwrap();
    let cased = TextTokenizer::open(folder.path(), &spec).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    assert_same(&cased, &TextTokenizer::open(folder.path(), &spec).unwrap());
    assert_ne!(cased.encode_text("The", None, 9).unwrap(), from_files.encode_text("The", None, 9).unwrap());

    for (bundle, family, class, mask) in [
        ("roberta-classification", "roberta", "RobertaTokenizer", "<mask>"),
        ("deberta-classification", "deberta", "DebertaTokenizer", "[MASK]"),
    ] {
        byte_level_files(&Bundle::open(bundle), family, class, mask);
    }
}

fn byte_level_files(bundle: &Bundle, family: &str, class: &str, mask: &str) {
    let mut json = tokenizer_json(bundle);
    // The class's own mask takes the space before it along; the bundle's does not.
    let mut mask_id = Value::Null;
    for token in json["added_tokens"].as_array_mut().unwrap() {
        token["lstrip"] = json!(token["content"] == mask);
        if token["content"] == mask {
            mask_id = token["id"].clone();
        }
    }
    let whole = tempfile::tempdir().unwrap();
    std::fs::write(whole.path().join("tokenizer.json"), json.to_string()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
        Value::Array(parts) => format!("{} {}\n", parts[0].as_str().unwrap(), parts[1].as_str().unwrap()),
        merge => format!("{}\n", merge.as_str().unwrap()),
    });
    std::fs::write(folder.path().join("vocab.json"), json["model"]["vocab"].to_string()).unwrap();
    std::fs::write(folder.path().join("merges.txt"), format!("#version: 0.2\n{}", merges.collect::<String>())).unwrap();
    std::fs::write(folder.path().join("added_tokens.json"), json!({mask: mask_id}).to_string()).unwrap();
    let spec = specification(family, 450, 1);
    assert_same(&TextTokenizer::open(folder.path(), &spec).unwrap(), &TextTokenizer::open(whole.path(), &spec).unwrap());
    std::fs::write(folder.path().join(CONFIG), json!({"tokenizer_class": class, "add_prefix_space": true}).to_string()).unwrap();
    let spaced = TextTokenizer::open(folder.path(), &spec).unwrap();
    assert_eq!(spaced.encode_text("the", None, 9).unwrap(), bundle.tokenizer().encode_text(" the", None, 9).unwrap());
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    assert_same(&spaced, &TextTokenizer::open(folder.path(), &spec).unwrap());
}

/// GPT-2's class has no mask, and no special tokens around a text.
#[test]
fn gpt2s_vocabulary_files_give_what_tokenizer_json_gives() {
    let bundle = Bundle::open("gpt2-classification");
    let mut json = tokenizer_json(&bundle);
    let folder = tempfile::tempdir().unwrap();
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
        Value::Array(parts) => format!("{} {}\n", parts[0].as_str().unwrap(), parts[1].as_str().unwrap()),
        merge => format!("{}\n", merge.as_str().unwrap()),
    });
    std::fs::write(folder.path().join("vocab.json"), json["model"]["vocab"].to_string()).unwrap();
    std::fs::write(folder.path().join("merges.txt"), format!("#version: 0.2\n{}", merges.collect::<String>())).unwrap();
    let end = json["added_tokens"][0].clone();
    std::fs::write(folder.path().join("added_tokens.json"), json!({end["content"].as_str().unwrap(): end["id"]}).to_string()).unwrap();
    let spec = specification("gpt2", 400, 0);
    let from_files = TextTokenizer::open(folder.path(), &spec).unwrap();
    assert_same(&from_files, &bundle.tokenizer());
    // The same where the file says nothing of special tokens.
    json["post_processor"] = Value::Null;
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    assert_same(&from_files, &TextTokenizer::open(folder.path(), &spec).unwrap());
    assert_eq!((from_files.specials_before(), from_files.specials_single()), (0, 0));
    assert_eq!(from_files.encode_windows("q?", "some words", 30, 5).unwrap()[0].cls_index, 0);
}

/// Llama's class puts the special tokens around a text that its settings say, whatever tokenizer.json does.
#[test]
fn llamas_settings_choose_the_special_tokens() {
    let bundle = Bundle::open("llama-classification");
    let json = tokenizer_json(&bundle);
    let spec = specification("llama", 400, 0);
    let tokens = r#""bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>"}"#;
    let text = bundle.tokenizer().encode_text("a ferry", None, 30).unwrap().ids[1..].to_vec();
    for (class, settings, before, after) in [
        ("LlamaTokenizer", "", vec![397], vec![]),
        ("LlamaTokenizerFast", r#", "add_eos_token": true"#, vec![397], vec![398]),
        ("LlamaTokenizer", r#", "add_bos_token": false, "add_eos_token": true"#, vec![], vec![398]),
        ("LlamaTokenizer", r#", "add_bos_token": false"#, vec![], vec![]),
        ("PreTrainedTokenizerFast", r#", "add_eos_token": true"#, vec![397], vec![]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        std::fs::write(folder.path().join(CONFIG), format!(r#"{{"tokenizer_class": "{class}", {tokens}{settings}}}"#)).unwrap();
        let tokenizer = TextTokenizer::open(folder.path(), &spec).unwrap();
        assert_eq!(tokenizer.encode_text("a ferry", None, 30).unwrap().ids, [&before[..], &text, &after].concat(), "{class} {settings}");
        let pair = tokenizer.encode_text("a ferry", Some("a ferry"), 30).unwrap();
        assert_eq!(pair.ids, [&before[..], &text, &after, &before, &text, &after].concat(), "{class} {settings}");
    }
}

const CONFIG: &str = "tokenizer_config.json";

#[test]
fn settings_of_tokenizer_json_are_ours_to_choose() {
    let bundle = Bundle::open("bert-classification");
    let mut json = tokenizer_json(&bundle);
    json["truncation"] = json!({"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"});
    json["post_processor"] = Value::Null;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    assert_same(&TextTokenizer::open(folder.path(), &specification("bert", 500, 2)).unwrap(), &bundle.tokenizer());
    assert!(TextTokenizer::open(folder.path(), &specification("unheard-of", 500, 2)).is_err());
}

#[test]
fn words_stand_alone() {
    let tokenizer = Bundle::open("roberta-classification").tokenizer();
    let words: Vec<String> = ["the", "", " the", "ferry"].iter().map(|word| word.to_string()).collect();
    let tokens = tokenizer.encode_words(&words).unwrap();
    // As in the middle of a text: with the space before it.
    assert_eq!(tokenizer.wrap(tokens[0].clone()), tokenizer.encode_text(" the", None, 99).unwrap());
    assert_eq!(tokens[2], tokens[0]);
    let bert = Bundle::open("bert-tagging").tokenizer();
    assert_eq!(bert.encode_words(&["\u{ad}".to_string(), String::new()]).unwrap(), [Vec::<u32>::new(), Vec::new()]);
    assert!(bert.encode_words(&[]).unwrap().is_empty());
    assert_eq!(bert.wrap(Vec::new()).ids.len(), bert.specials_single());
}

#[test]
fn the_longer_text_is_cut_first() {
    let tokenizer = Bundle::open("bert-classification").tokenizer();
    let long = "the old tram line was repaired in the 1930s";
    let whole = tokenizer.encode_text("the old", Some(long), 99).unwrap();
    let cut = tokenizer.encode_text("the old", Some(long), 9).unwrap();
    assert!(cut.truncated && !whole.truncated && cut.ids.len() == 9);
    let first = cut.types.iter().filter(|&&kind| kind == 0).count();
    assert_eq!(cut.ids[..first], whole.ids[..first]);
    assert_eq!(cut.ids[first..8], whole.ids[first..8]);
    let message = |result: Result<Encoded>| format!("{:#}", result.unwrap_err());
    assert!(message(tokenizer.encode_text("a", None, 2)).contains("--max-length 2"));
    assert!(message(tokenizer.encode_text("a", Some("b"), 3)).contains("--max-length 3"));
}

#[test]
fn windows_refuse_what_cannot_be() {
    let tokenizer = Bundle::open("bert-qa").tokenizer();
    let context = "the old water mill near the lake still works today and so does the tram ".repeat(3);
    let message =
        |question: &str, length, stride| format!("{:#}", tokenizer.encode_windows(question, &context, length, stride).unwrap_err());
    assert!(message("the old mill and the old lake", 8, 2).contains("leaves no room for the context"));
    assert!(message("the", 14, 10).contains("--doc-stride 10 is not below"));
    assert_eq!(tokenizer.encode_windows("the", "lake", 99, 500).unwrap().len(), 1);
    let empty = tokenizer.encode_windows("the", "", 99, 5).unwrap();
    assert!(empty[0].context.is_empty() && empty[0].offsets.is_empty());
    // Each window repeats the last tokens of the one before it, and together they hold the whole context.
    let windows = tokenizer.encode_windows("the", &context, 20, 4).unwrap();
    for pair in windows.windows(2) {
        assert_eq!(pair[0].offsets[pair[0].offsets.len() - 4..], pair[1].offsets[..4]);
        assert_eq!(pair[1].types.iter().filter(|&&kind| kind == 1).count(), pair[1].context.len() + 1);
    }
    assert_eq!(windows.last().unwrap().offsets.last().unwrap().1, context.trim_end().chars().count());
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let bundle = Bundle::open("bert-classification");
    let open = |vocabulary| TextTokenizer::open(&bundle.path.join("model"), &specification("bert", vocabulary, 2));
    assert!(format!("{:#}", open(3).err().unwrap()).contains("does not belong to the model"));
    let error = open(100).unwrap().encode_text("the old tram line", None, 99).unwrap_err();
    assert!(format!("{error:#}").contains("does not belong to the model"));
    let folder = tempfile::tempdir().unwrap();
    let open = || TextTokenizer::open(folder.path(), &specification("bert", 500, 2)).err().map(|error| format!("{error:#}")).unwrap();
    assert!(open().contains("no tokenizer; expected tokenizer.json"));
    std::fs::write(folder.path().join("vocab.txt"), "[PAD]\n[UNK]\na\n").unwrap();
    assert!(open().contains("vocab.txt: the special token \"[CLS]\" is not in it"));
    std::fs::write(folder.path().join("config.json"), r#"{"tokenizer_class": "BertweetTokenizer"}"#).unwrap();
    assert!(open().contains("BertweetTokenizer cannot be built from vocab.txt"));
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(open().contains("tokenizer.json: not a tokenizer"));
}

/// A protocol buffer field of wire type 2.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

#[test]
fn sentence_pieces() {
    let pieces = [("<unk>", 0.0f32), ("<s>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0), ("▁ab", -1.5)];
    let model: Vec<u8> = pieces
        .iter()
        .flat_map(|(text, score)| field(1, &[field(1, text.as_bytes()), vec![2 << 3 | 5], score.to_le_bytes().to_vec()].concat()))
        .chain(field(2, &[3 << 3, 1]))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sentencepiece.bpe.model");
    std::fs::write(&path, &model).unwrap();
    let spec = specification("xlm-roberta", 9, 1);
    let tokenizer = TextTokenizer::open(folder.path(), &spec).unwrap();
    // fairseq's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, then pieces from the fourth on, and <mask> last.
    assert_eq!(tokenizer.encode_text("ab  a b", None, 99).unwrap().ids, [0, 7, 4, 6, 5, 2]);
    assert_eq!(tokenizer.encode_text("a", Some("c <mask>"), 99).unwrap().ids, [0, 4, 2, 2, 6, 3, 8, 2]);
    assert_eq!(tokenizer.encode_words(&["ab".to_string(), "b".to_string()]).unwrap(), [vec![7], vec![6, 5]]);
    let failure = |bytes: &[u8], family: &str| {
        std::fs::write(&path, bytes).unwrap();
        format!("{:#}", TextTokenizer::open(folder.path(), &specification(family, 9, 1)).err().unwrap())
    };
    assert!(failure(&model[..model.len() - 1], "xlm-roberta").contains("the file ends early"));
    assert!(failure(&[model.as_slice(), &field(2, &[3 << 3, 2])].concat(), "xlm-roberta").contains("not a unigram model"));
    assert!(failure(&model[9..], "xlm-roberta").contains("sentencepiece.bpe.model"));
    assert!(failure(&model, "camembert").contains("xlm-roberta only"));
}

/// GLM's tokens from the vocabulary files of its published checkpoints: the ids of the bundle's tokenizer.json.
#[test]
fn glm_from_vocabulary_files() {
    let bundle = Bundle::open("glm-classification");
    let spec = specification("glm", 448, 0);
    let whole = TextTokenizer::open(&bundle.path.join("model"), &spec).unwrap();
    let file: Value = serde_json::from_slice(&std::fs::read(bundle.path.join("model/tokenizer.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("vocab.json", file["model"]["vocab"].to_string());
    let merges = file["model"]["merges"].as_array().unwrap().iter();
    write("merges.txt", merges.map(|pair| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect());
    write("tokenizer_config.json", json!({"tokenizer_class": "GLMGPT2Tokenizer"}).to_string());
    let added = file["added_tokens"].as_array().unwrap().iter();
    let added: serde_json::Map<String, Value> =
        added.map(|token| (token["content"].as_str().unwrap().to_string(), token["id"].clone())).collect();
    let mut sequences = Vec::new();
    for with_ids in [false, true] {
        if with_ids {
            write("added_tokens.json", Value::Object(added.clone()).to_string());
        }
        let tokenizer = TextTokenizer::open(folder.path(), &spec).unwrap();
        sequences.clear();
        for content in bundle.examples(TaskKind::Classification) {
            let Content::Text { text, pair, .. } = content else { unreachable!() };
            let encoded = tokenizer.encode_text(&text, pair.as_deref(), 128).unwrap();
            assert_eq!(encoded, whole.encode_text(&text, pair.as_deref(), 128).unwrap());
            sequences.push((encoded.ids, encoded.types));
        }
        bundle.check(&sequences);
        assert_eq!((tokenizer.token("[MASK]"), tokenizer.token("<|startofpiece|>")), (Some(415), Some(412)));
        assert_eq!(tokenizer.end_tokens().err().map(|error| error.to_string().contains("eos_token")), Some(true));
    }
    write("tokenizer_config.json", json!({"tokenizer_class": "RobertaTokenizer"}).to_string());
    assert!(format!("{:#}", TextTokenizer::open(folder.path(), &spec).err().unwrap()).contains("RobertaTokenizer cannot be built"));
}

#[test]
fn tokens_that_end_a_text() {
    let bundle = Bundle::open("llama-causal-lm");
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(bundle.path.join("model").join(name), folder.path().join(name)).unwrap();
    }
    let tokenizer = TextTokenizer::open(folder.path(), &specification("llama", 420, 0)).unwrap();
    assert_eq!((tokenizer.tokens_before(), tokenizer.tokens_after()), (&[417][..], &[][..]));
    let write = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    assert_eq!(tokenizer.end_tokens().unwrap(), [418]);
    write("config.json", json!({"eos_token_id": [3, 418]}));
    write("generation_config.json", json!({"eos_token_id": 9999}));
    assert_eq!(tokenizer.end_tokens().unwrap(), [418, 3], "the tokenizer's own first, and none that the model does not have");
    write("tokenizer_config.json", json!({}));
    assert_eq!(tokenizer.end_tokens().unwrap(), [3, 418]);
    write("special_tokens_map.json", json!({"eos_token": {"content": "nowhere"}}));
    assert!(tokenizer.end_tokens().unwrap_err().to_string().contains("\"nowhere\" is not in the vocabulary"));
    assert_eq!(tokenizer.decode(&tokenizer.encode_part(" the water was boiling.").unwrap()).unwrap(), " the water was boiling.");
    assert_eq!(tokenizer.decode(&[417, 418]).unwrap(), "");
}
