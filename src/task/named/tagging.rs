//! Tagging: named entities, and semantic roles of a predicate. Labels are those of the data.

use super::{NamedTask, Submission, TEST, TRAIN, VALIDATION, scores};
use crate::data::Layout;
use crate::model::TaskKind;

const ENTITIES: NamedTask = NamedTask {
    name: "ner/conll03",
    kind: TaskKind::Tagging,
    templates: &["words; a tag a word, at its first token"],
    labels: &[],
    layout: Layout::General,
    metrics: &["precision", "recall", "f1", "accuracy"],
    metric: "f1",
    score: scores::of_kind,
    files: &[(TRAIN, &["train.txt", "eng.train"]), (VALIDATION, &["valid.txt", "eng.testa"]), (TEST, &["test.txt", "eng.testb"])],
    submission: Submission::None,
    max_length: 256,
    no_answer: false,
};

const ROLES: NamedTask = NamedTask { templates: &["words [SEP] predicate; a tag a word, at its first token"], ..ENTITIES };

pub const TASKS: &[NamedTask] = &[
    ENTITIES,
    NamedTask {
        name: "ner/ontonotes",
        files: &[
            (TRAIN, &["train.sd.conllx", "train.txt"]),
            (VALIDATION, &["dev.sd.conllx", "dev.txt"]),
            (TEST, &["test.sd.conllx", "test.txt"]),
        ],
        ..ENTITIES
    },
    NamedTask { name: "ner/conll04", files: &[(TRAIN, &["train.txt"]), (VALIDATION, &["dev.txt"]), (TEST, &["test.txt"])], ..ENTITIES },
    NamedTask {
        name: "ner/wnut17",
        files: &[
            (TRAIN, &["wnut17train.conll", "train.conll"]),
            (VALIDATION, &["emerging.dev.conll", "dev.conll"]),
            (TEST, &["emerging.test.annotated", "test.conll"]),
        ],
        ..ENTITIES
    },
    NamedTask {
        name: "srl/conll05",
        files: &[
            (TRAIN, &["conll05.train.txt", "train.txt"]),
            (VALIDATION, &["conll05.devel.txt", "dev.txt"]),
            (TEST, WSJ),
            ("test_wsj", WSJ),
            ("test_brown", &["conll05.test.brown.txt", "test_brown.txt"]),
        ],
        ..ROLES
    },
    NamedTask {
        name: "srl/conll12",
        files: &[
            (TRAIN, &["conll2012.train.txt", "train.txt"]),
            (VALIDATION, &["conll2012.devel.txt", "dev.txt"]),
            (TEST, &["conll2012.test.txt", "test.txt"]),
        ],
        ..ROLES
    },
];

const WSJ: &[&str] = &["conll05.test.wsj.txt", "test_wsj.txt"];
