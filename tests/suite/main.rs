//! One test binary: golden bundles of the reference software, finite differences, whole runs of the program.

mod bad_input;
mod bundle;
mod command;
mod golden;
mod gradients;
mod invariants;
mod memory;
mod program;
mod resume;
