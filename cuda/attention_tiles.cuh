// attention_tiles.cuh: what the attention kernels share: their operands, the table of tile sizes, tiles in shared
// memory, products of fragments, and dropout masks in the layout of a fragment.
//
// The columns of a sequence's scores are numbered through: prefix positions 0..P first, then, from the next multiple of
// sixteen on (F), its own keys F..F + m: so draws of masks, which decide sixteen columns, never belong to both. A tile of
// streamed keys is a range of these columns and may hold both; the prefix rows are those that attention_prefix.cu wrote
// for the sequence. Columns P..F are hidden from every query.
//
// Launching. T is f16 or bf16, D the least of 16, 32, 64, 128 that is at least head_dim; P = prefix_length; a tile is
// the row for D of the kernel's table below; own = 16 * warps * blocks of it. Blocks are 32 * warps threads in x.
//   kernel                        table           grid x                              y         z          shared memory
//   attention_forward_T_D         kForward        ceil(max_queries / own)             heads     sequences  row_major_bytes(tile, D, 1)
//   attention_backward_query_T_D  kBackwardQuery  ceil(max_queries / own)             heads     sequences  row_major_bytes(tile, D, 2)
//   attention_backward_key_T_D    kBackwardKey    ceil(max_keys / own)                kv_heads  sequences  key_major_bytes(tile, D)
//   prefix_gradient_partial_T_D   kPrefix         ceil(P / own)                       kv_heads  chunks     key_major_bytes(tile, D)
//   attention_relative_*_T        see attention_relative.cu
//   attention_prefix_T            see attention_prefix.cu; in front of all the others that read a prefix
//   attention_delta_T             256 threads     ceil(rows * heads * lanes / 256)    1         1          0
//   prefix_gradient_sum           256 threads     ceil(P * ceil(width / 4) / 256)     2         1          0
// with lanes = the least power of two >= head_dim / 8.
#pragma once
#include "instructions.cuh"
#include "numbers.cuh"
#include "philox.cuh"

// A block holds 16 * warps * blocks rows of its own (queries, or keys in a key-major kernel), `blocks` times 16 a
// warp, and streams the other side through shared memory in double-buffered tiles of `step` rows, of which `chunk` at a
// time are in registers.
struct Tile {
    int warps, blocks, step, chunk;
};

// For D = 16, 32, 64, 128. Two blocks of 16 rows a warp halve the shared-memory reads of the streamed side, which would
// else be the limit (one mma of 16x8x16 takes 256 bytes of it); registers bound the rest: 255 a thread at 128 threads.
constexpr Tile kForward[4] = {
    {4, 2, 64, 64},  // scores 64 registers, output 16: the softmax is the limit, wide steps rescale less often
    {4, 2, 64, 64},  // output 32
    {4, 2, 64, 64},  // output 64, queries held in 32 registers; 48 KB, so that two blocks share 99 KB
    {4, 2, 32, 32},  // output 128, scores 32, queries reread from shared memory; 64 KB
};
constexpr Tile kBackwardQuery[4] = {
    {4, 2, 64, 32},
    {4, 2, 64, 32},
    {4, 2, 64, 32},  // d_query 64 registers, scores and their gradients 32 each; 64 KB
    {4, 2, 32, 16},  // d_query 128 registers, so 16 + 16 for the chunk; 96 KB
};
constexpr Tile kBackwardKey[4] = {
    {4, 2, 64, 32},
    {4, 2, 64, 32},
    {4, 2, 64, 32},  // d_key and d_value 64 registers each, scores and their gradients 32 each; 65 KB
    {8, 1, 32, 16},  // 64 registers each, with one block of rows a warp; 8 warps, so that 128 keys share a load; 97 KB
};
constexpr Tile kPrefix[4] = {
    {4, 1, 64, 32},  // prefixes are short: 64 keys a block leave fewer warps idle
    {4, 1, 64, 32},
    {4, 1, 64, 32},
    {4, 1, 32, 16},
};
// Of attention_relative.cu, for one padded head dim of 64.
constexpr Tile kRelative[1] = {
    {4, 1, 32, 32},  // bands of 95 rows of two tables in rings of 128: with what a warp picks out of them, 80 KB
};
__host__ __device__ constexpr int tile_index(int head_dim) { return head_dim <= 16 ? 0 : head_dim <= 32 ? 1 : head_dim <= 64 ? 2 : 3; }

// Shared memory in bytes: own rows (`own` operands: queries, and their output gradients), then two stages of keys and
// values.
constexpr int row_major_bytes(Tile tile, int head_dim, int own) {
    return 2 * head_dim * (16 * tile.warps * tile.blocks * own + 2 * 2 * tile.step);
}
// Own keys and values, then two stages of queries, output gradients and four numbers a query.
constexpr int key_major_bytes(Tile tile, int head_dim) {
    return 2 * head_dim * (2 * 16 * tile.warps * tile.blocks + 2 * 2 * tile.step) + 2 * 4 * 4 * tile.step;
}
// Own rows of two operands, two stages of two and their numbers, rings of 128 rows of two tables, 16 rows of 56 products a
// warp.
constexpr int relative_bytes(Tile tile) { return key_major_bytes(tile, 64) + 2 * 64 * 2 * 128 + 4 * 16 * 56 * tile.warps; }
constexpr int kSharedLimit = 99 * 1024;  // of a block on sm_86, sm_89 and sm_120
constexpr bool tiles_fit(int index, int head_dim) {
    return row_major_bytes(kForward[index], head_dim, 1) <= kSharedLimit &&
           row_major_bytes(kBackwardQuery[index], head_dim, 2) <= kSharedLimit &&
           key_major_bytes(kBackwardKey[index], head_dim) <= kSharedLimit && key_major_bytes(kPrefix[index], head_dim) <= kSharedLimit;
}
// Two blocks of four warps share a multiprocessor's registers, or one of eight has them.
#define ATTENTION_LAUNCH_BOUNDS(TABLE, D) __launch_bounds__(32 * TABLE[tile_index(D)].warps, 8 / TABLE[tile_index(D)].warps)
static_assert(tiles_fit(0, 16) && tiles_fit(1, 32) && tiles_fit(2, 64) && tiles_fit(3, 128), "a tile outgrows shared memory");

// The operands that every attention kernel takes first, in this order. Strides (ld_) in elements.
template <class T>
struct Operands {
    const T* query;  // [Tq, heads * head_dim]
    int ld_query;
    const T* key;  // [Tk, kv_heads * head_dim]
    int ld_key;
    const T* value;
    int ld_value;
    const T* prefix;  // [copies, keys and values, F, kv_heads * head_dim], see attention_prefix.cu
    int prefix_length;
    int ld_copy;               // from a sequence's copy to the next one's; 0: there is one for all
    const int* query_offsets;  // [sequences + 1]
    const int* key_offsets;
    const int* query_ordinals;  // [Tq]
    const int* query_tokens;    // ascending within a sequence
    int sequences, heads, kv_heads, head_dim;
    float scale;
    Dropout dropout;        // of the probabilities: element (ordinal, query token, head, column)
    const int* separators;  // [sequences]: see seen_by; null: every query sees every key
};
#define ATTENTION_PARAMETERS(T)                                                                                                 \
    const T *query, int ld_query, const T *key, int ld_key, const T *value, int ld_value, const T *prefix, int prefix_length,   \
        int ld_copy, const int *query_offsets, const int *key_offsets, const int *query_ordinals, const int *query_tokens,      \
        int sequences, int heads, int kv_heads, int head_dim, float scale, uint32_t key0, uint32_t key1, uint32_t below,        \
        float kept_scale, const int *separators
#define ATTENTION_OPERANDS(T)                                                                                                   \
    Operands<T> {                                                                                                               \
        query, ld_query, key, ld_key, value, ld_value, prefix, prefix_length, ld_copy, query_offsets, key_offsets,              \
            query_ordinals, query_tokens, sequences, heads, kv_heads, head_dim, scale, {key0, key1, below, kept_scale},         \
            separators                                                                                                          \
    }

// What the backward kernels take beside them.
template <class T>
struct Saved {
    const float* log_sum_exp;  // [Tq, heads]
    int ld_log_sum_exp;
    const float* delta;  // [Tq, heads]
    int ld_delta;
    const T* d_out;  // [Tq, heads * head_dim]
    int ld_d_out;
};
#define SAVED_PARAMETERS(T) const float *log_sum_exp, int ld_log_sum_exp, const float *delta, int ld_delta, const T *d_out, int ld_d_out
#define SAVED_OPERANDS(T) Saved<T>{log_sum_exp, ld_log_sum_exp, delta, ld_delta, d_out, ld_d_out}

constexpr float kLog2E = 1.4426950408889634f;

constexpr int kSeesAll = 0x7fffffff;  // the separator of a sequence whose queries see every key

// Columns in front of a sequence's own keys: the prefix, filled up.
template <class T>
__device__ __forceinline__ int front_of(const Operands<T>& o) { return (o.prefix_length + 15) / 16 * 16; }

struct Sequence {
    int first_query, queries, first_key, keys, separator;
};
template <class T>
__device__ __forceinline__ Sequence sequence(const Operands<T>& o, int b) {
    int first_query = o.query_offsets[b], first_key = o.key_offsets[b];
    return {first_query, o.query_offsets[b + 1] - first_query, first_key, o.key_offsets[b + 1] - first_key,
            o.separators ? o.separators[b] : kSeesAll};
}
// How many of a sequence's keys the query in packed row `row` sees: the first ones.
template <class T>
__device__ __forceinline__ int seen_by(const Operands<T>& o, const Sequence& s, int row) {
    return s.separator == kSeesAll ? s.keys : min(s.keys, max(o.query_tokens[row] + 1, s.separator));
}
// The first of the sequence's query rows that sees its key `key` (one of them), or one past its last row.
template <class T>
__device__ __forceinline__ int first_to_see(const Operands<T>& o, const Sequence& s, int key) {
    int low = s.first_query, high = s.first_query + s.queries;
    if (key < s.separator) return low;
    if (s.queries == s.keys) return low + key;  // every token has its query: nothing to look for
    while (low < high) {
        const int middle = (low + high) / 2;
        if (o.query_tokens[middle] < key) low = middle + 1;
        else high = middle;
    }
    return low;
}
// The sequence's ordinal in the step, for its masks.
template <class T>
__device__ __forceinline__ uint32_t ordinal_of(const Operands<T>& o, int first_query) {
    return o.dropout.threshold ? (uint32_t)o.query_ordinals[first_query] : 0;
}

// Where a head's dims of row `row` are.
template <class T>
__device__ __forceinline__ T* head_of(T* matrix, int row, int ld, int head, int head_dim) {
    return row_of(matrix, row, ld) + head * head_dim;
}

// ---- tiles in shared memory -------------------------------------------------------------------------------------

// Where 16-byte chunk `chunk` of row `row` of a tile of rows of kDim lies (in elements): chunks are exchanged within
// the 128-byte lines so that the 8 rows of a matrix, read at one chunk, fall in different banks.
template <int kDim>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
    constexpr int kChunks = kDim / 8;
    constexpr int kRowsOfLine = kChunks < 8 ? 8 / kChunks : 1;
    return row * kDim + ((chunk ^ (row / kRowsOfLine & (kChunks < 8 ? kChunks - 1 : 7))) * 8);
}

// A matrix's row where a tile begins, at a head's dims.
template <class T>
struct Rows {
    const T* first;
    int ld;
};

// Starts the copies of kCount tiles that lie one behind the other, each of its own matrix, whose rows are wide: rows at ..
// at + count of the tiles take the first `end` rows of the matrices, in dims below head_dim; other dims, and rows behind
// those, are zero, so that padding adds nothing to any product. Other rows of the tiles are left alone.
// A thread's 16 bytes are at one place of all its rows, kSweep apart, so that in shared memory they are constants apart, and
// only the source's address is computed anew. A row that there is not reads nothing, and has the address of one that there is.
template <class T, int kDim, int kRows, int kThreads, int kCount>
__device__ __forceinline__ void load_wide_tiles(T* tiles, const Rows<T> (&from)[kCount], int at, int count, int end, int head_dim) {
    constexpr int kChunks = kDim / 8, kSweep = kThreads / kChunks;
    static_assert(kThreads % kChunks == 0 && kRows % kSweep == 0, "every thread has as many rows, of one chunk");
    static_assert(kSweep % 8 == 0, "chunk_at exchanges chunks alike in rows that are a multiple of 8 apart");
    const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    const uint32_t valid = chunk * 8 < head_dim ? end : 0, last = valid > 0 ? valid - 1 : 0;
    const uint32_t to = shared_address(tiles) + chunk_at<kDim>(row, chunk) * (int)sizeof(T);
#pragma unroll
    for (int sweep = 0; sweep < kRows; sweep += kSweep) {
        const uint32_t index = row + sweep - at;  // above `count` where it is in front of the first
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            // Unsigned products of 32 bits: one instruction.
            const uint64_t bytes = (uint64_t)min(index, last) * (from[i].ld * (uint32_t)sizeof(T));
            const char* source = (const char*)(from[i].first + chunk * 8) + bytes;
            copy_async_if(to + (i * kRows + sweep) * kDim * (int)sizeof(T), source, index < valid, index < (uint32_t)count);
        }
    }
}

// The same of matrices with rows at any address.
template <class T, int kDim, int kRows, int kThreads, int kCount>
__device__ __forceinline__ void load_tiles(T* tiles, const Rows<T> (&from)[kCount], int at, int count, int end, int head_dim) {
    bool wide = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) wide = wide && rows_are_wide(from[i].first, from[i].ld);
    if (wide) {
        load_wide_tiles<T, kDim, kRows, kThreads>(tiles, from, at, count, end, head_dim);
    } else {
#pragma unroll 1
        for (int i = threadIdx.x; i < kRows * kDim; i += kThreads) {
            const int index = i / kDim - at, dim = i % kDim;
            if (index < 0 || index >= count) continue;
            const bool valid = index < end && dim < head_dim;
#pragma unroll
            for (int j = 0; j < kCount; ++j)
                tiles[j * kRows * kDim + chunk_at<kDim>(i / kDim, dim / 8) + dim % 8] =
                    valid ? row_of(from[j].first, index, from[j].ld)[dim] : from_float<T>(0.0f);
        }
    }
}
// The same of whole tiles.
template <class T, int kDim, int kRows, int kThreads, int kCount>
__device__ __forceinline__ void load_tiles(T* tiles, const Rows<T> (&from)[kCount], int end, int head_dim) {
    load_tiles<T, kDim, kRows, kThreads>(tiles, from, 0, kRows, end, head_dim);
}

// Starts loading the prefix's keys and values from position `first` on, as sequence `b` sees them, into the first `count`
// rows of two tiles; zeros from the prefix's end on.
template <class T, int kDim, int kRows, int kThreads>
__device__ __forceinline__ void load_prefix(T* tiles, const Operands<T>& o, int b, int kv_head, int first, int count) {
    const int width = o.kv_heads * o.head_dim, front = front_of(o);
    const T* key = head_of(o.prefix + (int64_t)b * o.ld_copy, first, width, kv_head, o.head_dim);
    const Rows<T> from[] = {{key, width}, {row_of(key, front, width), width}};
    load_wide_tiles<T, kDim, kRows, kThreads>(tiles, from, 0, count, max(front - first, 0), o.head_dim);
}

// Starts loading columns column..column + kRows of sequence `b`: keys, then values, of prefix and tokens.
template <class T, int kDim, int kRows, int kThreads>
__device__ __forceinline__ void load_columns(T* stage, const Operands<T>& o, const Sequence& s, int b, int kv_head, int column) {
    const int front = front_of(o), prefix_rows = max(0, min(kRows, front - column));
    if (prefix_rows < kRows) {
        const int first = column + prefix_rows - front, row = s.first_key + first;
        const Rows<T> from[] = {{head_of(o.key, row, o.ld_key, kv_head, o.head_dim), o.ld_key},
                                {head_of(o.value, row, o.ld_value, kv_head, o.head_dim), o.ld_value}};
        load_tiles<T, kDim, kRows, kThreads>(stage, from, prefix_rows, kRows - prefix_rows, s.keys - first, o.head_dim);
    }
    if (prefix_rows > 0) load_prefix<T, kDim, kRows, kThreads>(stage, o, b, kv_head, column, prefix_rows);
}

// Gives `value` to what stands in the columns between the prefix and the own keys, in an accumulator of columns column ..
// column + 8 * N.
template <class T, int M, int N>
__device__ __forceinline__ void hide_gap(float (&scores)[M][N][4], const Operands<T>& o, int column, float value) {
    const int first = o.prefix_length - column, width = -o.prefix_length & 15;
    if (width == 0 || first < 0 || first >= 8 * N) return;
    const int from = threadIdx.x % 4 * 2 - first;
#pragma unroll
    for (int i = 0; i < N * 2; ++i) {
        if ((unsigned)(from + i / 2 * 8 + i % 2) >= (unsigned)width) continue;
#pragma unroll
        for (int j = 0; j < M * 2; ++j) scores[j / 2][i / 2][j % 2 * 2 + i % 2] = value;
    }
}

// ---- fragments --------------------------------------------------------------------------------------------------
// An accumulator `float acc[M][N][4]` holds 16 * M rows and 8 * N columns of a warp: lane (g, t) = (lane / 4, lane % 4)
// has rows 16 m + g (elements 0, 1) and 16 m + g + 8 (elements 2, 3), columns 8 n + 2 t and the next.

// The left operand of products over the head's dimensions: 16 * M rows of a tile from `row` on, read as they are
// needed, or held in registers from hold() on.
template <class T, int kDim, int M, bool kHeld>
struct LeftRows {
    const T* tile;
    int row;
    uint32_t held[kHeld ? kDim / 16 : 1][M][4];

    __device__ __forceinline__ void read(int k, uint32_t (&a)[M][4]) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < M; ++m) load_matrices(a[m], tile + chunk_at<kDim>(row + m * 16 + lane % 16, k * 2 + lane / 16));
    }
    __device__ __forceinline__ void hold() {
        if (kHeld) {
#pragma unroll
            for (int k = 0; k < kDim / 16; ++k) read(k, held[kHeld ? k : 0]);
        }
    }
    __device__ __forceinline__ void fragment(int k, uint32_t (&a)[M][4]) const {
        if (kHeld) {
#pragma unroll
            for (int i = 0; i < 4 * M; ++i) a[i / 4][i % 4] = held[kHeld ? k : 0][i / 4][i % 4];
        } else {
            read(k, a);
        }
    }
};

// A row of a tile that is a ring of kRing rows, a power of two; 0: of a tile that is none.
template <int kRing>
__device__ __forceinline__ int ring_row(int row) {
    return kRing > 0 ? row & (kRing - 1) : row;
}

// acc = left * (rows row .. row + 8 * N of `tile`)^T: a product over the head's dimensions.
template <class T, int kDim, int M, int N, int kRing = 0, bool kHeld>
__device__ __forceinline__ void multiply_rows(float (&acc)[M][N][4], const LeftRows<T, kDim, M, kHeld>& left, const T* tile, int row) {
    const int lane = lane_anew();
#pragma unroll
    for (int i = 0; i < M * N * 4; ++i) acc[i / (N * 4)][i / 4 % N][i % 4] = 0.0f;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
        uint32_t a[M][4];
        left.fragment(k, a);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            const int from = ring_row<kRing>(row + n * 8 + lane / 16 * 8 + lane % 8);
            load_matrices(b, tile + chunk_at<kDim>(from, k * 2 + lane / 8 % 2));
            const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma_m16n8k16<T>(acc[m][n], a[m], low);
                mma_m16n8k16<T>(acc[m][n + 1], a[m], high);
            }
        }
    }
}

// acc += weights (16 * M rows, 8 * N columns, rounded to T) * rows row .. row + 8 * N of `tile`.
template <class T, int kDim, int M, int N>
__device__ __forceinline__ void multiply_columns(float (&acc)[M][kDim / 8][4], const float (&weights)[M][N][4], const T* tile, int row) {
    const int lane = lane_anew();
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
        uint32_t a[M][4];  // an accumulator's two neighbouring blocks are an operand's four registers
#pragma unroll
        for (int i = 0; i < M * 4; ++i) {
            const float(&from)[4] = weights[i / 4][2 * k + i % 4 / 2];
            a[i / 4][i % 4] = pack_pair<T>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
#pragma unroll
        for (int n = 0; n < kDim / 8; n += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, tile + chunk_at<kDim>(row + k * 16 + lane % 16, n + lane / 16));
            const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma_m16n8k16<T>(acc[m][n], a[m], low);
                mma_m16n8k16<T>(acc[m][n + 1], a[m], high);
            }
        }
    }
}

// Writes a warp's accumulators, times `factor` and rounded, to its rows row .. row + 16 * M of `to`, of which there are
// `end`. They go through the same rows of `tile`, which only this warp may be using, so that memory sees whole rows.
template <class T, int kDim, int M>
__device__ __forceinline__ void store_rows(T* tile, int row, const float (&acc)[M][kDim / 8][4], float factor, T* to, int ld, int end,
                                           int head_dim) {
    constexpr int kChunks = kDim / 8;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < kChunks; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                *(uint32_t*)(tile + chunk_at<kDim>(row + m * 16 + half * 8 + g, n) + 2 * t) =
                    pack_pair<T>(acc[m][n][half * 2] * factor, acc[m][n][half * 2 + 1] * factor);
    __syncwarp();
    if (rows_are_wide(to, ld)) {
#pragma unroll
        for (int i = lane; i < 16 * M * kChunks; i += 32) {
            const int at = row + i / kChunks, chunk = i % kChunks;
            if (at < end && chunk * 8 < head_dim)
                *(uint4*)(row_of(to, at, ld) + chunk * 8) = *(const uint4*)(tile + chunk_at<kDim>(at, chunk));
        }
    } else {
#pragma unroll 1
        for (int i = lane; i < 16 * M * kDim; i += 32) {
            const int at = row + i / kDim, dim = i % kDim;
            if (at < end && dim < head_dim) row_of(to, at, ld)[dim] = tile[chunk_at<kDim>(at, dim / 8) + dim % 8];
        }
    }
}

// ---- dropout masks in the layout of an accumulator --------------------------------------------------------------

// Which of eight columns from `column` on, a multiple of eight, are kept, as bits: of a prefix.
__device__ __forceinline__ uint32_t keep_eight(const Dropout& dropout, uint32_t ordinal, uint32_t token, uint32_t head, uint32_t column) {
    const uint4 draw = dropout_words(dropout, ordinal, token, head, column);
    const uint32_t words[4] = {draw.x, draw.y, draw.z, draw.w};
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        kept |= (keeps_even(words[i], dropout.threshold) ? 1u : 0u) << 2 * i | (keeps_odd(words[i], dropout.threshold) ? 2u : 0u) << 2 * i;
    return kept;
}

// The mask of a prefix's gradient: 16 rows (mask rows are accumulator rows) and 8 * N columns from `column`, a multiple of
// eight; N is even. One draw gives eight columns of a row, of which a lane holds two, and it holds two rows. So of the four
// lanes of a row each draws half of one row's: lane t those of row g + 8 * (t % 2), in blocks of columns t / 2, t / 2 + 2, ...,
// and all fetch theirs. `token` is that of the lane's row, g + 8 * (t % 2).
// Element (n, i) is kept where kept_in_prefix says so.
template <int N>
__device__ __forceinline__ uint32_t keep_prefix(const Dropout& dropout, uint32_t ordinal, uint32_t token, uint32_t head, uint32_t column) {
    static_assert(N % 2 == 0 && N <= 8, "eight bits for each of N / 2 blocks");
    const int t = threadIdx.x % 4;
    uint32_t mine = 0, bits = 0;
#pragma unroll
    for (int n = 0; n < N; n += 2) mine |= keep_eight(dropout, ordinal, token, head, column + (n + t / 2) * 8) << 4 * n;
    // Of each eight bits two are this lane's; `from` counts within the row's four lanes.
#pragma unroll
    for (int from = 0; from < 4; ++from) bits |= (__shfl_sync(~0u, mine, from, 4) >> 2 * t & 0x03030303u) << 2 * from;
    return bits;
}
__device__ __forceinline__ bool kept_in_prefix(uint32_t bits, int n, int i) { return bits >> (n / 2 * 8 + n % 2 * 4 + i) & 1; }

// The mask of 16 rows of probabilities (mask rows are accumulator rows) and 8 * N columns from `column`, a multiple of sixteen;
// N is even. One draw gives sixteen columns of a row, of which a lane holds four, and it holds two rows. So lane t draws those
// of row g + 8 * (t % 2), in pairs of blocks t / 2 and t / 2 + 2, and all fetch theirs: of a draw's bytes 2 (t % 2) and the
// next, the bits t / 2 and t / 2 + 2. `token` is that of the lane's row, g + 8 * (t % 2).
// Element (n, i) is kept where kept_in_rows says so.
template <int N>
__device__ __forceinline__ uint32_t keep_rows(const Dropout& dropout, uint32_t ordinal, uint32_t token, uint32_t head, uint32_t column) {
    static_assert(N % 2 == 0 && N <= 8, "four bits of a byte for each of two draws");
    const int t = threadIdx.x % 4;
    uint32_t mine = 0, bits = 0;
    // With a single pair of blocks two lanes draw the same.
#pragma unroll
    for (int pair = 0; pair < N / 2; pair += 2)
        mine |= keep_sixteen(dropout, ordinal, token, head, column + (pair + (N > 2 ? t / 2 : 0)) * 16) << 2 * pair;
#pragma unroll
    for (int from = 0; from < (N > 2 ? 4 : 2); ++from)
        bits |= (__shfl_sync(~0u, mine, from, 4) >> (t % 2 * 16 + t / 2) & 0x5555u) << (from % 2 + from / 2 * 16);
    return bits;
}
__device__ __forceinline__ bool kept_in_rows(uint32_t bits, int n, int i) {
    return bits >> (i % 2 * 8 + n / 4 * 4 + n % 2 * 2 + i / 2 + n / 2 % 2 * 16) & 1;
}

// The mask of a transposed accumulator of probabilities: its 16 * M rows are mask columns from `column` (a multiple of sixteen)
// on, its 8 * N columns are mask rows (queries); N is even. One draw gives sixteen of the rows for one query: for block k of
// 16 rows and 16 queries, counted through, lane l draws for query l % 16 of block l / 16, and of block l / 16 + 2, and every
// lane fetches its elements' bits: those of rows g and g + 8, bits g / 4 and g / 4 + 2 of byte g % 4. `tokens` and `ordinals`
// are the queries'. Element (m, n, i) is kept where kept_in_columns says so.
template <int M, int N>
__device__ __forceinline__ uint32_t keep_columns(const Dropout& dropout, const int* ordinals, const int* tokens, uint32_t head,
                                                 uint32_t column) {
    constexpr int kBlocks = M * N / 2, kHalves = kBlocks > 1 ? 2 : 1;
    static_assert(N % 2 == 0 && kBlocks <= 4, "four bits of a byte for each of two draws");
    const int lane = lane_anew(), g = lane / 4, t = lane % 4;
    uint32_t mine = 0, bits = 0;
#pragma unroll
    for (int first = 0; first < kBlocks; first += 2) {
        const int k = first + (kBlocks > 1 ? lane / 16 : 0), query = k % (N / 2) * 16 + lane % 16;
        mine |= keep_sixteen(dropout, ordinals[query], tokens[query], head, column + k / (N / 2) * 16) << 2 * first;
    }
    // From the lanes that drew for queries 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of both halves.
#pragma unroll
    for (int i = 0; i < 4 * kHalves; ++i)
        bits |= (__shfl_sync(~0u, mine, i / 4 * 16 + i / 2 % 2 * 8 + 2 * t + i % 2) >> (g % 4 * 8 + g / 4) & 0x55u) << (i / 2 * 8 + i % 2);
    return bits;
}
template <int N>
__device__ __forceinline__ bool kept_in_columns(uint32_t bits, int m, int n, int i) {
    const int k = m * (N / 2) + n / 2;
    return bits >> (((k % 2) * 2 + n % 2) * 8 + i % 2 + i / 2 * 2 + k / 2 * 4) & 1;
}
