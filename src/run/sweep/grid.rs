//! What a sweep runs: options of `train`, and a list of values for some of them.

use crate::run::TrainOptions;
use crate::run::file::Text;
use crate::usage;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

/// A sweep's file as it is written: `[base]` with options of `train`, `[grid]` with lists of values. A user's may have `output` too.
#[derive(Serialize)]
struct File {
    base: Table,
    grid: BTreeMap<String, Vec<Value>>,
}

/// A grid over the options of `train`, and what all runs share.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    pub output: Option<PathBuf>,
    pub base: TrainOptions,
    /// Options and their values; the seed last, so that runs which differ in it alone stand together.
    grid: Vec<(String, Vec<Value>)>,
}

/// One run.
pub struct Cell {
    pub name: String,
    /// Values on the axes, in their order.
    pub values: Vec<Value>,
    pub options: TrainOptions,
}

impl Cell {
    pub fn folder(&self) -> &Path {
        self.options.output.as_deref().unwrap_or(Path::new("."))
    }
}

pub const SEED: &str = "seed";

/// Options that belong to the sweep or the machine.
const NO_AXES: [&str; 6] = ["output", "resume", "quiet", "threads", "device", "profile-steps"];
/// Nobody means to start more.
const MOST_RUNS: usize = 10_000;

impl Sweep {
    /// Reads a sweep's file.
    pub fn read(path: &Path) -> Result<Sweep> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the sweep {}", path.display()))?;
        let file = Text { text: &text, name: &path.display().to_string() };
        let mut sweep = Sweep::default();
        for (key, value) in file.table()?.into_inner() {
            let (at, span) = (key.span().start, value.span());
            match (key.get_ref().as_ref(), value.into_inner()) {
                ("output", DeValue::String(path)) => sweep.output = Some(PathBuf::from(path.into_owned())),
                ("base", DeValue::Table(table)) => sweep.base = file.options(Spanned::new(span, table))?.of_this_version()?,
                ("grid", DeValue::Table(axes)) => sweep.add_axes(file, axes)?,
                (name @ ("output" | "base" | "grid"), other) => {
                    let wanted = if name == "output" { "text" } else { "a table" };
                    return Err(file.wrong(at, &format!("{name}: expected {wanted}, found {}", kind(&other))).into());
                }
                (name, _) => {
                    let message = format!("unknown field `{name}`; a sweep has output, [base] with options of train, and [grid]");
                    return Err(file.wrong(at, &message).into());
                }
            }
        }
        Ok(sweep)
    }

    /// The axes of a file.
    fn add_axes(&mut self, file: Text, axes: DeTable) -> Result<()> {
        for (key, values) in axes {
            let (name, at) = (key.get_ref().to_string(), key.span().start);
            let DeValue::Array(list) = values.get_ref() else {
                let found = kind(values.get_ref());
                return Err(file.wrong(at, &format!("[grid] {name}: expected a list of values, found {found}")).into());
            };
            for value in list.iter() {
                let table = DeTable::from_iter([(key.clone(), value.clone())]);
                if let Err(error) = file.options(Spanned::new(value.span(), table)) {
                    let (place, message) = error.0.split_once(": ").unwrap_or(("", &error.0));
                    let axis = if message.contains(&name) { String::new() } else { format!("{name}: ") };
                    usage!("{place}: [grid] {axis}{message}");
                }
            }
            let values =
                Vec::<Value>::deserialize(ValueDeserializer::from(values.clone())).map_err(|error| file.wrong(at, error.message()))?;
            self.add_axis(&name, values).map_err(|error| file.wrong(at, &error.to_string()))?;
        }
        Ok(())
    }

    /// Adds an axis as a flag has it: `learning-rate=5e-3,1e-2`.
    pub fn add_flag(&mut self, text: &str) -> Result<()> {
        let Some((name, values)) = text.split_once('=') else { usage!("--grid {text}: write NAME=VALUE,VALUE,...") };
        let value = |text: &str| match (text.parse(), text.parse(), text.parse()) {
            (Ok(integer), _, _) => Value::Integer(integer),
            (_, Ok(number), _) => Value::Float(number),
            (_, _, Ok(truth)) => Value::Boolean(truth),
            _ => Value::String(text.to_string()),
        };
        self.add_axis(name, values.split(',').map(|text| value(text.trim())).collect())
    }

    /// An axis in place of one of the same name.
    pub(super) fn add_axis(&mut self, name: &str, values: Vec<Value>) -> Result<()> {
        if values.is_empty() {
            usage!("[grid] {name}: there is no value");
        }
        // A foreign name becomes the option's own.
        let mut own = name.replace('_', "-");
        let mut points: Vec<TrainOptions> = Vec::new();
        for value in &values {
            let options = point(name, value)?;
            let table = options.to_table()?;
            if let (1, Some(only)) = (table.len(), table.keys().next()) {
                own = only.clone();
            }
            if points.contains(&options) {
                usage!("[grid] {name}: has {} twice", spelled(value));
            }
            points.push(options);
        }
        if NO_AXES.contains(&own.as_str()) {
            usage!("[grid] {name}: it is no axis of a sweep; give it as an option for all runs");
        }
        self.grid.retain(|(known, _)| *known != own);
        self.grid.push((own, values));
        self.grid.sort_by_key(|(name, _)| (name == SEED, name.clone()));
        Ok(())
    }

    /// The values of an axis.
    #[cfg(test)]
    pub(super) fn axis(&self, index: usize) -> &[Value] {
        &self.grid[index].1
    }

    pub fn axes(&self) -> impl Iterator<Item = &str> {
        self.grid.iter().map(|(name, _)| name.as_str())
    }

    /// Every combination of values, the last axis running fastest; each is checked.
    pub fn cells(&self, output: &Path) -> Result<Vec<Cell>> {
        let runs = self.grid.iter().map(|(_, values)| values.len()).try_fold(1usize, |product, count| product.checked_mul(count));
        let Some(runs) = runs.filter(|&runs| runs <= MOST_RUNS) else { usage!("the grid has more than {MOST_RUNS} runs") };
        if self.grid.is_empty() {
            usage!("the sweep has no axis: give a [grid] in --config, or --grid NAME=VALUE,VALUE");
        }
        let mut base = self.base.to_table()?;
        for name in self.axes() {
            base.remove(name);
        }
        let base = TrainOptions { recipe: self.base.recipe.clone(), ..TrainOptions::from_table(base)? };
        let mut cells: Vec<Cell> = Vec::new();
        for index in 0..runs {
            let mut rest = index;
            let mut values: Vec<Value> = Vec::new();
            for (_, axis) in self.grid.iter().rev() {
                values.insert(0, axis[rest % axis.len()].clone());
                rest /= axis.len();
            }
            let mut upper = TrainOptions::default();
            for (name, value) in self.axes().zip(&values) {
                upper = point(name, value)?.over(&upper)?;
            }
            let name = self.axes().zip(&values).map(|(name, value)| format!("{name}={}", spelled(value))).collect::<Vec<_>>().join(",");
            let name: String =
                name.chars().map(|letter| if letter.is_alphanumeric() || "=,.-".contains(letter) { letter } else { '_' }).collect();
            if name.len() > 200 || cells.iter().any(|cell| cell.name == name) {
                usage!("[grid]: the run {name} needs a name of its own that a folder can have; shorten or change its values");
            }
            let mut options = upper.over(&base)?;
            options.output = Some(output.join(&name));
            options.resume = Some(true);
            options.quiet = Some(true);
            let mut whole = options.clone().with_recipe()?;
            whole.locate()?;
            whole.validate().with_context(|| format!("run {name}"))?;
            options.check_read(&whole.task, whole.said_method()).with_context(|| format!("run {name}"))?;
            cells.push(Cell { name, values, options });
        }
        Ok(cells)
    }

    /// The text of a sweep's file.
    pub fn to_toml(&self) -> Result<String> {
        let mut base = self.base.to_table()?;
        base.extend(self.base.recipe.clone().map(|recipe| ("recipe".to_string(), Value::String(recipe))));
        let file = File { base, grid: self.grid.iter().cloned().collect() };
        toml::to_string(&file).context("the sweep cannot be written as TOML")
    }
}

/// The options of one value on one axis.
fn point(name: &str, value: &Value) -> Result<TrainOptions> {
    let text = toml::to_string(&Table::from_iter([(name.to_string(), value.clone())]))?;
    let file = Text { text: &text, name: "[grid]" };
    Ok(file.options(file.table()?)?)
}

/// What a value is, for messages.
fn kind(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
        _ => "a single value",
    }
}

/// A value as a flag has it.
pub fn spelled(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Method;

    fn sweep(text: &str) -> Result<Sweep> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.toml");
        std::fs::write(&path, text).unwrap();
        Sweep::read(&path)
    }

    const BASE: &str = "[base]\nmodel = 'm'\ndata = 'd'\nvalidation = 'v'\ntask = 'classification'\nprefix_projection = 64\n[grid]\n";

    #[test]
    fn a_grid_is_every_combination_with_the_seed_last() {
        let sweep = sweep(&format!("{BASE}seed = [1, 2]\nlr = [1e-3, 0.01]\nprefix-projection = [false, 32]")).unwrap();
        assert_eq!(sweep.axes().collect::<Vec<_>>(), ["learning-rate", "prefix-projection", "seed"]);
        let cells = sweep.cells(Path::new("out")).unwrap();
        assert_eq!(cells.len(), 8);
        assert_eq!(cells[0].name, "learning-rate=0.001,prefix-projection=false,seed=1");
        assert_eq!(cells[7].options.output, Some("out/learning-rate=0.01,prefix-projection=32,seed=2".into()));
        assert_eq!((cells[0].options.prefix_projection, cells[7].options.prefix_projection), (None, Some(32)));
        assert_eq!((cells[1].options.seed, cells[7].options.learning_rate), (Some(2), Some(0.01)));
        let again = super::tests::sweep(&sweep.to_toml().unwrap()).unwrap();
        assert_eq!((again.base == sweep.base, again.grid), (true, sweep.grid));
    }

    #[test]
    fn flags_add_axes() {
        let mut sweep = sweep(&format!("{BASE}seed = [1]")).unwrap();
        sweep.add_flag("seed=3,4").unwrap();
        sweep.add_flag("method=head,prefix").unwrap();
        let cells = sweep.cells(Path::new("out"));
        // The projection of the base has no place beside a head alone: it is hidden.
        assert_eq!(cells.unwrap().len(), 4);
        // Nor has a dropout of the prefix, which a cell of its own would be refused.
        sweep.base.prefix_dropout = Some(0.3);
        sweep.base.prefix_layers = Some("1".parse().unwrap());
        let cells = sweep.cells(Path::new("out")).unwrap();
        let dropouts: Vec<_> = cells.iter().map(|cell| (cell.options.method, cell.options.prefix_dropout)).collect();
        assert_eq!(dropouts[0], (Some(Method::Head), None));
        assert_eq!(dropouts[2], (Some(Method::Prefix), Some(0.3)));
        sweep.base.doc_stride = Some(64);
        assert!(format!("{:#}", sweep.cells(Path::new("out")).err().unwrap()).contains("--doc-stride 64: is for qa"));
        assert!(sweep.add_flag("seed").unwrap_err().to_string().contains("NAME=VALUE"));
    }

    #[test]
    fn wrong_sweeps_are_refused() {
        let message = |text: &str| match sweep(text).and_then(|sweep| sweep.cells(Path::new("out"))) {
            Ok(_) => panic!("{text}"),
            Err(error) => format!("{error:#}"),
        };
        assert!(message(BASE).contains("no axis"));
        assert!(message(&format!("{BASE}seed = []")).contains("no value"));
        assert!(message(&format!("{BASE}output = ['a']")).contains("no axis of a sweep"));
        assert!(message(&format!("{BASE}sed = [1]")).contains("sweep.toml, line 8: [grid] unknown field `sed`; the nearest are seed, "));
        assert!(message(&format!("{BASE}seed = [1, 1]")).ends_with("sweep.toml, line 8: [grid] seed: has 1 twice"));
        assert!(message(&format!("{BASE}lr = [0.001,\n1e-3]")).ends_with("line 8: [grid] lr: has 0.001 twice"));
        assert!(message(&format!("{BASE}seed = [1,\n\"x\"]")).contains("line 9: [grid] seed: expected a whole number from 0, found \"x\""));
        assert!(message(&format!("{BASE}seed = 1")).contains("line 8: [grid] seed: expected a list of values"));
        assert!(message("[base]\nmodel = 'm'\nbatch-size = 'x'").contains("line 3: batch-size: expected a whole number from 0"));
        assert!(message(&format!("{BASE}learning-rate = [-1.0]")).contains("--learning-rate -1"));
        assert!(message("[grids]\n").contains("line 1"));
        assert!(message("[base]\nfoo = 1\n[grid]\nseed = [1]").contains("foo"));
    }
}
