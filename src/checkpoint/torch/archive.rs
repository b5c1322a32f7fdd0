//! The zip archive that torch.save writes: entries stored as they are, so that a tensor's bytes lie in the file. Nothing
//! is unpacked, so nothing can grow: an entry that is compressed, encrypted, outside the file or over another one is
//! refused.

use anyhow::{Result, bail, ensure};
use std::collections::HashMap;
use std::ops::Range;

const LOCAL: &[u8; 4] = b"PK\x03\x04";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const END: &[u8; 4] = b"PK\x05\x06";
const END_64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR_64: &[u8; 4] = b"PK\x06\x07";

/// Fixed parts of the records, in bytes.
const LOCAL_SIZE: usize = 30;
const CENTRAL_SIZE: usize = 46;
const END_SIZE: usize = 22;
const LOCATOR_64_SIZE: usize = 20;
const END_64_SIZE: usize = 56;

/// A comment behind the end record is at most this long.
const LONGEST_COMMENT: usize = u16::MAX as usize;

/// Where the entries' bytes lie in the file, by name.
pub struct Archive(HashMap<String, Range<usize>>);

/// The list of entries, as the end record tells.
struct Directory {
    start: usize,
    end: usize,
    entries: u64,
}

impl Archive {
    pub fn read(file: &[u8]) -> Result<Archive> {
        let directory = directory(file)?;
        let mut entries = HashMap::new();
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        let mut at = directory.start;
        for _ in 0..directory.entries {
            let (name, range, next) = entry(&file[..directory.end], at, directory.start)?;
            at = next;
            ranges.push((range.start, range.end));
            if entries.insert(name.clone(), range).is_some() {
                bail!("the archive has two entries {name}; download or copy it again");
            }
        }
        ranges.sort_unstable();
        if ranges.windows(2).any(|pair| pair[1].0 < pair[0].1) {
            bail!("entries of the archive lie over each other: it was made to deceive, or is damaged");
        }
        Ok(Archive(entries))
    }

    /// Where an entry's bytes lie.
    pub fn get(&self, name: &str) -> Option<Range<usize>> {
        self.0.get(name).cloned()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Finds the end record and reads where the list of entries lies.
fn directory(file: &[u8]) -> Result<Directory> {
    let truncated = "the archive has no end record: the file is truncated; download or copy it again";
    ensure!(file.len() >= END_SIZE, truncated);
    let last = file.len() - END_SIZE;
    let is_end = |at: &usize| file[*at..].starts_with(END) && *at + END_SIZE + usize::from(u16_at(file, at + 20)) == file.len();
    let Some(end) = (last.saturating_sub(LONGEST_COMMENT)..=last).rev().find(is_end) else { bail!(truncated) };
    let (mut entries, mut size, mut start) =
        (u64::from(u16_at(file, end + 10)), u64::from(u32_at(file, end + 12)), u64::from(u32_at(file, end + 16)));
    let mut limit = end;
    let wide = entries == u64::from(u16::MAX) || size == u64::from(u32::MAX) || start == u64::from(u32::MAX);
    if wide && let Some(locator) = end.checked_sub(LOCATOR_64_SIZE).filter(|&at| file[at..].starts_with(LOCATOR_64)) {
        let at = usize::try_from(u64_at(file, locator + 8)).unwrap_or(usize::MAX);
        let fits = at.checked_add(END_64_SIZE).is_some_and(|end| end <= locator);
        ensure!(fits && file[at..].starts_with(END_64), "the archive's end record is damaged; download or copy it again");
        (entries, size, start) = (u64_at(file, at + 32), u64_at(file, at + 40), u64_at(file, at + 48));
        limit = at;
    }
    let outside = "the archive's list of entries lies outside the file: it is truncated or damaged; download or copy it again";
    let (Ok(start), Ok(size)) = (usize::try_from(start), usize::try_from(size)) else { bail!(outside) };
    match start.checked_add(size) {
        Some(end) if end <= limit && entries <= (size / CENTRAL_SIZE) as u64 => Ok(Directory { start, end, entries }),
        _ => bail!(outside),
    }
}

/// The entry whose record in the list begins at `at`: name, bytes, where the next record begins. `list` is the file up
/// to the end of the list, `data_end` where the list begins.
fn entry(list: &[u8], at: usize, data_end: usize) -> Result<(String, Range<usize>, usize)> {
    let damaged = "the archive's list of entries is damaged; download or copy it again";
    ensure!(list.get(at..at + CENTRAL_SIZE).is_some_and(|record| record.starts_with(CENTRAL)), damaged);
    let lengths = [28, 30, 32].map(|field| usize::from(u16_at(list, at + field)));
    let variable = at + CENTRAL_SIZE;
    let next = variable + lengths.iter().sum::<usize>();
    ensure!(next <= list.len(), damaged);
    let name = std::str::from_utf8(&list[variable..variable + lengths[0]]).ok().filter(|name| !name.contains(char::is_control));
    let Some(name) = name else { bail!(damaged) };
    let (flags, method) = (u16_at(list, at + 8), u16_at(list, at + 10));
    let mut packed = u64::from(u32_at(list, at + 20));
    let mut size = u64::from(u32_at(list, at + 24));
    let mut local = u64::from(u32_at(list, at + 42));
    let extra = &list[variable + lengths[0]..variable + lengths[0] + lengths[1]];
    let mut wide = wide_fields(extra);
    for field in [&mut size, &mut packed, &mut local].into_iter().filter(|field| **field == u64::from(u32::MAX)) {
        if let Some((first, rest)) = wide.split_first_chunk::<8>() {
            (*field, wide) = (u64::from_le_bytes(*first), rest);
        }
    }
    ensure!(flags & 1 == 0, "entry {name} of the archive is encrypted; torch.save writes none such");
    if method != 0 || packed != size {
        bail!(
            "entry {name} of the archive is compressed ({packed} bytes for {size}); torch.save writes none such: save it with torch.save again"
        );
    }
    let outside =
        || anyhow::anyhow!("entry {name} of the archive lies outside the file: it is truncated or damaged; download or copy it again");
    let (Ok(local), Ok(size)) = (usize::try_from(local), usize::try_from(size)) else { return Err(outside()) };
    let header = local.checked_add(LOCAL_SIZE).filter(|&end| end <= data_end).ok_or_else(outside)?;
    ensure!(list[local..].starts_with(LOCAL), "entry {name} of the archive has no header: it is damaged; download or copy it again");
    let start = header + usize::from(u16_at(list, local + 26)) + usize::from(u16_at(list, local + 28));
    let end = start.checked_add(size).filter(|&end| end <= data_end).ok_or_else(outside)?;
    Ok((name.to_string(), start..end, next))
}

/// The zip64 part of an entry's extra fields; empty where there is none.
fn wide_fields(mut extra: &[u8]) -> &[u8] {
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(body) = extra.get(4..4 + length) else { return &[] };
        if id == 1 {
            return body;
        }
        extra = &extra[4 + length..];
    }
    &[]
}

// Of fields that are known to lie inside.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
