//! What an operation is handed: not a slice, not a tensor it owns, but a place in a buffer.

/// Element type of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F16,
    BF16,
    F32,
    F64,
    I32,
    /// Frozen matrices of 8 bits, which have a factor a row beside them.
    I8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F16 | DType::BF16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 => 8,
            DType::I8 => 1,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            DType::F16 => "fp16",
            DType::BF16 => "bf16",
            DType::F32 => "fp32",
            DType::F64 => "fp64",
            DType::I32 => "int32",
            DType::I8 => "int8",
        }
    }
}

/// A buffer known to the backend: the arena, or a read-only file mapped into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u32);

/// The one allocation that the memory plan lays out.
pub const ARENA: BufferId = BufferId(0);

/// The plan's part of the host's memory: what is brought into the arena piece by piece.
pub const HOST: BufferId = BufferId(u32::MAX);

/// A row-major matrix inside a buffer: element (r, c) is `r * stride + c` elements after `offset` bytes.
/// A vector is a view of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub buffer: BufferId,
    /// Bytes from the start of the buffer.
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    pub dtype: DType,
}

impl View {
    /// The rows `from..from + rows`.
    pub fn row_range(self, from: usize, rows: usize) -> View {
        assert!(from + rows <= self.rows, "rows {from}+{rows} of {}", self.rows);
        View { offset: self.offset + from * self.stride * self.dtype.size(), rows, ..self }
    }

    /// The first `rows` rows: what of a buffer of the plan's capacity a batch uses.
    pub fn first_rows(self, rows: usize) -> View {
        self.row_range(0, rows)
    }

    /// The columns `from..from + cols` of every row.
    pub fn col_range(self, from: usize, cols: usize) -> View {
        assert!(from + cols <= self.cols, "columns {from}+{cols} of {}", self.cols);
        View { offset: self.offset + from * self.dtype.size(), cols, ..self }
    }

    /// The same elements in another shape; only for views without gaps between rows.
    pub fn reshape(self, rows: usize, cols: usize) -> View {
        assert!(self.is_contiguous() && rows * cols == self.len(), "reshape {}x{} to {rows}x{cols}", self.rows, self.cols);
        View { rows, cols, stride: cols, ..self }
    }

    /// The same elements in order, cut into vectors of `size` and a shorter last one; only for views without gaps.
    pub fn chunks(self, size: usize) -> impl Iterator<Item = View> {
        let flat = self.reshape(1, self.len());
        (0..flat.cols).step_by(size).map(move |from| flat.col_range(from, size.min(flat.cols - from)))
    }

    pub fn is_contiguous(self) -> bool {
        self.stride == self.cols || self.rows <= 1
    }

    /// Number of elements.
    pub fn len(self) -> usize {
        self.rows * self.cols
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// One past the last byte that the view touches.
    pub fn end(self) -> usize {
        if self.is_empty() { self.offset } else { self.offset + ((self.rows - 1) * self.stride + self.cols) * self.dtype.size() }
    }
}
