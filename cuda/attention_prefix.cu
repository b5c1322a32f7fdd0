// attention_prefix.cu: a prefix's keys and values as a layer's sequences see them, for the kernels that load tiles of them.
//
//   C[c, 0] = round(mask_K * Kp), C[c, 1] = round(mask_V * Vp)
//
// Kp, Vp [P, kv_heads * d] float masters; C [copies, 2, F, kv_heads * d] of T in backend scratch, where F is the next
// multiple of sixteen from P on and rows P..F are zero. With prefix dropout every sequence has its own masks and its own
// copy; else one serves all. C is written anew in front of each forward, backward and prefix gradient, and what they have
// of it in common is the place. So a mask is drawn once a sequence and not by every block of queries, rows of the prefix
// come as tokens' rows do, and they are rounded in one place for all.
//
// Bytes a copy: 8 P kv_heads d read (from the second on out of L2), 4 F kv_heads d written. A thread has eight columns of
// a row, as a draw has: about 50 integer instructions with prefix dropout, few without.
//
// Launching. Blocks are 256 threads in x: attention_prefix_T, grid ceil(F * kv_heads * d / 8 / 256) x 2 x copies
#include "numbers.cuh"
#include "philox.cuh"

template <class T>
__device__ __forceinline__ void attention_prefix(const float* from, int ld, int prefix_length, int front, int width, int head_dim,
                                                 const Dropout& dropout, const int* query_offsets, const int* query_ordinals, T* to) {
    const int packs = width / 8, index = blockIdx.x * blockDim.x + threadIdx.x, row = index / packs, column = index % packs * 8;
    if (row >= front) return;
    float x[8] = {};
    if (row < prefix_length) {
        const float* source = row_of(from, row, ld) + column;
        load_some<8>(source, 0, 8, (uintptr_t)source % 16 == 0, x);
        if (dropout.threshold) {
            const int query = query_offsets[blockIdx.z];
            if (query == query_offsets[blockIdx.z + 1]) return;  // nobody looks at it, and no row says whose it is
            apply_dropout(x, dropout, query_ordinals[query], row, column / head_dim, column % head_dim);
        }
    }
    store_wide(to + ((size_t)(blockIdx.z * 2 + blockIdx.y) * front + row) * width + column, x);
}

#define ATTENTION_PREFIX(T, SUFFIX)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) attention_prefix_##SUFFIX(                                                  \
        const float* key, const float* value, int ld, int prefix_length, int front, int width, int head_dim, uint32_t key_key0,   \
        uint32_t key_key1, uint32_t key_below, float key_scale, uint32_t value_key0, uint32_t value_key1, uint32_t value_below,   \
        float value_scale, const int* query_offsets, const int* query_ordinals, T* to) {                                          \
        const Dropout key_dropout = {key_key0, key_key1, key_below, key_scale};                                                   \
        const Dropout value_dropout = {value_key0, value_key1, value_below, value_scale};                                         \
        attention_prefix<T>(blockIdx.y ? value : key, ld, prefix_length, front, width, head_dim,                                  \
                            blockIdx.y ? value_dropout : key_dropout, query_offsets, query_ordinals, to);                         \
    }                                                                                                                             \
    KERNEL_ENTRY(attention_prefix_##SUFFIX);
FOR_BOTH_HALVES(ATTENTION_PREFIX)
