//! Launches of `cuda/probes.cu`: an instruction by itself, on given bits.

use super::arguments::{Arena, Arguments};
use super::driver::{Driver, Launch};
use crate::backend::{ARENA, DType, View};
use anyhow::{Result, ensure};

/// A kernel of `cuda/probes.cu`, and how many words each lane reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub kernel: &'static str,
    pub input: usize,
    pub output: usize,
}

const fn probe(kernel: &'static str, input: usize, output: usize) -> Probe {
    Probe { kernel, input, output }
}

/// Every instruction wrapper of `cuda/instructions.cuh`, and the shuffles and conversions that the kernels use.
pub const PROBES: [Probe; 14] = [
    probe("probe_copy_async_4", 2, 1),
    probe("probe_copy_async_16", 8, 4),
    probe("probe_copy_async_groups", 2, 2),
    probe("probe_copy_async_if", 8, 4),
    probe("probe_load_matrices", 4, 4),
    probe("probe_load_matrices_transposed", 4, 4),
    probe("probe_mma_f16", 10, 4),
    probe("probe_mma_bf16", 10, 4),
    probe("probe_convert_f16", 3, 3),
    probe("probe_convert_bf16", 3, 3),
    probe("probe_exp2", 1, 1),
    probe("probe_reciprocal", 1, 1),
    probe("probe_lane", 1, 1),
    probe("probe_shuffles", 2, 5),
];

/// Lanes of a warp, which is a block.
pub const LANES: usize = 32;
/// Blocks at most, and dynamic shared memory of each: 16 bytes a lane.
pub const BLOCKS: usize = 64;
const SHARED: u32 = 16 * LANES as u32;
/// Words at most of a lane, in or out.
const WORDS: usize = 16;

/// A device that runs probes.
pub struct Prober<D> {
    driver: D,
    arena: Arena,
}

impl<D: Driver> Prober<D> {
    pub fn new(mut driver: D) -> Result<Prober<D>> {
        let room = BLOCKS * LANES * WORDS * 4;
        let bytes = 2 * room + driver.workspace_bytes();
        let start = driver.allocate(bytes, 2 * room)?;
        Ok(Prober { driver, arena: Arena { start, bytes, ..Arena::default() } })
    }

    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// What the kernel makes of whole blocks of words.
    pub fn run(&mut self, probe: Probe, input: &[u32]) -> Result<Vec<u32>> {
        let blocks = input.len() / (LANES * probe.input);
        ensure!(blocks * LANES * probe.input == input.len(), "{} words are no whole blocks of {}", input.len(), probe.kernel);
        ensure!((1..=BLOCKS).contains(&blocks), "{blocks} blocks of {}", probe.kernel);
        let view = |half: usize, words: usize| {
            let cols = blocks * LANES * words;
            View { buffer: ARENA, offset: half * BLOCKS * LANES * WORDS * 4, rows: 1, cols, stride: cols, dtype: DType::I32 }
        };
        let (from, to) = (view(0, probe.input), view(1, probe.output));
        self.driver.write(self.arena.address(from), bytemuck::cast_slice(input))?;
        let mut arguments = Arguments::new(self.arena).vector(DType::I32, from).vector(DType::I32, to);
        let launch = Launch { kernel: probe.kernel, grid: [blocks as u32, 1, 1], block: [LANES as u32, 1, 1], shared: SHARED };
        // SAFETY: the kernel's two pointers, to as many words as its blocks read and write.
        unsafe { self.driver.launch(launch, &mut arguments)? };
        let mut output = vec![0; to.len()];
        self.driver.read(self.arena.address(to), bytemuck::cast_slice_mut(&mut output))?;
        Ok(output)
    }
}
