// instructions.cuh: the PTX instructions that the kernels use, one small function each.
//
// Under nvcc each is its instruction; under emulation.h (CUDA_EMU) each does what the PTX manual says the instruction
// does, with asynchronous copies as late or as early as is legal. No other file holds PTX.
#pragma once
#include "numbers.cuh"

// Address in the shared window, as the asynchronous engines take it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
#if defined(CUDA_EMU)
    ptrdiff_t offset = (const unsigned char*)p - emu::W->dyn;
    if (offset < 0 || offset >= (ptrdiff_t)emu::kDynSmem) emu::fail("not an address in dynamic shared memory");
    return (uint32_t)offset;
#else
    return (uint32_t)__cvta_generic_to_shared(p);
#endif
}

// ---- asynchronous copies (cp.async) -----------------------------------------------------------------------------

// `kBytes` (4 or 16) from global to shared memory, both aligned to it; zeros where not `valid` (nothing is read then).
// Copies of 16 bytes pass the L1 cache by: tiles are read once a block.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    static_assert(kBytes == 4 || kBytes == 16, "");
#if defined(CUDA_EMU)
    if ((uintptr_t)to % kBytes || (valid && (uintptr_t)from % kBytes)) emu::fail("cp.async: address not a multiple of %d", kBytes);
    shared_address(to);
    emu::async_op(false, [=] { if (valid) memcpy(to, from, kBytes); else memset(to, 0, kBytes); });
#else
    int bytes = valid ? kBytes : 0;
    if (kBytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
#endif
}

// The same of 16 bytes, to an address in the shared window and only where `wanted`: a predicate, so that a thread's copies
// follow one another without branches.
__device__ __forceinline__ void copy_async_if(uint32_t to, const void* from, bool valid, bool wanted) {
#if defined(CUDA_EMU)
    if (!wanted) return;
    if (to > emu::kDynSmem - 16) emu::fail("not an address in dynamic shared memory");
    copy_async<16>(emu::W->dyn + to, from, valid);
#else
    asm volatile(
        "{\n"
        ".reg .pred wanted;\n"
        "setp.ne.s32 wanted, %3, 0;\n"
        "@wanted cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
        "}" ::"r"(to), "l"(from), "r"(valid ? 16 : 0), "r"(wanted ? 1 : 0) : "memory");
#endif
}

// Closes the group of this thread's copies since the last commit.
__device__ __forceinline__ void copy_async_commit() {
#if defined(CUDA_EMU)
    emu::commit_group();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `kLeave` of this thread's groups are unfinished. Other threads' copies need a barrier after it.
template <int kLeave>
__device__ __forceinline__ void copy_async_wait() {
#if defined(CUDA_EMU)
    emu::wait_group(kLeave);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeave) : "memory");
#endif
}

// ---- matrix fragments (ldmatrix) --------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8. Register m holds, of
// matrix m, elements (lane / 4, 2 * (lane % 4)) and the next in the row.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
#if defined(CUDA_EMU)
    if (shared_address(row) % 16) emu::fail("ldmatrix: row not a multiple of 16");
    struct Lane { const void* row; uint32_t* r; };
    emu::warp_instruction(~0u, "ldmatrix.x4", Lane{row, r}, [](auto at) {
        for (int lane = 0; lane < 32; ++lane)
            for (int m = 0; m < 4; ++m) memcpy(&at(lane).r[m], (const char*)at(m * 8 + lane / 4).row + lane % 4 * 4, 4);
    });
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}

// The same, each matrix transposed: register m holds elements (2 * (lane % 4), lane / 4) and the next in the column.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
#if defined(CUDA_EMU)
    if (shared_address(row) % 16) emu::fail("ldmatrix.trans: row not a multiple of 16");
    struct Lane { const void* row; uint32_t* r; };
    emu::warp_instruction(~0u, "ldmatrix.x4.trans", Lane{row, r}, [](auto at) {
        for (int lane = 0; lane < 32; ++lane)
            for (int m = 0; m < 4; ++m)
                for (int i = 0; i < 2; ++i)
                    memcpy((char*)&at(lane).r[m] + i * 2, (const char*)at(m * 8 + lane % 4 * 2 + i).row + lane / 4 * 2, 2);
    });
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}

// ---- matrix products on tensor cores (mma.sync) -----------------------------------------------------------------

#if defined(CUDA_EMU)
template <class T>
inline void emulated_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* name) {
    struct Lane { float* d; const uint32_t *a, *b; };
    emu::warp_instruction(~0u, name, Lane{d, a, b}, [](auto at) {
        float left[16][16], right[16][8], sums[16][8];
        auto widen = [](uint32_t pair, int high) {
            const uint16_t bits = (uint16_t)(pair >> (16 * high));
            T value;
            memcpy(&value, &bits, 2);
            return (float)value;
        };
        for (int lane = 0; lane < 32; ++lane)
            for (int high = 0; high < 2; ++high) {
                const int g = lane / 4, k = lane % 4 * 2 + high;
                for (int q = 0; q < 4; ++q) left[g + q % 2 * 8][k + q / 2 * 8] = widen(at(lane).a[q], high);
                for (int q = 0; q < 2; ++q) right[k + q * 8][g] = widen(at(lane).b[q], high);
            }
        for (int row = 0; row < 16; ++row) {
            for (int column = 0; column < 8; ++column) sums[row][column] = 0;
            for (int k = 0; k < 16; ++k)
                for (int column = 0; column < 8; ++column) sums[row][column] += left[row][k] * right[k][column];
        }
        for (int lane = 0; lane < 32; ++lane)
            for (int q = 0; q < 4; ++q) at(lane).d[q] += sums[lane / 4 + q / 2 * 8][lane % 4 * 2 + q % 2];
    });
}
#endif

// d(16x8, float) += a(16x16, row major) b(16x8, column major), T = __half or __nv_bfloat16. Lane (g, t) = (lane / 4,
// lane % 4) holds d at rows g, g, g + 8, g + 8 and columns 2t, 2t + 1, 2t, 2t + 1; a and b as the PTX manual lays them.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(CUDA_EMU)
    emulated_mma<__half>(d, a, b, "mma.m16n8k16.f16");
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(CUDA_EMU)
    emulated_mma<__nv_bfloat16>(d, a, b, "mma.m16n8k16.bf16");
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// ---- where a thread is ------------------------------------------------------------------------------------------

// The lane, asked for anew each time: what follows from it is then computed where it is used, and is not kept in registers
// from one use to the next.
__device__ __forceinline__ int lane_anew() {
#if defined(CUDA_EMU)
    return threadIdx.x % 32;
#else
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread % 32;
#endif
}

// ---- arithmetic -------------------------------------------------------------------------------------------------

// 1 / x to a unit in the last place, one instruction (rcp.approx.ftz).
__device__ __forceinline__ float reciprocal_fast(float x) {
#if defined(CUDA_EMU)
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// 2^x to 2 units in the last place, one instruction (ex2.approx.ftz).
__device__ __forceinline__ float exp2_fast(float x) {
#if defined(CUDA_EMU)
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}
