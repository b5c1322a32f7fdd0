//! The layout of torch.save before PyTorch 1.6, in which the first BERT and RoBERTa checkpoints are published: five
//! pickles in a row (a mark, a version, the machine, the state dict, the keys of the storages), then every storage as a
//! count and its elements.

use super::MOST_PICKLE;
use super::pickle::{Pickle, Value, read};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::ops::Range;

/// The pickle of the mark 0x1950a86a20f9469cfc6c.
const MARK: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
/// The version that every such file has.
const VERSION: i64 = 1001;

pub fn is_legacy(file: &[u8]) -> bool {
    file.starts_with(MARK)
}

/// The state dict's pickle, and the bytes of every storage by its key.
pub fn open(file: &[u8]) -> Result<(Pickle<'_>, HashMap<String, Range<usize>>)> {
    let mut at = MARK.len();
    let mut next = |what: &str| {
        let rest = &file[at..file.len().min(at + MOST_PICKLE)];
        let pickle = read(rest).with_context(|| what.to_string())?;
        at += pickle.length;
        Ok::<_, anyhow::Error>(pickle)
    };
    let version = next("version")?;
    ensure!(matches!(root(&version), Value::Int(VERSION)), "it has a version that is not known, not {VERSION}");
    next("machine")?;
    let state = next("state dict")?;
    let keys = next("keys of the storages")?;
    let Value::List(order) = root(&keys) else { bail!("it has no list of storages") };

    let sizes: HashMap<&str, (u64, usize)> =
        state.storages.iter().map(|storage| (storage.key, (storage.elements, storage.element.size()))).collect();
    let mut storages = HashMap::new();
    for &key in order {
        let Value::Text(key) = keys.values[key as usize] else { bail!("it has a storage whose key is no text") };
        let Some(&(elements, width)) = sizes.get(key) else {
            bail!("it has a storage {} that the state dict does not describe", key.escape_debug())
        };
        let truncated = || format!("storage {key} is truncated: it should have {elements} elements; download or copy it again");
        let count = file.get(at..at + 8).and_then(|bytes| bytes.first_chunk()).map(|count| u64::from_le_bytes(*count));
        let count = count.with_context(truncated)?;
        ensure!(count == elements, "storage {key} has {count} elements, by the state dict {elements}; download or copy it again");
        let bytes = usize::try_from(elements).ok().and_then(|elements| elements.checked_mul(width));
        let start = at + 8;
        let end = bytes.and_then(|bytes| start.checked_add(bytes)).filter(|&end| end <= file.len()).with_context(truncated)?;
        storages.insert(key.to_string(), start..end);
        at = end;
    }
    Ok((state, storages))
}

fn root<'b, 'a>(pickle: &'b Pickle<'a>) -> &'b Value<'a> {
    &pickle.values[pickle.root as usize]
}
