//! The two number types of the CPU backend: f32 for use, f64 as the reference that everything is held against.
//! The f32 functions are branch-free polynomials, so that the compiler vectorises loops over them; their errors are
//! bounded in the tests below. The f64 functions are libm's.

use crate::backend::DType;
use half::slice::HalfFloatSliceExt;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

pub trait Real:
    Copy
    + Send
    + Sync
    + PartialOrd
    + bytemuck::Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
    + 'static
{
    const DTYPE: DType;
    const ZERO: Self;
    const ONE: Self;
    fn of(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn erf(self) -> Self;
    fn tanh(self) -> Self;
    fn max(self, other: Self) -> Self;
    /// 16-bit values to this type.
    fn widen_f16(from: &[half::f16], to: &mut [Self]);
    fn widen_bf16(from: &[half::bf16], to: &mut [Self]);
}

/// Horner's rule, highest coefficient last in the list.
macro_rules! polynomial {
    ($x:expr, $last:expr $(, $coefficient:expr)*) => {{
        let x = $x;
        let mut sum = $last;
        $(sum = sum.mul_add(x, $coefficient);)*
        sum
    }};
}

impl Real for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;

    #[inline(always)]
    fn of(value: f64) -> f32 {
        value as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    /// 2^n * e^r with |r| <= ln 2 / 2; a degree-6 fit of e^r. Relative error below 1.5e-7. Clamped to [-87, 88], so
    /// that no result is subnormal; a NaN stays one.
    #[inline(always)]
    fn exp(self) -> f32 {
        // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let x = if self < -87.0 { -87.0 } else { self };
        let x = if x > 88.0 { 88.0 } else { x };
        let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = n.mul_add(-0.693_359_4, x);
        let r = n.mul_add(2.121_944_4e-4, r);
        let e = polynomial!(r, 1.394_858_1e-3_f32, 8.375_129e-3, 4.166_621_8e-2, 0.166_664_15, 0.5, 1.0, 1.0);
        let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
        e * scale
    }

    /// |x| < 1: x times a fit of erf(x)/x in x²; beyond: 1 - e^-p with a fit p of -ln erfc. Absolute error below 2e-7.
    #[inline(always)]
    fn erf(self) -> f32 {
        let magnitude = self.abs();
        let clamped = if magnitude > 4.0 { 4.0 } else { magnitude };
        let square = self * self;
        let small = self
            * polynomial!(
                square,
                7.882_497e-5_f32,
                -8.018_855e-4,
                5.189_312e-3,
                -2.685_432_9e-2,
                0.112_835_97,
                -0.376_126_27,
                std::f32::consts::FRAC_2_SQRT_PI
            );
        let minus_log = polynomial!(
            clamped,
            -1.614_061_6e-6_f32,
            4.559_062_2e-5,
            -5.927_695_6e-4,
            4.740_222_3e-3,
            -2.636_471_7e-2,
            0.109_978_25,
            0.631_937_1,
            1.130_166_7,
            -3.032_129_7e-4
        );
        let big = (1.0 - Real::exp(-minus_log)).copysign(self);
        if magnitude < 1.0 { small } else { big }
    }

    #[inline(always)]
    fn tanh(self) -> f32 {
        f32::tanh(self)
    }

    #[inline(always)]
    fn max(self, other: f32) -> f32 {
        if self > other { self } else { other }
    }

    fn widen_f16(from: &[half::f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    #[inline(always)]
    fn widen_bf16(from: &[half::bf16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}

impl Real for f64 {
    const DTYPE: DType = DType::F64;
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;

    #[inline(always)]
    fn of(value: f64) -> f64 {
        value
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    fn exp(self) -> f64 {
        libm::exp(self)
    }

    fn erf(self) -> f64 {
        libm::erf(self)
    }

    fn tanh(self) -> f64 {
        libm::tanh(self)
    }

    #[inline(always)]
    fn max(self, other: f64) -> f64 {
        if self > other { self } else { other }
    }

    fn widen_f16(from: &[half::f16], to: &mut [f64]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.to_f64();
        }
    }

    fn widen_bf16(from: &[half::bf16], to: &mut [f64]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.to_f64();
        }
    }
}

/// Independent partial sums of a reduction: enough for the vector units, and an order that no machine changes.
const LANES: usize = 16;

#[inline(always)]
fn fold<T: Real>(mut lanes: [T; LANES], tail: T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0] + tail
}

/// Σ f(i) over `0..count`, in a fixed order.
#[inline(always)]
pub fn reduce<T: Real>(count: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let whole = count / LANES * LANES;
    let mut start = 0;
    while start < whole {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(start + i);
        }
        start += LANES;
    }
    let mut tail = T::ZERO;
    for i in whole..count {
        tail += f(i);
    }
    fold(lanes, tail)
}

/// The largest element. A NaN may be passed over: what is computed from the element itself keeps it.
#[inline(always)]
pub fn maximum<T: Real>(values: &[T]) -> T {
    let mut lanes = [T::of(f64::NEG_INFINITY); LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = Real::max(*lane, value);
        }
    }
    let mut largest = lanes[0];
    for &value in lanes[1..].iter().chain(chunks.remainder()) {
        largest = Real::max(largest, value);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_bound() {
        let mut worst = 0.0_f64;
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            worst = worst.max((f64::from(Real::exp(x)) / libm::exp(f64::from(x)) - 1.0).abs());
        }
        assert!(worst < 1.5e-7, "{worst:e}");
        assert_eq!(Real::exp(-1000.0_f32), Real::exp(-87.0_f32));
        assert!(Real::exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_its_bound() {
        let mut worst = 0.0_f64;
        for i in -600_000..=600_000 {
            let x = i as f32 * 1e-5;
            worst = worst.max((f64::from(Real::erf(x)) - libm::erf(f64::from(x))).abs());
        }
        assert!(worst < 2e-7, "{worst:e}");
        assert_eq!(Real::erf(f32::INFINITY), 1.0);
        assert!(Real::erf(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_cover_every_element() {
        for count in [0, 1, 15, 16, 17, 100] {
            assert_eq!(reduce(count, |i| i as f64), (0..count).sum::<usize>() as f64);
        }
        let values: Vec<f32> = (0..100).map(|i| ((i * 37) % 101) as f32).collect();
        assert_eq!(maximum(&values), 100.0);
    }
}
