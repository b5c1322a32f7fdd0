// prompt_gradient.cu: d_prompt[p] += sum over sequences s, in order, of d[offsets[s] + p].
//
// d [*, width], rows `ld` apart; d_prompt [length, width] fp32, contiguous; every sequence has at least `length` rows.
// Bytes moved: sequences * length * width * 2 and 8 an element of the gradient. FLOPs: sequences * length * width.
// Launch: block 256, a thread an element of the gradient.
#include "numbers.cuh"

namespace {

template <class T>
__device__ __forceinline__ void prompt_gradient(const T* __restrict__ d, int ld, const int* __restrict__ offsets, int sequences,
                                                float* __restrict__ d_prompt, int length, int width) {
    const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= static_cast<int64_t>(length) * width) return;
    const int row = static_cast<int>(element / width), column = static_cast<int>(element % width);
    float sum = d_prompt[element];
    for (int s = 0; s < sequences; ++s) sum += to_float(row_of(d, offsets[s] + row, ld)[column]);
    d_prompt[element] = sum;
}

}  // namespace

#define ENTRIES(T, suffix)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                               \
        prompt_gradient_##suffix(const T* d, int ld, const int* offsets, int sequences, float* d_prompt, int length, int width) {   \
        prompt_gradient<T>(d, ld, offsets, sequences, d_prompt, length, width);                                                     \
    }                                                                                                                               \
    KERNEL_ENTRY(prompt_gradient_##suffix);
FOR_BOTH_HALVES(ENTRIES)
