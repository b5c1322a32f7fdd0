// norm.cu: residual + dropout + normalisation, forward and backward.
//
// Forward:  sum = residual + dropout(branch); normalized = (sum - mean) * rstd; out = normalized * gamma + beta, with
//           `normalized` as it was stored (rounded), so that backward sees the values that made the output. Where the sum
//           is stored, it is normalised as stored, so that the norm of what was stored gives the same bits.
// Output:   out once more from `normalized`, for those who kept nothing else.
//           RMSNorm: mean = 0 and no beta; rstd = 1 / sqrt(mean((sum - mean)²) + epsilon).
// Backward: g = d_out * gamma; d_sum = rstd * (g - mean(g) - normalized * mean(g * normalized)) + d_residual;
//           d_branch = dropout(d_sum). RMSNorm: without mean(g).
//
// All matrices are [rows, width]; gamma, beta [width] and rstd [rows] in float. d_sum may be d_out or d_residual.
// Bytes moved a row: forward 2 * width * (residual, branch, normalized, out, sum where there are); output 4 * width;
// backward 2 * width * (d_out, normalized, d_sum, d_residual, d_branch where there are). FLOPs: about 8, 2 and 10 an element.
// Launch: that of normalisation.cuh.
#include "normalisation.cuh"
#include "philox.cuh"

namespace {

template <class T, bool kWide>
__device__ __forceinline__ void norm_forward_row(int kind, float epsilon, const T* residual, const T* branch, const Dropout& dropout,
                                                 uint32_t ordinal, uint32_t token, const float* gamma, const float* beta, T* sum, T* normalized,
                                                 float* rstd, T* out, int width) {
    // Everything that is read is asked for before any of it is used: that is what keeps the memory busy.
    Row<kWide, T> kept, added;
    kept.ask(residual, width);
    if (branch) added.ask(branch, width);
    float x[kPacks][8];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) kept.read(p, x[p]);
    if (branch) {
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
            float part[8];
            added.read(p, part);
            if (dropout.threshold) apply_dropout(part, dropout, ordinal, token, 0, column_of(p));
#pragma unroll
            for (int i = 0; i < 8; ++i) x[p][i] += part[i];
        }
    }
    if (sum) {
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
            round_pack<T>(x[p]);
            store_columns<kWide>(sum, column_of(p), width, x[p]);
        }
    }
    const float scale = centre_row<kWide>(kind, epsilon, x, width);
    if (threadIdx.x == 0) *rstd = scale;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        normalize_pack<T>(x[p], scale);
        store_columns<kWide>(normalized, column_of(p), width, x[p]);
        scale_pack<kWide>(x[p], gamma, beta, column_of(p), width);
        store_columns<kWide>(out, column_of(p), width, x[p]);
    }
}

template <class T, bool kWide>
__device__ __forceinline__ void norm_output_row(const T* normalized, const float* gamma, const float* beta, T* out, int width) {
    Row<kWide, T> kept;
    kept.ask(normalized, width);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        float x[8];
        kept.read(p, x);
        scale_pack<kWide>(x, gamma, beta, column_of(p), width);
        store_columns<kWide>(out, column_of(p), width, x);
    }
}

template <class T, bool kWide>
__device__ __forceinline__ void norm_backward_row(int kind, const T* d_out, const T* d_residual, const float* gamma, const T* normalized,
                                                  float rstd, T* d_sum, const Dropout& dropout, uint32_t ordinal, uint32_t token, T* d_branch,
                                                  int width) {
    Row<kWide, T> above, kept, beside;
    above.ask(d_out, width);
    kept.ask(normalized, width);
    if (d_residual) beside.ask(d_residual, width);
    float g[kPacks][8], sums[2] = {0.0f, 0.0f};  // sums of g and of g * normalized
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        float weight[8], x[8];
        load_columns<kWide>(gamma, column_of(p), width, weight);
        above.read(p, g[p]);
        kept.read(p, x);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            g[p][i] *= weight[i];
            sums[0] += g[p][i];
            sums[1] += g[p][i] * x[i];
        }
    }
    row_sums(sums);
    const float mean = kind == kLayerNorm ? sums[0] / width : 0.0f, projection = sums[1] / width;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        float x[8];
        kept.read(p, x);
#pragma unroll
        for (int i = 0; i < 8; ++i) g[p][i] = rstd * (g[p][i] - mean - x[i] * projection);
        if (d_residual) {
            float part[8];
            beside.read(p, part);
#pragma unroll
            for (int i = 0; i < 8; ++i) g[p][i] += part[i];
        }
        store_columns<kWide>(d_sum, column_of(p), width, g[p]);
        if (d_branch) {
            if (dropout.threshold) apply_dropout(g[p], dropout, ordinal, token, 0, column_of(p));
            store_columns<kWide>(d_branch, column_of(p), width, g[p]);
        }
    }
}

}  // namespace

#define ENTRIES(T, suffix, wide)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(kThreads) norm_forward_##suffix(                                                         \
        int kind, float epsilon, const T* residual, int ld_residual, const T* branch, int ld_branch, uint32_t key0, uint32_t key1,        \
        uint32_t threshold, float scale, const int* ordinals, const int* tokens, const float* gamma, const float* beta, T* sum,           \
        int ld_sum, T* normalized, int ld_normalized, float* rstd, T* out, int ld_out, int rows, int width) {                             \
        const int row = row_of_thread(rows);                                                                                              \
        if (row < 0) return;                                                                                                              \
        const bool dropping = branch && threshold;                                                                                        \
        norm_forward_row<T, wide>(kind, epsilon, row_of(residual, row, ld_residual), optional_row(branch, row, ld_branch),                \
                                  {key0, key1, threshold, scale}, dropping ? ordinals[row] : 0, dropping ? tokens[row] : 0, gamma, beta,  \
                                  optional_row(sum, row, ld_sum), row_of(normalized, row, ld_normalized), rstd + row,                     \
                                  row_of(out, row, ld_out), width);                                                                       \
    }                                                                                                                                     \
    KERNEL_ENTRY(norm_forward_##suffix);                                                                                                  \
    extern "C" __global__ void __launch_bounds__(kThreads) norm_output_##suffix(                                                          \
        const T* normalized, int ld_normalized, const float* gamma, const float* beta, T* out, int ld_out, int rows, int width) {         \
        const int row = row_of_thread(rows);                                                                                              \
        if (row < 0) return;                                                                                                              \
        norm_output_row<T, wide>(row_of(normalized, row, ld_normalized), gamma, beta, row_of(out, row, ld_out), width);                   \
    }                                                                                                                                     \
    KERNEL_ENTRY(norm_output_##suffix);                                                                                                   \
    extern "C" __global__ void __launch_bounds__(kThreads) norm_backward_##suffix(                                                        \
        int kind, const T* d_out, int ld_d_out, const T* d_residual, int ld_d_residual, const float* gamma, const T* normalized,          \
        int ld_normalized, const float* rstd, T* d_sum, int ld_d_sum, uint32_t key0, uint32_t key1, uint32_t threshold, float scale,      \
        const int* ordinals, const int* tokens, T* d_branch, int ld_d_branch, int rows, int width) {                                      \
        const int row = row_of_thread(rows);                                                                                              \
        if (row < 0) return;                                                                                                              \
        const bool dropping = d_branch && threshold;                                                                                      \
        norm_backward_row<T, wide>(kind, row_of(d_out, row, ld_d_out), optional_row(d_residual, row, ld_d_residual), gamma,               \
                                   row_of(normalized, row, ld_normalized), rstd[row], row_of(d_sum, row, ld_d_sum),                       \
                                   {key0, key1, threshold, scale}, dropping ? ordinals[row] : 0, dropping ? tokens[row] : 0,              \
                                   optional_row(d_branch, row, ld_d_branch), width);                                                      \
    }                                                                                                                                     \
    KERNEL_ENTRY(norm_backward_##suffix);
FOR_BOTH_HALVES_AND_ROWS(ENTRIES)
