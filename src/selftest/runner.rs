//! Cases, one after the other, in the arena of one backend.

use super::case::{Case, Kind, Views};
use crate::backend::{ARENA, Backend, DType, ScratchNeed, View};
use anyhow::{Result, bail, ensure};

/// More than the buffers of any case.
const ARENA_BYTES: usize = 96 << 20;
/// Scratch that is poisoned before the first case: what reductions write into it comes from its start.
const POISONED: usize = 4 << 20;
/// No less than any case needs.
const NEED: ScratchNeed = ScratchNeed {
    longest: 700,
    prefix_length: 128,
    prefix_dropout: true,
    head_dim: 128,
    relative: false,
    kv_size: 512,
    tokens: 2048,
    sequences: 64,
    groups: 512,
    parameters: 1 << 20,
    widest: 4096,
};

/// What an operation does to a case's views.
pub type Operation<'a> = &'a dyn Fn(&mut dyn Backend, &Views);
/// Type and bytes of each output.
pub type Outputs = Vec<(DType, Vec<u8>)>;

pub struct Runner {
    backend: Box<dyn Backend>,
    /// Where cases begin, behind the scratch.
    start: usize,
}

impl Runner {
    /// Allocates the backend's memory.
    pub fn new(mut backend: Box<dyn Backend>) -> Result<Runner> {
        let words = backend.scratch_bytes(&NEED)?.div_ceil(8);
        let scratch = View { buffer: ARENA, offset: 0, rows: 1, cols: words, stride: words, dtype: DType::F64 };
        backend.allocate(scratch.end() + ARENA_BYTES, scratch)?;
        let poisoned = scratch.col_range(0, words.min(POISONED / 8));
        backend.write(poisoned, &vec![0xff; poisoned.len() * 8]);
        Ok(Runner { backend, start: scratch.end().next_multiple_of(256) })
    }

    /// Whether everything but frozen matrices is held in fp32.
    pub fn is_single(&self) -> bool {
        self.backend.precision().activation == DType::F32
    }

    /// Runs the operation and returns all outputs, row by row. An error: the backend failed, or the operation wrote
    /// beside its operands.
    pub fn run(&mut self, case: &Case, operation: Operation) -> Result<Outputs> {
        let precision = self.backend.precision();
        let mut cursor = self.start;
        let mut wholes = Vec::new();
        for buffer in &case.buffers {
            let dtype = match buffer.kind {
                Kind::Activation => precision.activation,
                Kind::Frozen => case.dtype,
                Kind::Master => precision.master,
                Kind::Integer => DType::I32,
                Kind::Quantised => DType::I8,
                Kind::Scale => DType::F32,
            };
            let whole = buffer.whole(cursor, dtype);
            cursor = whole.end();
            ensure!(cursor <= self.start + ARENA_BYTES - 256, "the case is larger than the arena of {ARENA_BYTES} bytes");
            self.backend.write(whole, &buffer.bytes(whole));
            wholes.push(whole);
        }
        let views: Vec<View> = case.buffers.iter().zip(&wholes).map(|(buffer, &whole)| buffer.view(whole)).collect();
        operation(self.backend.as_mut(), &Views(&views));
        let mut outputs = Vec::new();
        for (number, (buffer, &whole)) in case.buffers.iter().zip(&wholes).enumerate() {
            let mut bytes = vec![0; whole.cols * whole.dtype.size()];
            self.backend.read(whole, &mut bytes);
            self.backend.check()?;
            match buffer.inside(whole, &bytes) {
                Some(inside) if buffer.checked.is_some() => outputs.push((whole.dtype, inside)),
                Some(_) => {}
                None => bail!("something was written beside the rows of operand {number}"),
            }
        }
        Ok(outputs)
    }
}
