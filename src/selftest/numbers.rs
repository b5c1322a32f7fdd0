//! Numbers of every element type, on the host.

use crate::backend::DType;
use half::{bf16, f16};

/// To the nearest number of a type, as a number.
pub fn rounded(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(value).to_f64(),
        DType::BF16 => bf16::from_f64(value).to_f64(),
        DType::F32 => f64::from(value as f32),
        DType::I32 => f64::from(value as i32),
        DType::I8 => f64::from(value as i8),
        DType::F64 => value,
    }
}

/// Half a unit in the last place of numbers up to 1.
pub fn step(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

/// Numbers as a buffer's bytes.
pub fn to_bytes(dtype: DType, values: impl Iterator<Item = f64>) -> Vec<u8> {
    match dtype {
        DType::F16 => values.flat_map(|value| f16::from_f64(value).to_le_bytes()).collect(),
        DType::BF16 => values.flat_map(|value| bf16::from_f64(value).to_le_bytes()).collect(),
        DType::F32 => values.flat_map(|value| (value as f32).to_le_bytes()).collect(),
        DType::F64 => values.flat_map(f64::to_le_bytes).collect(),
        DType::I32 => values.flat_map(|value| (value as i32).to_le_bytes()).collect(),
        DType::I8 => values.flat_map(|value| (value as i8).to_le_bytes()).collect(),
    }
}

/// Numbers of a type, as numbers.
pub fn from_bytes(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f64()).collect(),
        DType::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f64()).collect(),
        DType::F32 => bytes.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
        DType::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
        DType::I32 => bytes.as_chunks().0.iter().map(|&b| f64::from(i32::from_le_bytes(b))).collect(),
        DType::I8 => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
    }
}
