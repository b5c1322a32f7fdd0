//! A run: configuration, the training loop, evaluation, schedule, and what is recorded of it.

mod base;
pub mod bench;
pub mod convert;
mod cut;
pub mod device;
pub mod evaluate;
mod folder;
pub mod interrupt;
pub mod memory;
mod options;
mod pipeline;
pub mod plan;
pub mod prepare;
mod record;
mod report;
mod schedule;
pub mod scoring;
mod settings;
pub mod spelling;
mod state;
pub mod terminal;
mod train;
mod trainer;
mod values;

pub use base::BaseOptions;
pub use options::TrainOptions;
pub use schedule::{LearningRate, Schedule};
pub use settings::{DEFAULT_DOC_STRIDE, Settings, check_size, default_max_length};
pub use train::{Outcome, train};
pub use values::{ByteSize, DataOrder, Device, Every, LabelWords, LayerSet, Method, Offset, PrefixStart, StepRange, Warmup};
