// prefix_gradient.cu: gradients of the prefix's keys and values, summed over every query of every sequence.
//
//   dKp = sum mask_K * (dS_p^T Q scale), dVp = sum mask_V * (A_p^T dO): prefix columns of attention_backward.cu's dS and A
//
// The prefix is seen by every query, so the packed batch is one long run of queries. It is cut into chunks, whose number
// is given by shapes alone; a first kernel writes each chunk's sum (float, [chunks, P, kv_heads * d]), a second adds the
// chunks in order. Without prefix dropout a chunk is a run of query tiles. With it every sequence has its own masks on
// the prefix, so a chunk is a run of whole sequences, and each one's sum goes through its masks.
//
// FLOPs 8 P d a query and head. Bytes: Q and dO once for each tile of prefix rows, 8 P kv_heads d a chunk written and
// read (with prefix dropout also a sequence, out of L2).
#include "attention_keys.cuh"

// Writes, or adds to, the rows of a chunk's sum from prefix position `position` on: a warp's accumulators times `factor`,
// through the mask of `dropout`.
template <class T, int kDim, int M>
__device__ __forceinline__ void put_partial(float* to, const float (&acc)[M][kDim / 8][4], float factor, const Operands<T>& o,
                                            const Dropout& dropout, uint32_t ordinal, int position, int kv_head, bool add) {
    constexpr int N = kDim / 8 < 8 ? kDim / 8 : 8;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int block = 0; block < kDim / 8; block += N) {
            uint32_t bits = ~0u;
            float scale = factor;
            if (dropout.threshold) {
                bits = keep_prefix<N>(dropout, ordinal, position + m * 16 + g + t % 2 * 8, kv_head, block * 8);
                scale *= dropout.scale;
            }
#pragma unroll
            for (int i = 0; i < N * 2; ++i) {
                const int n = i / 2, half = i % 2, at = position + m * 16 + half * 8 + g, dim = (block + n) * 8 + 2 * t;
                if (at >= o.prefix_length || dim >= o.head_dim) continue;
                float2* target = (float2*)(head_of(to, at, o.kv_heads * o.head_dim, kv_head, o.head_dim) + dim);
                float2 value = add ? *target : make_float2(0.0f, 0.0f);
                if (kept_in_prefix(bits, n, half * 2)) value.x += acc[m][block + n][half * 2] * scale;
                if (kept_in_prefix(bits, n, half * 2 + 1)) value.y += acc[m][block + n][half * 2 + 1] * scale;
                *target = value;
            }
        }
}

template <class T, int kDim>
__device__ __forceinline__ void prefix_gradient_partial(const Operands<T>& o, const Saved<T>& saved, float* partial_key,
                                                        float* partial_value, int chunks, int total_queries) {
    constexpr Tile kTile = kPrefix[tile_index(kDim)];
    using Block = KeyMajor<T, kDim, kTile.warps, kTile.blocks, kTile.step, kTile.chunk>;
    DYN_SMEM(shared);
    Block block(shared);
    const int first = blockIdx.x * Block::kRows, kv_head = blockIdx.y, chunk = blockIdx.z;
    const int row = threadIdx.x / 32 * 16 * kTile.blocks, width = o.kv_heads * o.head_dim;
    const bool masked = o.key_dropout.threshold | o.value_dropout.threshold, active = first + row < o.prefix_length;
    partial_key += (size_t)chunk * o.prefix_length * width;
    partial_value += (size_t)chunk * o.prefix_length * width;

    // Segments: the chunk's run of queries, or each of its sequences.
    const int64_t pieces = masked ? o.sequences : (total_queries + kTile.step - 1) / kTile.step;
    int piece = (int)(pieces * chunk / chunks);
    const int end = (int)(pieces * (chunk + 1) / chunks);
    bool add = false;
    while (piece < end || !add) {
        int first_row = 0, end_row = 0;
        if (masked && piece < end) {
            first_row = o.query_offsets[piece], end_row = o.query_offsets[piece + 1];
            ++piece;
            if (first_row == end_row && (add || piece < end)) continue;
        } else if (piece < end) {
            first_row = piece * kTile.step, end_row = min(end * kTile.step, total_queries);
            piece = end;
        }
        uint32_t ordinal = 0;
        if (first_row < end_row) {
            if (masked) ordinal = (uint32_t)o.query_ordinals[first_row];
            load_prefix<T, kDim, Block::kThreads>(block.keys, block.values, o, ordinal, kv_head, first, Block::kRows);
            block.add(o, saved, kv_head, first_row, end_row, first, active, 0, kSeesAll);
        }
        if (active) {
            const int position = first + row;
            put_partial<T, kDim, kTile.blocks>(partial_key, block.d_key, key_factor(o), o, o.key_dropout, ordinal, position, kv_head, add);
            put_partial<T, kDim, kTile.blocks>(partial_value, block.d_value, value_factor(o), o, o.value_dropout, ordinal, position, kv_head, add);
        }
        block.clear();
        add = true;
    }
}

#define PREFIX_GRADIENT(T, SUFFIX, D)                                                                                                  \
    extern "C" __global__ void ATTENTION_LAUNCH_BOUNDS(kPrefix, D)                                                                     \
        prefix_gradient_partial_##SUFFIX##_##D(ATTENTION_PARAMETERS(T), SAVED_PARAMETERS(T), float* partial_key, float* partial_value, \
                                               int chunks, int total_queries) {                                                        \
        prefix_gradient_partial<T, D>(ATTENTION_OPERANDS(T), SAVED_OPERANDS(T), partial_key, partial_value, chunks, total_queries);    \
    }                                                                                                                                  \
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
