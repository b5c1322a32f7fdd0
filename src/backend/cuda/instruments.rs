//! Marks are events on the stream, numbered from 0 and used again once forgotten.

use super::{Cuda, Driver};
use crate::backend::{Instruments, Launched, Machine, Mark};
use anyhow::Result;

/// What [`Instruments`] keeps in a backend.
#[derive(Default)]
pub struct Record {
    marks: usize,
    /// Whether launches are logged, and those since they were last asked for.
    logs: bool,
    launches: Vec<Launched>,
}

impl<D: Driver> Cuda<D> {
    /// After a launch.
    pub(super) fn log(&mut self, kernel: &'static str) {
        if self.record.logs {
            let mark = self.mark();
            self.record.launches.push((kernel, mark));
        }
    }
}

impl<D: Driver> Instruments for Cuda<D> {
    fn machine(&self) -> Machine {
        self.driver.machine()
    }

    fn mark(&mut self) -> Mark {
        let event = self.record.marks;
        self.record.marks += 1;
        self.attempt(|driver| driver.record(event));
        Mark(event)
    }

    fn seconds_between(&mut self, from: Mark, to: Mark) -> f64 {
        let mut seconds = f64::NAN;
        self.attempt(|driver| {
            seconds = driver.seconds_between(from.0, to.0)?;
            Ok(())
        });
        seconds
    }

    fn forget_marks(&mut self) {
        self.record.marks = 0;
        self.record.launches.clear();
    }

    fn log_launches(&mut self, on: bool) {
        self.record.logs = on;
    }

    fn launches(&mut self) -> Vec<Launched> {
        std::mem::take(&mut self.record.launches)
    }

    fn profiler(&mut self, on: bool) -> Result<()> {
        self.driver.profiler(on)
    }
}
