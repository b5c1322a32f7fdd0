//! What each probed instruction is defined to do, lane by lane in plain arithmetic: matrices by their documented
//! fragments, products as a triple loop in f64. Written apart from the emulation, which is held to it as a GPU is.

use super::numbers::{rounded, step};
use crate::backend::cuda::{LANES, Probe};
use crate::backend::{DType, Stream};
use half::{bf16, f16};

/// A word that an instruction puts out.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    Bits(u32),
    /// A float within so much.
    Near(f64, f64),
}

impl Expected {
    pub fn admits(self, word: u32) -> bool {
        match self {
            Expected::Bits(bits) => word == bits,
            Expected::Near(value, within) => {
                let found = f64::from(f32::from_bits(word));
                found == value || (found - value).abs() <= within
            }
        }
    }
}

/// The order in which tensor cores add is theirs, and they cut bits off: relative to the sum of magnitudes.
const MMA_ERROR: f64 = 1.0 / (1 << 20) as f64;
/// Two units in the last place (ex2.approx.ftz), and what is flushed to zero.
const EXP2_ERROR: f64 = 1.0 / (1 << 22) as f64;
/// Of rcp.approx: one unit in the last place.
const RECIPROCAL_ERROR: f64 = 1.0 / (1 << 23) as f64;
const SMALLEST_NORMAL: f64 = f32::MIN_POSITIVE as f64;

/// Inputs of a probe: `blocks` warps of words, from a seed.
pub fn inputs(probe: Probe, blocks: usize, seed: u32) -> Vec<u32> {
    let mut random = Stream::new([seed, 11]);
    let mut words = Vec::new();
    for lane in 0..blocks * LANES {
        for word in 0..probe.input {
            words.push(match probe.kernel {
                "probe_mma_f16" | "probe_mma_bf16" if word >= 6 => (random.normal_pair()[0] as f32).to_bits(),
                "probe_mma_f16" => pair(random.normal_pair(), |value| f16::from_f64(value).to_bits()),
                "probe_mma_bf16" => pair(random.normal_pair(), |value| bf16::from_f64(value).to_bits()),
                "probe_exp2" | "probe_reciprocal" => exponent(&mut random, lane),
                "probe_convert_f16" | "probe_convert_bf16" => number(&mut random, word == 2),
                _ => random.below(1 << 32) as u32,
            });
        }
    }
    words
}

fn pair(values: [f64; 2], bits: impl Fn(f64) -> u16) -> u32 {
    u32::from(bits(values[0])) | u32::from(bits(values[1])) << 16
}

/// Of every size that has a result, and beyond; the first lanes are the special ones.
fn exponent(random: &mut Stream, lane: usize) -> u32 {
    const SPECIAL: [f32; 8] = [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, 128.0, -126.0];
    let value = SPECIAL.get(lane).copied().unwrap_or((random.normal_pair()[0] * 60.0) as f32);
    value.to_bits()
}

/// Any bits but those of a NaN (whose payload is nobody's concern), as one float or as two 16-bit numbers of either type.
fn number(random: &mut Stream, halves: bool) -> u32 {
    loop {
        let bits = random.below(1 << 32) as u32;
        let is_nan = |half: u16| f16::from_bits(half).is_nan() || bf16::from_bits(half).is_nan();
        let nan = if halves { is_nan(bits as u16) || is_nan((bits >> 16) as u16) } else { f32::from_bits(bits).is_nan() };
        if !nan {
            return bits;
        }
    }
}

/// What the probe is to put out.
pub fn expected(probe: Probe, input: &[u32]) -> Vec<Expected> {
    input.chunks(LANES * probe.input).flat_map(|warp| of_warp(probe, warp)).collect()
}

fn of_warp(probe: Probe, warp: &[u32]) -> Vec<Expected> {
    let bits = |words: Vec<u32>| words.into_iter().map(Expected::Bits).collect();
    let lanes = || warp.chunks(probe.input);
    match probe.kernel {
        "probe_copy_async_4" => bits(lanes().map(|lane| if lane[1] & 1 == 1 { lane[0] } else { 0 }).collect()),
        "probe_copy_async_16" => bits(lanes().flat_map(|lane| (0..4).map(|i| if lane[4] & 1 == 1 { lane[i] } else { 0 })).collect()),
        "probe_copy_async_if" => bits(lanes().flat_map(|lane| (0..4).map(|i| copied_if(lane[4], lane[i]))).collect()),
        "probe_copy_async_groups" => bits(warp.to_vec()),
        "probe_load_matrices" => bits(matrices(warp, false)),
        "probe_load_matrices_transposed" => bits(matrices(warp, true)),
        "probe_mma_f16" => mma(warp, |bits| f16::from_bits(bits).to_f64()),
        "probe_mma_bf16" => mma(warp, |bits| bf16::from_bits(bits).to_f64()),
        "probe_convert_f16" => lanes().flat_map(|lane| convert(lane, DType::F16)).collect(),
        "probe_convert_bf16" => lanes().flat_map(|lane| convert(lane, DType::BF16)).collect(),
        "probe_exp2" => warp.iter().map(|&word| exp2(f64::from(f32::from_bits(word)))).collect(),
        "probe_reciprocal" => warp.iter().map(|&word| reciprocal(f64::from(f32::from_bits(word)))).collect(),
        "probe_lane" => bits((0u32..).zip(warp).map(|(lane, word)| word.wrapping_add(lane)).collect()),
        "probe_shuffles" => bits(shuffles(warp)),
        other => unreachable!("{other} has no definition"),
    }
}

/// What stands in shared memory behind a copy that is valid in bit 0 and wanted in bit 1.
fn copied_if(how: u32, word: u32) -> u32 {
    match (how & 2, how & 1) {
        (0, _) => 0xa5a5_a5a5,
        (_, 0) => 0,
        _ => word,
    }
}

/// ldmatrix: row r of matrix m is at the address that lane 8 m + r gives; the probe's lane i gives the address of the row
/// that lane (5 i + 3) % 32 stored. Lane 4 a + b holds elements 2 b and 2 b + 1 of row a (transposed: of column a).
fn matrices(warp: &[u32], transposed: bool) -> Vec<u32> {
    let element = |matrix: usize, row: usize, column: usize| {
        let stored = ((8 * matrix + row) * 5 + 3) % LANES;
        warp[stored * 4 + column / 2] >> (16 * (column % 2)) & 0xffff
    };
    let at = |matrix, a, b| if transposed { element(matrix, b, a) } else { element(matrix, a, b) };
    let lanes = (0..LANES).flat_map(|lane| (0..4).map(move |matrix| (lane / 4, lane % 4 * 2, matrix)));
    lanes.map(|(a, b, matrix)| at(matrix, a, b) | at(matrix, a, b + 1) << 16).collect()
}

/// mma.m16n8k16. Element (i, k) of A is in lane 4 (i % 8) + k % 8 / 2, register i / 8 + 2 (k / 8); element (k, j) of B in lane
/// 4 j + k % 8 / 2, register k / 8, both in half k % 2; element (i, j) of C and D in lane 4 (i % 8) + j / 2, register
/// 2 (i / 8) + j % 2.
fn mma(warp: &[u32], widen: impl Fn(u16) -> f64) -> Vec<Expected> {
    let word = |lane: usize, register: usize| warp[lane * 10 + register];
    let half = |word: u32, k: usize| widen((word >> (16 * (k % 2))) as u16);
    let a = |i: usize, k: usize| half(word(4 * (i % 8) + k % 8 / 2, i / 8 + 2 * (k / 8)), k);
    let b = |k: usize, j: usize| half(word(4 * j + k % 8 / 2, 4 + k / 8), k);
    let mut found = vec![Expected::Bits(0); 4 * LANES];
    for i in 0..16 {
        for j in 0..8 {
            let (lane, register) = (4 * (i % 8) + j / 2, 2 * (i / 8) + j % 2);
            let c = f64::from(f32::from_bits(word(lane, 6 + register)));
            let (mut sum, mut size) = (c, c.abs());
            for k in 0..16 {
                sum += a(i, k) * b(k, j);
                size += (a(i, k) * b(k, j)).abs();
            }
            found[4 * lane + register] = Expected::Near(sum, MMA_ERROR * size);
        }
    }
    found
}

/// Two floats rounded to a pair, and a pair widened.
fn convert(lane: &[u32], dtype: DType) -> [Expected; 3] {
    let narrow = |word: u32| {
        let value = rounded(dtype, f64::from(f32::from_bits(word)));
        u32::from(if dtype == DType::F16 { f16::from_f64(value).to_bits() } else { bf16::from_f64(value).to_bits() })
    };
    let widen = |half: u16| if dtype == DType::F16 { f16::from_bits(half).to_f32() } else { bf16::from_bits(half).to_f32() };
    [
        Expected::Bits(narrow(lane[0]) | narrow(lane[1]) << 16),
        Expected::Bits(widen(lane[2] as u16).to_bits()),
        Expected::Bits(widen((lane[2] >> 16) as u16).to_bits()),
    ]
}

fn exp2(x: f64) -> Expected {
    let value = libm::exp2(x);
    if value > f64::from(f32::MAX) {
        return Expected::Near(f64::INFINITY, 0.0);
    }
    // Results below the normal numbers are flushed to zero, or are not.
    let within = if value < 2.0 * SMALLEST_NORMAL { SMALLEST_NORMAL } else { 2.0 * EXP2_ERROR * value };
    Expected::Near(value, within.max(step(DType::F32) * SMALLEST_NORMAL))
}

/// The probe's inputs are zero, infinite, or far from both.
fn reciprocal(x: f64) -> Expected {
    Expected::Near(1.0 / x, 2.0 * RECIPROCAL_ERROR / x.abs())
}

/// From a lane; from the lane that differs in given bits; from so many lanes up or down, its own where there is none; and
/// a ballot.
fn shuffles(warp: &[u32]) -> Vec<u32> {
    let value = |lane: usize| warp[lane * 2];
    let votes = (0..LANES).fold(0, |votes, lane| votes | (value(lane) & 1) << lane);
    let of_lane = |lane: usize| {
        let by = warp[lane * 2 + 1] as usize % LANES;
        let down = if lane + by < LANES { lane + by } else { lane };
        let up = lane.checked_sub(by).unwrap_or(lane);
        [value(by), value(lane ^ by), value(down), value(up), votes]
    };
    (0..LANES).flat_map(of_lane).collect()
}
