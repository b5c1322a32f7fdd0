// dequantize.cu: an 8-bit frozen matrix in the 16 bits that products read: out[n][k] = scales[n] * weight[n][k], the product
// in float, rounded once.
//
// weight [rows, width] of int8, scales [rows] in float, out [rows, width] of T. Bytes moved: 3 an element and 4 a row,
// 16 at a time where every row is aligned. One FLOP an element.
// Launch: block 256, grid ceil(rows * ceil(width / 16) / 256), or any other: the loop strides over the grid.
#include "numbers.cuh"

namespace {

// Byte number `index` of a word, with its sign.
__device__ __forceinline__ float signed_byte(uint32_t word, int index) {
    return static_cast<float>(static_cast<int8_t>(static_cast<uint8_t>(word >> (8 * index))));
}

template <class T>
__device__ __forceinline__ void dequantize(const int8_t* __restrict__ weight, int ld_weight, const float* __restrict__ scales,
                                           T* __restrict__ out, int ld_out, int rows, int width) {
    const bool wide = rows_are_wide(weight, ld_weight) && rows_are_wide(out, ld_out);
    const int packs = (width + 15) / 16;
    const int64_t total = static_cast<int64_t>(rows) * packs, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < total; item += stride) {
        const int row = static_cast<int>(item / packs);
        const int column = static_cast<int>(item - static_cast<int64_t>(row) * packs) * 16;
        const int8_t* from = row_of(weight, row, ld_weight) + column;
        T* to = row_of(out, row, ld_out) + column;
        const float scale = scales[row];
        if (wide && column + 16 <= width) {
            const uint4 bits = *reinterpret_cast<const uint4*>(from);
            const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float values[8];
#pragma unroll
                for (int i = 0; i < 8; ++i) values[i] = scale * signed_byte(words[2 * half + i / 4], i % 4);
                store_wide(to + 8 * half, values);
            }
        } else {
            for (int i = 0; i < 16 && column + i < width; ++i) to[i] = from_float<T>(scale * static_cast<float>(from[i]));
        }
    }
}

}  // namespace

#define ENTRIES(T, suffix)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) dequantize_##suffix(const int8_t* weight, int ld_weight, const float* scales,  \
                                                                          T* out, int ld_out, int rows, int width) {                 \
        dequantize<T>(weight, ld_weight, scales, out, ld_out, rows, width);                                                          \
    }                                                                                                                                \
    KERNEL_ENTRY(dequantize_##suffix);
FOR_BOTH_HALVES(ENTRIES)
