//! SQuAD: questions about paragraphs, answered by a span of them.

use super::{NamedTask, Submission, TRAIN, VALIDATION, scores};
use crate::data::Layout;
use crate::model::TaskKind;

const ONE: NamedTask = NamedTask {
    name: "squad/v1",
    kind: TaskKind::Qa,
    templates: &["question [SEP] window of the context"],
    labels: &[],
    layout: Layout::General,
    metrics: &["exact_match", "f1"],
    metric: "f1",
    score: scores::of_kind,
    files: &[(TRAIN, &["train-v1.1.json"]), (VALIDATION, &["dev-v1.1.json"])],
    submission: Submission::Answers("predictions.json"),
    max_length: 384,
    no_answer: false,
};

pub const TASKS: &[NamedTask] = &[
    ONE,
    NamedTask { name: "squad/v2", files: &[(TRAIN, &["train-v2.0.json"]), (VALIDATION, &["dev-v2.0.json"])], no_answer: true, ..ONE },
];
