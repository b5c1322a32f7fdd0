//! The frozen weights on their way from the files to where the plan wants them, or drawn there: layer by layer and chunk by
//! chunk, so that no tensor is whole in the host's memory. Matrices of 8 bits are quantised between file and arena.

use super::frozen::{Frozen, Part, Quantised};
use super::numbers::{self, CHUNK};
use crate::backend::{Backend, DType, Site, Stream, View, stream_key};
use crate::checkpoint::{Checkpoint, FrozenModel, Tensor, Weights, quantise};
use crate::model::{Slot, Specification, Storage};
use anyhow::{Result, anyhow};

impl Frozen {
    /// Fills the arena, in the order of the layers. What is read next is asked of the disk ahead of time, and what has
    /// been copied is given back, so that the host holds a window of each file and no tensor whole. A value that the
    /// 16-bit type cannot hold is an error that names its tensor.
    pub fn load(&self, model: &FrozenModel, backend: &mut dyn Backend) -> Result<()> {
        let checkpoint = match &model.source {
            Weights::Files(checkpoint) => checkpoint,
            Weights::Random { seed, .. } => return self.draw(*seed, &model.spec, backend),
        };
        let tensor_of = |&(slot, part, _): &(Slot, Part, View)| match part {
            Part::Vector { bias: true } => {
                model.bias(slot)?.ok_or_else(|| anyhow!("{slot:?} has no bias in {}", model.directory.display()))
            }
            _ => model.weight(slot),
        };
        for (index, upload) in self.uploads.iter().enumerate() {
            let (slot, part, view) = *upload;
            let tensor = tensor_of(upload)?;
            if let Some(next) = self.uploads.get(index + 1) {
                checkpoint.read_ahead(tensor_of(next)?, 0..AHEAD);
            }
            let (data, size) = (checkpoint.data(tensor), tensor.dtype.size());
            match part {
                Part::Matrix(quantised) => {
                    let (storage, to) = (model.storage(slot), Target { view, quantised });
                    match storage.transposed {
                        true => load_transposed(tensor, data, storage, to, backend)?,
                        false => load_matrix(checkpoint, tensor, storage, to, backend)?,
                    }
                }
                Part::Vector { .. } => {
                    let part = if slot.is_norm() { 0 } else { model.bias_storage(slot).part };
                    let own = &data[part * view.len() * size..][..view.len() * size];
                    let values = numbers::widen_frozen(&tensor.name, own, tensor.dtype)?;
                    backend.write(view, &numbers::to_bytes(&values, view.dtype));
                }
            }
            checkpoint.release(tensor);
        }
        self.words.as_ref().map_or(Ok(()), |words| words.load(model, checkpoint, backend))
    }

    /// Weights of a new model: matrices from N(0, initializer_range), each of a stream of its own, gammas 1, the rest 0.
    fn draw(&self, seed: u64, spec: &Specification, backend: &mut dyn Backend) -> Result<()> {
        let slots = spec.slots();
        // The pooler and language-model heads are none of the slots, and come after them.
        let beside = [Slot::Pooler, Slot::LanguageHead, Slot::HeadTransform];
        let number = |slot| slots.iter().chain(&beside).position(|&known| known == slot).unwrap_or(slots.len());
        let key = |slot| stream_key(seed, 0, Site::Weights, number(slot));
        for &(slot, part, view) in &self.uploads {
            match part {
                Part::Matrix(None) => backend.fill_normal(view, key(slot), spec.initializer_range),
                // Drawn as it would be without 8 bits, in the place where such a matrix lies for a product.
                Part::Matrix(Some(own)) => {
                    let drawn = own.widened.col_range(0, view.len()).reshape(view.rows, view.cols);
                    backend.fill_normal(drawn, key(slot), spec.initializer_range);
                    quantise_drawn(drawn, Target { view, quantised: Some(own) }, backend)?;
                }
                Part::Vector { bias: false } => backend.write(view, &numbers::to_bytes(&vec![1.0; view.len()], view.dtype)),
                Part::Vector { bias: true } => backend.zero(view),
            }
        }
        if let Some(words) = &self.words {
            words.draw(self.word, Stream::new(key(words.slot())), spec.initializer_range, backend);
        }
        Ok(())
    }
}

/// Where a matrix, or rows of one, are written to.
#[derive(Clone, Copy)]
struct Target {
    view: View,
    quantised: Option<Quantised>,
}

impl Target {
    fn row_range(self, from: usize, rows: usize) -> Target {
        let own = |own: Quantised| Quantised { scales: own.scales.col_range(from, rows), ..own };
        Target { view: self.view.row_range(from, rows), quantised: self.quantised.map(own) }
    }

    /// As many rows at a time as pass through the host, with the number of the first.
    fn chunks(self) -> impl Iterator<Item = (usize, Target)> {
        let (rows, step) = (self.view.rows, (CHUNK / self.view.cols).max(1));
        (0..rows).step_by(step).map(move |first| (first, self.row_range(first, step.min(rows - first))))
    }
}

/// Bytes that are asked of the disk before they are needed.
const AHEAD: usize = 32 << 20;

/// Copies a matrix, or its rows of a larger one, run by run and chunk by chunk.
fn load_matrix(checkpoint: &Checkpoint, tensor: &Tensor, storage: Storage, whole: Target, backend: &mut dyn Backend) -> Result<()> {
    let (width, data) = (tensor.dtype.size(), checkpoint.data(tensor));
    for (to, from, count) in storage.runs(whole.view.rows) {
        let mut at = from * whole.view.cols * width;
        for (_, to) in whole.row_range(to, count).chunks() {
            let end = at + to.view.len() * width;
            checkpoint.read_ahead(tensor, at + AHEAD..end + AHEAD);
            write(tensor, &data[at..end], to, backend)?;
            checkpoint.release_part(tensor, at..end);
            at = end;
        }
    }
    Ok(())
}

/// From \[input, outputs of all parts\], some outputs at a time.
fn load_transposed(tensor: &Tensor, data: &[u8], storage: Storage, whole: Target, backend: &mut dyn Backend) -> Result<()> {
    for (first, to) in whole.chunks() {
        let from = storage.part * whole.view.rows + first;
        let values = transposed_rows(data, tensor.dtype.size(), whole.view.cols, from, to.view.rows);
        write(tensor, &values, to, backend)?;
    }
    Ok(())
}

/// Brings a matrix from the device's 16 bits to 8, by way of the host, where quantising is the same for all.
fn quantise_drawn(drawn: View, whole: Target, backend: &mut dyn Backend) -> Result<()> {
    let mut bytes = Vec::new();
    for (first, to) in whole.chunks() {
        let from = drawn.row_range(first, to.view.rows);
        bytes.resize(from.len() * from.dtype.size(), 0);
        backend.read(from, &mut bytes);
        // What was read from a device that has failed is no number.
        backend.check()?;
        write_quantised("of random weights", &bytes, from.dtype, to, backend)?;
    }
    Ok(())
}

/// Columns `from..from + count` of a matrix of `rows` rows of elements of `size` bytes, as rows.
fn transposed_rows(data: &[u8], size: usize, rows: usize, from: usize, count: usize) -> Vec<u8> {
    let mut out = vec![0; count * rows * size];
    for (row, line) in data.chunks_exact(data.len() / rows).enumerate() {
        for (column, value) in line[from * size..][..count * size].chunks_exact(size).enumerate() {
            out[(column * rows + row) * size..][..size].copy_from_slice(value);
        }
    }
    out
}

/// Writes values of the tensor's type, rounded where the target has another.
fn write(tensor: &Tensor, values: &[u8], to: Target, backend: &mut dyn Backend) -> Result<()> {
    if to.quantised.is_some() {
        return write_quantised(&tensor.name, values, tensor.dtype, to, backend);
    }
    if tensor.dtype == to.view.dtype {
        backend.write(to.view, values);
    } else {
        backend.write(to.view, &numbers::round(&tensor.name, values, tensor.dtype, to.view.dtype)?);
    }
    Ok(())
}

/// Writes rows of a type in 8 bits, and their factors.
fn write_quantised(tensor: &str, values: &[u8], from: DType, to: Target, backend: &mut dyn Backend) -> Result<()> {
    let Some(Quantised { scales, widened }) = to.quantised else { return Ok(()) };
    let rows = quantise(tensor, values, from, to.view.cols, widened.dtype)?;
    backend.write(to.view, bytemuck::cast_slice(&rows.values));
    backend.write(scales, bytemuck::cast_slice(&rows.scales));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::transposed_rows;

    #[test]
    fn columns_become_rows() {
        // [2, 3] of 16-bit elements.
        let data = [1, 0, 2, 0, 3, 0, 4, 1, 5, 1, 6, 1];
        assert_eq!(transposed_rows(&data, 2, 2, 1, 2), [2, 0, 5, 1, 3, 0, 6, 1]);
        assert_eq!(transposed_rows(&data, 2, 2, 0, 1), [1, 0, 4, 1]);
    }
}
