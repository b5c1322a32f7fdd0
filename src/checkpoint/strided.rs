//! A tensor that lies in a mapped file in any order: contiguous, transposed, or a part of a larger storage.

use crate::backend::DType;
use std::ops::Range;

/// Where a tensor's elements lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strided {
    pub name: String,
    /// fp16, bf16, fp32 or fp64.
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Elements from one index to the next, a dimension.
    pub strides: Vec<usize>,
    /// Index of the file in its checkpoint.
    pub file: usize,
    /// Bytes from the start of the file to the first element.
    pub offset: usize,
    /// Bytes of the storage in the file; every element lies inside.
    pub storage: Range<usize>,
}

impl Strided {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the elements lie one after another, row-major.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size <= 1 || stride == expected;
            expected *= size;
            fits
        })
    }

    /// Whether both show the same elements in the same order.
    pub fn same_elements(&self, other: &Strided) -> bool {
        let shown = |tensor: &Strided| {
            let strides: Vec<usize> =
                tensor.shape.iter().zip(&tensor.strides).filter(|(size, _)| **size > 1).map(|(_, &stride)| stride).collect();
            (tensor.file, tensor.offset, tensor.dtype.name(), tensor.shape.clone(), strides)
        };
        self.elements() > 0 && shown(self) == shown(other)
    }

    /// Calls `each` with the bytes of the elements in row-major order, at most `chunk` elements at a time. A tensor that
    /// is not contiguous is gathered into a buffer of that size.
    pub fn for_each_chunk<E>(&self, file: &[u8], chunk: usize, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let (width, elements) = (self.dtype.size(), self.elements());
        if self.is_contiguous() {
            return file[self.offset..self.offset + elements * width].chunks(chunk * width).try_for_each(each);
        }
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        let mut buffer = Vec::with_capacity(chunk.min(elements) * width);
        for _ in 0..elements {
            buffer.extend_from_slice(&file[at..at + width]);
            if buffer.len() == chunk * width {
                each(&buffer)?;
                buffer.clear();
            }
            for dimension in (0..index.len()).rev() {
                index[dimension] += 1;
                at += self.strides[dimension] * width;
                if index[dimension] < self.shape[dimension] {
                    break;
                }
                at -= index[dimension] * self.strides[dimension] * width;
                index[dimension] = 0;
            }
        }
        if buffer.is_empty() { Ok(()) } else { each(&buffer) }
    }
}
