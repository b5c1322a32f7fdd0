// token_loss.cu: what the language-model head says of the tokens that rows are to predict, over a chunk of rows, so that
// logits of all rows never exist at once.
//
// token_loss: log_probability[r] = logits[r][target] - log sum exp logits[r] (0 where the target is negative); best[r] =
//   column of the largest logit, the first of equal ones. With d_logits also its gradient, weight * (softmax - [target]),
//   weight = scale * weights[r] (weights may be null: 1); zeros where the target is negative.
// token_loss_sum: loss += factor * sum of log_probability.
// sum_segments: out[s] = sum of values[offsets[s] .. offsets[s + 1]]; spread_segments: out[r] = factor * values[s of r].
//
// logits [rows, width] float; d_logits [rows, width] T, null for none. d_logits may begin where logits begin, with rows
// as far apart in bytes: a block reads columns before it writes what lies over them, and its row is no other block's.
// Bytes moved: 4 an element of logits, and 6 more with a gradient. FLOPs: about 10 and 15 an element.
// Launch: token_loss: a block of 512 a row; token_loss_sum: block 256, grid 1; segments: block 128, a thread a segment
// (segments are as long as a label has tokens).
#include "reduce.cuh"

#include <climits>

namespace {

// Over a block; every thread gets it.
__device__ __forceinline__ float block_max(float value) {
    STATIC_SMEM(float, of_warp, [32]);
    const int lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
    value = warp_max(value);
    if (lane == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_max(lane < warps ? of_warp[lane] : -INFINITY);
}

__device__ __forceinline__ int warp_min(int value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const int other = __shfl_xor_sync(kAllLanes, value, distance);
        value = other < value ? other : value;
    }
    return value;
}

__device__ __forceinline__ int block_min(int value) {
    STATIC_SMEM(int, of_warp, [32]);
    const int lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
    value = warp_min(value);
    if (lane == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_min(lane < warps ? of_warp[lane] : INT_MAX);
}

template <class T>
__device__ __forceinline__ void token_loss(const float* logits, int ld, const int* targets, float* log_probability, int* best,
                                           const float* weights, float scale, T* d_logits, int ld_d, int width) {
    const int r = blockIdx.x, target = targets[r], step = 4 * blockDim.x;
    if (target >= width) __trap();
    const float* row = row_of(logits, r, ld);
    const bool wide = rows_are_wide(logits, ld);

    float own_largest = -INFINITY, own_sum = 0.0f;
    int own_best = INT_MAX;
    for (int column = 4 * threadIdx.x; column < width; column += step) {
        float values[4];
        load_some(row, column, width, wide, values);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (column + i >= width) {
            } else if (!(values[i] <= own_largest)) {  // larger, or not a number
                own_sum = own_sum * expf(own_largest - values[i]) + 1.0f;
                own_largest = values[i];
                own_best = column + i;
            } else {
                own_sum += expf(values[i] - own_largest);
            }
        }
    }
    const float largest = block_max(own_largest);
    const int index = block_min(own_largest == largest ? own_best : INT_MAX);
    const float sum = row_sum(own_sum * expf(own_largest - largest));
    const float logit = target >= 0 ? row[target] : 0.0f;
    if (threadIdx.x == 0) {
        log_probability[r] = target >= 0 ? (logit - largest) - logf(sum) : 0.0f;
        best[r] = index == INT_MAX ? 0 : index;
    }
    if (!d_logits) return;

    T* gradient = row_of(d_logits, r, ld_d);
    const bool wide_gradient = rows_are_wide(d_logits, ld_d);
    const float weight = scale * (weights ? weights[r] : 1.0f), factor = weight / sum;
    for (int first = 0; first < width; first += step) {
        const int column = first + 4 * threadIdx.x;
        float values[4];
        load_some(row, column, width, wide, values);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float softmax = factor * expf(values[i] - largest);
            values[i] = target < 0 ? 0.0f : column + i == target ? softmax - weight : softmax;
        }
        __syncthreads();  // what is written lies over columns up to these
        store_some(gradient, column, width, wide_gradient, values);
    }
}

}  // namespace

#define ENTRIES(T, suffix)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(512)                                                                                   \
        token_loss_##suffix(const float* logits, int ld, const int* targets, float* log_probability, int* best, const float* weights,   \
                            float scale, T* d_logits, int ld_d, int width) {                                                            \
        token_loss<T>(logits, ld, targets, log_probability, best, weights, scale, d_logits, ld_d, width);                               \
    }                                                                                                                                   \
    KERNEL_ENTRY(token_loss_##suffix);
FOR_BOTH_HALVES(ENTRIES)

extern "C" __global__ void __launch_bounds__(256)
    token_loss_sum(const float* __restrict__ log_probability, int rows, float factor, float* loss) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < rows; i += blockDim.x) sum += log_probability[i];
    sum = row_sum(sum);
    if (threadIdx.x == 0) *loss += factor * sum;
}
KERNEL_ENTRY(token_loss_sum);

extern "C" __global__ void __launch_bounds__(128)
    sum_segments(const float* __restrict__ values, const int* __restrict__ offsets, int segments, float* __restrict__ out) {
    const int segment = blockIdx.x * blockDim.x + threadIdx.x;
    if (segment >= segments) return;
    float sum = 0.0f;
    for (int i = offsets[segment]; i < offsets[segment + 1]; ++i) sum += values[i];
    out[segment] = sum;
}
KERNEL_ENTRY(sum_segments);

extern "C" __global__ void __launch_bounds__(128)
    spread_segments(const float* __restrict__ values, const int* __restrict__ offsets, int segments, float factor, float* __restrict__ out) {
    const int segment = blockIdx.x * blockDim.x + threadIdx.x;
    if (segment >= segments) return;
    const float value = factor * values[segment];
    for (int i = offsets[segment]; i < offsets[segment + 1]; ++i) out[i] = value;
}
KERNEL_ENTRY(spread_segments);
