//! GLUE: tables whose fields stand apart by tabs, without quoting.

use super::submission::{Submission, labels};
use super::{CLASSIFICATION, NamedTask, TEST, TRAIN, VALIDATION};
use crate::data::{Content, Expand, Layout, Origin, Record, cell_label, string};
use anyhow::{Context, Result};
use serde_json::Value;

const FILES: &[(&str, &[&str])] = &[(TRAIN, &["train.tsv"]), (VALIDATION, &["dev.tsv"]), (TEST, &["test.tsv"])];

const TASK: NamedTask = NamedTask { labels: &["0", "1"], files: FILES, ..CLASSIFICATION };

/// With the names in the first line.
const fn table(expand: Expand) -> Layout {
    Layout::Tabs { headerless: None, skips_short_rows: false, expand }
}

pub const TASKS: &[NamedTask] = &[
    NamedTask {
        name: "glue/cola",
        templates: &["sentence"],
        // Training and development files have no header, the test file has.
        layout: Layout::Tabs {
            headerless: Some(&["source", "label", "original_label", "sentence"]),
            skips_short_rows: false,
            expand: |record, _| fields(record, "sentence", None, "label"),
        },
        metrics: &["matthews", "accuracy"],
        metric: "matthews",
        submission: Submission::Table("CoLA.tsv", labels),
        ..TASK
    },
    NamedTask {
        name: "glue/mnli",
        templates: &["premise [SEP] hypothesis"],
        labels: &["entailment", "neutral", "contradiction"],
        layout: table(|record, _| fields(record, "sentence1", Some("sentence2"), "gold_label")),
        files: &[
            (TRAIN, &["train.tsv"]),
            (VALIDATION, &["dev_matched.tsv"]),
            ("validation-mismatched", &["dev_mismatched.tsv"]),
            (TEST, &["test_matched.tsv"]),
            ("test-mismatched", &["test_mismatched.tsv"]),
        ],
        submission: Submission::Table("MNLI-m.tsv, MNLI-mm.tsv", labels),
        ..TASK
    },
    NamedTask {
        name: "glue/mrpc",
        templates: &["sentence1 [SEP] sentence2"],
        layout: table(|record, _| fields(record, "#1 String", Some("#2 String"), "Quality")),
        metrics: &["accuracy", "f1", "mean"],
        files: &[
            (TRAIN, &["train.tsv", "msr_paraphrase_train.txt"]),
            (VALIDATION, &["dev.tsv"]),
            (TEST, &["test.tsv", "msr_paraphrase_test.txt"]),
        ],
        submission: Submission::Table("MRPC.tsv", labels),
        ..TASK
    },
    NamedTask {
        name: "glue/qnli",
        templates: &["question [SEP] sentence"],
        labels: &["entailment", "not_entailment"],
        layout: table(|record, _| fields(record, "question", Some("sentence"), "label")),
        submission: Submission::Table("QNLI.tsv", labels),
        ..TASK
    },
    NamedTask {
        name: "glue/qqp",
        templates: &["question1 [SEP] question2"],
        layout: Layout::Tabs {
            headerless: None,
            skips_short_rows: true,
            expand: |record, _| fields(record, "question1", Some("question2"), "is_duplicate"),
        },
        metrics: &["accuracy", "f1", "mean"],
        submission: Submission::Table("QQP.tsv", labels),
        ..TASK
    },
    NamedTask {
        name: "glue/rte",
        templates: &["sentence1 [SEP] sentence2"],
        labels: &["entailment", "not_entailment"],
        layout: table(|record, _| fields(record, "sentence1", Some("sentence2"), "label")),
        submission: Submission::Table("RTE.tsv", labels),
        ..TASK
    },
    NamedTask {
        name: "glue/sst2",
        templates: &["sentence"],
        layout: table(|record, _| fields(record, "sentence", None, "label")),
        submission: Submission::Table("SST-2.tsv", labels),
        ..TASK
    },
    NamedTask {
        name: "glue/wnli",
        templates: &["sentence1 [SEP] sentence2"],
        layout: table(|record, _| fields(record, "sentence1", Some("sentence2"), "label")),
        submission: Submission::Table("WNLI.tsv", labels),
        ..TASK
    },
];

/// One or two fields as the texts. An empty or absent label is none.
fn fields(record: &mut Record, text: &str, pair: Option<&str>, label: &str) -> Result<Vec<(Content, Origin)>> {
    let text = string(record, text, "")?;
    let pair = pair.map(|pair| string(record, pair, "")).transpose()?;
    let label = record.get(label).and_then(Value::as_str).filter(|cell| !cell.is_empty()).map(cell_label);
    let id = record.get("index").and_then(Value::as_i64).context("\"index\" must be a whole number")?;
    Ok(vec![(Content::Text { text, pair, label }, Origin { id: vec![id], ..Origin::default() })])
}
