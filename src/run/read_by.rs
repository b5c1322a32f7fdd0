//! Options that only some tasks or methods read. One that is given where nothing reads it is a usage error, since it would be
//! passed over in silence.

use super::options::TrainOptions;
use super::values::{Method, Offset};
use crate::data::Layout;
use crate::model::TaskKind::{self, CausalLm, Classification, MultipleChoice, Qa, Tagging};
use crate::task::TaskName;
use crate::usage;
use anyhow::Result;
use toml::Value;

/// Who reads an option.
enum Readers {
    Tasks(&'static [TaskKind]),
    /// Of tasks of these kinds those whose data have columns of any name: official files have their own.
    Columns(&'static [TaskKind]),
    /// Also what to do instead.
    Methods(&'static [Method], &'static str),
}

use Readers::{Columns, Methods, Tasks};

/// Options of all commands; what is not here is read by all.
const READ_BY: [(&str, Readers); 19] = [
    ("text-column", Columns(&[Classification, MultipleChoice, Tagging, CausalLm])),
    ("label-column", Columns(&[Classification, MultipleChoice, Tagging, CausalLm])),
    ("text-pair-column", Columns(&[Classification])),
    ("choices-column", Columns(&[MultipleChoice])),
    ("word-column", Tasks(&[Tagging])),
    ("tag-column", Tasks(&[Tagging])),
    ("tag-scheme", Tasks(&[Tagging])),
    ("long-sentences", Tasks(&[Tagging])),
    ("doc-stride", Tasks(&[Qa])),
    ("null-threshold", Tasks(&[Qa])),
    ("n-best", Tasks(&[Qa])),
    ("null-odds", Tasks(&[Qa])),
    ("verbalizer", Tasks(&[Classification])),
    ("max-new-tokens", Tasks(&[CausalLm])),
    ("prefix-projection", Methods(&[Method::Prefix, Method::Prompt], "leave it out")),
    ("prefix-layers", Methods(&[Method::Prefix], "leave it out")),
    ("prefix-dropout", Methods(&[Method::Prefix], "leave it out; --hidden-dropout acts on all embeddings")),
    ("prefix-init", Methods(&[Method::Prefix, Method::Prompt], "leave it out")),
    ("positions", Methods(&[Method::Prefix], "leave it out")),
];

fn readers(option: &str) -> Option<&'static Readers> {
    READ_BY.iter().find(|(name, _)| *name == option).map(|(_, readers)| readers)
}

impl Readers {
    /// Whether one of the tasks, and the method, read it; of what is not known that is not asked.
    fn any(&self, tasks: &[TaskName], method: Option<Method>) -> bool {
        match self {
            Tasks(kinds) => tasks.is_empty() || tasks.iter().any(|task| kinds.contains(&task.kind())),
            Columns(kinds) => {
                let free = |task: &TaskName| task.named().is_none_or(|named| matches!(named.layout, Layout::General));
                tasks.is_empty() || tasks.iter().any(|task| kinds.contains(&task.kind()) && free(task))
            }
            Methods(methods, _) => method.is_none_or(|method| methods.contains(&method)),
        }
    }
}

/// Refuses options, with their values, that none of the tasks and not the method reads.
pub fn check<'a>(said: impl Iterator<Item = (&'a str, String)>, tasks: &[TaskName], method: Option<Method>) -> Result<()> {
    for (name, value) in said {
        match readers(name) {
            Some(readers) if readers.any(tasks, method) => {}
            Some(Tasks(kinds) | Columns(kinds)) => {
                let other = tasks.iter().all(|task| !kinds.contains(&task.kind()));
                let kinds: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
                let tasks = tasks.iter().map(|task| task.name()).collect::<Vec<_>>().join(", ");
                if other {
                    usage!("--{name} {value}: is for {}, not for {tasks}; leave it out", kinds.join(", "));
                }
                usage!("--{name} {value}: the official files of {tasks} have columns of their own; leave it out");
            }
            Some(Methods(methods, remedy)) => {
                let methods: Vec<&str> = methods.iter().map(|method| method.name()).collect();
                let given = match method {
                    Some(Method::Head) => "head (--prefix-length 0), which trains the head alone",
                    other => other.map_or("", Method::name),
                };
                usage!("--{name} {value}: is for --method {}, not for --method {given}; {remedy}", methods.join(" and "));
            }
            None => {}
        }
    }
    Ok(())
}

impl TrainOptions {
    /// The method as far as it is said.
    pub(super) fn said_method(&self) -> Option<Method> {
        self.method.or(self.is_head_alone().filter(|alone| *alone).map(|_| Method::Head))
    }

    /// Refuses what these options say and nothing reads in a run of these tasks and this method. What is the default anyway
    /// contradicts nothing: the config.toml of older runs says it all.
    pub(super) fn check_read(&self, tasks: &[TaskName], method: Option<Method>) -> Result<()> {
        let [text, text_pair, label, choices] = ["text", "text_pair", "label", "choices"].map(|name| Some(name.to_string()));
        let (text_column, text_pair_column, label_column, choices_column) = (text, text_pair, label, choices);
        let columns = TrainOptions { text_column, text_pair_column, label_column, choices_column, ..TrainOptions::default() };
        let usual = TrainOptions { method, positions: Some(Offset::Shifted), ..columns }.with_defaults().to_table()?;
        let table = self.to_table()?;
        let said = table.iter().filter(|(name, value)| usual.get(name.as_str()) != Some(value));
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
        check(said.map(|(name, value)| (name.as_str(), text(value))), tasks, method)
    }

    /// Takes out of a table beneath these options what nothing reads any more, where they name another task or method than it has.
    pub(super) fn hide(&self, beneath: &TrainOptions, table: &mut toml::Table) {
        let method = self.said_method().filter(|method| beneath.said_method() != Some(*method));
        let other_task = !beneath.task.is_empty() && self.task != beneath.task;
        let tasks = if other_task { self.task.as_slice() } else { &[] };
        table.retain(|name, _| readers(name).is_none_or(|readers| readers.any(tasks, method)));
    }

    /// Without what nothing reads.
    pub(super) fn only_read(self) -> Result<TrainOptions> {
        let mut table = self.to_table()?;
        table.retain(|name, _| readers(name).is_none_or(|readers| readers.any(&self.task, self.said_method())));
        let (resume, recipe) = (self.resume, self.recipe);
        Ok(TrainOptions { resume, recipe, ..TrainOptions::from_table(table)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::file::Text;

    fn file(text: &str) -> TrainOptions {
        let file = Text { text, name: "c.toml" };
        file.options(file.table().unwrap()).unwrap()
    }

    #[test]
    fn what_nothing_reads_is_refused_unless_it_is_the_default() {
        let check = |text: &str| {
            let options = file(text);
            options.check_read(&options.task, options.said_method()).map_err(|error| error.to_string())
        };
        for (text, message) in [
            ("task = 'classification'\ndoc-stride = 64", "--doc-stride 64: is for qa, not for classification; leave it out"),
            ("task = 'qa'\ntag-scheme = 'bioes'", "--tag-scheme bioes: is for tagging, not for qa; leave it out"),
            (
                "task = 'superglue/rte'\nchoices-column = 'c'",
                "--choices-column c: is for multiple-choice, not for superglue/rte; leave it out",
            ),
            (
                "task = 'superglue/rte'\ntext-column = 'c'",
                "--text-column c: the official files of superglue/rte have columns of their own; leave it out",
            ),
            ("method = 'prompt'\nprefix-layers = 2", "--prefix-layers 2: is for --method prefix, not for --method prompt; leave it out"),
        ] {
            assert_eq!(check(text), Err(message.to_string()));
        }
        for text in
            ["prefix-length = 0\nprefix-layers = 1", "method = 'head'\nprefix-dropout = 0.2", "method = 'head'\npositions = 'unshifted'"]
        {
            assert!(check(text).unwrap_err().contains("not for --method head (--prefix-length 0)"), "{text}");
        }
        for text in [
            "task = 'classification'\ndoc-stride = 128\nchoices-column = 'choices'\nprefix-init = 'normal'",
            "task = ['qa', 'tagging']\ndata = ['a', 'b']\ndoc-stride = 64\ntag-scheme = 'iob1'",
            "doc-stride = 64",
            "task = 'ner/conll03'\ntext-column = 'words'",
            "task = 'superglue/rte'\ntext-column = 'text'",
            "method = 'head'\nprefix-dropout = 0.1\npositions = 'shifted'",
            "method = 'prompt'\nprefix-dropout = 0.0",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    /// All that they wrote, whatever read it.
    #[test]
    fn files_of_older_runs_are_taken() {
        let columns = "text-column = 'text'\ntext-pair-column = 'text_pair'\nlabel-column = 'label'\nchoices-column = 'choices'";
        let said = "task = 'tagging'\nmethod = 'head'\nprefix-dropout = 0.2\npositions = 'unshifted'\ndoc-stride = 64";
        let options = file(&format!("{said}\n{columns}")).of_this_version().unwrap();
        assert!(options.check_read(&options.task, options.said_method()).is_ok());
        assert_eq!((options.text_column, options.label_column, options.positions, options.doc_stride), (None, None, None, None));
        let own = file(&format!("{said}\ntext-column = 'text'")).of_this_version().unwrap();
        assert_eq!((own.text_column.as_deref(), own.doc_stride), (Some("text"), Some(64)));
    }

    #[test]
    fn another_task_or_method_hides_what_it_does_not_read() {
        let over = |upper: &str, beneath: &str| file(upper).over(&file(beneath)).unwrap();
        let beneath = "task = 'qa'\ndoc-stride = 64\nprefix-dropout = 0.3\npositions = 'unshifted'\nprefix-projection = 8";
        assert_eq!(over("task = 'squad/v1'", beneath).doc_stride, Some(64));
        let other = over("task = 'tagging'\nmethod = 'head'", beneath);
        assert_eq!((other.doc_stride, other.prefix_dropout, other.positions, other.prefix_projection), (None, None, None, None));
        let prompt = over("method = 'prompt'", beneath);
        assert_eq!((prompt.doc_stride, prompt.prefix_dropout, prompt.prefix_projection), (Some(64), None, Some(8)));
        assert_eq!(over("task = 'tagging'", "doc-stride = 64").doc_stride, Some(64));
        assert_eq!(over("task = 'superglue/rte'", "task = 'classification'\ntext-column = 'c'").text_column, None);
        let written = file(&format!("{beneath}\nmethod = 'prompt'")).only_read().unwrap();
        assert_eq!((written.positions, written.doc_stride), (None, Some(64)));
    }
}
