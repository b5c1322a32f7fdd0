// attention_forward.cu: flash attention over packed sequences with a prefix in front of every sequence's keys.
//
//   S = [Q Kp^T | Q K^T] * scale; A = dropout(softmax(S)); O = A [Vp; V]; L = log sum exp S
//
// Q, O [Tq, heads * d]; K, V [Tk, kv_heads * d]; Kp, Vp [P, kv_heads * d], a sequence's own where they have their own masks
// (attention_prefix.cu); L [Tq, heads] float. A block takes some queries of one head of one sequence and walks the columns
// [prefix | keys] with an online softmax (running maximum and sum in fp32), so that nothing of size tokens^2 exists. It ends
// where no query of the block sees a key; a warp skips the steps that none of its own sees. The probabilities are rounded to
// T unnormalised (at most 1); the mask's scale and 1 / sum multiply the fp32 output at the end.
//
// FLOPs 4 (P + m) d a query and head. Bytes: Q and O once, K and V once a block of queries (from the second on out of
// L2), 4 a query and head for L. See attention_tiles.cuh for tiles and launch rules.
#include "attention_tiles.cuh"

template <class T, int kDim>
__device__ __forceinline__ void attention_forward(const Operands<T>& o, T* out, int ld_out, float* log_sum_exp, int ld_log_sum_exp) {
    constexpr Tile kTile = kForward[tile_index(kDim)];
    constexpr int M = kTile.blocks, N = kTile.step / 8, kRows = 16 * kTile.warps * M, kStep = kTile.step, kThreads = 32 * kTile.warps;
    DYN_SMEM(shared);
    T* queries = (T*)shared;
    T* stages = queries + kRows * kDim;  // two, each kStep keys and kStep values

    const Sequence s = sequence(o, blockIdx.z);
    const int first = blockIdx.x * kRows, rows = min(kRows, s.queries - first), first_row = s.first_query + first;
    if (rows <= 0) return;
    const int head = blockIdx.y, kv_head = head / (o.heads / o.kv_heads);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x / 32 * 16 * M;
    // Columns that some query of the block sees, and of the warp.
    const int front = front_of(o), columns = front + seen_by(o, s, first_row + rows - 1);
    const int own = row < rows ? front + seen_by(o, s, first_row + min(row + 16 * M, rows) - 1) : 0;

    const Rows<T> query[] = {{head_of(o.query, first_row, o.ld_query, head, o.head_dim), o.ld_query}};
    load_tiles<T, kDim, kRows, kThreads>(queries, query, rows, o.head_dim);
    if (columns > 0) load_columns<T, kDim, kStep, kThreads>(stages, o, s, blockIdx.z, kv_head, 0);
    copy_async_commit();

    LeftRows<T, kDim, M, kDim <= 64> left;
    left.tile = queries;
    left.row = row;
    float output[M][kDim / 8][4] = {}, largest[M][2], sum[M][2] = {};
#pragma unroll
    for (int i = 0; i < M * 2; ++i) largest[i / 2][i % 2] = -INFINITY;
    const float scale = o.scale * kLog2E;  // exponentials are powers of two

    for (int column = 0, stage = 0; column < columns; column += kStep, stage ^= 1) {
        copy_async_wait<0>();
        __syncthreads();  // this tile is complete, and nobody reads the other stage any more
        if (column + kStep < columns) {
            load_columns<T, kDim, kStep, kThreads>(stages + (stage ^ 1) * 2 * kStep * kDim, o, s, blockIdx.z, kv_head, column + kStep);
            copy_async_commit();
        }
        if (column >= own) continue;  // a warp without queries only helps loading, too
        __syncwarp();  // lanes may have loaded different things; ldmatrix and mma want them together
        if (column == 0) left.hold();
        const T *keys = stages + stage * 2 * kStep * kDim, *values = keys + kStep * kDim;
        float scores[M][N][4];
        multiply_rows<T, kDim, M, N>(scores, left, keys, 0);
        hide_gap(scores, o, column, -INFINITY);
        // Unless the warp's first query sees all of the step, and so every query; asked anew, since no register is free.
        if (column + kStep > front_of(o) + seen_by(o, s, first_row + row)) {
#pragma unroll
            for (int i = 0; i < M * 2; ++i) {
                const int seen = front_of(o) + seen_by(o, s, first_row + min(row + i * 8 + g, rows - 1));
                const int left_over = seen - column - 2 * t;
#pragma unroll
                for (int j = 0; j < N * 2; ++j)
                    if (j / 2 * 8 + j % 2 >= left_over) scores[i / 2][j / 2][i % 2 * 2 + j % 2] = -INFINITY;
            }
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float maximum = largest[m][half];
#pragma unroll
                for (int n = 0; n < N; ++n) maximum = fmaxf(maximum, fmaxf(scores[m][n][half * 2], scores[m][n][half * 2 + 1]));
                maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
                maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
                const float correction = exp2_fast((largest[m][half] - maximum) * scale), offset = maximum * scale;
                largest[m][half] = maximum;
                float total = 0.0f;
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int i = half * 2; i < half * 2 + 2; ++i) {
                        scores[m][n][i] = exp2_fast(fmaf(scores[m][n][i], scale, -offset));
                        total += scores[m][n][i];
                    }
                sum[m][half] = fmaf(sum[m][half], correction, total);
#pragma unroll
                for (int n = 0; n < kDim / 8; ++n) {
                    output[m][n][half * 2] *= correction;
                    output[m][n][half * 2 + 1] *= correction;
                }
            }
            if (o.dropout.threshold) {
                // Of the row that this lane draws for; read anew, since no register is free.
                const int drawn = first_row + min(row + m * 16 + g + t % 2 * 8, rows - 1);
                const uint32_t bits = keep_rows<N>(o.dropout, o.query_ordinals[drawn], o.query_tokens[drawn], head, column);
#pragma unroll
                for (int i = 0; i < N * 4; ++i)
                    if (!kept_in_rows(bits, i / 4, i % 4)) scores[m][i / 4][i % 4] = 0.0f;
            }
        }
        multiply_columns<T, kDim, M, N>(output, scores, values, 0);
    }
    copy_async_wait<0>();
    __syncthreads();  // without any columns the queries' copies may still be under way, to where the output goes
    if (row >= rows) return;
    const float kept_scale = o.dropout.threshold ? o.dropout.scale : 1.0f;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float total = sum[m][half];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const float factor = total == 0.0f ? 0.0f : kept_scale / total;  // 0: no columns at all
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
                output[m][n][half * 2] *= factor;
                output[m][n][half * 2 + 1] *= factor;
            }
            const int at = row + m * 16 + half * 8 + g;
            if (t == 0 && at < rows) row_of(log_sum_exp, first_row + at, ld_log_sum_exp)[head] = largest[m][half] * o.scale + logf(total);
        }
    T* to = head_of(out, first_row, ld_out, head, o.head_dim);
    store_rows<T, kDim, M>(queries, row, output, 1.0f, to, ld_out, rows, o.head_dim);
}

#define ATTENTION_FORWARD(T, SUFFIX, D)                                                                                         \
    extern "C" __global__ void ATTENTION_LAUNCH_BOUNDS(kForward, D)                                                             \
        attention_forward_##SUFFIX##_##D(ATTENTION_PARAMETERS(T), T* out, int ld_out, float* log_sum_exp, int ld_log_sum_exp) { \
        attention_forward<T, D>(ATTENTION_OPERANDS(T), out, ld_out, log_sum_exp, ld_log_sum_exp);                               \
    }                                                                                                                           \
    KERNEL_ENTRY(attention_forward_##SUFFIX##_##D);
#define ATTENTION_FORWARD_DIMS(T, SUFFIX) \
    ATTENTION_FORWARD(T, SUFFIX, 16) ATTENTION_FORWARD(T, SUFFIX, 32) ATTENTION_FORWARD(T, SUFFIX, 64) ATTENTION_FORWARD(T, SUFFIX, 128)
FOR_BOTH_HALVES(ATTENTION_FORWARD_DIMS)
