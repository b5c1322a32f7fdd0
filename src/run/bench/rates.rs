//! What a machine can do at best, measured through the backend: bytes copied within its memory, and matrix products.

use super::{seconds_of, with_unit};
use crate::backend::{ARENA, Backend, DType, ScratchNeed, View};
use anyhow::Result;
use std::fmt;

/// Buffers of this size are far larger than any cache.
const COPIED: usize = 256 << 20;
/// Square matrices of these sizes, until one product takes longer than LONGEST seconds: the best rate counts.
const SIZES: [usize; 5] = [512, 1024, 2048, 4096, 8192];
const LONGEST: f64 = 0.02;
/// Seconds that a measurement takes at least.
const LEAST: f64 = 0.2;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Bytes a second, read and written ones counted.
    pub copy: f64,
    /// Bytes of the buffer that was copied.
    pub copied: usize,
    /// Floating-point operations a second.
    pub product: f64,
    /// Rows and columns of the matrices that were multiplied the fastest.
    pub size: usize,
}

impl Rates {
    /// Measures a backend that nothing was allocated on yet. Operands are random: a GPU multiplies zeros faster.
    pub fn measure(backend: &mut dyn Backend, frozen: DType) -> Result<Rates> {
        let mut area = Area::default();
        let activation = backend.precision().activation;
        let largest = SIZES[SIZES.len() - 1];
        let bytes = (2 * COPIED).max(largest * largest * (2 * activation.size() + frozen.size()) + 4096);
        area.cut(1, bytes.div_ceil(2), DType::F16);
        area.allocate(backend, 64, 1, largest)?;

        let mut rates = Rates { copy: 0.0, copied: COPIED, product: 0.0, size: 0 };
        let mut buffers = Area::default();
        let [from, to] = [0, 1].map(|_| buffers.cut(1, COPIED / 2, DType::F16));
        // Pages that were never written do not exist yet.
        backend.copy(to, from);
        for _ in 0..3 {
            let seconds = seconds_of(backend, LEAST, |backend| backend.copy(from, to));
            rates.copy = rates.copy.max(2.0 * COPIED as f64 / seconds);
        }
        for size in SIZES {
            let mut buffers = Area::default();
            let [x, out] = [0, 1].map(|_| buffers.cut(size, size, activation));
            let weight = buffers.cut(size, size, frozen);
            for (number, view) in [x, weight].into_iter().enumerate() {
                if view.dtype.size() == 2 { backend.fill_normal(view, [number as u32, 0], 0.5) } else { backend.zero(view) }
            }
            let mut longest = 0.0_f64;
            for _ in 0..3 {
                let seconds = seconds_of(backend, LEAST, |backend| backend.linear(x, weight, None, out));
                let rate = 2.0 * (size as f64).powi(3) / seconds;
                if rate > rates.product {
                    (rates.product, rates.size) = (rate, size);
                }
                longest = longest.max(seconds);
            }
            if longest > LONGEST {
                break;
            }
        }
        backend.check()?;
        Ok(rates)
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (copy, product) = (with_unit(self.copy, "B/s"), with_unit(self.product, "FLOP/s"));
        write!(formatter, "copy {copy}, matrix product {product} ({} cubed), both measured just now", self.size)
    }
}

/// Cuts buffers of a measurement from an arena.
#[derive(Default)]
pub struct Area {
    end: usize,
}

impl Area {
    pub fn cut(&mut self, rows: usize, cols: usize, dtype: DType) -> View {
        let view = View { buffer: ARENA, offset: self.end, rows, cols, stride: cols, dtype };
        self.end = view.end().max(self.end).next_multiple_of(256);
        view
    }

    /// Allocates what was cut, and the backend's scratch for operations of these sizes.
    pub fn allocate(&mut self, backend: &mut dyn Backend, head_dim: usize, tokens: usize, widest: usize) -> Result<()> {
        let need = ScratchNeed {
            longest: tokens,
            prefix_length: 0,
            prefix_dropout: false,
            head_dim,
            relative: false,
            kv_size: head_dim,
            tokens,
            sequences: 1,
            groups: 1,
            parameters: 1,
            widest,
        };
        self.allocate_for(backend, &need)
    }

    pub fn allocate_for(&mut self, backend: &mut dyn Backend, need: &ScratchNeed) -> Result<()> {
        let bytes = backend.scratch_bytes(need)?;
        let scratch = self.cut(1, bytes.div_ceil(8), DType::F64);
        backend.allocate(self.end, scratch)
    }
}
