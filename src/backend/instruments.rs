//! What measurements and profilers ask of a backend beside its operations: points in time, names of what runs, and what
//! the machine is. None of it changes a result.

use anyhow::Result;
use std::fmt;

/// A point in a backend's queue: the moment when everything queued before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub usize);

/// A kernel, and the mark behind its launch.
pub type Launched = (&'static str, Mark);

/// What computes, for records of measurements. What a machine does not tell is None.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Machine {
    pub device: String,
    /// Threads that compute; of a CPU.
    pub threads: Option<usize>,
    /// "9.0"; of a GPU, as everything below.
    pub compute_capability: Option<String>,
    pub multiprocessors: Option<usize>,
    /// Release of the driver, and the CUDA version that it is for.
    pub driver: Option<String>,
    pub cuda: Option<String>,
    pub memory_bytes: Option<usize>,
    /// Bytes of its memory that are in use, by whomever, at the moment.
    pub memory_used_bytes: Option<usize>,
}

/// A stretch of a training step, by what the engine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Counted from 0, as the engine does; named from 1, as runs do.
    Step(u64),
    Batch,
    Forward,
    Backward,
    Embedding,
    Layer(usize),
    /// Pooling, output layer, loss, and their backward.
    Head,
    /// The projection's gradients, clipping, the update.
    Optimizer,
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Step(step) => write!(formatter, "step {}", step + 1),
            Scope::Batch => formatter.write_str("batch"),
            Scope::Forward => formatter.write_str("forward"),
            Scope::Backward => formatter.write_str("backward"),
            Scope::Embedding => formatter.write_str("embedding"),
            Scope::Layer(layer) => write!(formatter, "layer {}", layer + 1),
            Scope::Head => formatter.write_str("head"),
            Scope::Optimizer => formatter.write_str("optimizer"),
        }
    }
}

pub trait Instruments {
    fn machine(&self) -> Machine;

    fn mark(&mut self) -> Mark;

    /// Seconds from one mark to a later one; waits for it. NaN on a backend that has failed.
    fn seconds_between(&mut self, from: Mark, to: Mark) -> f64;

    /// Marks made so far are no longer asked for; their room is used again.
    fn forget_marks(&mut self);

    /// Whether every launch is followed by a mark from now on. A backend whose operations are of one piece has none.
    fn log_launches(&mut self, _on: bool) {}

    /// The launches since the last call.
    fn launches(&mut self) -> Vec<Launched> {
        Vec::new()
    }

    /// Starts or stops a profiler that waits to be told (`nsys profile -c cudaProfilerApi`), once all that was queued
    /// before is done. An error where there is nothing that such a profiler sees.
    fn profiler(&mut self, on: bool) -> Result<()>;

    /// What comes until [`Instruments::leave`] belongs to a scope. Scopes nest.
    fn enter(&mut self, _scope: Scope) {}

    fn leave(&mut self) {}
}
