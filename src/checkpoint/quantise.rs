//! Frozen matrices in 8 bits: each row as whole numbers of its own step, the row's largest magnitude / 127. Made on the
//! host, from the numbers of the file, so that every backend gets the same bits.

use super::narrow::{NotFinite, narrow};
use crate::backend::DType;
use anyhow::{Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How the matrices of the layers are kept. Unlike a memory mode it changes results, so an adapter remembers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WeightFormat {
    /// 16 bits: fp16, or bf16 where the checkpoint is.
    #[default]
    Fp16,
    /// 8 bits and a factor a row.
    Int8,
}

impl WeightFormat {
    /// As options name it.
    pub fn name(self) -> &'static str {
        match self {
            WeightFormat::Fp16 => "fp16",
            WeightFormat::Int8 => "int8",
        }
    }
}

/// The largest whole number of a step: one a side, so that the steps are the same on both.
const MOST: f32 = 127.0;

/// Rows of a matrix: value (n, k) is about scales\[n\] * values\[n, k\], off by half a step scales\[n\] at most.
pub struct QuantisedRows {
    /// \[rows, width\].
    pub values: Vec<i8>,
    /// One a row; 0 of a row of zeros.
    pub scales: Vec<f32>,
}

/// Little-endian rows of `width` numbers of a weight type, to nearest, ties to even. A value that is not finite, or that the
/// 16-bit type `used` (in which products will read the matrix) cannot hold, is an error that names the tensor.
pub fn quantise(tensor: &str, bytes: &[u8], from: DType, width: usize, used: DType) -> Result<QuantisedRows> {
    if !matches!(from, DType::F16 | DType::BF16 | DType::F32) {
        bail!("tensor {tensor} is {}, not a weight type", from.name());
    }
    let rows = bytes.len() / from.size() / width;
    let (mut values, mut scales) = (vec![0; rows * width], vec![0.0; rows]);
    let rows = values.par_chunks_mut(width).zip(&mut scales).zip(bytes.par_chunks(width * from.size()));
    let row = |numbers: &mut Vec<f32>, ((values, scale), bytes): ((&mut [i8], &mut f32), &[u8])| {
        widen(bytes, from, numbers);
        let largest = numbers.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        *scale = quantise_row(numbers, largest, values);
        numbers.iter().all(|value| value.is_finite()) && holds(used, largest)
    };
    let all_fit = rows.map_init(|| vec![0.0; width], row).reduce(|| true, |a, b| a & b);
    if !all_fit {
        // Finds the value and says what is wrong with it.
        narrow(tensor, bytes, from, used, NotFinite::Refuse)?;
        bail!("tensor {tensor} holds a value that {} cannot", used.name());
    }
    Ok(QuantisedRows { values, scales })
}

/// The row's step.
fn quantise_row(numbers: &[f32], largest: f32, values: &mut [i8]) -> f32 {
    let scale = largest / MOST;
    // Also where the step is too small for fp32, and where there is none.
    if scale > 0.0 && scale.is_finite() {
        for (value, number) in values.iter_mut().zip(numbers) {
            *value = (number / scale).round_ties_even().clamp(-MOST, MOST) as i8;
        }
    }
    scale
}

fn holds(dtype: DType, value: f32) -> bool {
    match dtype {
        DType::BF16 => bf16::from_f32(value).is_finite(),
        _ => f16::from_f32(value).is_finite(),
    }
}

fn widen(bytes: &[u8], from: DType, numbers: &mut [f32]) {
    match from {
        DType::F16 => {
            let halves: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            halves.convert_to_f32_slice(numbers);
        }
        DType::BF16 => bytes.chunks_exact(2).zip(numbers).for_each(|(b, number)| *number = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        _ => bytes.chunks_exact(4).zip(numbers).for_each(|(b, number)| *number = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn rows(values: &[f32], width: usize) -> QuantisedRows {
        quantise("w", &bytes(values), DType::F32, width, DType::F16).unwrap()
    }

    #[test]
    fn every_value_is_within_half_a_step() {
        let width = 257;
        let values: Vec<f32> = (0..5 * width).map(|i| (i as f32 * 0.731).sin() * 10f32.powi((i / width) as i32 - 3)).collect();
        let found = rows(&values, width);
        for (row, (values, narrow)) in values.chunks(width).zip(found.values.chunks(width)).enumerate() {
            let scale = f64::from(found.scales[row]);
            let largest = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            assert_eq!(found.scales[row], largest / 127.0);
            assert!(narrow.iter().any(|value| value.unsigned_abs() == 127));
            for (&value, &narrow) in values.iter().zip(narrow) {
                // The quotient is rounded in fp32, a few millionths of a step beside the half.
                let off = (f64::from(value) - scale * f64::from(narrow)).abs();
                assert!(off <= scale * 0.50001, "{value} became {narrow} of {scale}");
            }
        }
    }

    #[test]
    fn ties_go_to_even_and_rows_of_zeros_stay() {
        let found = rows(&[127.0, 0.5, 1.5, -2.5, 0.0, 0.0, -0.0, 0.0], 4);
        assert_eq!((found.values, found.scales), (vec![127, 0, 2, -2, 0, 0, 0, 0], vec![1.0, 0.0]));
        // A step that fp32 rounds to nothing.
        assert_eq!(rows(&[1e-45, 0.0], 2).values, [0, 0]);
    }

    #[test]
    fn every_weight_type_is_read() {
        let values = [0.5_f32, -1.0, 0.25, 0.0];
        let half: Vec<u8> = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        let brain: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        for (bytes, dtype) in [(bytes(&values), DType::F32), (half, DType::F16), (brain, DType::BF16)] {
            let found = quantise("w", &bytes, dtype, 2, DType::F16).unwrap();
            assert_eq!((found.values, found.scales), (vec![64, -127, 127, 0], vec![1.0 / 127.0, 0.25 / 127.0]));
        }
        assert!(quantise("w", &[0; 8], DType::I32, 2, DType::F16).is_err());
    }

    #[test]
    fn what_does_not_fit_names_its_tensor() {
        let message = |value: f32, used| quantise("layer.weight", &bytes(&[1.0, value]), DType::F32, 2, used).err().map(|e| e.to_string());
        for value in [f32::NAN, f32::INFINITY] {
            let text = message(value, DType::BF16).unwrap();
            assert!(text.contains("layer.weight") && text.contains("damaged"), "{text}");
        }
        assert!(message(70000.0, DType::F16).unwrap().contains("layer.weight holds 70000"));
        assert!(message(70000.0, DType::BF16).is_none());
    }
}
