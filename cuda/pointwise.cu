// pointwise.cu: operations that touch every element once: dropout, activations, copies of rows, zeros.
//
// Matrices are [rows, width]. Bytes moved: each operand once, 16 at a time. FLOPs: a few an element (erf and tanh: ~20).
// Launch: block (32, 8), grid (ceil(width / 256), ceil(rows / 8) or fewer): a lane 8 columns, a warp 512 bytes of a row;
// loops stride over the rows. So a thread's place costs no division.
// zero: any grid of 256 threads, about ceil(bytes / 4096) blocks; zero_rows: a block a row.
#include "instructions.cuh"
#include "philox.cuh"

namespace {

// Calls f(row, first column) for every pack of 8 columns.
template <class F>
__device__ __forceinline__ void for_each_pack(int rows, int width, F f) {
    const int column = (blockIdx.x * 32 + threadIdx.x) * 8, stride = gridDim.y * 8;
    if (column >= width) return;
    for (int row = blockIdx.y * 8 + threadIdx.y; row < rows; row += stride) f(row, column);
}

// data *= mask * scale.
template <class T>
__device__ __forceinline__ void dropout_rows(T* data, int ld, const Dropout& dropout, const int* ordinals, const int* tokens, int rows, int width) {
    if (!dropout.threshold) return;
    const bool wide = rows_are_wide(data, ld);
    for_each_pack(rows, width, [&](int row, int column) {
        float x[8];
        load_some(row_of(data, row, ld), column, width, wide, x);
        apply_dropout(x, dropout, ordinals[row], tokens[row], 0, column);
        store_some(row_of(data, row, ld), column, width, wide, x);
    });
}

// ---------------------------------------------------------------------------------------------------
// activations

enum ActivationKind { kGeluErf = 0, kGeluTanh = 1, kRelu = 2, kTanh = 3 };

// √(2/π) and the cubic's coefficient of the tanh form of GELU.
constexpr float kGeluRoot = 0.7978845608028654f, kGeluCubic = 0.044715f;
constexpr float kInverseRoot2Pi = 0.3989422804014327f, kLog2E = 1.4426950408889634f;

// exp(-z² / 2).
__device__ __forceinline__ float bell(float z) { return exp2_fast(z * z * (-0.5f * kLog2E)); }

// The tail of the normal distribution, 1 - Φ(|z|), of bell(z). It is the bell times a function that falls from 1/2 to 0 as
// slowly as 1 / z does: a polynomial in t = 1 / (1 + 0.36 |z|) without a constant, fitted to the least relative error, which is
// 9e-7. erff takes twice as many instructions, and the memory would wait for them.
__device__ __forceinline__ float tail(float z, float bell) {
    const float t = reciprocal_fast(fmaf(fabsf(z), 0.36f, 1.0f));
    float sum = 0.0470558666f;
    sum = fmaf(sum, t, -0.179763272f);
    sum = fmaf(sum, t, 0.180952102f);
    sum = fmaf(sum, t, 0.0265506059f);
    sum = fmaf(sum, t, 0.139718816f);
    sum = fmaf(sum, t, 0.141772538f);
    sum = fmaf(sum, t, 0.143713042f);
    return sum * t * bell;
}

// 1 / (1 + exp(-2 √(2/π) (z + cubic z³))) = (1 + tanh(...)) / 2.
__device__ __forceinline__ float gelu_logistic(float z) {
    constexpr float kLinear = -2.0f * kGeluRoot * kLog2E;
    return reciprocal_fast(1.0f + exp2_fast(z * fmaf(z * z, kLinear * kGeluCubic, kLinear)));
}

// Of fp32 tensors (projections and heads, which are small) to fp32's last places.
constexpr float kInverseRoot2 = 0.7071067811865476f;
template <class T>
__host__ __device__ constexpr bool is_exact() { return sizeof(T) == sizeof(float); }

template <int kKind, class T>
__device__ __forceinline__ float activate(float z) {
    if (kKind == kGeluErf && is_exact<T>()) return 0.5f * z * (1.0f + erff(z * kInverseRoot2));
    if (kKind == kGeluTanh && is_exact<T>()) return 0.5f * z * (1.0f + tanhf(kGeluRoot * (z + kGeluCubic * z * z * z)));
    // z Φ(z): both sides lose |z| times the tail.
    if (kKind == kGeluErf) return fmaf(-fabsf(z), tail(z, bell(z)), fmaxf(z, 0.0f));
    if (kKind == kGeluTanh) return z * gelu_logistic(z);
    if (kKind == kRelu) return z > 0.0f || z != z ? z : 0.0f;
    return tanhf(z);
}

template <int kKind, class T>
__device__ __forceinline__ float slope(float z) {
    if (kKind == kGeluErf && is_exact<T>()) return 0.5f * (1.0f + erff(z * kInverseRoot2)) + z * kInverseRoot2Pi * expf(-0.5f * z * z);
    if (kKind == kGeluTanh && is_exact<T>()) {
        const float tanh = tanhf(kGeluRoot * (z + kGeluCubic * z * z * z));
        return 0.5f * (1.0f + tanh) + 0.5f * z * (1.0f - tanh * tanh) * kGeluRoot * (1.0f + 3.0f * kGeluCubic * z * z);
    }
    if (kKind == kGeluErf) {
        const float height = bell(z), beyond = tail(z, height);
        return fmaf(z * kInverseRoot2Pi, height, z > 0.0f ? 1.0f - beyond : beyond);
    }
    if (kKind == kGeluTanh) {
        const float s = gelu_logistic(z);
        return fmaf(z * s * (1.0f - s), fmaf(z * z, 6.0f * kGeluRoot * kGeluCubic, 2.0f * kGeluRoot), s);
    }
    if (kKind == kRelu) return z > 0.0f ? 1.0f : 0.0f;
    const float tanh = tanhf(z);
    return 1.0f - tanh * tanh;
}

// out = f(z); may be in place.
template <int kKind, class T>
__device__ __forceinline__ void activation_forward(const T* z, int ld_z, T* out, int ld_out, int rows, int width) {
    const bool wide = rows_are_wide(z, ld_z) && rows_are_wide(out, ld_out);
    for_each_pack(rows, width, [&](int row, int column) {
        float x[8];
        load_some(row_of(z, row, ld_z), column, width, wide, x);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = activate<kKind, T>(x[i]);
        store_some(row_of(out, row, ld_out), column, width, wide, x);
    });
}

// dz = d_out * f'(z); dz may be d_out.
template <int kKind, class T>
__device__ __forceinline__ void activation_backward(const T* z, int ld_z, const T* d_out, int ld_d_out, T* dz, int ld_dz, int rows, int width) {
    const bool wide = rows_are_wide(z, ld_z) && rows_are_wide(d_out, ld_d_out) && rows_are_wide(dz, ld_dz);
    for_each_pack(rows, width, [&](int row, int column) {
        float x[8], d[8];
        load_some(row_of(z, row, ld_z), column, width, wide, x);
        load_some(row_of(d_out, row, ld_d_out), column, width, wide, d);
#pragma unroll
        for (int i = 0; i < 8; ++i) d[i] *= slope<kKind, T>(x[i]);
        store_some(row_of(dz, row, ld_dz), column, width, wide, d);
    });
}

// SwiGLU: z is [gate | up], twice `width` columns; out = gate / (1 + exp(-gate)) * up.
template <class T>
__device__ __forceinline__ void gated_forward(const T* z, int ld_z, T* out, int ld_out, int rows, int width) {
    const bool wide = rows_are_wide(z, ld_z) && rows_are_wide(z + width, ld_z) && rows_are_wide(out, ld_out);
    for_each_pack(rows, width, [&](int row, int column) {
        float gate[8], up[8];
        load_some(row_of(z, row, ld_z), column, width, wide, gate);
        load_some(row_of(z, row, ld_z) + width, column, width, wide, up);
#pragma unroll
        for (int i = 0; i < 8; ++i) up[i] *= gate[i] / (1.0f + expf(-gate[i]));
        store_some(row_of(out, row, ld_out), column, width, wide, up);
    });
}

// dz = [d_out * up * f'(gate) | d_out * f(gate)] with f(x) = x s(x), f'(x) = s(x) (1 + x (1 - s(x))), s the logistic
// function; dz may be z.
template <class T>
__device__ __forceinline__ void gated_backward(const T* z, int ld_z, const T* d_out, int ld_d_out, T* dz, int ld_dz, int rows, int width) {
    const bool wide = rows_are_wide(z, ld_z) && rows_are_wide(z + width, ld_z) && rows_are_wide(d_out, ld_d_out) && rows_are_wide(dz, ld_dz) &&
                      rows_are_wide(dz + width, ld_dz);
    for_each_pack(rows, width, [&](int row, int column) {
        float gate[8], up[8], d[8];
        load_some(row_of(z, row, ld_z), column, width, wide, gate);
        load_some(row_of(z, row, ld_z) + width, column, width, wide, up);
        load_some(row_of(d_out, row, ld_d_out), column, width, wide, d);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float logistic = 1.0f / (1.0f + expf(-gate[i])), x = gate[i];
            gate[i] = d[i] * up[i] * logistic * (1.0f + x * (1.0f - logistic));
            up[i] = d[i] * x * logistic;
        }
        store_some(row_of(dz, row, ld_dz), column, width, wide, gate);
        store_some(row_of(dz, row, ld_dz) + width, column, width, wide, up);
    });
}

// One loop a kind, so that the choice is made once.
#define BY_KIND(kind, function, ...)                                  \
    switch (kind) {                                                   \
        case kGeluErf: function<kGeluErf>(__VA_ARGS__); break;        \
        case kGeluTanh: function<kGeluTanh>(__VA_ARGS__); break;      \
        case kRelu: function<kRelu>(__VA_ARGS__); break;              \
        case kTanh: function<kTanh>(__VA_ARGS__); break;              \
        default: __trap();                                            \
    }

// ---------------------------------------------------------------------------------------------------
// rows

// out[r] = x[index[r]].
template <class T>
__device__ __forceinline__ void gather_rows(const T* x, int ld_x, const int* index, T* out, int ld_out, int rows, int width) {
    const bool wide = rows_are_wide(x, ld_x) && rows_are_wide(out, ld_out);
    for_each_pack(rows, width, [&](int row, int column) {
        float values[8];
        load_some(row_of(x, index[row], ld_x), column, width, wide, values);
        store_some(row_of(out, row, ld_out), column, width, wide, values);
    });
}

// x[index[r]] += source[r]; the indices are distinct.
template <class T>
__device__ __forceinline__ void scatter_add_rows(const T* source, int ld_source, const int* index, T* x, int ld_x, int rows, int width) {
    const bool wide = rows_are_wide(source, ld_source) && rows_are_wide(x, ld_x);
    for_each_pack(rows, width, [&](int row, int column) {
        float values[8], sum[8];
        load_some(row_of(source, row, ld_source), column, width, wide, values);
        load_some(row_of(x, index[row], ld_x), column, width, wide, sum);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += values[i];
        store_some(row_of(x, index[row], ld_x), column, width, wide, sum);
    });
}

// Zeros `bytes` bytes with the threads number `thread` of `threads`.
__device__ __forceinline__ void zero_bytes(unsigned char* start, int64_t bytes, int64_t thread, int64_t threads) {
    const bool wide = reinterpret_cast<uintptr_t>(start) % 16 == 0;
    const int64_t packs = wide ? bytes / 16 : 0;
    for (int64_t i = thread; i < packs; i += threads) reinterpret_cast<uint4*>(start)[i] = make_uint4(0, 0, 0, 0);
    for (int64_t i = packs * 16 + thread; i < bytes; i += threads) start[i] = 0;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------
// entry points

#define ENTRIES(T, suffix)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                                  \
        dropout_##suffix(T* data, int ld, uint32_t key0, uint32_t key1, uint32_t threshold, float scale, const int* ordinals,          \
                         const int* tokens, int rows, int width) {                                                                     \
        dropout_rows<T>(data, ld, {key0, key1, threshold, scale}, ordinals, tokens, rows, width);                                      \
    }                                                                                                                                  \
    KERNEL_ENTRY(dropout_##suffix);                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                                                  \
        activation_forward_##suffix(int kind, const T* z, int ld_z, T* out, int ld_out, int rows, int width) {                         \
        BY_KIND(kind, activation_forward, z, ld_z, out, ld_out, rows, width)                                                           \
    }                                                                                                                                  \
    KERNEL_ENTRY(activation_forward_##suffix);                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                                                  \
        activation_backward_##suffix(int kind, const T* z, int ld_z, const T* d_out, int ld_d_out, T* dz, int ld_dz, int rows,         \
                                     int width) {                                                                                      \
        BY_KIND(kind, activation_backward, z, ld_z, d_out, ld_d_out, dz, ld_dz, rows, width)                                           \
    }                                                                                                                                  \
    KERNEL_ENTRY(activation_backward_##suffix);                                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                                                  \
        gated_forward_##suffix(const T* z, int ld_z, T* out, int ld_out, int rows, int width) {                                        \
        gated_forward<T>(z, ld_z, out, ld_out, rows, width);                                                                           \
    }                                                                                                                                  \
    KERNEL_ENTRY(gated_forward_##suffix);                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                                  \
        gated_backward_##suffix(const T* z, int ld_z, const T* d_out, int ld_d_out, T* dz, int ld_dz, int rows, int width) {           \
        gated_backward<T>(z, ld_z, d_out, ld_d_out, dz, ld_dz, rows, width);                                                           \
    }                                                                                                                                  \
    KERNEL_ENTRY(gated_backward_##suffix);                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                                  \
        gather_rows_##suffix(const T* x, int ld_x, const int* index, T* out, int ld_out, int rows, int width) {                        \
        gather_rows<T>(x, ld_x, index, out, ld_out, rows, width);                                                                      \
    }                                                                                                                                  \
    KERNEL_ENTRY(gather_rows_##suffix);                                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                                  \
        scatter_add_rows_##suffix(const T* source, int ld_source, const int* index, T* x, int ld_x, int rows, int width) {             \
        scatter_add_rows<T>(source, ld_source, index, x, ld_x, rows, width);                                                           \
    }                                                                                                                                  \
    KERNEL_ENTRY(scatter_add_rows_##suffix);
FOR_ALL_NUMBERS(ENTRIES)

extern "C" __global__ void __launch_bounds__(256) zero(unsigned char* start, int64_t bytes) {
    zero_bytes(start, bytes, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, static_cast<int64_t>(gridDim.x) * blockDim.x);
}
KERNEL_ENTRY(zero);

// The first `row_bytes` bytes of each of `rows` rows that lie `ld_bytes` apart.
extern "C" __global__ void __launch_bounds__(256) zero_rows(unsigned char* start, int64_t ld_bytes, int rows, int64_t row_bytes) {
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) zero_bytes(start + row * ld_bytes, row_bytes, threadIdx.x, blockDim.x);
}
KERNEL_ENTRY(zero_rows);
