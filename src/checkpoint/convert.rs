//! Weights of any layout and floating type written as safetensors of 16 bits: one file, or shards with an index. Every
//! element passes through a buffer of a few MiB.

use super::atomic::{Leftover, write_atomically};
use super::mapped::Tensor;
use super::metadata::write_json;
use super::narrow::{NotFinite, narrow};
use super::shards::{Checkpoint, INDEX, SINGLE, TORCH_INDEX};
use super::source::Source;
use super::stream::write_header;
use super::strided::Strided;
use crate::backend::DType;
use anyhow::{Context, Result, bail};
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Elements that are on the host at a time.
const CHUNK: usize = 1 << 20;

/// Other files are copied up to this size; a tokenizer has some MB.
const LARGEST_COMPANION: u64 = 256 << 20;

/// What is to be written: which of a source's tensors, as what.
pub struct Conversion<'a> {
    source: &'a Source,
    dtype: DType,
    /// Tensors in which infinities and NaN are refused.
    weights: &'a BTreeSet<String>,
    /// Indices of the source's tensors that are written, a shard each.
    shards: Vec<Vec<usize>>,
    /// Tensors that are left out, since they are the same elements as another: name, name of the other.
    pub tied: Vec<(String, String)>,
}

impl<'a> Conversion<'a> {
    /// `weights`: the tensors that the model reads, where that is known; else empty. Where several names stand for the
    /// same elements, one is written beside those that the model reads. A shard has at most `shard_bytes`, unless a
    /// single tensor has more.
    pub fn new(source: &'a Source, dtype: DType, weights: &'a BTreeSet<String>, shard_bytes: usize) -> Conversion<'a> {
        let mut first_at: HashMap<(usize, usize), Vec<usize>> = HashMap::new();
        let mut tied = Vec::new();
        let mut kept = Vec::new();
        // Those that the model reads come first, so that others yield to them.
        let (read, others): (Vec<usize>, Vec<usize>) =
            (0..source.tensors.len()).partition(|&index| weights.contains(&source.tensors[index].name));
        for index in read.into_iter().chain(others) {
            let tensor = &source.tensors[index];
            let near = first_at.entry((tensor.file, tensor.offset)).or_default();
            let same = near.iter().copied().find(|&other| source.tensors[other].same_elements(tensor));
            match same {
                Some(other) if !weights.is_empty() && !weights.contains(&tensor.name) => {
                    tied.push((tensor.name.clone(), source.tensors[other].name.clone()));
                }
                _ => {
                    near.push(index);
                    kept.push(index);
                }
            }
        }
        kept.sort_unstable();
        let mut shards: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for index in kept {
            let bytes = bytes_of(&source.tensors[index]);
            match shards.last_mut() {
                Some(shard) if bytes <= room => shard.push(index),
                _ => {
                    shards.push(vec![index]);
                    room = shard_bytes.max(bytes);
                }
            }
            room -= bytes;
        }
        Conversion { source, dtype, weights, shards, tied }
    }

    /// The tensors that are written.
    pub fn tensors(&self) -> impl Iterator<Item = &Strided> {
        self.shards.iter().flatten().map(|&index| &self.source.tensors[index])
    }

    /// Bytes of the tensors that are written.
    pub fn bytes(&self) -> usize {
        self.tensors().map(bytes_of).sum()
    }

    /// The result as a checkpoint, without its bytes.
    pub fn described(source: &Source, dtype: DType, path: PathBuf) -> Checkpoint {
        let described = |tensor: &Strided| Tensor {
            name: tensor.name.clone(),
            dtype,
            shape: tensor.shape.clone(),
            file: 0,
            offset: 0,
            bytes: bytes_of(tensor),
        };
        Checkpoint::described(source.tensors.iter().map(described), path)
    }

    /// Writes the files into a directory that is there, and returns their paths. `progress` is told how many bytes are
    /// written. On an error, and where `progress` returns one, none of the files is left.
    pub fn write(&self, directory: &Path, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<Vec<PathBuf>> {
        let count = self.shards.len();
        let mut written = Vec::new();
        let mut done = 0;
        let mut map = Map::new();
        for (number, shard) in self.shards.iter().enumerate() {
            let name = if count == 1 { SINGLE.to_string() } else { format!("model-{:05}-of-{count:05}.safetensors", number + 1) };
            let path = directory.join(&name);
            write_atomically(&path, |writer| self.write_shard(shard, writer, &mut done, progress))?;
            written.push(Leftover(Some(path)));
            map.extend(shard.iter().map(|&index| (self.source.tensors[index].name.clone(), Value::from(name.clone()))));
        }
        if count > 1 {
            map.sort_keys();
            write_json(&directory.join(INDEX), &json!({ "metadata": { "total_size": self.bytes() }, "weight_map": map }))?;
        }
        Ok(written.into_iter().filter_map(|mut leftover| leftover.0.take()).collect())
    }

    fn write_shard(
        &self,
        shard: &[usize],
        writer: &mut dyn std::io::Write,
        done: &mut usize,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let kind = if self.dtype == DType::BF16 { safetensors::Dtype::BF16 } else { safetensors::Dtype::F16 };
        let mut end = 0;
        let info = |&index: &usize| {
            let tensor = &self.source.tensors[index];
            let start = end;
            end += bytes_of(tensor);
            (tensor.name.clone(), TensorInfo { dtype: kind, shape: tensor.shape.clone(), data_offsets: (start, end) })
        };
        write_header(writer, shard.iter().map(info).collect())?;
        for &index in shard {
            let tensor = &self.source.tensors[index];
            let not_finite = if self.weights.contains(&tensor.name) { NotFinite::Refuse } else { NotFinite::Keep };
            tensor.for_each_chunk(self.source.file(tensor.file), CHUNK, |bytes| {
                let narrowed = narrow(&tensor.name, bytes, tensor.dtype, self.dtype, not_finite)?;
                writer.write_all(&narrowed)?;
                *done += narrowed.len();
                progress(*done)
            })?;
            self.source.release(tensor);
        }
        Ok(())
    }
}

/// Bytes of a tensor in 16 bits.
fn bytes_of(tensor: &Strided) -> usize {
    tensor.elements() * 2
}

/// Refuses a directory that holds weights already.
pub fn refuse_weights(directory: &Path) -> Result<()> {
    match [SINGLE, INDEX].into_iter().find(|name| directory.join(name).exists()) {
        Some(name) => bail!("{}: {name} is there already; remove it or give another --output", directory.display()),
        None => Ok(()),
    }
}

/// Copies what stands beside the weights: configuration, tokenizer, vocabulary. Returns the names.
pub fn copy_companions(from: &Path, to: &Path) -> Result<Vec<String>> {
    let context = || format!("cannot read {}", from.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(from).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let belongs = ["json", "txt", "model", "jinja", "vocab"].contains(&kind.as_str()) && ![INDEX, TORCH_INDEX].contains(&name.as_str());
        if !belongs || name.starts_with('.') || !path.is_file() || path.metadata().with_context(context)?.len() > LARGEST_COMPANION {
            continue;
        }
        let target = to.join(&name);
        // Where a model is converted in its own directory, everything is in place.
        if !target.exists() {
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            write_atomically(&target, |writer| Ok(writer.write_all(&bytes)?))?;
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
