//! Philox4x32 (Salmon et al. 2011): random numbers as a pure function of (key, counter). Dropout masks are never
//! stored: forward and backward, CPU and GPU, any packing and any micro-batch ask for the same element and get the
//! same bits.

/// Rounds of what is drawn once.
pub const ROUNDS: usize = 10;
/// Rounds of masks, which a GPU draws faster than it reads memory only if they are few: seven are the fewest that pass all of
/// BigCrush (Salmon et al.).
pub const MASK_ROUNDS: usize = 7;

/// The four 32-bit words for one counter.
#[inline(always)]
pub fn philox<const ROUNDS: usize>(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for _ in 0..ROUNDS {
        let p0 = u64::from(c0) * 0xD251_1F53;
        let p1 = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// Where in the network a mask is drawn; part of the key, so that no two sites share a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Site {
    Embedding = 1,
    AttentionOutput = 2,
    FeedForwardOutput = 3,
    AttentionProbability = 4,
    PrefixKey = 5,
    PrefixValue = 6,
    Head = 7,
    HeadInner = 8,
    /// Initial values of a trainable; `layer` numbers the tensor.
    Initialisation = 9,
    /// Order of the examples of an epoch.
    Order = 10,
    /// A layer's view of the table of relative positions: element (0, row, 0, column), one mask for the whole step.
    RelativeEmbedding = 11,
    /// Random weights of a frozen model; `layer` numbers the tensor.
    Weights = 12,
}

/// One stream of random numbers: a key of (seed, optimizer step, site, layer).
pub fn stream_key(seed: u64, step: u64, site: Site, layer: usize) -> [u32; 2] {
    let words = philox::<ROUNDS>([seed as u32, (seed >> 32) as u32], [step as u32, (step >> 32) as u32, site as u32, layer as u32]);
    [words[0], words[1]]
}

/// A dropout mask: its stream and its rate. A draw decides `columns` columns of a row: its counter is `[column / columns, head,
/// token in its sequence, ordinal of the sequence in the step]`, and each has an equal part of its 128 bits ([`Dropout::bits`]).
/// An element is kept when these are at least `threshold`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    pub key: [u32; 2],
    /// Shifted to the upper end of a word, as a column's bits are to be compared with it.
    pub threshold: u32,
    /// What a kept element is multiplied by: 1 / the probability of being kept, which is 1 - rate as far as the bits go.
    pub scale: f64,
    /// [`ROW_COLUMNS`] or [`PROBABILITY_COLUMNS`].
    pub columns: usize,
}

/// Columns that a draw decides of hidden states and prefixes: 16 bits each.
pub const ROW_COLUMNS: usize = 8;
/// Of attention's probabilities, of which there are so many that their draws would cost more than their products: 8 bits each, as
/// many as FlashAttention takes.
pub const PROBABILITY_COLUMNS: usize = 16;

impl Dropout {
    /// Of hidden states and prefixes. None for a rate of zero, so that an operation without dropout costs nothing. `rate` is in
    /// [0, 1).
    pub fn new(rate: f64, key: [u32; 2]) -> Option<Dropout> {
        Dropout::with(ROW_COLUMNS, rate, key)
    }

    /// The same, of attention's probabilities.
    pub fn of_probabilities(rate: f64, key: [u32; 2]) -> Option<Dropout> {
        Dropout::with(PROBABILITY_COLUMNS, rate, key)
    }

    fn with(columns: usize, rate: f64, key: [u32; 2]) -> Option<Dropout> {
        assert!((0.0..1.0).contains(&rate));
        let bits = 128 / columns as u32;
        let all = f64::from(1 << bits);
        (rate > 0.0).then(|| {
            let dropped = (rate * all).round().clamp(1.0, all - 1.0);
            Dropout { key, threshold: (dropped as u32) << (32 - bits), scale: all / (all - dropped), columns }
        })
    }

    /// A column's bits in a draw, at the upper end of a word; what stands below them changes nothing. Columns have their parts of
    /// the draw in order, from the lower end of its first word on.
    #[inline(always)]
    pub fn bits(columns: usize, draw: [u32; 4], column: usize) -> u32 {
        let (of_word, bits) = (columns / 4, 128 / columns);
        draw[column % columns / of_word] << (32 - bits - column % of_word * bits)
    }

    /// The column of attention's masks that a sequence's first own key has: behind the prefix, where a draw begins.
    pub fn first_own(prefix_length: usize) -> usize {
        prefix_length.next_multiple_of(PROBABILITY_COLUMNS)
    }
}

/// Uniform numbers in (0, 1) and normal numbers, in order, from one stream (initial values, shuffling).
pub struct Stream {
    key: [u32; 2],
    position: u64,
}

impl Stream {
    pub fn new(key: [u32; 2]) -> Stream {
        Stream { key, position: 0 }
    }

    fn block(&mut self) -> [u32; 4] {
        let counter = [self.position as u32, (self.position >> 32) as u32, 0, 0];
        self.position += 1;
        philox::<ROUNDS>(self.key, counter)
    }

    /// A uniform integer in `0..bound` (64 random bits scaled: bias below 2^-32 for any bound under 2^32).
    pub fn below(&mut self, bound: usize) -> usize {
        let [a, b, ..] = self.block();
        let bits = u64::from(a) << 32 | u64::from(b);
        ((u128::from(bits) * bound as u128) >> 64) as usize
    }

    /// Two independent standard normal numbers (Box-Muller on 53-bit uniforms).
    pub fn normal_pair(&mut self) -> [f64; 2] {
        let [a, b, c, d] = self.block();
        let unit = |high: u32, low: u32| ((u64::from(high) << 21 | u64::from(low) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let radius = (-2.0 * libm::log(unit(a, b))).sqrt();
        let angle = std::f64::consts::TAU * unit(c, d);
        [radius * libm::cos(angle), radius * libm::sin(angle)]
    }

    /// A permutation of `0..count` (Fisher-Yates).
    pub fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 with 10 and with 7 rounds).
    #[test]
    fn philox_known_answers() {
        let ones = ([u32::MAX; 2], [u32::MAX; 4]);
        let digits = ([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
        assert_eq!(philox::<10>([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox::<10>(ones.0, ones.1), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(philox::<10>(digits.0, digits.1), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
        assert_eq!(philox::<7>([0; 2], [0; 4]), [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]);
        assert_eq!(philox::<7>(ones.0, ones.1), [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]);
        assert_eq!(philox::<7>(digits.0, digits.1), [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a]);
    }

    /// The mean of a mask is one whatever the rate: what is kept is scaled by the rate that there is.
    #[test]
    fn rates_are_kept_as_far_as_the_bits_go() {
        assert!(Dropout::new(0.0, [0; 2]).is_none() && Dropout::of_probabilities(0.0, [0; 2]).is_none());
        for rate in [1e-9, 1e-3, 0.1, 0.5, 1.0 / 3.0, 0.999_999] {
            for (dropout, step) in [(Dropout::new(rate, [0; 2]), 2f64.powi(-16)), (Dropout::of_probabilities(rate, [0; 2]), 2f64.powi(-8))]
            {
                let dropout = dropout.unwrap();
                let kept = 1.0 - f64::from(dropout.threshold) / 2f64.powi(32);
                assert!((kept * dropout.scale - 1.0).abs() < 1e-12 && (kept - (1.0 - rate)).abs() <= step, "{rate}: {kept}");
            }
        }
        assert_eq!(Dropout::new(0.5, [0; 2]).unwrap().scale, 2.0);
        assert_eq!(Dropout::of_probabilities(0.5, [0; 2]).unwrap().scale, 2.0);
    }

    #[test]
    fn columns_have_their_parts_in_order() {
        let draw = [0x1111_0000, 0x3333_2222, 0x5555_4444, 0x7777_6666];
        let halves: Vec<u32> = (0..8).map(|column| Dropout::bits(ROW_COLUMNS, draw, column) >> 16).collect();
        assert_eq!(halves, [0, 0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666, 0x7777]);
        let draw = [0x0302_0100, 0x0706_0504, 0x0b0a_0908, 0x0f0e_0d0c];
        let bytes: Vec<u32> = (16..32).map(|column| Dropout::bits(PROBABILITY_COLUMNS, draw, column) >> 24).collect();
        assert_eq!(bytes, (0..16).collect::<Vec<u32>>());
    }

    #[test]
    fn normals_have_mean_zero_and_deviation_one() {
        let mut stream = Stream::new([1, 2]);
        let values: Vec<f64> = (0..20_000).flat_map(|_| stream.normal_pair()).collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        // Five standard errors of the mean and of the variance.
        assert!(mean.abs() < 5.0 / count.sqrt());
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / count).sqrt());
    }

    #[test]
    fn permutations_are_permutations() {
        let mut sorted = Stream::new([3, 4]).permutation(1000);
        assert_ne!(sorted, (0..1000).collect::<Vec<_>>());
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
    }
}
