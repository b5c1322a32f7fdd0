//! From `--device` to a backend.

use super::values::Device;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::usage;
use anyhow::Result;

/// The backends that this build has.
pub const BACKENDS: &[&str] = &["cpu"];

/// The device that `auto` stands for; a usage error for one that this build cannot use.
pub fn resolve(device: Device) -> Result<Device> {
    match device {
        Device::Auto | Device::Cpu => Ok(Device::Cpu),
        Device::Cuda(_) => usage!("--device {device}: this build has no CUDA backend; use --device cpu"),
    }
}

/// Opens a device.
pub fn open(device: Device) -> Result<Box<dyn Backend>> {
    resolve(device)?;
    Ok(Box::new(Cpu::<f32>::new()))
}
