//! Settings of published experiments by name: the released scripts of P-Tuning v2 (`run_script/*.sh`), with what they reached
//! and what the paper's tables 2 and 3 say; and a start for the cells of those tables that no script was released for.
//! A score is comparable only with that of the same script: the paper's numbers came from settings that were not all released.

use super::options::TrainOptions;
use super::schedule::Schedule;
use crate::model::TaskKind;
use crate::task::{NamedTask, TaskName};
use crate::usage;
use anyhow::Result;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub model: &'static str,
    /// Tells two recipes of one task and model apart.
    variant: &'static str,
    pub task: &'static str,
    kind: TaskKind,
    pub template: usize,
    pub prefix_length: usize,
    pub projection: Option<usize>,
    pub learning_rate: f64,
    pub batch_size: usize,
    pub epochs: u64,
    /// Of the prefix and of the hidden states.
    pub dropout: f64,
    pub seed: u64,
    pub schedule: Schedule,
    pub max_length: usize,
    /// The released script; None: a start that was not tried by the authors.
    pub script: Option<&'static str>,
    /// What the script's authors report for it.
    pub released: Option<&'static str>,
    /// The paper's score of P-Tuning v2 for this cell.
    pub paper: Option<&'static str>,
    /// What must be known besides.
    pub note: Option<&'static str>,
}

const BERT: &str = "bert-large";
const ROBERTA: &str = "roberta-large";
const DEBERTA: &str = "deberta-xlarge";
const GLM_2B: &str = "glm-2b";
const GLM_10B: &str = "glm-10b";

/// Positions of BERT and RoBERTa, which prefix and text share.
const POSITIONS: usize = 512;

const PLAIN: Recipe = Recipe {
    model: "",
    variant: "",
    task: "",
    kind: TaskKind::Classification,
    template: 0,
    prefix_length: 20,
    projection: None,
    learning_rate: 5e-3,
    batch_size: 32,
    epochs: 10,
    dropout: 0.1,
    seed: 11,
    schedule: Schedule::Linear,
    max_length: 128,
    script: None,
    released: None,
    paper: None,
    note: None,
};

/// What a released script reached, and what the paper says.
const fn compared(recipe: Recipe, script: &'static str, released: &'static str, paper: &'static str) -> Recipe {
    Recipe { script: Some(script), released: Some(released), paper: Some(paper), ..recipe }
}

const fn sized(
    model: &'static str,
    task: &'static str,
    prefix_length: usize,
    learning_rate: f64,
    batch_size: usize,
    epochs: u64,
) -> Recipe {
    Recipe { model, task, prefix_length, learning_rate, batch_size, epochs, ..PLAIN }
}

/// Words, tagged: the released code cuts at the model's positions, whatever the script says.
const fn tagged(recipe: Recipe) -> Recipe {
    Recipe { kind: TaskKind::Tagging, schedule: Schedule::Exponential, max_length: POSITIONS - recipe.prefix_length, ..recipe }
}

const fn questions(recipe: Recipe) -> Recipe {
    Recipe { kind: TaskKind::Qa, schedule: Schedule::Exponential, max_length: 384, dropout: 0.2, ..recipe }
}

const fn choices(recipe: Recipe) -> Recipe {
    Recipe { kind: TaskKind::MultipleChoice, ..recipe }
}

/// A cell of the paper's tables without a released script.
const fn start(recipe: Recipe, paper: &'static str) -> Recipe {
    Recipe { paper: Some(paper), ..recipe }
}

const fn long(recipe: Recipe, max_length: usize) -> Recipe {
    Recipe { max_length, ..recipe }
}

pub static RECIPES: &[Recipe] = &[
    compared(sized(BERT, "superglue/boolq", 40, 5e-3, 32, 100), "boolq_bert", "74.3", "75.8"),
    compared(sized(ROBERTA, "superglue/boolq", 8, 7e-3, 32, 100), "boolq_roberta", "84.0", "84.8"),
    compared(sized(BERT, "superglue/rte", 20, 1e-2, 32, 60), "rte_bert", "80.1", "78.3"),
    compared(sized(ROBERTA, "superglue/rte", 128, 5e-3, 32, 100), "rte_roberta", "86.6", "89.5"),
    compared(Recipe { seed: 44, ..choices(sized(BERT, "superglue/copa", 16, 1e-2, 16, 80)) }, "copa_bert", "77.0", "73.0"),
    compared(choices(sized(ROBERTA, "superglue/copa", 8, 9e-3, 16, 120)), "copa_roberta", "92.0", "93.0"),
    compared(
        Recipe { seed: 44, template: 1, projection: Some(512), ..sized(BERT, "superglue/wic", 20, 1e-4, 16, 80) },
        "wic_bert",
        "75.1",
        "75.1",
    ),
    compared(sized(ROBERTA, "superglue/wic", 8, 1e-2, 32, 50), "wic_roberta", "73.7", "73.4"),
    compared(Recipe { seed: 44, ..sized(BERT, "superglue/wsc", 20, 5e-3, 16, 80) }, "wsc_bert", "68.3", "68.3"),
    compared(Recipe { seed: 44, ..sized(ROBERTA, "superglue/wsc", 8, 1e-2, 16, 10) }, "wsc_roberta", "64.4", "63.5"),
    compared(tagged(sized(ROBERTA, "ner/conll03", 11, 3e-2, 16, 30)), "conll03_roberta", "91.8", "92.8"),
    compared(
        Recipe { dropout: 0.2, note: UNCASED, ..tagged(sized(BERT, "ner/conll04", 128, 2e-2, 32, 40)) },
        "conll04_bert",
        "84.5",
        "84.5",
    ),
    compared(tagged(sized(ROBERTA, "ner/conll04", 144, 6e-2, 32, 80)), "conll04_roberta", "88.4", "88.4"),
    compared(Recipe { note: UNCASED, ..tagged(sized(BERT, "ner/ontonotes", 16, 1e-2, 16, 30)) }, "ontonotes_bert", "86.4", "86.4"),
    compared(Recipe { seed: 14, ..tagged(sized(ROBERTA, "ner/ontonotes", 48, 7e-3, 16, 60)) }, "ontonotes_roberta", "90.1", "89.8"),
    compared(tagged(sized(ROBERTA, "srl/conll05", 224, 6e-3, 16, 15)), "conll05_roberta", "WSJ 89.4, Brown 83.9", "WSJ 89.2, Brown 84.3"),
    compared(tagged(sized(ROBERTA, "srl/conll12", 64, 5e-3, 32, 45)), "conll12_roberta", "84.7", "84.6"),
    compared(
        Recipe {
            variant: "-128",
            note: Some("the script is named for BERT and loads roberta-large"),
            ..tagged(sized(ROBERTA, "srl/conll12", 128, 5e-3, 16, 45))
        },
        "conll12_bert",
        "85.3",
        "84.6",
    ),
    compared(questions(sized(ROBERTA, "squad/v1", 16, 5e-3, 8, 30)), "squad_roberta", "EM 88.1, F1 94.2", "EM 88.5, F1 94.4"),
    compared(questions(sized(ROBERTA, "squad/v2", 8, 5e-3, 8, 10)), "squad_v2_roberta", "EM 81.3, F1 84.7", "EM 82.1, F1 85.5"),
    start(sized(BERT, "superglue/cb", 20, 1e-2, 16, 80), "94.6"),
    start(sized(ROBERTA, "superglue/cb", 8, 1e-2, 16, 80), "100"),
    start(long(sized(BERT, "superglue/multirc", 40, 5e-3, 16, 20), 384), "F1a 70.6"),
    start(long(sized(ROBERTA, "superglue/multirc", 40, 5e-3, 16, 20), 384), "F1a 82.5"),
    start(long(sized(BERT, "superglue/record", 40, 5e-3, 16, 10), 384), "F1 72.8"),
    start(long(sized(ROBERTA, "superglue/record", 40, 5e-3, 16, 10), 384), "F1 89.3"),
    start(tagged(sized(BERT, "ner/conll03", 16, 1e-2, 16, 30)), "90.2"),
    start(tagged(sized(BERT, "srl/conll05", 128, 5e-3, 16, 15)), "WSJ 86.3, Brown 80.7"),
    start(tagged(sized(BERT, "srl/conll12", 128, 5e-3, 16, 45)), "83.2"),
    start(questions(sized(BERT, "squad/v1", 16, 5e-3, 8, 30)), "EM 77.8, F1 86.0"),
    start(questions(sized(BERT, "squad/v2", 16, 5e-3, 8, 10)), "EM 69.7, F1 73.5"),
    start(tagged(sized(DEBERTA, "ner/conll03", 16, 1e-2, 16, 30)), "93.1"),
    start(tagged(sized(DEBERTA, "ner/ontonotes", 48, 5e-3, 16, 30)), "90.4"),
    start(tagged(sized(DEBERTA, "ner/conll04", 128, 1e-2, 16, 80)), "86.5"),
    start(tagged(sized(DEBERTA, "srl/conll05", 128, 5e-3, 16, 15)), "WSJ 90.6, Brown 86.3"),
    start(tagged(sized(DEBERTA, "srl/conll12", 64, 5e-3, 16, 45)), "85.7"),
    start(questions(sized(DEBERTA, "squad/v1", 16, 5e-3, 8, 10)), "EM 90.4, F1 95.7"),
    start(questions(sized(DEBERTA, "squad/v2", 16, 5e-3, 8, 10)), "EM 88.4, F1 91.1"),
    start(long(sized(GLM_2B, "superglue/boolq", 16, 5e-3, 16, 20), 256), "87.0"),
    start(long(sized(GLM_2B, "superglue/cb", 16, 5e-3, 16, 50), 256), "96.4"),
    start(long(choices(sized(GLM_2B, "superglue/copa", 16, 5e-3, 16, 50)), 256), "91.0"),
    start(long(sized(GLM_2B, "superglue/multirc", 16, 5e-3, 16, 15), 512), "F1a 84.4"),
    start(long(sized(GLM_2B, "superglue/record", 16, 5e-3, 16, 5), 512), "F1 91.9"),
    start(long(sized(GLM_2B, "superglue/rte", 16, 5e-3, 16, 50), 256), "90.3"),
    start(long(sized(GLM_2B, "superglue/wic", 16, 5e-3, 16, 30), 256), "72.0"),
    start(sized(GLM_2B, "superglue/wsc", 16, 5e-3, 16, 50), "92.3"),
    start(long(sized(GLM_10B, "superglue/boolq", 16, 5e-3, 16, 24), 256), "88.8"),
    start(long(sized(GLM_10B, "superglue/cb", 16, 5e-3, 16, 100), 256), "96.4"),
    start(long(choices(sized(GLM_10B, "superglue/copa", 16, 5e-3, 16, 100)), 256), "98.0"),
    start(long(sized(GLM_10B, "superglue/multirc", 16, 5e-3, 16, 12), 512), "F1a 88.1"),
    start(long(sized(GLM_10B, "superglue/record", 16, 5e-3, 16, 3), 512), "F1 92.5"),
    start(long(sized(GLM_10B, "superglue/rte", 16, 5e-3, 16, 50), 256), "93.1"),
    start(long(sized(GLM_10B, "superglue/wic", 16, 5e-3, 16, 40), 256), "74.0"),
    start(sized(GLM_10B, "superglue/wsc", 16, 5e-3, 16, 50), "93.3"),
];

const UNCASED: Option<&str> = Some("the script loads bert-large-uncased");

impl Recipe {
    /// What `--recipe` calls it.
    pub fn name(&self) -> String {
        let task = self.task;
        let own = ["superglue/", "ner/", "srl/"].iter().find_map(|collection| task.strip_prefix(collection));
        format!("{}-{}{}", own.map_or(task.replace('/', "-"), String::from), self.model, self.variant)
    }

    /// Its settings; the model and the files are the user's.
    pub fn options(&self) -> TrainOptions {
        let named = NamedTask::find(self.task);
        TrainOptions {
            task: vec![named.map_or(TaskName::Kind(self.kind), TaskName::Named)],
            template: named.and(Some(self.template)).filter(|&template| template > 0),
            prefix_length: Some(self.prefix_length),
            prefix_projection: self.projection,
            learning_rate: Some(self.learning_rate),
            batch_size: Some(self.batch_size),
            epochs: Some(self.epochs),
            prefix_dropout: Some(self.dropout),
            hidden_dropout: Some(self.dropout),
            seed: Some(self.seed),
            schedule: Some(self.schedule),
            max_length: Some(self.max_length),
            ..TrainOptions::default()
        }
    }
}

/// The recipe of this name; a usage error that names similar ones.
pub fn find(name: &str) -> Result<&'static Recipe> {
    if let Some(recipe) = RECIPES.iter().find(|recipe| recipe.name() == name) {
        return Ok(recipe);
    }
    let task = name.split('-').next().unwrap_or(name);
    let near: Vec<String> = RECIPES.iter().map(Recipe::name).filter(|known| known.split('-').next() == Some(task)).collect();
    match near.is_empty() {
        true => usage!("--recipe {name}: there is none of this name; ptune recipes lists them"),
        false => usage!("--recipe {name}: there is none of this name; of this task there are {}", near.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Script, prefix length, learning rate, batch size, epochs, dropout, seed, longest sequence, projection, template and
    /// released result, as its README tells them (0: not said).
    const SCRIPTS: &str = "\
        boolq_bert 40 5e-3 32 100 .1 11 128 0 0 74.3
        boolq_roberta 8 7e-3 32 100 .1 11 128 0 0 84.0
        rte_bert 20 1e-2 32 60 .1 11 128 0 0 80.1
        rte_roberta 128 5e-3 32 100 .1 11 128 0 0 86.6
        copa_bert 16 1e-2 16 80 .1 44 128 0 0 77.0
        copa_roberta 8 9e-3 16 120 .1 11 128 0 0 92.0
        wic_bert 20 1e-4 16 80 .1 44 128 512 1 75.1
        wic_roberta 8 1e-2 32 50 .1 11 128 0 0 73.7
        wsc_bert 20 5e-3 16 80 .1 44 128 0 0 68.3
        wsc_roberta 8 1e-2 16 10 .1 44 128 0 0 64.4
        conll03_roberta 11 3e-2 16 30 .1 11 501 0 0 91.8
        conll04_bert 128 2e-2 32 40 .2 11 384 0 0 84.5
        conll04_roberta 144 6e-2 32 80 .1 11 368 0 0 88.4
        ontonotes_bert 16 1e-2 16 30 .1 11 496 0 0 86.4
        ontonotes_roberta 48 7e-3 16 60 .1 14 464 0 0 90.1
        conll05_roberta 224 6e-3 16 15 .1 11 288 0 0 89.4
        conll12_bert 128 5e-3 16 45 .1 11 384 0 0 85.3
        conll12_roberta 64 5e-3 32 45 .1 11 448 0 0 84.7
        squad_roberta 16 5e-3 8 30 .2 11 384 0 0 88.1
        squad_v2_roberta 8 5e-3 8 10 .2 11 384 0 0 81.3";

    #[test]
    fn every_released_script_has_its_recipe() {
        for line in SCRIPTS.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let recipe = RECIPES.iter().find(|recipe| recipe.script == Some(words[0])).expect(words[0]);
            let found = [
                recipe.prefix_length as f64,
                recipe.learning_rate,
                recipe.batch_size as f64,
                recipe.epochs as f64,
                recipe.dropout,
                recipe.seed as f64,
                recipe.max_length as f64,
                recipe.projection.unwrap_or(0) as f64,
                recipe.template as f64,
            ];
            let expected: Vec<f64> = words[1..10].iter().map(|word| word.parse().unwrap()).collect();
            assert_eq!(found[..], expected, "{line}");
            assert!(recipe.released.unwrap().contains(words[10]), "{line}");
            let decays = ["conll", "onto", "squad"].iter().any(|task| words[0].starts_with(task));
            assert_eq!(recipe.schedule == Schedule::Exponential, decays, "{line}");
            assert_eq!(recipe.model == ROBERTA, words[0].ends_with("roberta") || words[0] == "conll12_bert", "{line}");
        }
        assert_eq!(RECIPES.iter().filter(|recipe| recipe.script.is_some()).count(), SCRIPTS.lines().count());
    }

    /// Every cell of P-Tuning v2 in the paper's tables 2 and 3, by model in the order of the tables (Liu et al. 2021).
    const CELLS: &str = "\
        boolq 75.8 84.8 87.0 88.8
        cb 94.6 100 96.4 96.4
        copa 73.0 93.0 91.0 98.0
        multirc 70.6 82.5 84.4 88.1
        record 72.8 89.3 91.9 92.5
        rte 78.3 89.5 90.3 93.1
        wic 75.1 73.4 72.0 74.0
        wsc 68.3 63.5 92.3 93.3
        conll03 90.2 92.8 93.1
        ontonotes 86.4 89.8 90.4
        conll04 84.5 88.4 86.5
        squad-v1 86.0 94.4 95.7
        squad-v2 73.5 85.5 91.1
        conll12 83.2 84.6 85.7
        conll05 80.7 84.3 86.3";

    #[test]
    fn every_cell_of_the_paper_has_a_recipe() {
        let mut cells = 0;
        for line in CELLS.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let models = if words.len() == 5 { vec![BERT, ROBERTA, GLM_2B, GLM_10B] } else { vec![BERT, ROBERTA, DEBERTA] };
            for (model, score) in models.iter().zip(&words[1..]) {
                let recipe = find(&format!("{}-{model}", words[0])).unwrap();
                assert!(recipe.paper.unwrap().ends_with(score), "{line}: {recipe:?}");
                cells += 1;
            }
        }
        assert_eq!(RECIPES.iter().filter(|recipe| recipe.variant.is_empty()).count(), cells);
    }

    #[test]
    fn recipes_are_valid_and_have_names_of_their_own() {
        let mut names: Vec<String> = RECIPES.iter().map(Recipe::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), RECIPES.len());
        for recipe in RECIPES {
            assert_eq!(find(&recipe.name()).unwrap().name(), recipe.name());
            let given = TrainOptions {
                model: Some("m".into()),
                data: vec!["d".into()],
                output: Some("o".into()),
                epochs: Some(3),
                seed: Some(5),
                ..TrainOptions::default()
            };
            let options = given.over(&recipe.options()).unwrap();
            options.validate().unwrap();
            assert_eq!((options.epochs, options.seed, options.prefix_length), (Some(3), Some(5), Some(recipe.prefix_length)));
            if let Some(named) = NamedTask::find(recipe.task) {
                assert!(named.kind == recipe.kind && recipe.template < named.templates.len(), "{}", recipe.name());
            }
        }
        assert!(find("rte-bert").unwrap_err().to_string().contains("rte-bert-large, rte-roberta-large"));
        assert!(find("x").unwrap_err().to_string().contains("ptune recipes"));
    }
}
