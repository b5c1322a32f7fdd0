//! Outputs that cannot be written, disks that are full and losses that are no numbers: what was there before stays.

use crate::command::{Run, files, json, program, ptune, text};
use crate::place::{Place, WEIGHTS};
use std::process::Command;

#[test]
fn outputs_that_cannot_be_written() {
    let place = Place::new("bert-classification");
    let train =
        |output: &str| format!("train --model model --task classification --data data.jsonl --max-steps 1 --quiet --output {output}");
    let before = files(place.root());
    for (output, part) in [("data.jsonl", "data.jsonl"), ("data.jsonl/below", "below"), ("/proc/none", "/proc/none")] {
        let ended = place.run(&train(output));
        let code = ended.code.unwrap();
        assert!(code == 1 || code == 2, "{ended:?}");
        ended.error(code, &[part]);
    }
    place.refuses(1, &train("model"), &["model", "already used"]);
    let predict = |output: &str| format!("predict --model model --adapter adapter --input data.jsonl --output {output}");
    place.refuses(2, &predict("data.jsonl"), &["data.jsonl", "the input itself"]);
    place.refuses(2, &predict("model"), &["model", "not a regular file"]);
    place.refuses(1, &predict("none/p.jsonl"), &["none"]);
    assert!(files(place.root()) == before);

    // A failed prediction leaves the file that was there.
    place.write("p.jsonl", "precious");
    place.write("d.jsonl", "{\"text\": \"a\"}\n{\"text\": \n");
    place.refuses(1, "predict --model model --adapter adapter --input d.jsonl --output p.jsonl", &["d.jsonl, line 2"]);
    assert_eq!(text(&place.path("p.jsonl")), "precious");
    let mut command = program();
    command.current_dir(place.root()).args("eval --json --model model --adapter adapter --data data.jsonl".split(' '));
    command.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    Run::from(command.output().unwrap()).error(1, &["standard output"]);
}

/// Runs the program where no file may grow beyond so many blocks of 512 bytes: writes fail as on a full disk.
fn with_small_disk(place: &Place, blocks: usize, line: &str) -> Run {
    let mut command = Command::new("sh");
    let limit = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    command.current_dir(place.root()).args(["-c", &limit, env!("CARGO_BIN_EXE_ptune")]).args(line.split_whitespace());
    command.output().unwrap().into()
}

#[test]
fn a_full_disk_leaves_the_last_good_state() {
    let (whole, place) = (Place::new("bert-classification"), Place::new("bert-classification"));
    let train =
        "train --model model --task classification --data data.jsonl --output out --max-steps 6 --save-every 2 --batch-size 8 --quiet";
    whole.run(train).ok();
    // Nothing fits: the first adapter cannot be written, and no half of it is there.
    with_small_disk(&place, 8, train).error(1, &["adapter_model.safetensors", "too large"]);
    assert!(!files(&place.path("out")).keys().any(|name| name.ends_with(".safetensors") || name.contains(".tmp")));

    // The adapter fits, a checkpoint's optimizer state does not; then there is space again.
    let size = std::fs::metadata(whole.path("out/adapter_model.safetensors")).unwrap().len() as usize;
    for _ in 0..2 {
        with_small_disk(&place, 2 * size / 512, &format!("{train} --resume")).error(1, &["checkpoint-2", "state.safetensors", "too large"]);
        place.run("eval --model model --adapter out --data data.jsonl").ok();
        assert!(!files(&place.path("out")).keys().any(|name| name.contains("checkpoint-")));
    }
    place.run(&format!("{train} --resume")).ok();
    let bytes = |place: &Place, name: &str| std::fs::read(place.path(name)).unwrap();
    for name in ["out/adapter_model.safetensors", "out/checkpoint-6/state.safetensors", "out/trainer_state.json"] {
        assert!(bytes(&place, name) == bytes(&whole, name), "{name} differs");
    }
    // A prediction that cannot be written leaves the one that was there.
    place.write("p.jsonl", "precious");
    let predict = "predict --model model --adapter out --input data.jsonl --output p.jsonl --with logits";
    with_small_disk(&place, 1, predict).error(1, &["p.jsonl", "too large"]);
    assert_eq!(text(&place.path("p.jsonl")), "precious");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    // The rate is 0 in the first step, whose adapter is therefore good, and absurd from the second on.
    let place = Place::new("bert-classification");
    let train = "train --model model --task classification --data data.jsonl --validation data.jsonl --metric loss --output out \
                 --learning-rate 1e37 --warmup 2 --max-grad-norm 0 --max-steps 9 --batch-size 8 --eval-every 1 --save-every 1 --save-limit 9 --quiet";
    place.run(train).error(1, &["step ", "learning rate", "--learning-rate"]);
    assert_eq!(json(&place.path("out/trainer_state.json"))["best_global_step"], 1);
    place.run("eval --model model --adapter out --data data.jsonl").ok();
    let best = |name: &str| std::fs::read(place.path(name).join("adapter_model.safetensors")).unwrap();
    assert!(best("out") == best("out/checkpoint-1"));

    // The frozen model itself is at fault.
    let place = Place::new("bert-classification");
    let mut bytes = std::fs::read(place.path(WEIGHTS)).unwrap();
    let length = bytes.len();
    bytes[length / 2..length / 2 + 20_000].chunks_exact_mut(2).for_each(|value| value.copy_from_slice(&half::f16::INFINITY.to_le_bytes()));
    place.write(WEIGHTS, bytes);
    let train = "train --model model --task classification --data data.jsonl --output out --quiet";
    place.run(train).error(1, &["step 1", "frozen model"]);
    assert!(!place.path("out/adapter_model.safetensors").exists());
    place.refuses(1, "eval --model model --adapter adapter --data data.jsonl", &["not finite"]);
    ptune(["inspect".as_ref(), place.path("model").as_os_str()]).ok();
}
