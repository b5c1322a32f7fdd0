//! Files: memory-mapped checkpoints of frozen models, adapters in PEFT's layout, and training checkpoints. Nothing here
//! knows of tasks' data, of the engine or of the terminal.

mod adapter;
mod atomic;
mod frozen;
mod host;
mod mapped;
mod metadata;
mod peft;
mod shards;
mod stream;
mod synthetic;
mod training;

pub use adapter::{Adapter, Export, POOLER, PREFIX};
pub use atomic::write_atomically;
pub use frozen::{FrozenModel, Source};
pub use host::HostTensor;
pub use mapped::Tensor;
pub use metadata::Metadata;
pub use shards::Checkpoint;
pub use stream::StateTensors;
pub use training::{TrainingState, latest_checkpoint, read_checkpoint, remove_checkpoint, restore_tensors, write_checkpoint};
