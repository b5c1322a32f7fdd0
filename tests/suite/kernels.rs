//! The kernels of `cuda/` on the emulated driver, operation by operation, against the CPU backend in f64.
//!
//! The rule (after FlashAttention's tests): the error is at most twice that of a plain implementation (f32 inside,
//! rounded once) and two rounding steps of the type that the kernel rounds to, measured against the largest element.
//! Every case runs under several orders of threads, all of which give the same bits. Outputs start as NaN, and what lies
//! between the rows of a view must stay what it was.

mod attention;
mod engine;
mod linear;
mod plain;
mod rowwise;
mod training;

use half::{bf16, f16};
use ptune::backend::cpu::Cpu;
use ptune::backend::cuda::{Cuda, Emulated};
use ptune::backend::{ARENA, Backend, DType, Rows, ScratchNeed, Stream, View};

/// What a buffer holds; its type depends on the backend.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    Activation,
    /// 16 bits on every backend.
    Frozen,
    Master,
    Integer,
}

/// How views lie in memory.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Place {
    /// Rows end to end.
    Tight,
    /// Columns of a wider matrix, every row at a multiple of 16 bytes where its width is.
    Wide,
    /// At odd addresses.
    Odd,
}

pub const PLACES: [Place; 3] = [Place::Tight, Place::Wide, Place::Odd];
/// Ordinal of a case's first sequence in its step.
pub const FIRST_ORDINAL: i32 = 3;
pub const TYPES: [DType; 2] = [DType::F16, DType::BF16];

struct Buffer {
    kind: Kind,
    rows: usize,
    cols: usize,
    /// Elements in front, and between rows.
    front: usize,
    gap: usize,
    values: Vec<f64>,
    /// The type that the kernel rounds to on the way here; None: an input.
    checked: Option<Rounding>,
}

/// What an output may be off by, beside twice the plain implementation's error.
#[derive(Clone, Copy, PartialEq)]
pub enum Rounding {
    /// Through numbers of the activations' type.
    Activation,
    /// Sums in fp32, in another order: a few of its steps.
    Master,
}

pub struct Case {
    pub name: String,
    /// The 16-bit type.
    pub dtype: DType,
    place: Place,
    buffers: Vec<Buffer>,
    random: Stream,
}

/// A buffer of a case.
#[derive(Clone, Copy)]
pub struct Id(usize);

/// The views of a case on the backend at hand.
pub struct Views<'a>(&'a [View]);

impl std::ops::Index<Id> for Views<'_> {
    type Output = View;
    fn index(&self, id: Id) -> &View {
        &self.0[id.0]
    }
}

/// Buffers of [`Rows`].
#[derive(Clone, Copy)]
pub struct RowIds {
    ordinals: Id,
    tokens: Id,
    offsets: Id,
    count: usize,
    longest: usize,
}

impl Views<'_> {
    pub fn rows(&self, ids: RowIds) -> Rows {
        let [ordinals, tokens, offsets] = [ids.ordinals, ids.tokens, ids.offsets].map(|id| self[id]);
        Rows { ordinals, tokens, offsets, count: ids.count, longest: ids.longest }
    }
}

/// To the nearest number of a type, as a number.
pub fn rounded(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(value).to_f64(),
        DType::BF16 => bf16::from_f64(value).to_f64(),
        DType::F32 => f64::from(value as f32),
        DType::I32 => f64::from(value as i32),
        DType::F64 => value,
    }
}

/// Half a unit in the last place of numbers up to 1.
fn step(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

fn to_bytes(dtype: DType, values: impl Iterator<Item = f64>) -> Vec<u8> {
    match dtype {
        DType::F16 => values.flat_map(|value| f16::from_f64(value).to_le_bytes()).collect(),
        DType::BF16 => values.flat_map(|value| bf16::from_f64(value).to_le_bytes()).collect(),
        DType::F32 => values.flat_map(|value| (value as f32).to_le_bytes()).collect(),
        DType::F64 => values.flat_map(f64::to_le_bytes).collect(),
        DType::I32 => values.flat_map(|value| (value as i32).to_le_bytes()).collect(),
    }
}

fn from_bytes(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let chunks = bytes.chunks_exact(dtype.size());
    match dtype {
        DType::F16 => chunks.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::BF16 => chunks.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::F32 => chunks.map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
        DType::F64 => chunks.map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        DType::I32 => chunks.map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect(),
    }
}

/// What lies around views, and in outputs before they are written.
fn poison(kind: Kind) -> f64 {
    if kind == Kind::Integer { f64::from(i32::MIN) } else { f64::NAN }
}

impl Case {
    pub fn new(name: impl Into<String>, dtype: DType, place: Place) -> Case {
        Case {
            name: format!("{} in {}, {place:?}", name.into(), dtype.name()),
            dtype,
            place,
            buffers: Vec::new(),
            random: Stream::new([7, 8]),
        }
    }

    fn push(&mut self, kind: Kind, rows: usize, cols: usize, values: Vec<f64>, checked: Option<Rounding>) -> Id {
        assert_eq!(values.len(), rows * cols);
        // Vectors and tables are contiguous by contract.
        let (front, gap) = match (kind, rows, self.place) {
            (Kind::Integer | Kind::Frozen, ..) | (_, 1, _) | (_, _, Place::Tight) => (0, 0),
            (_, _, Place::Wide) => (8, 16),
            (_, _, Place::Odd) => (1, 3),
        };
        self.buffers.push(Buffer { kind, rows, cols, front, gap, values, checked });
        Id(self.buffers.len() - 1)
    }

    pub fn normal(&mut self, scale: f64) -> f64 {
        scale * self.random.normal_pair()[0]
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound)
    }

    fn normals(&mut self, kind: Kind, count: usize, mean: f64, scale: f64) -> Vec<f64> {
        let dtype = if kind == Kind::Master { DType::F32 } else { self.dtype };
        (0..count).map(|_| rounded(dtype, mean + self.normal(scale))).collect()
    }

    /// Normal numbers, which every backend holds exactly.
    pub fn input(&mut self, kind: Kind, rows: usize, cols: usize, scale: f64) -> Id {
        let values = self.normals(kind, rows * cols, 0.0, scale);
        self.push(kind, rows, cols, values, None)
    }

    /// A vector around 1, as a norm's gamma.
    pub fn gamma(&mut self, cols: usize) -> Id {
        let values = self.normals(Kind::Master, cols, 1.0, 0.3);
        self.push(Kind::Master, 1, cols, values, None)
    }

    pub fn given(&mut self, kind: Kind, rows: usize, cols: usize, values: Vec<f64>) -> Id {
        self.push(kind, rows, cols, values, None)
    }

    pub fn integers(&mut self, values: &[i32]) -> Id {
        self.push(Kind::Integer, 1, values.len(), values.iter().map(|&value| f64::from(value)).collect(), None)
    }

    /// Written by the operation.
    pub fn output(&mut self, kind: Kind, rows: usize, cols: usize, rounding: Rounding) -> Id {
        self.push(kind, rows, cols, vec![poison(kind); rows * cols], Some(rounding))
    }

    /// An output without gaps.
    pub fn tight_output(&mut self, kind: Kind, rows: usize, cols: usize, rounding: Rounding) -> Id {
        let place = std::mem::replace(&mut self.place, Place::Tight);
        let id = self.output(kind, rows, cols, rounding);
        self.place = place;
        id
    }

    /// An input without gaps.
    pub fn tight(&mut self, kind: Kind, rows: usize, cols: usize, values: Vec<f64>) -> Id {
        let place = std::mem::replace(&mut self.place, Place::Tight);
        let id = self.given(kind, rows, cols, values);
        self.place = place;
        id
    }

    /// Read and written.
    pub fn updated(&mut self, kind: Kind, rows: usize, cols: usize, scale: f64, rounding: Rounding) -> Id {
        let values = self.normals(kind, rows * cols, 0.0, scale);
        self.push(kind, rows, cols, values, Some(rounding))
    }

    /// Sequences of the given lengths; of each, the rows that `chosen` picks by their token.
    pub fn rows(&mut self, lengths: &[usize], chosen: impl Fn(usize) -> bool) -> RowIds {
        let (mut ordinals, mut tokens, mut offsets, mut longest) = (vec![], vec![], vec![0], 0);
        for (sequence, &length) in lengths.iter().enumerate() {
            let before = tokens.len();
            tokens.extend((0..length).filter(|&token| chosen(token)).map(|token| token as i32));
            ordinals.resize(tokens.len(), FIRST_ORDINAL + sequence as i32);
            offsets.push(tokens.len() as i32);
            longest = longest.max(tokens.len() - before);
        }
        let count = tokens.len();
        RowIds { ordinals: self.integers(&ordinals), tokens: self.integers(&tokens), offsets: self.integers(&offsets), count, longest }
    }

    /// Runs the operation and returns the bytes of all outputs, row by row.
    fn run(&self, backend: &mut dyn Backend, operation: &dyn Fn(&mut dyn Backend, &Views)) -> Vec<(DType, Vec<u8>)> {
        let precision = backend.precision();
        let mut cursor = 0;
        let wholes: Vec<View> = self
            .buffers
            .iter()
            .map(|buffer| {
                let dtype = match buffer.kind {
                    Kind::Activation => precision.activation,
                    Kind::Frozen => self.dtype,
                    Kind::Master => precision.master,
                    Kind::Integer => DType::I32,
                };
                let cols = buffer.front + buffer.rows * (buffer.cols + buffer.gap);
                let view = View { buffer: ARENA, offset: cursor, rows: 1, cols, stride: cols, dtype };
                cursor = view.end().next_multiple_of(256);
                view
            })
            .collect();
        let need = ScratchNeed {
            longest: 700,
            prefix_length: 128,
            head_dim: 128,
            kv_size: 512,
            tokens: 2048,
            sequences: 64,
            groups: 512,
            parameters: 1 << 20,
            widest: 4096,
        };
        let scratch = backend.scratch_bytes(&need).unwrap();
        let scratch =
            View { buffer: ARENA, offset: cursor, rows: 1, cols: scratch.div_ceil(8), stride: scratch.div_ceil(8), dtype: DType::F64 };
        backend.allocate(scratch.end(), scratch).unwrap();
        let views: Vec<View> = self
            .buffers
            .iter()
            .zip(&wholes)
            .map(|(buffer, whole)| {
                let stride = buffer.cols + buffer.gap;
                let mut elements = vec![poison(buffer.kind); whole.cols];
                for (row, values) in buffer.values.chunks_exact(buffer.cols.max(1)).enumerate() {
                    elements[buffer.front + row * stride..][..buffer.cols].copy_from_slice(values);
                }
                backend.write(*whole, &to_bytes(whole.dtype, elements.into_iter()));
                View { offset: whole.offset + buffer.front * whole.dtype.size(), rows: buffer.rows, cols: buffer.cols, stride, ..*whole }
            })
            .collect();
        operation(backend, &Views(&views));
        let mut outputs = Vec::new();
        for (buffer, whole) in self.buffers.iter().zip(&wholes) {
            let mut bytes = vec![0; whole.cols * whole.dtype.size()];
            backend.read(*whole, &mut bytes);
            backend.check().unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
            let (size, stride) = (whole.dtype.size(), buffer.cols + buffer.gap);
            let blank = to_bytes(whole.dtype, std::iter::once(poison(buffer.kind)));
            let mut inside = Vec::new();
            for (index, element) in bytes.chunks_exact(size).enumerate() {
                let within = index.checked_sub(buffer.front).is_some_and(|index| index % stride < buffer.cols);
                if within {
                    inside.extend_from_slice(element);
                } else {
                    assert_eq!(element, blank, "{}: something was written beside the rows of a view", self.name);
                }
            }
            if buffer.checked.is_some() {
                outputs.push((whole.dtype, inside));
            }
        }
        outputs
    }

    fn emulated(&self, order: u32, operation: &dyn Fn(&mut dyn Backend, &Views)) -> Vec<(DType, Vec<u8>)> {
        self.run(&mut Cuda::new(Emulated::new(order), self.dtype).unwrap(), operation)
    }

    /// The outputs' values in f64.
    pub fn reference(&self, operation: impl Fn(&mut dyn Backend, &Views)) -> Vec<Vec<f64>> {
        self.run(&mut Cpu::<f64>::new(), &operation).into_iter().map(|(dtype, bytes)| from_bytes(dtype, &bytes)).collect()
    }

    /// A buffer's values at the start.
    pub fn values(&self, id: Id) -> &[f64] {
        &self.buffers[id.0].values
    }

    /// Runs the operation everywhere and applies the rule; the plain implementation is the CPU's in f32.
    pub fn check(&self, operation: impl Fn(&mut dyn Backend, &Views)) {
        let plain = self.run(&mut Cpu::<f32>::new(), &operation).into_iter().map(|(dtype, bytes)| from_bytes(dtype, &bytes)).collect();
        self.check_beside(plain, operation);
    }

    /// As [`Case::check`], with the outputs of another plain implementation.
    pub fn check_beside(&self, plain: Vec<Vec<f64>>, operation: impl Fn(&mut dyn Backend, &Views)) {
        let reference = self.reference(&operation);
        let found = self.emulated(0, &operation);
        for order in [1, 2, 3] {
            assert!(self.emulated(order, &operation) == found, "{}: thread order {order} gives other bits", self.name);
        }
        let checked = self.buffers.iter().filter(|buffer| buffer.checked.is_some());
        for (number, buffer) in checked.enumerate() {
            let largest = reference[number].iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            let stored = if buffer.kind == Kind::Master { DType::F32 } else { self.dtype };
            let plain: Vec<f64> = plain[number].iter().map(|&value| rounded(stored, value)).collect();
            let found = from_bytes(found[number].0, &found[number].1);
            let error = |values: &[f64]| {
                let differences = values.iter().zip(&reference[number]).map(|(value, expected)| (value - expected).abs());
                differences.fold(0.0_f64, |a, b| if b > a || b.is_nan() { b } else { a })
            };
            let allowed = 2.0 * error(&plain)
                + match buffer.checked {
                    Some(Rounding::Activation) => 2.0 * step(self.dtype) * largest,
                    _ => 16.0 * step(DType::F32) * largest,
                };
            let error = error(&found);
            if std::env::var_os("RATIO").is_some() {
                eprintln!(
                    "RATIO {:.2} steps, plain {:.2}, {number} {}",
                    error / (step(self.dtype) * largest),
                    (allowed / (step(self.dtype) * largest) - 2.0) / 2.0,
                    self.name
                );
                continue;
            }
            assert!(error <= allowed, "{}: output {number} is off by {error:e}, {allowed:e} allowed (largest {largest:e})", self.name);
        }
    }

    /// As [`Case::check`], for operations whose results are the same bits everywhere after rounding.
    pub fn check_exactly(&self, operation: impl Fn(&mut dyn Backend, &Views)) {
        self.check(&operation);
        let found = self.emulated(0, &operation);
        for ((dtype, bytes), reference) in found.iter().zip(self.reference(&operation)) {
            let expected: Vec<f64> = reference.iter().map(|&value| rounded(*dtype, value)).collect();
            assert_eq!(from_bytes(*dtype, bytes), expected, "{}", self.name);
        }
    }
}
