//! Tensors of any size between where they lie and a safetensors file: in chunks, so that the host holds a few MiB of
//! them at a time.

use super::mapped::{MappedFile, release};
use crate::backend::DType;
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

/// fp32 elements that are on the host at a time: 4 MiB.
const CHUNK: usize = 1 << 20;

/// Tensors that a training checkpoint keeps, wherever they lie (an engine's are in its backend's memory).
pub trait StateTensors {
    /// Names and shapes.
    fn state_tensors(&self) -> BTreeMap<String, Vec<usize>>;
    /// The elements of a tensor from element `start` on, row-major, as many as `values` holds.
    fn read_state(&mut self, name: &str, start: usize, values: &mut [f32]) -> Result<()>;
    /// Writes `values` to a tensor from element `start` on.
    fn write_state(&mut self, name: &str, start: usize, values: &[f32]) -> Result<()>;
}

/// Writes a safetensors file of fp32 tensors in the order of their names, with PyTorch's mark in the metadata, byte for
/// byte as the reference implementation does. `read` is asked for a tensor's elements from an element on.
pub(super) fn write_chunks(
    writer: &mut dyn Write,
    shapes: &BTreeMap<String, Vec<usize>>,
    mut read: impl FnMut(&str, usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let mut infos = Vec::with_capacity(shapes.len());
    let mut end = 0;
    for (name, shape) in shapes {
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        infos.push((name.clone(), TensorInfo { dtype: safetensors::Dtype::F32, shape: shape.clone(), data_offsets: (start, end) }));
    }
    write_header(writer, infos)?;
    for (name, shape) in shapes {
        in_chunks(shape, |start, chunk| {
            read(name, start, chunk)?;
            swap_bytes_unless_little_endian(chunk);
            Ok(writer.write_all(bytemuck::cast_slice(chunk))?)
        })?;
    }
    Ok(())
}

/// Writes a safetensors file's header, padded to 8 bytes, with PyTorch's mark. The tensors are in the order of their bytes.
pub(super) fn write_header(writer: &mut dyn Write, infos: Vec<(String, TensorInfo)>) -> Result<()> {
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let mut header = serde_json::to_vec(&Metadata::new(Some(format), infos)?)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    Ok(writer.write_all(&header)?)
}

pub(super) fn write_state_file(writer: &mut dyn Write, state: &mut dyn StateTensors) -> Result<()> {
    write_chunks(writer, &state.state_tensors(), |name, start, chunk| state.read_state(name, start, chunk))
}

/// Reads what [`write_state_file`] wrote. Everything is checked before the first element is written.
pub(super) fn read_state_file(path: &Path, state: &mut dyn StateTensors) -> Result<()> {
    let file = MappedFile::open(path, 0)?;
    let shapes = state.state_tensors();
    for (name, shape) in &shapes {
        let Some(tensor) = file.tensors.get(name) else { bail!("{}: there is no tensor {name}", path.display()) };
        ensure!(
            tensor.shape == *shape && tensor.dtype == DType::F32,
            "{}: tensor {name} is {} of shape {:?}, not fp32 of shape {shape:?}: it is of another run",
            path.display(),
            tensor.dtype.name(),
            tensor.shape
        );
    }
    for (name, shape) in &shapes {
        let tensor = &file.tensors[name];
        let data = file.data(tensor);
        in_chunks(shape, |start, chunk| {
            let end = (start + chunk.len()) * 4;
            bytemuck::cast_slice_mut(chunk).copy_from_slice(&data[start * 4..end]);
            swap_bytes_unless_little_endian(chunk);
            // What has been copied need not stay in memory twice.
            release((*file.bytes).as_ref(), tensor.offset..tensor.offset + end);
            state.write_state(name, start, chunk)
        })
        .with_context(|| format!("{}: tensor {name}", path.display()))?;
    }
    Ok(())
}

/// Calls `each` with the first element's index and room for the elements of every chunk of a tensor.
fn in_chunks(shape: &[usize], mut each: impl FnMut(usize, &mut [f32]) -> Result<()>) -> Result<()> {
    let elements: usize = shape.iter().product();
    let mut chunk = vec![0.0; elements.min(CHUNK)];
    for start in (0..elements).step_by(CHUNK) {
        each(start, &mut chunk[..CHUNK.min(elements - start)])?;
    }
    Ok(())
}

/// Files are little-endian.
fn swap_bytes_unless_little_endian(values: &mut [f32]) {
    if cfg!(target_endian = "big") {
        bytemuck::cast_slice_mut::<f32, u32>(values).iter_mut().for_each(|bits| *bits = bits.swap_bytes());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::HostTensor;
    use super::*;

    /// Tensors in the memory of a test; of a tensor with too few values, the missing ones cannot be read.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Held(pub BTreeMap<String, HostTensor>);

    impl Held {
        pub fn new(name: &str, shape: &[usize], values: Vec<f32>) -> Held {
            Held(BTreeMap::from([(name.to_string(), HostTensor { shape: shape.to_vec(), values })]))
        }
    }

    impl StateTensors for Held {
        fn state_tensors(&self) -> BTreeMap<String, Vec<usize>> {
            self.0.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
        }

        fn read_state(&mut self, name: &str, start: usize, values: &mut [f32]) -> Result<()> {
            let range = start..start + values.len();
            values.copy_from_slice(self.0[name].values.get(range).with_context(|| format!("tensor {name} has too few values"))?);
            Ok(())
        }

        fn write_state(&mut self, name: &str, start: usize, values: &[f32]) -> Result<()> {
            let to = &mut self.0.get_mut(name).context("no such tensor")?.values;
            to[start..start + values.len()].copy_from_slice(values);
            Ok(())
        }
    }

    #[test]
    fn tensors_larger_than_a_chunk_come_back_bit_for_bit() {
        // Two whole chunks and a part of one, every element another; an odd header moves the data off the pages.
        let count = 2 * CHUNK + 10;
        let mut held = Held::new("b", &[2, count / 2], (0..count as u32).map(|i| f32::from_bits(i * 977 + 1)).collect());
        held.0.extend(Held::new("a", &[3], vec![1e-40, -0.0, f32::MAX]).0);
        held.0.extend(Held::new("c", &[0, 3], vec![]).0);
        let file = tempfile::NamedTempFile::new().unwrap();
        write_state_file(&mut file.as_file(), &mut held).unwrap();
        let mut read = held.clone();
        read.0.values_mut().for_each(|tensor| tensor.values.fill(7.0));
        read_state_file(file.path(), &mut read).unwrap();
        for (name, tensor) in &held.0 {
            let bits = |tensor: &HostTensor| tensor.values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert!(bits(tensor) == bits(&read.0[name]), "{name}");
        }
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_before_anything_is_written() {
        let mut saved = Held::new("a", &[2], vec![1.0, 2.0]);
        saved.0.extend(Held::new("b", &[2, 3], vec![3.0; 6]).0);
        let file = tempfile::NamedTempFile::new().unwrap();
        write_state_file(&mut file.as_file(), &mut saved).unwrap();
        for (name, shape, part) in
            [("b", vec![3, 2], "tensor b is fp32 of shape [2, 3], not fp32 of shape [3, 2]"), ("c", vec![6], "no tensor c")]
        {
            let mut other = Held::new("a", &[2], vec![0.0; 2]);
            other.0.extend(Held::new(name, &shape, vec![0.0; 6]).0);
            let before = other.clone();
            let message = format!("{:#}", read_state_file(file.path(), &mut other).unwrap_err());
            assert!(message.contains(part) && message.contains(&file.path().display().to_string()), "{message}");
            assert_eq!(other, before);
        }
    }
}
