//! The README's table of families is what the tests cover: the families of the program, the tasks of the golden bundles
//! of each, and the checkpoints that transformers wrote; its table of recipes is the program's. UPDATE_README=1 rewrites them.

use crate::bundle::golden;
use crate::command::{json, text};
use crate::transformers::{fixtures, model_type};
use ptune::model::{FAMILIES, Family};
use ptune::run::recipes::RECIPES;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The model of a golden bundle: its own, or that of the bundle that it is based on.
fn model_of(folder: &Path) -> PathBuf {
    match json(&folder.join("case.json"))["base"].as_str() {
        Some(base) => golden(base).join("model"),
        None => folder.join("model"),
    }
}

/// Tasks of the golden bundles of a family.
fn tasks(family: &Family) -> BTreeSet<String> {
    let folders = std::fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path());
    folders
        .filter(|folder| folder.join("case.json").exists() && family.model_types.contains(&model_type(&model_of(folder)).as_str()))
        .map(|folder| json(&folder.join("case.json"))["task"].as_str().unwrap().replace('-', " "))
        .collect()
}

/// Versions of transformers whose checkpoints of a family are read.
fn versions(family: &Family) -> BTreeSet<String> {
    fixtures()
        .into_iter()
        .filter(|(_, folder)| family.model_types.contains(&model_type(&folder.join("safetensors")).as_str()))
        .map(|(_, folder)| json(&folder.with_file_name("versions.json"))["transformers"].as_str().unwrap().to_string())
        .collect()
}

fn listed(names: BTreeSet<String>) -> String {
    if names.is_empty() { "none".into() } else { names.into_iter().collect::<Vec<_>>().join(", ") }
}

fn table() -> String {
    let mut table =
        String::from("| `model_type` | tasks held against reference software | checkpoints written by transformers |\n|---|---|---|\n");
    for family in FAMILIES {
        let types: Vec<String> = family.model_types.iter().map(|name| format!("`{name}`")).collect();
        table.push_str(&format!("| {} | {} | {} |\n", types.join(", "), listed(tasks(family)), listed(versions(family))));
    }
    table
}

/// The released scripts' recipes.
fn recipes() -> String {
    let mut table = String::from(
        "| `--recipe` | task | prefix | rate | batch | epochs | released result | paper |\n|---|---|---|---|---|---|---|---|\n",
    );
    for recipe in RECIPES.iter().filter(|recipe| recipe.script.is_some()) {
        table.push_str(&format!(
            "| `{}` | `{}` | {} | {:e} | {} | {} | {} | {} |\n",
            recipe.name(),
            recipe.task,
            recipe.prefix_length,
            recipe.learning_rate,
            recipe.batch_size,
            recipe.epochs,
            recipe.released.unwrap(),
            recipe.paper.unwrap()
        ));
    }
    table
}

/// One test writes both tables: two would write over each other.
#[test]
fn the_readme_lists_what_is_there() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    for (name, table) in [("families", table()), ("recipes", recipes())] {
        let start = format!("<!-- {name}: rewrite with UPDATE_README=1 cargo test --test suite readme -->\n");
        let end = format!("<!-- end of {name} -->\n");
        let readme = text(&path);
        let (before, rest) = readme.split_once(&start).expect("the README marks where the table begins");
        let (found, after) = rest.split_once(&end).expect("the README marks where the table ends");
        if found == table {
            continue;
        }
        if std::env::var_os("UPDATE_README").is_some() {
            std::fs::write(&path, format!("{before}{start}{table}{end}{after}")).unwrap();
            continue;
        }
        panic!("README.md: the table of {name} is not what the program has; UPDATE_README=1 rewrites it to:\n{table}");
    }
}
