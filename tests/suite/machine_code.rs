//! What nvcc made of the kernels, for every architecture of the build: no spills, no arrays in local memory, tensor-core
//! instructions in the kernels that are to have them, and all of it small. Without nvcc there is nothing to look at;
//! under CI=true that is a failure.

use crate::command::has_kernels;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Kernels of these families multiply on tensor cores.
const TENSOR_CORES: [&str; 5] =
    ["attention_forward_", "attention_backward_query_", "attention_backward_key_", "attention_relative_", "prefix_gradient_partial_"];
const MOST_BYTES: u64 = 16 << 20;
const MOST_ATTENTION_KERNELS: usize = 64;

/// The build's files of an extension, in order; None without nvcc.
fn built(extension: &str) -> Option<Vec<PathBuf>> {
    if !has_kernels("machine code is not checked") {
        return None;
    }
    let entries = std::fs::read_dir(env!("OUT_DIR")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    assert!(paths.len() > 8, "only {paths:?} in {}", env!("OUT_DIR"));
    Some(paths)
}

/// The number in front of a text.
fn number_before(line: &str, text: &str) -> Option<u64> {
    line[..line.find(text)?].split_whitespace().last()?.parse().ok()
}

#[test]
fn kernels_keep_to_their_registers() {
    let Some(logs) = built("ptxas") else { return };
    let (mut kernels, mut faults) = (0, Vec::new());
    for log in logs {
        let mut kernel = String::new();
        for line in std::fs::read_to_string(&log).unwrap().lines() {
            if let Some(rest) = line.split("Compiling entry function '").nth(1) {
                kernel = rest.replace("' for '", " for ").trim_end_matches('\'').to_string();
                kernels += 1;
            }
            for memory in [" bytes stack frame", " bytes spill stores", " bytes spill loads"] {
                if number_before(line, memory).is_some_and(|bytes| bytes > 0) {
                    faults.push(format!("{kernel}: {}", line.trim()));
                }
            }
            if line.contains("warning") {
                faults.push(line.to_string());
            }
        }
    }
    assert!(kernels > 100, "{kernels} kernels were compiled");
    faults.dedup();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn kernels_are_small() {
    let Some(fatbins) = built("fatbin") else { return };
    let bytes: u64 = fatbins.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(bytes <= MOST_BYTES, "{bytes} bytes of fatbins");
}

/// cuobjdump: beside nvcc, or on PATH.
fn cuobjdump() -> Option<PathBuf> {
    let beside = Path::new(option_env!("PTUNE_NVCC")?).with_file_name("cuobjdump");
    [beside, PathBuf::from("cuobjdump")].into_iter().find(|path| Command::new(path).arg("--version").output().is_ok())
}

#[test]
fn kernels_use_tensor_cores() {
    let Some(fatbins) = built("fatbin") else { return };
    let Some(cuobjdump) = cuobjdump() else {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI needs cuobjdump: scripts/fetch-nvcc.sh fetches it");
        eprintln!("no cuobjdump: tensor-core instructions are not looked for");
        return;
    };
    // How many tensor-core instructions a kernel has, by architecture and name.
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for fatbin in fatbins.iter().filter(|path| TENSOR_CORES.iter().any(|family| in_file(path, family))) {
        let output = Command::new(&cuobjdump).arg("-sass").arg(fatbin).output().unwrap();
        assert!(output.status.success(), "{}: {}", fatbin.display(), String::from_utf8_lossy(&output.stderr));
        let (mut architecture, mut kernel) = (String::new(), String::new());
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            if let Some(name) = line.split("arch = ").nth(1) {
                architecture = name.to_string();
            } else if let Some(name) = line.split("Function : ").nth(1) {
                kernel = name.to_string();
                counts.insert((architecture.clone(), kernel.clone()), 0);
            } else if line.contains("HMMA.") {
                *counts.get_mut(&(architecture.clone(), kernel.clone())).unwrap() += 1;
            }
        }
    }
    let wanted: Vec<_> = counts.iter().filter(|((_, name), _)| TENSOR_CORES.iter().any(|family| name.starts_with(family))).collect();
    for ((architecture, kernel), count) in &wanted {
        assert!(**count > 0, "{kernel} for {architecture} has no tensor-core instruction");
    }
    let architectures: BTreeSet<&str> = wanted.iter().map(|((architecture, _), _)| architecture.as_str()).collect();
    assert_eq!(architectures.len(), option_env!("PTUNE_CUDA").unwrap_or_default().split_whitespace().count(), "{architectures:?}");
    let attention: BTreeSet<&str> = counts.keys().map(|(_, name)| name.as_str()).filter(|name| name.starts_with("attention")).collect();
    assert!(attention.len() <= MOST_ATTENTION_KERNELS, "{} attention kernels", attention.len());
}

/// Whether a fatbin's source has kernels of a family: by the file's name, which is the family's.
fn in_file(fatbin: &Path, family: &str) -> bool {
    let stem = fatbin.file_stem().unwrap().to_string_lossy();
    family.starts_with(&*stem)
}
