//! The emulator itself: each instruction that the kernels use against its definition, and against what real GPUs made of
//! random bits (`ptune selftest --record`), where such recordings are. Until a GPU has run the probes there are none.

use ptune::backend::cuda::{Emulated, PROBES, Prober};
use ptune::selftest::{Recording, instructions};
use std::path::{Path, PathBuf};

fn prober(order: u32) -> Prober<Emulated> {
    Prober::new(Emulated::new(order)).unwrap()
}

fn replay(path: &Path) -> Result<(), String> {
    let mut prober = prober(0);
    let recording = Recording::read(path).map_err(|error| format!("{error:#}"))?;
    recording.replay(&mut |probe, input| prober.run(probe, input)).map_err(|error| format!("{}: {error:#}", path.display()))
}

#[test]
fn each_does_what_it_is_defined_to_do() {
    for order in [0, 1, 2] {
        let mut prober = prober(order);
        let rows = instructions(&mut |probe, input| prober.run(probe, input));
        assert_eq!(rows.len(), PROBES.len());
        for row in rows {
            assert!(row.cases > 200 && row.failures.is_empty(), "order {order}: {}", row.failures.join("\n"));
        }
    }
}

/// A device that is wrong in one bit of one word is caught, whatever the instruction.
#[test]
fn a_wrong_bit_is_seen() {
    let mut prober = prober(0);
    let rows = instructions(&mut |probe, input| {
        let mut output = prober.run(probe, input)?;
        output[37] ^= 1 << 20;
        Ok(output)
    });
    for row in rows {
        assert_eq!(row.failures.len(), 1, "{}", row.operation);
    }
}

/// tests/golden/probes/GPU.json, as many as there are; today there is none, because no GPU has run the probes yet.
#[test]
fn the_emulator_repeats_what_gpus_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/probes");
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let recordings: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect();
    if recordings.is_empty() {
        eprintln!("no GPU has recorded its instructions: the emulator is held to their definitions alone");
    }
    for path in recordings {
        replay(&path).unwrap();
    }
}

/// The emulated device's own recording, through the command.
#[test]
fn recordings_are_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("emulated.json");
    let output = crate::command::program().args(["selftest", "--device", "emulated", "--record"]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    replay(&path).unwrap();

    // One digit of one output, of an instruction whose bits must be the same.
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let chosen = PROBES.iter().position(|probe| probe.kernel == "probe_load_matrices").unwrap();
    let output = value["probes"][chosen]["output"].as_str().unwrap();
    let digit = if output.ends_with('0') { "1" } else { "0" };
    value["probes"][chosen]["output"] = format!("{}{digit}", &output[..output.len() - 1]).into();
    std::fs::write(&path, value.to_string()).unwrap();
    assert!(replay(&path).unwrap_err().contains("probe_load_matrices"));
    value["probes"].as_array_mut().unwrap().remove(chosen);
    std::fs::write(&path, value.to_string()).unwrap();
    assert!(replay(&path).unwrap_err().contains("is not recorded"));
    std::fs::write(&path, "{}").unwrap();
    assert!(replay(&path).unwrap_err().contains("is not a recording"));
}
