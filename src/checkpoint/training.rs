//! Training checkpoints `checkpoint-N/`: the adapter of step N and everything else that an exact resume needs.

use super::adapter::{self, Adapter};
use super::atomic::{Leftover, sync_parent, write_atomically};
use super::mapped::MappedFile;
use super::metadata::write_json;
use super::stream::{StateTensors, read_state_file, write_state_file};
use crate::model::Specification;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const STATE: &str = "state.json";
const TENSORS: &str = "state.safetensors";
const FORMAT: u64 = 1;

/// What a run is at the end of an optimizer step, apart from its [`StateTensors`].
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingState {
    /// Optimizer steps that are done.
    pub step: u64,
    /// Updates of each trainable.
    pub tensor_steps: BTreeMap<String, u64>,
    /// Whatever else the trainer keeps.
    pub trainer: Value,
}

/// Writes `checkpoint-N/` into the output folder, N being the state's step: under a temporary name first, so that it is
/// there whole or not at all, and never at the cost of an older one. What killed runs left is removed. The tensors pass
/// through the host a few MiB at a time.
pub fn write_checkpoint(
    output: &Path,
    adapter: &Adapter,
    spec: &Specification,
    state: &TrainingState,
    tensors: &mut dyn StateTensors,
) -> Result<PathBuf> {
    fs::create_dir_all(output).with_context(|| format!("cannot make the directory {}", output.display()))?;
    remove_leftovers(output)?;
    let step = state.step;
    let place = output.join(format!("checkpoint-{step}"));
    let (temporary, old) = (output.join(format!(".checkpoint-{step}.tmp")), old_name(output, step));
    let mut attempt = || -> Result<()> {
        let mut leftover = Leftover(Some(temporary.clone()));
        adapter.write(&temporary, spec)?;
        write_atomically(&temporary.join(TENSORS), |writer| write_state_file(writer, tensors))?;
        let text = json!({"format": FORMAT, "step": step, "tensor_steps": state.tensor_steps, "trainer": state.trainer});
        write_json(&temporary.join(STATE), &text)?;
        let replaces = place.exists();
        if replaces {
            fs::rename(&place, &old)?;
        }
        fs::rename(&temporary, &place)?;
        leftover.0 = None;
        sync_parent(&place)?;
        if replaces {
            fs::remove_dir_all(&old)?;
        }
        Ok(())
    };
    attempt().with_context(|| format!("cannot write {}", place.display()))?;
    Ok(place)
}

/// The complete checkpoint of the highest step; None where the folder has none or is absent.
pub fn latest_checkpoint(output: &Path) -> Result<Option<PathBuf>> {
    let mut found = list(output)?;
    found.retain(|(step, path)| is_complete(path, *step));
    Ok(found.pop().map(|(_, path)| path))
}

/// Reads a checkpoint's training state; its tensors are read by [`restore_tensors`], its adapter by [`Adapter::read`].
pub fn read_checkpoint(directory: &Path) -> Result<TrainingState> {
    let file = directory.join(STATE);
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut value: Value = serde_json::from_slice(&bytes).with_context(|| format!("{}: not valid JSON", file.display()))?;
    let wrong = |field: &str| format!("{}: field {field} is missing or wrong; take an older checkpoint", file.display());
    match value["format"].as_u64() {
        Some(FORMAT) => {}
        _ => bail!("{}: field format is {}; this version of ptune reads {FORMAT}", file.display(), value["format"]),
    }
    let step = value["step"].as_u64().with_context(|| wrong("step"))?;
    let tensor_steps = serde_json::from_value(value["tensor_steps"].take()).with_context(|| wrong("tensor_steps"))?;
    let trainer = value.get_mut("trainer").with_context(|| wrong("trainer"))?.take();
    Ok(TrainingState { step, tensor_steps, trainer })
}

/// Brings a checkpoint's tensors to where they were saved from, a few MiB at a time. Nothing is written unless the file
/// is whole and has every tensor in its shape.
pub fn restore_tensors(directory: &Path, tensors: &mut dyn StateTensors) -> Result<()> {
    read_state_file(&directory.join(TENSORS), tensors)
}

/// Removes one checkpoint. It is renamed first: a kill in the middle of the removal leaves a leftover that the next
/// checkpoint cleans up, not half a checkpoint.
pub fn remove_checkpoint(output: &Path, step: u64) -> Result<()> {
    let (path, doomed) = (output.join(format!("checkpoint-{step}")), output.join(format!(".checkpoint-{step}.tmp")));
    let removal = fs::rename(&path, &doomed).and_then(|()| fs::remove_dir_all(&doomed));
    removal.with_context(|| format!("cannot remove the checkpoint {}", path.display()))
}

/// What a checkpoint is called for the moment in which its successor of the same step takes its place.
fn old_name(output: &Path, step: u64) -> PathBuf {
    output.join(format!(".checkpoint-{step}.old"))
}

/// N of `<start>N<end>`.
fn number(name: &str, start: &str, end: &str) -> Option<u64> {
    let digits = name.strip_prefix(start)?.strip_suffix(end)?;
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Names in the output folder.
fn entries(output: &Path) -> Result<Vec<String>> {
    if !output.exists() {
        return Ok(vec![]);
    }
    let names = fs::read_dir(output).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>());
    let names = names.with_context(|| format!("cannot read the directory {}", output.display()))?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// Checkpoints by ascending step. Where a kill came between the two renames of a replacement, the old one counts.
fn list(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = BTreeMap::new();
    for name in entries(output)? {
        if let Some(step) = number(&name, "checkpoint-", "") {
            found.insert(step, output.join(name));
        } else if let Some(step) = number(&name, ".checkpoint-", ".old") {
            found.entry(step).or_insert(output.join(name));
        }
    }
    Ok(found.into_iter().collect())
}

/// Whether all files are there and whole by their headers.
fn is_complete(directory: &Path, step: u64) -> bool {
    let state = fs::read(directory.join(STATE)).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let files = [adapter::CONFIG, adapter::METADATA].iter().all(|name| directory.join(name).is_file());
    let tensors = [adapter::TENSORS, TENSORS].iter().all(|name| MappedFile::open(&directory.join(name), 0).is_ok());
    files && tensors && state.is_some_and(|state| state["step"].as_u64() == Some(step))
}

/// Removes half-written and half-removed checkpoints, and ends an interrupted replacement. For writers only: another
/// process that reads must not call it.
pub fn remove_leftovers(output: &Path) -> Result<()> {
    for name in entries(output)? {
        let path = output.join(&name);
        let done = if number(&name, ".checkpoint-", ".tmp").is_some() {
            fs::remove_dir_all(&path)
        } else if let Some(step) = number(&name, ".checkpoint-", ".old") {
            let place = output.join(format!("checkpoint-{step}"));
            if place.exists() { fs::remove_dir_all(&path) } else { fs::rename(&path, &place) }
        } else {
            Ok(())
        };
        done.with_context(|| format!("cannot remove the leftover {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::stream::tests::Held;
    use super::*;
    use crate::model::{Config, describe};

    fn setup() -> (tempfile::TempDir, Adapter, Specification) {
        let bundle = Path::new("tests/golden/bert-classification");
        let spec = describe(&Config::of_model(&bundle.join("model")).unwrap()).unwrap().1;
        (tempfile::tempdir().unwrap(), Adapter::read(&bundle.join("adapter")).unwrap(), spec)
    }

    fn state(step: u64) -> TrainingState {
        TrainingState {
            step,
            tensor_steps: BTreeMap::from([("prefix".into(), step)]),
            trainer: json!({"best": 0.1 + 0.2, "position": [3, u64::MAX]}),
        }
    }

    fn moments(step: u64) -> Held {
        Held::new("prefix.moment1", &[2], vec![0.1 * step as f32, 1e-40])
    }

    fn write(output: &Path, adapter: &Adapter, spec: &Specification, step: u64) -> PathBuf {
        write_checkpoint(output, adapter, spec, &state(step), &mut moments(step)).unwrap()
    }

    fn assert_holds(place: &Path, step: u64) {
        let mut read = moments(0);
        restore_tensors(place, &mut read).unwrap();
        assert_eq!((read_checkpoint(place).unwrap(), read), (state(step), moments(step)));
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names = entries(folder).unwrap();
        names.sort();
        names
    }

    #[test]
    fn checkpoints_round_trip_and_rotate() {
        let (folder, adapter, spec) = setup();
        let output = folder.path().join("run");
        assert_eq!(latest_checkpoint(&output).unwrap(), None);
        for step in [5, 100, 20] {
            let place = write(&output, &adapter, &spec, step);
            assert_holds(&place, step);
            let mut read = Adapter::read(&place).unwrap();
            read.foreign = true;
            assert_eq!(read, adapter);
        }
        assert_eq!(latest_checkpoint(&output).unwrap(), Some(output.join("checkpoint-100")));
        remove_checkpoint(&output, 5).unwrap();
        assert_eq!(names(&output), ["checkpoint-100", "checkpoint-20"]);

        // The same step again: replaced.
        let mut other = state(100);
        other.trainer = json!("other");
        write_checkpoint(&output, &adapter, &spec, &other, &mut moments(100)).unwrap();
        assert_eq!(read_checkpoint(&output.join("checkpoint-100")).unwrap(), other);
        let message = format!("{:#}", remove_checkpoint(&output, 5).unwrap_err());
        assert!(message.contains("cannot remove the checkpoint") && message.contains("checkpoint-5"), "{message}");
    }

    #[test]
    fn only_complete_checkpoints_count() {
        let (folder, adapter, spec) = setup();
        let output = folder.path();
        for step in [1, 2, 3, 4] {
            write(output, &adapter, &spec, step);
        }
        fs::create_dir(output.join("checkpoint-best")).unwrap();
        fs::create_dir(output.join("checkpoint-9")).unwrap();
        fs::remove_file(output.join("checkpoint-4").join(STATE)).unwrap();
        let tensors = output.join("checkpoint-3").join(TENSORS);
        let bytes = fs::read(&tensors).unwrap();
        fs::write(&tensors, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(latest_checkpoint(output).unwrap(), Some(output.join("checkpoint-2")));
        let message = format!("{:#}", restore_tensors(&output.join("checkpoint-3"), &mut moments(0)).unwrap_err());
        assert!(message.contains("checkpoint-3/state.safetensors is truncated"), "{message}");
        let message = format!("{:#}", read_checkpoint(&output.join("checkpoint-4")).unwrap_err());
        assert!(message.contains("checkpoint-4/state.json"), "{message}");
    }

    #[test]
    fn leftovers_of_killed_runs() {
        let (folder, adapter, spec) = setup();
        let output = folder.path();
        write(output, &adapter, &spec, 7);
        fs::create_dir(output.join(".checkpoint-8.tmp")).unwrap();
        fs::write(output.join(".checkpoint-8.tmp").join(TENSORS), "half").unwrap();
        // Killed between the two renames of a replacement: the old one is still found, and comes back.
        fs::rename(output.join("checkpoint-7"), old_name(output, 7)).unwrap();
        assert_eq!(latest_checkpoint(output).unwrap(), Some(old_name(output, 7)));
        assert_holds(&old_name(output, 7), 7);
        write(output, &adapter, &spec, 8);
        assert_eq!(names(output), ["checkpoint-7", "checkpoint-8"]);
    }

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let (folder, adapter, spec) = setup();
        let output = folder.path();
        write(output, &adapter, &spec, 7);
        let mut broken = moments(7);
        broken.0.extend(Held::new("wrong", &[2], vec![]).0);
        let message = format!("{:#}", write_checkpoint(output, &adapter, &spec, &state(7), &mut broken).unwrap_err());
        assert!(message.contains("checkpoint-7") && message.contains("tensor wrong"), "{message}");
        assert_eq!(names(output), ["checkpoint-7"]);
        assert_holds(&output.join("checkpoint-7"), 7);
    }
}
