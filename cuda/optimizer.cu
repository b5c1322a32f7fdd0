// optimizer.cu: the sum of squares of the gradients, and AdamW as torch.optim.AdamW does it.
//
// squared_norm_partial: partial[c] = Σ x² of chunk c; squared_norm_sum: total += Σ partial. Chunks are equal runs of x
// (the last may be shorter), so the order of additions depends on `count` and `chunks` alone.
// adamw: g = gradient / gradient_scale * min(1, max_norm / (norm / gradient_scale + 1e-6)); m1 = beta1 m1 + (1 - beta1) g; m2 = beta2 m2 + (1 - beta2) g²;
//   master = master * decay - rate * m1 / (sqrt(m2) * inverse_root + epsilon), with decay = 1 - learning_rate *
//   weight_decay, rate = learning_rate / (1 - beta1^step), inverse_root = 1 / sqrt(1 - beta2^step).
//   Where the squared norm is not finite nothing is changed. max_norm <= 0: no clipping.
//
// Everything is float. Bytes moved: 4 an element for the norm, 28 for the update. FLOPs: 2 and about 15 an element.
// Launch: squared_norm_partial: block 256, grid `chunks` (ceil(count / 4096), at most 1024, is a good number);
// squared_norm_sum: block 256, grid 1; adamw: block 256, grid ceil(count / 1024), or any other.
#include "reduce.cuh"

#include <cfloat>

namespace {

// Calls wide(i) for every whole float4 of first .. end and single(i) for the other elements, the threads number `thread`
// of `threads` sharing them. `aligned`: element `first` is at a multiple of 16 bytes.
template <class Wide, class Single>
__device__ __forceinline__ void for_elements(int64_t first, int64_t end, bool aligned, int64_t thread, int64_t threads, Wide wide, Single single) {
    const int64_t whole = aligned && end > first ? (end - first) / 4 * 4 : 0;
    for (int64_t i = first + thread * 4; i < first + whole; i += threads * 4) wide(i);
    for (int64_t i = first + whole + thread; i < end; i += threads) single(i);
}

struct AdamW {
    float clip, rate, beta1, beta2, inverse_root, epsilon, decay;

    __device__ __forceinline__ void update(float& master, float gradient, float& moment1, float& moment2) const {
        const float g = gradient * clip;
        moment1 = beta1 * moment1 + (1.0f - beta1) * g;
        moment2 = beta2 * moment2 + (1.0f - beta2) * g * g;
        master = master * decay - rate * moment1 / (sqrtf(moment2) * inverse_root + epsilon);
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    squared_norm_partial(const float* __restrict__ x, int64_t count, float* __restrict__ partial, int chunks) {
    const int64_t length = ((count + chunks - 1) / chunks + 3) / 4 * 4;
    const int64_t first = blockIdx.x * length, end = min(first + length, count);
    float sum = 0.0f;
    for_elements(
        first, end, rows_are_wide(x, 0), threadIdx.x, blockDim.x,
        [&](int64_t i) {
            float four[4];
            load_wide(x + i, four);
            sum += (four[0] * four[0] + four[1] * four[1]) + (four[2] * four[2] + four[3] * four[3]);
        },
        [&](int64_t i) { sum += x[i] * x[i]; });
    sum = row_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
KERNEL_ENTRY(squared_norm_partial);

extern "C" __global__ void __launch_bounds__(256) squared_norm_sum(const float* __restrict__ partial, int chunks, float* total) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < chunks; i += blockDim.x) sum += partial[i];
    sum = row_sum(sum);
    if (threadIdx.x == 0) *total += sum;
}
KERNEL_ENTRY(squared_norm_sum);

extern "C" __global__ void __launch_bounds__(256)
    adamw(float* __restrict__ master, const float* __restrict__ gradient, float* __restrict__ moment1, float* __restrict__ moment2,
          int64_t count, const float* __restrict__ squared_norm, float gradient_scale, float max_norm, float learning_rate_over_correction1, float beta1,
          float beta2, float inverse_root_correction2, float epsilon, float decay) {
    const float squares = *squared_norm;
    if (!(squares <= FLT_MAX)) return;  // infinite or NaN
    const float norm = sqrtf(squares) / gradient_scale;
    const float clip = (max_norm > 0.0f ? fminf(1.0f, max_norm / (norm + 1e-6f)) : 1.0f) / gradient_scale;
    const AdamW step = {clip, learning_rate_over_correction1, beta1, beta2, inverse_root_correction2, epsilon, decay};
    const bool aligned = rows_are_wide(master, 0) && rows_are_wide(gradient, 0) && rows_are_wide(moment1, 0) && rows_are_wide(moment2, 0);
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for_elements(
        0, count, aligned, thread, threads,
        [&](int64_t i) {
            float p[4], g[4], m1[4], m2[4];
            load_wide(master + i, p);
            load_wide(gradient + i, g);
            load_wide(moment1 + i, m1);
            load_wide(moment2 + i, m2);
#pragma unroll
            for (int j = 0; j < 4; ++j) step.update(p[j], g[j], m1[j], m2[j]);
            store_wide(moment1 + i, m1);
            store_wide(moment2 + i, m2);
            store_wide(master + i, p);
        },
        [&](int64_t i) { step.update(master[i], gradient[i], moment1[i], moment2[i]); });
}
KERNEL_ENTRY(adamw);
