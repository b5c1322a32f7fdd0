// reduce.cuh: sums and maxima over warps and blocks. The order of additions depends on the block's shape alone, and
// every thread gets the same bits.
#pragma once
#include "numbers.cuh"

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

// NaN where any lane has one, so that it is not lost.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, value, distance);
        value = value > other || value != value ? value : other;
    }
    return value;
}

// Sums over the threads of one x-row of the block. Rows of 32 threads are warps of their own and meet no barrier (the
// block may then have several); otherwise the row is the whole block and all of its threads call this.
template <int N>
__device__ __forceinline__ void row_sums(float (&values)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = warp_sum(values[n]);
    if (blockDim.x == 32) return;
    STATIC_SMEM(float, of_warp, [N][32]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
#pragma unroll
    for (int n = 0; n < N; ++n)
        if (lane == 0) of_warp[n][warp] = values[n];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = warp_sum(lane < warps ? of_warp[n][lane] : 0.0f);
    __syncthreads();  // of_warp may be written again
}

__device__ __forceinline__ float row_sum(float value) {
    float values[1] = {value};
    row_sums(values);
    return values[0];
}
