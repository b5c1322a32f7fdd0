// embed.cu: out[t] = word[ids[t]] + position[positions[t]] + token_type[types[t]].
//
// out [rows, width], contiguous; tables [*, width], contiguous. `position` and `token_type` may be null.
// Bytes moved: (tables + 1) * rows * width * 2 and 4 a table and row. FLOPs: (tables - 1) * rows * width.
// Launch: block 256, grid ceil(rows * ceil(width / 8) / 256), or any other: the loop strides over the grid.
#include "numbers.cuh"

namespace {

template <class T>
__device__ __forceinline__ void embed(const T* __restrict__ word, const T* __restrict__ position, const T* __restrict__ token_type,
                                      const int* __restrict__ ids, const int* __restrict__ positions, const int* __restrict__ types,
                                      T* __restrict__ out, int rows, int width) {
    const int packs = (width + 7) / 8;
    const bool wide = rows_are_wide(word, width) && rows_are_wide(out, width) && rows_are_wide(position, width) && rows_are_wide(token_type, width);
    const int64_t total = static_cast<int64_t>(rows) * packs, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < total; item += stride) {
        const int row = static_cast<int>(item / packs), column = static_cast<int>(item % packs) * 8;
        float sum[8], term[8];
        load_some(row_of(word, ids[row], width), column, width, wide, sum);
        if (position) {
            load_some(row_of(position, positions[row], width), column, width, wide, term);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] += term[i];
        }
        if (token_type) {
            load_some(row_of(token_type, types[row], width), column, width, wide, term);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] += term[i];
        }
        store_some(row_of(out, row, width), column, width, wide, sum);
    }
}

}  // namespace

#define ENTRIES(T, suffix)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                                   \
        embed_##suffix(const T* word, const T* position, const T* token_type, const int* ids, const int* positions, const int* types,   \
                       T* out, int rows, int width) {                                                                                   \
        embed<T>(word, position, token_type, ids, positions, types, out, rows, width);                                                  \
    }                                                                                                                                   \
    KERNEL_ENTRY(embed_##suffix);
FOR_BOTH_HALVES(ENTRIES)
