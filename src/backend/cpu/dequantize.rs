//! 8-bit matrices to 16 bits.

use super::memory::Matrix;
use super::parallel_rows;

/// out\[n, k\] = scales\[n\] * weight\[n, k\] in fp32, rounded by `round`.
pub fn dequantize<E: Copy + Send + Sync>(weight: Matrix<i8>, scales: &[f32], out: Matrix<E>, round: impl Fn(f32) -> E + Sync + Send) {
    assert!(scales.len() == weight.rows && (out.rows, out.cols) == (weight.rows, weight.cols));
    parallel_rows(weight.rows, |row| {
        let scale = scales[row];
        for (out, &weight) in out.row_mut(row).iter_mut().zip(weight.row(row)) {
            *out = round(scale * f32::from(weight));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// The bits that the operation is defined by: the product in fp32, to nearest.
    #[test]
    fn every_byte_times_its_row_is_rounded_once() {
        let weights: Vec<i8> = (0..3 * 255).map(|index| (index % 255 - 127) as i8).collect();
        let scales = [0.37 / 127.0, 0.0, 3e-7];
        let weight = Matrix { start: weights.as_ptr().cast_mut(), rows: 3, cols: 255, stride: 255 };
        let mut half = vec![f16::NAN; weights.len()];
        dequantize(weight, &scales, Matrix { start: half.as_mut_ptr(), rows: 3, cols: 255, stride: 255 }, f16::from_f32);
        let mut brain = vec![bf16::NAN; weights.len()];
        dequantize(weight, &scales, Matrix { start: brain.as_mut_ptr(), rows: 3, cols: 255, stride: 255 }, bf16::from_f32);
        for (index, &weight) in weights.iter().enumerate() {
            let exact = scales[index / 255] * f32::from(weight);
            assert!(half[index] == f16::from_f32(exact) && brain[index] == bf16::from_f32(exact));
        }
        assert!(half[255..510].iter().all(|value| value.to_f32() == 0.0));
    }
}
