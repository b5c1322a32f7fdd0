// philox.cuh: Philox4x32-10 (Salmon et al. 2011) and dropout masks drawn from it, bit for bit those of
// src/backend/random.rs. The counter of an element is [column / 4, head, token, ordinal], its word column % 4; it is
// kept when the word is at least the threshold. Masks are never stored: backward draws them again.
// About 70 integer instructions for four elements.
#pragma once
#include "numbers.cuh"

// A threshold of 0 is no dropout.
struct Dropout {
    uint32_t key0, key1, threshold;
    float scale;  // 1 / (1 - rate)
};

__device__ __forceinline__ uint4 philox(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
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

// The words of columns column .. column + 4; `column` is a multiple of four.
__device__ __forceinline__ uint4 dropout_words(const Dropout& dropout, uint32_t ordinal, uint32_t token, uint32_t head, uint32_t column) {
    return philox(dropout.key0, dropout.key1, column / 4, head, token, ordinal);
}

// Multiplies columns column .. column + N by their mask: 0, or 1 / (1 - rate). `column` and N are multiples of four.
template <int N>
__device__ __forceinline__ void apply_dropout(float (&values)[N], const Dropout& dropout, uint32_t ordinal, uint32_t token, uint32_t head,
                                              uint32_t column) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const uint4 words = dropout_words(dropout, ordinal, token, head, column + i);
        values[i] *= words.x >= dropout.threshold ? dropout.scale : 0.0f;
        values[i + 1] *= words.y >= dropout.threshold ? dropout.scale : 0.0f;
        values[i + 2] *= words.z >= dropout.threshold ? dropout.scale : 0.0f;
        values[i + 3] *= words.w >= dropout.threshold ? dropout.scale : 0.0f;
    }
}
