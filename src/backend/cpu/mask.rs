//! Dropout masks on the fly: the draws of a run of columns, eight at a time.

use super::real::Real;
use crate::backend::{DRAWN, Dropout, MASK_ROUNDS};

/// Draws that are computed together.
const DRAWS: usize = 8;
/// Columns that they decide.
const COLUMNS: usize = DRAWS * DRAWN;

/// Multiplies `row` (columns `column`.. of an element row) by its mask: 0, or the scale. `column` is a multiple of eight.
#[inline(always)]
pub fn apply<T: Real>(row: &mut [T], dropout: Dropout, ordinal: u32, token: u32, head: u32, column: usize) {
    debug_assert!(column.is_multiple_of(DRAWN));
    let scale = T::of(dropout.scale);
    let mut first = (column / DRAWN) as u32;
    for chunk in row.chunks_mut(COLUMNS) {
        let bits = draws(dropout.key, first, head, token, ordinal);
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
fn draws(key: [u32; 2], first: u32, head: u32, token: u32, ordinal: u32) -> [u32; COLUMNS] {
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
    for i in 0..DRAWS {
        for (number, word) in [c0[i], c1[i], c2[i], c3[i]].into_iter().enumerate() {
            bits[DRAWN * i + 2 * number] = word << 16;
            bits[DRAWN * i + 2 * number + 1] = word;
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::philox;

    #[test]
    fn lanes_equal_the_scalar_generator() {
        let bits = draws([7, 9], 5, 3, 2, 11);
        for (i, chunk) in bits.chunks(DRAWN).enumerate() {
            let draw = philox::<MASK_ROUNDS>([7, 9], [5 + i as u32, 3, 2, 11]);
            let expected: [u32; DRAWN] = std::array::from_fn(|column| Dropout::bits(draw, column));
            assert_eq!(chunk, expected);
            // Halves of the words, low first.
            assert_eq!((chunk[2] >> 16, chunk[3] >> 16), (draw[1] & 0xFFFF, draw[1] >> 16));
        }
    }

    /// An element's mask depends on its own coordinates only, not on the run of columns it is computed in.
    #[test]
    fn runs_agree_and_keep_the_right_share() {
        let dropout = Dropout::new(0.1, [1, 2]).expect("a rate above zero");
        let mut whole = vec![1.0_f32; 10_000];
        apply(&mut whole, dropout, 4, 3, 2, 0);
        let mut part = vec![1.0_f32; 77];
        apply(&mut part, dropout, 4, 3, 2, 1240);
        assert_eq!(part, whole[1240..1317]);
        let kept = whole.iter().filter(|&&value| value > 0.0).count() as f64 / 1e4;
        // Five standard deviations of a binomial share.
        assert!((kept - 0.9).abs() < 5.0 * (0.09_f64 / 1e4).sqrt(), "{kept}");
        assert!(whole.iter().all(|&value| value == 0.0 || value == dropout.scale as f32));
    }
}
