//! One test binary: golden bundles of the reference software, finite differences, whole runs of the program.

mod bundle;
mod golden;
mod gradients;
mod invariants;
#[cfg(feature = "emulation")]
mod kernels;
