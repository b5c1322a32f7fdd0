//! The weights that a conversion starts from: files of torch.save, or safetensors.

use super::mapped::{Tensor, release};
use super::shards::{Checkpoint, INDEX, SINGLE, TORCH, TORCH_INDEX, read_index};
use super::strided::Strided;
use super::torch::TorchFile;
use crate::backend::FileBytes;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// Mapped files and the tensors in them, in the order of the files.
pub struct Source {
    /// Of floating types.
    pub tensors: Vec<Strided>,
    /// Of other types (index buffers, masks): name, type.
    pub others: Vec<(String, String)>,
    pub paths: Vec<PathBuf>,
    files: Vec<FileBytes>,
}

/// Files beside a model that torch.save wrote too, and that are not the model.
const NOT_WEIGHTS: [&str; 5] = ["training_args", "optimizer", "scheduler", "rng_state", "bpe_encoder"];

impl Source {
    /// A file, an index of shards, or a directory with either.
    pub fn open(input: &Path) -> Result<Source> {
        let file = if input.is_dir() { find(input)? } else { input.to_owned() };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".index.json") {
            let map = read_index(&file)?;
            let paths: Vec<PathBuf> = map.values().collect::<BTreeSet<_>>().into_iter().cloned().collect();
            let source = Source::of_files(&paths)?;
            let found: HashSet<&str> = source
                .tensors
                .iter()
                .map(|tensor| tensor.name.as_str())
                .chain(source.others.iter().map(|other| other.0.as_str()))
                .collect();
            if let Some((tensor, shard)) = map.iter().find(|(tensor, _)| !found.contains(tensor.as_str())) {
                bail!("{}: tensor {tensor} is not in it, although {name} says so; download both again", shard.display());
            }
            return Ok(source);
        }
        Source::of_files(&[file])
    }

    fn of_files(paths: &[PathBuf]) -> Result<Source> {
        let mut source = Source { tensors: vec![], others: vec![], paths: paths.to_vec(), files: vec![] };
        if paths.iter().all(|path| path.extension().is_some_and(|extension| extension == "safetensors")) {
            let checkpoint = Checkpoint::of_files(paths)?;
            source.tensors = checkpoint.tensors().map(contiguous).collect();
            source.tensors.sort_by_key(|tensor| (tensor.file, tensor.offset));
            source.others = checkpoint.others().map(|(name, dtype)| (name.to_string(), dtype.to_string())).collect();
            source.files = checkpoint.files().to_vec();
            return Ok(source);
        }
        let mut names = HashSet::new();
        for (index, path) in paths.iter().enumerate() {
            let file = TorchFile::open(path, index)?;
            for name in file.tensors.iter().map(|tensor| &tensor.name).chain(file.others.iter().map(|other| &other.0)) {
                if !names.insert(name.clone()) {
                    bail!("{}: tensor {name} is in another shard too; remove one", path.display());
                }
            }
            source.tensors.extend(file.tensors);
            source.others.extend(file.others.into_iter().map(|(name, kind)| (name, kind.to_string())));
            source.files.push(file.bytes);
        }
        Ok(source)
    }

    /// Bytes of a file.
    pub fn file(&self, file: usize) -> &[u8] {
        (*self.files[file]).as_ref()
    }

    /// Gives back the memory of the pages of a tensor's storage.
    pub fn release(&self, tensor: &Strided) {
        release(self.file(tensor.file), tensor.storage.clone());
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> usize {
        (0..self.files.len()).map(|file| self.file(file).len()).sum()
    }
}

/// The file or index of a directory that holds the weights.
fn find(directory: &Path) -> Result<PathBuf> {
    for name in [SINGLE, INDEX, TORCH, TORCH_INDEX] {
        if directory.join(name).exists() {
            return Ok(directory.join(name));
        }
    }
    let folder = directory.display();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| format!("cannot read {folder}"))? {
        let path = entry.with_context(|| format!("cannot read {folder}"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_torch = path.extension().is_some_and(|extension| ["bin", "pt", "pth"].iter().any(|known| extension == *known));
        if is_torch && path.is_file() && !NOT_WEIGHTS.iter().any(|other| name.starts_with(other)) {
            found.push(name);
        }
    }
    found.sort();
    match found.as_slice() {
        [name] => Ok(directory.join(name)),
        [] => bail!("{folder}: there are no weights: neither {SINGLE} nor {TORCH}, an index of shards, or another .bin or .pt file"),
        [first, ..] if first.starts_with("mp_rank_") => {
            bail!("{folder}: the checkpoint is cut for several devices ({}); merge the parts with its own code first", found.join(", "))
        }
        _ => bail!("{folder}: there is more than one file of weights ({}); give the file to --input", found.join(", ")),
    }
}

fn contiguous(tensor: &Tensor) -> Strided {
    let mut strides = vec![1; tensor.shape.len()];
    for dimension in (1..tensor.shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * tensor.shape[dimension];
    }
    Strided {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        strides,
        file: tensor.file,
        offset: tensor.offset,
        storage: tensor.offset..tensor.offset + tensor.bytes,
    }
}
