//! Text files line by line: UTF-8 with or without a byte order mark, lines that end in LF or CRLF, the last one perhaps
//! in neither.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// How examples and errors name a line.
pub fn place(path: &Path, line: usize) -> String {
    format!("{}, line {line}", path.display())
}

/// Calls `each` with the number (from 1) and the text of every line, without its end.
pub fn for_each_line(path: &Path, mut each: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
    let mut buffer = Vec::new();
    for line in 1.. {
        buffer.clear();
        if reader.read_until(b'\n', &mut buffer).with_context(|| format!("cannot read {}", path.display()))? == 0 {
            break;
        }
        let mut bytes = buffer.as_slice();
        if line == 1 {
            bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        }
        if let Some(rest) = bytes.strip_suffix(b"\n") {
            bytes = rest.strip_suffix(b"\r").unwrap_or(rest);
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => each(line, text)?,
            Err(_) => bail!("{}: not UTF-8; save the file as UTF-8", place(path, line)),
        }
    }
    Ok(())
}

/// The first line that is not blank; empty where there is none.
pub fn read_first_line(path: &Path) -> Result<String> {
    let mut reader = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
    let mut bytes = Vec::new();
    while bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes).trim_ascii().is_empty() {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).with_context(|| format!("cannot read {}", path.display()))? == 0 {
            break;
        }
    }
    Ok(String::from_utf8_lossy(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes)).into_owned())
}

/// A whole file as text, without a byte order mark.
pub fn read_text(path: &Path) -> Result<String> {
    let mut bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
        anyhow::anyhow!("{}: not UTF-8; save the file as UTF-8", place(path, line))
    })
}
