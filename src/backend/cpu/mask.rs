//! Dropout masks on the fly: the Philox words of a run of columns, eight blocks at a time.

use super::real::Real;
use crate::backend::Dropout;

/// Blocks of four words that are computed together.
const BLOCKS: usize = 8;

/// Multiplies `row` (columns `column`.. of an element row) by its mask: 0, or 1 / (1 - rate).
/// `column` is a multiple of four.
#[inline(always)]
pub fn apply<T: Real>(row: &mut [T], dropout: Dropout, ordinal: u32, token: u32, head: u32, column: usize) {
    debug_assert!(column.is_multiple_of(4));
    let scale = T::of(dropout.scale);
    let mut first = (column / 4) as u32;
    for chunk in row.chunks_mut(4 * BLOCKS) {
        let words = blocks(dropout.key, first, head, token, ordinal);
        if chunk.len() == 4 * BLOCKS {
            for i in 0..4 * BLOCKS {
                chunk[i] *= if words[i] >= dropout.threshold { scale } else { T::ZERO };
            }
        } else {
            for (value, &word) in chunk.iter_mut().zip(&words) {
                *value *= if word >= dropout.threshold { scale } else { T::ZERO };
            }
        }
        first += BLOCKS as u32;
    }
}

/// The words of the blocks `first..first + BLOCKS`, in order of columns; [`crate::backend::philox`] in lanes.
#[inline(always)]
fn blocks(key: [u32; 2], first: u32, head: u32, token: u32, ordinal: u32) -> [u32; 4 * BLOCKS] {
    let [mut k0, mut k1] = key;
    let mut c0: [u32; BLOCKS] = std::array::from_fn(|i| first.wrapping_add(i as u32));
    let (mut c1, mut c2, mut c3) = ([head; BLOCKS], [token; BLOCKS], [ordinal; BLOCKS]);
    for _ in 0..10 {
        for i in 0..BLOCKS {
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
    let mut words = [0; 4 * BLOCKS];
    for i in 0..BLOCKS {
        words[4 * i] = c0[i];
        words[4 * i + 1] = c1[i];
        words[4 * i + 2] = c2[i];
        words[4 * i + 3] = c3[i];
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::philox;

    #[test]
    fn lanes_equal_the_scalar_generator() {
        let words = blocks([7, 9], 5, 3, 2, 11);
        for (i, chunk) in words.chunks(4).enumerate() {
            assert_eq!(chunk, philox([7, 9], [5 + i as u32, 3, 2, 11]));
        }
    }

    /// An element's mask depends on its own coordinates only, not on the run of columns it is computed in.
    #[test]
    fn runs_agree_and_keep_the_right_share() {
        let dropout = Dropout::new(0.1, [1, 2]).expect("a rate above zero");
        let mut whole = vec![1.0_f32; 10_000];
        apply(&mut whole, dropout, 4, 3, 2, 0);
        let mut part = vec![1.0_f32; 77];
        apply(&mut part, dropout, 4, 3, 2, 1236);
        assert_eq!(part, whole[1236..1313]);
        let kept = whole.iter().filter(|&&value| value > 0.0).count() as f64 / 1e4;
        // Five standard deviations of a binomial share.
        assert!((kept - 0.9).abs() < 5.0 * (0.09_f64 / 1e4).sqrt(), "{kept}");
        assert!(whole.iter().all(|&value| value == 0.0 || value == (1.0_f64 / 0.9) as f32));
    }
}
