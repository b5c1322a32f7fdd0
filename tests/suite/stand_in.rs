//! `--device cuda` itself: the program finds a stand-in for NVIDIA's libraries (tests/stand_in), and must ask of them what
//! they take, give back what it took, allocate and wait as little as it says, and compute what the emulated device does.

use crate::bundle::golden;
use crate::command::{Run, files, has_kernels, program, text};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A folder with the libraries under the names that NVIDIA gives them. None where the program was built without nvcc: it
/// then looks for no GPU.
fn libraries(names: &[&str]) -> Option<TempDir> {
    if !has_kernels("the driver of a GPU is not tested") {
        return None;
    }
    let library = Path::new(env!("CARGO_BIN_EXE_ptune")).parent().unwrap().join("examples/libptune_stand_in.so");
    assert!(library.exists(), "{} is built by cargo test, unless --test names the suite alone", library.display());
    let folder = tempfile::tempdir().unwrap();
    names.iter().for_each(|name| std::os::unix::fs::symlink(&library, folder.path().join(name)).unwrap());
    Some(folder)
}

fn all_libraries() -> Option<TempDir> {
    libraries(&["libcuda.so", "libcuda.so.1", "libcublasLt.so.13"])
}

/// The program where those are all of NVIDIA's libraries that it is told of.
fn beside(libraries: &TempDir) -> Command {
    let mut command = program();
    command.env("LD_LIBRARY_PATH", libraries.path()).env("PATH", "");
    for name in ["CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(name);
    }
    command
}

/// The counts of a run, which must have given everything back and been refused nothing.
fn counts(report: &Path) -> BTreeMap<String, u64> {
    let counts: BTreeMap<String, u64> = text(report)
        .lines()
        .map(|line| {
            let (name, count) = line.rsplit_once(' ').unwrap();
            (name.to_string(), count.parse().unwrap())
        })
        .collect();
    let kept: Vec<_> = counts.iter().filter(|(name, count)| name.starts_with("kept ") && **count > 0).collect();
    assert!(kept.is_empty() && !counts.contains_key("refused"), "{counts:?}");
    assert!(counts["cuLaunchKernel"] > 0 && counts["products"] > 0, "{counts:?}");
    counts
}

/// Trains in a folder, and tells what was said, and where the counts are.
fn train(libraries: Option<&TempDir>, timing: &str, folder: &Path, flags: &str) -> (String, PathBuf) {
    let data = golden("bert-classification").join("data.jsonl");
    let mut command = libraries.map_or_else(program, beside);
    command.current_dir(folder).env("PTUNE_STAND_IN_TIMING", timing).env("PTUNE_STAND_IN_REPORT", folder.join("report"));
    command.args(["train", "--output", "run", "--device", if libraries.is_some() { "cuda" } else { "emulated" }]);
    command.arg("--model").arg(golden("bert-classification").join("model")).arg("--data").arg(&data).arg("--validation").arg(&data);
    let always = "--task classification --prefix-length 5 --prefix-dropout 0.2 --hidden-dropout 0.1 --attention-dropout 0.1 \
        --batch-size 5 --gradient-accumulation 2 --learning-rate 1e-2";
    command.args(always.split_whitespace()).args(flags.split_whitespace());
    (Run::from(command.output().unwrap()).ok(), folder.join("report"))
}

#[test]
fn computes_what_the_emulated_device_does() {
    let Some(libraries) = all_libraries() else { return };
    let modes = [
        "",
        "--recompute layer --weights streamed --offload-activations --layer-major 2",
        "--recompute up-projection --weights disk --weight-format fp16",
        "--weight-format int8",
    ];
    for (mode, timings) in modes.into_iter().zip([&["late", "1", "now"][..], &["late", "2"], &["late", "3"], &["4"]]) {
        let flags = format!("--max-steps 3 --eval-every 2 --save-every 3 {mode}");
        let emulated = tempfile::tempdir().unwrap();
        train(None, "late", emulated.path(), &flags);
        for timing in timings {
            let folder = tempfile::tempdir().unwrap();
            let (said, report) = train(Some(&libraries), timing, folder.path(), &flags);
            assert!(said.contains("stand-in GPU (compute capability 9.0), fp16"), "{said}");
            counts(&report);
            let [found, expected] = [folder.path(), emulated.path()].map(|folder| files(&folder.join("run/checkpoint-3")));
            assert!(found == expected, "{mode:?}, {timing}: other bits than the emulated device's");
        }
    }
}

/// Everything is allocated before the first step, and the host waits for no step: the counts of what does either are the
/// same after two steps and after six.
#[test]
fn steps_allocate_nothing_and_wait_for_nothing() {
    let Some(libraries) = all_libraries() else { return };
    for mode in ["", "--recompute layer --weights streamed --offload-activations"] {
        let [two, six] = [2, 6].map(|steps| {
            let folder = tempfile::tempdir().unwrap();
            counts(
                &train(
                    Some(&libraries),
                    "late",
                    folder.path(),
                    &format!("--max-steps {steps} --save-every {steps} --eval-every {steps} {mode}"),
                )
                .1,
            )
        });
        for name in ["cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate", "cuModuleGetFunction", "cuStreamSynchronize"] {
            assert_eq!(two[name], six[name], "{mode:?}: calls of {name} in 2 steps and in 6");
        }
        assert!(six["cuLaunchKernel"] > 2 * two["cuLaunchKernel"]);
    }
}

/// A sweep's runs lie one after the other in one allocation, behind weights that are loaded once, also where a later run
/// needs more than the first; and each is, to the bit, what it is alone.
#[test]
fn a_sweep_loads_the_weights_once() {
    let Some(libraries) = all_libraries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = golden("bert-classification").join("data.jsonl");
    let command = |first: &str, report: &str| {
        let mut command = beside(&libraries);
        command.current_dir(folder.path()).env("PTUNE_STAND_IN_REPORT", folder.path().join(report)).arg(first);
        command.arg("--model").arg(golden("bert-classification").join("model")).arg("--data").arg(&data).arg("--validation").arg(&data);
        command.args("--task classification --device cuda --max-steps 2 --eval-every 2 --attention-dropout 0.1".split_whitespace());
        command
    };
    let run = |mut command: Command| Run::from(command.output().unwrap()).ok();
    let mut sweep = command("sweep", "sweep.report");
    sweep.args("--output swept --grid prefix-length=2,9 --grid prefix-projection=false,7 --grid seed=1,2".split_whitespace());
    run(sweep);
    let mut alone = command("train", "alone.report");
    alone.args("--output alone --prefix-length 9 --prefix-projection 7 --seed 2".split_whitespace());
    run(alone);
    let [swept, alone] = ["sweep.report", "alone.report"].map(|name| counts(&folder.path().join(name)));
    assert_eq!((swept["cuMemAlloc_v2"], alone["cuMemAlloc_v2"]), (1, 1));
    assert_eq!(swept["cuModuleLoadData"], alone["cuModuleLoadData"]);
    let weights = |counts: &BTreeMap<String, u64>| counts["cuMemcpyHtoDAsync_v2"];
    assert!(weights(&swept) < 8 * weights(&alone), "{} copies to the device in 8 runs, {} in one", weights(&swept), weights(&alone));
    let adapter = |name: &str| std::fs::read(folder.path().join(name).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("swept/prefix-length=9,prefix-projection=7,seed=2") == adapter("alone"));

    // One for which the device is too small fails alone.
    let mut large = command("sweep", "large.report");
    large.args("--output large --prefix-length 9 --seed 2 --grid prefix-projection=7,1000000".split_whitespace());
    let said = run(large);
    assert!(said.contains("1000000: failed: cannot allocate"), "{said}");
    assert!(adapter("large/prefix-projection=7") == adapter("alone"));
}

/// What a GPU session runs, on tiny shapes; the checks themselves run on the emulated device (`on_cuda.rs`).
#[test]
fn the_suite_of_checks_runs() {
    let Some(libraries) = all_libraries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("scripts/gpu-suite.sh");
    command.arg(env!("CARGO_BIN_EXE_ptune")).arg(folder.path()).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env("LD_LIBRARY_PATH", libraries.path()).env("PTUNE_SUITE_TINY", "1");
    command.env("PTUNE_SUITE_WITHOUT", "selftest step-bert-large kernels-bf16 step-glm-10b step-glm-10b-streamed");
    let run = Run::from(command.output().unwrap());
    assert!(run.code == Some(0), "{}\n{}", run.stdout, run.stderr);
    // The table at the end: name, status, seconds, text.
    let table = run.stdout.lines().filter(|line| !line.starts_with("=="));
    let passed: Vec<&str> = table.filter_map(|line| line.split_once(" passed ")).map(|(name, _)| name.trim()).collect();
    assert_eq!(passed, ["record-probes", "step-roberta-large", "kernels", "step-glm-10b-least", "train-twice", "stop-and-resume"]);
}

#[test]
fn what_is_missing_is_named() {
    let Some(libraries_of_both) = all_libraries() else { return };
    let predict = |libraries: &TempDir, device: &str| {
        let mut command = beside(libraries);
        let bundle = golden("bert-tagging");
        command.args(["eval", "--device", device, "--task", "tagging", "--model"]).arg(bundle.join("model"));
        command.arg("--adapter").arg(bundle.join("adapter")).arg("--data").arg(bundle.join("data.jsonl"));
        command
    };
    let run = |mut command: Command| Run::from(command.output().unwrap());
    // On a machine that has them, none is missing.
    let installed = ["/proc/driver/nvidia", "/usr/local/cuda", "/usr/local/cuda-13", "/opt/cuda"].map(|path| Path::new(path).exists());
    if !installed.contains(&true) {
        let nothing = libraries(&[]).unwrap();
        run(predict(&nothing, "cuda")).error(1, &["libcuda.so.1", "install driver 580"]);
        let driver_alone = libraries(&["libcuda.so.1"]).unwrap();
        run(predict(&driver_alone, "cuda")).error(1, &["libcublasLt.so.13", "LD_LIBRARY_PATH"]);
    }
    run(predict(&libraries_of_both, "cuda:1")).error(1, &["no GPU 1", "has 1"]);
    let mut old = predict(&libraries_of_both, "cuda");
    old.env("PTUNE_STAND_IN_VERSION", "12080");
    run(old).error(1, &["CUDA 12.8", "580"]);
    let mut old = predict(&libraries_of_both, "cuda");
    old.env("PTUNE_STAND_IN_PRODUCTS_VERSION", "120803");
    run(old).error(1, &["version 12.8", "LD_LIBRARY_PATH"]);
    // And where all of it is here, auto takes it.
    let folder = tempfile::tempdir().unwrap();
    let mut auto = predict(&libraries_of_both, "auto");
    auto.env("PTUNE_STAND_IN_REPORT", folder.path().join("report"));
    run(auto).ok();
    counts(&folder.path().join("report"));
}
