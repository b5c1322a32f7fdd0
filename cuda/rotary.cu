// rotary.cu: queries or keys rotated by their positions, head by head, behind an RMS norm of each head where there is one.
//
//   y = x, or with a norm x * rstd * gamma, rstd = 1 / sqrt(mean(x²) + epsilon);
//   out[i] = y[i] cos[p, i] - y[i + D/2] sin[p, i];  out[i + D/2] = y[i + D/2] cos[p, i] + y[i] sin[p, i];  i < D/2
// Backward, in place on d: h = d rotated back; without a norm d = h, with one g = h * gamma, n = x * rstd and
//   d = rstd (g - n mean(g n)).
//
// x, out, d [rows, heads * D] of T, D even; positions [rows]; table [positions, D] float: cosines, then sines; gamma [D]
// float or null. out may be x. Bytes a row: 2 heads D read and written (x as well in the backward of a norm), 4 D of the
// table. FLOPs 3 an element, with a norm about 8 and 12.
// Launch: block 256, grid ceil(rows * heads * lanes / 256) with lanes = the least power of two >= D / 16: a lane has 8
// dims of either half of a head.
#include "numbers.cuh"

namespace {

// The dims first .. first + 8 of both halves of a head in a row; a lane without any names the first row.
struct Part {
    int row, head, first;
    bool valid;
};
__device__ __forceinline__ Part part_of(int rows, int heads, int head_dim) {
    int lanes = 1;
    while (lanes * 16 < head_dim) lanes *= 2;
    const int64_t index = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
    const int row = static_cast<int>(index / heads), first = threadIdx.x % lanes * 8;
    if (row >= rows || first >= head_dim / 2) return {0, 0, first, false};
    return {row, static_cast<int>(index % heads), first, true};
}
__device__ __forceinline__ float sum_of_head(float value, int head_dim) {
    int lanes = 1;
    while (lanes * 16 < head_dim) lanes *= 2;
    for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return value;
}

template <class T>
__device__ __forceinline__ T* head_at(T* matrix, int ld, const Part& part, int head_dim) {
    return row_of(matrix, part.row, ld) + part.head * head_dim;
}
template <class T>
__device__ __forceinline__ bool halves_are_wide(const T* matrix, int ld, int head_dim) {
    return rows_are_wide(matrix, ld) && head_dim / 2 * sizeof(T) % 16 == 0;
}
// Zeros for a part outside.
template <class T>
__device__ __forceinline__ void load_halves(const T* from, const Part& part, int head_dim, bool wide, float (&low)[8], float (&high)[8]) {
    const int half = part.valid ? head_dim / 2 : 0;
    load_some(from, part.first, half, wide, low);
    load_some(from + head_dim / 2, part.first, half, wide, high);
}
template <class T>
__device__ __forceinline__ void store_halves(T* to, const Part& part, int head_dim, bool wide, const float (&low)[8], const float (&high)[8]) {
    if (!part.valid) return;
    store_some(to, part.first, head_dim / 2, wide, low);
    store_some(to + head_dim / 2, part.first, head_dim / 2, wide, high);
}

// 1 / sqrt(mean(x²) + epsilon) of a head; all lanes of a warp call it.
__device__ __forceinline__ float inverse_deviation(const float (&low)[8], const float (&high)[8], float epsilon, int head_dim) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(low[i], low[i], fmaf(high[i], high[i], squares));
    return 1.0f / sqrtf(sum_of_head(squares, head_dim) / head_dim + epsilon);
}

template <class T>
__device__ __forceinline__ void rotary_forward(const T* x, int ld_x, const float* gamma, float epsilon, const float* table,
                                               const int* positions, T* out, int ld_out, int rows, int heads, int head_dim) {
    const Part at = part_of(rows, heads, head_dim);
    const bool wide = halves_are_wide(x, ld_x, head_dim) && halves_are_wide(out, ld_out, head_dim);
    const bool wide_table = halves_are_wide(table, 0, head_dim);
    float low[8], high[8], cosine[8], sine[8];
    load_halves(head_at(x, ld_x, at, head_dim), at, head_dim, wide, low, high);
    if (gamma) {
        const float rstd = inverse_deviation(low, high, epsilon, head_dim);
        float scale_low[8], scale_high[8];
        load_halves(gamma, at, head_dim, halves_are_wide(gamma, 0, head_dim), scale_low, scale_high);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            low[i] *= rstd * scale_low[i];
            high[i] *= rstd * scale_high[i];
        }
    }
    if (!at.valid) return;
    load_halves(row_of(table, positions[at.row], head_dim), at, head_dim, wide_table, cosine, sine);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float first = low[i] * cosine[i] - high[i] * sine[i];
        high[i] = high[i] * cosine[i] + low[i] * sine[i];
        low[i] = first;
    }
    store_halves(head_at(out, ld_out, at, head_dim), at, head_dim, wide, low, high);
}

template <class T>
__device__ __forceinline__ void rotary_backward(const T* x, int ld_x, const float* gamma, float epsilon, const float* table,
                                                const int* positions, T* d, int ld_d, int rows, int heads, int head_dim) {
    const Part at = part_of(rows, heads, head_dim);
    const bool wide = halves_are_wide(d, ld_d, head_dim), wide_table = halves_are_wide(table, 0, head_dim);
    float low[8], high[8], cosine[8], sine[8];
    load_halves(head_at(d, ld_d, at, head_dim), at, head_dim, wide, low, high);
    load_halves(row_of(table, positions[at.row], head_dim), at, head_dim, wide_table, cosine, sine);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float first = low[i] * cosine[i] + high[i] * sine[i];
        high[i] = high[i] * cosine[i] - low[i] * sine[i];
        low[i] = first;
    }
    if (gamma) {
        float x_low[8], x_high[8], scale_low[8], scale_high[8], product = 0.0f;
        load_halves(head_at(x, ld_x, at, head_dim), at, head_dim, halves_are_wide(x, ld_x, head_dim), x_low, x_high);
        load_halves(gamma, at, head_dim, halves_are_wide(gamma, 0, head_dim), scale_low, scale_high);
        const float rstd = inverse_deviation(x_low, x_high, epsilon, head_dim);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            low[i] *= scale_low[i];
            high[i] *= scale_high[i];
            x_low[i] *= rstd;
            x_high[i] *= rstd;
            product = fmaf(low[i], x_low[i], fmaf(high[i], x_high[i], product));
        }
        const float mean = sum_of_head(product, head_dim) / head_dim;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            low[i] = rstd * (low[i] - x_low[i] * mean);
            high[i] = rstd * (high[i] - x_high[i] * mean);
        }
    }
    store_halves(head_at(d, ld_d, at, head_dim), at, head_dim, wide, low, high);
}

}  // namespace

#define ROTARY(T, SUFFIX)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                                            \
        rotary_forward_##SUFFIX(const T* x, int ld_x, const float* gamma, float epsilon, const float* table, const int* positions, \
                                T* out, int ld_out, int rows, int heads, int head_dim) {                                         \
        rotary_forward<T>(x, ld_x, gamma, epsilon, table, positions, out, ld_out, rows, heads, head_dim);                        \
    }                                                                                                                            \
    KERNEL_ENTRY(rotary_forward_##SUFFIX);                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                            \
        rotary_backward_##SUFFIX(const T* x, int ld_x, const float* gamma, float epsilon, const float* table,                    \
                                 const int* positions, T* d, int ld_d, int rows, int heads, int head_dim) {                      \
        rotary_backward<T>(x, ld_x, gamma, epsilon, table, positions, d, ld_d, rows, heads, head_dim);                           \
    }                                                                                                                            \
    KERNEL_ENTRY(rotary_backward_##SUFFIX);
FOR_BOTH_HALVES(ROTARY)
