// attention_relative.cu: attention of models with relative positions (DeBERTa), forward and backward: the formulas of
// attention_forward.cu and attention_backward.cu with the terms of attention_relative.cuh in the scores S. Prefix columns
// have no such terms, and their gradients are prefix_gradient.cu's.
//
// A block's queries are those of kOwn = 64 tokens in a row, not 64 rows: where a layer has fewer queries than tokens, the
// slots of the others stand empty, so that distances stay a matter of places. Key-major blocks walk queries the same way.
// One kernel a type: heads of up to 64 dims, padded with zeros. No atomics, every sum in the order of its tiles.
//
// FLOPs a query, key and head of d: forward 4 d + 7 d, query-major 6 d + 10 d, key-major 8 d + 10 d. Bytes: as the plain
// kernels, and the band's rows once a tile of keys (or queries), out of L2.
//
// Launching. Blocks are 32 * warps threads, tile and own of the table kRelative; shared memory is the same for all:
//   all three   grid ceil(max_keys / own) x heads x sequences
#include "attention_relative.cuh"

constexpr int kDim = 64, kStep = kRelative[0].step, kThreads = 32 * kRelative[0].warps, kOwn = 16 * kRelative[0].warps, N = kStep / 8;
static_assert(relative_bytes(kRelative[0]) >= (2 * kOwn + 4 * kStep) * kDim * 2 + 2 * 4 * 4 * kStep + Band<__half, kDim>::kBytes,
              "own rows, streamed rows and their numbers, the band");
static_assert(relative_bytes(kRelative[0]) <= kSharedLimit, "the tile outgrows shared memory");

// ---- forward ----------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void attention_relative_forward(const Operands<T>& o, const Tables<T>& tables, T* out, int ld_out, float* log_sum_exp,
                                        int ld_log_sum_exp) {
    DYN_SMEM(shared);
    T *queries = (T*)shared, *stages = queries + kOwn * kDim;  // two stages, each kStep keys and kStep values
    const Sequence s = sequence(o, blockIdx.z);
    const int head = blockIdx.y, first_token = blockIdx.x * kOwn, front = front_of(o), columns = front + s.keys;
    if (first_token >= s.keys || s.queries == 0) return;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x / 32 * 16;
    const uint32_t ordinal = ordinal_of(o, s.first_query);
    const QuerySlots slots(o, s, first_token);
    const bool active = __ballot_sync(~0u, slots.row(row + lane % 16) >= 0) != 0;  // a warp without queries only helps loading
    // The first tile with keys may begin with the last prefix columns.
    const int first_column = front / kStep * kStep, prefix_rows = front - first_column;
    Band<T, kDim> band((unsigned char*)(stages + 4 * kStep * kDim), o, tables, head, 0, first_token, -prefix_rows);

    load_slots<T, kDim, kOwn, kThreads>(queries, o.query + head * o.head_dim, o.ld_query, slots, 0, o.head_dim);
    load_columns<T, kDim, kStep, kThreads>(stages, o, s, blockIdx.z, head, 0);
    band.load_first();
    copy_async_commit();

    LeftRows<T, kDim, 1, true> left;
    left.tile = queries;
    left.row = row;
    float output[1][kDim / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    const uint32_t token = first_token + row + g + t % 2 * 8;  // of the slot that this lane draws masks for
    const float scale = o.scale * kLog2E;                         // exponentials are powers of two

    for (int column = 0, stage = 0; column < columns; column += kStep, stage ^= 1) {
        const int tile = (column - first_column) / kStep;
        copy_async_wait<0>();
        __syncthreads();  // this tile is complete, and nobody reads the other stage or the band's oldest step any more
        if (column + kStep < columns) {
            load_columns<T, kDim, kStep, kThreads>(stages + (stage ^ 1) * 2 * kStep * kDim, o, s, blockIdx.z, head, column + kStep);
            if (column >= first_column) band.load(tile + 3);
            copy_async_commit();
        }
        if (!active) continue;
        __syncwarp();  // lanes may have loaded different things; ldmatrix and mma want them together
        if (column == 0) left.hold();
        const T *keys = stages + stage * 2 * kStep * kDim, *values = keys + kStep * kDim;
        float scores[1][N][4];
        multiply_rows<T, kDim, 1, N>(scores, left, keys, 0);
        if (column >= first_column) band.add(scores, left, row, keys, tile, tile == 0 ? prefix_rows : 0);
        hide_gap(scores, o, column, -INFINITY);
        const int left_over = columns - column - 2 * t;
#pragma unroll
        for (int i = 0; i < N * 4; ++i)
            if (i / 4 * 8 + i % 2 >= left_over) scores[0][i / 4][i % 4] = -INFINITY;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float maximum = largest[half];
#pragma unroll
            for (int n = 0; n < N; ++n) maximum = fmaxf(maximum, fmaxf(scores[0][n][half * 2], scores[0][n][half * 2 + 1]));
            maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
            maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
            const float correction = exp2_fast((largest[half] - maximum) * scale), offset = maximum * scale;
            largest[half] = maximum;
            float total = 0.0f;
#pragma unroll
            for (int i = 0; i < N * 2; ++i) {
                float& score = scores[0][i / 2][half * 2 + i % 2];
                score = exp2_fast(fmaf(score, scale, -offset));
                total += score;
            }
            sum[half] = fmaf(sum[half], correction, total);
#pragma unroll
            for (int i = 0; i < kDim / 4; ++i) output[0][i / 2][half * 2 + i % 2] *= correction;
        }
        if (o.dropout.threshold) {
            const uint32_t bits = keep_rows<N>(o.dropout, ordinal, token, head, column);
#pragma unroll
            for (int i = 0; i < N * 4; ++i)
                if (!kept_in_rows(bits, i / 4, i % 4)) scores[0][i / 4][i % 4] = 0.0f;
        }
        multiply_columns<T, kDim, 1, N>(output, scores, values, 0);
    }
    if (!active) return;
    const float kept_scale = o.dropout.threshold ? o.dropout.scale : 1.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float total = sum[half];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
#pragma unroll
        for (int i = 0; i < kDim / 4; ++i) output[0][i / 2][half * 2 + i % 2] *= kept_scale / total;
        const int at = slots.row(row + half * 8 + g);
        if (t == 0 && at >= 0) row_of(log_sum_exp, at, ld_log_sum_exp)[head] = largest[half] * o.scale + logf(total);
    }
    store_slots<T, kDim>(queries, row, output, 1.0f, out + head * o.head_dim, ld_out, slots, o.head_dim);
}

#define RELATIVE_FORWARD(T, SUFFIX)                                                                                             \
    extern "C" __global__ void __launch_bounds__(kThreads, 2) attention_relative_forward_##SUFFIX(                              \
        ATTENTION_PARAMETERS(T), RELATIVE_PARAMETERS(T), T* out, int ld_out, float* log_sum_exp, int ld_log_sum_exp) {          \
        attention_relative_forward<T>(ATTENTION_OPERANDS(T), RELATIVE_TABLES(T), out, ld_out, log_sum_exp, ld_log_sum_exp);                        \
    }                                                                                                                           \
    KERNEL_ENTRY(attention_relative_forward_##SUFFIX);
FOR_BOTH_HALVES(RELATIVE_FORWARD)

// ---- dQ ---------------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void attention_relative_query(const Operands<T>& o, const Tables<T>& tables, const Saved<T>& saved, T* d_query, int ld_d_query) {
    DYN_SMEM(shared);
    T *queries = (T*)shared, *d_outs = queries + kOwn * kDim, *stages = d_outs + kOwn * kDim;
    const Sequence s = sequence(o, blockIdx.z);
    const int head = blockIdx.y, first_token = blockIdx.x * kOwn, front = front_of(o), columns = front + s.keys;
    if (first_token >= s.keys || s.queries == 0) return;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x / 32 * 16;
    const uint32_t ordinal = ordinal_of(o, s.first_query);
    const QuerySlots slots(o, s, first_token);
    const bool active = __ballot_sync(~0u, slots.row(row + lane % 16) >= 0) != 0;
    const int first_column = front / kStep * kStep, prefix_rows = front - first_column;
    Band<T, kDim> band((unsigned char*)(stages + 4 * kStep * kDim), o, tables, head, 0, first_token, -prefix_rows);

    load_slots<T, kDim, kOwn, kThreads>(queries, o.query + head * o.head_dim, o.ld_query, slots, 0, o.head_dim);
    load_slots<T, kDim, kOwn, kThreads>(d_outs, saved.d_out + head * o.head_dim, saved.ld_d_out, slots, 0, o.head_dim);
    load_columns<T, kDim, kStep, kThreads>(stages, o, s, blockIdx.z, head, 0);
    band.load_first();
    copy_async_commit();

    LeftRows<T, kDim, 1, false> query_rows, d_out_rows;
    query_rows.tile = queries;
    d_out_rows.tile = d_outs;
    query_rows.row = d_out_rows.row = row;
    // offset: L in powers of two; of an empty slot as large as to leave no probability.
    float sums[1][kDim / 8][4] = {}, offset[2] = {INFINITY, INFINITY}, delta[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = slots.row(row + half * 8 + g);
        if (at < 0) continue;
        offset[half] = kLog2E * row_of(saved.log_sum_exp, at, saved.ld_log_sum_exp)[head];
        delta[half] = row_of(saved.delta, at, saved.ld_delta)[head];
    }
    const uint32_t token = first_token + row + g + t % 2 * 8;
    const float scale = o.scale * kLog2E;

    for (int column = 0, stage = 0; column < columns; column += kStep, stage ^= 1) {
        const int tile = (column - first_column) / kStep, first = tile == 0 ? prefix_rows : 0;
        copy_async_wait<0>();
        __syncthreads();  // as in forward
        if (column + kStep < columns) {
            load_columns<T, kDim, kStep, kThreads>(stages + (stage ^ 1) * 2 * kStep * kDim, o, s, blockIdx.z, head, column + kStep);
            if (column >= first_column) band.load(tile + 3);
            copy_async_commit();
        }
        if (!active) continue;
        __syncwarp();
        const T *keys = stages + stage * 2 * kStep * kDim, *values = keys + kStep * kDim;
        float scores[1][N][4], gradients[1][N][4];
        multiply_rows<T, kDim, 1, N>(scores, query_rows, keys, 0);
        if (column >= first_column) band.add(scores, query_rows, row, keys, tile, first);
        multiply_rows<T, kDim, 1, N>(gradients, d_out_rows, values, 0);
        if (o.dropout.threshold) {
            const uint32_t bits = keep_rows<N>(o.dropout, ordinal, token, head, column);
#pragma unroll
            for (int i = 0; i < N * 4; ++i) {
                float& gradient = gradients[0][i / 4][i % 4];
                gradient = kept_in_rows(bits, i / 4, i % 4) ? gradient * o.dropout.scale : 0.0f;
            }
        }
        const int left_over = columns - column - 2 * t;  // columns past the end count for nothing
#pragma unroll
        for (int i = 0; i < N * 4; ++i) {
            const float probability = exp2_fast(fmaf(scores[0][i / 4][i % 4], scale, -offset[i % 4 / 2]));
            float& gradient = gradients[0][i / 4][i % 4];
            gradient = i / 4 * 8 + i % 2 < left_over ? probability * (gradient - delta[i % 4 / 2]) : 0.0f;
        }
        hide_gap(gradients, o, column, 0.0f);
        multiply_columns<T, kDim, 1, N>(sums, gradients, keys, 0);
        if (column >= first_column) band.add_gradient(sums, gradients, row, tile, first);
    }
    if (!active) return;
    store_slots<T, kDim>(queries, row, sums, o.scale, d_query + head * o.head_dim, ld_d_query, slots, o.head_dim);
}

#define RELATIVE_QUERY(T, SUFFIX)                                                                                       \
    extern "C" __global__ void __launch_bounds__(kThreads, 2) attention_relative_query_##SUFFIX(                        \
        ATTENTION_PARAMETERS(T), RELATIVE_PARAMETERS(T), SAVED_PARAMETERS(T), T* d_query, int ld_d_query) {             \
        attention_relative_query<T>(ATTENTION_OPERANDS(T), RELATIVE_TABLES(T), SAVED_OPERANDS(T), d_query, ld_d_query);           \
    }                                                                                                                   \
    KERNEL_ENTRY(attention_relative_query_##SUFFIX);
FOR_BOTH_HALVES(RELATIVE_QUERY)

// ---- dK, dV -----------------------------------------------------------------------------------------------------

// A stage of streamed queries: they and their output gradients, then L, D, tokens and ordinals.
template <class T>
__device__ __forceinline__ T* stage_of(T* stages, int stage) {
    return stages + stage * (2 * kStep * kDim + 4 * kStep * (int)(sizeof(float) / sizeof(T)));
}
template <class T>
__device__ __forceinline__ float* numbers_of(T* stage) { return (float*)(stage + 2 * kStep * kDim); }

template <class T>
__device__ __forceinline__ void load_queries(T* stage, const Operands<T>& o, const Saved<T>& saved, int head, const QuerySlots& slots, int slot,
                                             uint32_t ordinal) {
    load_slots<T, kDim, kStep, kThreads>(stage, o.query + head * o.head_dim, o.ld_query, slots, slot, o.head_dim);
    load_slots<T, kDim, kStep, kThreads>(stage + kStep * kDim, saved.d_out + head * o.head_dim, saved.ld_d_out, slots, slot, o.head_dim);
    if (threadIdx.x >= kStep) return;
    float* to = numbers_of(stage) + threadIdx.x;
    const int row = slots.row(slot + threadIdx.x);
    if (row >= 0) {
        copy_async<4>(to, row_of(saved.log_sum_exp, row, saved.ld_log_sum_exp) + head, true);
        copy_async<4>(to + kStep, row_of(saved.delta, row, saved.ld_delta) + head, true);
    } else {
        to[0] = INFINITY;  // no probability
        to[kStep] = 0.0f;
    }
    ((int*)to)[2 * kStep] = slots.first_token + slot + threadIdx.x;
    ((int*)to)[3 * kStep] = (int)ordinal;
}

template <class T>
__device__ __forceinline__ void attention_relative_key(const Operands<T>& o, const Tables<T>& tables, const Saved<T>& saved, T* d_key, int ld_d_key,
                                             T* d_value, int ld_d_value) {
    const Sequence s = sequence(o, blockIdx.z);
    const int first = blockIdx.x * kOwn, rows = min(kOwn, s.keys - first), key_row = s.first_key + first, head = blockIdx.y;
    if (rows <= 0) return;
    const int t = threadIdx.x % 4, row = threadIdx.x / 32 * 16;
    DYN_SMEM(shared);
    T *keys = (T*)shared, *values = keys + kOwn * kDim, *stages = values + kOwn * kDim;
    float d_keys[1][kDim / 8][4] = {}, d_values[1][kDim / 8][4] = {};
    if (s.queries > 0) {
        // Tiles of queries begin at a multiple of kStep, the first with the first query.
        const int first_token = o.query_tokens[s.first_query] / kStep * kStep;
        const int tiles = (o.query_tokens[s.first_query + s.queries - 1] - first_token) / kStep + 1;
        const uint32_t ordinal = ordinal_of(o, s.first_query);
        const QuerySlots slots(o, s, first_token);
        Band<T, kDim> band((unsigned char*)stage_of(stages, 2), o, tables, head, 1, first, first_token);
        const Rows<T> own[] = {{head_of(o.key, key_row, o.ld_key, head, o.head_dim), o.ld_key},
                               {head_of(o.value, key_row, o.ld_value, head, o.head_dim), o.ld_value}};
        load_tiles<T, kDim, kOwn, kThreads>(keys, own, rows, o.head_dim);
        load_queries(stages, o, saved, head, slots, 0, ordinal);
        band.load_first();
        copy_async_commit();

        LeftRows<T, kDim, 1, false> key_rows, value_rows;
        key_rows.tile = keys;
        value_rows.tile = values;
        key_rows.row = value_rows.row = row;
        const float scale = o.scale * kLog2E;
        for (int tile = 0, stage = 0; tile < tiles; ++tile, stage ^= 1) {
            copy_async_wait<0>();
            __syncthreads();  // this tile is complete, and nobody reads the other stage or the band's oldest step any more
            if (tile + 1 < tiles) {
                load_queries(stage_of(stages, stage ^ 1), o, saved, head, slots, (tile + 1) * kStep, ordinal);
                band.load(tile + 3);
                copy_async_commit();
            }
            if (row >= rows) continue;
            __syncwarp();
            const T *queries = stage_of(stages, stage), *d_outs = queries + kStep * kDim;
            const float *log_sum_exp = numbers_of(queries), *delta = log_sum_exp + kStep;
            float probabilities[1][N][4], gradients[1][N][4];
            multiply_rows<T, kDim, 1, N>(probabilities, key_rows, queries, 0);
            band.add(probabilities, key_rows, row, queries, tile, 0);
            multiply_rows<T, kDim, 1, N>(gradients, value_rows, d_outs, 0);
            uint32_t bits = 0;
            if (o.dropout.threshold) {
                const int *tokens = (const int*)(log_sum_exp + 2 * kStep), *ordinals = tokens + kStep;
                bits = keep_columns<1, N>(o.dropout, ordinals, tokens, head, front_of(o) + first + row);
#pragma unroll
                for (int i = 0; i < N * 4; ++i) {
                    float& gradient = gradients[0][i / 4][i % 4];
                    gradient = kept_in_columns<N>(bits, 0, i / 4, i % 4) ? gradient * o.dropout.scale : 0.0f;
                }
            }
#pragma unroll
            for (int i = 0; i < N * 4; ++i) {
                const int c = i / 4 * 8 + 2 * t + i % 2;
                float& probability = probabilities[0][i / 4][i % 4];
                probability = exp2_fast(fmaf(probability, scale, -kLog2E * log_sum_exp[c]));
                gradients[0][i / 4][i % 4] = probability * (gradients[0][i / 4][i % 4] - delta[c]);
            }
            multiply_columns<T, kDim, 1, N>(d_keys, gradients, queries, 0);
            band.add_gradient(d_keys, gradients, row, tile, 0);
            if (o.dropout.threshold) {
#pragma unroll
                for (int i = 0; i < N * 4; ++i)
                    if (!kept_in_columns<N>(bits, 0, i / 4, i % 4)) probabilities[0][i / 4][i % 4] = 0.0f;
            }
            multiply_columns<T, kDim, 1, N>(d_values, probabilities, d_outs, 0);
        }
    }
    if (row >= rows) return;
    d_key = head_of(d_key, key_row, ld_d_key, head, o.head_dim);
    d_value = head_of(d_value, key_row, ld_d_value, head, o.head_dim);
    const float value_factor = o.dropout.threshold ? o.dropout.scale : 1.0f;
    store_rows<T, kDim, 1>(keys, row, d_keys, o.scale, d_key, ld_d_key, rows, o.head_dim);
    store_rows<T, kDim, 1>(values, row, d_values, value_factor, d_value, ld_d_value, rows, o.head_dim);
}

#define RELATIVE_KEY(T, SUFFIX)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(kThreads, 2) attention_relative_key_##SUFFIX(                                     \
        ATTENTION_PARAMETERS(T), RELATIVE_PARAMETERS(T), SAVED_PARAMETERS(T), T* d_key, int ld_d_key, T* d_value, int ld_d_value) { \
        attention_relative_key<T>(ATTENTION_OPERANDS(T), RELATIVE_TABLES(T), SAVED_OPERANDS(T), d_key, ld_d_key, d_value, ld_d_value);       \
    }                                                                                                                              \
    KERNEL_ENTRY(attention_relative_key_##SUFFIX);
FOR_BOTH_HALVES(RELATIVE_KEY)
