//! `metrics.jsonl`: one JSON line a step and an evaluation. What depends on time lies under `timing`; the rest is the
//! same in every run of the same configuration. TensorBoard's file beside it says the same.

use super::events::Events;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// An open `metrics.jsonl`.
pub struct Record {
    path: PathBuf,
    file: BufWriter<File>,
    events: Events,
    started: Instant,
    /// Seconds of the sessions before this one.
    before: f64,
}

impl Record {
    /// Opens the file and cuts off everything that the state to go on from does not know: lines after `step` finished
    /// steps and, while the evaluation of that step is pending, its lines too.
    pub fn open(path: &Path, step: u64, evaluation_pending: bool) -> Result<Record> {
        let context = || format!("cannot open {}", path.display());
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).with_context(context)?;
        let Kept { rows, bytes, seconds: before } = kept(&mut BufReader::new(&file), step, evaluation_pending).with_context(context)?;
        file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0))).with_context(context)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let events = Events::open(path.parent().unwrap_or(Path::new(".")), &rows, now - before)?;
        Ok(Record { path: path.to_path_buf(), file: BufWriter::new(file), events, started: Instant::now(), before })
    }

    /// Seconds of the run, earlier sessions included.
    pub fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// Appends a line; `timing` gets the seconds since the run began.
    pub fn write(&mut self, mut row: Map<String, Value>, tokens_per_second: Option<f64>) -> Result<()> {
        let mut timing = json!({ "seconds": round(self.seconds()) });
        if let Some(rate) = tokens_per_second {
            timing["tokens_per_second"] = round(rate).into();
        }
        row.insert("timing".to_string(), timing);
        self.events.write(&row)?;
        serde_json::to_writer(&mut self.file, &row)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(self.file.write_all(b"\n")?))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Makes the lines so far visible to a reader.
    pub fn flush(&mut self) -> Result<()> {
        self.events.flush()?;
        self.file.flush().with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Makes the lines so far durable: before a checkpoint that counts on them.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.get_ref().sync_data().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Thousandths are fine enough for a clock.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Whether a line is an evaluation's.
fn is_evaluation(row: &Value) -> bool {
    row.get("eval_loss").is_some()
}

/// The leading lines that stay, their bytes, and the seconds that the last of them tells.
#[derive(Default)]
struct Kept {
    rows: Vec<Map<String, Value>>,
    bytes: u64,
    seconds: f64,
}

/// What stays. A line that a kill cut short belongs to no step.
fn kept(lines: &mut impl BufRead, step: u64, evaluation_pending: bool) -> std::io::Result<Kept> {
    let mut kept = Kept::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line)?;
        let row: Value = match line.last() {
            Some(b'\n') => serde_json::from_slice(&line).unwrap_or_default(),
            _ => Value::Null,
        };
        let known = row["step"].as_u64().is_some_and(|of| of < step || of == step && !(evaluation_pending && is_evaluation(&row)));
        if !known {
            return Ok(kept);
        }
        kept.bytes += read as u64;
        kept.seconds = row["timing"]["seconds"].as_f64().unwrap_or(kept.seconds);
        kept.rows.extend(row.as_object().cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> Map<String, Value> {
        Map::from_iter([("step".to_string(), step.into())])
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap()).collect()
    }

    #[test]
    fn resuming_cuts_the_record_back_to_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut record = Record::open(&path, 0, false).unwrap();
        record.before = 100.0;
        for step in [1, 2, 3] {
            record.write(row(step), Some(1.0)).unwrap();
            if step == 2 {
                record.write(Map::from_iter([("step".to_string(), 2.into()), ("eval_loss".to_string(), 0.5.into())]), None).unwrap();
            }
        }
        record.sync().unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\": 4").unwrap();

        let mut record = Record::open(&path, 2, false).unwrap();
        assert!(record.seconds() >= 100.0);
        record.write(row(3), None).unwrap();
        record.sync().unwrap();
        assert_eq!(steps(&path), [1, 2, 2, 3]);
        Record::open(&path, 2, true).unwrap();
        assert_eq!(steps(&path), [1, 2]);
        Record::open(&path, 0, false).unwrap();
        assert!(steps(&path).is_empty());
    }
}
