//! The arena, the mapped files, and the one place where a view becomes a pointer. Everything unsafe about memory is
//! here and in the rows that the kernels of this folder hand to their tasks: tasks of one operation write disjoint
//! rows or columns, and the engine never gives an operation an output that overlaps an input it does not document.

use super::real::Real;
use crate::backend::{ARENA, BufferId, DType, FileBytes, HOST, View};
use crate::bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc};

const ALIGNMENT: usize = 256;

/// Memory that was taken from the system: zero pages, resident only once touched.
struct Block {
    start: *mut u8,
    bytes: usize,
}

impl Block {
    const NONE: Block = Block { start: std::ptr::null_mut(), bytes: 0 };

    fn allocate(bytes: usize) -> anyhow::Result<Block> {
        let layout = Layout::from_size_align(bytes.max(ALIGNMENT), ALIGNMENT)?;
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        anyhow::ensure!(
            !start.is_null(),
            "cannot allocate {} of memory; choose --memory-budget, --recompute, --weights streamed or a smaller --micro-batch-size \
             (eval, predict: --batch-size), a shorter text or a shorter prefix",
            Bytes(bytes)
        );
        Ok(Block { start, bytes: layout.size() })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if !self.start.is_null() {
            // SAFETY: allocated by `allocate` with this layout, which was valid then.
            unsafe { dealloc(self.start, Layout::from_size_align_unchecked(self.bytes, ALIGNMENT)) }
        }
    }
}

pub struct Buffers {
    arena: Block,
    host: Block,
    files: Vec<FileBytes>,
}

// SAFETY: the arena is owned memory; access is synchronised by `&mut self` of the backend's operations.
unsafe impl Send for Buffers {}
unsafe impl Sync for Buffers {}

impl Buffers {
    pub fn new() -> Buffers {
        Buffers { arena: Block::NONE, host: Block::NONE, files: Vec::new() }
    }

    pub fn allocate(&mut self, bytes: usize) -> anyhow::Result<()> {
        assert!(self.arena.start.is_null(), "the arena is allocated once");
        self.arena = Block::allocate(bytes)?;
        Ok(())
    }

    pub fn allocate_host(&mut self, bytes: usize) -> anyhow::Result<()> {
        assert!(self.host.start.is_null(), "host memory is allocated once");
        self.host = Block::allocate(bytes)?;
        Ok(())
    }

    pub fn attach(&mut self, file: FileBytes) -> BufferId {
        self.files.push(file);
        BufferId(self.files.len() as u32)
    }

    fn address(&self, view: View) -> *mut u8 {
        let (start, bytes) = match view.buffer {
            ARENA => (self.arena.start, self.arena.bytes),
            HOST => (self.host.start, self.host.bytes),
            BufferId(file) => {
                let data = (*self.files[file as usize - 1]).as_ref();
                (data.as_ptr().cast_mut(), data.len())
            }
        };
        assert!(view.end() <= bytes, "a view ends at byte {} of a buffer of {bytes}", view.end());
        // SAFETY: the offset lies inside the buffer.
        unsafe { start.add(view.offset) }
    }

    /// The elements of a view, which must be of type `E`.
    pub fn matrix<E: Element>(&self, view: View) -> Matrix<E> {
        assert_eq!(view.dtype, E::DTYPE, "element type of a view");
        let start = self.address(view).cast::<E>();
        assert!(start.is_aligned(), "alignment of a view");
        Matrix { start, rows: view.rows, cols: view.cols, stride: view.stride }
    }

    /// As [`Buffers::matrix`], for views of one row.
    pub fn vector<E: Element>(&self, view: View) -> &[E] {
        assert!(view.is_contiguous());
        // SAFETY: `matrix` checked bounds, type and alignment.
        unsafe { std::slice::from_raw_parts(self.matrix::<E>(view).start, view.len()) }
    }

    pub fn bytes(&self, view: View) -> &[u8] {
        assert!(view.is_contiguous());
        // SAFETY: `address` checked the bounds.
        unsafe { std::slice::from_raw_parts(self.address(view), view.len() * view.dtype.size()) }
    }

    /// As [`Buffers::bytes`], for an operation that reads or writes them in parts.
    pub fn byte_matrix(&self, view: View) -> Matrix<u8> {
        assert!(view.is_contiguous());
        let bytes = view.len() * view.dtype.size();
        Matrix { start: self.address(view), rows: 1, cols: bytes, stride: bytes }
    }

    pub fn bytes_mut(&mut self, view: View) -> &mut [u8] {
        assert!(view.is_contiguous() && (view.buffer == ARENA || view.buffer == HOST), "files are read-only");
        // SAFETY: as in `bytes`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.address(view), view.len() * view.dtype.size()) }
    }

    /// A matrix of 16-bit or full-width numbers that is read as `T`.
    pub fn source<T: Real + Element>(&self, view: View) -> Source<T> {
        match view.dtype {
            DType::F16 => Source::F16(self.matrix(view)),
            DType::BF16 => Source::BF16(self.matrix(view)),
            _ => Source::Full(self.matrix(view)),
        }
    }
}

pub trait Element: Copy + Send + Sync + 'static {
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
impl Element for i8 {
    const DTYPE: DType = DType::I8;
}
impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for half::bf16 {
    const DTYPE: DType = DType::BF16;
}

/// A view resolved to memory. Copies share the memory: who writes which rows is the operation's business.
#[derive(Clone, Copy)]
pub struct Matrix<E> {
    pub start: *mut E,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

// SAFETY: see the module's header.
unsafe impl<E: Send> Send for Matrix<E> {}
unsafe impl<E: Sync> Sync for Matrix<E> {}

impl<E> Matrix<E> {
    #[inline(always)]
    pub fn at(&self, row: usize, col: usize) -> *mut E {
        debug_assert!(row < self.rows.max(1) && col <= self.cols);
        // SAFETY: inside the view, whose bounds were checked when it was resolved.
        unsafe { self.start.add(row * self.stride + col) }
    }

    #[inline(always)]
    pub fn row<'a>(&self, row: usize) -> &'a [E] {
        debug_assert!(row < self.rows);
        // SAFETY: inside the view; no task of the same operation writes it.
        unsafe { std::slice::from_raw_parts(self.at(row, 0), self.cols) }
    }

    #[inline(always)]
    pub fn row_mut<'a>(&self, row: usize) -> &'a mut [E] {
        debug_assert!(row < self.rows);
        // SAFETY: inside the view; only this task of the operation touches it.
        unsafe { std::slice::from_raw_parts_mut(self.at(row, 0), self.cols) }
    }

    /// The block of `rows` x `cols` from (row, col).
    pub fn block(&self, row: usize, rows: usize, col: usize, cols: usize) -> Matrix<E> {
        assert!(row + rows <= self.rows && col + cols <= self.cols);
        Matrix { start: self.start.wrapping_add(row * self.stride + col), rows, cols, stride: self.stride }
    }
}

/// Numbers in the width that they are stored in.
#[derive(Clone, Copy)]
pub enum Source<T> {
    F16(Matrix<half::f16>),
    BF16(Matrix<half::bf16>),
    Full(Matrix<T>),
}

impl<T: Real + Element> Source<T> {
    /// Writes row `row`, from column `col`, into `to`.
    #[inline(always)]
    pub fn widen_row(&self, row: usize, col: usize, to: &mut [T]) {
        let end = col + to.len();
        match self {
            Source::F16(matrix) => T::widen_f16(&matrix.row(row)[col..end], to),
            Source::BF16(matrix) => T::widen_bf16(&matrix.row(row)[col..end], to),
            Source::Full(matrix) => to.copy_from_slice(&matrix.row(row)[col..end]),
        }
    }

    /// The block as a matrix of `T`: the matrix itself where it is one, else widened into `scratch`.
    pub fn block(&self, row: usize, rows: usize, col: usize, cols: usize, scratch: &mut [T]) -> Matrix<T> {
        if let Source::Full(matrix) = self {
            return matrix.block(row, rows, col, cols);
        }
        for (r, to) in scratch[..rows * cols].chunks_exact_mut(cols).enumerate() {
            self.widen_row(row + r, col, to);
        }
        Matrix { start: scratch.as_mut_ptr(), rows, cols, stride: cols }
    }
}
