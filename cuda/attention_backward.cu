// attention_backward.cu: gradients of attention's queries, keys and values (the prefix's are prefix_gradient.cu's).
//
//   D = rowsum(dO * O); P = exp(S - L), recomputed; dP = dropout(dO V^T); dS = P (dP - D);
//   dQ = dS [Kp; K] * scale; dK = dS^T Q * scale; dV = dropout(P)^T dO
//
// Shapes as in attention_forward.cu; L, D [Tq, heads] float. There are no atomics: a key-major kernel sums dK and dV of
// its keys over all queries and the heads that share them, a query-major kernel sums dQ of its queries over prefix and
// keys, each in the order of its tiles. That costs 7 products instead of 5 (S and dP twice).
//
// FLOPs a query and head: key-major 8 m d, query-major 6 (P + m) d. Bytes: Q, K, V, dO read by both, dQ, dK, dV written;
// delta reads O and dO once. Rows outside a sequence's tiles are zero in shared memory.
#include "attention_keys.cuh"

// ---- D ----------------------------------------------------------------------------------------------------------

// A head of a row is summed by 1, 2, 4, 8 or 16 lanes, the least that is at least head_dim / 8, of 8 dims each.
template <class T>
__device__ __forceinline__ void attention_delta(const T* out, int ld_out, const T* d_out, int ld_d_out, int heads, int head_dim, float* delta,
                                                int ld_delta, int rows) {
    int lanes = 1;
    while (lanes * 8 < head_dim) lanes *= 2;
    const int64_t index = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / lanes;
    const int part = threadIdx.x % lanes * 8, row = (int)(index / heads), head = (int)(index % heads);
    const bool wide = rows_are_wide(out, ld_out) && rows_are_wide(d_out, ld_d_out);
    float sum = 0.0f;
    if (row < rows && part < head_dim) {
        float a[8], b[8];
        load_some<8>(head_of(out, row, ld_out, head, head_dim), part, head_dim, wide, a);
        load_some<8>(head_of(d_out, row, ld_d_out, head, head_dim), part, head_dim, wide, b);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(a[i], b[i], sum);
    }
    for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (row < rows && part == 0) row_of(delta, row, ld_delta)[head] = sum;
}

#define ATTENTION_DELTA(T, SUFFIX)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                           \
        attention_delta_##SUFFIX(const T* out, int ld_out, const T* d_out, int ld_d_out, int heads, int head_dim, float* delta, \
                                 int ld_delta, int rows) {                                                                      \
        attention_delta<T>(out, ld_out, d_out, ld_d_out, heads, head_dim, delta, ld_delta, rows);                               \
    }                                                                                                                           \
    KERNEL_ENTRY(attention_delta_##SUFFIX);
FOR_BOTH_HALVES(ATTENTION_DELTA)

// ---- dK, dV -----------------------------------------------------------------------------------------------------

template <class T, int kDim>
__device__ __forceinline__ void attention_backward_key(const Operands<T>& o, const Saved<T>& saved, T* d_key, int ld_d_key, T* d_value,
                                                       int ld_d_value) {
    constexpr Tile kTile = kBackwardKey[tile_index(kDim)];
    using Block = KeyMajor<T, kDim, kTile.warps, kTile.blocks, kTile.step, kTile.chunk>;
    const Sequence s = sequence(o, blockIdx.z);
    const int first = blockIdx.x * Block::kRows, rows = min(Block::kRows, s.keys - first), kv_head = blockIdx.y;
    if (rows <= 0) return;

    DYN_SMEM(shared);
    Block block(shared);
    const int row = threadIdx.x / 32 * 16 * kTile.blocks;
    const int first_row = first_to_see(o, s, first), end_row = s.first_query + s.queries;
    if (first_row < end_row) {
        const Rows<T> own[] = {{head_of(o.key, s.first_key + first, o.ld_key, kv_head, o.head_dim), o.ld_key},
                               {head_of(o.value, s.first_key + first, o.ld_value, kv_head, o.head_dim), o.ld_value}};
        load_tiles<T, kDim, Block::kRows, Block::kThreads>(block.keys, own, rows, o.head_dim);
        block.add(o, saved, kv_head, first_row, end_row, front_of(o) + first, row < rows, first, s.separator);
    }
    if (row >= rows) return;
    const int key_row = o.key_offsets[blockIdx.z] + first;  // asked anew, since no register is free
    d_key = head_of(d_key, key_row, ld_d_key, kv_head, o.head_dim);
    d_value = head_of(d_value, key_row, ld_d_value, kv_head, o.head_dim);
    store_rows<T, kDim, kTile.blocks>(block.keys, row, block.d_key, key_factor(o), d_key, ld_d_key, rows, o.head_dim);
    store_rows<T, kDim, kTile.blocks>(block.values, row, block.d_value, value_factor(o), d_value, ld_d_value, rows, o.head_dim);
}

#define ATTENTION_BACKWARD_KEY(T, SUFFIX, D)                                                                                    \
    extern "C" __global__ void ATTENTION_LAUNCH_BOUNDS(kBackwardKey, D)                                                         \
        attention_backward_key_##SUFFIX##_##D(ATTENTION_PARAMETERS(T), SAVED_PARAMETERS(T), T* d_key, int ld_d_key, T* d_value, \
                                              int ld_d_value) {                                                                 \
        attention_backward_key<T, D>(ATTENTION_OPERANDS(T), SAVED_OPERANDS(T), d_key, ld_d_key, d_value, ld_d_value);           \
    }                                                                                                                           \
    KERNEL_ENTRY(attention_backward_key_##SUFFIX##_##D);

// ---- dQ ---------------------------------------------------------------------------------------------------------

template <class T, int kDim>
__device__ __forceinline__ void attention_backward_query(const Operands<T>& o, const Saved<T>& saved, T* d_query, int ld_d_query) {
    constexpr Tile kTile = kBackwardQuery[tile_index(kDim)];
    constexpr int M = kTile.blocks, N = kTile.chunk / 8, kRows = 16 * kTile.warps * M, kStep = kTile.step, kThreads = 32 * kTile.warps;
    DYN_SMEM(shared);
    T *queries = (T*)shared, *d_outs = queries + kRows * kDim, *stages = d_outs + kRows * kDim;

    const Sequence s = sequence(o, blockIdx.z);
    const int first = blockIdx.x * kRows, rows = min(kRows, s.queries - first), first_row = s.first_query + first;
    if (rows <= 0) return;
    const int head = blockIdx.y, kv_head = head / (o.heads / o.kv_heads);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x / 32 * 16 * M;
    // As in attention_forward: columns that some query of the block sees, and of the warp.
    const int front = front_of(o), columns = front + seen_by(o, s, first_row + rows - 1);
    const int own = row < rows ? front + seen_by(o, s, first_row + min(row + 16 * M, rows) - 1) : 0;

    const Rows<T> own_rows[] = {{head_of(o.query, first_row, o.ld_query, head, o.head_dim), o.ld_query},
                                {head_of(saved.d_out, first_row, saved.ld_d_out, head, o.head_dim), saved.ld_d_out}};
    load_tiles<T, kDim, kRows, kThreads>(queries, own_rows, rows, o.head_dim);
    if (columns > 0) load_columns<T, kDim, kStep, kThreads>(stages, o, s, blockIdx.z, kv_head, 0);
    copy_async_commit();

    LeftRows<T, kDim, M, false> query_rows, d_out_rows;
    query_rows.tile = queries;
    d_out_rows.tile = d_outs;
    query_rows.row = d_out_rows.row = row;
    float sums[M][kDim / 8][4] = {}, offset[M][2] = {}, delta[M][2] = {};  // offset: L in powers of two
#pragma unroll
    for (int i = 0; i < M * 2; ++i) {
        const int at = row + i * 8 + g;
        if (at >= rows) continue;
        offset[i / 2][i % 2] = kLog2E * row_of(saved.log_sum_exp, first_row + at, saved.ld_log_sum_exp)[head];
        delta[i / 2][i % 2] = row_of(saved.delta, first_row + at, saved.ld_delta)[head];
    }
    const float scale = o.scale * kLog2E;

    for (int column = 0, stage = 0; column < columns; column += kStep, stage ^= 1) {
        copy_async_wait<0>();
        __syncthreads();  // this tile is complete, and nobody reads the other stage any more
        if (column + kStep < columns) {
            load_columns<T, kDim, kStep, kThreads>(stages + (stage ^ 1) * 2 * kStep * kDim, o, s, blockIdx.z, kv_head, column + kStep);
            copy_async_commit();
        }
        if (column >= own) continue;
        __syncwarp();  // lanes may have loaded different things; ldmatrix and mma want them together
        const T *keys = stages + stage * 2 * kStep * kDim, *values = keys + kStep * kDim;
        for (int chunk = 0; chunk < min(kStep, own - column); chunk += kTile.chunk) {
            float scores[M][N][4], gradients[M][N][4];
            multiply_rows<T, kDim, M, N>(scores, query_rows, keys, chunk);
            multiply_rows<T, kDim, M, N>(gradients, d_out_rows, values, chunk);
            // Whether the warp's first query sees them all, and so every query; asked anew, since no register is free.
            const bool partly = column + chunk + kTile.chunk > front_of(o) + seen_by(o, s, first_row + row);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                if (o.dropout.threshold) {
                    // Of the row that this lane draws for; read anew, since no register is free.
                    const int drawn = first_row + min(row + m * 16 + g + t % 2 * 8, rows - 1);
                    const uint32_t bits = keep_rows<N>(o.dropout, o.query_ordinals[drawn], o.query_tokens[drawn], head, column + chunk);
#pragma unroll
                    for (int i = 0; i < N * 4; ++i) {
                        float& gradient = gradients[m][i / 4][i % 4];
                        gradient = kept_in_rows(bits, i / 4, i % 4) ? gradient * o.dropout.scale : 0.0f;
                    }
                }
#pragma unroll
                for (int i = 0; i < N * 4; ++i) {
                    const float probability = exp2_fast(fmaf(scores[m][i / 4][i % 4], scale, -offset[m][i % 4 / 2]));
                    float& gradient = gradients[m][i / 4][i % 4];
                    gradient = probability * (gradient - delta[m][i % 4 / 2]);
                }
                if (partly) {  // columns that a query does not see count for nothing
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int seen = front_of(o) + seen_by(o, s, first_row + min(row + m * 16 + half * 8 + g, rows - 1));
                        const int left_over = seen - column - chunk - 2 * t;
#pragma unroll
                        for (int j = 0; j < N * 2; ++j)
                            if (j / 2 * 8 + j % 2 >= left_over) gradients[m][j / 2][half * 2 + j % 2] = 0.0f;
                    }
                }
            }
            hide_gap(gradients, o, column + chunk, 0.0f);
            multiply_columns<T, kDim, M, N>(sums, gradients, keys, chunk);
        }
    }
    copy_async_wait<0>();
    __syncthreads();  // without any columns the queries' copies may still be under way, to where the gradient goes
    if (row >= rows) return;
    T* to = head_of(d_query, first_row, ld_d_query, head, o.head_dim);
    store_rows<T, kDim, M>(queries, row, sums, o.scale, to, ld_d_query, rows, o.head_dim);
}

#define ATTENTION_BACKWARD_QUERY(T, SUFFIX, D)                                                                              \
    extern "C" __global__ void ATTENTION_LAUNCH_BOUNDS(kBackwardQuery, D)                                                   \
        attention_backward_query_##SUFFIX##_##D(ATTENTION_PARAMETERS(T), SAVED_PARAMETERS(T), T* d_query, int ld_d_query) { \
        attention_backward_query<T, D>(ATTENTION_OPERANDS(T), SAVED_OPERANDS(T), d_query, ld_d_query);                      \
    }                                                                                                                       \
    KERNEL_ENTRY(attention_backward_query_##SUFFIX##_##D);

#define ATTENTION_BACKWARD_DIMS(T, SUFFIX)                                          \
    ATTENTION_BACKWARD_KEY(T, SUFFIX, 16) ATTENTION_BACKWARD_KEY(T, SUFFIX, 32)     \
    ATTENTION_BACKWARD_KEY(T, SUFFIX, 64) ATTENTION_BACKWARD_KEY(T, SUFFIX, 128)    \
    ATTENTION_BACKWARD_QUERY(T, SUFFIX, 16) ATTENTION_BACKWARD_QUERY(T, SUFFIX, 32) \
    ATTENTION_BACKWARD_QUERY(T, SUFFIX, 64) ATTENTION_BACKWARD_QUERY(T, SUFFIX, 128)
FOR_BOTH_HALVES(ATTENTION_BACKWARD_DIMS)
