//! What a sweep found: a row a run, mean and deviation over seeds, the best run, and charts over the axes.

use super::grid::{Cell, SEED, Sweep, spelled};
use super::{PLOT, TABLE_CSV, TABLE_JSON};
use crate::run::TrainOptions;
use crate::run::plot::{Chart, Series, to_svg};
use crate::run::terminal::decimals;
use crate::run::trainer::write_text;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A run that is over.
pub struct Finished {
    name: String,
    values: Vec<toml::Value>,
    options: TrainOptions,
    /// The score that chose its adapter, and its name; without validation the training loss.
    metric: String,
    pub score: Option<f64>,
    results: Value,
    error: Option<String>,
}

const TRAIN_LOSS: &str = "train_loss";

impl Finished {
    pub fn new(cell: &Cell, result: Result<Value>) -> Finished {
        let (results, error) = match result {
            Ok(results) => (results, None),
            Err(error) => (Value::Null, Some(format!("{error:#}").replace('\n', " "))),
        };
        let (metric, score) = match results["metric"].as_str() {
            Some(metric) => (metric.to_string(), results["scores"][metric].as_f64()),
            None => (TRAIN_LOSS.to_string(), results[TRAIN_LOSS].as_f64()),
        };
        Finished { name: cell.name.clone(), values: cell.values.clone(), options: cell.options.clone(), metric, score, results, error }
    }

    /// On one line.
    pub fn line(&self) -> String {
        match (&self.error, self.score) {
            (Some(error), _) => format!("failed: {error}"),
            (None, Some(score)) => format!("{} {}", self.metric, decimals(score)),
            (None, None) => "no score".to_string(),
        }
    }

    fn lower_is_better(&self) -> bool {
        self.metric == "loss" || self.metric == TRAIN_LOSS
    }

    /// Greater is better.
    fn merit(&self) -> Option<f64> {
        self.score.map(|score| if self.lower_is_better() { -score } else { score })
    }
}

/// Runs that differ in the seed alone.
struct Group<'a> {
    values: Vec<&'a toml::Value>,
    runs: Vec<&'a Finished>,
}

impl Group<'_> {
    fn scores(&self) -> Vec<f64> {
        self.runs.iter().filter_map(|run| run.score).collect()
    }

    fn mean(&self) -> Option<f64> {
        let scores = self.scores();
        (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
    }

    /// Of a sample; none of a single run.
    fn deviation(&self) -> Option<f64> {
        let (scores, mean) = (self.scores(), self.mean()?);
        let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
        (scores.len() > 1).then(|| (squares / (scores.len() - 1) as f64).sqrt())
    }

    fn best(&self) -> Option<&Finished> {
        best(self.runs.iter().copied())
    }
}

/// The best run; of equal ones the first.
fn best<'a>(runs: impl Iterator<Item = &'a Finished>) -> Option<&'a Finished> {
    runs.filter(|run| run.merit().is_some()).reduce(|best, run| if run.merit() > best.merit() { run } else { best })
}

/// Tables and charts.
pub struct Report<'a> {
    axes: Vec<String>,
    runs: &'a [Finished],
    groups: Vec<Group<'a>>,
}

impl<'a> Report<'a> {
    pub fn new(sweep: &Sweep, runs: &'a [Finished]) -> Report<'a> {
        let axes: Vec<String> = sweep.axes().map(String::from).collect();
        let mut groups: Vec<Group> = Vec::new();
        for run in runs {
            let values: Vec<&toml::Value> =
                axes.iter().zip(&run.values).filter(|(axis, _)| *axis != SEED).map(|(_, value)| value).collect();
            match groups.iter_mut().find(|group| group.values == values) {
                Some(group) => group.runs.push(run),
                None => groups.push(Group { values, runs: vec![run] }),
            }
        }
        Report { axes, runs, groups }
    }

    fn group_axes(&self) -> impl Iterator<Item = &String> {
        self.axes.iter().filter(|axis| *axis != SEED)
    }

    pub fn write(&self, output: &Path) -> Result<()> {
        write_text(&output.join(TABLE_JSON), &(serde_json::to_string_pretty(&self.to_json())? + "\n"))?;
        write_text(&output.join(TABLE_CSV), &self.to_csv()?)?;
        if let Some(drawn) = to_svg(&self.charts())? {
            write_text(&output.join(PLOT), &drawn)?;
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        let row = |run: &Finished| {
            json!({
                "name": run.name,
                "grid": self.axes.iter().zip(&run.values).map(|(axis, value)| (axis.clone(), json!(value))).collect::<Map<_, _>>(),
                "metric": run.metric,
                "score": run.score,
                "results": run.results,
                "error": run.error,
            })
        };
        let group = |group: &Group| {
            json!({
                "grid": self.group_axes().zip(&group.values).map(|(axis, value)| (axis.clone(), json!(value))).collect::<Map<_, _>>(),
                "runs": group.scores().len(),
                "mean": group.mean(),
                "deviation": group.deviation(),
                "best": group.best().and_then(|run| run.score),
            })
        };
        json!({
            "runs": self.runs.iter().map(row).collect::<Vec<_>>(),
            "groups": self.groups.iter().map(group).collect::<Vec<_>>(),
            "best": best(self.runs.iter()).map(|run| json!({ "name": run.name, "score": run.score, "command": command(&run.options) })),
        })
    }

    fn to_csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let heads = ["name", "metric", "score", "best_step", "seconds", "error"];
        writer.write_record(self.axes.iter().map(String::as_str).chain(heads))?;
        for run in self.runs {
            let number = |value: &Value| if value.is_null() { String::new() } else { value.to_string() };
            let own = [
                run.name.clone(),
                run.metric.clone(),
                run.score.map_or(String::new(), |score| score.to_string()),
                number(&run.results["best_step"]),
                number(&run.results["timing"]["seconds"]),
                run.error.clone().unwrap_or_default(),
            ];
            writer.write_record(run.values.iter().map(spelled).chain(own))?;
        }
        let bytes = writer.into_inner().context("the table cannot be written")?;
        String::from_utf8(bytes).context("the table is not text")
    }

    /// The table for people, best mean first, and the best run.
    pub fn text(&self) -> String {
        let Some(best) = best(self.runs.iter()) else { return "no run came to its end".to_string() };
        let mut groups: Vec<&Group> = self.groups.iter().collect();
        let merit = |group: &Group| group.mean().map_or(f64::NEG_INFINITY, |mean| if best.lower_is_better() { -mean } else { mean });
        groups.sort_by(|a, b| merit(b).total_cmp(&merit(a)));
        let heads = self.group_axes().cloned().chain(["runs", "mean", "deviation", "best"].map(String::from)).collect();
        let mut rows: Vec<Vec<String>> = vec![heads];
        for group in groups {
            let number = |value: Option<f64>| value.map_or("-".to_string(), decimals);
            let failed = group.runs.len() - group.scores().len();
            let count = if failed == 0 { group.runs.len().to_string() } else { format!("{} ({failed} failed)", group.runs.len()) };
            let own = [count, number(group.mean()), number(group.deviation()), number(group.best().and_then(|run| run.score))];
            rows.push(group.values.iter().map(|value| spelled(value)).chain(own).collect());
        }
        let widths: Vec<usize> = (0..rows[0].len()).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
        let line =
            |row: &Vec<String>| row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect::<Vec<_>>().join("  ");
        let table = rows.iter().map(line).collect::<Vec<_>>().join("\n");
        format!("{} over the grid:\n{table}\nbest: {} ({})\n  {}", best.metric, best.name, best.line(), command(&best.options))
    }

    /// For every axis of numbers the best mean at each of its values, flat and projected prefixes apart.
    fn charts(&self) -> Vec<Chart> {
        let Some(metric) = self.runs.iter().find(|run| run.score.is_some()) else { return Vec::new() };
        let axes: Vec<&String> = self.group_axes().collect();
        let projection = axes.iter().position(|axis| *axis == "prefix-projection");
        let mut charts = Vec::new();
        for (index, axis) in axes.iter().enumerate() {
            // Sets of layers are no numbers: they stand in the order in which they were given.
            let mut sets: Vec<&toml::Value> = Vec::new();
            if axis.as_str() == "prefix-layers" {
                self.groups.iter().map(|group| group.values[index]).for_each(|set| {
                    if !sets.contains(&set) {
                        sets.push(set);
                    }
                });
            }
            let rank = |value: &toml::Value| sets.iter().position(|set| *set == value).map(|rank| rank as f64 + 1.0);
            let places: Vec<Option<f64>> =
                self.groups.iter().map(|group| rank(group.values[index]).or_else(|| place(axis, group.values[index]))).collect();
            if places.iter().any(Option::is_none) {
                continue;
            }
            let split = projection.filter(|&projection| projection != index);
            let mut series: Vec<Series> = Vec::new();
            for (group, x) in self.groups.iter().zip(places.into_iter().flatten()) {
                let name = match split.map(|split| spelled(group.values[split])) {
                    None => "best of the other axes".to_string(),
                    Some(size) if size == "false" => "flat".to_string(),
                    Some(size) => format!("projected, {size}"),
                };
                let Some(y) = group.mean() else { continue };
                let place = series.iter().position(|series| series.name == name).unwrap_or_else(|| {
                    series.push(Series { name, points: Vec::new(), dots: true });
                    series.len() - 1
                });
                let points = &mut series[place].points;
                match points.iter_mut().find(|point| point.0 == x) {
                    Some(point) if metric.lower_is_better() => point.1 = point.1.min(y),
                    Some(point) => point.1 = point.1.max(y),
                    None => points.push((x, y)),
                }
            }
            series.iter_mut().for_each(|series| series.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
            let x_label = match axis.as_str() {
                "prefix-layers" => {
                    let listed = sets.iter().enumerate().map(|(rank, set)| format!("{}: {}", rank + 1, spelled(set)));
                    format!("layers with a prefix ({})", listed.collect::<Vec<_>>().join("; "))
                }
                "learning-rate" => "learning-rate (log10)".to_string(),
                "prefix-projection" => "hidden size of the projection (0: flat)".to_string(),
                axis => axis.to_string(),
            };
            charts.push(Chart { title: format!("{} over {axis}", metric.metric), x_label, y_label: metric.metric.clone(), series });
        }
        charts
    }
}

/// Where a value stands on its axis; None where it is no number.
fn place(axis: &str, value: &toml::Value) -> Option<f64> {
    let number = value.as_float().or(value.as_integer().map(|value| value as f64));
    match axis {
        "learning-rate" => number.map(f64::log10),
        "prefix-projection" if value.as_bool() == Some(false) => Some(0.0),
        _ => number,
    }
}

/// The command line of a run.
fn command(options: &TrainOptions) -> String {
    let mut words = vec!["ptune train".to_string()];
    words.extend(options.recipe.iter().map(|recipe| format!("--recipe {recipe}")));
    for (name, value) in options.to_table().unwrap_or_default() {
        if name == "quiet" {
            continue;
        }
        words.push(format!("--{name} {}", shell(&spelled(&value))));
    }
    words.join(" ")
}

/// A word that a shell takes as it is.
fn shell(word: &str) -> String {
    match !word.is_empty() && word.chars().all(|letter| letter.is_ascii_alphanumeric() || "._/:=,+-".contains(letter)) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(length: i64, seed: i64, score: Option<f64>) -> Finished {
        let options = TrainOptions { model: Some("a model's".into()), prefix_length: Some(length as usize), ..TrainOptions::default() };
        let cell = Cell { name: format!("{length}-{seed}"), values: vec![length.into(), seed.into()], options };
        let results = score.map(|score| json!({ "metric": "accuracy", "scores": { "accuracy": score }, "best_step": 3 }));
        Finished::new(&cell, results.ok_or_else(|| anyhow::anyhow!("it diverged")))
    }

    #[test]
    fn means_and_deviations_are_over_seeds() {
        let mut sweep = Sweep::default();
        sweep.add_flag("seed=1,2").unwrap();
        sweep.add_flag("prefix-length=4,8").unwrap();
        let runs = [run(4, 1, Some(0.5)), run(4, 2, Some(0.75)), run(8, 1, Some(0.7)), run(8, 2, None)];
        let report = Report::new(&sweep, &runs);
        assert_eq!((report.groups.len(), report.groups[0].mean(), report.groups[1].mean()), (2, Some(0.625), Some(0.7)));
        // Of 0.5 and 0.75: sqrt(2 * 0.125^2 / 1).
        assert!((report.groups[0].deviation().unwrap() - 0.125 * 2f64.sqrt()).abs() < 1e-15);
        assert_eq!(report.groups[1].deviation(), None);
        let json = report.to_json();
        assert_eq!((&json["best"]["name"], &json["runs"][3]["error"]), (&json!("4-2"), &json!("it diverged")));
        assert_eq!(json["best"]["command"], r"ptune train --model 'a model'\''s' --prefix-length 4");
        let text = report.text();
        assert!(text.contains("2 (1 failed)") && text.find("0.7000") < text.find("0.6250"), "{text}");
        assert_eq!(report.to_csv().unwrap().lines().nth(1), Some("4,1,4-1,accuracy,0.5,3,,"));
        assert_eq!(report.charts().len(), 1);
        assert_eq!(report.charts()[0].series[0].points, [(4.0, 0.625), (8.0, 0.7)]);
    }

    #[test]
    fn sets_of_layers_stand_in_their_order() {
        let mut sweep = Sweep::default();
        sweep.add_axis("prefix-layers", ["3", "1-2", "2-3"].map(toml::Value::from).to_vec()).unwrap();
        let runs: Vec<Finished> =
            (0..3).map(|index| Finished { values: vec![sweep.axis(0)[index].clone()], ..run(0, 1, Some(0.25)) }).collect();
        let chart = &Report::new(&sweep, &runs).charts()[0];
        assert_eq!(chart.series[0].points, [(1.0, 0.25), (2.0, 0.25), (3.0, 0.25)]);
        assert_eq!(chart.x_label, "layers with a prefix (1: 3; 2: 1-2; 3: 2-3)");
    }

    #[test]
    fn places_on_an_axis() {
        let text = |text: &str| toml::Value::String(text.to_string());
        assert_eq!(place("learning-rate", &toml::Value::Float(0.01)), Some(-2.0));
        assert_eq!(place("prefix-projection", &toml::Value::Boolean(false)), Some(0.0));
        assert_eq!(place("schedule", &text("linear")), None);
    }
}
