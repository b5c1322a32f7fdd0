//! Files of torch.save: what tensors they hold and where in the file their elements lie. Nothing of the file is executed,
//! unpacked or copied.

mod archive;
mod globals;
mod legacy;
mod pickle;
#[cfg(test)]
mod tests;

use super::mapped::map;
use crate::backend::FileBytes;
use anyhow::{Context, Result, bail, ensure};
use archive::Archive;
use globals::Element;
use pickle::{Pickle, StorageValue, TensorValue, Value};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

pub use super::strided::Strided;

/// The pickle of a state dict is some hundred bytes a tensor; this is far beyond any.
const MOST_PICKLE: usize = 64 << 20;

/// Keys under which training code puts the weights beside its own state.
const WRAPPERS: [&str; 4] = ["module", "state_dict", "model_state_dict", "model"];

/// A mapped file of torch.save.
pub struct TorchFile {
    pub bytes: FileBytes,
    /// In the order of the state dict.
    pub tensors: Vec<Strided>,
    /// Tensors of other than floating types: name, type.
    pub others: Vec<(String, &'static str)>,
}

impl TorchFile {
    /// `file` is the index that the tensors are given. Errors name the file and what of it is not understood.
    pub fn open(path: &Path, file: usize) -> Result<TorchFile> {
        let bytes = map(path)?;
        let (tensors, others) = read(&bytes, file).with_context(|| path.display().to_string())?;
        Ok(TorchFile { bytes: std::sync::Arc::new(bytes), tensors, others })
    }
}

type Tensors = (Vec<Strided>, Vec<(String, &'static str)>);

/// The tensors of a file.
fn read(bytes: &[u8], file: usize) -> Result<Tensors> {
    if bytes.starts_with(b"PK\x03\x04") {
        let archive = Archive::read(bytes)?;
        let root = archive_root(&archive)?;
        let pickle = archive.get(&format!("{root}data.pkl")).context("the archive has no data.pkl")?;
        ensure!(pickle.len() <= MOST_PICKLE, "data.pkl has {} bytes: this is no state dict", pickle.len());
        if let Some(order) = archive.get(&format!("{root}byteorder")) {
            ensure!(&bytes[order] == b"little", "it was written on a big-endian machine; save it on a little-endian one");
        }
        let pickle = pickle::read(&bytes[pickle])?;
        collect(&pickle, file, |key| archive.get(&format!("{root}data/{key}")))
    } else if legacy::is_legacy(bytes) {
        let (pickle, storages) = legacy::open(bytes)?;
        collect(&pickle, file, |key| storages.get(key).cloned())
    } else {
        bail!(unknown(bytes))
    }
}

/// What a file is that torch.save did not write.
fn unknown(bytes: &[u8]) -> String {
    if bytes.starts_with(b"version https://git-lfs") {
        return "it is a Git LFS pointer, not the file itself; fetch it with: git lfs pull".into();
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return "it is a tar file of PyTorch before 0.1.10: save it with a newer torch".into();
    }
    if bytes.first() == Some(&0x80) {
        return "it is a pickle, but none of torch.save: save the weights with torch.save(model.state_dict(), FILE)".into();
    }
    "it is no file of torch.save".into()
}

/// What stands before the names of an archive's entries: the folder of its only data.pkl.
fn archive_root(archive: &Archive) -> Result<String> {
    let mut roots = archive.names().filter_map(|name| name.strip_suffix("data.pkl")).filter(|root| root.is_empty() || root.ends_with('/'));
    let Some(root) = roots.next() else { bail!("it is a zip archive without data.pkl: no file of torch.save") };
    ensure!(roots.next().is_none(), "it has more than one data.pkl: no file of torch.save");
    if archive.get(&format!("{root}constants.pkl")).is_some() {
        bail!("it is a TorchScript archive: save the weights with torch.save(model.state_dict(), FILE)");
    }
    Ok(root.to_string())
}

/// The tensors of a pickle's state dict; `storage` finds the bytes of a storage.
fn collect(pickle: &Pickle, file: usize, storage: impl Fn(&str) -> Option<Range<usize>>) -> Result<Tensors> {
    let pairs = state_dict(pickle)?;
    // The same key again replaces the value, as in Python.
    let mut last: HashMap<&str, usize> = HashMap::new();
    let mut named = Vec::new();
    for &(key, value) in pairs {
        if let (&Value::Text(name), Value::Tensor(tensor)) = (&pickle.values[key as usize], &pickle.values[value as usize]) {
            match last.get(name) {
                Some(&index) => named[index] = (name, tensor),
                None => {
                    last.insert(name, named.len());
                    named.push((name, tensor));
                }
            }
        }
    }
    ensure!(!named.is_empty(), "it holds no tensors under names{}", keys_of(pickle, pairs));
    // Where every name begins so, the model was wrapped for training on several devices.
    let wrapped = named.iter().all(|(name, _)| name.starts_with("module."));
    let (mut tensors, mut others) = (Vec::new(), Vec::new());
    for (name, tensor) in named {
        let described = &pickle.storages[tensor.storage as usize];
        let name = if wrapped { &name["module.".len()..] } else { name };
        ensure!((1..=1024).contains(&name.len()), "a tensor's name has {} bytes", name.len());
        ensure!(!name.contains(char::is_control), "a tensor's name holds control characters: {}", name.escape_debug());
        match described.element {
            Element::Other(kind, _) => others.push((name.to_string(), kind)),
            Element::Float(_) => {
                let bytes = storage(described.key).with_context(|| format!("tensor {name}: there is no storage {}", described.key));
                tensors.push(place(name, tensor, described, bytes?, file).with_context(|| format!("tensor {name}"))?);
            }
        }
    }
    bound_output(&tensors, pickle)?;
    Ok((tensors, others))
}

/// The dictionary that holds the weights: the root, or what lies under a usual key.
fn state_dict<'b>(pickle: &'b Pickle) -> Result<&'b [(u32, u32)]> {
    let mut at = pickle.root;
    for _ in 0..WRAPPERS.len() {
        let Value::Dict(pairs) = &pickle.values[at as usize] else { bail!("it holds no dictionary of tensors: save model.state_dict()") };
        let under = |key: &str| {
            let held = |&&(name, value): &&(u32, u32)| {
                matches!(pickle.values[name as usize], Value::Text(text) if text == key)
                    && matches!(pickle.values[value as usize], Value::Dict(_))
            };
            pairs.iter().rev().find(held).map(|&(_, value)| value)
        };
        match WRAPPERS.iter().find_map(|key| under(key)) {
            Some(inner) => at = inner,
            None => return Ok(pairs),
        }
    }
    bail!("it holds dictionaries in dictionaries: save model.state_dict() alone")
}

/// The first keys of a dictionary, for a message.
fn keys_of(pickle: &Pickle, pairs: &[(u32, u32)]) -> String {
    let keys = pairs.iter().filter_map(|&(key, _)| match pickle.values[key as usize] {
        Value::Text(text) => Some(text.escape_default().take(40).collect::<String>()),
        _ => None,
    });
    let keys: Vec<String> = keys.take(8).collect();
    if keys.is_empty() { String::new() } else { format!("; its keys are {}", keys.join(", ")) }
}

/// A tensor's place in the file, checked: every element lies in the storage, and the storage in the file.
fn place(name: &str, tensor: &TensorValue, described: &StorageValue, bytes: Range<usize>, file: usize) -> Result<Strided> {
    let Element::Float(dtype) = described.element else { bail!("it is no tensor of numbers") };
    let key = described.key;
    let size = described.elements.checked_mul(dtype.size() as u64);
    if size != Some(bytes.len() as u64) {
        bail!(
            "storage {key} has {} bytes, not {} of {} bytes: it is truncated or damaged; download or copy it again",
            bytes.len(),
            described.elements,
            dtype.size()
        );
    }
    let outside = || format!("it reaches beyond its storage {key} of {} elements: the file is damaged", described.elements);
    let count = tensor.shape.iter().try_fold(1u64, |count, &size| count.checked_mul(size)).with_context(outside)?;
    // The index behind the last element.
    let mut end = tensor.offset;
    for (&size, &stride) in tensor.shape.iter().zip(&tensor.strides) {
        let last = size.saturating_sub(1).checked_mul(stride).with_context(outside)?;
        end = end.checked_add(last).with_context(outside)?;
    }
    if count > 0 {
        ensure!(end < described.elements, outside());
    }
    ensure!(
        count <= described.elements,
        "it repeats the {} elements of its storage {key} to {count}; save it contiguous",
        described.elements
    );
    let index = |number: u64| usize::try_from(number).with_context(outside);
    Ok(Strided {
        name: name.to_string(),
        dtype,
        shape: tensor.shape.iter().map(|&size| index(size)).collect::<Result<_>>()?,
        strides: tensor.strides.iter().map(|&stride| index(stride)).collect::<Result<_>>()?,
        file,
        // An empty tensor's offset says nothing.
        offset: if count == 0 { bytes.start } else { bytes.start + index(tensor.offset)? * dtype.size() },
        storage: bytes,
    })
}

/// Refuses a file whose tensors show the same elements over and over, so that no small file makes a large one.
fn bound_output(tensors: &[Strided], pickle: &Pickle) -> Result<()> {
    const MOST_SHARED: u128 = 8;
    let made: u128 = tensors.iter().map(|tensor| tensor.elements() as u128).sum();
    let used: BTreeMap<usize, usize> =
        tensors.iter().map(|tensor| (tensor.storage.start, tensor.storage.len() / tensor.dtype.size())).collect();
    let held: u128 = used.values().map(|&elements| elements as u128).sum();
    ensure!(
        made <= held * MOST_SHARED,
        "its {} tensors show the {held} elements of {} storages {made} times over: it was made to deceive",
        tensors.len(),
        pickle.storages.len()
    );
    Ok(())
}
