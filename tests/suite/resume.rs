//! Runs that are stopped, killed and gone on with: at the end every file is what an uninterrupted run writes, to the bit,
//! apart from the times in it.

use crate::bundle::golden;
use crate::command::{Run, files, json, program, ptune, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Steps enough that a run cannot be over before a signal reaches it.
const STEPS: u64 = 160;

/// Everything that has a state: validation with a best adapter, projection, dropout everywhere, shuffled data, micro-batches
/// with a short last step of the epoch, and checkpoints between the ends of epochs.
const EVERYTHING: &str = "--prefix-length 5 --prefix-projection 12 --prefix-layers 2-3 --prefix-dropout 0.2 --hidden-dropout 0.1 \
    --attention-dropout 0.1 --batch-size 5 --gradient-accumulation 2 --learning-rate 1e-2 --warmup 0.1 --eval-every 8 --save-every 7";

/// `train` in `folder`, whose run is `run` there: paths that end up in files are then the same in every folder.
fn training(folder: &Path, bundle: &str, line: &str) -> Command {
    let mut command = program();
    command.current_dir(folder).arg("train").args(["--output", "run"]);
    command.arg("--model").arg(golden(bundle).join("model")).arg("--data").arg(golden(bundle).join("data.jsonl"));
    command.args(line.split_whitespace());
    command
}

fn classification(folder: &Path, steps: u64) -> Command {
    let mut command = training(folder, "bert-classification", EVERYTHING);
    command.args(["--task", "classification", "--max-steps", &steps.to_string()]);
    command.arg("--validation").arg(golden("bert-classification").join("data.jsonl"));
    command
}

fn finish(mut command: Command) -> String {
    Run::from(command.output().unwrap()).ok()
}

/// Starts a command, waits for so many lines about steps, sends the signal, and waits for the end.
fn stop(mut command: Command, lines: usize, signal: i32) -> Run {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while said.lines().filter(|line| line.starts_with("step ")).count() < lines {
        assert!(stdout.read_line(&mut said).unwrap() > 0, "over before the signal: {said}");
    }
    // SAFETY: the child was not waited for yet, so its process id is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    stdout.read_to_string(&mut said).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Run { code: child.wait().unwrap().code(), stdout: said, stderr }
}

#[test]
fn a_signal_before_there_is_something_to_save_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody writes into the pipe: reading the data takes for ever.
    let data = folder.path().join("data.jsonl");
    // SAFETY: the path ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(format!("{}\0", data.display()).as_ptr().cast(), 0o600) }, 0);
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let mut command = program();
        command.current_dir(folder.path()).args("train --task classification --data data.jsonl --output run --model".split(' '));
        let mut child = command.arg(golden("bert-classification").join("model")).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1000));
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
    assert!(!folder.path().join("run").exists());
}

/// TensorBoard's file.
const EVENTS: &str = "runs/events.out.tfevents.0.ptune";

/// The records of an event file without their wall times.
fn events(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let event = &bytes[12..12 + length];
        assert_eq!(event[0], 0x09, "the wall time comes first");
        found.push(event[9..].to_vec());
        bytes = &bytes[length + 16..];
    }
    found
}

/// All files of a run without the times in them.
fn outcome(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = files(folder);
    if let Some(bytes) = found.get_mut(EVENTS) {
        *bytes = events(bytes).concat();
    }
    for name in ["metrics.jsonl", "train_results.json"] {
        let Some(bytes) = found.get_mut(name) else { continue };
        let rows = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>().map(|row| {
            let mut row = row.unwrap();
            assert!(row.as_object_mut().unwrap().remove("timing").is_some(), "{name}: {row}");
            row.to_string()
        });
        *bytes = rows.collect::<Vec<_>>().join("\n").into_bytes();
    }
    found
}

/// Asserts that two runs wrote the same, apart from the files named in `except`.
fn assert_same(found: &Path, expected: &Path, except: &[&str]) {
    let [found, expected] = [found, expected].map(|folder| {
        let mut files = outcome(folder);
        files.retain(|name, _| !except.contains(&name.as_str()));
        files
    });
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        // Not assert_eq: tensors are no reading matter.
        assert!(found[name] == *bytes, "{name} differs");
    }
}

#[test]
fn stopped_and_killed_runs_end_as_if_nothing_had_happened() {
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    finish(classification(whole.path(), STEPS));

    let run = broken.path().join("run");
    let (mut lines, mut rest) = (1, classification(broken.path(), STEPS));
    for (signal, code, name) in [(libc::SIGINT, 130, "Ctrl-C"), (libc::SIGTERM, 143, "SIGTERM")] {
        let stopped = stop(rest, lines, signal);
        assert!(stopped.code == Some(code) && stopped.stderr.is_empty(), "{stopped:#?}");
        let last = stopped.stdout.lines().last().unwrap();
        assert!(stopped.stdout.contains("stopping after this step; again to end at once\n"), "{stopped:#?}");
        assert!(last.starts_with(&format!("stopped by {name} after step ")) && last.contains("--resume"), "{last}");
        let step: u64 = last.split_whitespace().nth(5).unwrap().parse().unwrap();
        assert!(step < STEPS && run.join(format!("checkpoint-{step}")).is_dir(), "{last}");
        rest = classification(broken.path(), STEPS);
        rest.arg("--resume");
        lines = 2;
    }
    // Killed without a word, after it passed a regular checkpoint; and gone on with by nothing but the folder.
    let killed = stop(rest, 3, libc::SIGKILL);
    assert_eq!(killed.code, None, "{killed:#?}");
    let resume = || {
        let mut command = program();
        command.current_dir(broken.path()).args(["train", "--output", "run", "--resume"]);
        command
    };
    let said = finish(resume());
    assert!(said.contains("resuming after step ") && said.contains("finished: 160 steps"), "{said}");
    assert_same(&run, &whole.path().join("run"), &[]);

    // There is nothing to do any more: says so, and leaves everything as it is, times included.
    let before = files(&run);
    assert!(finish(resume()).contains("finished; nothing is left to do"));
    assert!(files(&run) == before);
}

#[test]
fn a_kill_at_any_moment_leaves_something_to_go_on_from() {
    const FEW: u64 = 60;
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    finish(classification(whole.path(), FEW));
    let run = broken.path().join("run");
    let (mut kills, mut time) = (0, Duration::from_millis(15));
    loop {
        let mut command = classification(broken.path(), FEW);
        let mut child = command.arg("--resume").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(time);
        child.kill().unwrap();
        let ended = Run::from(child.wait_with_output().unwrap());
        if ended.code.is_some() {
            ended.ok();
            break;
        }
        kills += 1;
        // Longer every time: also a busy machine comes to the end.
        time += Duration::from_millis(13);
        if run.join("adapter_model.safetensors").exists() {
            ptune(["inspect".as_ref(), run.as_os_str()]).ok();
        }
    }
    assert!(kills > 3, "killed only {kills} times");
    assert_same(&run, &whole.path().join("run"), &[]);
}

#[test]
fn a_kill_between_the_last_checkpoint_and_its_tidying_leaves_no_trace() {
    const FEW: u64 = 60;
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    finish(classification(whole.path(), FEW));
    finish(classification(broken.path(), FEW));
    let run = broken.path().join("run");
    // What is on the disk before the tidying, and in the middle of it: a checkpoint too many, whole or in part, and no
    // file of what comes after.
    for (name, files) in [("checkpoint-49", usize::MAX), (".checkpoint-49.tmp", 1)] {
        let superfluous = run.join(name);
        std::fs::create_dir(&superfluous).unwrap();
        for entry in std::fs::read_dir(run.join("checkpoint-56")).unwrap().take(files) {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), superfluous.join(entry.file_name())).unwrap();
        }
        for name in ["trainer_state.json", "train_results.json"] {
            std::fs::remove_file(run.join(name)).unwrap();
        }
        let mut command = classification(broken.path(), FEW);
        command.arg("--resume");
        assert!(finish(command).contains("resuming after step 60 of 60"));
        assert_same(&run, &whole.path().join("run"), &[]);
    }
}

#[test]
fn threads_and_the_written_configuration_do_not_change_a_bit() {
    for (bundle, line) in [
        ("bert-tagging", "--task tagging --max-steps 12 --batch-size 7 --save-every 5"),
        ("bert-qa", "--task qa --max-steps 9 --max-length 60 --doc-stride 20 --head linear --prefix-length 4 --positions unshifted"),
        ("roberta-classification-peft", "--task classification --epochs 3 --batch-size 8 --head dense --schedule exponential"),
    ] {
        let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let run = |index: usize| folders[index].path().join("run");
        for (index, threads) in ["1", "2"].into_iter().enumerate() {
            let mut command = training(folders[index].path(), bundle, line);
            command.args(["--threads", threads]);
            finish(command);
        }
        let configuration = text(&run(0).join("config.toml"));
        std::fs::write(folders[2].path().join("again.toml"), &configuration).unwrap();
        let mut command = program();
        command.current_dir(folders[2].path()).args(["train", "--config", "again.toml"]);
        finish(command);
        assert_eq!(text(&run(2).join("config.toml")), configuration, "{bundle}");
        assert_same(&run(2), &run(0), &[]);
        // The configuration says how many threads there were, the results how much memory was planned for them.
        assert_same(&run(1), &run(0), &["config.toml", "train_results.json"]);
    }
}

#[test]
fn resuming_where_there_is_nothing_begins() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("run")).unwrap();
    let mut command = classification(folder.path(), 2);
    command.arg("--resume");
    let said = finish(command);
    assert!(said.contains("finished: 2 steps") && !said.contains("resuming"), "{said}");
    assert!(said.contains("nothing to resume in run: a new run"), "{said}");
}

#[test]
fn a_used_folder_is_only_touched_by_the_run_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    // Stopped early, so that there is something to resume.
    assert_eq!(stop(classification(folder.path(), STEPS), 1, libc::SIGTERM).code, Some(143));
    let before = files(&run);
    let refused = |code: i32, arguments: &[&str], parts: &[&str]| {
        let mut command = classification(folder.path(), STEPS);
        Run::from(command.args(arguments).output().unwrap()).error(code, parts);
        assert!(files(&run) == before, "{arguments:?} changed the folder");
    };
    refused(1, &[], &["run", "already used", "--resume"]);
    refused(2, &["--resume", "--seed", "7"], &["--seed 7", "42"]);
    refused(2, &["--resume", "--positions", "unshifted"], &["--positions", "shifted"]);

    let shorter = folder.path().join("shorter.jsonl");
    let data = text(&golden("bert-classification").join("data.jsonl"));
    std::fs::write(&shorter, data.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let mut command = program();
    command.current_dir(folder.path()).args(["train", "--output", "run", "--resume", "--data", "shorter.jsonl"]);
    Run::from(command.output().unwrap()).error(1, &["--data", "contents differ"]);
    assert!(files(&run) == before);

    for (output, code, part) in
        [(".", 1, "no config.toml"), ("new", 2, "nothing to resume in new: a new run: --model, --task and --data are missing")]
    {
        let mut command = program();
        command.current_dir(folder.path()).args(["train", "--output", output, "--resume"]);
        Run::from(command.output().unwrap()).error(code, &[part]);
    }
    assert!(!folder.path().join("new").exists());
    let mut command = classification(folder.path(), STEPS);
    Run::from(command.args(["--resume", "--config", "nowhere.toml"]).output().unwrap()).error(1, &["nowhere.toml"]);
    assert!(files(&run) == before);
}

#[test]
fn only_so_many_checkpoints_stay() {
    for (limit, expected) in [("1", &["checkpoint-9"][..]), ("3", &["checkpoint-6", "checkpoint-8", "checkpoint-9"])] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = training(folder.path(), "bert-classification", "--task classification --max-steps 9 --save-every 2");
        finish({
            command.args(["--save-limit", limit]);
            command
        });
        let run = folder.path().join("run");
        let mut found: Vec<String> =
            std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        found.retain(|name| name.starts_with("checkpoint-"));
        found.sort();
        assert_eq!(found, expected);
        assert_eq!(json(&run.join("trainer_state.json"))["global_step"], 9);
        // The adapter at the root is that of the last checkpoint.
        let bytes = |path: &Path| std::fs::read(path.join("adapter_model.safetensors")).unwrap();
        assert!(bytes(&run) == bytes(&run.join("checkpoint-9")));
    }
}
