//! Files: memory-mapped checkpoints of frozen models, adapters in PEFT's layout, and training checkpoints. Nothing here
//! knows of tasks' data, of the engine or of the terminal.

mod adapter;
mod atomic;
mod convert;
mod frozen;
mod heads;
mod host;
mod mapped;
mod metadata;
mod narrow;
mod peft;
mod quantise;
mod shards;
mod source;
mod stream;
mod strided;
mod synthetic;
mod torch;
mod training;

pub use adapter::{Adapter, Export, POOLER, PREFIX};
pub use atomic::write_atomically;
pub use convert::{Conversion, copy_companions, refuse_weights};
pub use frozen::{FrozenModel, Survey, Weights, survey};
pub use host::HostTensor;
pub use mapped::Tensor;
pub use metadata::{Metadata, is_name};
pub use narrow::{NotFinite, narrow};
pub use quantise::{QuantisedRows, WeightFormat, quantise};
pub use shards::Checkpoint;
pub use source::Source;
pub use stream::StateTensors;
pub use training::{
    TrainingState, latest_checkpoint, read_checkpoint, remove_checkpoint, remove_leftovers, restore_tensors, write_checkpoint,
};
