//! The backend's part of the arena: the workspace of matrix products, and what an operation of several launches keeps
//! between them: partial sums of reductions, and the prefix as attention's sequences see it. Only one operation is under way
//! at a time, so they share their memory.

use super::attention;
use super::training;
use crate::backend::{DType, ScratchNeed, View};
use anyhow::Result;

const ALIGNMENT: usize = 256;

#[derive(Clone, Copy, Default)]
pub struct Scratch {
    /// What is behind the workspace, fp32.
    partial: Option<View>,
}

impl Scratch {
    /// Errors: a shape that there is no kernel for.
    pub fn bytes(workspace: usize, need: &ScratchNeed) -> Result<usize> {
        attention::supports(need.head_dim, need.relative)?;
        let elements = attention::scratch_elements(need).max(training::partial_elements(need));
        Ok(workspace.next_multiple_of(ALIGNMENT) + elements * DType::F32.size())
    }

    pub fn describe(workspace: usize) -> String {
        format!(
            "{:.1} MiB of workspace of matrix products, partial sums of reductions, and attention's prefix",
            workspace as f64 / f64::from(1 << 20)
        )
    }

    /// `whole` is the region that [`Scratch::bytes`] asked for; the workspace is its start.
    pub fn new(workspace: usize, whole: View) -> Scratch {
        let (workspace, bytes) = (workspace.next_multiple_of(ALIGNMENT), whole.len() * whole.dtype.size());
        let elements = bytes.saturating_sub(workspace) / DType::F32.size();
        let (offset, rows) = (whole.offset + workspace, 1);
        Scratch { partial: Some(View { offset, rows, cols: elements, stride: elements, dtype: DType::F32, ..whole }) }
    }

    fn all(&self) -> View {
        self.partial.expect("the arena is allocated before anything runs")
    }

    /// Room for partial sums, as rows.
    pub fn rows(&self, rows: usize, cols: usize) -> View {
        self.rows_behind(None, rows, cols)
    }

    /// The same behind what is there already.
    pub fn rows_behind(&self, first: Option<View>, rows: usize, cols: usize) -> View {
        let all = self.all();
        let taken = first.map_or(0, |first| (first.end() - all.offset).div_ceil(DType::F32.size()));
        all.col_range(taken, rows * cols).reshape(rows, cols)
    }

    /// The start, as rows of another type.
    pub fn start_as(&self, dtype: DType, rows: usize, cols: usize) -> View {
        let all = self.all();
        let view = View { offset: all.offset, rows, cols, stride: cols, dtype, ..all };
        assert!(view.end() <= all.end(), "{rows} rows of {cols} are more than the scratch that was planned");
        view
    }
}
