//! From `--device` to a backend.

use super::terminal::Terminal;
use super::values::{Device, StepRange};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::{self, Cuda, Driver};
use crate::backend::{Backend, DType, Machine, Sizing, watch};
use crate::checkpoint::FrozenModel;
use crate::model::Slot;
use crate::usage;
use anyhow::Result;

/// The backends that this build has, for `--version`.
pub fn backends() -> String {
    match cuda::architectures() {
        Some(architectures) => format!("cpu, cuda ({architectures})"),
        None => "cpu (built without nvcc, so without cuda)".to_string(),
    }
}

/// Refuses a device that this build has no code for (a usage error) and one that is not here.
pub fn check(device: Device) -> Result<()> {
    let Device::Cuda(ordinal) = device else { return Ok(()) };
    if cuda::architectures().is_none() {
        usage!("--device {device}: this program was built without nvcc; build it where `make` finds or fetches one, or use --device cpu");
    }
    cuda::Gpu::check(ordinal)
}

/// Refuses to profile steps on a device that is known to be no GPU; a usage error.
pub fn check_profiling(steps: Option<StepRange>, device: Option<Device>) -> Result<()> {
    if let (Some(steps), Some(Device::Cpu)) = (steps, device) {
        usage!("--profile-steps {steps}: a CUDA profiler sees nothing of the CPU; use --device cuda");
    }
    Ok(())
}

/// The device that `auto` stands for: the first GPU where there is one. A GPU that cannot be used is warned of.
pub fn resolve(device: Device, terminal: &Terminal) -> Result<Device> {
    check(device)?;
    if device != Device::Auto {
        return Ok(device);
    }
    match cuda::Gpu::count() {
        Ok(0) => {}
        Ok(_) if cuda::architectures().is_some() => return Ok(Device::Cuda(0)),
        Ok(_) => terminal.warn("this machine has a GPU, but this build has no kernels for it, because there was no nvcc; using the CPU"),
        Err(error) => terminal.warn(format!("the GPU is not used: {error:#}")),
    }
    Ok(Device::Cpu)
}

/// The 16-bit type that a checkpoint's is computed in on a GPU.
pub fn half(file: DType) -> DType {
    if file == DType::BF16 { DType::BF16 } else { DType::F16 }
}

/// Opens a device for a model: on a GPU activations are fp16, or bf16 where the checkpoint is.
pub fn open(device: Device, model: &FrozenModel, terminal: &Terminal) -> Result<Box<dyn Backend>> {
    open_for(device, half(model.dtype(Slot::WordEmbedding)?), terminal)
}

/// Opens a device for activations of a 16-bit type; the CPU computes in fp32 all the same.
pub fn open_for(device: Device, activation: DType, terminal: &Terminal) -> Result<Box<dyn Backend>> {
    Ok(watch::for_profilers(open_as(resolve(device, terminal)?, activation, 0)?))
}

/// The same, of a device that `auto` was resolved to. `order` is an emulated device's order of threads.
pub fn open_as(device: Device, activation: DType, order: u32) -> Result<Box<dyn Backend>> {
    // A GPU's order is its own.
    let _ = order;
    match device {
        Device::Cuda(ordinal) => Ok(Box::new(Cuda::new(cuda::Device::open(ordinal)?, activation)?)),
        #[cfg(feature = "emulation")]
        Device::Emulated => Ok(Box::new(Cuda::new(cuda::Emulated::with_timing(order, cuda::Timing::of_environment()?), activation)?)),
        Device::Auto | Device::Cpu => Ok(Box::new(Cpu::<f32>::new())),
    }
}

/// What a CUDA context with this program's kernels and cuBLAS takes of a GPU's memory, where nobody measured it.
pub const ASSUMED_CONTEXT: usize = 512 << 20;

/// What the memory plan of a run on a device asks, without opening it; and what a CUDA context takes beside the plan.
pub fn sizing(device: Device, model: &FrozenModel) -> Result<(Box<dyn Sizing>, usize)> {
    Ok(match device {
        Device::Auto | Device::Cpu => (Box::new(Cpu::<f32>::new()), 0),
        _ => (Box::new(cuda::Absent::new(half(model.dtype(Slot::WordEmbedding)?))), ASSUMED_CONTEXT),
    })
}

/// What runs single instructions.
pub enum Prober {
    Gpu(Box<cuda::Prober<cuda::Device>>),
    #[cfg(feature = "emulation")]
    Emulated(cuda::Prober<cuda::Emulated>),
}

impl Prober {
    pub fn run(&mut self, probe: cuda::Probe, input: &[u32]) -> Result<Vec<u32>> {
        match self {
            Prober::Gpu(prober) => prober.run(probe, input),
            #[cfg(feature = "emulation")]
            Prober::Emulated(prober) => prober.run(probe, input),
        }
    }

    pub fn machine(&self) -> Machine {
        match self {
            Prober::Gpu(prober) => prober.driver().machine(),
            #[cfg(feature = "emulation")]
            Prober::Emulated(prober) => prober.driver().machine(),
        }
    }
}

/// What runs single instructions on a device; None for the CPU.
pub fn prober(device: Device) -> Result<Option<Prober>> {
    Ok(match device {
        Device::Cuda(ordinal) => Some(Prober::Gpu(Box::new(cuda::Prober::new(cuda::Device::open(ordinal)?)?))),
        #[cfg(feature = "emulation")]
        Device::Emulated => Some(Prober::Emulated(cuda::Prober::new(cuda::Emulated::new(0))?)),
        Device::Auto | Device::Cpu => None,
    })
}
