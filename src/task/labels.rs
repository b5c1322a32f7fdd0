//! Labels of a task: which ones there are, and which of them a label of the data means.

use crate::data::{Content, Example, Label};
use crate::model::{Specification, TaskKind};
use anyhow::{Result, bail};
use std::collections::{BTreeSet, HashMap, HashSet};

/// More labels than this are taken for a wrong column: texts or ids instead of labels.
const MOST_LABELS: usize = 10_000;

/// Label names in order of their indices.
#[derive(Clone, Debug)]
pub struct Labels {
    names: Vec<String>,
    indices: HashMap<String, usize>,
    /// Some names are integers: a number then is a name, not an index.
    numbers: bool,
}

/// The integer that a text spells in the one usual way (no sign +, no leading zeros).
fn integer(text: &str) -> Option<i64> {
    text.parse().ok().filter(|value: &i64| value.to_string() == text)
}

impl Labels {
    pub fn new(names: Vec<String>) -> Labels {
        let mut indices = HashMap::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            indices.entry(name.clone()).or_insert(index);
        }
        let numbers = names.iter().any(|name| integer(name).is_some());
        Labels { names, indices, numbers }
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub fn name(&self, index: usize) -> &str {
        &self.names[index]
    }

    /// Index of the label that the data spells so: a name, else (where no name is a number itself) an index.
    pub fn find(&self, label: &Label) -> Option<usize> {
        let number = match label {
            Label::Name(name) => match self.indices.get(name) {
                Some(&index) => return Some(index),
                None => integer(name)?,
            },
            Label::Index(number) => *number,
        };
        if self.numbers {
            return self.indices.get(&number.to_string()).copied();
        }
        usize::try_from(number).ok().filter(|&index| index < self.names.len())
    }

    /// The same, or an error that names the place and what is known.
    pub fn resolve(&self, label: &Label, place: &dyn std::fmt::Display, kind: TaskKind) -> Result<usize> {
        if let Some(index) = self.find(label) {
            return Ok(index);
        }
        let shown = self.names.iter().take(12).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if self.names.len() > 12 { format!(", ... ({} in all)", self.names.len()) } else { String::new() };
        bail!(
            "{place}: unknown label {}; known are: {shown}{more}. Correct the data, or name the right column with {}",
            spelled(label),
            column_flag(kind)
        )
    }
}

fn spelled(label: &Label) -> String {
    match label {
        Label::Index(number) => number.to_string(),
        Label::Name(name) => format!("{name:?}"),
    }
}

fn column_flag(kind: TaskKind) -> &'static str {
    if kind == TaskKind::Tagging { "--tag-column" } else { "--label-column" }
}

/// A word's place in its example, for messages.
pub(super) struct WordPlace<'a>(pub &'a Example, pub usize);

impl std::fmt::Display for WordPlace<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}, word {}", self.0.place, self.1 + 1)
    }
}

/// The labels that an example carries: one, one a word, or none.
fn labels_of(example: &Example) -> &[Label] {
    match &example.content {
        Content::Text { label, .. } => label.as_slice(),
        Content::Words { tags, .. } => tags.as_deref().unwrap_or_default(),
        Content::Choices { .. } | Content::Question { .. } | Content::Prompt { .. } => &[],
    }
}

/// An error at the first example without labels. `purpose`: what needs them ("training").
pub fn require_labels(examples: &[Example], purpose: &str) -> Result<()> {
    let unlabelled = |example: &&Example| match &example.content {
        Content::Text { label, .. } => label.is_none(),
        Content::Choices { label, .. } => label.is_none(),
        Content::Words { tags, .. } => tags.is_none(),
        Content::Question { answers, .. } => answers.is_none(),
        Content::Prompt { response, .. } => response.is_none(),
    };
    if let Some(example) = examples.iter().find(unlabelled) {
        let (what, remedy) = match example.content {
            Content::Text { .. } | Content::Choices { .. } => ("label", "; if another column holds it, name that with --label-column"),
            Content::Words { .. } => ("tags", ""),
            Content::Question { .. } => ("answers", ""),
            Content::Prompt { .. } => ("response", "; if another column holds it, name that with --label-column"),
        };
        bail!("{}: no {what}, which {purpose} needs{remedy}", example.place);
    }
    if examples.is_empty() {
        bail!("no examples, which {purpose} needs");
    }
    Ok(())
}

/// The labels to train with: the model's `id2label` where all labels of the data are found in it, else those of the
/// data: numbers by value, then other names sorted. Bare numbers are taken for indices into `id2label` only where there are
/// as many of them as it has names. Empty for tasks without labels.
///
/// Errors: an unlabelled example; fewer than two different labels; so many that the column must be wrong.
pub fn labels_for(kind: TaskKind, examples: &[Example], spec: &Specification) -> Result<Vec<String>> {
    require_labels(examples, "training")?;
    match kind {
        TaskKind::Classification | TaskKind::Tagging => {}
        TaskKind::MultipleChoice => {
            let single = |example: &Example| matches!(&example.content, Content::Choices { choices, .. } if choices.len() < 2);
            if examples.iter().all(single) {
                bail!("{}: nothing to learn: no example has more than one choice", examples[0].place);
            }
            return Ok(Vec::new());
        }
        TaskKind::Qa | TaskKind::CausalLm => return Ok(Vec::new()),
    }
    let mut distinct: HashSet<&Label> = HashSet::new();
    for example in examples {
        distinct.extend(labels_of(example));
        if distinct.len() > MOST_LABELS {
            bail!(
                "{}: more than {MOST_LABELS} different labels up to here; name the right column with {}",
                example.place,
                column_flag(kind)
            );
        }
    }
    let of_model = spec.labels.as_ref().map(|names| Labels::new(names.clone()));
    let named = distinct.iter().any(|label| matches!(label, Label::Name(name) if integer(name).is_none()));
    let fits =
        |labels: &Labels| (named || labels.names.len() == distinct.len()) && distinct.iter().all(|label| labels.find(label).is_some());
    let labels = match of_model.filter(fits) {
        Some(labels) => labels,
        None => Labels::new(names_of(&distinct)),
    };
    let used: HashSet<Option<usize>> = distinct.iter().map(|label| labels.find(label)).collect();
    if used.len() < 2 {
        let only = distinct.iter().next().map_or("none".to_string(), |label| spelled(label));
        bail!(
            "{}: nothing to learn: the only label in the data is {only}; name the right column with {}",
            examples[0].place,
            column_flag(kind)
        );
    }
    Ok(labels.names)
}

/// The labels of a head that came without names: the model's `id2label` where it has as many, else those of the data
/// where they are as many, else transformers' LABEL_0 and so on, which numbers in the data find by their index.
pub fn labels_of_head(outputs: usize, examples: &[Example], spec: &Specification) -> Vec<String> {
    if let Some(labels) = spec.labels.as_ref().filter(|labels| labels.len() == outputs) {
        return labels.clone();
    }
    let of_data = names_of(&examples.iter().flat_map(labels_of).collect());
    if of_data.len() == outputs { of_data } else { (0..outputs).map(|index| format!("LABEL_{index}")).collect() }
}

/// Names for the labels of the data alone: numbers by value, then other names sorted.
fn names_of(labels: &HashSet<&Label>) -> Vec<String> {
    let mut numbers: BTreeSet<i64> = BTreeSet::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for label in labels {
        match label {
            Label::Index(number) => {
                numbers.insert(*number);
            }
            Label::Name(name) => match integer(name) {
                Some(number) => {
                    numbers.insert(number);
                }
                None => {
                    names.insert(name);
                }
            },
        }
    }
    numbers.iter().map(i64::to_string).chain(names.into_iter().map(str::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::tests::specification;

    fn name(name: &str) -> Label {
        Label::Name(name.to_string())
    }

    fn texts(labels: impl IntoIterator<Item = Label>) -> Vec<Example> {
        let text = |(line, label)| {
            let content = Content::Text { text: "a text".to_string(), pair: None, label: Some(label) };
            Example::new(content, format!("data.csv, line {}", line + 1))
        };
        labels.into_iter().enumerate().map(text).collect()
    }

    #[track_caller]
    fn check(of_model: Option<&[&str]>, labels: &[Label], expected: &[&str]) {
        let spec = specification(of_model.map(|names| names.iter().map(|name| name.to_string()).collect()));
        let found = labels_for(TaskKind::Classification, &texts(labels.iter().cloned()), &spec).unwrap();
        assert_eq!(found, expected);
    }

    #[track_caller]
    fn check_error(kind: TaskKind, examples: &[Example], expected: &str) {
        let error = labels_for(kind, examples, &specification(None)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn the_models_labels_are_taken_where_they_hold_all_of_the_data() {
        let model: &[&str] = &["no", "yes", "maybe"];
        check(Some(model), &[name("yes"), name("no")], model);
        check(Some(model), &[Label::Index(2), name("no"), name("1")], model);
        check(Some(model), &[name("yes"), name("never")], &["never", "yes"]);
        check(Some(model), &[Label::Index(0), Label::Index(3)], &["0", "3"]);
    }

    #[test]
    fn labels_of_the_data_are_sorted_and_numbers_by_value() {
        check(None, &[name("b"), name("a"), name("b")], &["a", "b"]);
        check(None, &[name("10"), Label::Index(9), name("-1"), name("n/a")], &["-1", "9", "10", "n/a"]);
        check(None, &[Label::Index(1001), Label::Index(7)], &["7", "1001"]);
        check(None, &[Label::Index(-1), Label::Index(1)], &["-1", "1"]);
    }

    #[test]
    fn numbers_that_do_not_occur_are_no_labels() {
        check(None, &[Label::Index(1), Label::Index(3)], &["1", "3"]);
        check(None, &[name("1"), name("2")], &["1", "2"]);
    }

    #[test]
    fn bare_numbers_are_indices_where_there_are_as_many_as_names() {
        let two: &[&str] = &["no", "yes"];
        check(Some(two), &[Label::Index(1), Label::Index(0)], two);
        check(Some(&["no", "yes", "maybe"]), &[Label::Index(1), Label::Index(0)], &["0", "1"]);
    }

    #[test]
    fn a_head_without_names_gets_some() {
        let named = specification(Some(vec!["no".to_string(), "yes".to_string()]));
        let bare = specification(None);
        assert_eq!(labels_of_head(2, &[], &named), ["no", "yes"]);
        assert_eq!(labels_of_head(3, &[], &named), ["LABEL_0", "LABEL_1", "LABEL_2"]);
        assert_eq!(labels_of_head(2, &texts([name("b"), name("a")]), &bare), ["a", "b"]);
        assert_eq!(labels_of_head(3, &texts([name("b"), name("a")]), &bare), ["LABEL_0", "LABEL_1", "LABEL_2"]);
    }

    #[test]
    fn a_number_is_a_name_where_names_are_numbers_and_else_an_index() {
        let numbers = Labels::new(vec!["1".to_string(), "2".to_string()]);
        assert_eq!(numbers.find(&Label::Index(1)), Some(0));
        assert_eq!(numbers.find(&Label::Index(0)), None);
        let mixed = Labels::new(vec!["2".to_string(), "n/a".to_string()]);
        assert_eq!((mixed.find(&Label::Index(2)), mixed.find(&Label::Index(1))), (Some(0), None));
        let names = Labels::new(vec!["no".to_string(), "yes".to_string()]);
        assert_eq!(names.find(&Label::Index(1)), Some(1));
        assert_eq!(names.find(&name("1")), Some(1));
        for unknown in [name("01"), name("+1"), name("2"), name("No"), Label::Index(-1)] {
            assert_eq!(names.find(&unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn an_unknown_label_is_named_with_its_place_and_the_known_ones() {
        let labels = Labels::new((0..20).map(|index| format!("l{index}")).collect());
        let error = labels.resolve(&name("x"), &"data.csv, line 3", TaskKind::Classification).unwrap_err().to_string();
        assert!(error.starts_with("data.csv, line 3: unknown label \"x\"; known are: l0, l1,"), "{error}");
        assert!(error.contains("(20 in all)") && error.contains("--label-column"), "{error}");
    }

    #[test]
    fn data_that_cannot_be_trained_with_are_refused() {
        let kind = TaskKind::Classification;
        check_error(kind, &texts([name("a"), name("a")]), "the only label in the data is \"a\"");
        check_error(kind, &texts([name("1"), Label::Index(1)]), "the only label in the data is");
        check_error(kind, &texts((0..20_000).map(|index| name(&format!("text {index}")))), "line 10001: more than 10000 different labels");
        let mut examples = texts([name("a"), name("b")]);
        examples[1].content = Content::Text { text: String::new(), pair: None, label: None };
        check_error(kind, &examples, "line 2: no label, which training needs");
        check_error(kind, &[], "no examples");
        let choices = Content::Choices { text: String::new(), choices: vec!["one".to_string()], label: Some(0) };
        check_error(TaskKind::MultipleChoice, &[Example::new(choices, "f".to_string())], "more than one choice");
    }
}
