//! The built program as a user runs it: in a folder of its own, with flags and files, and nothing but what it prints and
//! writes to judge it by.

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// A command that was run to its end.
#[derive(Debug)]
pub struct Run {
    /// None: ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Run {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Run {
    /// What it printed; the run must have gone well and said nothing but warnings on the standard error.
    pub fn ok(self) -> String {
        assert!(self.code == Some(0) && self.stderr.lines().all(|line| line.starts_with("warning: ")), "{self:#?}");
        self.stdout
    }

    /// The message; the run must have failed with this exit code, exactly one line and no trace of a panic.
    pub fn error(self, code: i32, parts: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let line = self.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{self:#?}"));
        assert!(!line.contains('\n') && line.starts_with("error: "), "{self:#?}");
        for word in ["panicked", "backtrace", "Error {", "unwrap"] {
            assert!(!line.contains(word) && !self.stdout.contains(word), "{self:#?}");
        }
        for part in parts {
            assert!(line.contains(part), "{part:?} is not in: {line}");
        }
        line.to_string()
    }
}

/// Whether the program was built with nvcc; else says what is left out, which under CI=true is a failure.
pub fn has_kernels(left_out: &str) -> bool {
    let built = option_env!("PTUNE_CUDA").is_some();
    assert!(built || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI needs nvcc: scripts/fetch-nvcc.sh fetches it");
    if !built {
        eprintln!("built without nvcc: {left_out}");
    }
    built
}

/// The program without arguments.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptune"));
    // A user's settings must not decide whether the tests pass.
    command.env_remove("RUST_BACKTRACE").env_remove("RAYON_NUM_THREADS");
    command
}

/// Runs the program with these arguments.
pub fn ptune<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Run {
    program().args(arguments).output().unwrap().into()
}

pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn json(path: &Path) -> Value {
    serde_json::from_str(&text(path)).unwrap()
}

/// A file of one JSON value a line.
pub fn json_lines(path: &Path) -> Vec<Value> {
    text(path).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Shapes and values of a file in which every tensor is fp32.
pub fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (&str, safetensors::tensor::TensorView)| {
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        (name.to_string(), (view.shape().to_vec(), values))
    };
    file.iter().map(read).collect()
}

/// Every file beneath a folder, by its path from there.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

/// Copies a folder and what is beneath it.
pub fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
