// embed.cu: sums of embeddings, their norm and their dropout.
//
// x = word[ids[t]] + position[positions[t]] + token_type[types[t]] in float; of a negative id prompt[-1 - id] in place of the
// word.
// Without gamma:      out = dropout(x).
// With gamma:         out = dropout(norm(x)).                        (post-norm: what the layers read)
// With gamma and sum: sum = dropout(x), out = norm(sum as stored).   (pre-norm: the stream, and what the layers read)
// norm: normalized = (x - mean) * rstd, rounded as it is stored (where `normalized` and `rstd` are not null), times gamma
// plus beta; RMSNorm: mean = 0 and no beta.
//
// Tables [*, width], contiguous, the prompt's in float; `position`, `token_type` and `prompt` may be null. out, sum, normalized [rows, width]; gamma, beta
// [width] and rstd [rows] in float.
// Bytes moved a row: 2 * width * (tables + out, sum, normalized where there are), 4 a table, 4 for rstd.
// FLOPs: (tables - 1) an element, about 8 more with a norm.
// Launch: that of normalisation.cuh.
#include "normalisation.cuh"
#include "philox.cuh"

namespace {

template <bool kWide, class T>
__device__ __forceinline__ void add_row(const Row<kWide, T>& row, float (&x)[kPacks][8]) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        float term[8];
        row.read(p, term);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[p][i] += term[i];
    }
}

// The dropout of the row, where there is one, and the row's place in memory.
template <class T, bool kWide>
__device__ __forceinline__ void store_row(float (&x)[kPacks][8], const Dropout& dropout, uint32_t ordinal, uint32_t token, T* to, int width) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        if (dropout.threshold) apply_dropout(x[p], dropout, ordinal, token, 0, column_of(p));
        store_columns<kWide>(to, column_of(p), width, x[p]);
    }
}

template <class T, bool kWide>
__device__ __forceinline__ void embed_row(const T* word, const float* prompt, const T* position, const T* token_type, const Dropout& dropout, uint32_t ordinal,
                                          uint32_t token, int kind, float epsilon, const float* gamma, const float* beta, T* sum,
                                          T* normalized, float* rstd, T* out, int width) {
    // All rows are asked for before any is used.
    Row<kWide, T> words, places, kinds;
    Row<kWide, float> prompts;
    if (prompt)
        prompts.ask(prompt, width);
    else
        words.ask(word, width);
    if (position) places.ask(position, width);
    if (token_type) kinds.ask(token_type, width);
    float x[kPacks][8];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        if (prompt)
            prompts.read(p, x[p]);
        else
            words.read(p, x[p]);
    }
    if (position) add_row(places, x);
    if (token_type) add_row(kinds, x);
    if (sum) {
        store_row<T, kWide>(x, dropout, ordinal, token, sum, width);
        // As it was stored, so that the norm of the stored sum gives the same bits.
#pragma unroll
        for (int p = 0; p < kPacks; ++p) round_pack<T>(x[p]);
    }
    if (gamma) {
        const float scale = centre_row<kWide>(kind, epsilon, x, width);
        if (rstd && threadIdx.x == 0) *rstd = scale;
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
            normalize_pack<T>(x[p], scale);
            if (normalized) store_columns<kWide>(normalized, column_of(p), width, x[p]);
            scale_pack<kWide>(x[p], gamma, beta, column_of(p), width);
        }
    }
    store_row<T, kWide>(x, sum ? Dropout{} : dropout, ordinal, token, out, width);
}

template <class T, bool kWide>
__device__ __forceinline__ void embed(const T* word, const T* position, const T* token_type, const int* ids, const int* positions,
                                      const int* types, const float* prompt, const Dropout& dropout, const int* ordinals, const int* tokens, int kind,
                                      float epsilon, const float* gamma, const float* beta, T* sum, int ld_sum, T* normalized,
                                      int ld_normalized, float* rstd, T* out, int ld_out, int rows, int width) {
    const int row = row_of_thread(rows);
    if (row < 0) return;
    const uint32_t ordinal = dropout.threshold ? ordinals[row] : 0, token = dropout.threshold ? tokens[row] : 0;
    const int id = ids[row];
    const bool prompted = prompt && id < 0;
    embed_row<T, kWide>(prompted ? nullptr : row_of(word, id, width), prompted ? row_of(prompt, -1 - id, width) : nullptr,
                        position ? row_of(position, positions[row], width) : nullptr,
                        token_type ? row_of(token_type, types[row], width) : nullptr, dropout, ordinal, token, kind, epsilon, gamma, beta,
                        optional_row(sum, row, ld_sum), optional_row(normalized, row, ld_normalized), rstd ? rstd + row : nullptr,
                        row_of(out, row, ld_out), width);
}

}  // namespace

#define ENTRIES(T, suffix, wide)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(kThreads) embed_##suffix(                                                              \
        const T* word, const T* position, const T* token_type, const int* ids, const int* positions, const int* types,                  \
        const float* prompt, uint32_t key0, uint32_t key1, uint32_t threshold, float scale, const int* ordinals, const int* tokens,     \
        int kind, float epsilon, const float* gamma, const float* beta, T* sum, int ld_sum, T* normalized, int ld_normalized,           \
        float* rstd, T* out, int ld_out, int rows, int width) {                                                                         \
        embed<T, wide>(word, position, token_type, ids, positions, types, prompt, {key0, key1, threshold, scale}, ordinals, tokens, kind,     \
                 epsilon, gamma, beta, sum, ld_sum, normalized, ld_normalized, rstd, out, ld_out, rows, width);                         \
    }                                                                                                                                   \
    KERNEL_ENTRY(embed_##suffix);
FOR_BOTH_HALVES_AND_ROWS(ENTRIES)
