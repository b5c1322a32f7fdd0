//! The output folder: which files say what of a run, who may use it, and which checkpoints are kept.

use super::options::TrainOptions;
use crate::checkpoint::remove_checkpoint;
use crate::usage;
use anyhow::{Context, Result, bail};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// The effective configuration; written before anything else.
pub const CONFIG: &str = "config.toml";
/// One line a logged step and an evaluation.
pub const METRICS: &str = "metrics.jsonl";
/// State of the run under Hugging Face's names.
pub const TRAINER_STATE: &str = "trainer_state.json";
/// Loss and scores over the steps, drawn.
pub const PLOT: &str = "metrics.svg";
/// What the adapter is, for people and for hubs.
pub const CARD: &str = "README.md";
/// What came out; written last, so its presence means that the run is finished.
pub const RESULTS: &str = "train_results.json";

const CHECKPOINT: &str = "checkpoint-";

/// An output folder.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    pub fn new(root: &Path) -> Folder {
        Folder { root: root.to_path_buf() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Checks that a run may use this folder, and reads the configuration that it is to go on with. A fresh run wants
    /// a folder that is empty or does not exist.
    pub fn claim(&self, resume: bool) -> Result<Option<TrainOptions>> {
        let shown = self.root.display();
        if !self.root.exists() {
            return Ok(None);
        }
        // Names with a dot are of files that a kill left half written.
        let used = self.names()?.iter().any(|name| !name.starts_with('.'));
        let config = self.file(CONFIG);
        if resume && config.exists() {
            return TrainOptions::read(&config).map(Some);
        }
        match (used, resume) {
            (false, _) => Ok(None),
            (true, true) => bail!("{shown}: holds files but no {CONFIG} of a run; choose another --output"),
            (true, false) => bail!("{shown}: is already used; choose another --output, or --resume to go on with the run in it"),
        }
    }

    /// Whether the run in this folder came to its end.
    pub fn is_finished(&self) -> bool {
        self.file(RESULTS).exists()
    }

    /// Makes the folder and keeps other runs out of it while the returned handle lives.
    pub fn open(&self) -> Result<File> {
        let shown = self.root.display();
        std::fs::create_dir_all(&self.root).with_context(|| format!("cannot make the output folder {shown}"))?;
        let handle = File::open(&self.root).with_context(|| format!("cannot open the output folder {shown}"))?;
        match handle.try_lock() {
            Err(TryLockError::WouldBlock) => {
                bail!("{shown}: another run is writing to this folder; wait for it, or choose another --output")
            }
            // A file system without locks: the run goes on without.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(handle),
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root).with_context(|| format!("cannot read the output folder {}", self.root.display()))? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    /// Steps of the checkpoints, ascending.
    pub fn checkpoints(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> =
            self.names()?.iter().filter_map(|name| name.strip_prefix(CHECKPOINT)).filter_map(|step| step.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes the checkpoints that are no longer wanted once `current` is saved: those that an interruption left
    /// between the regular ones, and all but the newest `limit` regular ones. So a run that was interrupted ends with
    /// the same checkpoints as one that was not.
    pub fn prune(&self, current: u64, limit: usize, is_regular: impl Fn(u64) -> bool) -> Result<()> {
        for step in superfluous(&self.checkpoints()?, current, limit, is_regular) {
            remove_checkpoint(&self.root, step)?;
        }
        Ok(())
    }
}

/// The checkpoints of `steps` (ascending) that [`Folder::prune`] removes. While `current` itself is not regular, the
/// regular ones beneath it all stay.
fn superfluous(steps: &[u64], current: u64, limit: usize, is_regular: impl Fn(u64) -> bool) -> Vec<u64> {
    let (regular, between): (Vec<u64>, Vec<u64>) = steps.iter().partition(|&&step| is_regular(step));
    let mut gone: Vec<u64> = between.into_iter().filter(|&step| step < current).collect();
    gone.extend(&regular[..regular.len().saturating_sub(limit)]);
    gone.sort_unstable();
    gone
}

/// Options that do not change what a run computes, and paths whose contents are compared instead.
const FREE: [&str; 14] = [
    "output",
    "model",
    "data",
    "validation",
    "threads",
    "quiet",
    "profile-steps",
    "save-every",
    "save-limit",
    "recompute",
    "weights",
    "offload-activations",
    "layer-major",
    "memory-budget",
];

/// Refuses options that would make the rest of a run differ from its beginning.
pub fn refuse_changes(given: &TrainOptions, saved: &TrainOptions) -> Result<()> {
    let (given, saved) = (given.to_table()?, saved.to_table()?);
    for (name, value) in given.iter().filter(|(name, _)| !FREE.contains(&name.as_str())) {
        match saved.get(name) {
            Some(before) if before == value => {}
            Some(before) => {
                usage!("--{name} {value}: the run to resume has {before}; leave it out, or start a new run in another --output")
            }
            None => usage!("--{name} {value}: the run to resume does not have it; leave it out, or start a new run in another --output"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interruptions_do_not_change_which_checkpoints_stay() {
        let every_ten = |step: u64| step.is_multiple_of(10);
        assert_eq!(superfluous(&[10, 20, 30], 30, 2, every_ten), [10]);
        assert!(superfluous(&[10, 20, 25], 25, 2, every_ten).is_empty());
        assert_eq!(superfluous(&[10, 20, 25, 28], 28, 2, every_ten), [25]);
        assert_eq!(superfluous(&[10, 20, 25, 30], 30, 2, every_ten), [10, 25]);
    }

    #[test]
    fn only_whole_names_are_checkpoints() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::new(&parent.path().join("run"));
        folder.open().unwrap();
        for name in ["checkpoint-9", "checkpoint-10", "checkpoint-5", "checkpoint-best", ".checkpoint-11.tmp"] {
            std::fs::create_dir(folder.file(name)).unwrap();
        }
        assert_eq!(folder.checkpoints().unwrap(), [5, 9, 10]);
        folder.prune(10, 1, |step| step != 9).unwrap();
        assert_eq!(folder.checkpoints().unwrap(), [10]);
    }

    #[test]
    fn a_folder_serves_one_run_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::new(&parent.path().join("run"));
        let lock = folder.open().unwrap();
        assert!(folder.open().unwrap_err().to_string().contains("another run is writing"));
        drop(lock);
        folder.open().unwrap();
    }

    #[test]
    fn a_used_folder_is_refused_and_a_run_is_found_again() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::new(parent.path());
        std::fs::write(folder.file(".config.toml.tmp"), "").unwrap();
        assert!(folder.claim(false).unwrap().is_none() && folder.claim(true).unwrap().is_none());
        std::fs::write(folder.file("notes"), "").unwrap();
        assert!(folder.claim(false).unwrap_err().to_string().contains("--resume"));
        assert!(folder.claim(true).unwrap_err().to_string().contains("no config.toml"));
        std::fs::write(folder.file(CONFIG), "seed = 7").unwrap();
        assert_eq!(folder.claim(true).unwrap().unwrap().seed, Some(7));
    }

    #[test]
    fn changed_options_are_named() {
        let saved = TrainOptions { seed: Some(7), max_steps: Some(5), ..TrainOptions::default() };
        assert!(refuse_changes(&TrainOptions { seed: Some(7), threads: Some(3), ..TrainOptions::default() }, &saved).is_ok());
        let message = |given| refuse_changes(&given, &saved).unwrap_err().to_string();
        assert!(message(TrainOptions { seed: Some(8), ..TrainOptions::default() }).starts_with("--seed 8: the run to resume has 7"));
        assert!(message(TrainOptions { epochs: Some(8), ..TrainOptions::default() }).starts_with("--epochs 8"));
    }
}
