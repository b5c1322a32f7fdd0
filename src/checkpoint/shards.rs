//! The safetensors of a model directory: one file, or the shards of an index.

use super::mapped::{MappedFile, Tensor, read_ahead, release};
use super::synthetic::TensorBytes;
use crate::backend::FileBytes;
use crate::error::require_directory;
use crate::model::Config;
use anyhow::{Result, bail};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const TORCH: &str = "pytorch_model.bin";
pub(super) const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// Bytes of each tensor that the fingerprint reads.
const FINGERPRINT_BYTES: usize = 4096;

/// A memory-mapped checkpoint. Opening it reads headers only.
pub struct Checkpoint {
    tensors: BTreeMap<String, Tensor>,
    /// Tensors of element types that models here do not compute with: file, type.
    others: BTreeMap<String, (usize, String)>,
    files: Vec<FileBytes>,
    paths: Vec<PathBuf>,
    /// Whether the bytes are those of files, so that memory they take can be given back.
    mapped: bool,
}

impl Checkpoint {
    /// Maps the directory's `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(directory: &Path) -> Result<Checkpoint> {
        require_directory(directory, "give the directory of a checkpoint")?;
        if directory.join(SINGLE).exists() {
            Checkpoint::of_files(&[directory.join(SINGLE)])
        } else if directory.join(INDEX).exists() {
            Checkpoint::sharded(directory)
        } else {
            let folder = directory.display();
            if let Some(name) = [TORCH, TORCH_INDEX].into_iter().find(|name| directory.join(name).exists()) {
                bail!("{folder}: there is PyTorch's {name} but no {SINGLE}; convert it first: ptune convert --input {folder} --output DIR");
            }
            if directory.join("tf_model.h5").exists() {
                bail!("{folder}: there is TensorFlow's tf_model.h5 but no {SINGLE}; save it as safetensors with transformers first");
            }
            bail!("{folder}: there is neither {SINGLE} nor {INDEX}")
        }
    }

    fn sharded(directory: &Path) -> Result<Checkpoint> {
        let map = read_index(&directory.join(INDEX))?;
        let paths: Vec<PathBuf> = map.values().collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let checkpoint = Checkpoint::of_files(&paths)?;
        for (tensor, shard) in map {
            let file = checkpoint.tensor(&tensor).map(|found| found.file).or(checkpoint.others.get(&tensor).map(|found| found.0));
            if file.map(|file| &checkpoint.paths[file]) != Some(&shard) {
                bail!("{}: tensor {tensor} is not in it, although {INDEX} says so; download both again", shard.display());
            }
        }
        Ok(checkpoint)
    }

    /// A checkpoint that is only described: what tensors it would hold, without their bytes.
    pub(super) fn described(tensors: impl IntoIterator<Item = Tensor>, path: PathBuf) -> Checkpoint {
        let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Checkpoint { tensors, others: BTreeMap::new(), files: vec![], paths: vec![path], mapped: false }
    }

    pub(super) fn of_files(paths: &[PathBuf]) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { tensors: BTreeMap::new(), others: BTreeMap::new(), files: vec![], paths: vec![], mapped: true };
        for path in paths {
            let file = checkpoint.files.len();
            let mapped = MappedFile::open(path, file)?;
            for name in mapped.tensors.keys().chain(mapped.others.keys()) {
                let before = checkpoint.tensors.get(name).map(|tensor| tensor.file).or(checkpoint.others.get(name).map(|other| other.0));
                if let Some(before) = before {
                    bail!("tensor {name} is in both {} and {}; remove one", checkpoint.paths[before].display(), path.display());
                }
            }
            checkpoint.tensors.extend(mapped.tensors);
            checkpoint.others.extend(mapped.others.into_iter().map(|(name, dtype)| (name, (file, dtype))));
            checkpoint.files.push(mapped.bytes);
            checkpoint.paths.push(mapped.path);
        }
        Ok(checkpoint)
    }

    /// A checkpoint of tensors of fp16, bf16 or fp32 that are in no file; `name` stands for one in messages.
    pub(super) fn in_memory(list: Vec<TensorBytes>, name: PathBuf) -> Checkpoint {
        let (mut tensors, mut all) = (BTreeMap::new(), Vec::new());
        for TensorBytes { name, dtype, shape, bytes } in list {
            all.resize(usize::next_multiple_of(all.len(), 64), 0);
            tensors.insert(name.clone(), Tensor { name, dtype, shape, file: 0, offset: all.len(), bytes: bytes.len() });
            all.extend(bytes);
        }
        Checkpoint { tensors, others: BTreeMap::new(), files: vec![Arc::new(all)], paths: vec![name], mapped: false }
    }

    /// A tensor of fp16, bf16 or fp32.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Gives back the memory of the pages that only this tensor lies on; they are read from the file again if asked for.
    pub fn release(&self, tensor: &Tensor) {
        self.release_part(tensor, 0..tensor.bytes);
    }

    /// The same for some of a tensor's bytes.
    pub fn release_part(&self, tensor: &Tensor, bytes: Range<usize>) {
        if self.mapped {
            release((*self.files[tensor.file]).as_ref(), tensor.offset + bytes.start..tensor.offset + bytes.end.min(tensor.bytes));
        }
    }

    /// Has the system begin to read some of a tensor's bytes; those beyond its end are left out.
    pub fn read_ahead(&self, tensor: &Tensor, bytes: Range<usize>) {
        if self.mapped {
            read_ahead((*self.files[tensor.file]).as_ref(), tensor.offset + bytes.start..tensor.offset + bytes.end.min(tensor.bytes));
        }
    }

    /// File and element type of a tensor that is neither fp16, bf16 nor fp32.
    pub(super) fn unsupported(&self, name: &str) -> Option<(&Path, &str)> {
        self.others.get(name).map(|(file, dtype)| (self.file_name(*file), dtype.as_str()))
    }

    /// Tensors that are neither fp16, bf16 nor fp32: name, type.
    pub fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others.iter().map(|(name, (_, dtype))| (name.as_str(), dtype.as_str()))
    }

    /// The tensors of fp16, bf16 and fp32 in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// A tensor's bytes: little-endian, row-major.
    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        &(*self.files[tensor.file]).as_ref()[tensor.offset..tensor.offset + tensor.bytes]
    }

    pub fn files(&self) -> &[FileBytes] {
        &self.files
    }

    /// Path of a file.
    pub fn file_name(&self, file: usize) -> &Path {
        &self.paths[file]
    }

    /// Bytes that are mapped.
    pub fn total_bytes(&self) -> usize {
        self.files.iter().map(|file| (**file).as_ref().len()).sum()
    }

    /// What tells this checkpoint from another: SHA-256 over every tensor's name, type, shape and first 4 KiB, in the
    /// order of the names. It reads little of a large model, and does not depend on how the file is sharded.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for tensor in self.tensors() {
            hash.update(format!("{}\0{}\0{:?}\0", tensor.name, tensor.dtype.name(), tensor.shape));
            hash.update(&self.data(tensor)[..tensor.bytes.min(FINGERPRINT_BYTES)]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The shard of every tensor by an index file. Every shard lies in the same directory, and is there.
pub(super) fn read_index(file: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let index = Config::read(file)?;
    let Some(map) = index.get("weight_map").and_then(|map| map.as_object()) else {
        return Err(index.wrong("weight_map", "it must be an object of tensor: file"));
    };
    let mut shards = BTreeMap::new();
    for (tensor, shard) in map {
        match shard.as_str() {
            Some(name) if Path::new(name).file_name().is_some_and(|file| file == name) => {
                shards.insert(tensor.clone(), file.with_file_name(name))
            }
            _ => bail!("{}: tensor {tensor}: {shard} is not the name of a file in the same directory", file.display()),
        };
    }
    if shards.is_empty() {
        return Err(index.wrong("weight_map", "it names no tensor"));
    }
    if let Some(missing) = shards.values().find(|path| !path.exists()) {
        let name = file.file_name().unwrap_or_default().display();
        bail!("{} is missing, which {name} names; download or copy it again", missing.display());
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use super::super::host::{HostTensor, write_tensors};
    use super::*;
    use std::fs;

    fn write(path: &Path, tensors: &[(&str, f32)]) {
        let tensors = tensors.iter().map(|(name, value)| (name.to_string(), HostTensor { shape: vec![2], values: vec![*value; 2] }));
        write_tensors(&mut fs::File::create(path).unwrap(), &tensors.collect()).unwrap();
    }

    fn message(directory: &Path) -> String {
        format!("{:#}", Checkpoint::open(directory).err().expect("an error"))
    }

    #[test]
    fn shards_are_one_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(message(folder.path()).contains("neither"));
        assert!(message(&at("absent")).contains("no such directory"));
        fs::write(at("pytorch_model.bin"), "x").unwrap();
        assert!(message(folder.path()).contains("ptune convert --input"));

        fs::write(at(INDEX), r#"{"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#).unwrap();
        write(&at("one.safetensors"), &[("a", 1.0)]);
        assert!(message(folder.path()).contains("two.safetensors is missing"));
        write(&at("two.safetensors"), &[("c", 2.0)]);
        assert!(message(folder.path()).contains("two.safetensors: tensor b is not in it"));
        write(&at("two.safetensors"), &[("a", 2.0), ("b", 2.0)]);
        assert!(message(folder.path()).contains("tensor a is in both"));
        write(&at("two.safetensors"), &[("b", 2.0)]);
        let sharded = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(sharded.tensors().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let tensor = sharded.tensor("b").unwrap();
        assert_eq!(sharded.file_name(tensor.file), at("two.safetensors"));
        assert_eq!(sharded.data(tensor), [2.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat());
        assert_eq!(sharded.total_bytes() as u64, fs::metadata(at("one.safetensors")).unwrap().len() * 2);

        write(&at(SINGLE), &[("a", 1.0), ("b", 2.0)]);
        let single = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(single.files().len(), 1);
        assert_eq!(single.fingerprint(), sharded.fingerprint());
        assert_eq!(single.fingerprint().len(), 64);
        write(&at(SINGLE), &[("a", 1.0), ("b", 2.5)]);
        assert_ne!(Checkpoint::open(folder.path()).unwrap().fingerprint(), sharded.fingerprint());
    }

    #[test]
    fn a_broken_index_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cases = [
            ("{", "not valid JSON"),
            ("{}", "weight_map"),
            (r#"{"weight_map": {}}"#, "no tensor"),
            (r#"{"weight_map": {"a": "../x.safetensors"}}"#, "tensor a"),
            (r#"{"weight_map": {"a": 3}}"#, "tensor a"),
        ];
        for (text, part) in cases {
            fs::write(folder.path().join(INDEX), text).unwrap();
            let message = message(folder.path());
            assert!(message.contains(part) && message.contains(INDEX), "{message}");
        }
    }
}
