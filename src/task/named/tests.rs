//! Samples of every official format, written by hand: what is read, what is scored, what is submitted.

use super::*;
use crate::data::{Content, Label, Origin, mutated};
use crate::task::Encoding;
use serde_json::{Value, json};

/// A file of each task's format; of GLUE the training and the test form.
const SAMPLES: &[(&str, &str)] = &[
    (
        "superglue/boolq",
        r#"{"question": "is ice water", "passage": "Ice -- Ice is frozen water.", "idx": 7, "label": true}
{"question": "do fish fly", "passage": "Most fish swim \ud83d\ude00.", "idx": 8, "label": false}"#,
    ),
    (
        "superglue/cb",
        r#"{"premise": "It rained.", "hypothesis": "It was wet", "label": "entailment", "idx": 0}
{"premise": "It may rain.", "hypothesis": "It is wet", "label": "neutral", "idx": 1}"#,
    ),
    (
        "superglue/copa",
        r#"{"premise": "The glass broke.", "choice1": "It fell.", "choice2": "It shone.", "question": "cause", "label": 0, "idx": 4}
{"premise": "The sun rose.", "choice1": "It grew cold.", "choice2": "It grew light.", "question": "effect", "label": 1, "idx": 5}"#,
    ),
    (
        "superglue/multirc",
        r#"{"idx": 3, "version": 1.1, "passage": {"text": "Ann has a dog and a cat.", "questions": [{"question": "What has Ann?", "idx": 11, "answers": [{"text": "A dog", "idx": 20, "label": 1}, {"text": "A horse", "idx": 21, "label": 0}]}, {"question": "Who has a cat?", "idx": 12, "answers": [{"text": "Ann", "idx": 22, "label": 1}]}]}}
{"idx": 4, "version": 1.1, "passage": {"text": "Bo sleeps.", "questions": [{"question": "Who sleeps?", "idx": 13, "answers": [{"text": "Bo", "idx": 23, "label": 1}]}]}}"#,
    ),
    (
        "superglue/record",
        r#"{"source": "x", "passage": {"text": "B\u00f6 met Al.\n@highlight\nAl left", "entities": [{"start": 0, "end": 1}, {"start": 7, "end": 8}, {"start": 22, "end": 23}]}, "qas": [{"query": "@placeholder went away", "answers": [{"start": 7, "end": 8, "text": "Al"}], "idx": 31}, {"query": "Al met @placeholder", "answers": [{"start": 0, "end": 1, "text": "B\u00f6"}], "idx": 32}], "idx": 2}"#,
    ),
    (
        "superglue/rte",
        r#"{"premise": "No fish was found.", "hypothesis": "A fish was found.", "label": "not_entailment", "idx": 0}
{"premise": "A fish was found.", "hypothesis": "A fish was found.", "label": "entailment", "idx": 1}"#,
    ),
    (
        "superglue/wic",
        r#"{"word": "bank", "sentence1": "The bank is open.", "sentence2": "A river bank.", "idx": 9, "label": false, "start1": 4, "start2": 8, "end1": 8, "end2": 12, "version": 1.1}"#,
    ),
    (
        "superglue/wsc",
        r#"{"text": "Mark told  Pete that he lied.", "target": {"span2_index": 4, "span1_index": 0, "span1_text": "Mark", "span2_text": "he"}, "idx": 6, "label": true}"#,
    ),
    ("glue/cola", "aa01\t1\t\tThe cat sat.\naa01\t0\t*\tCat the \"sat.\n"),
    ("glue/cola", "index\tsentence\n0\tThe cat sat.\n1\tSat cat.\n"),
    (
        "glue/mnli",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n\
         0\t1\t1n\tfiction\t( x )\t( y )\t(ROOT x)\t(ROOT y)\tIt \"rained.\tIt was dry.\tneutral\tcontradiction\n",
    ),
    (
        "glue/mrpc",
        "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t12\t13\tHe said \"yes.\tYes, he said.\r\n0\t14\t15\tA.\tB.\r\n",
    ),
    ("glue/mrpc", "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t12\t13\tHe said.\tShe said.\n"),
    ("glue/qnli", "index\tquestion\tsentence\tlabel\n5\tWho?\tHe did.\tentailment\n6\tWhen?\tHe did.\tnot_entailment"),
    (
        "glue/qqp",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n8\t1\t2\tHow?\tHow so?\t1\n9\t3\t4\tcut short\n10\t5\t6\tWhy?\tWhen?\t0\n",
    ),
    ("glue/qqp", "id\tquestion1\tquestion2\n0\tHow?\tHow so?\n"),
    ("glue/rte", "index\tsentence1\tsentence2\tlabel\n0\tA dog ran.\tAn animal ran.\tentailment\n"),
    ("glue/sst2", "sentence\tlabel\na \"fine film \t1\nso dull \t0\n"),
    ("glue/sst2", "index\tsentence\n0\ta fine film\n"),
    ("glue/wnli", "index\tsentence1\tsentence2\tlabel\n0\tThe cup fell on the plate and it broke.\tThe plate broke.\t1\n"),
    (
        "squad/v1",
        r#"{"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "Ann lives in Rome.", "qas": [{"id": "q1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 13}]}]}]}]}"#,
    ),
    (
        "squad/v2",
        r#"{"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "Ann lives in Rome.", "qas": [{"id": "q1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 13}], "is_impossible": false}, {"id": "q2", "question": "When?", "answers": [], "is_impossible": true}]}]}]}"#,
    ),
];

fn extension(task: &NamedTask) -> &str {
    task.files[0].1[0].rsplit('.').next().unwrap()
}

/// Reads a text as an official file.
fn read_bytes(name: &str, bytes: &[u8], template: usize) -> Result<Official> {
    let task = NamedTask::find(name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("sample.{}", extension(task)));
    std::fs::write(&path, bytes).unwrap();
    task.read(&path, template, &Columns::default())
}

#[track_caller]
fn read(name: &str, template: usize) -> Vec<Example> {
    let sample = SAMPLES.iter().find(|(known, _)| *known == name).unwrap().1;
    read_bytes(name, sample.as_bytes(), template).unwrap().examples
}

/// Text, second text and label of every example.
fn texts(examples: &[Example]) -> Vec<(&str, Option<&str>, Option<String>)> {
    let text = |example: &'_ Example| match &example.content {
        Content::Text { label, .. } => label.as_ref().map(|label| match label {
            Label::Name(name) => name.clone(),
            Label::Index(index) => index.to_string(),
        }),
        _ => None,
    };
    examples
        .iter()
        .map(|example| match &example.content {
            Content::Text { text: first, pair, .. } => (first.as_str(), pair.as_deref(), text(example)),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[track_caller]
fn check(name: &str, template: usize, expected: &[(&str, Option<&str>, &str)]) {
    let examples = read(name, template);
    let expected: Vec<_> = expected.iter().map(|(text, pair, label)| (*text, *pair, Some(label.to_string()))).collect();
    assert_eq!(texts(&examples), expected);
}

#[test]
fn inputs_are_built_as_the_released_code_builds_them() {
    check(
        "superglue/boolq",
        0,
        &[("is ice water", Some("Ice -- Ice is frozen water."), "true"), ("do fish fly", Some("Most fish swim \u{1f600}."), "false")],
    );
    check("superglue/wic", 0, &[("The bank is open. A river bank. Does bank have the same meaning in both sentences?", None, "false")]);
    check("superglue/wic", 1, &[("bank: The bank is open.", Some("bank: A river bank."), "false")]);
    check("superglue/wsc", 0, &[("he: Mark told  Pete that he lied.", Some("Mark"), "true")]);
    check("superglue/wsc", 1, &[("Mark told Pete that *he* lied.", Some("Mark"), "true")]);
    let passage = "Bö met Al.\n- Al left";
    check(
        "superglue/record",
        0,
        &[
            (passage, Some("Al went away"), "true"),
            (passage, Some("Bö went away"), "false"),
            (passage, Some("Al met Al"), "false"),
            (passage, Some("Al met Bö"), "true"),
        ],
    );
    let passage = "Ann has a dog and a cat.";
    check(
        "superglue/multirc",
        0,
        &[
            (passage, Some("What has Ann? A dog"), "1"),
            (passage, Some("What has Ann? A horse"), "0"),
            (passage, Some("Who has a cat? Ann"), "1"),
            ("Bo sleeps.", Some("Who sleeps? Bo"), "1"),
        ],
    );
    let copa = read("superglue/copa", 0);
    let choices = |text: &str, choices: [&str; 2], label| Content::Choices {
        text: text.into(),
        choices: choices.map(str::to_string).to_vec(),
        label: Some(label),
    };
    assert_eq!(copa[0].content, choices("The glass broke. because", ["It fell.", "It shone."], 0));
    assert_eq!(copa[1].content, choices("The sun rose. so", ["It grew cold.", "It grew light."], 1));
}

#[test]
fn tables_have_no_quoting_and_name_their_columns() {
    check("glue/cola", 0, &[("The cat sat.", None, "1"), ("Cat the \"sat.", None, "0")]);
    check("glue/mnli", 0, &[("It \"rained.", Some("It was dry."), "contradiction")]);
    check("glue/mrpc", 0, &[("He said \"yes.", Some("Yes, he said."), "1"), ("A.", Some("B."), "0")]);
    check("glue/qnli", 0, &[("Who?", Some("He did."), "entailment"), ("When?", Some("He did."), "not_entailment")]);
    check("glue/qqp", 0, &[("How?", Some("How so?"), "1"), ("Why?", Some("When?"), "0")]);
    check("glue/sst2", 0, &[("a \"fine film ", None, "1"), ("so dull ", None, "0")]);
    check("glue/wnli", 0, &[("The cup fell on the plate and it broke.", Some("The plate broke."), "1")]);
}

#[test]
fn test_files_have_numbers_and_no_labels() {
    for (name, sample) in SAMPLES.iter().filter(|(_, sample)| sample.starts_with("index\ts") || sample.starts_with("id\tquestion1")) {
        let examples = read_bytes(name, sample.as_bytes(), 0).unwrap().examples;
        let unlabelled = !sample.contains("label\n");
        assert_eq!(examples.iter().all(|example| !example.content.is_labelled()), unlabelled, "{name}");
        assert_eq!(examples[0].origin.as_ref().unwrap().id, [0], "{name}");
    }
    let record = SAMPLES.iter().find(|(name, _)| *name == "superglue/record").unwrap().1;
    let mut record: Value = serde_json::from_str(record).unwrap();
    record["qas"].as_array_mut().unwrap().iter_mut().for_each(|question| drop(question.as_object_mut().unwrap().remove("answers")));
    let examples = read_bytes("superglue/record", record.to_string().as_bytes(), 0).unwrap().examples;
    assert!(examples.len() == 4 && examples.iter().all(|example| !example.content.is_labelled()));
}

#[test]
fn rows_cut_short_are_counted_where_the_published_file_has_them_and_refused_elsewhere() {
    let sample = SAMPLES.iter().find(|(name, _)| *name == "glue/qqp").unwrap().1;
    let official = read_bytes("glue/qqp", sample.as_bytes(), 0).unwrap();
    assert_eq!((official.examples.len(), official.skipped), (2, 1));
    assert_eq!(official.examples[1].origin.as_ref().unwrap().id, [10]);
    let error = read_bytes("glue/rte", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\n", 0).unwrap_err().to_string();
    assert!(error.contains("sample.tsv, line 3: 2 fields, but 4 columns"), "{error}");
}

#[test]
fn errors_name_the_line_and_the_field() {
    for (name, line, parts) in [
        ("superglue/boolq", r#"{"question": "q", "idx": 0}"#, &["line 2", "\"passage\""][..]),
        ("superglue/boolq", r#"{"question": "q", "passage": "p", "label": true}"#, &["line 2", "\"idx\""]),
        ("superglue/copa", r#"{"premise": "p", "choice1": "a", "choice2": "b", "question": "why", "idx": 0}"#, &["line 2", "\"why\""]),
        (
            "superglue/copa",
            r#"{"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "idx": 0, "label": 2}"#,
            &["line 2", "0 or 1"],
        ),
        (
            "superglue/wsc",
            r#"{"text": "a b", "target": {"span1_text": "a", "span2_text": "b", "span2_index": 2}, "idx": 0}"#,
            &["line 2", "2 words"],
        ),
        ("superglue/multirc", r#"{"idx": 0, "passage": {"text": "t", "questions": [3]}}"#, &["line 2", "\"questions\"", "a number"]),
        (
            "superglue/record",
            r#"{"idx": 0, "passage": {"text": "ab", "entities": [{"start": 0, "end": 2}]}, "qas": []}"#,
            &["line 2", "0..=2"],
        ),
        ("superglue/record", r#"{"idx": 0, "passage": {"text": "ab", "entities": []}, "qas": []}"#, &["line 2", "no entities"]),
        ("superglue/cb", "{", &["line 2", "broken JSON"]),
    ] {
        let error = format!("{:#}", read_bytes(name, format!("\n{line}").as_bytes(), 1).expect_err(line));
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn line_ends_marks_and_missing_final_newlines_change_nothing() {
    for (name, sample) in SAMPLES {
        let plain = read_bytes(name, sample.trim_start_matches('\u{feff}').replace("\r\n", "\n").as_bytes(), 0).unwrap().examples;
        let windows = format!(
            "\u{feff}{}\r\n",
            sample.trim_start_matches('\u{feff}').replace("\r\n", "\n").trim_end_matches('\n').replace('\n', "\r\n")
        );
        let contents = |examples: Vec<Example>| examples.into_iter().map(|example| (example.content, example.origin)).collect::<Vec<_>>();
        let same = contents(read_bytes(name, windows.as_bytes(), 0).unwrap().examples);
        assert_eq!(same, contents(plain), "{name}");
        let cut = contents(read_bytes(name, windows.trim_end().as_bytes(), 0).unwrap().examples);
        assert_eq!(cut, same, "{name}");
    }
}

/// Whatever a file holds, the answer is examples or one line that names the file.
#[test]
fn damaged_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let (mut read, mut refused) = (0, 0);
    for (name, sample) in SAMPLES {
        let task = NamedTask::find(name).unwrap();
        let path = folder.path().join(format!("sample.{}", extension(task)));
        for number in 0..300 {
            std::fs::write(&path, mutated(sample.as_bytes(), number)).unwrap();
            match task.read(&path, number as usize % 2, &Columns::default()) {
                Ok(official) => read += usize::from(!official.examples.is_empty()),
                Err(error) => {
                    let error = format!("{error:#}");
                    assert!(error.contains("sample.") && !error.contains('\n'), "{name}, copy {number}: {error}");
                    refused += 1;
                }
            }
        }
    }
    // Both happen often, or the copies are no test.
    assert!(read > 1000 && refused > 1000, "{read} read, {refused} refused");
}

/// A task with its labels, as a run has it.
fn task(name: &str) -> Task {
    let named = NamedTask::find(name).unwrap();
    Task::new(named.kind, named.labels.iter().map(|label| label.to_string()).collect()).with_name(Some(named))
}

/// An encoding with one feature an example, without tokens: enough for predictions from logits.
fn encoding(examples: &[Example]) -> Encoding {
    Encoding::new(examples.iter().map(|_| crate::task::encoding::EncodedExample::single(Vec::new(), Vec::new(), false)).collect())
}

/// Scores and the submission for the logits of each example.
fn judge(name: &str, examples: &[Example], logits: &[&[f32]]) -> (Vec<(String, f64)>, String) {
    let task = task(name);
    let encoding = encoding(examples);
    let logits: Vec<Vec<f32>> = logits.iter().map(|logits| logits.to_vec()).collect();
    let predictions = task.predict(examples, &encoding, &logits);
    let mut out = Vec::new();
    write_submission(task.named().unwrap().submission, &mut out, examples, &predictions).unwrap();
    (task.score(examples, &predictions).unwrap().0, String::from_utf8(out).unwrap())
}

#[track_caller]
fn check_judged(name: &str, logits: &[&[f32]], scores: &[(&str, f64)], submission: &str) {
    let judged = judge(name, &read(name, 0), logits);
    let scores: Vec<_> = scores.iter().map(|(name, value)| (name.to_string(), *value)).collect();
    assert_eq!(judged, (scores, submission.to_string()));
}

#[test]
fn scores_and_submissions_have_their_official_form() {
    check_judged(
        "superglue/boolq",
        &[&[0.0, 1.0], &[0.0, 1.0]],
        &[("accuracy", 0.5)],
        "{\"idx\":7,\"label\":\"true\"}\n{\"idx\":8,\"label\":\"true\"}\n",
    );
    // Entailment is right, neutral is taken for entailment: F1 of 2/3 and 0, over the two labels that occur.
    check_judged(
        "superglue/cb",
        &[&[1.0, 0.0, 0.0], &[1.0, 0.0, 0.0]],
        &[("accuracy", 0.5), ("macro_f1", 1.0 / 3.0), ("mean", (0.5 + 1.0 / 3.0) / 2.0)],
        "{\"idx\":0,\"label\":\"entailment\"}\n{\"idx\":1,\"label\":\"entailment\"}\n",
    );
    check_judged("superglue/copa", &[&[1.0, 0.0], &[1.0, 0.0]], &[("accuracy", 0.5)], "{\"idx\":4,\"label\":0}\n{\"idx\":5,\"label\":0}\n");
    check_judged("superglue/wsc", &[&[0.0, 1.0]], &[("accuracy", 1.0)], "{\"idx\":6,\"label\":\"True\"}\n");
    check_judged("superglue/wic", &[&[1.0, 0.0]], &[("accuracy", 1.0)], "{\"idx\":9,\"label\":\"false\"}\n");
    check_judged("glue/cola", &[&[0.0, 1.0], &[1.0, 0.0]], &[("matthews", 1.0), ("accuracy", 1.0)], "index\tprediction\n0\t1\n1\t0\n");
    check_judged("glue/mnli", &[&[0.0, 0.0, 1.0]], &[("accuracy", 1.0)], "index\tprediction\n0\tcontradiction\n");
    // One of two right, precision 1/2, recall 1.
    let f1 = 2.0 / 3.0;
    check_judged(
        "glue/qqp",
        &[&[0.0, 1.0], &[0.0, 1.0]],
        &[("accuracy", 0.5), ("f1", f1), ("mean", (0.5 + f1) / 2.0)],
        "index\tprediction\n8\t1\n10\t1\n",
    );
}

#[test]
fn multirc_counts_answers_and_whole_questions() {
    // Answers 1 0 | 1 | 1 judged 1 1 | 1 | 0: two of three right ones found, three given; the middle question is whole.
    let (yes, no): (&[f32], &[f32]) = (&[0.0, 1.0], &[1.0, 0.0]);
    let (scores, submission) = judge("superglue/multirc", &read("superglue/multirc", 0), &[yes, yes, yes, no]);
    assert_eq!(scores, [("f1a".to_string(), 2.0 / 3.0), ("exact_match".to_string(), 1.0 / 3.0)]);
    let lines: Vec<Value> = submission.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answer = |idx: u64, label: u64| json!({"idx": idx, "label": label});
    assert_eq!(
        lines[0],
        json!({"idx": 3, "passage": {"questions": [
            {"idx": 11, "answers": [answer(20, 1), answer(21, 1)]}, {"idx": 12, "answers": [answer(22, 1)]}]}})
    );
    assert_eq!(lines[1], json!({"idx": 4, "passage": {"questions": [{"idx": 13, "answers": [answer(23, 0)]}]}}));
    assert_eq!(lines.len(), 2);
}

#[test]
fn record_takes_the_entity_with_the_greatest_second_logit() {
    // "Al" for both questions: for the second one its logit is the greater, though a softmax would prefer "Bö".
    let (scores, submission) =
        judge("superglue/record", &read("superglue/record", 0), &[&[0.0, 1.0], &[3.0, 0.5], &[9.0, 2.0], &[0.0, 1.0]]);
    assert_eq!(scores, [("exact_match".to_string(), 0.5), ("f1".to_string(), 0.5)]);
    assert_eq!(submission, "{\"idx\":31,\"label\":\"Al\"}\n{\"idx\":32,\"label\":\"Al\"}\n");
}

#[test]
fn candidates_of_one_question_are_held_together() {
    let origins: Vec<Origin> = read("superglue/record", 0).into_iter().filter_map(|example| example.origin).collect();
    assert_eq!(origins.iter().map(|origin| origin.continues).collect::<Vec<_>>(), [false, true, false, true]);
    assert_eq!(
        (origins[3].id.as_slice(), origins[3].candidate.as_deref(), origins[3].answers.as_slice()),
        (&[32][..], Some("Bö"), &["Bö".to_string()][..])
    );
}

#[test]
fn the_table_is_consistent() {
    let mut names: Vec<&str> = all().map(|task| task.name).collect();
    for task in all() {
        assert_eq!(task.name.parse(), Ok(TaskName::Named(task)));
        assert!(task.metrics.contains(&task.metric) && !task.templates.is_empty(), "{}", task.name);
        assert!([TRAIN, VALIDATION].iter().all(|split| task.splits().any(|known| known == *split)), "{}", task.name);
    }
    names.dedup();
    assert_eq!(names.len(), all().count());
    let hint = "boolq".parse::<TaskName>().unwrap_err();
    assert!(hint.contains("did you mean superglue/boolq?"), "{hint}");
}
