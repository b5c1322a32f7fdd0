//! The data sets of a run: `--task`, `--data` and `--validation` in pairs by their order. One is the usual case; of several
//! each is looked at as if it were the only one.

use super::heads::NO_HEAD;
use super::options::TrainOptions;
use crate::checkpoint::is_name;
use crate::model::TaskKind;
use crate::task::TaskName;
use crate::usage;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// What is said of one data set.
const OF_ONE: [&str; 3] = ["task", "data", "validation"];

impl TrainOptions {
    /// How many data sets there are.
    pub fn set_count(&self) -> usize {
        self.data.len().max(1)
    }

    pub fn has_several_sets(&self) -> bool {
        self.data.len() > 1
    }

    /// The options of one data set alone.
    pub fn of_set(&self, set: usize) -> TrainOptions {
        if !self.has_several_sets() {
            return self.clone();
        }
        let only = |list: &[PathBuf]| list.get(set).cloned().into_iter().collect();
        let task = self.task.get(set).copied();
        let qa = task.is_some_and(|task| task.kind() == TaskKind::Qa);
        TrainOptions {
            task: task.into_iter().collect(),
            data: self.data.get(set).map(|data| split_name(data).1).into_iter().collect(),
            validation: only(&self.validation),
            // What is said of questions is said of the sets that have some.
            null_threshold: self.null_threshold.filter(|_| qa || !self.task.iter().any(|task| task.kind() == TaskKind::Qa)),
            sampling: None,
            ..self.clone()
        }
    }

    /// These options with what was filled in for all data sets alike; what differs between them follows from the same options
    /// again.
    pub fn completed(self, sets: &[TrainOptions]) -> Result<TrainOptions> {
        if let [only] = sets {
            return Ok(only.clone());
        }
        let tables = sets.iter().map(TrainOptions::to_table).collect::<Result<Vec<_>>>()?;
        let mut whole = self.to_table()?;
        let shared = |name: &String, value: &toml::Value| tables.iter().all(|table| table.get(name) == Some(value));
        for (name, value) in tables.first().context("there is no data set")? {
            if !OF_ONE.contains(&name.as_str()) && shared(name, value) {
                whole.insert(name.clone(), value.clone());
            }
        }
        TrainOptions::from_table(whole)
    }

    /// Names of the data sets and their heads: as given by --data NAME=PATH, else after their tasks.
    pub fn set_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (set, data) in self.data.iter().enumerate() {
            let given = if self.has_several_sets() { split_name(data).0 } else { None };
            let name = given.unwrap_or_else(|| self.task.get(set).map_or("data".to_string(), |&task| short_name(task)));
            let taken = |name: &String| names.contains(name);
            let numbered = (2..).map(|number| format!("{name}-{number}")).find(|name| !taken(name));
            names.push(if taken(&name) { numbered.unwrap_or_default() } else { name });
        }
        names
    }

    /// Refuses lists that do not pair, and what several data sets cannot have; usage errors.
    pub(super) fn check_sets(&self) -> Result<()> {
        let count = self.set_count();
        if self.task.len() > 1 && self.task.len() != count || self.has_several_sets() && self.task.len() != count {
            usage!("--task is given {} and --data {}: they go in pairs, by their order", times(self.task.len()), times(self.data.len()));
        }
        if self.validation.len() > 1 && self.validation.len() != count
            || self.has_several_sets() && ![0, count].contains(&self.validation.len())
        {
            usage!(
                "--validation is given {} and --data {}: give one for each, or none",
                times(self.validation.len()),
                times(self.data.len())
            );
        }
        if !self.has_several_sets() {
            match &self.sampling {
                Some(sampling) => usage!("--sampling {sampling}: is for several data sets, given as pairs of --task and --data"),
                None => return Ok(()),
            }
        }
        if self.verbalizer.is_some() {
            usage!("--verbalizer: its words are the labels of one data set; several have a head each");
        }
        if self.task.iter().any(|task| task.kind() == TaskKind::CausalLm) {
            usage!("--task causal-lm: trains no head, so it cannot be one of several data sets");
        }
        let given: Vec<String> = self.data.iter().filter_map(|data| split_name(data).0).collect();
        if let Some(twice) = given.iter().enumerate().find(|(index, name)| given[..*index].contains(name)) {
            usage!("--data {}=...: two data sets have this name", twice.1);
        }
        if given.iter().any(|name| name == NO_HEAD) {
            usage!("--data {NO_HEAD}=...: no head may have this name");
        }
        Ok(())
    }

    /// Puts located files in place of the folders of official ones.
    pub(super) fn set_files(&mut self, sets: &[TrainOptions]) -> Result<()> {
        for (data, set) in self.data.iter_mut().zip(sets) {
            let name = if sets.len() > 1 { split_name(data).0 } else { None };
            let Some(path) = set.data.first() else { continue };
            *data = match name {
                Some(name) => {
                    let mut named = std::ffi::OsString::from(format!("{name}="));
                    named.push(path);
                    named.into()
                }
                None => path.clone(),
            };
        }
        self.validation = sets.iter().flat_map(|set| set.validation.clone()).collect();
        if sets.len() > 1 && ![0, sets.len()].contains(&self.validation.len()) {
            let names = self.set_names();
            let without: Vec<&str> =
                sets.iter().zip(&names).filter(|(set, _)| set.validation.is_empty()).map(|(_, name)| name.as_str()).collect();
            usage!(
                "--validation: {} has no validation data, and the other data sets have: give it for each, in their order",
                without.join(" and ")
            );
        }
        Ok(())
    }
}

/// The name in NAME=PATH, and the path. What there is as a file is no name.
pub fn split_name(data: &Path) -> (Option<String>, PathBuf) {
    let pair = data.to_str().and_then(|text| text.split_once('='));
    match pair.filter(|(name, _)| is_name(name) && !data.exists()) {
        Some((name, path)) => (Some(name.to_string()), path.into()),
        None => (None, data.to_path_buf()),
    }
}

/// What a data set is called after its task: rte of superglue/rte, squad-v1 of squad/v1.
pub fn short_name(task: TaskName) -> String {
    let name = task.name();
    let last = name.rsplit('/').next().unwrap_or(name);
    let is_version = last.strip_prefix('v').is_some_and(|rest| rest.chars().all(|letter| letter.is_ascii_digit()));
    if is_version { name.replace('/', "-") } else { last.to_string() }
}

/// How often, for messages.
fn times(count: usize) -> String {
    if count == 1 { "once".to_string() } else { format!("{count} times") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(tasks: &[&str], data: &[&str]) -> TrainOptions {
        TrainOptions {
            task: tasks.iter().map(|task| task.parse().unwrap()).collect(),
            data: data.iter().map(PathBuf::from).collect(),
            ..TrainOptions::default()
        }
    }

    #[test]
    fn names_follow_tasks_and_are_told_apart() {
        let names = |tasks: &[&str], data: &[&str]| options(tasks, data).set_names();
        assert_eq!(names(&["superglue/rte", "superglue/boolq"], &["a", "b"]), ["rte", "boolq"]);
        assert_eq!(names(&["superglue/rte", "glue/rte", "squad/v1"], &["a", "b", "c"]), ["rte", "rte-2", "squad-v1"]);
        assert_eq!(names(&["tagging", "tagging"], &["one=a", "b"]), ["one", "tagging"]);
        assert_eq!(names(&["tagging"], &["one=a"]), ["tagging"]);
    }

    #[test]
    fn each_set_is_an_ordinary_run() {
        let both = options(&["tagging", "qa"], &["x=a", "b=c/d"]);
        let (first, second) = (both.of_set(0), both.of_set(1));
        assert_eq!((first.data[0].as_path(), second.data[0].as_path()), (Path::new("a"), Path::new("c/d")));
        assert_eq!(both.set_names(), ["x", "b"]);
        let complete = |set: TrainOptions, length| TrainOptions { seed: Some(3), max_length: Some(length), ..set };
        let whole = both.clone().completed(&[complete(first, 128), complete(second, 384)]).unwrap();
        assert_eq!(whole, TrainOptions { seed: Some(3), ..both });
        let one = options(&["tagging"], &["a=b"]);
        assert_eq!((one.of_set(0), one.clone().completed(std::slice::from_ref(&one)).unwrap()), (one.clone(), one));
    }

    #[test]
    fn what_does_not_pair_is_refused() {
        let message = |options: TrainOptions| options.check_sets().unwrap_err().to_string();
        assert!(message(options(&["tagging"], &["a", "b"])).contains("--task is given once and --data 2 times"));
        assert!(message(options(&["tagging", "qa"], &["a"])).contains("--task is given 2 times and --data once"));
        assert!(
            message(TrainOptions { validation: vec!["v".into()], ..options(&["tagging", "qa"], &["a", "b"]) }).contains("--validation")
        );
        assert!(message(options(&["causal-lm", "qa"], &["a", "b"])).contains("causal-lm"));
        assert!(message(options(&["tagging", "qa"], &["x=a", "x=b"])).contains("two data sets"));
        let sampling = Some("uniform".parse().unwrap());
        assert!(message(TrainOptions { sampling, ..options(&["tagging"], &["a"]) }).contains("--sampling uniform"));
    }
}
