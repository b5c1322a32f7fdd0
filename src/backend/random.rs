//! Philox4x32-10 (Salmon et al. 2011): random numbers as a pure function of (key, counter). Dropout masks are never
//! stored: forward and backward, CPU and GPU, any packing and any micro-batch ask for the same element and get the
//! same bits.

/// The four 32-bit words for one counter.
#[inline(always)]
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for _ in 0..10 {
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
}

/// One stream of random numbers: a key of (seed, optimizer step, site, layer). The counter of an element is
/// `[column / 4, head, token in its sequence, ordinal of the sequence in the step]`; its word is `column % 4`.
pub fn stream_key(seed: u64, step: u64, site: Site, layer: usize) -> [u32; 2] {
    let words = philox([seed as u32, (seed >> 32) as u32], [step as u32, (step >> 32) as u32, site as u32, layer as u32]);
    [words[0], words[1]]
}

/// A dropout mask: its stream and its rate. An element is kept when its word is at least `threshold`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    pub key: [u32; 2],
    pub threshold: u32,
    /// 1 / (1 - rate): what a kept element is multiplied by.
    pub scale: f64,
}

impl Dropout {
    /// None for a rate of zero, so that an operation without dropout costs nothing. `rate` is in [0, 1).
    pub fn new(rate: f64, key: [u32; 2]) -> Option<Dropout> {
        assert!((0.0..1.0).contains(&rate));
        (rate > 0.0).then(|| Dropout { key, threshold: (rate * 4_294_967_296.0) as u32, scale: 1.0 / (1.0 - rate) })
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
        philox(self.key, counter)
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

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0, 0], [0, 0, 0, 0]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = u32::MAX;
        assert_eq!(philox([ones; 2], [ones; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
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
