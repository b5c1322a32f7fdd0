//! TensorBoard's event file, with the scalar names of Hugging Face's Trainer. It says what `metrics.jsonl` says: a run that
//! goes on writes it anew from the lines that stay, so that it never tells of steps that were taken back.
//!
//! The format: records of a length, its checksum, an `Event` in protobuf's encoding, and its checksum (masked CRC-32C).
//! The fields used: Event.wall_time = 1, step = 2, file_version = 3, summary = 5; Summary.value = 1; Value.tag = 1,
//! simple_value = 2.

use crate::checkpoint::write_atomically;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Beneath the output folder. The name tells neither time nor machine, so that equal runs have equal folders.
const FILE: &str = "runs/events.out.tfevents.0.ptune";

/// An open event file.
pub struct Events {
    path: PathBuf,
    file: BufWriter<File>,
    /// When the run began, in seconds since 1970, earlier sessions counted.
    began: f64,
}

impl Events {
    /// Writes the file of `folder` anew from the rows so far, and stays open for more.
    pub fn open(folder: &Path, rows: &[Map<String, Value>], began: f64) -> Result<Events> {
        let path = folder.join(FILE);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make the folder {}", parent.display()))?;
        write_atomically(&path, |writer| {
            writer.write_all(&record(&version(began)))?;
            for row in rows {
                writer.write_all(&line(row, began))?;
            }
            Ok(())
        })?;
        let file = OpenOptions::new().append(true).open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Events { path, file: BufWriter::new(file), began })
    }

    /// Appends what a row of `metrics.jsonl` says.
    pub fn write(&mut self, row: &Map<String, Value>) -> Result<()> {
        self.file.write_all(&line(row, self.began)).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Makes what was written visible to a reader.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The tag of a field, as the Trainer's callback names it; None for what is no scalar of its.
fn tag(name: &str) -> Option<String> {
    match name {
        "step" | "timing" | "best" | "skipped" => None,
        name => Some(name.strip_prefix("eval_").map_or_else(|| format!("train/{name}"), |score| format!("eval/{score}"))),
    }
}

/// The record of a row; nothing for a row without a scalar.
fn line(row: &Map<String, Value>, began: f64) -> Vec<u8> {
    let scalars = row.iter().filter_map(|(name, value)| Some((tag(name)?, value.as_f64()?)));
    let summary: Vec<u8> = scalars.flat_map(|(tag, value)| field(1, &scalar(&tag, value as f32))).collect();
    if summary.is_empty() {
        return Vec::new();
    }
    let seconds = row.get("timing").and_then(|timing| timing["seconds"].as_f64()).unwrap_or(0.0);
    let mut event = wall_time(began + seconds);
    event.push(2 << 3);
    event.extend(varint(row.get("step").and_then(Value::as_u64).unwrap_or(0)));
    event.extend(field(5, &summary));
    record(&event)
}

fn version(began: f64) -> Vec<u8> {
    [wall_time(began), field(3, b"brain.Event:2")].concat()
}

fn wall_time(seconds: f64) -> Vec<u8> {
    [&[(1 << 3) | 1][..], &seconds.to_le_bytes()].concat()
}

fn scalar(tag: &str, value: f32) -> Vec<u8> {
    [&field(1, tag.as_bytes())[..], &[(2 << 3) | 5], &value.to_le_bytes()].concat()
}

/// A field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[(number << 3) | 2][..], &varint(bytes.len() as u64), bytes].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), event, &masked(event).to_le_bytes()].concat()
}

/// CRC-32C (Castagnoli's polynomial, reflected), masked as TensorFlow's records have it.
fn masked(bytes: &[u8]) -> u32 {
    let crc = !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    });
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn checksums_are_those_of_the_castagnoli_polynomial() {
        // The check value of CRC-32C is e3069283; mask(crc) = rotate right by 15, plus a282ead8.
        assert_eq!(masked(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_record_is_laid_out_as_tensorboard_reads_it() {
        let row = json!({"step": 300, "loss": 0.5, "best": true, "timing": {"seconds": 1.5}});
        let bytes = line(row.as_object().unwrap(), 10.0);
        let value = [&[0x0a, 10][..], b"train/loss", &[0x15, 0, 0, 0, 0x3f]].concat();
        let summary = [&[0x0a, value.len() as u8][..], &value].concat();
        let mut event = vec![0x09];
        event.extend(11.5f64.to_le_bytes());
        event.extend([0x10, 0xac, 0x02, 0x2a, summary.len() as u8]);
        event.extend(&summary);
        assert_eq!(bytes[..8], (event.len() as u64).to_le_bytes());
        assert_eq!(bytes[12..12 + event.len()], event);
        assert_eq!(bytes.len(), event.len() + 16);
    }

    #[test]
    fn rows_that_are_taken_back_leave_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let row = |step: u64| json!({"step": step, "loss": 0.25, "eval_accuracy": 1.0}).as_object().unwrap().clone();
        let read = || std::fs::read(folder.path().join(FILE)).unwrap();
        let mut events = Events::open(folder.path(), &[], 5.0).unwrap();
        for step in [1, 2, 3] {
            events.write(&row(step)).unwrap();
        }
        events.flush().unwrap();
        let whole = read();
        assert!(whole.windows(13).any(|part| part == b"eval/accuracy"));
        let mut events = Events::open(folder.path(), &[row(1), row(2)], 5.0).unwrap();
        assert!(read().len() < whole.len());
        events.write(&row(3)).unwrap();
        events.flush().unwrap();
        assert!(read() == whole);
    }
}
