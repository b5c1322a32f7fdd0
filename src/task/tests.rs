//! Tasks on the golden bundles: features against the reference's, and predictions and scores from its logits.

use super::*;
use crate::data::{Answer, Columns, Label, read_examples};
use crate::model::{Positions, Specification};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

mod edges;

/// A specification of which labels and tokenization need no more than this.
pub(super) fn specification(labels: Option<Vec<String>>) -> Specification {
    let positions = Positions::Learned { table: 192, first: 0, padding_id: None };
    Specification { vocabulary: 500, positions, labels, ..Specification::tiny() }
}

/// A bundle: its examples, a task with its labels, and its expected values.
struct Bundle {
    task: Task,
    examples: Vec<Example>,
    tokenizer: TextTokenizer,
    limits: Limits,
    expected: Vec<u8>,
}

impl Bundle {
    fn open(name: &str, kind: TaskKind) -> Bundle {
        let directory: PathBuf = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name);
        let json = |file: &str| -> Value { serde_json::from_str(&std::fs::read_to_string(directory.join(file)).unwrap()).unwrap() };
        let names = json("model/config.json")["id2label"]
            .as_object()
            .map(|names| names.values().map(|name| name.as_str().unwrap().to_string()).collect());
        let spec = specification(names);
        let examples = read_examples(&directory.join("data.jsonl"), kind, &Columns::default()).unwrap();
        let settings = &json("case.json")["settings"];
        let limit = |name: &str| settings[name].as_u64().unwrap_or(0) as usize;
        Bundle {
            task: Task::new(kind, labels_for(kind, &examples, &spec).unwrap()),
            examples,
            tokenizer: TextTokenizer::open(&directory.join("model"), &spec).unwrap(),
            limits: Limits { max_length: limit("max_length"), doc_stride: limit("doc_stride") },
            expected: std::fs::read(directory.join("expected.safetensors")).unwrap(),
        }
    }

    fn encode(&self) -> Encoding {
        self.task.encode(&self.examples, &self.tokenizer, &self.limits).unwrap()
    }

    fn words<T>(&self, name: &str, convert: fn([u8; 4]) -> T) -> Vec<T> {
        let tensors = safetensors::SafeTensors::deserialize(&self.expected).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        tensor.data().chunks_exact(4).map(|bytes| convert(bytes.try_into().unwrap())).collect()
    }

    fn integers(&self, name: &str) -> Vec<i32> {
        self.words(name, i32::from_le_bytes)
    }

    /// The reference's logits, feature by feature.
    fn logits(&self, encoding: &Encoding) -> Vec<Vec<f32>> {
        let all = self.words("logits", f32::from_le_bytes);
        let columns = self.task.head(HeadKind::Linear, &specification(None)).columns;
        let mut rest = all.as_slice();
        let logits = (0..encoding.set.features.len())
            .map(|feature| {
                let (own, after) = rest.split_at(encoding.set.rows(feature) * columns);
                rest = after;
                own.to_vec()
            })
            .collect();
        assert!(rest.is_empty());
        logits
    }

    #[track_caller]
    fn check_ids(&self, encoding: &Encoding) {
        let sequences = &encoding.set.sequences;
        let ids: Vec<i32> = sequences.iter().flat_map(|sequence| sequence.ids.iter().map(|&id| id as i32)).collect();
        let lengths: Vec<i32> = sequences.iter().map(|sequence| sequence.ids.len() as i32).collect();
        assert_eq!(lengths, self.integers("input_lengths"));
        assert_eq!(ids, self.integers("input_ids"));
    }

    /// The written lines of all examples, from the reference's logits.
    fn lines(&self, task: &Task, encoding: &Encoding, with: With) -> Vec<Value> {
        let logits = self.logits(encoding);
        task.predict(&self.examples, encoding, &logits)
            .iter()
            .enumerate()
            .map(|(index, prediction)| prediction.to_json(index, &with))
            .collect()
    }
}

fn all_targets(encoding: &Encoding) -> Vec<i32> {
    encoding.set.features.iter().flat_map(|feature| feature.targets.iter().copied()).collect()
}

/// Whether the written numbers are those of the reference, bit for bit.
fn same_bits(written: &Value, expected: &[f32]) -> bool {
    let written: Vec<f32> = serde_json::from_value(written.clone()).unwrap();
    written.iter().map(|value| value.to_bits()).eq(expected.iter().map(|value| value.to_bits()))
}

#[test]
fn classification_bundle() {
    let bundle = Bundle::open("bert-classification", TaskKind::Classification);
    let encoding = bundle.encode();
    bundle.check_ids(&encoding);
    assert_eq!(bundle.task.labels(), ["entailment", "not_entailment"]);
    assert!(encoding.set.sequences.iter().all(|sequence| sequence.readout == [0]));
    assert_eq!(all_targets(&encoding)[..3], [1, 0, 1]);

    let logits = bundle.logits(&encoding);
    let predictions = bundle.task.predict(&bundle.examples, &encoding, &logits);
    let names: Vec<&str> = bundle.task.metrics().to_vec();
    let scores = bundle.task.score(&bundle.examples, &predictions).unwrap();
    assert_eq!(scores.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
    let right = logits.iter().zip(all_targets(&encoding)).filter(|(row, target)| usize::from(row[1] > row[0]) == *target as usize).count();
    assert_eq!(scores.get("accuracy"), Some(right as f64 / 24.0));

    let line = predictions[0].to_json(0, &With { logits: true, input_ids: true, scheme: None });
    assert_eq!(line.as_object().unwrap().keys().collect::<Vec<_>>(), ["index", "prediction", "logits", "input_ids"]);
    assert!(same_bits(&line["logits"], &logits[0]));
    assert_eq!(line["input_ids"], json!(encoding.set.sequences[0].ids));
    let short = predictions[2].to_json(2, &With::default());
    assert_eq!(short, json!({"index": 2, "prediction": bundle.task.labels()[usize::from(logits[2][1] > logits[2][0])]}));
}

#[test]
fn multiple_choice_bundle() {
    let bundle = Bundle::open("bert-multiple-choice", TaskKind::MultipleChoice);
    let encoding = bundle.encode();
    bundle.check_ids(&encoding);
    assert_eq!((encoding.set.features.len(), encoding.set.sequences.len()), (16, 32));
    assert_eq!(all_targets(&encoding)[..3], [0, 0, 1]);
    let types: Vec<i32> = encoding.set.sequences.iter().flat_map(|sequence| sequence.types.iter().map(|&kind| kind as i32)).collect();
    assert_eq!(types, bundle.integers("token_type_ids"));

    let logits = bundle.logits(&encoding);
    let lines = bundle.lines(&bundle.task, &encoding, With { logits: true, input_ids: true, scheme: None });
    for (feature, line) in lines.iter().enumerate() {
        assert_eq!(line["prediction"], json!(usize::from(logits[feature][1] > logits[feature][0])));
        assert!(same_bits(&line["logits"], &logits[feature]));
        assert_eq!(line["input_ids"][1], json!(encoding.set.sequences_of(feature)[1].ids));
    }
}

#[test]
fn tagging_bundle() {
    let bundle = Bundle::open("bert-tagging", TaskKind::Tagging);
    let encoding = bundle.encode();
    bundle.check_ids(&encoding);
    let readout: Vec<i32> = encoding.set.sequences.iter().flat_map(|sequence| sequence.readout.iter().map(|&row| row as i32)).collect();
    assert_eq!(readout, bundle.integers("word_first_token"));
    assert_eq!(all_targets(&encoding)[..6], [1, 0, 0, 0, 0, 0]);
    assert_eq!(encoding.truncated, 0);

    let logits = bundle.logits(&encoding);
    let line = &bundle.lines(&bundle.task, &encoding, With { logits: true, input_ids: true, scheme: None })[1];
    assert_eq!(line.as_object().unwrap().keys().collect::<Vec<_>>(), ["index", "tags", "logits", "input_ids"]);
    assert_eq!(line["tags"].as_array().unwrap().len(), 26);
    assert!(same_bits(&line["logits"][3], &logits[1][27..36]));
    assert_eq!(line["input_ids"], json!(encoding.set.sequences[1].ids));
}

/// Logits that make the gold tag of every row the greatest.
fn gold_logits(encoding: &Encoding, columns: usize) -> Vec<Vec<f32>> {
    let row = |&target: &i32| (0..columns as i32).map(move |column| f32::from(u8::from(column == target)));
    encoding.set.features.iter().map(|feature| feature.targets.iter().flat_map(row).collect()).collect()
}

#[test]
fn a_sentence_longer_than_a_sequence_is_read_in_parts() {
    let mut bundle = Bundle::open("bert-tagging", TaskKind::Tagging);
    let (whole, columns) = (bundle.encode(), bundle.task.labels().len());
    bundle.limits.max_length = 12;
    let parts = bundle.encode();
    assert!(parts.set.features.len() > whole.set.features.len() && parts.set.longest_sequence() <= 12);
    assert_eq!(parts.truncated, 0);
    assert_eq!(all_targets(&parts), all_targets(&whole));
    assert_eq!(parts.features_of(1).start, parts.features_of(0).end);

    let logits = gold_logits(&parts, columns);
    let predictions = bundle.task.predict(&bundle.examples, &parts, &logits);
    let scores = bundle.task.score(&bundle.examples, &predictions).unwrap();
    assert_eq!(scores, Scores::new([("precision", 1.0), ("recall", 1.0), ("f1", 1.0), ("accuracy", 1.0)]));
    let types = bundle.task.entity_types(&bundle.examples, &predictions).unwrap();
    assert_eq!(types.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["group", "location", "person", "product"]);
}

fn sentence(words: &[&str], tags: &[&str]) -> Example {
    let tags = tags.iter().map(|tag| Label::Name(tag.to_string())).collect();
    let words = words.iter().map(|word| word.to_string()).collect();
    Example::new(Content::Words { words, tags: Some(tags), predicate: None }, "words.jsonl, line 1".to_string())
}

#[test]
fn a_word_without_sub_tokens_is_outside_and_keeps_its_gold_tag() {
    let bundle = Bundle::open("bert-tagging", TaskKind::Tagging);
    let examples = [sentence(&["Noor", "\u{200b}", "Hobart"], &["B-person", "B-group", "B-location"]), sentence(&["\u{200b}"], &["O"])];
    let encoding = bundle.task.encode(&examples, &bundle.tokenizer, &bundle.limits).unwrap();
    assert_eq!(encoding.set.rows(0), 2);
    assert_eq!(encoding.features_of(1), 1..1);
    let logits = gold_logits(&encoding, 9);
    let predictions = bundle.task.predict(&examples, &encoding, &logits);
    let line = predictions[0].to_json(0, &With { logits: true, input_ids: false, scheme: None });
    assert_eq!(line["tags"], json!(["B-person", "O", "B-location"]));
    assert_eq!(line["logits"][1], Value::Null);
    assert_eq!(
        predictions[1].to_json(1, &With { logits: true, input_ids: true, scheme: None }),
        json!({"index": 1, "tags": ["O"], "logits": [null], "input_ids": []})
    );
    let scores = bundle.task.score(&examples, &predictions).unwrap();
    assert_eq!((scores.get("recall"), scores.get("accuracy")), (Some(2.0 / 3.0), Some(0.75)));
}

/// A sentence of 2,000 words, with a very long one, emoji and words of which no token is left.
fn long_sentence() -> Example {
    let odd = ["\u{200b}", "\u{1F9ED}\u{1F3FD}", "\u{feff}", "e\u{301}\u{200d}x"];
    let long = "ab".repeat(3000);
    let words: Vec<&str> = (0..2000)
        .map(|word| match word {
            700 => long.as_str(),
            word if word % 97 == 0 => odd[word / 97 % 4],
            word => ["Noor", "sang", "in", "Hobart"][word % 4],
        })
        .collect();
    let tags: Vec<&str> = (0..2000).map(|word| ["B-person", "O", "O", "B-location"][word % 4]).collect();
    sentence(&words, &tags)
}

#[test]
fn every_word_of_a_very_long_sentence_gets_a_tag() {
    let bundle = Bundle::open("bert-tagging", TaskKind::Tagging);
    let examples = [long_sentence()];
    let columns = bundle.task.labels().len();
    let predict = |long: LongSentences| {
        let task = bundle.task.clone().with_long_sentences(long);
        let encoding = task.encode(&examples, &bundle.tokenizer, &bundle.limits).unwrap();
        assert!(encoding.set.longest_sequence() <= bundle.limits.max_length);
        let logits = gold_logits(&encoding, columns);
        let rows: usize = (0..encoding.set.features.len()).map(|feature| encoding.set.rows(feature)).sum();
        let predictions = task.predict(&examples, &encoding, &logits);
        let line = predictions[0].to_json(0, &With::default());
        let recall = task.score(&examples, &predictions).unwrap().get("recall").unwrap();
        (line, rows, encoding.set.features.len(), recall)
    };
    let wordless = |tokens: Vec<Vec<u32>>| tokens.iter().filter(|tokens| tokens.is_empty()).count();
    let Content::Words { words, .. } = &examples[0].content else { panic!() };
    let (line, rows, parts, recall) = predict(LongSentences::Split);
    assert_eq!(line["tags"].as_array().unwrap().len(), 2000);
    assert_eq!(rows + wordless(bundle.tokenizer.encode_words(words).unwrap()), 2000);
    assert!(line.get("truncated_at").is_none() && parts > 10 && recall > 0.98);

    let (line, rows, parts, recall) = predict(LongSentences::Truncate);
    let tags = line["tags"].as_array().unwrap();
    let read = line["truncated_at"].as_u64().unwrap() as usize;
    assert!(rows <= read && read < 200 && parts == 1 && recall < 0.1);
    assert!(tags.len() == 2000 && tags[read..].iter().all(|tag| tag == "O"));
    assert!(tags[..read].iter().any(|tag| tag != "O"));
}

/// The predicate stands behind a separator again, in every part, and its tokens predict nothing.
#[test]
fn a_predicate_is_repeated_behind_the_sentence() {
    let mut bundle = Bundle::open("bert-tagging", TaskKind::Tagging);
    let mut example = sentence(&["Noor", "sang", "in", "Hobart"], &["B-person", "O", "O", "B-location"]);
    let plain = bundle.task.encode(std::slice::from_ref(&example), &bundle.tokenizer, &bundle.limits).unwrap();
    if let Content::Words { predicate, .. } = &mut example.content {
        *predicate = Some(1);
    }
    let examples = [example];
    let whole = bundle.task.encode(&examples, &bundle.tokenizer, &bundle.limits).unwrap();
    let (plain, found) = (&plain.set.sequences[0], &whole.set.sequences[0]);
    let verb = bundle.tokenizer.encode_words(&["sang".to_string()]).unwrap().concat();
    let separator = bundle.tokenizer.token("[SEP]").unwrap();
    let [text @ .., last] = plain.ids.as_slice() else { panic!() };
    assert_eq!(found.ids, [text, &[separator], &verb, &[*last]].concat());
    assert_eq!((&found.readout, &found.types), (&plain.readout, &vec![]));
    assert_eq!(whole.set.features[0].targets.len(), 4);

    bundle.limits.max_length = 2 * (verb.len() + 1) + 2;
    let parts = bundle.task.encode(&examples, &bundle.tokenizer, &bundle.limits).unwrap();
    assert!(parts.set.features.len() > 1);
    assert_eq!(all_targets(&parts), all_targets(&whole));
    for sequence in &parts.set.sequences {
        assert!(sequence.ids.len() <= bundle.limits.max_length);
        assert!(sequence.ids.ends_with(&[&[separator], verb.as_slice(), &[*last]].concat()), "{:?}", sequence.ids);
    }
    bundle.limits.max_length = 3;
    assert_eq!(bundle.task.encode(&examples, &bundle.tokenizer, &bundle.limits).unwrap().truncated, 1);
}

#[test]
fn a_model_that_learned_one_answer_is_seen() {
    let bundle = Bundle::open("bert-tagging", TaskKind::Tagging);
    let encoding = bundle.encode();
    let outside = bundle.task.labels().iter().position(|label| label == "O").unwrap();
    let warnings = |logits: &[Vec<f32>]| {
        let predictions = bundle.task.predict(&bundle.examples, &encoding, logits);
        bundle.task.warnings(&bundle.examples, &predictions)
    };
    let gold = gold_logits(&encoding, bundle.task.labels().len());
    assert_eq!(warnings(&gold), Vec::<String>::new());
    let mut constant = gold;
    for row in constant.iter_mut().flat_map(|values| values.chunks_exact_mut(bundle.task.labels().len())) {
        row.fill(0.0);
        row[outside] = 1.0;
    }
    let found = warnings(&constant);
    assert!(found.len() == 2 && found[0].starts_with("100.0 % of the predictions are \"O\""), "{found:?}");
    assert!(found[1].contains("does not beat"), "{found:?}");

    let balance = bundle.task.balance(&bundle.examples).unwrap();
    let share = bundle.task.majority(&bundle.examples).unwrap().1;
    assert!(balance.to_line().starts_with(&format!("O {:.1} %, ", 100.0 * share)), "{}", balance.to_line());
    assert!(balance.entropy() > -share * share.ln() && balance.entropy() < (bundle.task.labels().len() as f64).ln());
    let labels: Vec<String> = (0..13).map(|label| format!("l{label}")).collect();
    let task = Task::new(TaskKind::Classification, labels.clone());
    let texts: Vec<Example> = labels.iter().chain(&labels[..1]).map(|label| text("t", label)).collect();
    let line = task.balance(&texts).unwrap().to_line();
    assert!(line.starts_with("l0 14.3 %, l1 7.1 %, ") && line.ends_with("l9 7.1 %, and 3 more 21.4 %"), "{line}");
}

#[test]
fn a_word_longer_than_a_sequence_is_cut_and_counted() {
    let mut bundle = Bundle::open("bert-tagging", TaskKind::Tagging);
    bundle.limits.max_length = 5;
    let long = "a.b.c.d";
    let encoding = bundle.task.encode(&[sentence(&["a", long, "b"], &["O"; 3])], &bundle.tokenizer, &bundle.limits).unwrap();
    assert!(bundle.tokenizer.encode_words(&[long.to_string()]).unwrap()[0].len() > 3);
    assert_eq!((encoding.truncated, encoding.set.features.len()), (1, 3));
    assert_eq!(encoding.set.sequences[1].ids.len(), 5);
    bundle.limits.max_length = 2;
    let error = bundle.task.encode(&bundle.examples, &bundle.tokenizer, &bundle.limits).unwrap_err().to_string();
    assert!(error.contains("--max-length 2"), "{error}");
}

#[test]
fn question_bundle() {
    let bundle = Bundle::open("bert-qa", TaskKind::Qa);
    let encoding = bundle.encode();
    bundle.check_ids(&encoding);
    let column = |column: usize| -> Vec<i32> { encoding.set.features.iter().map(|feature| feature.targets[column]).collect() };
    assert_eq!(column(0), bundle.integers("feature_start"));
    assert_eq!(column(1), bundle.integers("feature_end"));
    let owners: Vec<i32> = encoding.set.features.iter().map(|feature| feature.example as i32).collect();
    assert_eq!(owners, bundle.integers("feature_example"));
    assert!((0..32).all(|feature| encoding.set.rows(feature) == encoding.set.tokens(feature)));
    assert_eq!(bundle.task.majority(&bundle.examples), None);

    let logits = bundle.logits(&encoding);
    let lines = bundle.lines(&bundle.task, &encoding, With { logits: true, input_ids: true, scheme: None });
    assert_eq!(lines[2].as_object().unwrap().keys().collect::<Vec<_>>(), ["id", "prediction_text", "features"]);
    assert_eq!(lines[2]["features"].as_array().unwrap().len(), 2);
    let starts: Vec<f32> = logits[3].iter().step_by(2).copied().collect();
    assert!(same_bits(&lines[2]["features"][1]["start_logits"], &starts));
    assert_eq!(lines[2]["features"][1]["input_ids"], json!(encoding.set.sequences[3].ids));
    let short = &bundle.lines(&bundle.task, &encoding, With::default())[0];
    assert_eq!(*short, json!({"id": "visible-000", "prediction_text": "Hobart, as the old map"}));
    let only_logits = &bundle.lines(&bundle.task, &encoding, With { logits: true, input_ids: false, scheme: None })[0]["features"][0];
    assert_eq!(only_logits.as_object().unwrap().keys().collect::<Vec<_>>(), ["start_logits", "end_logits"]);
}

/// Expected: postprocess_qa_predictions of the released code on the bundle's logits; with and without "no answer" alike.
#[test]
fn answers_are_those_of_the_released_code() {
    let bundle = Bundle::open("bert-qa", TaskKind::Qa);
    let encoding = bundle.encode();
    let expected = [
        "Hobart, as the old map",
        "to a note in the archive! Fatima Zahra sold",
        "on 3 June 2011... Jonas Lindqvist measured the glacier in the 1930s",
        "months of work near Reykjav\u{ed}k! Noor inspected",
        "Aiko Tanaka sold",
        "arry Road School painted the unusually quiet bakery - or so the story goes. Elena",
        "Sea. Oskar Brandt insured the radio mast in March 1987 near Hobart, so that the child",
        "about $4",
        "ren could cross safely, and Northwind Ferries",
        "Hobart",
        "ia. Priya Ra",
        "though it",
        "dawn",
        "ren could",
        "ia, although nobody had asked for it. Jonas Lindqvist sold",
        "weather balloon during the long drought, and it still works today",
    ];
    for task in [bundle.task.clone(), bundle.task.clone().with_no_answer(true)] {
        let lines = bundle.lines(&task, &encoding, With::default());
        assert_eq!(lines.iter().map(|line| line["prediction_text"].as_str().unwrap()).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn an_unanswerable_question_makes_the_file_one_of_the_second_edition() {
    let mut bundle = Bundle::open("bert-qa", TaskKind::Qa);
    if let Content::Question { answers, .. } = &mut bundle.examples[0].content {
        *answers = Some(Vec::new());
    }
    let encoding = bundle.encode();
    assert_eq!(encoding.set.features[0].targets, [0, 0]);
    assert_eq!(bundle.task.majority(&bundle.examples), Some(("no answer".to_string(), 1.0 / 16.0)));
    // Every window wants no answer: right for the first question alone.
    let mut logits = bundle.logits(&encoding);
    logits.iter_mut().for_each(|window| window[0] = 1e3);
    let predictions = bundle.task.predict(&bundle.examples, &encoding, &logits);
    assert!(predictions.iter().all(|prediction| prediction.outcome == Outcome::Text(String::new())));
    let scores = bundle.task.score(&bundle.examples, &predictions).unwrap();
    let of_kinds = [("HasAns_exact", 0.0), ("HasAns_f1", 0.0), ("NoAns_exact", 1.0), ("NoAns_f1", 1.0)];
    let all = Scores::new([("exact_match", 1.0 / 16.0), ("f1", 1.0 / 16.0)]);
    assert_eq!(scores.0, [all.0, Scores::new(of_kinds).0].concat());
}

#[test]
fn wrong_examples_are_named_by_their_place() {
    let check = |bundle: &Bundle, content: Content, expected: &str| {
        let mut examples = bundle.examples.clone();
        examples.push(Example::new(content, "data.jsonl, line 99".to_string()));
        let error = format!("{:#}", bundle.task.encode(&examples, &bundle.tokenizer, &bundle.limits).unwrap_err());
        assert!(error.starts_with("data.jsonl, line 99") && error.contains(expected), "{error}");
    };
    let choices = Bundle::open("bert-multiple-choice", TaskKind::MultipleChoice);
    let choice = |choices: &[&str]| Content::Choices {
        text: "t".into(),
        choices: choices.iter().map(|choice| choice.to_string()).collect(),
        label: Some(2),
    };
    check(&choices, choice(&["a", "b"]), "label 2 is not the index of one of the 2 choices");
    check(&choices, choice(&[]), "no choices");
    check(&choices, Content::Words { words: vec![], tags: None, predicate: None }, "not an example for multiple-choice");
    let tagging = Bundle::open("bert-tagging", TaskKind::Tagging);
    check(&tagging, sentence(&["a", "b"], &["O"]).content, "2 tokens but 1 tags");
    check(&tagging, sentence(&["a", "b"], &["O", "B-x"]).content, "word 2: unknown label \"B-x\"");
    let qa = Bundle::open("bert-qa", TaskKind::Qa);
    let answers = Some(vec![Answer { text: "no".to_string(), start: usize::MAX }]);
    check(&qa, Content::Question { id: "1".into(), question: "q".into(), context: "c".into(), answers }, "the context has 1");
    let classification = Bundle::open("bert-classification", TaskKind::Classification);
    check(&classification, Content::Text { text: "t".into(), pair: None, label: Some(Label::Name("x".into())) }, "unknown label \"x\"");
}

#[test]
fn unlabelled_examples_have_no_targets_and_no_score() {
    let mut bundle = Bundle::open("bert-multiple-choice", TaskKind::MultipleChoice);
    if let Content::Choices { label, .. } = &mut bundle.examples[3].content {
        *label = None;
    }
    let encoding = bundle.encode();
    assert_eq!((encoding.set.targets(2), encoding.set.targets(3)), (1, 0));
    let logits = bundle.logits(&encoding);
    let predictions = bundle.task.predict(&bundle.examples, &encoding, &logits);
    let error = bundle.task.score(&bundle.examples, &predictions).unwrap_err().to_string();
    assert!(error.contains("line 4: no label, which scoring needs"), "{error}");
    assert_eq!(bundle.task.majority(&bundle.examples), None);
}

#[test]
fn the_majority_is_the_most_frequent_label_and_its_share() {
    let task = Task::new(TaskKind::Tagging, vec!["B-x".to_string(), "O".to_string()]);
    let examples = [sentence(&["a", "b"], &["O", "B-x"]), sentence(&["c"], &["O"])];
    assert_eq!(task.majority(&examples), Some(("O".to_string(), 2.0 / 3.0)));
    // Of equally frequent ones the first.
    assert_eq!(task.majority(&examples[..1]), Some(("B-x".to_string(), 0.5)));
    assert_eq!(task.majority(&[]), None);
}

/// Examples of `{prompt, response}` and a tokenizer that puts a token before a text.
fn prompts() -> (Vec<Example>, TextTokenizer, Vec<u8>) {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama-causal-lm"));
    let examples = read_examples(&directory.join("data.jsonl"), TaskKind::CausalLm, &Columns::default()).unwrap();
    let tokenizer = TextTokenizer::open(&directory.join("model"), &specification(None)).unwrap();
    (examples, tokenizer, std::fs::read(directory.join("expected.safetensors")).unwrap())
}

fn sequences(encoding: &Encoding) -> Vec<(Vec<u32>, Vec<u32>, Vec<i32>)> {
    let set = &encoding.set;
    let of = |sequence: &crate::data::Sequence, targets: &[i32]| (sequence.ids.clone(), sequence.readout.clone(), targets.to_vec());
    set.sequences.iter().zip(&set.features).map(|(sequence, feature)| of(sequence, &feature.targets)).collect()
}

#[test]
fn prompts_and_responses_are_the_bundles() {
    let (examples, tokenizer, expected) = prompts();
    let task = Task::new(TaskKind::CausalLm, Vec::new());
    let encoding = task.encode(&examples, &tokenizer, &Limits { max_length: 128, doc_stride: 0 }).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&expected).unwrap();
    let integers = |name: &str| -> Vec<i32> {
        tensors.tensor(name).unwrap().data().chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let (mut ids, mut labels) = (Vec::new(), Vec::new());
    for (own, readout, targets) in sequences(&encoding) {
        let start = labels.len();
        ids.extend(own.iter().map(|&id| id as i32));
        labels.resize(ids.len(), -100);
        for (row, target) in readout.iter().zip(targets) {
            labels[start + *row as usize + 1] = target;
        }
    }
    assert_eq!((ids, labels, encoding.truncated), (integers("input_ids"), integers("labels"), 0));
}

#[test]
fn long_prompts_lose_their_beginning_and_then_responses_their_end() {
    let (mut examples, tokenizer, _) = prompts();
    let task = Task::new(TaskKind::CausalLm, Vec::new());
    let encode = |examples: &[Example], max_length| {
        let encoding = task.encode(&examples[..1], &tokenizer, &Limits { max_length, doc_stride: 0 })?;
        Ok::<_, anyhow::Error>((sequences(&encoding).remove(0), encoding.truncated))
    };
    let ((whole, rows, targets), truncated) = encode(&examples, 99).unwrap();
    let (length, response) = (whole.len(), targets.len());
    assert_eq!((truncated, rows[0] as usize, targets[response - 1]), (0, length - response - 1, 418));
    for cut in 1..length - 2 {
        let ((ids, rows, targets), truncated) = encode(&examples, length - cut).unwrap();
        let kept = response.min(length - cut - 1);
        assert_eq!((ids.len(), truncated, rows.len(), targets.len()), (length - cut, 1, kept, kept));
        let prompt = length - cut - kept;
        assert_eq!((ids[0], rows[0] as usize), (whole[0], prompt - 1), "BOS stays");
        assert_eq!(ids[1..prompt], whole[length - response - (prompt - 1)..length - response]);
        assert_eq!(ids[prompt..], whole[length - response..][..kept]);
        assert_eq!(targets.last() == Some(&418), kept == response);
    }
    assert!(encode(&examples, 2).unwrap_err().to_string().contains("--max-length 2"));

    // A prompt alone: its last row is read, and there is nothing to be right about.
    let prompt = task.encode_prompts(&examples[..1], &tokenizer, &Limits { max_length: 6, doc_stride: 0 }).unwrap();
    let (ids, rows, targets) = sequences(&prompt).remove(0);
    assert_eq!((ids.len(), rows, targets), (6, vec![5], vec![]));
    assert_eq!(ids[1..], whole[length - response - 5..length - response]);
    examples[0].content.remove_label();
    assert_eq!(encode(&examples, 6).unwrap().0, (ids, vec![5], vec![]));
    examples[0].content = Content::Prompt { prompt: String::new(), response: Some(" x".to_string()) };
    assert_eq!(encode(&examples, 99).unwrap().0.1[0], 0, "BOS predicts the first token");
}

#[test]
fn responses_are_scored_by_their_tokens() {
    let (examples, tokenizer, _) = prompts();
    let task = Task::new(TaskKind::CausalLm, Vec::new());
    let encoding = task.encode(&examples[..2], &tokenizer, &Limits { max_length: 99, doc_stride: 0 }).unwrap();
    let logits = vec![vec![-1.0, 1.0, -2.0, 0.0, -0.5, 1.0], vec![-0.25, 1.0]];
    let predictions = task.predict(&examples[..2], &encoding, &logits);
    let scores = task.score(&examples[..2], &predictions).unwrap();
    assert_eq!(scores.get("token_accuracy"), Some(0.75));
    assert!((scores.get("perplexity").unwrap() - (3.75f64 / 4.0).exp()).abs() < 1e-12);
    let line = predictions[0].to_json(0, &With { logits: true, input_ids: false, scheme: None });
    assert_eq!(line, json!({"index": 0, "logits": -3.5}));
    assert_eq!((task.default_metric(), task.majority(&examples)), ("loss", None));
}

fn glm() -> (TextTokenizer, Specification) {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/glm-cloze/model"));
    let spec = crate::model::describe(&crate::model::Config::of_model(directory).unwrap()).unwrap().1;
    (TextTokenizer::open(directory, &spec).unwrap(), spec)
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn text(text: &str, label: &str) -> Example {
    let content = Content::Text { text: text.to_string(), pair: None, label: Some(Label::Name(label.to_string())) };
    Example::new(content, "data.jsonl, line 3".to_string())
}

#[test]
fn a_cloze_keeps_its_blank_and_fills_it_with_every_label() {
    let (tokenizer, spec) = glm();
    let labels = strings(&["yes", "no"]);
    let task = |words: &[&str]| {
        let verbalizer = Verbalizer::new(&labels, &strings(words), &tokenizer, &spec).unwrap();
        Task::new(TaskKind::Classification, labels.clone()).with_verbalizer(Some(verbalizer))
    };
    let [cls, end, mask, start] = ["[CLS]", "<|endoftext|>", "[MASK]", "<|startofpiece|>"].map(|name| tokenizer.token(name).unwrap());
    let example = text("The old mill by the lake was sold? [MASK]. The ferry left the harbour in March", "no");
    let single = task(&[" Yes", " No"]);
    let encode = |task: &Task, max_length| task.encode(std::slice::from_ref(&example), &tokenizer, &Limits { max_length, doc_stride: 0 });
    let whole = encode(&single, 99).unwrap().set.sequences.remove(0);
    let (length, blank) = (whole.ids.len(), whole.blank.unwrap() as usize);
    assert_eq!((whole.ids[0], whole.ids[blank], &whole.ids[length - 2..]), (cls, mask, &[end, start][..]));
    assert_eq!((whole.separator as usize, &whole.readout), (length - 1, &vec![length as u32 - 1]));
    for max_length in 4..length {
        let encoding = encode(&single, max_length).unwrap();
        let sequence = &encoding.set.sequences[0];
        let at = sequence.blank.unwrap() as usize;
        assert_eq!((sequence.ids.len(), sequence.ids[at], encoding.truncated), (max_length, mask, 1));
        // Behind the blank nothing is left before anything in front of it is cut.
        assert!(at == blank || max_length == at + 3, "{max_length}");
        assert_eq!(sequence.ids[1..max_length - 2], whole.ids[1 + blank - at..][..max_length - 3]);
    }
    assert!(encode(&single, 3).unwrap_err().to_string().contains("raise it to 4"));

    // Several tokens: one sequence a label, of the same frame.
    let several = task(&[" Yes indeed", " No"]);
    let tokens = tokenizer.encode_part(" Yes indeed").unwrap();
    assert!(tokens.len() > 1);
    let encoding = encode(&several, 99).unwrap();
    let [yes, no] = encoding.set.sequences.as_slice() else { panic!() };
    assert_eq!((no.ids.as_slice(), no.blank, no.separator), (whole.ids.as_slice(), whole.blank, whole.separator));
    assert_eq!(yes.ids, [whole.ids.as_slice(), &tokens[..tokens.len() - 1]].concat());
    assert_eq!((&yes.predicts, yes.readout[0] as usize, yes.readout.len()), (&tokens, length - 1, tokens.len()));
    assert_eq!(encoding.set.features[0].targets, [1]);
    assert_eq!(encode(&several, 12).unwrap().set.longest_sequence(), 12, "the longest label fits too");
    assert_eq!((single.grouping(), several.grouping()), (Grouping::PerRow, Grouping::PerSequence));
    let predictions = [vec![-3.0, -2.5]];
    assert_eq!(several.predict(std::slice::from_ref(&example), &encoding, &predictions)[0].outcome, Outcome::Label(1));
}

/// An encoder reads the text as it is, and its blank where it stands, spelled as its tokenizer has it.
#[test]
fn a_masked_cloze_reads_its_blank_in_its_place() {
    for (bundle, spelled) in [("bert-cloze", "[MASK]"), ("roberta-cloze", "<mask>"), ("deberta-cloze", "[MASK]")] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(bundle).join("model");
        let spec = crate::model::describe(&crate::model::Config::of_model(&directory).unwrap()).unwrap().1;
        let tokenizer = TextTokenizer::open(&directory, &spec).unwrap();
        let labels = strings(&["yes", "no"]);
        let verbalizer = Verbalizer::new(&labels, &strings(&[" twice", " sold"]), &tokenizer, &spec).unwrap();
        let task = Task::new(TaskKind::Classification, labels).with_verbalizer(Some(verbalizer));
        let example = text("The old bridge was [MASK] before the ferry left", "no");
        let encode = |max_length| task.encode(std::slice::from_ref(&example), &tokenizer, &Limits { max_length, doc_stride: 0 });
        let whole = encode(99).unwrap().set.sequences.remove(0);
        let (length, mask) = (whole.ids.len(), tokenizer.token(spelled).unwrap());
        assert_eq!(tokenizer.encode_text(&format!("The old bridge was {spelled} before the ferry left"), None, 99).unwrap().ids, whole.ids);
        let at = whole.readout[0] as usize;
        assert_eq!((whole.ids[at], whole.readout.len(), whole.separator, whole.blank), (mask, 1, 0, None));
        for max_length in 3..length {
            let sequence = encode(max_length).unwrap().set.sequences.remove(0);
            let now = sequence.readout[0] as usize;
            assert_eq!((sequence.ids.len(), sequence.ids[now]), (max_length, mask), "{bundle}");
            // Behind the blank nothing is left before anything in front of it is cut.
            assert!(now == at || max_length == now + 2, "{bundle}: {max_length}");
            assert_eq!(sequence.ids[1..max_length - 1], whole.ids[1 + at - now..][..max_length - 2]);
        }
        assert!(encode(2).unwrap_err().to_string().contains("raise it to 3"));
    }
}

#[test]
fn clozes_that_cannot_be_are_refused() {
    let (tokenizer, spec) = glm();
    let labels = strings(&["yes", "no"]);
    let new = |words: &[&str], spec: &Specification| Verbalizer::new(&labels, &strings(words), &tokenizer, spec);
    for (words, part) in
        [(["", " No"], "has no token"), ([" No", " No"], "have the same tokens"), ([" Yes", "[UNK]"], "does not know the word")]
    {
        let message = format!("{:#}", new(&words, &spec).unwrap_err());
        assert!(message.contains("--verbalizer") && message.contains(part), "{message}");
    }
    let encoder = Specification { mask: crate::model::MaskKind::Full, ..spec.clone() };
    let message = new(&[" Yes indeed", " No"], &encoder).unwrap_err().to_string();
    assert!(message.contains("\" Yes indeed\" of the label \"yes\" has ") && message.contains("choose a word of one token"), "{message}");
    let (masked, limits) = (new(&[" Yes", " No"], &encoder).unwrap(), Limits { max_length: 64, doc_stride: 0 });
    let task = Task::new(TaskKind::Classification, labels.clone()).with_verbalizer(Some(masked));
    let message = format!("{:#}", task.encode(&[text("a [MASK] and a [MASK]", "no")], &tokenizer, &limits).unwrap_err());
    assert!(message.starts_with("data.jsonl, line 3: the text has 2 blanks"), "{message}");
    let task = Task::new(TaskKind::Classification, labels.clone()).with_verbalizer(Some(new(&[" Yes", " No"], &spec).unwrap()));
    let limits = Limits { max_length: 64, doc_stride: 0 };
    let message = |example: Example| format!("{:#}", task.encode(&[example], &tokenizer, &limits).unwrap_err());
    assert!(message(text("nothing to fill", "no")).starts_with("data.jsonl, line 3: the text has no [MASK]"));
    assert!(message(text("a [MASK]", "maybe")).contains("unknown label \"maybe\""));
    let mut pair = text("a [MASK]", "no");
    pair.content = Content::Text { text: "a [MASK]".into(), pair: Some("b".into()), label: None };
    assert!(message(pair).contains("put both into it"));
}

/// A causal model knows only what stands before the blank.
#[test]
fn a_causal_cloze_ends_with_its_blank() {
    let (_, tokenizer, _) = prompts();
    let spec = Specification { mask: crate::model::MaskKind::Causal, ..specification(None) };
    let labels = strings(&["yes", "no"]);
    let verbalizer = Verbalizer::new(&labels, &strings(&[" Yes of course", " No"]), &tokenizer, &spec).unwrap();
    let task = Task::new(TaskKind::Classification, labels).with_verbalizer(Some(verbalizer));
    let encode = |example: &str, max_length| task.encode(&[text(example, "yes")], &tokenizer, &Limits { max_length, doc_stride: 0 });
    let set = encode("The ferry left late. True?  [MASK] ", 99).unwrap().set;
    let frame = [&[417], tokenizer.encode_part("The ferry left late. True?").unwrap().as_slice()].concat();
    let [yes, no] = [" Yes of course", " No"].map(|word| tokenizer.encode_part(word).unwrap());
    let longest = yes.len();
    for (sequence, word) in set.sequences.iter().zip([&yes, &no]) {
        assert_eq!(sequence.ids, [frame.as_slice(), &word[..word.len() - 1]].concat());
        assert_eq!((sequence.readout[0] as usize, &sequence.predicts, sequence.blank), (frame.len() - 1, word, None));
    }
    let cut = encode("The ferry left late. True? [MASK]", 3 + longest).unwrap();
    assert_eq!((cut.truncated, cut.set.longest_sequence(), cut.set.sequences[1].ids[0]), (1, 3 + longest, 417), "BOS stays");
    assert!(format!("{:#}", encode("True? [MASK]. The ferry", 99).unwrap_err()).contains("at the end of the text"));
}
