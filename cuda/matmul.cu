// matmul.cu: the products of trainables (classification heads, prefix projection), whose weights are float:
//   forward          out[rows, outputs]     = x[rows, inputs] w[outputs, inputs]ᵀ + bias
//   backward_input   dx[rows, inputs]       = dy[rows, outputs] w (+ dx)
//   backward_weight  d_w[outputs, inputs]  += dyᵀ x;  d_bias[outputs] += Σ rows of dy
// Names end in the types of their two activations: matmul_<x>_<out>, backward_input_<dy>_<dx>, backward_weight_<dy>_<x>.
//
// FLOPs: 2 * rows * outputs * inputs each. Bytes moved: an operand once for every 64 rows or columns of the result.
// Every element is one thread's sum in float, in the order of the summed index: the result depends on nothing else.
// One block makes a 64x64 tile from 64x32 tiles in shared memory, each thread 4x4 elements, while the next tiles are
// on their way to registers. (The frozen weights' large products are the matrix library's, on tensor cores.)
// Launch: block 256, no dynamic shared memory, grid (ceil(columns / 64), ceil(rows / 64)) of the result.
#include "numbers.cuh"

namespace {

constexpr int kTile = 64, kStep = 32, kThreads = 256;
constexpr int kStride = kTile + 4;  // rows of a shared tile: whole float4s, and 4 rows apart is not the same bank

// One factor of the product: element (m, k) is start[m * ld + k] where k is contiguous, else start[k * ld + m].
template <class T, bool kContiguous>
struct Factor {
    const T* start;
    int ld;
    int count;  // of m

    // This thread's 8 elements of the tile of m in first .. first + 64 and k in k0 .. k0 + 32; zeros outside.
    __device__ __forceinline__ void load(int first, int k0, int k, float (&to)[8]) const {
        const bool wide = rows_are_wide(start, ld);
        const int m = first + (kContiguous ? threadIdx.x % kTile : threadIdx.x % 8 * 8);
        const int at = k0 + (kContiguous ? threadIdx.x / kTile * 8 : threadIdx.x / 8);
        if (kContiguous ? m < count : at < k) {
            if (kContiguous)
                load_some(row_of(start, m, ld), at, k, wide, to);
            else
                load_some(row_of(start, at, ld), m, count, wide, to);
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i) to[i] = 0.0f;
        }
    }

    // Puts them at tile[k][m].
    __device__ __forceinline__ void put(float (*tile)[kStride], const float (&from)[8]) const {
        if (kContiguous) {
#pragma unroll
            for (int i = 0; i < 8; ++i) tile[threadIdx.x / kTile * 8 + i][threadIdx.x % kTile] = from[i];
        } else {
            store_wide(&tile[threadIdx.x / 8][threadIdx.x % 8 * 8], from);
        }
    }
};

// The block's tile of Σ over k of a(m, k) b(n, k): store(m, n, values of n .. n + 4) for each thread's four rows, and
// see(tile of a) while each tile is in shared memory.
template <class A, class B, class See, class Store>
__device__ __forceinline__ void tile_product(const A& a, const B& b, int k, See see, Store store) {
    STATIC_SMEM(float, tile_a, [kStep][kStride]);
    STATIC_SMEM(float, tile_b, [kStep][kStride]);
    const int first_m = blockIdx.y * kTile, first_n = blockIdx.x * kTile;
    const int m = threadIdx.x / 16 * 4, n = threadIdx.x % 16 * 4;
    float next_a[8], next_b[8], sum[4][4] = {};
    a.load(first_m, 0, k, next_a);
    b.load(first_n, 0, k, next_b);
    for (int k0 = 0; k0 < k; k0 += kStep) {
        a.put(tile_a, next_a);
        b.put(tile_b, next_b);
        __syncthreads();
        if (k0 + kStep < k) {
            a.load(first_m, k0 + kStep, k, next_a);
            b.load(first_n, k0 + kStep, k, next_b);
        }
        see(tile_a);
#pragma unroll 8
        for (int at = 0; at < kStep; ++at) {
            float of_a[4], of_b[4];
            load_wide(&tile_a[at][m], of_a);
            load_wide(&tile_b[at][n], of_b);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] += of_a[i] * of_b[j];
        }
        __syncthreads();  // the next tiles overwrite these
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (first_m + m + i < a.count && first_n + n < b.count) store(first_m + m + i, first_n + n, sum[i]);
}

struct SeeNothing {
    __device__ __forceinline__ void operator()(float (*)[kStride]) const {}
};

template <class X, class Y>
__device__ __forceinline__ void forward(const X* x, int ld_x, const float* w, int ld_w, const float* bias, Y* out, int ld_out, int rows,
                                        int outputs, int inputs) {
    const bool wide = rows_are_wide(out, ld_out), wide_bias = rows_are_wide(bias, 0);
    tile_product(Factor<X, true>{x, ld_x, rows}, Factor<float, true>{w, ld_w, outputs}, inputs, SeeNothing{},
                 [&](int row, int column, float (&values)[4]) {
                     if (bias) {
                         float b[4];
                         load_some(bias, column, outputs, wide_bias, b);
#pragma unroll
                         for (int i = 0; i < 4; ++i) values[i] += b[i];
                     }
                     store_some(row_of(out, row, ld_out), column, outputs, wide, values);
                 });
}

template <class X, class Y>
__device__ __forceinline__ void backward_input(const X* dy, int ld_dy, const float* w, int ld_w, Y* dx, int ld_dx, int accumulate, int rows,
                                               int outputs, int inputs) {
    const bool wide = rows_are_wide(dx, ld_dx);
    tile_product(Factor<X, true>{dy, ld_dy, rows}, Factor<float, false>{w, ld_w, inputs}, outputs, SeeNothing{},
                 [&](int row, int column, float (&values)[4]) {
                     Y* to = row_of(dx, row, ld_dx);
                     if (accumulate) {
                         float before[4];
                         load_some(to, column, inputs, wide, before);
#pragma unroll
                         for (int i = 0; i < 4; ++i) values[i] += before[i];
                     }
                     store_some(to, column, inputs, wide, values);
                 });
}

template <class X, class Y>
__device__ __forceinline__ void backward_weight(const X* dy, int ld_dy, const Y* x, int ld_x, float* d_w, int ld_dw, float* d_bias, int rows,
                                                int outputs, int inputs) {
    const bool wide = rows_are_wide(d_w, ld_dw);
    // The blocks of the first column sum dy, too: thread t the output t of the tile.
    const bool sums_bias = d_bias && blockIdx.x == 0 && threadIdx.x < kTile;
    float bias_sum = 0.0f;
    tile_product(
        Factor<X, false>{dy, ld_dy, outputs}, Factor<Y, false>{x, ld_x, inputs}, rows,
        [&](float (*tile)[kStride]) {
            if (!sums_bias) return;
            for (int at = 0; at < kStep; ++at) bias_sum += tile[at][threadIdx.x];
        },
        [&](int output, int column, float (&values)[4]) {
            float* to = row_of(d_w, output, ld_dw);
            float before[4];
            load_some(to, column, inputs, wide, before);
#pragma unroll
            for (int i = 0; i < 4; ++i) values[i] += before[i];
            store_some(to, column, inputs, wide, values);
        });
    const int output = blockIdx.y * kTile + threadIdx.x;
    if (sums_bias && output < outputs) d_bias[output] += bias_sum;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------
// entry points

#define FORWARD(X, x_suffix, Y, out_suffix)                                                                                              \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                                               \
        matmul_##x_suffix##_##out_suffix(const X* x, int ld_x, const float* w, int ld_w, const float* bias, Y* out, int ld_out,          \
                                         int rows, int outputs, int inputs) {                                                            \
        forward<X, Y>(x, ld_x, w, ld_w, bias, out, ld_out, rows, outputs, inputs);                                                       \
    }                                                                                                                                    \
    KERNEL_ENTRY(matmul_##x_suffix##_##out_suffix);
FORWARD(__half, f16, __half, f16)
FORWARD(__half, f16, float, f32)
FORWARD(__nv_bfloat16, bf16, __nv_bfloat16, bf16)
FORWARD(__nv_bfloat16, bf16, float, f32)
FORWARD(float, f32, float, f32)

#define BACKWARD(X, dy_suffix, Y, suffix)                                                                                                \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                                               \
        matmul_backward_input_##dy_suffix##_##suffix(const X* dy, int ld_dy, const float* w, int ld_w, Y* dx, int ld_dx,                 \
                                                     int accumulate, int rows, int outputs, int inputs) {                                \
        backward_input<X, Y>(dy, ld_dy, w, ld_w, dx, ld_dx, accumulate, rows, outputs, inputs);                                          \
    }                                                                                                                                    \
    KERNEL_ENTRY(matmul_backward_input_##dy_suffix##_##suffix);                                                                          \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                                               \
        matmul_backward_weight_##dy_suffix##_##suffix(const X* dy, int ld_dy, const Y* x, int ld_x, float* d_w, int ld_dw,               \
                                                      float* d_bias, int rows, int outputs, int inputs) {                                \
        backward_weight<X, Y>(dy, ld_dy, x, ld_x, d_w, ld_dw, d_bias, rows, outputs, inputs);                                            \
    }                                                                                                                                    \
    KERNEL_ENTRY(matmul_backward_weight_##dy_suffix##_##suffix);
BACKWARD(float, f32, __half, f16)
BACKWARD(float, f32, __nv_bfloat16, bf16)
BACKWARD(float, f32, float, f32)
BACKWARD(__half, f16, __half, f16)
BACKWARD(__nv_bfloat16, bf16, __nv_bfloat16, bf16)
