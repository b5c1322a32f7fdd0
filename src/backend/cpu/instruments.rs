//! Marks are the clock's: operations run at once.

use super::{Cpu, Number};
use crate::backend::{Instruments, Machine, Mark};
use anyhow::{Result, bail};
use std::time::Instant;

/// The processor by its own name.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    name.map_or_else(|| "cpu".to_string(), |name| name.trim().to_string())
}

impl<T: Number> Instruments for Cpu<T> {
    fn machine(&self) -> Machine {
        Machine { device: processor(), threads: Some(self.workers.threads), ..Machine::default() }
    }

    fn mark(&mut self) -> Mark {
        self.marks.push(Instant::now());
        Mark(self.marks.len() - 1)
    }

    fn seconds_between(&mut self, from: Mark, to: Mark) -> f64 {
        self.marks[to.0].duration_since(self.marks[from.0]).as_secs_f64()
    }

    fn forget_marks(&mut self) {
        self.marks.clear();
    }

    fn profiler(&mut self, _: bool) -> Result<()> {
        bail!("a CUDA profiler sees nothing of the CPU: use --device cuda")
    }
}
