//! Numbers on the host: between files, host tensors and the backend's element types.

use crate::backend::DType;
use crate::checkpoint::{NotFinite, narrow};
use anyhow::{Result, bail};
use half::{bf16, f16};

/// Elements that pass through the host at a time: bounds its memory, however large a tensor is.
pub const CHUNK: usize = 1 << 20;

/// A weight's little-endian values in a 16-bit type, rounded to nearest; a value that it cannot hold names its tensor.
pub fn round(tensor: &str, bytes: &[u8], from: DType, to: DType) -> Result<Vec<u8>> {
    narrow(tensor, bytes, from, to, NotFinite::Refuse)
}

/// A frozen vector in 16 bits (rounded there if it was fp32), widened.
pub fn widen_frozen(tensor: &str, bytes: &[u8], dtype: DType) -> Result<Vec<f64>> {
    Ok(match dtype {
        DType::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::F32 => widen_frozen(tensor, &round(tensor, bytes, DType::F32, DType::F16)?, DType::F16)?,
        DType::F64 | DType::I32 | DType::I8 => bail!("tensor {tensor} is {}, not a weight type", dtype.name()),
    })
}

/// Host numbers as a view's bytes.
pub fn to_bytes(values: &[f64], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&value| f16::from_f64(value).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&value| bf16::from_f64(value).to_le_bytes()).collect(),
        DType::F32 => values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect(),
        DType::F64 => values.iter().flat_map(|&value| value.to_le_bytes()).collect(),
        DType::I32 => values.iter().flat_map(|&value| (value as i32).to_le_bytes()).collect(),
        DType::I8 => values.iter().flat_map(|&value| (value as i8).to_le_bytes()).collect(),
    }
}

/// A view's bytes as host numbers; only the types that trainables and logits have.
pub fn from_bytes(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        DType::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])).collect(),
        DType::F16 | DType::BF16 => widen_frozen("", bytes, dtype).unwrap_or_default(),
        DType::I32 => bytes.chunks_exact(4).map(|b| f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        DType::I8 => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp16_rounds_and_refuses_what_it_cannot_hold() {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let to_f16 = |tensor, values: &[f32]| round(tensor, &bytes(values), DType::F32, DType::F16);
        let half = to_f16("w", &[1.0, 0.1, -65504.0]).expect("all fit");
        let values = widen_frozen("w", &half, DType::F16).expect("fp16");
        assert_eq!(values, [1.0, 0.099_975_585_937_5, -65504.0]);
        let error = to_f16("layer.weight", &[70000.0]).expect_err("too large");
        assert!(error.to_string().contains("layer.weight") && error.to_string().contains("70000"));
        assert!(to_f16("w", &[f32::NAN]).is_err());
        let brain = round("w", &bytes(&[70000.0, 1.0]), DType::F32, DType::BF16).expect("bf16 has fp32's range");
        assert_eq!(widen_frozen("w", &brain, DType::BF16).expect("bf16"), [70144.0, 1.0]);
        assert!(round("w", &brain, DType::BF16, DType::F16).is_err());
    }

    #[test]
    fn bytes_round_trip() {
        let values = [1.5, -2.25, 0.0];
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            assert_eq!(from_bytes(&to_bytes(&values, dtype), dtype), values);
        }
    }
}
