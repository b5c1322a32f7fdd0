//! What the CUDA backend asks of a machine: memory, launches by name, matrix products. Two implementations: the GPU's
//! driver (`device`), and the host, where the same kernels run compiled by the C++ compiler (`emulated`).
//!
//! Everything runs in the order in which it is asked for. An error may come later than its cause; after the first one
//! nothing that follows is worth anything.

use super::arguments::Arguments;
use crate::backend::{DType, FileBytes, Machine, Readback};
use anyhow::Result;

/// Address of a byte in the driver's memory; 0 stands for an operand that is not there.
pub type Address = u64;

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// A row-major operand of a product, `stride` elements from row to row.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub address: Address,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

/// c = a bᵀ, or c = a b, (+ c if `accumulate`) (+ `bias` on every row): a and b of one 16-bit type, c of that or fp32,
/// summed in fp32, rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub dtype: DType,
    /// Type of c.
    pub out: DType,
    pub a: Operand,
    pub b: Operand,
    /// Whether b stands transposed: b\[N, K\] then, else b\[K, N\].
    pub transposed: bool,
    pub c: Operand,
    pub accumulate: bool,
    /// A value a column of c.
    pub bias: Option<Address>,
}

/// Where a copy comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// The arena, or the driver's host memory.
    Memory(Address),
    /// Bytes from the start of an attached file, by its number.
    File { file: usize, offset: usize },
}

/// A copy to the arena, or from it to host memory.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    pub from: Source,
    pub to: Address,
    pub bytes: usize,
}

pub trait Driver: Send {
    /// For the log.
    fn describe(&self) -> String;

    /// For records of measurements.
    fn machine(&self) -> Machine;

    /// Bytes of workspace that products want.
    fn workspace_bytes(&self) -> usize;

    /// The one allocation, zeroed and aligned to 256 bytes. The workspace lies `workspace` bytes into it.
    fn allocate(&mut self, bytes: usize, workspace: usize) -> Result<Address>;

    /// The one allocation of host memory, zeroed, aligned to 256 bytes, and within the device's reach under its address.
    fn allocate_host(&mut self, bytes: usize) -> Result<Address>;

    /// Writes to host memory, once everything asked for before is done.
    fn write_host(&mut self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Reads host memory as it is now.
    fn read_host(&mut self, from: Address, bytes: &mut [u8]) -> Result<()>;

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Waits for everything asked for before.
    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<()>;

    fn read_later(&mut self, from: Address, bytes: usize) -> Result<Readback>;

    fn zero(&mut self, at: Address, bytes: usize) -> Result<()>;

    /// Copies within the driver's memory; the two do not overlap.
    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<()>;

    /// Keeps a mapped file that transfers may come from. Files are numbered from 0.
    fn attach(&mut self, file: FileBytes) -> Result<()>;

    /// Copies beside what is asked for: after everything asked for before, and before what is asked for after the `join` of
    /// the same lane. Lanes are numbered from 0, one by one.
    fn transfer(&mut self, lane: usize, moves: &[Move]) -> Result<()>;

    /// What is asked for from here on waits for the lane's transfer.
    fn join(&mut self, lane: usize) -> Result<()>;

    /// Event `event` happens when everything asked for before is done. Numbers are used again; they grow one by one.
    fn record(&mut self, event: usize) -> Result<()>;

    /// Time between two events in seconds; waits for the later.
    fn seconds_between(&mut self, from: usize, to: usize) -> Result<f64>;

    /// Starts or stops a profiler, once everything asked for before is done.
    fn profiler(&mut self, on: bool) -> Result<()>;

    /// Starts a kernel.
    ///
    /// # Safety
    /// `arguments` are what the kernel takes, in order and type; addresses among them are valid for what it does.
    unsafe fn launch(&mut self, launch: Launch, arguments: &mut Arguments) -> Result<()>;

    /// # Safety
    /// The operands lie in the driver's memory, and `c` overlaps neither of the others.
    unsafe fn product(&mut self, product: &Product) -> Result<()>;
}
