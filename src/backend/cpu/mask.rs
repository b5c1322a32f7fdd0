//! Dropout masks on the fly: eight draws of a run of columns at a time.

use super::real::Real;
use crate::backend::{Dropout, MASK_ROUNDS, PROBABILITY_COLUMNS, ROW_COLUMNS};

/// Draws that are computed together.
const DRAWS: usize = 8;

/// Multiplies `row` (columns `column`.. of an element row) by its mask: 0, or the scale. At `column` a draw begins.
#[inline(always)]
pub fn apply<T: Real>(row: &mut [T], dropout: Dropout, ordinal: u32, token: u32, head: u32, column: usize) {
    match dropout.columns {
        PROBABILITY_COLUMNS => apply_draws::<T, { DRAWS * PROBABILITY_COLUMNS }>(row, dropout, ordinal, token, head, column),
        _ => apply_draws::<T, { DRAWS * ROW_COLUMNS }>(row, dropout, ordinal, token, head, column),
    }
}

/// `COLUMNS`: those of `DRAWS` draws.
#[inline(always)]
fn apply_draws<T: Real, const COLUMNS: usize>(row: &mut [T], dropout: Dropout, ordinal: u32, token: u32, head: u32, column: usize) {
    debug_assert!(column.is_multiple_of(COLUMNS / DRAWS) && dropout.columns == COLUMNS / DRAWS);
    let scale = T::of(dropout.scale);
    let mut first = (column / (COLUMNS / DRAWS)) as u32;
    for chunk in row.chunks_mut(COLUMNS) {
        let bits: [u32; COLUMNS] = draws(dropout.key, first, head, token, ordinal);
        if chunk.len() == COLUMNS {
            for i in 0..COLUMNS {
                chunk[i] *= if bits[i] >= dropout.threshold { scale } else { T::ZERO };
            }
        } else {
            for (value, &bits) in chunk.iter_mut().zip(&bits) {
                *value *= if bits >= dropout.threshold { scale } else { T::ZERO };
            }
        }
        first += DRAWS as u32;
    }
}

/// The bits of the columns of draws `first..first + DRAWS`, as [`Dropout::bits`] has them; [`crate::backend::philox`] in lanes.
#[inline(always)]
fn draws<const COLUMNS: usize>(key: [u32; 2], first: u32, head: u32, token: u32, ordinal: u32) -> [u32; COLUMNS] {
    let [mut k0, mut k1] = key;
    let mut c0: [u32; DRAWS] = std::array::from_fn(|i| first.wrapping_add(i as u32));
    let (mut c1, mut c2, mut c3) = ([head; DRAWS], [token; DRAWS], [ordinal; DRAWS]);
    for _ in 0..MASK_ROUNDS {
        for i in 0..DRAWS {
            let p0 = u64::from(c0[i]) * 0xD251_1F53;
            let p1 = u64::from(c2[i]) * 0xCD9E_8D57;
            c0[i] = (p1 >> 32) as u32 ^ c1[i] ^ k0;
            c1[i] = p1 as u32;
            c2[i] = (p0 >> 32) as u32 ^ c3[i] ^ k1;
            c3[i] = p0 as u32;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    let mut bits = [0; COLUMNS];
    let (of_word, width) = (COLUMNS / DRAWS / 4, 128 * DRAWS / COLUMNS);
    for i in 0..DRAWS {
        for (number, word) in [c0[i], c1[i], c2[i], c3[i]].into_iter().enumerate() {
            for part in 0..of_word {
                bits[(4 * i + number) * of_word + part] = word << (32 - width - part * width);
            }
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::philox;

    fn lanes_equal<const COLUMNS: usize>() {
        let bits: [u32; COLUMNS] = draws([7, 9], 5, 3, 2, 11);
        let columns = COLUMNS / DRAWS;
        for (i, chunk) in bits.chunks(columns).enumerate() {
            let draw = philox::<MASK_ROUNDS>([7, 9], [5 + i as u32, 3, 2, 11]);
            let expected: Vec<u32> = (0..columns).map(|column| Dropout::bits(columns, draw, column)).collect();
            assert_eq!(chunk, expected);
        }
    }

    #[test]
    fn lanes_equal_the_scalar_generator() {
        lanes_equal::<{ DRAWS * ROW_COLUMNS }>();
        lanes_equal::<{ DRAWS * PROBABILITY_COLUMNS }>();
    }

    /// An element's mask depends on its own coordinates only, not on the run of columns it is computed in.
    #[test]
    fn runs_agree_and_keep_the_right_share() {
        for dropout in [Dropout::new(0.1, [1, 2]), Dropout::of_probabilities(0.1, [1, 2])] {
            let dropout = dropout.expect("a rate above zero");
            let mut whole = vec![1.0_f32; 10_000];
            apply(&mut whole, dropout, 4, 3, 2, 0);
            let mut part = vec![1.0_f32; 77];
            apply(&mut part, dropout, 4, 3, 2, 1248);
            assert_eq!(part, whole[1248..1325]);
            let kept = whole.iter().filter(|&&value| value > 0.0).count() as f64 / 1e4;
            // Five standard deviations of a binomial share of the rate that there is.
            let rate = 1.0 - 1.0 / dropout.scale;
            assert!((kept - (1.0 - rate)).abs() < 5.0 * (rate * (1.0 - rate) / 1e4).sqrt(), "{kept}");
            assert!(whole.iter().all(|&value| value == 0.0 || value == dropout.scale as f32));
        }
    }
}
