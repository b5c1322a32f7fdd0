//! The backend's part of the arena: the workspace of matrix products, and partial sums of the reductions that are made
//! in two launches. Only one reduction is under way at a time, so they share their memory.

use super::attention;
use super::training;
use crate::backend::{DType, ScratchNeed, View};
use anyhow::Result;

const ALIGNMENT: usize = 256;

#[derive(Clone, Copy, Default)]
pub struct Scratch {
    /// All partial sums, fp32.
    partial: Option<View>,
}

impl Scratch {
    /// Errors: a shape that there is no kernel for.
    pub fn bytes(workspace: usize, need: &ScratchNeed) -> Result<usize> {
        attention::supports(need.head_dim, need.relative)?;
        let elements = attention::partial_elements(need).max(training::partial_elements(need));
        Ok(workspace.next_multiple_of(ALIGNMENT) + elements * DType::F32.size())
    }

    pub fn describe(workspace: usize) -> String {
        format!("{:.1} MiB of workspace of matrix products, and partial sums of reductions", workspace as f64 / f64::from(1 << 20))
    }

    /// `whole` is the region that [`Scratch::bytes`] asked for; the workspace is its start.
    pub fn new(workspace: usize, whole: View) -> Scratch {
        let (workspace, bytes) = (workspace.next_multiple_of(ALIGNMENT), whole.len() * whole.dtype.size());
        let elements = bytes.saturating_sub(workspace) / DType::F32.size();
        let (offset, rows) = (whole.offset + workspace, 1);
        Scratch { partial: Some(View { offset, rows, cols: elements, stride: elements, dtype: DType::F32, ..whole }) }
    }

    /// Room for partial sums, as rows.
    pub fn rows(&self, rows: usize, cols: usize) -> View {
        let all = self.partial.expect("the arena is allocated before anything runs");
        all.col_range(0, rows * cols).reshape(rows, cols)
    }
}
