// prefix_gradient.cu: gradients of the prefix's keys and values, summed over every query of every sequence.
//
//   dKp = sum mask_K * (dS_p^T Q scale), dVp = sum mask_V * (A_p^T dO): prefix columns of attention_backward.cu's dS and A
//
// The prefix is seen by every query, so the packed batch is one long run of queries. It is cut into chunks, runs of whole
// tiles of queries whose number is given by shapes alone; a first kernel writes each chunk's sum (float, [chunks, P,
// kv_heads * d]), a second adds the chunks in order. With prefix dropout every sequence has its own masks on the prefix: a
// chunk is cut where a sequence ends, and each part's sum goes through its sequence's masks, which are linear.
//
// FLOPs 8 P d a query and head. Bytes: Q and dO once for each tile of prefix rows, 8 P kv_heads d a chunk written and
// read (with prefix dropout also a part from a chunk's second on, out of L2).
#include "attention_keys.cuh"

// Writes, or adds to, the rows of a chunk's sum from prefix position `position` on: a warp's accumulators times `factor`,
// through the mask of `dropout`. What is added to is read before anything is written, so that the reads wait together.
template <class T, int kDim, int M>
__device__ __forceinline__ void put_partial(float* to, const float (&acc)[M][kDim / 8][4], float factor, const Operands<T>& o,
                                            const Dropout& dropout, uint32_t ordinal, int position, int kv_head, bool add) {
    constexpr int N = kDim <= 64 ? kDim / 8 : 4;  // more are too many registers beside sums of 128 dims
    const int lane = lane_anew(), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int block = 0; block < kDim / 8; block += N) {
            const int first = position + m * 16 + g;
            float* const row = head_of(to, first, o.kv_heads * o.head_dim, kv_head, o.head_dim) + block * 8 + 2 * t;
            float* const rows[2] = {row, row_of(row, 8, o.kv_heads * o.head_dim)};
            float2 sums[N * 2];
#pragma unroll
            for (int i = 0; i < N * 2; ++i) {
                const int n = i / 2, half = i % 2;
                const bool old = add && first + half * 8 < o.prefix_length && (block + n) * 8 < o.head_dim;
                sums[i] = old ? *(const float2*)(rows[half] + n * 8) : make_float2(0.0f, 0.0f);
            }
            uint32_t bits = ~0u;
            float scale = factor;
            if (dropout.threshold) {
                bits = keep_prefix<N>(dropout, ordinal, first + t % 2 * 8, kv_head, block * 8);
                scale *= dropout.scale;
            }
#pragma unroll
            for (int i = 0; i < N * 2; ++i) {
                const int n = i / 2, half = i % 2;
                if (kept_in_prefix(bits, n, half * 2)) sums[i].x += acc[m][block + n][half * 2] * scale;
                if (kept_in_prefix(bits, n, half * 2 + 1)) sums[i].y += acc[m][block + n][half * 2 + 1] * scale;
                if (first + half * 8 < o.prefix_length && (block + n) * 8 < o.head_dim) *(float2*)(rows[half] + n * 8) = sums[i];
            }
        }
}

// The sequence that the packed query row `row` belongs to.
template <class T>
__device__ __forceinline__ int sequence_of(const Operands<T>& o, int row) {
    int low = 0, high = o.sequences - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (o.query_offsets[middle + 1] <= row) low = middle + 1;
        else high = middle;
    }
    return low;
}

template <class T, int kDim>
__device__ __forceinline__ void prefix_gradient_partial(const Operands<T>& o, const Saved<T>& saved, const Dropout& key_dropout,
                                                        const Dropout& value_dropout, float* partial_key, float* partial_value,
                                                        int chunks, int total_queries) {
    constexpr Tile kTile = kPrefix[tile_index(kDim)];
    using Block = KeyMajor<T, kDim, kTile.warps, kTile.blocks, kTile.step, kTile.chunk>;
    DYN_SMEM(shared);
    Block block(shared);
    const int first = blockIdx.x * Block::kRows, kv_head = blockIdx.y, chunk = blockIdx.z;
    const int row = threadIdx.x / 32 * 16 * kTile.blocks, width = o.kv_heads * o.head_dim;
    const bool masked = key_dropout.threshold | value_dropout.threshold, active = first + row < o.prefix_length;
    partial_key += (size_t)chunk * o.prefix_length * width;
    partial_value += (size_t)chunk * o.prefix_length * width;

    // The chunk's run of queries, a part of it at a time: all of it, or what of it belongs to one sequence.
    const int64_t tiles = (total_queries + kTile.step - 1) / kTile.step;
    int at = (int)(tiles * chunk / chunks) * kTile.step;
    const int end = min((int)(tiles * (chunk + 1) / chunks) * kTile.step, total_queries);
    bool add = false;
    do {
        int b = 0, part_end = end;
        uint32_t ordinal = 0;
        if (masked && at < end) {
            b = sequence_of(o, at);
            part_end = min(end, o.query_offsets[b + 1]);
            ordinal = (uint32_t)o.query_ordinals[at];
        }
        if (at < end) {
            load_prefix<T, kDim, Block::kRows, Block::kThreads>(block.keys, o, b, kv_head, first, Block::kRows);
            block.add(o, saved, kv_head, at, part_end, first, active, 0, kSeesAll);
        }
        if (active) {
            const int position = first + row;
            put_partial<T, kDim, kTile.blocks>(partial_key, block.d_key, key_factor(o), o, key_dropout, ordinal, position, kv_head, add);
            put_partial<T, kDim, kTile.blocks>(partial_value, block.d_value, value_factor(o), o, value_dropout, ordinal, position, kv_head, add);
        }
        block.clear();
        add = true;
        at = part_end;
    } while (at < end);
}

#define PREFIX_GRADIENT(T, SUFFIX, D)                                                                                              \
    extern "C" __global__ void ATTENTION_LAUNCH_BOUNDS(kPrefix, D) prefix_gradient_partial_##SUFFIX##_##D(                         \
        ATTENTION_PARAMETERS(T), SAVED_PARAMETERS(T), uint32_t key_key0, uint32_t key_key1, uint32_t key_below, float key_scale,   \
        uint32_t value_key0, uint32_t value_key1, uint32_t value_below, float value_scale, float* partial_key,                     \
        float* partial_value, int chunks, int total_queries) {                                                                     \
        const Dropout key_dropout = {key_key0, key_key1, key_below, key_scale};                                                    \
        const Dropout value_dropout = {value_key0, value_key1, value_below, value_scale};                                          \
        prefix_gradient_partial<T, D>(ATTENTION_OPERANDS(T), SAVED_OPERANDS(T), key_dropout, value_dropout, partial_key,           \
                                      partial_value, chunks, total_queries);                                                       \
    }                                                                                                                              \
    KERNEL_ENTRY(prefix_gradient_partial_##SUFFIX##_##D);
#define PREFIX_GRADIENT_DIMS(T, SUFFIX) \
    PREFIX_GRADIENT(T, SUFFIX, 16) PREFIX_GRADIENT(T, SUFFIX, 32) PREFIX_GRADIENT(T, SUFFIX, 64) PREFIX_GRADIENT(T, SUFFIX, 128)
FOR_BOTH_HALVES(PREFIX_GRADIENT_DIMS)

// d_key (blockIdx.y 0), d_value (1) += the chunks' sums, in order; a thread takes four elements of a row.
extern "C" __global__ void __launch_bounds__(256) prefix_gradient_sum(const float* partial_key, const float* partial_value, int chunks,
                                                                      float* d_key, float* d_value, int ld, int prefix_length, int width) {
    const int groups = (width + 3) / 4, index = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = index / groups, column = index % groups * 4;
    if (row >= prefix_length) return;
    const float* partial = blockIdx.y ? partial_value : partial_key;
    float* to = (blockIdx.y ? d_value : d_key) + (size_t)row * ld;
    const bool wide = rows_are_wide(partial, width);
    float sum[4];
    load_some<4>(to, column, width, rows_are_wide(to, ld), sum);
    for (int chunk = 0; chunk < chunks; ++chunk) {
        float part[4];
        load_some<4>(partial + ((size_t)chunk * prefix_length + row) * width, column, width, wide, part);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += part[i];
    }
    store_some<4>(to, column, width, rows_are_wide(to, ld), sum);
}
KERNEL_ENTRY(prefix_gradient_sum);
