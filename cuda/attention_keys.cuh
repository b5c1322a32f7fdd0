// attention_keys.cuh: the key-major half of attention's backward: a block owns some key rows and walks queries. It is
// the whole of backward_key (keys are a sequence's tokens) and of the prefix gradient (keys are prefix positions).
//
//   A^T = dropout(P)^T, P^T = exp(K Q^T scale - L); dS^T = P^T (dropout(V dO^T) - D); dV = A^T dO; dK = dS^T Q * scale
//
// Everything is computed transposed (keys are the rows of the fragments), so that A^T and dS^T go from accumulators to
// operands in registers. dS is rounded to T without the scale, which the fp32 sums take at the end.
#pragma once
#include "attention_tiles.cuh"

// One key-major kernel's shared memory and accumulators.
template <class T, int kDim, int kWarps, int M, int kStep, int kChunk>
struct KeyMajor {
    static constexpr int kRows = 16 * kWarps * M, kThreads = 32 * kWarps, N = kChunk / 8;
    static constexpr int kStageBytes = 2 * kStep * kDim * (int)sizeof(T) + 4 * 4 * kStep;

    T *keys, *values;
    unsigned char* stages;
    float d_key[M][kDim / 8][4], d_value[M][kDim / 8][4];

    __device__ __forceinline__ explicit KeyMajor(unsigned char* shared)
        : keys((T*)shared), values(keys + kRows * kDim), stages((unsigned char*)(values + kRows * kDim)) {
        clear();
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < M * kDim / 2; ++i) {
            d_key[i / (kDim / 2)][i / 4 % (kDim / 8)][i % 4] = 0.0f;
            d_value[i / (kDim / 2)][i / 4 % (kDim / 8)][i % 4] = 0.0f;
        }
    }

    // A stage: queries, output gradients [kStep, kDim], then L, D, tokens and ordinals of its queries.
    __device__ __forceinline__ T* queries(int stage) const { return (T*)(stages + stage * kStageBytes); }
    __device__ __forceinline__ T* d_outs(int stage) const { return queries(stage) + kStep * kDim; }
    __device__ __forceinline__ float* numbers(int stage) const { return (float*)(d_outs(stage) + kStep * kDim); }

    // Starts loading query rows row.. of which `count` exist.
    __device__ __forceinline__ void load(int stage, const Operands<T>& o, const Saved<T>& saved, int head, int row, int count,
                                         bool tokens) {
        const Rows<T> from[] = {{head_of(o.query, row, o.ld_query, head, o.head_dim), o.ld_query},
                                {head_of(saved.d_out, row, saved.ld_d_out, head, o.head_dim), saved.ld_d_out}};
        load_tiles<T, kDim, kStep, kThreads>(queries(stage), from, count, o.head_dim);
        float* to = numbers(stage);
        for (int i = threadIdx.x; i < kStep; i += kThreads) {
            const bool valid = i < count;
            const int at = row + (valid ? i : 0);
            copy_async<4>(to + i, row_of(saved.log_sum_exp, at, saved.ld_log_sum_exp) + head, valid);
            copy_async<4>(to + kStep + i, row_of(saved.delta, at, saved.ld_delta) + head, valid);
            if (tokens) {
                copy_async<4>(to + 2 * kStep + i, o.query_tokens + at, valid);
                copy_async<4>(to + 3 * kStep + i, o.query_ordinals + at, valid);
            }
        }
        copy_async_commit();
    }

    // Adds the gradients that the queries first_row..end_row of all heads of `kv_head` give. The keys' tiles may still
    // be on their way; `column` is the score column of the block's first key row, a multiple of 16; `active` is whether
    // this warp has keys; `key` is the index of that first row among its sequence's keys, for `separator`. All threads
    // call it; nothing in shared memory is in use any more when it returns.
    __device__ __forceinline__ void add(const Operands<T>& o, const Saved<T>& saved, int kv_head, int first_row, int end_row, int column,
                                        bool active, int key, int separator) {
        const int group = o.heads / o.kv_heads, tiles = (end_row - first_row + kStep - 1) / kStep;
        const int row = threadIdx.x / 32 * 16 * M;
        LeftRows<T, kDim, M, false> key_rows, value_rows;
        key_rows.tile = keys;
        value_rows.tile = values;
        key_rows.row = value_rows.row = row;
        const float scale = o.scale * kLog2E;
        const bool masked = separator != kSeesAll, tokens = masked || o.dropout.threshold;
        int head = kv_head * group, at = first_row, stage = 0;
        load(0, o, saved, head, at, min(kStep, end_row - at), tokens);
        for (int rest = group * tiles; rest > 0; --rest, stage ^= 1) {
            copy_async_wait<0>();
            __syncthreads();  // this tile is complete, and nobody reads the other stage any more
            const int this_head = head, count = min(kStep, end_row - at);
            at += kStep;
            if (at >= end_row) at = first_row, ++head;
            if (rest > 1) load(stage ^ 1, o, saved, head, at, min(kStep, end_row - at), tokens);
            if (!active) continue;
            __syncwarp();  // lanes may have loaded different things; ldmatrix and mma want them together
            const int* const seen = (const int*)(numbers(stage) + 2 * kStep);  // the queries' tokens
            for (int chunk = 0; chunk < count; chunk += kChunk) {
                if (masked && key + row >= max(seen[min(chunk + kChunk, count) - 1] + 1, separator)) continue;
                const bool partly = masked && key + row + 16 * M > max(seen[chunk] + 1, separator);
                add_chunk(o, key_rows, value_rows, stage, chunk, this_head, column + row, scale, partly, key + row, separator);
            }
        }
        __syncthreads();
    }

    // The part of add() for queries chunk .. chunk + kChunk of a stage; `column` is that of the warp's first key, and `key`
    // its index among the sequence's keys; `partly`: some of the queries may not see all of the warp's keys.
    __device__ __forceinline__ void add_chunk(const Operands<T>& o, const LeftRows<T, kDim, M, false>& key_rows,
                                              const LeftRows<T, kDim, M, false>& value_rows, int stage, int chunk, int head, int column,
                                              float scale, bool partly, int key, int separator) {
        const int t = lane_anew() % 4;
        float probabilities[M][N][4], gradients[M][N][4];
        multiply_rows<T, kDim, M, N>(probabilities, key_rows, queries(stage), chunk);
        multiply_rows<T, kDim, M, N>(gradients, value_rows, d_outs(stage), chunk);
        const float *log_sum_exp = numbers(stage) + chunk, *delta = log_sum_exp + kStep;
        // Rows past the queries' end are all zero: P^T is 1 there, and multiplies zeros.
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float2 offset = *(const float2*)(log_sum_exp + n * 8 + 2 * t);
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    probabilities[m][n][i] = exp2_fast(fmaf(probabilities[m][n][i], scale, -kLog2E * (i % 2 ? offset.y : offset.x)));
        }
        if (partly) {
            const int* tokens = (const int*)(log_sum_exp + 2 * kStep);
            const int first = key + lane_anew() / 4;
#pragma unroll
            for (int i = 0; i < N * 2; ++i) {
                const int seen = max(tokens[i / 2 * 8 + 2 * t + i % 2] + 1, separator) - first;
#pragma unroll
                for (int j = 0; j < M * 2; ++j)
                    if (j * 8 >= seen) probabilities[j / 2][i / 2][j % 2 * 2 + i % 2] = 0.0f;
            }
        }
        uint32_t bits = 0;
        if (o.dropout.threshold) {
            const int *tokens = (const int*)(log_sum_exp + 2 * kStep), *ordinals = (const int*)(log_sum_exp + 3 * kStep);
            bits = keep_columns<M, N>(o.dropout, ordinals, tokens, head, column);
#pragma unroll
            for (int i = 0; i < M * N * 4; ++i) {
                const int m = i / (N * 4), n = i / 4 % N;
                float& gradient = gradients[m][n][i % 4];
                gradient = kept_in_columns<N>(bits, m, n, i % 4) ? gradient * o.dropout.scale : 0.0f;
            }
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float2 sum = *(const float2*)(delta + n * 8 + 2 * t);
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i) gradients[m][n][i] = probabilities[m][n][i] * (gradients[m][n][i] - (i % 2 ? sum.y : sum.x));
        }
        multiply_columns<T, kDim, M, N>(d_key, gradients, queries(stage), chunk);
        if (o.dropout.threshold) {
#pragma unroll
            for (int i = 0; i < M * N * 4; ++i) {
                const int m = i / (N * 4), n = i / 4 % N;
                if (!kept_in_columns<N>(bits, m, n, i % 4)) probabilities[m][n][i % 4] = 0.0f;
            }
        }
        multiply_columns<T, kDim, M, N>(d_value, probabilities, d_outs(stage), chunk);
    }
};

// A gradient's last factor: dS was summed without the scale, A without its mask's.
template <class T>
__device__ __forceinline__ float key_factor(const Operands<T>& o) { return o.scale; }
template <class T>
__device__ __forceinline__ float value_factor(const Operands<T>& o) { return o.dropout.threshold ? o.dropout.scale : 1.0f; }
