// numbers.cuh: the number types of the kernels as a template parameter. T is __half or __nv_bfloat16 (activations and
// frozen weights) or float (trainables); every kernel computes in float and rounds once when it stores.
#pragma once
#include <cstdint>
#include <cstring>
#if !defined(CUDA_EMU)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// What emulation/*.h defines in its own way for the C++ compiler.
#define KERNEL_ENTRY(name) static_assert(true, "")
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]
#define STATIC_SMEM(type, name, extents) __shared__ __align__(16) type name extents
#endif

// Writes X(type, suffix) for both 16-bit types: the entry points of one kernel.
#define FOR_BOTH_HALVES(X) X(__half, f16) X(__nv_bfloat16, bf16)
#define FOR_ALL_NUMBERS(X) FOR_BOTH_HALVES(X) X(float, f32)

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// Two values in one 32-bit register: what mma takes and what one conversion instruction makes.
template <class T>
struct PairOf;
template <>
struct PairOf<__half> {
    using Type = __half2;
    static __device__ __forceinline__ Type make(float a, float b) { return __floats2half2_rn(a, b); }
    static __device__ __forceinline__ float2 split(Type pair) { return __half22float2(pair); }
};
template <>
struct PairOf<__nv_bfloat16> {
    using Type = __nv_bfloat162;
    static __device__ __forceinline__ Type make(float a, float b) { return __floats2bfloat162_rn(a, b); }
    static __device__ __forceinline__ float2 split(Type pair) { return __bfloat1622float2(pair); }
};
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float a, float b) {
    const typename PairOf<T>::Type pair = PairOf<T>::make(a, b);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}
template <class T>
__device__ __forceinline__ float2 unpack_pair(uint32_t bits) {
    typename PairOf<T>::Type pair;
    memcpy(&pair, &bits, sizeof bits);
    return PairOf<T>::split(pair);
}

// Eight values as they lie in memory: what a thread holds while its loads are under way, and no wider than they came.
template <class T>
struct Pack {
    uint4 bits;
};
template <>
struct Pack<float> {
    float4 low, high;
};
template <class T>
__device__ __forceinline__ void unpack(const Pack<T>& pack, float (&to)[8]) {
    const uint32_t words[4] = {pack.bits.x, pack.bits.y, pack.bits.z, pack.bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack_pair<T>(words[i]);
        to[2 * i] = pair.x;
        to[2 * i + 1] = pair.y;
    }
}
__device__ __forceinline__ void unpack(const Pack<float>& pack, float (&to)[8]) {
    const float all[8] = {pack.low.x, pack.low.y, pack.low.z, pack.low.w, pack.high.x, pack.high.y, pack.high.z, pack.high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = all[i];
}

// From an address that is a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ Pack<T> load_packed(const T* from) {
#if defined(CUDA_EMU)
    if (reinterpret_cast<uintptr_t>(from) % 16) emu::fail("a load of 16 bytes from an address that is no multiple of that");
#endif
    return *reinterpret_cast<const Pack<T>*>(from);
}

// N values at an address that is a multiple of min(16, N * sizeof(T)) bytes, by accesses of that size.
__device__ __forceinline__ void load_wide(const float* from, float (&to)[4]) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x;
    to[1] = four.y;
    to[2] = four.z;
    to[3] = four.w;
}
template <class T>
__device__ __forceinline__ void load_wide(const T* from, float (&to)[8]) {
    unpack(load_packed(from), to);
}
template <class T>
__device__ __forceinline__ void load_wide(const T* from, float (&to)[4]) {
    const uint2 bits = *reinterpret_cast<const uint2*>(from);
    const float2 low = unpack_pair<T>(bits.x), high = unpack_pair<T>(bits.y);
    to[0] = low.x;
    to[1] = low.y;
    to[2] = high.x;
    to[3] = high.y;
}
__device__ __forceinline__ void store_wide(float* to, const float (&from)[4]) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}
__device__ __forceinline__ void store_wide(float* to, const float (&from)[8]) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
    *reinterpret_cast<float4*>(to + 4) = make_float4(from[4], from[5], from[6], from[7]);
}
template <class T>
__device__ __forceinline__ void store_wide(T* to, const float (&from)[8]) {
#if defined(CUDA_EMU)
    if (reinterpret_cast<uintptr_t>(to) % 16) emu::fail("a store of 16 bytes to an address that is no multiple of that");
#endif
    *reinterpret_cast<uint4*>(to) = make_uint4(pack_pair<T>(from[0], from[1]), pack_pair<T>(from[2], from[3]), pack_pair<T>(from[4], from[5]),
                                               pack_pair<T>(from[6], from[7]));
}
template <class T>
__device__ __forceinline__ void store_wide(T* to, const float (&from)[4]) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_pair<T>(from[0], from[1]), pack_pair<T>(from[2], from[3]));
}

// Whether every row of a matrix starts at a multiple of 16 bytes, so that its whole packs of 8 may be accessed wide.
template <class T>
__device__ __forceinline__ bool rows_are_wide(const T* matrix, int ld) {
    return reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && ld * sizeof(T) % 16 == 0;
}

// Columns column .. column + N of a row of `width` columns: wide where `wide` and all are inside, else one by one,
// with zeros for those outside. N is 4 or 8.
template <int N, class T>
__device__ __forceinline__ void load_some(const T* row, int column, int width, bool wide, float (&to)[N]) {
    if (wide && column + N <= width) {
        load_wide(row + column, to);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = column + i < width ? to_float(row[column + i]) : 0.0f;
    }
}
template <int N, class T>
__device__ __forceinline__ void store_some(T* row, int column, int width, bool wide, const float (&from)[N]) {
    if (wide && column + N <= width) {
        store_wide(row + column, from);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (column + i < width) row[column + i] = from_float<T>(from[i]);
    }
}

// Start of a row; offsets are 64-bit, strides are in elements.
template <class T>
__device__ __forceinline__ T* row_of(T* matrix, int row, int ld) {
    return matrix + static_cast<int64_t>(row) * ld;
}
