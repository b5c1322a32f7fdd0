//! Filling and copying whole buffers, in pieces that threads share.

use super::memory::Matrix;
use crate::backend::{ROUNDS, philox};
use rayon::prelude::*;

/// Elements of a task: a multiple of a Philox block's four.
const PIECE: usize = 1 << 14;

/// Four standard normal numbers from a Philox block: Box and Muller's transformation of each pair of words, the first
/// as a radius. In single precision, which has more digits than the 16 bits that they end up in.
fn normals(words: [u32; 4]) -> [f32; 4] {
    // In (0, 1]: words in steps of 2^-32 from 2^-33.
    let unit = |word: u32| (word as f32).mul_add(2f32.powi(-32), 2f32.powi(-33));
    let [a, b, c, d] = words;
    let pair = |radius: u32, angle: u32| {
        let radius = (-2.0 * libm::logf(unit(radius))).sqrt();
        let (sine, cosine) = libm::sincosf(std::f32::consts::TAU * unit(angle));
        [radius * cosine, radius * sine]
    };
    let ([x, y], [z, w]) = (pair(a, b), pair(c, d));
    [x, y, z, w]
}

/// Fills a matrix of one row: see [`crate::backend::Backend::fill_normal`].
pub fn normal<E: Copy + Send + Sync>(to: Matrix<E>, key: [u32; 2], deviation: f64, round: impl Fn(f32) -> E + Sync) {
    let count = to.cols;
    (0..count.div_ceil(PIECE)).into_par_iter().for_each(|piece| {
        let (start, end) = (piece * PIECE, count.min((piece + 1) * PIECE));
        for first in (start..end).step_by(4) {
            let block = (first / 4) as u64;
            let values = normals(philox::<ROUNDS>(key, [block as u32, (block >> 32) as u32, 0, 0]));
            for (index, value) in (first..end).zip(values) {
                // SAFETY: inside the matrix; only this task writes the piece.
                unsafe { *to.at(0, index) = round(value * deviation as f32) };
            }
        }
    });
}

/// Copies bytes to a place that does not overlap them.
pub fn copy(from: Matrix<u8>, to: Matrix<u8>) {
    const BYTES: usize = 1 << 20;
    (0..from.cols.div_ceil(BYTES)).into_par_iter().for_each(|piece| {
        let (start, end) = (piece * BYTES, from.cols.min((piece + 1) * BYTES));
        // SAFETY: both have the bytes; only this task writes the piece.
        unsafe { std::ptr::copy_nonoverlapping(from.at(0, start), to.at(0, start), end - start) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(count: usize, key: [u32; 2], deviation: f64) -> Vec<f32> {
        let mut values = vec![f32::NAN; count];
        normal(Matrix { start: values.as_mut_ptr(), rows: 1, cols: count, stride: count }, key, deviation, |value| value);
        values
    }

    #[test]
    fn numbers_are_normal() {
        let count = 200_001;
        let values = fill(count, [1, 2], 0.02);
        let moment = |power: i32| values.iter().map(|&value| (f64::from(value) / 0.02).powi(power)).sum::<f64>() / count as f64;
        // Means of x, x², x³ and x⁴ within five standard errors (variances 1, 2, 15, 96).
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0_f64)] {
            let error = (moment(power) - expected).abs();
            assert!(error < 5.0 * (variance / count as f64).sqrt(), "moment {power} is off by {error}");
        }
        // Neighbours, of one pair or of two, are uncorrelated.
        for distance in [1, 2, 4] {
            let product: f64 = values.windows(distance + 1).map(|w| f64::from(w[0]) * f64::from(w[distance]) / 4e-4).sum();
            assert!((product / count as f64).abs() < 5.0 / (count as f64).sqrt(), "distance {distance}");
        }
        assert!(values.iter().all(|value| value.abs() < 0.02 * 6.8));
    }

    #[test]
    fn a_number_depends_on_its_index_and_key_alone() {
        let values = fill(3 * PIECE + 7, [1, 2], 1.0);
        assert_eq!(fill(9, [1, 2], 1.0), values[..9]);
        assert_ne!(fill(9, [1, 3], 1.0), values[..9]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("three threads");
        assert_eq!(pool.install(|| fill(3 * PIECE + 7, [1, 2], 1.0)), values);
        assert_eq!(normals(philox::<ROUNDS>([1, 2], [PIECE as u32 / 2, 0, 0, 0])), values[2 * PIECE..2 * PIECE + 4]);
    }

    #[test]
    fn copies_are_whole() {
        let from: Vec<u8> = (0..(3 << 20) + 5).map(|i: usize| (i * 31 % 251) as u8).collect();
        let mut to = vec![0; from.len()];
        let matrix = |start: *mut u8| Matrix { start, rows: 1, cols: from.len(), stride: from.len() };
        copy(matrix(from.as_ptr().cast_mut()), matrix(to.as_mut_ptr()));
        assert!(to == from);
    }
}
