// builtins.h: the CUDA language's qualifiers, vector types, built-in variables and device functions.
#pragma once
#include "fibers.h"

#define CUDA_EMU 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

// Shared memory of a block. STATIC_SMEM(float, tile, [16][65]) declares `float tile[16][65]`; both kinds hold NaN at
// the start of a block. (`__shared__` itself is not emulated: it could not be poisoned.)
#define DYN_SMEM(name) unsigned char* name = emu::W->dyn
#define STATIC_SMEM(type, name, extents)   \
    static const char name##_site = 0;     \
    typedef type name##_type extents;      \
    name##_type& name = emu::static_smem<name##_type>(&name##_site)

struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#define threadIdx (emu::W->cur->tid)
#define blockIdx (emu::W->bid)
#define blockDim (emu::W->block)
#define gridDim (emu::W->grid)
constexpr int warpSize = 32;

// ---------------------------------------------------------------------------------------------------
// synchronisation, shuffles, votes

inline void __syncthreads() { emu::bar_sync(0, 0); }
inline void __syncwarp(unsigned mask = ~0u) { emu::warp_instruction(mask, "__syncwarp", 0, [](auto) {}); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { emu::fail("__trap"); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int lane = emu::W->cur->lane, from = (lane & ~(width - 1)) | (source & (width - 1));
    return emu::collective(mask, "__shfl_sync", value, [=](auto at) { return at(from); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const int lane = emu::W->cur->lane, other = lane ^ bits, from = other / width > lane / width ? lane : other;
    return emu::collective(mask, "__shfl_xor_sync", value, [=](auto at) { return at(from); });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = emu::W->cur->lane, from = (lane & (width - 1)) + (int)delta < width ? lane + (int)delta : lane;
    return emu::collective(mask, "__shfl_down_sync", value, [=](auto at) { return at(from); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = emu::W->cur->lane, from = (lane & (width - 1)) >= (int)delta ? lane - (int)delta : lane;
    return emu::collective(mask, "__shfl_up_sync", value, [=](auto at) { return at(from); });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return emu::collective(mask, "__ballot_sync", (unsigned)(predicate != 0), [=](auto at) {
        unsigned votes = 0;
        for (int i = 0; i < 32; ++i)
            if (mask >> i & 1 && at(i)) votes |= 1u << i;
        return votes;
    });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// ---------------------------------------------------------------------------------------------------
// memory

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> void __stcs(T* p, T v) { *p = v; }
template <class T> void __stcg(T* p, T v) { *p = v; }

// ---------------------------------------------------------------------------------------------------
// maths (expf, logf, tanhf, erff, sqrtf, fmaxf, fmaf, ... are the C library's)

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline void sincospif(float x, float* sine, float* cosine) {
    *sine = static_cast<float>(sin(3.14159265358979323846 * x));
    *cosine = static_cast<float>(cos(3.14159265358979323846 * x));
}
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
inline float __int_as_float(int i) { return __uint_as_float((unsigned)i); }
template <class T> T max(T a, T b) { return a < b ? b : a; }
template <class T> T min(T a, T b) { return b < a ? b : a; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }

// ---------------------------------------------------------------------------------------------------
// atomics on integers; there are none on floats, whose sums must have a fixed order

template <class T, class = std::enable_if_t<std::is_integral<T>::value>>
T atomicAdd(T* p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
inline unsigned atomicCAS(unsigned* p, unsigned compare, unsigned v) {
    __atomic_compare_exchange_n(p, &compare, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return compare;
}
