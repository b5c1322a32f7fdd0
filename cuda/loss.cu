// loss.cu: cross-entropy over groups of logits: loss += scale * Σ groups (logsumexp - target logit) and its gradient
// d = scale * (softmax - [target]).
//
// logits, d_logits [rows, columns] in float. A group is the int4 (start, length, stride, target): elements
// start + i * stride of the logits' rows laid end to end. Groups are disjoint. A negative target: no loss, and nothing
// is written. d_logits must hold zeros before (kernel zero or zero_rows): elements in no group are not visited.
// group_losses [group_count] is scratch between the two kernels.
// Bytes moved: 16 an element of a group (the logits three times, mostly from cache) and 20 a group. FLOPs: ~50 an element.
// Launch: cross_entropy: block 128, grid ceil(group_count / 4), a warp a group; cross_entropy_sum: block 256, grid 1.
#include "reduce.cuh"

extern "C" __global__ void __launch_bounds__(128)
    cross_entropy(const float* __restrict__ logits, int ld, int columns, const int4* __restrict__ groups, int group_count, float scale,
                  float* __restrict__ group_losses, float* __restrict__ d_logits, int ld_d, int rows) {
    const int number = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (number >= group_count) return;  // whole warps leave
    const int4 group = groups[number];
    const int start = group.x, length = group.y, stride = group.z, target = group.w;
    if (target < 0) {
        if (lane == 0) group_losses[number] = 0.0f;
        return;
    }
    const int64_t last = start + static_cast<int64_t>(length - 1) * stride;
    if (start < 0 || last >= static_cast<int64_t>(rows) * columns) __trap();
    auto row = [&](int i) { return (start + i * stride) / columns; };
    auto logit = [&](int i) { return row_of(logits, row(i), ld)[start + i * stride - row(i) * columns]; };

    float largest = -INFINITY;
    for (int i = lane; i < length; i += 32) {
        const float value = logit(i);
        largest = largest > value || largest != largest ? largest : value;
    }
    largest = warp_max(largest);
    float sum = 0.0f;
    for (int i = lane; i < length; i += 32) sum += expf(logit(i) - largest);
    sum = warp_sum(sum);
    const float log_sum = logf(sum);
    if (lane == 0) group_losses[number] = scale * (log_sum - (logit(target) - largest));
    for (int i = lane; i < length; i += 32) {
        const float probability = expf(logit(i) - largest) / sum;
        row_of(d_logits, row(i), ld_d)[start + i * stride - row(i) * columns] = scale * (probability - (i == target ? 1.0f : 0.0f));
    }
}
KERNEL_ENTRY(cross_entropy);

// loss += Σ group_losses, in an order that group_count alone fixes.
extern "C" __global__ void __launch_bounds__(256) cross_entropy_sum(const float* __restrict__ group_losses, int group_count, float* loss) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < group_count; i += blockDim.x) sum += group_losses[i];
    sum = row_sum(sum);
    if (threadIdx.x == 0) *loss += sum;
}
KERNEL_ENTRY(cross_entropy_sum);
