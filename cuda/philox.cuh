// philox.cuh: Philox4x32 (Salmon et al. 2011) and dropout masks drawn from it, bit for bit those of
// src/backend/random.rs. A draw, of seven rounds, decides eight columns of hidden states or a prefix: its counter is
// [column / 8, head, token, ordinal], and column c has 16 of its 128 bits, the lower half of word c % 8 / 2 if c is even, else
// the upper. Of attention's probabilities it decides sixteen, of 8 bits each: byte c % 4 of word c % 16 / 4. An element is kept
// when its bits are at least the threshold. Masks are never stored: backward draws them again.
// About 50 integer instructions for eight elements, 70 for sixteen.
#pragma once
#include "numbers.cuh"

// A threshold of 0 is no dropout.
struct Dropout {
    uint32_t key0, key1, threshold;  // threshold: 16 bits, or 8, the upper ones
    float scale;                     // 1 / the probability of being kept
};

// Seven rounds are the fewest that pass all of BigCrush (Salmon et al.); ten are customary.
constexpr int kMaskRounds = 7, kRounds = 10;

template <int kRounds>
__device__ __forceinline__ uint4 philox(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        const uint32_t low0 = c0 * 0xD2511F53u, high0 = __umulhi(c0, 0xD2511F53u);
        const uint32_t low1 = c2 * 0xCD9E8D57u, high1 = __umulhi(c2, 0xCD9E8D57u);
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// The draw of columns column .. column + 8; `column` is a multiple of eight.
__device__ __forceinline__ uint4 dropout_words(const Dropout& dropout, uint32_t ordinal, uint32_t token, uint32_t head, uint32_t column) {
    return philox<kMaskRounds>(dropout.key0, dropout.key1, column / 8, head, token, ordinal);
}

// Whether a word's columns are kept: the even one's bits are brought to where the threshold's are, below the odd one's
// stand bits that change nothing.
__device__ __forceinline__ bool keeps_even(uint32_t word, uint32_t threshold) { return word << 16 >= threshold; }
__device__ __forceinline__ bool keeps_odd(uint32_t word, uint32_t threshold) { return word >= threshold; }

// Multiplies columns column .. column + 8 by their mask: 0, or the scale. `column` is a multiple of eight.
__device__ __forceinline__ void apply_dropout(float (&values)[8], const Dropout& dropout, uint32_t ordinal, uint32_t token, uint32_t head,
                                              uint32_t column) {
    const uint4 draw = dropout_words(dropout, ordinal, token, head, column);
    const uint32_t words[4] = {draw.x, draw.y, draw.z, draw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        values[2 * i] *= keeps_even(words[i], dropout.threshold) ? dropout.scale : 0.0f;
        values[2 * i + 1] *= keeps_odd(words[i], dropout.threshold) ? dropout.scale : 0.0f;
    }
}

// Which of sixteen columns from `column` on, a multiple of sixteen, are kept: bit 8 b + i is that of column 4 i + b, byte b of
// word i, and the bits 8 b + 4 and on are zero. Four bytes are compared at once: adding 128 - threshold (of 7 bits) to the lower
// seven bits of each carries into the eighth where they are at least the threshold, which decides together with the eighth
// that was there.
__device__ __forceinline__ uint32_t keep_sixteen(const Dropout& dropout, uint32_t ordinal, uint32_t token, uint32_t head, uint32_t column) {
    const uint4 draw = philox<kMaskRounds>(dropout.key0, dropout.key1, column / 16, head, token, ordinal);
    const uint32_t words[4] = {draw.x, draw.y, draw.z, draw.w};
    const uint32_t threshold = dropout.threshold >> 24, either = threshold < 128 ? ~0u : 0u;
    const uint32_t carry = (128 - (threshold & 127)) * 0x01010101u;
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t word = words[i], sum = (word & 0x7f7f7f7fu) + carry;
        const uint32_t decided = (word & sum) | (either & (word | sum));
        kept |= decided >> (7 - i) & 0x01010101u << i;
    }
    return kept;
}
