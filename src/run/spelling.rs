//! Names that users bring along: those of Hugging Face's Trainer and PEFT, and of the released P-Tuning v2 code. A name that
//! means the same as an option of `ptune train` is taken for it; one that means something else, or nothing here, is
//! refused with what to write instead. Flags and the keys of a configuration file go through one table; underscores
//! are hyphens everywhere.

use crate::error::UsageError;
use std::collections::BTreeMap;
use std::ffi::OsString;
use toml::de::{DeTable, DeValue};

/// What a foreign name means here.
#[derive(Clone, Copy)]
enum Meaning {
    /// The same as this option.
    Same(&'static str),
    /// The same as this option, with its value rewritten; the error is a remedy.
    Rewritten(&'static str, fn(&str) -> Result<String, String>),
    /// One value for two options.
    Both(&'static str, &'static str),
    /// Refused: what to do instead.
    Refused(&'static str),
}

use Meaning::{Both, Refused, Rewritten, Same};

const FOREIGN: &[(&str, Meaning)] = &[
    ("model-name-or-path", Same("model")),
    ("tokenizer-name", Same("tokenizer")),
    ("train-file", Same("data")),
    ("validation-file", Same("validation")),
    ("output-dir", Same("output")),
    ("prompt-column", Same("text-column")),
    ("response-column", Same("label-column")),
    ("template-id", Same("template")),
    ("max-seq-length", Same("max-length")),
    ("pre-seq-len", Same("prefix-length")),
    ("num-virtual-tokens", Same("prefix-length")),
    ("num-prefix-tokens", Same("prefix-length")),
    ("hidden-dropout-prob", Both("prefix-dropout", "hidden-dropout")),
    ("attention-probs-dropout-prob", Same("attention-dropout")),
    ("lr", Same("learning-rate")),
    ("lr-scheduler-type", Rewritten("schedule", schedule)),
    ("warmup-steps", Rewritten("warmup", warmup_steps)),
    ("warmup-ratio", Rewritten("warmup", warmup_ratio)),
    ("num-train-epochs", Rewritten("epochs", whole_epochs)),
    ("per-device-train-batch-size", Same("batch-size")),
    ("per-gpu-train-batch-size", Same("batch-size")),
    ("gradient-accumulation-steps", Same("gradient-accumulation")),
    ("eval-steps", Same("eval-every")),
    ("save-steps", Same("save-every")),
    ("save-total-limit", Same("save-limit")),
    ("metric-for-best-model", Rewritten("metric", score)),
    ("early-stopping-patience", Same("patience")),
    // What has no counterpart of the same meaning.
    ("max-source-length", Refused("give --max-length: the most tokens of prompt and response together")),
    ("max-target-length", Refused("give --max-length: the most tokens of prompt and response together")),
    ("per-device-eval-batch-size", Refused("leave it out: evaluation takes --batch-size, and scores do not depend on it")),
    ("evaluation-strategy", Refused("give --eval-every epoch, or --eval-every N for every N steps")),
    ("eval-strategy", Refused("give --eval-every epoch, or --eval-every N for every N steps")),
    ("save-strategy", Refused("give --save-every epoch, or --save-every N for every N steps")),
    ("load-best-model-at-end", Refused("leave it out: with --validation the adapter kept is always the best")),
    ("resume-from-checkpoint", Refused("give --resume: it goes on from the latest checkpoint in --output")),
    ("logging-steps", Refused("leave it out: every step is recorded")),
    ("logging-strategy", Refused("leave it out: every step is recorded")),
    ("logging-dir", Refused("leave it out: records are in --output")),
    ("overwrite-output-dir", Refused("leave it out: a used folder is never written over; choose another --output, or --resume")),
    ("overwrite-cache", Refused("leave it out: there is no cache")),
    ("pad-to-max-length", Refused("leave it out: padding is never computed")),
    ("do-train", Refused("leave it out: `ptune train` trains, `ptune eval` and `ptune predict` do the rest")),
    ("do-eval", Refused("give --validation FILE, or use `ptune eval`")),
    ("do-predict", Refused("use `ptune predict`")),
    ("test-file", Refused("give it to `ptune eval` as --data FILE; a run has --validation FILE")),
    ("prefix", Refused("leave it out: a prefix is the default (--method prefix)")),
    ("prompt", Refused("choose with --method; see `ptune train --help`")),
    ("task-name", Refused("give --task; see `ptune train --help`")),
    ("dataset-name", Refused("give --task and the files (--data, --validation)")),
    ("fp16", Refused("leave it out: the frozen model has the checkpoint's 16 bits, what is trained has 32")),
    ("bf16", Refused("leave it out: the frozen model has the checkpoint's 16 bits, what is trained has 32")),
    ("gradient-checkpointing", Refused("give --recompute layer, which changes no result; or --memory-budget, which chooses")),
    ("load-in-8bit", Refused("give --weight-format int8")),
    ("quantization-bit", Refused("give --weight-format int8: 8 bits are what there is below 16")),
    ("no-cuda", Refused("give --device cpu")),
    ("use-cpu", Refused("give --device cpu")),
    ("trust-remote-code", Refused("leave it out: no code of a checkpoint is ever run; ptune --help lists the families")),
    ("cache-dir", Refused("leave it out: nothing is fetched; --model is a directory")),
    ("peft-type", Refused("give --method prefix (PREFIX_TUNING) or --method prompt (PROMPT_TUNING)")),
    ("optim", Refused("leave it out: the optimizer is AdamW; --learning-rate and --weight-decay are its options")),
    ("adam-beta1", Refused("leave it out: AdamW has 0.9 and 0.999, which cannot be changed")),
    ("adam-beta2", Refused("leave it out: AdamW has 0.9 and 0.999, which cannot be changed")),
    ("adam-epsilon", Refused("leave it out: AdamW has 1e-8, which cannot be changed")),
    ("load-in-4bit", Refused("give --weight-format int8: 8 bits are what there is below 16")),
    ("push-to-hub", Refused("leave it out: nothing is sent; --output can be uploaded by `hf upload`")),
    ("num-labels", Refused("leave it out: labels are those of the data, of the task's name or of config.json")),
    ("label-smoothing-factor", Refused("leave it out: the loss is cross-entropy without smoothing")),
    ("lora-r", Refused("leave it out: there is no LoRA; the size of a prefix is --prefix-length")),
    ("lora-alpha", Refused("leave it out: there is no LoRA; the size of a prefix is --prefix-length")),
    ("lora-dropout", Refused("leave it out: there is no LoRA; a prefix has --prefix-dropout")),
    ("report-to", Refused("leave it out: records are always written to --output")),
];

/// Names that are read together: whether there is a projection, and its size.
const PROJECTION: &str = "prefix-projection";
const PROJECTION_SIZE: [&str; 3] = ["prefix-hidden-size", "encoder-hidden-size", "bottleneck-size"];
const DEFAULT_PROJECTION: &str = "512";

fn schedule(value: &str) -> Result<String, String> {
    match value.replace('_', "-").as_str() {
        "constant-with-warmup" => Ok("constant".into()),
        name @ ("linear" | "cosine" | "constant") => Ok(name.into()),
        _ => Err("choose linear, cosine or constant, or give --schedule".into()),
    }
}

fn warmup_steps(value: &str) -> Result<String, String> {
    Ok(if value.parse() == Ok(0.0) { "0".into() } else { value.into() })
}

fn warmup_ratio(value: &str) -> Result<String, String> {
    match value.parse() {
        Ok(0.0) => Ok("0".into()),
        Ok(ratio) if 0.0 < ratio && ratio < 1.0 => Ok(value.into()),
        _ => Err("a ratio is at least 0 and below 1; steps are --warmup N".into()),
    }
}

fn whole_epochs(value: &str) -> Result<String, String> {
    match value.parse::<f64>() {
        Ok(epochs) if epochs.fract() == 0.0 && (0.0..1e9).contains(&epochs) => Ok(format!("{epochs:.0}")),
        Ok(epochs) if epochs.fract() != 0.0 => Err("whole passes are --epochs N; for a part of one give --max-steps".into()),
        _ => Ok(value.into()),
    }
}

fn score(value: &str) -> Result<String, String> {
    Ok(value.strip_prefix("eval_").unwrap_or(value).into())
}

fn truth(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// An option and its value; a flag may have none.
type Pair = (String, Option<String>);

/// The options that one foreign or native name stands for.
fn meaning(name: &str, value: Option<&str>) -> Result<Vec<Pair>, UsageError> {
    let known = FOREIGN.iter().find(|(foreign, _)| *foreign == name).map(|(_, meaning)| *meaning);
    let pair = |option: &str| (option.to_string(), value.map(String::from));
    Ok(match (known, value) {
        (None, _) => vec![pair(name)],
        (Some(Same(option)), _) | (Some(Rewritten(option, _)), None) => vec![pair(option)],
        (Some(Both(first, second)), _) => vec![pair(first), pair(second)],
        (Some(Rewritten(option, rewrite)), Some(value)) => {
            let rewritten = rewrite(value).map_err(|remedy| UsageError(format!("--{name} {value}: {remedy}")))?;
            vec![(option.to_string(), Some(rewritten))]
        }
        (Some(Refused(remedy)), _) => return Err(UsageError(format!("--{name}: {remedy}"))),
    })
}

/// A command line in the words of this program. What stands behind `--` is left alone.
pub fn translate_line(line: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, UsageError> {
    let line: Vec<OsString> = line.into_iter().collect();
    let end = line.iter().position(|word| word == "--").unwrap_or(line.len());
    let flag = |word: &OsString| word.to_str().and_then(|word| word.strip_prefix("--")).map(String::from);
    let mut out = Vec::new();
    let mut index = 0;
    while index < end {
        let Some(text) = flag(&line[index]) else {
            out.push(line[index].clone());
            index += 1;
            continue;
        };
        let (name, attached) = match text.split_once('=') {
            Some((name, value)) => (name.replace('_', "-"), Some(value.to_string())),
            None => (text.replace('_', "-"), None),
        };
        index += 1;
        let known = FOREIGN.iter().any(|(foreign, _)| *foreign == name) || name == PROJECTION || PROJECTION_SIZE.contains(&name.as_str());
        // The value of a name of this program, and one that is not text, stay where they are.
        let next = line.get(index).filter(|_| known && attached.is_none() && index < end).and_then(|word| word.to_str());
        let value = match next.filter(|word| !word.starts_with("--")) {
            Some(word) => {
                index += 1;
                Some(word.to_string())
            }
            None => attached,
        };
        let path_follows = known && value.is_none() && index < end && line[index].to_str().is_none();
        let pairs = meaning(&name, value.as_deref())?;
        for (name, value) in pairs {
            // One word each, so that a value may look like anything.
            out.push(match value {
                Some(value) => format!("--{name}={value}").into(),
                None => format!("--{name}").into(),
            });
        }
        if path_follows {
            out.push(line[index].clone());
            index += 1;
        }
    }
    project_line(&mut out)?;
    out.extend_from_slice(&line[end..]);
    Ok(out)
}

/// Puts the size of a projection that a name of its own gives into the option itself.
fn project_line(line: &mut Vec<OsString>) -> Result<(), UsageError> {
    let read = |word: &OsString| -> Option<(String, Option<String>)> {
        let text = word.to_str()?.strip_prefix("--")?;
        Some(match text.split_once('=') {
            Some((name, value)) => (name.to_string(), Some(value.to_string())),
            None => (text.to_string(), None),
        })
    };
    let mut size = None;
    line.retain(|word| match read(word) {
        Some((name, value)) if PROJECTION_SIZE.contains(&name.as_str()) => {
            size = Some((name, value.unwrap_or_default()));
            false
        }
        Some((name, Some(value))) if name == PROJECTION => truth(&value) != Some(false),
        _ => true,
    });
    let mut open = false;
    for word in line.iter_mut() {
        let Some((name, value)) = read(word) else { continue };
        if name == PROJECTION && value.as_deref().is_none_or(|value| truth(value) == Some(true)) {
            open = true;
            let size = size.as_ref().map_or(DEFAULT_PROJECTION, |(_, size)| size);
            *word = format!("--{PROJECTION}={size}").into();
        }
    }
    match size {
        Some((name, size)) if !open => Err(unprojected(&name, &size)),
        _ => Ok(()),
    }
}

fn unprojected(name: &str, size: &str) -> UsageError {
    UsageError(format!("--{name} {size}: it is the size of a projection; give --{PROJECTION} {size}"))
}

/// The keys of a configuration file in the words of this program; values keep their places in the text. An error comes with its
/// place there.
pub fn translate_table(table: DeTable) -> Result<DeTable, (usize, String)> {
    let mut out = DeTable::new();
    let mut size = None;
    // What each option was called, and where.
    let mut spelled = BTreeMap::new();
    for (key, value) in table {
        let (written, at) = (key.get_ref().to_string(), key.span().start);
        let name = written.replace('_', "-");
        let text = text_of(value.get_ref());
        if PROJECTION_SIZE.contains(&name.as_str()) {
            size = Some((written, at, value));
            continue;
        }
        for (option, rewritten) in meaning(&name, text.as_deref()).map_err(|error| (at, error.0))? {
            let (mut key, mut value) = (key.clone(), value.clone());
            if let Some(rewritten) = rewritten.filter(|rewritten| Some(rewritten) != text.as_ref()) {
                if option == "epochs" {
                    return Err((at, format!("{written}: write {rewritten}, a whole number without a point")));
                }
                *value.get_mut() = DeValue::String(rewritten.into());
            }
            *key.get_mut() = option.clone().into();
            if let Some(before) = spelled.insert(option.clone(), (written.clone(), at)) {
                let (first, second) = if before.1 < at { (before.0, (written, at)) } else { (written, before) };
                return Err((second.1, format!("{option} is said twice: {first} and {} mean the same", second.0)));
            }
            out.insert(key, value);
        }
    }
    let stated = out.iter().find(|(key, _)| key.get_ref() == PROJECTION).map(|(_, value)| value.get_ref());
    match (stated, size) {
        (Some(DeValue::Boolean(true)), size) => {
            let default = || DeValue::parse(DEFAULT_PROJECTION).map_err(|error| (0, error.to_string()));
            let size = size.map_or_else(default, |(_, _, size)| Ok(size))?;
            out.iter_mut().filter(|(key, _)| key.get_ref() == PROJECTION).for_each(|(_, value)| *value = size.clone());
        }
        (Some(DeValue::Boolean(false)), _) => {
            out = out.into_iter().filter(|(key, _)| key.get_ref() != PROJECTION).collect();
        }
        (None, Some((name, at, size))) => {
            return Err((at, unprojected(&name, &text_of(size.get_ref()).unwrap_or_default()).0));
        }
        (Some(_), Some((name, at, _))) => return Err((at, format!("{PROJECTION} is said twice: {name} means the same"))),
        (_, None) => {}
    }
    Ok(out)
}

/// A value as a flag would have it; None for what no flag has.
fn text_of(value: &DeValue) -> Option<String> {
    Some(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::TrainOptions;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: TrainOptions,
    }

    fn flags(text: &str) -> Result<TrainOptions, String> {
        let line = std::iter::once("train").chain(text.split_whitespace()).map(OsString::from);
        let line = translate_line(line).map_err(|error| error.to_string())?;
        Command::try_parse_from(line).map(|command| command.options).map_err(|error| error.to_string())
    }

    fn file(text: &str) -> Result<TrainOptions, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        TrainOptions::read(&path).map_err(|error| error.to_string())
    }

    /// A value that an option takes.
    fn sample(option: &str) -> &'static str {
        match option {
            "model" | "tokenizer" | "data" | "validation" | "output" | "text-column" | "label-column" | "metric" => "name",
            "schedule" => "cosine",
            "prefix-dropout" | "hidden-dropout" | "attention-dropout" | "learning-rate" | "warmup" => "0.25",
            _ => "7",
        }
    }

    #[test]
    fn every_foreign_name_gives_the_options_of_its_own() {
        for (foreign, meaning) in FOREIGN {
            let own: Vec<&str> = match meaning {
                Same(option) | Rewritten(option, _) => vec![option],
                Both(first, second) => vec![first, second],
                Refused(remedy) => {
                    for line in [format!("--{foreign}"), format!("--{foreign} x"), format!("--{}=3", foreign.replace('-', "_"))] {
                        assert_eq!(flags(&line), Err(format!("--{foreign}: {remedy}")));
                    }
                    assert!(file(&format!("{foreign} = 1")).unwrap_err().contains(remedy));
                    continue;
                }
            };
            let value = if *foreign == "warmup-steps" { "7" } else { sample(own[0]) };
            let expected = flags(&own.iter().map(|own| format!("--{own} {value} ")).collect::<String>()).unwrap();
            assert_ne!(expected, TrainOptions::default(), "{foreign}");
            for name in [foreign.to_string(), foreign.replace('-', "_")] {
                assert_eq!(flags(&format!("--{name} {value}")).as_ref(), Ok(&expected), "{name}");
                assert_eq!(
                    flags(&format!("--seed 3 --{name}={value} --quiet")).unwrap().to_table().unwrap().len(),
                    own.len() + 2,
                    "{name}"
                );
                let written = if value == "name" || value == "cosine" { format!("'{value}'") } else { value.to_string() };
                assert_eq!(file(&format!("{name} = {written}")).as_ref(), Ok(&expected), "{name}");
            }
        }
    }

    #[test]
    fn every_option_may_have_underscores() {
        let line = flags("--prefix_length 4 --max_train_samples=9 --prefix_layers 1-2 --save_every epoch").unwrap();
        assert_eq!(Ok(&line), flags("--prefix-length 4 --max-train-samples 9 --prefix-layers 1-2 --save-every epoch").as_ref());
        assert_eq!(Ok(line), file("prefix_length = 4\nmax_train_samples = 9\nprefix_layers = '1-2'\nsave_every = 'epoch'"));
    }

    #[test]
    fn values_are_rewritten_or_refused() {
        let same = |foreign: &str, own: &str| assert_eq!(flags(foreign), flags(own), "{foreign}");
        same("--num_train_epochs 3.0", "--epochs 3");
        same("--warmup_ratio 0.0", "--warmup 0");
        same("--warmup_steps 0.06", "--warmup 0.06");
        same("--lr_scheduler_type constant_with_warmup", "--schedule constant");
        same("--metric_for_best_model eval_loss", "--metric loss");
        for (line, part) in [
            ("--num-train-epochs 2.5", "--max-steps"),
            ("--warmup-ratio 1", "below 1"),
            ("--lr-scheduler-type polynomial", "--schedule"),
            ("--prefix-hidden-size 64", "give --prefix-projection 64"),
        ] {
            assert!(flags(line).unwrap_err().contains(part), "{line}");
        }
        assert!(file("num-train-epochs = 3.0").unwrap_err().contains("write 3"));
        assert!(file("lr = 1\nlearning-rate = 1").unwrap_err().contains("said twice"));
    }

    #[test]
    fn a_projection_is_asked_for_in_either_way() {
        let expected = |size: usize| Ok(TrainOptions { prefix_projection: Some(size), ..TrainOptions::default() });
        for line in
            ["--prefix_projection --prefix_hidden_size 64", "--encoder-hidden-size=64 --prefix-projection True", "--prefix-projection 64"]
        {
            assert_eq!(flags(line), expected(64), "{line}");
        }
        assert_eq!(flags("--prefix-projection true"), expected(512));
        assert_eq!(flags("--prefix-projection --seed 1").unwrap().prefix_projection, Some(512));
        assert_eq!(flags("--prefix_projection False"), Ok(TrainOptions::default()));
        assert_eq!(file("prefix_projection = true\nprefix_hidden_size = 64"), expected(64));
        assert_eq!(file("prefix_projection = true"), expected(512));
        assert_eq!(file("prefix_projection = false"), Ok(TrainOptions::default()));
        assert_eq!(file("prefix_projection = 64"), expected(64));
        assert!(file("prefix_hidden_size = 64").unwrap_err().contains("give --prefix-projection 64"));
        assert!(file("prefix_projection = 32\nprefix_hidden_size = 64").unwrap_err().contains("twice"));
    }

    #[test]
    fn what_is_no_flag_stays_as_it_is() {
        let line = ["ptune", "eval", "a_b", "--model", "x_y", "--lr=1_0", "-x_y", "--", "--pre_seq_len"];
        let out = translate_line(line.map(OsString::from)).unwrap();
        assert_eq!(
            out,
            ["ptune", "eval", "a_b", "--model", "x_y", "--learning-rate=1_0", "-x_y", "--", "--pre_seq_len"].map(OsString::from)
        );
    }
}
