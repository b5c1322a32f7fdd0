//! ptune: P-Tuning v2 (deep prompt tuning) as a from-scratch engine. `ARCHITECTURE.md` is the map.

pub mod backend;
pub mod bytes;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod engine;
pub mod error;
pub mod metric;
pub mod model;
pub mod names;
pub mod run;
pub mod selftest;
pub mod task;
