//! A folder with a model, data and an adapter to spoil, and commands that must leave it as it is.

use crate::bundle::golden;
use crate::command::{Run, copy, files, program};
use std::path::{Path, PathBuf};

/// Two good lines to put bad ones behind.
pub const GOOD: &str = "{\"text\": \"a b\", \"label\": \"entailment\"}\n{\"text\": \"c\", \"label\": \"not_entailment\"}\n";

/// The weights of the model.
pub const WEIGHTS: &str = "model/model.safetensors";

/// A folder with the model and the data of a bundle, to spoil.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new(bundle: &str) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        copy(&golden(bundle).join("model"), &place.path("model"));
        copy(&golden(bundle).join("adapter"), &place.path("adapter"));
        std::fs::copy(golden(bundle).join("data.jsonl"), place.path("data.jsonl")).unwrap();
        place
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    /// Replaces the first occurrence of a text, which must be there, with one of the same length.
    pub fn patch(&self, name: &str, from: &str, to: &str) {
        let mut bytes = std::fs::read(self.path(name)).unwrap();
        assert!(!name.ends_with(".safetensors") || from.len() == to.len(), "{from}");
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap_or_else(|| panic!("no {from} in {name}"));
        bytes.splice(at..at + from.len(), to.bytes());
        self.write(name, bytes);
    }

    pub fn run(&self, line: &str) -> Run {
        let mut command = program();
        Run::from(command.current_dir(self.root()).args(line.split_whitespace()).output().unwrap())
    }

    /// Asserts that a command fails with this message and changes nothing.
    pub fn refuses(&self, code: i32, line: &str, parts: &[&str]) {
        let before = files(self.root());
        self.run(line).error(code, parts);
        let after = files(self.root());
        assert!(after == before, "{line}: changed the folder: {:?}", after.keys().collect::<Vec<_>>());
    }

    /// The same for a training with usual flags.
    pub fn refuses_training(&self, code: i32, flags: &str, parts: &[&str]) {
        self.refuses(code, &format!("train --model model --task classification --data data.jsonl --output out {flags}"), parts);
    }

    /// Trains for two steps.
    pub fn train(&self, flags: &str) {
        self.run(&format!("train --model model --max-steps 2 --batch-size 8 --quiet {flags}")).ok();
    }
}
