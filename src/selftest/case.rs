//! A case of an operation: its operands as numbers, and where they lie. Outputs start as NaN, and so does what lies
//! between and behind the rows of a view.

use super::numbers::{rounded, to_bytes};
use crate::backend::{ARENA, DType, Rows, Stream, View};

/// What a buffer holds; its type depends on the backend.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    Activation,
    /// 16 bits on every backend.
    Frozen,
    /// A frozen matrix of 8 bits.
    Quantised,
    /// fp32 on every backend: the factors of a matrix of 8 bits.
    Scale,
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

pub struct Buffer {
    pub kind: Kind,
    rows: usize,
    cols: usize,
    /// Elements in front, and between rows.
    front: usize,
    gap: usize,
    values: Vec<f64>,
    /// The type that the kernel rounds to on the way here; None: an input.
    pub checked: Option<Rounding>,
}

/// Elements behind a buffer that nothing may write.
const GUARD: usize = 64;
/// Every buffer starts at a multiple of this many bytes, as an engine's do.
const ALIGNMENT: usize = 256;

impl Buffer {
    /// All of the buffer's elements, with what lies around its rows, from a byte of the arena on.
    pub fn whole(&self, offset: usize, dtype: DType) -> View {
        let cols = self.front + self.rows * (self.cols + self.gap) + GUARD;
        let cols = (cols * dtype.size()).next_multiple_of(ALIGNMENT) / dtype.size();
        View { buffer: ARENA, offset, rows: 1, cols, stride: cols, dtype }
    }

    /// The operand inside of `whole`.
    pub fn view(&self, whole: View) -> View {
        let offset = whole.offset + self.front * whole.dtype.size();
        View { offset, rows: self.rows, cols: self.cols, stride: self.cols + self.gap, ..whole }
    }

    /// The bytes of `whole` at the start.
    pub fn bytes(&self, whole: View) -> Vec<u8> {
        let mut elements = vec![poison(self.kind); whole.cols];
        for (row, values) in self.values.chunks_exact(self.cols.max(1)).enumerate() {
            elements[self.front + row * (self.cols + self.gap)..][..self.cols].copy_from_slice(values);
        }
        to_bytes(whole.dtype, elements.into_iter())
    }

    /// The operand's bytes of all of `whole`'s, row by row; None where something was written around them.
    pub fn inside(&self, whole: View, bytes: &[u8]) -> Option<Vec<u8>> {
        let (stride, end) = (self.cols + self.gap, self.rows * (self.cols + self.gap));
        let blank = to_bytes(whole.dtype, std::iter::once(poison(self.kind)));
        let mut inside = Vec::new();
        for (index, element) in bytes.chunks_exact(whole.dtype.size()).enumerate() {
            match index.checked_sub(self.front) {
                Some(index) if index < end && index % stride < self.cols => inside.extend_from_slice(element),
                _ if element == blank => {}
                _ => return None,
            }
        }
        Some(inside)
    }
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
    pub buffers: Vec<Buffer>,
    random: Stream,
}

/// A buffer of a case.
#[derive(Clone, Copy)]
pub struct Id(usize);

/// The views of a case on the backend at hand.
pub struct Views<'a>(pub &'a [View]);

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
    pub count: usize,
    longest: usize,
}

impl Views<'_> {
    pub fn rows(&self, ids: RowIds) -> Rows {
        let [ordinals, tokens, offsets] = [ids.ordinals, ids.tokens, ids.offsets].map(|id| self[id]);
        Rows { ordinals, tokens, offsets, count: ids.count, longest: ids.longest }
    }
}

/// What lies around views, and in outputs before they are written.
fn poison(kind: Kind) -> f64 {
    match kind {
        Kind::Integer => f64::from(i32::MIN),
        // No value of a matrix.
        Kind::Quantised => f64::from(i8::MIN),
        _ => f64::NAN,
    }
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

    pub fn push(&mut self, kind: Kind, rows: usize, cols: usize, values: Vec<f64>, checked: Option<Rounding>) -> Id {
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

    pub fn normals(&mut self, kind: Kind, count: usize, mean: f64, scale: f64) -> Vec<f64> {
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

    /// Read and written, without gaps.
    pub fn tight_updated(&mut self, kind: Kind, rows: usize, cols: usize, scale: f64, rounding: Rounding) -> Id {
        let place = std::mem::replace(&mut self.place, Place::Tight);
        let id = self.updated(kind, rows, cols, scale, rounding);
        self.place = place;
        id
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

    /// A buffer's values at the start.
    pub fn values(&self, id: Id) -> &[f64] {
        &self.buffers[id.0].values
    }
}
