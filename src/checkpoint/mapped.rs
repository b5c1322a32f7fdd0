//! One safetensors file, mapped into memory: its header is checked in full, its tensors' bytes are not touched.

pub(super) use crate::backend::read_ahead;
use crate::backend::{DType, FileBytes, PAGE};
use anyhow::{Context, Result, anyhow, bail};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a tensor's bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    /// fp16, bf16 or fp32.
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Index of the file in its checkpoint.
    pub file: usize,
    /// Bytes from the start of the file.
    pub offset: usize,
    pub bytes: usize,
}

/// A mapped file and what it holds.
pub(super) struct MappedFile {
    pub path: PathBuf,
    pub bytes: FileBytes,
    pub tensors: BTreeMap<String, Tensor>,
    /// Tensors of element types that no model here computes with (index buffers, quantized weights): name, type.
    pub others: BTreeMap<String, String>,
}

/// Maps a file that is not empty.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let handle = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let status = handle.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    if !status.is_file() {
        bail!("{} is not a file", path.display());
    }
    if status.len() == 0 {
        bail!("{} is empty; download or copy it again", path.display());
    }
    // SAFETY: the mapping is read-only. As with every mapped file, nobody may shorten it in place meanwhile; this
    // program itself replaces files only by renaming (`write_atomically`).
    unsafe { Mmap::map(&handle) }.with_context(|| format!("cannot map {}", path.display()))
}

impl MappedFile {
    /// `file` is the index that the tensors are given.
    pub fn open(path: &Path, file: usize) -> Result<MappedFile> {
        let map = map(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| explain(path, &map, &error))?;
        let start = header + 8;
        let (mut tensors, mut others) = (BTreeMap::new(), BTreeMap::new());
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            match element_type(info.dtype) {
                Some(dtype) => {
                    let (shape, offset) = (info.shape.clone(), start + from);
                    tensors.insert(name.clone(), Tensor { name, dtype, shape, file, offset, bytes: to - from });
                }
                None => {
                    others.insert(name, info.dtype.to_string());
                }
            }
        }
        Ok(MappedFile { path: path.to_owned(), bytes: Arc::new(map), tensors, others })
    }

    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        &(*self.bytes).as_ref()[tensor.offset..tensor.offset + tensor.bytes]
    }
}

/// Gives back the memory of the pages that lie wholly in a range of a mapped file; they are read from the file again
/// if asked for.
pub(super) fn release(file: &[u8], range: Range<usize>) {
    let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
    if start < end {
        // SAFETY: whole pages (the mapping begins on one) inside a private read-only mapping of a file: dropping them
        // loses nothing, the next access maps them anew.
        unsafe { libc::madvise(file[start..end].as_ptr().cast_mut().cast(), end - start, libc::MADV_DONTNEED) };
    }
}

fn element_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F32 => Some(DType::F32),
        _ => None,
    }
}

/// What is wrong with a file that the safetensors crate refuses, and what to do about it.
fn explain(path: &Path, bytes: &[u8], error: &SafeTensorError) -> anyhow::Error {
    let path = path.display();
    let again = "download or copy it again";
    if bytes.starts_with(b"version https://git-lfs") {
        return anyhow!("{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull");
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") {
        return anyhow!("{path} is a PyTorch file under a wrong name; name it pytorch_model.bin and run: ptune convert");
    }
    let size = bytes.len();
    match error {
        SafeTensorError::HeaderTooSmall => anyhow!("{path} has only {size} bytes: it is truncated; {again}"),
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
            anyhow!("{path} is truncated or no safetensors file: its header should have {length} bytes, the file has {size}; {again}")
        }
        SafeTensorError::InvalidOffset(name) => {
            anyhow!("{path}: wrong header: the offsets of tensor {name} leave a gap, overlap or are used twice; {again}")
        }
        error => match declared_end(bytes) {
            Some(end) if end > size as u128 => {
                anyhow!("{path} is truncated: its header describes {end} bytes, the file has {size}; {again}")
            }
            Some(end) if end < size as u128 => {
                anyhow!("{path}: wrong header: it describes {end} bytes, the file has {size}; {again}")
            }
            _ => anyhow!("{path}: wrong header: {error}; {again}"),
        },
    }
}

/// The file's size by its header, where that is readable.
fn declared_end(bytes: &[u8]) -> Option<u128> {
    let length = u64::from_le_bytes(*bytes.first_chunk()?);
    let header: serde_json::Value = serde_json::from_slice(bytes.get(8..8usize.checked_add(length.try_into().ok()?)?)?).ok()?;
    let ends = header.as_object()?.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    Some(u128::from(ends.max()?) + 8 + u128::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of a header and some data; `length` overrides the header's length.
    fn open(header: &str, length: Option<u64>, data: &[u8]) -> Result<MappedFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut bytes = length.unwrap_or(header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(&path, bytes).unwrap();
        MappedFile::open(&path, 0)
    }

    const GOOD: &str = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"I64","shape":[1],"data_offsets":[4,12]}}"#;

    #[test]
    fn tensors_and_other_types() {
        let file = open(GOOD, None, &[1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let tensor = &file.tensors["a"];
        assert_eq!((tensor.dtype, tensor.shape.as_slice(), tensor.offset), (DType::F16, [2].as_slice(), 8 + GOOD.len()));
        assert_eq!(file.data(tensor), [1, 2, 3, 4]);
        assert_eq!(file.others["b"], "I64");
        assert_eq!((*file.bytes).as_ref().len(), 8 + GOOD.len() + 12);
    }

    #[test]
    fn damaged_files_are_explained() {
        let gap = GOOD.replace("[4,12]", "[5,13]");
        let shape = GOOD.replace("[2]", "[3]");
        let huge = GOOD.replace("[2]", "[9223372036854775807,4]");
        let twice = GOOD.replace("\"b\"", "\"a\"");
        let cases: [(&str, Option<u64>, &[u8], &str); 11] = [
            (GOOD, None, &[0; 11], "is truncated"),
            (GOOD, None, &[0; 13], "describes"),
            (GOOD, Some(1 << 40), &[0; 12], "should have 1099511627776 bytes"),
            (GOOD, Some(5000), &[0; 12], "should have 5000 bytes"),
            (GOOD, Some(20), &[0; 12], "wrong header: invalid JSON"),
            (&gap, None, &[0; 13], "tensor b"),
            (&shape, None, &[0; 12], "wrong header"),
            (&huge, None, &[0; 12], "wrong header"),
            (&twice, None, &[0; 12], "used twice"),
            ("\u{1}", None, &[0; 12], "invalid JSON"),
            (r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,4]}}"#, None, &[0; 4], "F99"),
        ];
        for (header, length, data, part) in cases {
            let message = format!("{:#}", open(header, length, data).err().expect(part));
            assert!(message.contains(part) && message.contains("model.safetensors"), "{message}");
            assert!(message.contains("again"), "{message}");
        }
    }

    #[test]
    fn files_that_are_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let cases: [(&[u8], &str); 4] = [
            (b"", "empty"),
            (b"abc", "only 3 bytes"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
            (b"PK\x03\x04aaaaaaaaaaaaaa", "PyTorch"),
        ];
        for (bytes, part) in cases {
            std::fs::write(&path, bytes).unwrap();
            let message = format!("{:#}", MappedFile::open(&path, 0).err().unwrap());
            assert!(message.contains(part), "{message}");
        }
        assert!(MappedFile::open(folder.path(), 0).is_err());
        let message = format!("{:#}", MappedFile::open(&folder.path().join("absent"), 0).err().unwrap());
        assert!(message.contains("absent"), "{message}");
    }
}
