//! One test binary: golden bundles of the reference software, finite differences, whole runs of the program.

mod bad_input;
mod bad_values;
mod bench;
mod bundle;
mod command;
mod convert;
mod disk;
mod failures;
mod golden;
mod gradients;
mod invariants;
#[cfg(feature = "emulation")]
mod kernels;
mod language;
mod machine_code;
mod measured;
mod memory;
mod modes;
mod multi;
mod named;
#[cfg(feature = "emulation")]
mod on_cuda;
mod place;
mod program;
mod prompts;
mod readme;
mod recorded;
mod remedies;
mod resume;
#[cfg(feature = "emulation")]
mod stand_in;
mod sweep;
mod tags;
mod transformers;
mod weight_format;
mod words;
