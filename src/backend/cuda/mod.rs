//! The CUDA backend: every operation of the seam is a few launches of the kernels in `cuda/`, or a matrix product
//! of the driver. Activations and frozen matrices in fp16 or bf16, everything that is trained or kept as a sum in fp32.
//!
//! Grids and blocks stand beside each launch, with the reason; what a kernel computes stands in its `.cu` file.

mod absent;
mod arguments;
mod attention;
mod device;
mod driver;
#[cfg(feature = "emulation")]
pub mod emulated;
mod gpu;
mod instruments;
mod library;
mod linear;
mod pinned;
mod probes;
mod products;
mod queue;
mod reader;
mod rowwise;
mod scratch;
mod token_loss;
mod training;

pub use absent::Absent;
pub use arguments::Arguments;
pub use device::Device;
pub use driver::{Address, Driver, Launch, Move, Operand, Product, Source};
#[cfg(feature = "emulation")]
pub use emulated::{Emulated, Timing};
pub use gpu::{Gpu, architectures};
pub use probes::{LANES, PROBES, Probe, Prober};

use super::*;
use anyhow::{Result, anyhow, bail, ensure};
use arguments::Arena;
use scratch::Scratch;

/// A kernel's name for the element type of activations.
macro_rules! for_type {
    ($dtype:expr, $name:literal) => {
        match $dtype {
            crate::backend::DType::F16 => concat!($name, "_f16"),
            crate::backend::DType::BF16 => concat!($name, "_bf16"),
            _ => concat!($name, "_f32"),
        }
    };
}
use for_type;

pub struct Cuda<D> {
    driver: D,
    activation: DType,
    arena: Arena,
    scratch: Scratch,
    record: instruments::Record,
    failure: Option<anyhow::Error>,
    /// Bytes of each attached file.
    files: Vec<usize>,
}

impl<D: Driver> Cuda<D> {
    /// A backend whose activations are of a 16-bit type: the checkpoint's.
    pub fn new(driver: D, activation: DType) -> Result<Cuda<D>> {
        ensure!(matches!(activation, DType::F16 | DType::BF16), "activations in {} on a GPU", activation.name());
        let (arena, scratch, record) = (Arena::default(), Scratch::default(), instruments::Record::default());
        Ok(Cuda { driver, activation, arena, scratch, record, failure: None, files: Vec::new() })
    }

    fn arguments(&self) -> Arguments {
        Arguments::new(self.arena)
    }

    /// Runs something on the driver, unless it has failed before.
    fn attempt(&mut self, operation: impl FnOnce(&mut D) -> Result<()>) {
        if self.failure.is_none() {
            self.failure = operation(&mut self.driver).err();
        }
    }

    /// Where a transfer comes from: memory, or a file, which nothing else on a device reads.
    fn source(&self, view: View) -> Source {
        if view.buffer == ARENA || view.buffer == HOST {
            return Source::Memory(self.arena.address(view));
        }
        let file = view.buffer.0 as usize - 1;
        assert!(view.end() <= self.files[file], "a view ends at byte {} of a file of {}", view.end(), self.files[file]);
        Source::File { file, offset: view.offset }
    }

    /// `grid` and `block` by x and y (and z); an empty grid is nothing to do.
    fn launch(&mut self, kernel: &'static str, grid: [usize; 3], block: [usize; 2], shared: usize, mut arguments: Arguments) {
        if grid.contains(&0) {
            return;
        }
        let [_, y, z] = grid;
        if y.max(z) > MOST_BLOCKS {
            return self.attempt(|_| {
                bail!("{kernel}: {} sequences or heads are more than a GPU is given at once ({MOST_BLOCKS}); use smaller micro-batches (--micro-batch-tokens)", y.max(z))
            });
        }
        let [x, y] = block.map(|count| count as u32);
        let launch = Launch { kernel, grid: grid.map(|count| count as u32), block: [x, y, 1], shared: shared as u32 };
        // SAFETY: arguments are written beside each launch in the order of the kernel's signature; `Arguments` checked
        // that every view lies in the arena, and the engine that operands overlap only where the seam says so.
        self.attempt(|driver| unsafe { driver.launch(launch, &mut arguments) });
        self.log(kernel);
    }
}

/// Blocks of a grid in y or z: CUDA's limit.
const MOST_BLOCKS: usize = 65535;

/// Bytes of rows that the host gathers at a time.
const FETCHED: usize = 1 << 20;

impl<D: Driver> Sizing for Cuda<D> {
    fn describe(&self) -> String {
        format!("{}, {}", self.driver.describe(), self.activation.name())
    }

    fn precision(&self) -> Precision {
        Precision { activation: self.activation, master: DType::F32 }
    }

    fn reads_files(&self) -> bool {
        false
    }

    fn transfers_files(&self) -> bool {
        true
    }

    fn scratch_bytes(&self, need: &ScratchNeed) -> Result<usize> {
        Scratch::bytes(self.driver.workspace_bytes(), need)
    }

    fn describe_scratch(&self) -> String {
        Scratch::describe(self.driver.workspace_bytes())
    }
}

impl<D: Driver> Backend for Cuda<D> {
    fn allocate(&mut self, bytes: usize, scratch: View) -> Result<()> {
        self.scratch = Scratch::new(self.driver.workspace_bytes(), scratch);
        (self.arena.start, self.arena.bytes) = (self.driver.allocate(bytes, scratch.offset)?, bytes);
        Ok(())
    }

    fn allocate_host(&mut self, bytes: usize) -> Result<()> {
        (self.arena.host_start, self.arena.host_bytes) = (self.driver.allocate_host(bytes)?, bytes);
        Ok(())
    }

    fn transfer(&mut self, lane: usize, moves: &[(View, View)]) {
        let moves = moves.iter().map(|&(from, to)| {
            assert!(from.is_contiguous() && to.is_contiguous() && from.dtype == to.dtype && from.len() == to.len());
            Move { from: self.source(from), to: self.arena.address(to), bytes: from.len() * from.dtype.size() }
        });
        let moves: Vec<Move> = moves.filter(|copy| copy.bytes > 0).collect();
        self.attempt(|driver| driver.transfer(lane, &moves));
    }

    fn join(&mut self, lane: usize) {
        self.attempt(|driver| driver.join(lane));
    }

    fn attach(&mut self, file: FileBytes) -> Result<BufferId> {
        self.files.push((*file).as_ref().len());
        self.driver.attach(file)?;
        Ok(BufferId(self.files.len() as u32))
    }

    fn check(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(anyhow!("{failure:#}")),
            None => Ok(()),
        }
    }

    fn write(&mut self, to: View, bytes: &[u8]) {
        assert!(to.is_contiguous() && bytes.len() == to.len() * to.dtype.size());
        let address = self.arena.address(to);
        if to.buffer == HOST {
            self.attempt(|driver| driver.write_host(address, bytes));
        } else {
            self.attempt(|driver| driver.write(address, bytes));
        }
    }

    fn fetch_rows(&mut self, table: View, rows: &[usize], out: View) {
        assert!(table.buffer == HOST && table.is_contiguous() && out.is_contiguous() && (table.dtype, table.cols) == (out.dtype, out.cols));
        let width = table.cols * table.dtype.size();
        // Gathered by the host, some rows at a time, and then on their way as any other bytes.
        let step = (FETCHED / width).max(1);
        let mut gathered = vec![0; step.min(rows.len()) * width];
        for (number, rows) in rows.chunks(step).enumerate() {
            let bytes = &mut gathered[..rows.len() * width];
            for (&row, to) in rows.iter().zip(bytes.chunks_exact_mut(width)) {
                let from = self.arena.address(table.row_range(row, 1));
                self.attempt(|driver| driver.read_host(from, to));
            }
            let to = self.arena.address(out.row_range(number * step, rows.len()));
            self.attempt(|driver| driver.write(to, bytes));
        }
    }

    fn read(&mut self, from: View, bytes: &mut [u8]) {
        assert!(from.is_contiguous() && bytes.len() == from.len() * from.dtype.size());
        if bytes.is_empty() {
            return;
        }
        let address = self.arena.address(from);
        self.attempt(|driver| driver.read(address, bytes));
        if self.failure.is_some() {
            bytes.fill(VOID);
        }
    }

    fn read_later(&mut self, from: View) -> Readback {
        assert!(from.is_contiguous());
        let (address, count) = (self.arena.address(from), from.len() * from.dtype.size());
        let mut readback: Readback = Box::new(move || vec![VOID; count]);
        if count == 0 {
            return readback;
        }
        self.attempt(|driver| {
            readback = driver.read_later(address, count)?;
            Ok(())
        });
        readback
    }

    fn zero(&mut self, view: View) {
        assert!(view.is_contiguous());
        let (address, count) = (self.arena.address(view), view.len() * view.dtype.size());
        if count > 0 {
            self.attempt(|driver| driver.zero(address, count));
        }
    }

    fn copy(&mut self, from: View, to: View) {
        assert!(from.is_contiguous() && to.is_contiguous() && from.dtype == to.dtype && from.len() == to.len());
        let (source, target, count) = (self.arena.address(from), self.arena.address(to), from.len() * from.dtype.size());
        if count > 0 {
            self.attempt(|driver| driver.copy(source, target, count));
        }
    }

    fn fill_normal(&mut self, to: View, key: [u32; 2], deviation: f64) {
        rowwise::fill_normal(self, to, key, deviation);
        if to.buffer == HOST {
            // The host reads its memory as it is (`fetch_rows`), so this waits for what was drawn there.
            let address = self.arena.address(to);
            self.attempt(|driver| driver.write_host(address, &[]));
        }
    }

    fn embed(&mut self, arguments: &Embed) {
        rowwise::embed(self, arguments);
    }

    fn norm_forward(&mut self, arguments: &NormForward) {
        rowwise::norm_forward(self, arguments);
    }

    fn norm_output(&mut self, normalized: View, gamma: View, beta: Option<View>, out: View) {
        rowwise::norm_output(self, normalized, gamma, beta, out);
    }

    fn norm_backward(&mut self, arguments: &NormBackward) {
        rowwise::norm_backward(self, arguments);
    }

    fn dropout(&mut self, data: View, dropout: Dropout, rows: &Rows) {
        rowwise::dropout(self, data, dropout, rows);
    }

    fn dequantize(&mut self, weight: View, scales: View, out: View) {
        linear::dequantize(self, weight, scales, out);
    }

    fn linear(&mut self, x: View, weight: View, bias: Option<View>, out: View) {
        linear::forward(self, x, weight, bias, out);
    }

    fn linear_backward_input(&mut self, dy: View, weight: View, dx: View, accumulate: bool) {
        linear::backward_input(self, dy, weight, dx, accumulate);
    }

    fn linear_backward_weight(&mut self, dy: View, x: View, d_weight: View, d_bias: Option<View>) {
        linear::backward_weight(self, dy, x, d_weight, d_bias);
    }

    fn activation_forward(&mut self, kind: Activation, z: View, out: View) {
        rowwise::activation_forward(self, kind, z, out);
    }

    fn activation_backward(&mut self, kind: Activation, z: View, d_out: View, dz: View) {
        rowwise::activation_backward(self, kind, z, d_out, dz);
    }

    fn rotary_forward(&mut self, arguments: &Rotary, out: View) {
        rowwise::rotary(self, for_type!(self.activation, "rotary_forward"), arguments, out);
    }

    fn rotary_backward(&mut self, arguments: &Rotary, d: View) {
        rowwise::rotary(self, for_type!(self.activation, "rotary_backward"), arguments, d);
    }

    fn attention_forward(&mut self, arguments: &Attention, out: View, log_sum_exp: View) {
        attention::forward(self, arguments, out, log_sum_exp);
    }

    fn attention_delta(&mut self, out: View, d_out: View, heads: usize, delta: View) {
        attention::delta(self, out, d_out, heads, delta);
    }

    fn attention_backward(&mut self, arguments: &Attention, saved: &AttentionSaved, d_query: View, d_key: View, d_value: View) {
        attention::backward(self, arguments, saved, d_query, d_key, d_value);
    }

    fn prefix_gradient(&mut self, arguments: &Attention, saved: &AttentionSaved, d_key: View, d_value: View) {
        attention::prefix_gradient(self, arguments, saved, d_key, d_value);
    }

    fn prompt_gradient(&mut self, d: View, offsets: View, d_prompt: View) {
        rowwise::prompt_gradient(self, d, offsets, d_prompt);
    }

    fn gather_rows(&mut self, x: View, rows: View, out: View) {
        rowwise::gather_rows(self, x, rows, out);
    }

    fn scatter_add_rows(&mut self, source: View, rows: View, x: View) {
        rowwise::scatter_add_rows(self, source, rows, x);
    }

    fn cross_entropy(&mut self, arguments: &CrossEntropy) {
        training::cross_entropy(self, arguments);
    }

    fn token_loss(&mut self, arguments: &TokenLoss) {
        token_loss::token_loss(self, arguments);
    }

    fn sum_segments(&mut self, values: View, offsets: View, out: View) {
        token_loss::sum_segments(self, values, offsets, out);
    }

    fn spread_segments(&mut self, values: View, offsets: View, factor: f64, out: View) {
        token_loss::spread_segments(self, values, offsets, factor, out);
    }

    fn squared_norm(&mut self, x: View, total: View) {
        training::squared_norm(self, x, total);
    }

    fn adamw(&mut self, arguments: &AdamW) {
        training::adamw(self, arguments);
    }
}

/// Every byte of what is read from a device that has failed: NaN in any floating-point type.
const VOID: u8 = 0xff;
