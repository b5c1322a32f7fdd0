// probes.cu: each instruction wrapper by itself, on given bits. What a GPU makes of them is recorded (`ptune selftest
// --record`) and replayed against the emulation; both are held to a scalar definition of the instruction.
//
// One warp a block; block b reads words [b * 32 * IN, ...) of `in` and writes words [b * 32 * OUT, ...) of `out`, lane by
// lane. IN and OUT stand in src/backend/cuda/probes.rs, and what the words mean in src/selftest/probes.rs.
#include "instructions.cuh"
#include "reduce.cuh"

namespace {

constexpr uint32_t kUntouched = 0xa5a5a5a5u;  // what shared memory holds before a copy

template <int kWords>
__device__ __forceinline__ const uint32_t* input(const uint32_t* in) {
    return in + (blockIdx.x * 32 + threadIdx.x) * kWords;
}
template <int kWords>
__device__ __forceinline__ void output(uint32_t* out, const uint32_t (&words)[kWords]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) out[(blockIdx.x * 32 + threadIdx.x) * kWords + i] = words[i];
}

// Data in the first words, and behind them whether the copy is valid.
template <int kBytes, int kIn>
__device__ __forceinline__ void probe_copy(const uint32_t* in, uint32_t* out) {
    DYN_SMEM(shared);
    constexpr int kWords = kBytes / 4;
    uint32_t* mine = reinterpret_cast<uint32_t*>(shared) + threadIdx.x * kWords;
#pragma unroll
    for (int i = 0; i < kWords; ++i) mine[i] = kUntouched;
    const uint32_t* from = input<kIn>(in);
    copy_async<kBytes>(mine, from, from[kWords] & 1);
    copy_async_commit();
    copy_async_wait<0>();
    uint32_t words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = mine[i];
    output(out, words);
}

template <class T>
__device__ __forceinline__ void probe_mma(const uint32_t* in, uint32_t* out) {
    const uint32_t* mine = input<10>(in);
    const uint32_t a[4] = {mine[0], mine[1], mine[2], mine[3]}, b[2] = {mine[4], mine[5]};
    float d[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(mine[6 + i]);
    mma_m16n8k16<T>(d, a, b);
    const uint32_t words[4] = {__float_as_uint(d[0]), __float_as_uint(d[1]), __float_as_uint(d[2]), __float_as_uint(d[3])};
    output(out, words);
}

// Every lane stores its row of 16 bytes and gives the address of another lane's.
template <bool kTransposed>
__device__ __forceinline__ void probe_matrices(const uint32_t* in, uint32_t* out) {
    DYN_SMEM(shared);
    uint32_t* rows = reinterpret_cast<uint32_t*>(shared);
    const uint32_t* mine = input<4>(in);
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[threadIdx.x * 4 + i] = mine[i];
    __syncwarp();
    uint32_t words[4];
    const uint32_t* row = rows + (threadIdx.x * 5 + 3) % 32 * 4;
    if (kTransposed)
        load_matrices_transposed(words, row);
    else
        load_matrices(words, row);
    output(out, words);
}

template <class T>
__device__ __forceinline__ void probe_convert(const uint32_t* in, uint32_t* out) {
    const uint32_t* mine = input<3>(in);
    const float2 pair = unpack_pair<T>(mine[2]);
    const uint32_t words[3] = {pack_pair<T>(__uint_as_float(mine[0]), __uint_as_float(mine[1])), __float_as_uint(pair.x),
                               __float_as_uint(pair.y)};
    output(out, words);
}

}  // namespace

extern "C" __global__ void probe_copy_async_4(const uint32_t* in, uint32_t* out) { probe_copy<4, 2>(in, out); }
KERNEL_ENTRY(probe_copy_async_4);

extern "C" __global__ void probe_copy_async_16(const uint32_t* in, uint32_t* out) { probe_copy<16, 8>(in, out); }
KERNEL_ENTRY(probe_copy_async_16);

// Data in the first words, and behind them whether the copy is valid, and wanted.
extern "C" __global__ void probe_copy_async_if(const uint32_t* in, uint32_t* out) {
    DYN_SMEM(shared);
    uint32_t* mine = reinterpret_cast<uint32_t*>(shared) + threadIdx.x * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) mine[i] = kUntouched;
    const uint32_t* from = input<8>(in);
    copy_async_if(shared_address(mine), from, from[4] & 1, from[4] & 2);
    copy_async_commit();
    copy_async_wait<0>();
    const uint32_t words[4] = {mine[0], mine[1], mine[2], mine[3]};
    output(out, words);
}
KERNEL_ENTRY(probe_copy_async_if);

// Two groups: the first is waited for alone, then both; what each had brought by then.
extern "C" __global__ void probe_copy_async_groups(const uint32_t* in, uint32_t* out) {
    DYN_SMEM(shared);
    uint32_t* mine = reinterpret_cast<uint32_t*>(shared) + threadIdx.x * 2;
    mine[0] = mine[1] = kUntouched;
    const uint32_t* from = input<2>(in);
    copy_async<4>(mine, from, true);
    copy_async_commit();
    copy_async<4>(mine + 1, from + 1, true);
    copy_async_commit();
    copy_async_wait<1>();
    const uint32_t first = mine[0];
    copy_async_wait<0>();
    const uint32_t words[2] = {first, mine[1]};
    output(out, words);
}
KERNEL_ENTRY(probe_copy_async_groups);

extern "C" __global__ void probe_load_matrices(const uint32_t* in, uint32_t* out) { probe_matrices<false>(in, out); }
KERNEL_ENTRY(probe_load_matrices);

extern "C" __global__ void probe_load_matrices_transposed(const uint32_t* in, uint32_t* out) { probe_matrices<true>(in, out); }
KERNEL_ENTRY(probe_load_matrices_transposed);

extern "C" __global__ void probe_mma_f16(const uint32_t* in, uint32_t* out) { probe_mma<__half>(in, out); }
KERNEL_ENTRY(probe_mma_f16);

extern "C" __global__ void probe_mma_bf16(const uint32_t* in, uint32_t* out) { probe_mma<__nv_bfloat16>(in, out); }
KERNEL_ENTRY(probe_mma_bf16);

extern "C" __global__ void probe_convert_f16(const uint32_t* in, uint32_t* out) { probe_convert<__half>(in, out); }
KERNEL_ENTRY(probe_convert_f16);

extern "C" __global__ void probe_convert_bf16(const uint32_t* in, uint32_t* out) { probe_convert<__nv_bfloat16>(in, out); }
KERNEL_ENTRY(probe_convert_bf16);

extern "C" __global__ void probe_exp2(const uint32_t* in, uint32_t* out) {
    const uint32_t words[1] = {__float_as_uint(exp2_fast(__uint_as_float(input<1>(in)[0])))};
    output(out, words);
}
KERNEL_ENTRY(probe_exp2);

extern "C" __global__ void probe_reciprocal(const uint32_t* in, uint32_t* out) {
    const uint32_t words[1] = {__float_as_uint(reciprocal_fast(__uint_as_float(input<1>(in)[0])))};
    output(out, words);
}
KERNEL_ENTRY(probe_reciprocal);

extern "C" __global__ void probe_lane(const uint32_t* in, uint32_t* out) {
    const uint32_t words[1] = {input<1>(in)[0] + lane_anew()};
    output(out, words);
}
KERNEL_ENTRY(probe_lane);

// A value and a lane: from that lane, from the lane whose number differs in its bits, from that many lanes on and back;
// and the lanes whose values are odd.
extern "C" __global__ void probe_shuffles(const uint32_t* in, uint32_t* out) {
    const uint32_t* mine = input<2>(in);
    const uint32_t value = mine[0];
    const int lane = mine[1] % 32;
    const uint32_t words[5] = {__shfl_sync(kAllLanes, value, lane), __shfl_xor_sync(kAllLanes, value, lane),
                               __shfl_down_sync(kAllLanes, value, lane), __shfl_up_sync(kAllLanes, value, lane),
                               __ballot_sync(kAllLanes, value & 1)};
    output(out, words);
}
KERNEL_ENTRY(probe_shuffles);
