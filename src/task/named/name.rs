//! What `--task` names: a kind of task, or a data set with official files.

use super::{NamedTask, all};
use crate::model::TaskKind;
use crate::names::meant;
use anyhow::{Result, anyhow};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A kind of task, or a named one. Reads and writes as its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TaskName {
    Kind(TaskKind),
    Named(&'static NamedTask),
}

impl TaskName {
    /// Of what an adapter records: its kind, and the name where it was trained on a named task.
    pub fn of(kind: TaskKind, name: Option<&str>) -> Result<TaskName> {
        let Some(name) = name else { return Ok(TaskName::Kind(kind)) };
        match NamedTask::find(name).filter(|task| task.kind == kind) {
            Some(task) => Ok(TaskName::Named(task)),
            None => Err(anyhow!(
                "the adapter was trained for {name}, which this version of ptune does not know; give --task {}, and data of its form",
                kind.name()
            )),
        }
    }

    pub fn kind(self) -> TaskKind {
        match self {
            TaskName::Kind(kind) => kind,
            TaskName::Named(task) => task.kind,
        }
    }

    pub fn named(self) -> Option<&'static NamedTask> {
        match self {
            TaskName::Kind(_) => None,
            TaskName::Named(task) => Some(task),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            TaskName::Kind(kind) => kind.name(),
            TaskName::Named(task) => task.name,
        }
    }
}

impl From<TaskKind> for TaskName {
    fn from(kind: TaskKind) -> TaskName {
        TaskName::Kind(kind)
    }
}

impl FromStr for TaskName {
    type Err = String;

    fn from_str(text: &str) -> Result<TaskName, String> {
        if let Ok(kind) = TaskKind::from_str(text, false) {
            return Ok(TaskName::Kind(kind));
        }
        if let Some(task) = NamedTask::find(&text.to_ascii_lowercase()) {
            return Ok(TaskName::Named(task));
        }
        let spelled = text.to_lowercase().replace('_', "-");
        let kinds = || TaskKind::value_variants().iter().map(|kind| kind.name());
        let foreign = FOREIGN.iter().find(|(names, _)| names.contains(&spelled.as_str())).map(|(_, kind)| *kind);
        let last = |name: &'static str| name.rsplit('/').next();
        let near: Vec<&str> =
            all().filter(|task| last(task.name) == text.to_ascii_lowercase().rsplit('/').next()).map(|task| task.name).collect();
        let near = match near.is_empty() {
            true => foreign.or(meant(text, kinds().chain(all().map(|task| task.name)))).into_iter().collect(),
            false => near,
        };
        Err(match near.is_empty() {
            true => "choose classification, multiple-choice, tagging, qa, causal-lm, or a name that ptune tasks lists".to_string(),
            false => format!("did you mean {}? ptune tasks lists the names", near.join(" or ")),
        })
    }
}

/// What PEFT and Hugging Face's hub call the kinds of tasks.
const FOREIGN: [(&[&str], &str); 5] = [
    (&["seq-cls", "text-classification", "sequence-classification"], "classification"),
    (&["swag", "multiple-choices"], "multiple-choice"),
    (&["token-cls", "token-classification", "ner", "pos"], "tagging"),
    (&["question-ans", "question-answering", "squad"], "qa"),
    (&["text-generation", "language-modeling", "clm", "lm"], "causal-lm"),
];

impl fmt::Display for TaskName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl TryFrom<String> for TaskName {
    type Error = String;

    fn try_from(text: String) -> Result<TaskName, String> {
        text.parse().map_err(|hint| format!("unknown task {text:?}: {hint}"))
    }
}

impl From<TaskName> for String {
    fn from(name: TaskName) -> String {
        name.name().to_string()
    }
}
