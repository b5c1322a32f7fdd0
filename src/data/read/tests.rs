//! Readers on small files: what is read, and what every kind of broken file says.

use super::*;
use crate::data::{Answer, Content, Label};

fn read_with(name: &str, content: &[u8], task: TaskKind, columns: &Columns) -> Result<Vec<Example>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(name);
    std::fs::write(&path, content)?;
    read_examples(&path, task, columns)
}

fn contents(name: &str, content: &str, task: TaskKind) -> Vec<Content> {
    let examples = read_with(name, content.as_bytes(), task, &Columns::default()).unwrap();
    examples.into_iter().map(|example| example.content).collect()
}

/// The message of a failure, without the folder's name.
fn failure(name: &str, content: impl AsRef<[u8]>, task: TaskKind) -> String {
    let error = read_with(name, content.as_ref(), task, &Columns::default()).unwrap_err();
    let message = format!("{error:#}");
    match message.find(name) {
        Some(start) => message[start..].to_string(),
        None => panic!("the message does not name the file: {message}"),
    }
}

fn text(text: &str, pair: Option<&str>, label: Option<Label>) -> Content {
    Content::Text { text: text.into(), pair: pair.map(str::to_string), label }
}

fn name(name: &str) -> Option<Label> {
    Some(Label::Name(name.into()))
}

use TaskKind::{Classification, MultipleChoice, Qa, Tagging};

#[test]
fn json_lines_and_json_hold_the_same() {
    let records = [
        r#"{"text": "a", "text_pair": "b", "label": "yes"}"#,
        r#"{"label": 3, "text": "", "other": [1]}"#,
        r#"{"text": "é", "label": true, "text_pair": null}"#,
        r#"{"text": "x", "label": 2.0}"#,
    ];
    let expected = vec![
        text("a", Some("b"), name("yes")),
        text("", None, Some(Label::Index(3))),
        text("é", None, name("true")),
        text("x", None, Some(Label::Index(2))),
    ];
    assert_eq!(contents("d.jsonl", &records.join("\n"), Classification), expected);
    assert_eq!(contents("d.jsonl", &format!("\u{feff}{}\r\n\r\n", records.join("\r\n")), Classification), expected);
    assert_eq!(contents("d.json", &records.join("\n"), Classification), expected);
    assert_eq!(contents("d.json", &format!("[{}]", records.join(",\n")), Classification), expected);
    assert_eq!(contents("d.JSON", &format!("\u{feff}{{\"data\": [{}]}}", records.join(",")), Classification), expected);
}

#[test]
fn places_name_file_and_line() {
    let content = "{\"text\": \"a\"}\n\n{\"text\": \"b\"}";
    let examples = read_with("d.jsonl", content.as_bytes(), Classification, &Columns::default()).unwrap();
    assert!(examples[1].place.ends_with("d.jsonl, line 3"));
    let content = "text\n\"a\nb\"\n\n\n\"c\"\n";
    let examples = read_with("d.csv", content.as_bytes(), Classification, &Columns::default()).unwrap();
    assert!(examples[0].place.ends_with("d.csv, line 2"), "{}", examples[0].place);
    assert!(examples[1].place.ends_with("d.csv, line 6"), "{}", examples[1].place);
}

#[test]
fn csv_is_quoted_and_tsv_is_not() {
    let csv = "label,text\r\n1,\"a, \"\"b\"\"\"\r\n-1,5\" nail\r\nno,\"two\nlines\"";
    assert_eq!(
        contents("d.csv", csv, Classification),
        [
            text("a, \"b\"", None, Some(Label::Index(1))),
            text("5\" nail", None, Some(Label::Index(-1))),
            text("two\nlines", None, name("no")),
        ]
    );
    let tsv = "\u{feff}text\ttext_pair\tlabel\n\"a\" b \tc\"\t01\n\t\tx\n\n";
    assert_eq!(
        contents("d.tsv", tsv, Classification),
        [text("\"a\" b ", Some("c\""), Some(Label::Index(1))), text("", Some(""), name("x"))]
    );
    assert_eq!(contents("d.tsv", "text\na\n\nb", Classification), [text("a", None, None), text("", None, None), text("b", None, None)]);
    let columns = Columns { text: Some("s".into()), label: Some("gold".into()), ..Columns::default() };
    let examples = read_with("d.tsv", b"gold\ts\n0\tx\n", Classification, &columns).unwrap();
    assert_eq!(examples[0].content, text("x", None, Some(Label::Index(0))));
}

#[test]
fn labels_are_for_all_or_none() {
    assert_eq!(contents("d.tsv", "text\tlabel\na\t\nb\t\n", Classification), [text("a", None, None), text("b", None, None)]);
    assert!(
        failure("d.jsonl", "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\"}\n", Classification).starts_with("d.jsonl, line 2: no label")
    );
    assert!(
        failure("d.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\", \"label\": 1}\n", Classification).starts_with("d.jsonl, line 1: no label")
    );
    assert!(failure("d.csv", "text,label\na,1\nb,\n", Classification).starts_with("d.csv, line 3: no label"));
    assert!(failure("d.txt", "a X\n\nb\n", Tagging).starts_with("d.txt, line 3: no tags"));
}

#[test]
fn broken_files_say_where() {
    assert!(failure("d.jsonl", "{\"text\": \"a\"}\n{\"text\": \n", Classification).starts_with("d.jsonl, line 2: broken JSON"));
    assert!(failure("d.json", "[{\"text\": \"a\"},\n{\"text\" 1}]", Classification).starts_with("d.json, line 2: broken JSON"));
    assert!(failure("d.json", "[{\"text\": \"a\"}, 3]", Classification).contains("record 2: expected a JSON object, found a number"));
    assert!(failure("d.json", "{\"train\": []}", Classification).contains("keys found: train"));
    assert_eq!(
        failure("d.jsonl", "{\"sentence\": \"a\", \"gold\": 1}", Classification),
        "d.jsonl, line 1: no column \"text\" (columns found: sentence, gold); --text-column names it"
    );
    assert_eq!(
        failure("d.tsv", "sentence\tlabel\na\t1\n", Classification),
        "d.tsv: no column \"text\" in the header (columns found: sentence, label); --text-column names it"
    );
    assert!(failure("d.jsonl", "{\"text\": 5}", Classification).contains("\"text\" must be a string, found a number"));
    assert!(failure("d.jsonl", "{\"text\": \"a\", \"label\": 0.5}", Classification).contains("whole number or a string"));
    assert_eq!(failure("d.tsv", "text\tlabel\na\tb\tc\n", Classification), "d.tsv, line 2: 3 fields, but the header has 2");
    assert!(failure("d.csv", "text,label\na,1\n\"b,2\nc,3\n", Classification).starts_with("d.csv, line 3: a quotation mark"));
    assert!(failure("d.csv", "text\n\"b", Classification).starts_with("d.csv, line 2: a quotation mark"));
    for name in ["d.jsonl", "d.json", "d.csv", "d.tsv"] {
        assert!(failure(name, "", Classification).contains("holds no examples"));
        assert!(failure(name, b"text\n\xff\n", Classification).starts_with(&format!("{name}, line 2: not UTF-8")) || name == "d.jsonl");
    }
    assert!(failure("d.csv", "text,label\n", Classification).contains("holds no examples"));
    assert!(failure("d.parquet", "x", Classification).contains(".jsonl .json .csv .tsv"));
    assert!(failure("d.csv", "x", Qa).contains("SQuAD"));
    let missing = read_examples(Path::new("nowhere/d.jsonl"), Classification, &Columns::default()).unwrap_err();
    assert!(format!("{missing:#}").contains("cannot open nowhere/d.jsonl"));
}

#[test]
fn chosen_pair_column_must_be_there() {
    let columns = Columns { text_pair: "second".into(), ..Columns::default() };
    for (name, content) in [("d.csv", "text,label\na,1\n"), ("d.jsonl", "{\"text\": \"a\"}")] {
        let error = read_with(name, content.as_bytes(), Classification, &columns).unwrap_err();
        assert!(format!("{error:#}").contains("--text-pair-column"));
    }
}

#[test]
fn choices() {
    let expected = [Content::Choices { text: "q".into(), choices: vec!["a".into(), "b, c".into()], label: Some(1) }];
    assert_eq!(contents("d.jsonl", r#"{"text": "q", "choices": ["a", "b, c"], "label": 1}"#, MultipleChoice), expected);
    assert_eq!(contents("d.csv", "text,choices,label\nq,\"[\"\"a\"\", \"\"b, c\"\"]\",1\n", MultipleChoice), expected);
    assert_eq!(contents("d.tsv", "text\tchoices\tlabel\nq\t[\"a\", \"b, c\"]\t1\n", MultipleChoice), expected);
    let broken = |record: &str| failure("d.jsonl", record, MultipleChoice);
    assert!(broken(r#"{"text": "q", "choices": ["a", "b"], "label": 2}"#).starts_with("d.jsonl, line 1: label 2 is not the index"));
    assert!(broken(r#"{"text": "q", "choices": ["a", "b"], "label": -1}"#).contains("label -1"));
    assert!(broken(r#"{"text": "q", "choices": ["a", "b"], "label": "b"}"#).contains("found \"b\""));
    assert!(broken(r#"{"text": "q", "choices": ["a"], "label": 0}"#).contains("at least two"));
    assert!(broken(r#"{"text": "q", "label": 0}"#).contains("--choices-column"));
    assert!(
        failure("d.tsv", "text\tchoices\nq\ta,b\n", MultipleChoice).contains("d.tsv, line 2: column \"choices\" must hold a JSON list")
    );
}

#[test]
fn tagging() {
    let words = |words: &[&str], tags: Option<&[&str]>| Content::Words {
        words: words.iter().map(|word| word.to_string()).collect(),
        tags: tags.map(|tags| tags.iter().map(|tag| Label::Name(tag.to_string())).collect()),
        predicate: None,
    };
    let expected = [words(&["U.N.", "official"], Some(&["B-ORG", "O"])), words(&["Ekeus"], Some(&["B-PER"]))];
    assert_eq!(contents("d.txt", "-DOCSTART- O\n\nU.N. B-ORG\nofficial O\n\n\nEkeus B-PER", Tagging), expected);
    assert_eq!(contents("d.conll", "U.N.\tB-ORG\r\nofficial\tO\r\n\t\r\nEkeus\tB-PER\r\n", Tagging), expected);
    let lines = "{\"tokens\": [\"U.N.\", \"official\"], \"tags\": [\"B-ORG\", \"O\"]}\n{\"tokens\": [\"Ekeus\"], \"tags\": [\"B-PER\"]}";
    assert_eq!(contents("d.jsonl", lines, Tagging), expected);
    assert_eq!(contents("d.bio", "a\nb\n\nc\n", Tagging), [words(&["a", "b"], None), words(&["c"], None)]);
    let indices = [Content::Words { words: vec!["a".into()], tags: Some(vec![Label::Index(7)]), predicate: None }];
    assert_eq!(contents("d.jsonl", "{\"tokens\": [\"a\"], \"tags\": [7]}", Tagging), indices);
    let columns = Columns { tag: Some(1), ..Columns::default() };
    let examples = read_with("d.tsv", b"a\tX\tN\nb\tY\tV\n", Tagging, &columns).unwrap();
    assert_eq!(examples[0].content, words(&["a", "b"], Some(&["X", "Y"])));
    assert!(
        failure("d.jsonl", "{\"tokens\": [\"a\", \"b\"], \"tags\": [\"O\"]}", Tagging).starts_with("d.jsonl, line 1: 2 tokens but 1 tags")
    );
    assert!(failure("d.txt", "a O\nb\n", Tagging).starts_with("d.txt, line 2: 1 columns, but the sentence began with 2"));
    assert!(failure("d.txt", "a\t\n", Tagging).contains("d.txt, line 1: an empty tag"));
    assert!(failure("d.txt", "\n\n", Tagging).contains("holds no examples"));
}

#[test]
fn questions_nested_and_flat() {
    let question = |answers| Content::Question { id: "7".into(), question: " who?".into(), context: "Ćao x".into(), answers };
    let squad = |rest: &str| {
        let qas = format!("[{{\"id\": \"7\", \"question\": \" who?\"{rest}}}]");
        format!("{{\"version\": \"v2.0\", \"data\": [{{\"title\": \"t\", \"paragraphs\": [{{\"context\": \"Ćao x\", \"qas\": {qas}}}]}}]}}")
    };
    let flat = |rest: &str| format!("{{\"id\": 7, \"question\": \" who?\", \"context\": \"Ćao x\"{rest}}}");
    let answer = Some(vec![Answer { text: "x".into(), start: 4 }]);
    let nested = squad(", \"is_impossible\": false, \"answers\": [{\"text\": \"x\", \"answer_start\": 4}]");
    assert_eq!(contents("d.json", &nested, Qa), [question(answer.clone())]);
    let lists = flat(", \"answers\": {\"text\": [\"x\"], \"answer_start\": [4]}");
    assert_eq!(contents("d.jsonl", &lists, Qa), [question(answer.clone())]);
    assert_eq!(contents("d.json", &format!("[{lists}]"), Qa), [question(answer)]);
    assert_eq!(contents("d.json", &squad(", \"is_impossible\": true, \"answers\": []"), Qa), [question(Some(vec![]))]);
    assert_eq!(contents("d.json", &squad(", \"is_impossible\": true"), Qa), [question(Some(vec![]))]);
    assert_eq!(contents("d.jsonl", &flat(""), Qa), [question(None)]);
    let uneven = failure("d.jsonl", flat(", \"answers\": {\"text\": [\"x\"], \"answer_start\": []}"), Qa);
    assert_eq!(uneven, "d.jsonl, line 1: question 7: 1 answer texts but 0 answer starts");
    let negative = failure("d.json", squad(", \"answers\": [{\"text\": \"x\", \"answer_start\": -1}]"), Qa);
    assert!(negative.starts_with("d.json, record 1, paragraph 1, question 1: question 7: \"answer_start\""), "{negative}");
    assert!(failure("d.jsonl", "{\"question\": \"q\", \"context\": \"c\"}", Qa).contains("no column \"id\""));
    assert!(failure("d.json", squad(""), Classification).contains("SQuAD data"));
}

/// The bundles' data files, read whole.
#[test]
fn bundles() {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    for (bundle, task, count) in [
        ("bert-classification", Classification, 24),
        ("bert-multiple-choice", MultipleChoice, 16),
        ("bert-tagging", Tagging, 24),
        ("bert-qa", Qa, 16),
    ] {
        let examples = read_examples(&golden.join(bundle).join("data.jsonl"), task, &Columns::default()).unwrap();
        assert_eq!(examples.len(), count, "{bundle}");
    }
}

#[test]
fn labels_are_passed_over_where_they_are_not_wanted() {
    let text = "{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\"}\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, text).unwrap();
    assert!(read_examples(&path, TaskKind::Classification, &Columns::default()).is_err());
    let columns = Columns { ignore_labels: true, ..Columns::default() };
    let examples = read_examples(&path, TaskKind::Classification, &columns).unwrap();
    assert!(examples.len() == 2 && examples.iter().all(|example| !example.content.is_labelled()));
}
