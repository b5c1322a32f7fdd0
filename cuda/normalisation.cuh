// normalisation.cuh: a row that its threads hold in registers, and its normalisation: what norm.cu and embed.cu share.
//
// Launch: block (32, 4) where width <= 1024: a warp a row, no barrier; else (32 * ceil(width / 1024), 1): a block a row.
// Grid ceil(rows / block.y). Width at most 16384: a thread holds four packs of 8 columns.
#pragma once
#include "reduce.cuh"

constexpr int kLayerNorm = 0;
constexpr int kPacks = 4;
constexpr int kThreads = 512;

// This thread's pack number `pack` of its row.
__device__ __forceinline__ int column_of(int pack) { return (threadIdx.x + pack * blockDim.x) * 8; }

// A pack of 8 columns. `kWide`: the width is a multiple of 8 and every row is aligned, so that loads are unconditional
// but for the end of the row and the compiler may issue all of them at once.
template <bool kWide, class T>
__device__ __forceinline__ void load_pack(const T* row, int column, int width, float (&to)[8]) {
    if (column < width) {
        load_some(row, column, width, kWide, to);
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) to[i] = 0.0f;
    }
}

// The row's x becomes x - mean (RMSNorm: x); returns 1 / sqrt(mean(x²) + epsilon), the same in every thread.
template <bool kWide>
__device__ __forceinline__ float centre_row(int kind, float epsilon, float (&x)[kPacks][8], int width) {
    float mean = 0.0f;
    if (kind == kLayerNorm) {
        float total = 0.0f;
#pragma unroll
        for (int p = 0; p < kPacks; ++p)
#pragma unroll
            for (int i = 0; i < 8; ++i) total += x[p][i];
        mean = row_sum(total) / width;
    }
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            x[p][i] -= mean;
            if (column_of(p) + (kWide ? 0 : i) < width) squares = fmaf(x[p][i], x[p][i], squares);
        }
    return 1.0f / sqrtf(row_sum(squares) / width + epsilon);
}

// A pack as it is stored.
template <class T>
__device__ __forceinline__ void round_pack(float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = to_float(from_float<T>(x[i]));
}

// A pack's x * scale, rounded as it is stored.
template <class T>
__device__ __forceinline__ void normalize_pack(float (&x)[8], float scale) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] *= scale;
    round_pack<T>(x);
}

// A pack's x * gamma + beta.
template <bool kWide>
__device__ __forceinline__ void scale_pack(float (&x)[8], const float* gamma, const float* beta, int column, int width) {
    float weight[8], bias[8];
    load_some(gamma, column, width, kWide, weight);
    if (beta) load_some(beta, column, width, kWide, bias);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = fmaf(x[i], weight[i], beta ? bias[i] : 0.0f);
}

// The row of a matrix that may be absent.
template <class T>
__device__ __forceinline__ T* optional_row(T* matrix, int row, int ld) {
    return matrix ? row_of(matrix, row, ld) : nullptr;
}
