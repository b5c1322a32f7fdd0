//! The frozen model that a command is told to take: a directory, a published architecture by name, and whether weights
//! are read or drawn at random.

use crate::checkpoint::FrozenModel;
use crate::engine::Residency;
use crate::model::{Config, architecture, architecture_names};
use crate::usage;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub struct BaseOptions {
    /// Hugging Face model directory (config.json, safetensors)
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub model: Option<PathBuf>,
    /// A published model's shape by its name, in place of --model; to compute with it takes --random-weights too
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub architecture: Option<String>,
    /// Draw the weights on the device, without a file; of --model only config.json is read [without a value: seed 0]
    #[arg(long, value_name = "SEED", num_args = 0..=1, default_missing_value = "0", help_heading = "Model")]
    pub random_weights: Option<u64>,
}

impl BaseOptions {
    /// Refuses what does not name one model; usage errors.
    pub fn validate(&self) -> Result<()> {
        match (&self.model, &self.architecture, self.random_weights) {
            (None, None, None) => usage!("--model is missing (or --architecture NAME --random-weights)"),
            (None, None, Some(_)) => usage!("--random-weights needs --architecture NAME (or the config.json of --model DIR)"),
            (Some(_), Some(_), _) => usage!("--model and --architecture exclude each other: both name a model"),
            (None, Some(name), None) if architecture(name).is_some() => {
                usage!("--architecture {name} is a shape without weights: add --random-weights, or give --model DIR")
            }
            (None, Some(name), _) if architecture(name).is_none() => {
                usage!("--architecture {name} is not known (known: {})", architecture_names().join(", "))
            }
            _ => Ok(()),
        }
    }

    /// Refuses weights that are to stay in files where there are none; a usage error.
    pub fn check_residency(&self, weights: Option<Residency>) -> Result<()> {
        if weights == Some(Residency::Disk) && (self.model.is_none() || self.random_weights.is_some()) {
            usage!("--weights disk leaves weights in the files of --model DIR, and --random-weights have none: use --weights streamed");
        }
        Ok(())
    }

    /// The model's config.json.
    pub fn config(&self) -> Result<Config> {
        match (&self.model, &self.architecture) {
            (Some(directory), _) => Config::of_model(directory),
            (None, Some(name)) => architecture(name).with_context(|| format!("--architecture {name} is not known"))?,
            (None, None) => usage!("--model is missing"),
        }
    }

    /// Opens what [`BaseOptions::validate`] has found to be one model.
    pub fn open(&self) -> Result<FrozenModel> {
        match (self.random_weights, &self.model) {
            (Some(seed), _) => FrozenModel::random(&self.config()?, seed),
            (None, Some(directory)) => FrozenModel::open(directory),
            (None, None) => usage!("--model is missing"),
        }
    }

    /// The model's shape, with weights that nobody reads: only its configuration is looked at.
    pub fn shape(&self) -> Result<FrozenModel> {
        FrozenModel::random(&self.config()?, 0)
    }

    /// The directory or the architecture, as it was given.
    pub fn name(&self) -> String {
        match (&self.model, &self.architecture) {
            (Some(directory), _) => directory.display().to_string(),
            (None, name) => name.clone().unwrap_or_default(),
        }
    }

    /// For messages and records: the name, and that its weights are not the published ones.
    pub fn description(&self) -> String {
        match self.random_weights {
            Some(seed) => format!("{} with random weights of seed {seed}", self.name()),
            None => self.name(),
        }
    }

    pub fn directory(&self) -> Option<&Path> {
        self.model.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::UsageError;

    #[test]
    fn one_model_is_named() {
        let options = |model: Option<&str>, architecture: Option<&str>, random_weights| BaseOptions {
            model: model.map(PathBuf::from),
            architecture: architecture.map(String::from),
            random_weights,
        };
        for (given, part) in [
            (options(None, None, None), "--model is missing"),
            (options(None, None, Some(1)), "--architecture NAME"),
            (options(Some("m"), Some("bert-base"), Some(1)), "exclude each other"),
            (options(None, Some("bert-base"), None), "add --random-weights"),
            (options(None, Some("bert"), Some(1)), "known: bert-tiny, minilm-l6, "),
            (options(None, Some("bert"), None), "known: bert-tiny, minilm-l6, "),
        ] {
            let error = given.validate().expect_err(part);
            assert!(error.is::<UsageError>() && error.to_string().contains(part), "{error}");
        }
        let given = options(None, Some("minilm-l6"), Some(3));
        given.validate().unwrap();
        assert!(given.check_residency(Some(Residency::Streamed)).is_ok());
        assert!(given.check_residency(Some(Residency::Disk)).unwrap_err().is::<UsageError>());
        assert!(options(Some("m"), None, Some(1)).check_residency(Some(Residency::Disk)).is_err());
        options(Some("m"), None, None).check_residency(Some(Residency::Disk)).unwrap();
        assert_eq!(given.open().unwrap().spec.layers, 6);
        assert_eq!(given.description(), "minilm-l6 with random weights of seed 3");
    }
}
