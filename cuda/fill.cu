// fill.cu: out[i] = deviation * n(i), n(i) standard normal and a function of (key, i) alone: word i % 4 of Philox block
// i / 4, each pair of words through Box and Muller's transformation, radius first. As src/backend/cpu/fill.rs.
//
// out [count] in 16 bits, contiguous. Bytes moved: 2 * count. About 35 integer and 20 floating-point instructions a number.
// Launch: block 256, grid ceil(count / 8 / 256), or any other: the loop strides over the grid.
#include "philox.cuh"

namespace {

// In (0, 1]: words in steps of 2^-32 from 2^-33.
__device__ __forceinline__ float unit(uint32_t word) { return fmaf(static_cast<float>(word), 0x1p-32f, 0x1p-33f); }

__device__ __forceinline__ void normal_pair(uint32_t radius_word, uint32_t angle_word, float deviation, float& first, float& second) {
    const float radius = deviation * sqrtf(-2.0f * logf(unit(radius_word)));
    float sine, cosine;
    sincospif(2.0f * unit(angle_word), &sine, &cosine);
    first = radius * cosine;
    second = radius * sine;
}

template <class T>
__device__ __forceinline__ void fill_normal(T* __restrict__ out, int64_t count, uint32_t key0, uint32_t key1, float deviation) {
    const int64_t packs = (count + 7) / 8, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    const bool wide = reinterpret_cast<uintptr_t>(out) % 16 == 0;
    for (int64_t pack = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; pack < packs; pack += stride) {
        float values[8];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint64_t block = 2 * static_cast<uint64_t>(pack) + half;
            const uint4 words = philox<kRounds>(key0, key1, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 0);
            normal_pair(words.x, words.y, deviation, values[4 * half], values[4 * half + 1]);
            normal_pair(words.z, words.w, deviation, values[4 * half + 2], values[4 * half + 3]);
        }
        const int64_t left = count - 8 * pack;
        store_some(out + 8 * pack, 0, static_cast<int>(left < 8 ? left : 8), wide, values);
    }
}

}  // namespace

#define ENTRIES(T, suffix)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                                 \
        fill_normal_##suffix(T* out, int64_t count, uint32_t key0, uint32_t key1, float deviation) {                                  \
        fill_normal<T>(out, count, key0, key1, deviation);                                                                            \
    }                                                                                                                                 \
    KERNEL_ENTRY(fill_normal_##suffix);
FOR_BOTH_HALVES(ENTRIES)
