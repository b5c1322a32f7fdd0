// normalisation.cuh: a row that its threads hold in registers, and its normalisation: what norm.cu and embed.cu share.
//
// Launch: block (32, 4) where width <= 1024: a warp a row, no barrier; else (32 * ceil(width / 1024), 1): a block a row.
// Grid ceil(rows / block.y). Width at most 16384: a thread holds four packs of 8 columns.
// Each kernel has a twin, with _any behind its name. The plain one is for wide rows: the width is a multiple of 8, and every
// row of every operand starts at a multiple of 16 bytes. That all models have; the twin takes what it is given.
#pragma once
#include "reduce.cuh"

constexpr int kLayerNorm = 0;
constexpr int kPacks = 4;
constexpr int kThreads = 512;

// This thread's row, or -1 where there is none: whole x-rows of threads leave.
__device__ __forceinline__ int row_of_thread(int rows) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    return row < rows ? row : -1;
}

// This thread's pack number `pack` of its row.
__device__ __forceinline__ int column_of(int pack) { return (threadIdx.x + pack * blockDim.x) * 8; }

// A pack of 8 columns of a wide row, zeros behind the row's end. One access, without a branch, so that a thread's loads of all
// its packs are under way together.
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* row, int column, int width) {
    Pack<T> pack = {};
    if (column < width) pack = load_packed(row + column);
    return pack;
}
template <bool kWide, class T>
__device__ __forceinline__ void load_columns(const T* row, int column, int width, float (&to)[8]) {
    if (kWide) {
        unpack(load_pack(row, column, width), to);
    } else {
        load_some(row, column, width, false, to);
    }
}
template <bool kWide, class T>
__device__ __forceinline__ void store_columns(T* row, int column, int width, const float (&from)[8]) {
    if (kWide) {
        if (column < width) store_wide(row + column, from);
    } else {
        store_some(row, column, width, false, from);
    }
}

// A thread's packs of a row. ask() asks for all of them, so that the memory is kept busy; read() waits for one. Rows that
// are not wide are read where they are needed.
template <bool kWide, class T>
struct Row {
    const T* row;
    int width;
    Pack<T> asked[kWide ? kPacks : 1];

    __device__ __forceinline__ void ask(const T* from, int columns) {
        row = from;
        width = columns;
        if (kWide) {
#pragma unroll
            for (int p = 0; p < kPacks; ++p) asked[kWide ? p : 0] = load_pack(row, column_of(p), width);
        }
    }
    __device__ __forceinline__ void read(int pack, float (&to)[8]) const {
        if (kWide) {
            unpack(asked[kWide ? pack : 0], to);
        } else {
            load_columns<false>(row, column_of(pack), width, to);
        }
    }
};
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
    float weight[8], bias[8] = {};
    load_columns<kWide>(gamma, column, width, weight);
    if (beta) load_columns<kWide>(beta, column, width, bias);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = fmaf(x[i], weight[i], bias[i]);
}

// Writes X(type, suffix, whether rows are wide) for a kernel and its twin.
#define FOR_BOTH_HALVES_AND_ROWS(X) \
    X(__half, f16, true) X(__nv_bfloat16, bf16, true) X(__half, any_f16, false) X(__nv_bfloat16, any_bf16, false)

// The row of a matrix that may be absent.
template <class T>
__device__ __forceinline__ T* optional_row(T* matrix, int row, int ld) {
    return matrix ? row_of(matrix, row, ld) : nullptr;
}
