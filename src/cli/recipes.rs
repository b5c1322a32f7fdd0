//! `ptune recipes`: the settings that `--recipe` takes by name.

use super::print_rows;
use crate::run::recipes::{RECIPES, Recipe};
use anyhow::Result;
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only names that begin so: rte, conll04-roberta
    #[arg(value_name = "NAME", default_value = "")]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let rows: Vec<&Recipe> = RECIPES.iter().filter(|recipe| recipe.name().starts_with(&arguments.name)).collect();
    print_rows(&rows, &arguments.name, "recipes", arguments.json, object, table)
}

fn object(recipe: &Recipe) -> Value {
    json!({
        "name": recipe.name(),
        "model": recipe.model,
        "task": recipe.task,
        "options": recipe.options(),
        "script": recipe.script,
        "released": recipe.released,
        "paper": recipe.paper,
        "note": recipe.note,
    })
}

fn table(recipes: &[&Recipe]) -> String {
    let mut text = format!(
        "{:<26} {:<17} {:>6} {:>7} {:>5} {:>6}  {:<22} {:<22} {}\n",
        "recipe", "task", "prefix", "rate", "batch", "epochs", "released result", "paper", "from"
    );
    for recipe in recipes {
        let script = recipe.script.map_or("no script: a start to search from".to_string(), |script| format!("script {script}"));
        text.push_str(&format!(
            "{:<26} {:<17} {:>6} {:>7} {:>5} {:>6}  {:<22} {:<22} {script}{}\n",
            recipe.name(),
            recipe.task,
            recipe.prefix_length,
            format!("{:e}", recipe.learning_rate),
            recipe.batch_size,
            recipe.epochs,
            recipe.released.unwrap_or("-"),
            recipe.paper.unwrap_or("-"),
            recipe.note.map_or(String::new(), |note| format!("; {note}")),
        ));
    }
    text + "\nScores in percent. Compare a run with the script's released result; the paper's came from settings that were not all \
            released. --recipe NAME takes the settings, flags override, --model and --data are yours."
}
