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

#include <type_traits>

namespace {

template <class T, bool kWide>
__device__ __forceinline__ void norm_forward_row(int kind, float epsilon, const T* residual, const T* branch, const Dropout& dropout,
                                                 uint32_t ordinal, uint32_t token, const float* gamma, const float* beta, T* sum, T* normalized,
                                                 float* rstd, T* out, int width) {
    float x[kPacks][8];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) load_pack<kWide>(residual, column_of(p), width, x[p]);
    if (branch) {
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
            float part[8];
            load_pack<kWide>(branch, column_of(p), width, part);
            if (dropout.threshold && column_of(p) < width) apply_dropout(part, dropout, ordinal, token, 0, column_of(p));
#pragma unroll
            for (int i = 0; i < 8; ++i) x[p][i] += part[i];
        }
    }
    if (sum) {
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
            round_pack<T>(x[p]);
            if (column_of(p) < width) store_some(sum, column_of(p), width, kWide, x[p]);
        }
    }
    const float scale = centre_row<kWide>(kind, epsilon, x, width);
    if (threadIdx.x == 0) *rstd = scale;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        const int column = column_of(p);
        if (column >= width) continue;
        normalize_pack<T>(x[p], scale);
        store_some(normalized, column, width, kWide, x[p]);
        scale_pack<kWide>(x[p], gamma, beta, column, width);
        store_some(out, column, width, kWide, x[p]);
    }
}

template <class T, bool kWide>
__device__ __forceinline__ void norm_output_row(const T* normalized, const float* gamma, const float* beta, T* out, int width) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        const int column = column_of(p);
        if (column >= width) continue;
        float x[8];
        load_some(normalized, column, width, kWide, x);
        scale_pack<kWide>(x, gamma, beta, column, width);
        store_some(out, column, width, kWide, x);
    }
}

template <class T, bool kWide>
__device__ __forceinline__ void norm_backward_row(int kind, const T* d_out, const T* d_residual, const float* gamma, const T* normalized,
                                                  float rstd, T* d_sum, const Dropout& dropout, uint32_t ordinal, uint32_t token, T* d_branch,
                                                  int width) {
    float g[kPacks][8], x[kPacks][8];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        load_pack<kWide>(d_out, column_of(p), width, g[p]);
        load_pack<kWide>(normalized, column_of(p), width, x[p]);
    }
    float sums[2] = {0.0f, 0.0f};  // of g and of g * normalized
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        float weight[8];
        load_pack<kWide>(gamma, column_of(p), width, weight);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            g[p][i] *= weight[i];
            sums[0] += g[p][i];
            sums[1] += g[p][i] * x[p][i];
        }
    }
    row_sums(sums);
    const float mean = kind == kLayerNorm ? sums[0] / width : 0.0f, projection = sums[1] / width;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        const int column = column_of(p);
        if (column >= width) continue;
#pragma unroll
        for (int i = 0; i < 8; ++i) g[p][i] = rstd * (g[p][i] - mean - x[p][i] * projection);
        if (d_residual) {
            float part[8];
            load_some(d_residual, column, width, kWide, part);
#pragma unroll
            for (int i = 0; i < 8; ++i) g[p][i] += part[i];
        }
        store_some(d_sum, column, width, kWide, g[p]);
        if (d_branch) {
            if (dropout.threshold) apply_dropout(g[p], dropout, ordinal, token, 0, column);
            store_some(d_branch, column, width, kWide, g[p]);
        }
    }
}

template <class T>
__device__ __forceinline__ void norm_forward(int kind, float epsilon, const T* residual, int ld_residual, const T* branch, int ld_branch,
                                             const Dropout& dropout, const int* ordinals, const int* tokens, const float* gamma,
                                             const float* beta, T* sum, int ld_sum, T* normalized, int ld_normalized, float* rstd, T* out,
                                             int ld_out, int rows, int width) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // whole x-rows of threads leave
    const bool wide = width % 8 == 0 && rows_are_wide(residual, ld_residual) && (!branch || rows_are_wide(branch, ld_branch)) &&
                      (!sum || rows_are_wide(sum, ld_sum)) && rows_are_wide(normalized, ld_normalized) && rows_are_wide(out, ld_out) &&
                      rows_are_wide(gamma, 0) && rows_are_wide(beta, 0);
    const bool dropping = branch && dropout.threshold;
    const uint32_t ordinal = dropping ? ordinals[row] : 0, token = dropping ? tokens[row] : 0;
    auto body = [&](auto is_wide) {
        norm_forward_row<T, decltype(is_wide)::value>(kind, epsilon, row_of(residual, row, ld_residual), optional_row(branch, row, ld_branch),
                                                      dropout, ordinal, token, gamma, beta, optional_row(sum, row, ld_sum),
                                                      row_of(normalized, row, ld_normalized), rstd + row, row_of(out, row, ld_out), width);
    };
    if (wide)
        body(std::true_type());
    else
        body(std::false_type());
}

template <class T>
__device__ __forceinline__ void norm_output(const T* normalized, int ld_normalized, const float* gamma, const float* beta, T* out, int ld_out,
                                            int rows, int width) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const bool wide = width % 8 == 0 && rows_are_wide(normalized, ld_normalized) && rows_are_wide(out, ld_out) && rows_are_wide(gamma, 0) &&
                      rows_are_wide(beta, 0);
    if (wide)
        norm_output_row<T, true>(row_of(normalized, row, ld_normalized), gamma, beta, row_of(out, row, ld_out), width);
    else
        norm_output_row<T, false>(row_of(normalized, row, ld_normalized), gamma, beta, row_of(out, row, ld_out), width);
}

template <class T>
__device__ __forceinline__ void norm_backward(int kind, const T* d_out, int ld_d_out, const T* d_residual, int ld_d_residual,
                                              const float* gamma, const T* normalized, int ld_normalized, const float* rstd, T* d_sum,
                                              int ld_d_sum, const Dropout& dropout, const int* ordinals, const int* tokens, T* d_branch,
                                              int ld_d_branch, int rows, int width) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const bool wide = width % 8 == 0 && rows_are_wide(d_out, ld_d_out) && (!d_residual || rows_are_wide(d_residual, ld_d_residual)) &&
                      rows_are_wide(normalized, ld_normalized) && rows_are_wide(d_sum, ld_d_sum) &&
                      (!d_branch || rows_are_wide(d_branch, ld_d_branch)) && rows_are_wide(gamma, 0);
    const bool dropping = d_branch && dropout.threshold;
    const uint32_t ordinal = dropping ? ordinals[row] : 0, token = dropping ? tokens[row] : 0;
    auto body = [&](auto is_wide) {
        norm_backward_row<T, decltype(is_wide)::value>(kind, row_of(d_out, row, ld_d_out), optional_row(d_residual, row, ld_d_residual), gamma,
                                                       row_of(normalized, row, ld_normalized), rstd[row], row_of(d_sum, row, ld_d_sum), dropout,
                                                       ordinal, token, optional_row(d_branch, row, ld_d_branch), width);
    };
    if (wide)
        body(std::true_type());
    else
        body(std::false_type());
}

}  // namespace

#define ENTRIES(T, suffix)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(kThreads) norm_forward_##suffix(                                                         \
        int kind, float epsilon, const T* residual, int ld_residual, const T* branch, int ld_branch, uint32_t key0, uint32_t key1,        \
        uint32_t threshold, float scale, const int* ordinals, const int* tokens, const float* gamma, const float* beta, T* sum,           \
        int ld_sum, T* normalized, int ld_normalized, float* rstd, T* out, int ld_out, int rows, int width) {                             \
        norm_forward<T>(kind, epsilon, residual, ld_residual, branch, ld_branch, {key0, key1, threshold, scale}, ordinals, tokens, gamma, \
                        beta, sum, ld_sum, normalized, ld_normalized, rstd, out, ld_out, rows, width);                                    \
    }                                                                                                                                     \
    KERNEL_ENTRY(norm_forward_##suffix);                                                                                                  \
    extern "C" __global__ void __launch_bounds__(kThreads) norm_output_##suffix(const T* normalized, int ld_normalized, const float* gamma, \
                                                                                const float* beta, T* out, int ld_out, int rows, int width) { \
        norm_output<T>(normalized, ld_normalized, gamma, beta, out, ld_out, rows, width);                                                 \
    }                                                                                                                                     \
    KERNEL_ENTRY(norm_output_##suffix);                                                                                                   \
    extern "C" __global__ void __launch_bounds__(kThreads) norm_backward_##suffix(                                                        \
        int kind, const T* d_out, int ld_d_out, const T* d_residual, int ld_d_residual, const float* gamma, const T* normalized,          \
        int ld_normalized, const float* rstd, T* d_sum, int ld_d_sum, uint32_t key0, uint32_t key1, uint32_t threshold, float scale,      \
        const int* ordinals, const int* tokens, T* d_branch, int ld_d_branch, int rows, int width) {                                      \
        norm_backward<T>(kind, d_out, ld_d_out, d_residual, ld_d_residual, gamma, normalized, ld_normalized, rstd, d_sum, ld_d_sum,       \
                         {key0, key1, threshold, scale}, ordinals, tokens, d_branch, ld_d_branch, rows, width);                           \
    }                                                                                                                                     \
    KERNEL_ENTRY(norm_backward_##suffix);
FOR_BOTH_HALVES(ENTRIES)
