//! Weights of any floating type rounded to fp16 or bf16, on all threads; a value that the narrow type cannot hold is an
//! error that names its tensor.

use crate::backend::DType;
use anyhow::{Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements that a thread takes at a time.
const BLOCK: usize = 1 << 16;
/// Elements that are converted between two checks.
const RUN: usize = 1 << 10;

/// What becomes of infinities and NaN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NotFinite {
    /// They are an error: the tensor is a weight of the model.
    Refuse,
    /// They stay what they are: nothing reads the tensor.
    Keep,
}

/// Little-endian numbers of type `from`, rounded to nearest as `to` (fp16 or bf16).
pub fn narrow(tensor: &str, bytes: &[u8], from: DType, to: DType, not_finite: NotFinite) -> Result<Vec<u8>> {
    if matches!(from, DType::I32 | DType::I8) || !matches!(to, DType::F16 | DType::BF16) {
        bail!("tensor {tensor} is {}, not a weight type", from.name());
    }
    let mut narrowed = vec![0; bytes.len() / from.size() * 2];
    let all_finite = narrowed
        .par_chunks_mut(BLOCK * 2)
        .zip(bytes.par_chunks(BLOCK * from.size()))
        .map(|(narrowed, bytes)| narrow_block(bytes, from, to, narrowed))
        .reduce(|| true, |a, b| a & b);
    if !all_finite {
        check(tensor, bytes, from, to, &narrowed, not_finite)?;
    }
    Ok(narrowed)
}

/// Finds the first value that did not fit.
fn check(tensor: &str, bytes: &[u8], from: DType, to: DType, narrowed: &[u8], not_finite: NotFinite) -> Result<()> {
    for (number, bits) in bytes.chunks_exact(from.size()).zip(narrowed.chunks_exact(2)) {
        if is_finite([bits[0], bits[1]], to) {
            continue;
        }
        let value = widen(number, from);
        if value.is_finite() {
            let (name, largest, advice) = match to {
                DType::BF16 => ("bf16", "3.39e38", "the checkpoint is damaged"),
                _ => ("fp16", "65504", "convert it with: ptune convert --dtype bf16"),
            };
            let value = if value.abs() < 1e7 { value.to_string() } else { format!("{value:e}") };
            bail!("tensor {tensor} holds {value}, more than {name} can ({largest}): {advice}");
        }
        if not_finite == NotFinite::Refuse {
            bail!("tensor {tensor} holds {value}: the checkpoint is damaged");
        }
    }
    Ok(())
}

fn widen(number: &[u8], from: DType) -> f64 {
    let bytes = |index: usize| number.get(index).copied().unwrap_or(0);
    match from {
        DType::F16 => f16::from_le_bytes([bytes(0), bytes(1)]).to_f64(),
        DType::BF16 => bf16::from_le_bytes([bytes(0), bytes(1)]).to_f64(),
        DType::F64 => f64::from_le_bytes(std::array::from_fn(bytes)),
        _ => f64::from(f32::from_le_bytes(std::array::from_fn(bytes))),
    }
}

fn is_finite(bits: [u8; 2], dtype: DType) -> bool {
    match dtype {
        DType::BF16 => bf16::from_le_bytes(bits).is_finite(),
        _ => f16::from_le_bytes(bits).is_finite(),
    }
}

/// fp64 as fp32 such that rounding the result to 16 bits is the same as rounding the value: what is not exact is cut
/// towards zero and its last bit set.
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) == value || !near.is_finite() {
        return near;
    }
    let away = f64::from(near).abs() > value.abs();
    f32::from_bits((near.to_bits() - u32::from(away)) | 1)
}

/// Converts a block; whether every result is finite.
fn narrow_block(bytes: &[u8], from: DType, to: DType, narrowed: &mut [u8]) -> bool {
    let mut finite = true;
    for (bytes, narrowed) in bytes.chunks(RUN * from.size()).zip(narrowed.chunks_mut(RUN * 2)) {
        let count = narrowed.len() / 2;
        if from == to {
            narrowed.copy_from_slice(bytes);
        } else if from == DType::F64 {
            for (number, narrowed) in bytes.chunks_exact(8).zip(narrowed.chunks_exact_mut(2)) {
                let value = to_odd(widen(number, from));
                let bits = if to == DType::BF16 { bf16::from_f32(value).to_bits() } else { f16::from_f32(value).to_bits() };
                narrowed.copy_from_slice(&bits.to_le_bytes());
            }
        } else {
            let mut wide = [0f32; RUN];
            let wide = &mut wide[..count];
            match from {
                DType::F16 => bytes.chunks_exact(2).zip(wide.iter_mut()).for_each(|(b, w)| *w = f16::from_le_bytes([b[0], b[1]]).to_f32()),
                DType::BF16 => {
                    bytes.chunks_exact(2).zip(wide.iter_mut()).for_each(|(b, w)| *w = bf16::from_le_bytes([b[0], b[1]]).to_f32())
                }
                _ => {
                    bytes.chunks_exact(4).zip(wide.iter_mut()).for_each(|(b, w)| *w = f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                }
            }
            if to == DType::BF16 {
                let mut numbers = [bf16::ZERO; RUN];
                numbers[..count].convert_from_f32_slice(wide);
                numbers.iter().zip(narrowed.chunks_exact_mut(2)).for_each(|(number, out)| out.copy_from_slice(&number.to_le_bytes()));
            } else {
                let mut numbers = [f16::ZERO; RUN];
                numbers[..count].convert_from_f32_slice(wide);
                numbers.iter().zip(narrowed.chunks_exact_mut(2)).for_each(|(number, out)| out.copy_from_slice(&number.to_le_bytes()));
            }
        }
        // The exponent's bits, all of which are set in infinities and NaN alone.
        let exponent = if to == DType::BF16 { 0x7f80 } else { 0x7c00 };
        finite &=
            narrowed.chunks_exact(2).fold(true, |finite, bits| finite & (u16::from_le_bytes([bits[0], bits[1]]) & exponent != exponent));
    }
    finite
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(values: &[f64], dtype: DType) -> Vec<u8> {
        let of = |&value: &f64| match dtype {
            DType::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
            DType::F32 => (value as f32).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(of).collect()
    }

    fn values_of(bytes: &[u8], dtype: DType) -> Vec<f64> {
        bytes.chunks_exact(dtype.size()).map(|number| widen(number, dtype)).collect()
    }

    /// The two numbers next to one of 16 bits; those of this test are normal and not the largest.
    fn neighbours(bits: u16, dtype: DType) -> [f64; 2] {
        [bits - 1, bits + 1].map(|bits| widen(&bits.to_le_bytes(), dtype))
    }

    /// More than a block and a run, with odd ends.
    #[test]
    fn every_type_is_rounded_to_nearest() {
        let values: Vec<f64> = (0..2 * BLOCK + RUN + 7).map(|index| (index as f64 * 0.37).sin() * 3.0 + 1e-4).collect();
        for from in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let bytes = bytes_of(&values, from);
            let exact = values_of(&bytes, from);
            for to in [DType::F16, DType::BF16] {
                let narrowed = narrow("w", &bytes, from, to, NotFinite::Refuse).unwrap();
                for (value, bits) in exact.iter().zip(narrowed.chunks_exact(2)) {
                    let found = widen(bits, to);
                    let off = (found - value).abs();
                    let nearest =
                        neighbours(u16::from_le_bytes([bits[0], bits[1]]), to).into_iter().all(|other| off <= (other - value).abs());
                    assert!(nearest, "{} to {}: {value} became {found}", from.name(), to.name());
                }
            }
        }
    }

    #[test]
    fn fp64_is_rounded_once() {
        let rounded = |value: f64, to| values_of(&narrow("w", &value.to_le_bytes(), DType::F64, to, NotFinite::Refuse).unwrap(), to)[0];
        let half = f64::exp2(-11.0);
        // Ties go to even, and the least bit beyond one decides otherwise; by way of fp32 it would be lost.
        for (value, expected) in [
            (1.0 + half, 1.0),
            (1.0 + half + f64::exp2(-40.0), 1.0 + 2.0 * half),
            (1.0 + 3.0 * half, 1.0 + 4.0 * half),
            (1.0 + 3.0 * half - f64::exp2(-40.0), 1.0 + 2.0 * half),
        ] {
            assert_eq!(rounded(value, DType::F16), expected, "{value}");
            assert_eq!(rounded(-value, DType::F16), -expected, "{value}");
        }
        assert_eq!(rounded(1.0 + f64::exp2(-8.0) + f64::exp2(-45.0), DType::BF16), 1.0078125);
        assert_eq!(rounded(1e-300, DType::BF16), 0.0);
    }

    #[test]
    fn what_does_not_fit_names_its_tensor() {
        let message = |values: &[f64], from, to, not_finite| {
            let mut all = vec![0.5; BLOCK + 3];
            all.extend(values);
            narrow("layer.weight", &bytes_of(&all, from), from, to, not_finite).err().map(|error| error.to_string())
        };
        for from in [DType::BF16, DType::F32, DType::F64] {
            let text = message(&[-70000.0, 1.0], from, DType::F16, NotFinite::Keep).unwrap();
            assert!(text.contains("layer.weight") && text.contains("holds -70") && text.contains("--dtype bf16"), "{text}");
            assert_eq!(message(&[-70000.0], from, DType::BF16, NotFinite::Refuse), None);
        }
        assert!(message(&[1e300], DType::F64, DType::BF16, NotFinite::Keep).unwrap().contains("damaged"));
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for from in [DType::F16, DType::F32] {
                let text = message(&[value], from, DType::F16, NotFinite::Refuse).unwrap();
                assert!(text.contains("layer.weight") && text.contains("damaged"), "{text}");
                assert_eq!(message(&[value], from, DType::F16, NotFinite::Keep), None);
            }
        }
        assert!(narrow("w", &[0; 4], DType::I32, DType::F16, NotFinite::Keep).is_err());
        assert!(narrow("w", &[0; 4], DType::F32, DType::F32, NotFinite::Keep).is_err());
    }
}
