//! Named tasks: data sets of the paper with their official files. Each is one row of a table, [`NamedTask`], in the file
//! of its collection; nothing else in the program knows a task by its name.

mod glue;
mod name;
mod scores;
mod squad;
mod submission;
mod superglue;
mod tagging;

pub use name::TaskName;
pub use submission::{Submission, write as write_submission};

use super::{Prediction, Scores, Task};
use crate::data::{Columns, Example, Layout, Official, official_examples};
use crate::model::TaskKind;
use crate::usage;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// A data set by its name: how its files are read, built into inputs, scored and answered.
#[derive(Debug)]
pub struct NamedTask {
    /// `collection/name`.
    pub name: &'static str,
    /// What it becomes.
    pub kind: TaskKind,
    /// How an input is built, for people; one a template.
    pub templates: &'static [&'static str],
    /// In order of the head's outputs; empty: none, or those of the training data.
    pub labels: &'static [&'static str],
    pub layout: Layout,
    /// Scores, in the order in which they are shown.
    pub metrics: &'static [&'static str],
    /// The one that chooses the best adapter.
    pub metric: &'static str,
    /// All scores that it may have, by name.
    pub score: fn(&Task, &[Example], &[Prediction]) -> Result<Scores>,
    /// Names of its official files: a split, and what the file may be called.
    pub files: &'static [(&'static str, &'static [&'static str])],
    pub submission: Submission,
    /// Longest sequence where nothing else is said.
    pub max_length: usize,
    /// Question answering: whether questions may have no answer.
    pub no_answer: bool,
}

/// What most of them are: a classification, scored by accuracy.
const CLASSIFICATION: NamedTask = NamedTask {
    name: "",
    kind: TaskKind::Classification,
    templates: &[],
    labels: &[],
    layout: Layout::General,
    metrics: &["accuracy"],
    metric: "accuracy",
    score: scores::of_kind,
    files: &[],
    submission: Submission::None,
    max_length: 128,
    no_answer: false,
};

/// The split that `train` learns from, that it chooses by, and that `predict` answers.
pub const TRAIN: &str = "train";
pub const VALIDATION: &str = "validation";
pub const TEST: &str = "test";

/// All named tasks, in the order of their listing.
pub fn all() -> impl Iterator<Item = &'static NamedTask> {
    [superglue::TASKS, glue::TASKS, tagging::TASKS, squad::TASKS].into_iter().flatten()
}

impl PartialEq for NamedTask {
    fn eq(&self, other: &NamedTask) -> bool {
        self.name == other.name
    }
}

impl Eq for NamedTask {}

impl NamedTask {
    /// The task of this name.
    pub fn find(name: &str) -> Option<&'static NamedTask> {
        all().find(|task| task.name == name)
    }

    /// Reads an official file.
    pub fn read(&self, path: &Path, template: usize, columns: &Columns) -> Result<Official> {
        official_examples(path, self.layout, template, self.kind, columns)
    }

    /// The file that a path names: itself, or the file of a split in a folder.
    pub fn locate(&self, path: &Path, split: &str) -> Result<PathBuf> {
        if !path.is_dir() {
            return Ok(path.to_path_buf());
        }
        let Some((_, names)) = self.files.iter().find(|(known, _)| *known == split) else {
            usage!("--split {split}: {} has {}", self.name, self.splits().collect::<Vec<_>>().join(", "));
        };
        match names.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
            Some(file) => Ok(file),
            None => bail!("{}: there is no {} in this folder, the {split} file of {}", path.display(), names.join(" or "), self.name),
        }
    }

    pub fn splits(&self) -> impl Iterator<Item = &'static str> {
        self.files.iter().map(|(split, _)| *split)
    }

    /// Those of its scores that it is quoted by, in their order. `mean` is that of the others.
    pub(super) fn scores(&self, task: &Task, examples: &[Example], predictions: &[Prediction]) -> Result<Scores> {
        let all = (self.score)(task, examples, predictions)?;
        let own: Vec<f64> = self.metrics.iter().filter_map(|name| all.get(name)).collect();
        let value = |name: &&str| if *name == "mean" { Some(own.iter().sum::<f64>() / own.len() as f64) } else { all.get(name) };
        Ok(Scores(self.metrics.iter().filter_map(|name| Some((name.to_string(), value(name)?))).collect()))
    }
}

#[cfg(test)]
mod tests;
