//! One test binary: golden bundles of the reference software, finite differences, whole runs of the program.

mod bad_input;
mod bad_values;
mod bundle;
mod command;
mod failures;
mod golden;
mod gradients;
mod invariants;
mod memory;
mod place;
mod program;
mod resume;
