// attention_relative.cuh: the relative terms of attention's scores (DeBERTa) in a tile of own and streamed rows.
//
//   S[i, j] += q_i . KR[r] + k_j . QR[r],  r = clamp(i - j + span, 0, 2 span - 1);  i, j tokens of a sequence
//   dq_i += sum_j dS[i, j] KR[r],  dk_j += sum_i dS[i, j] QR[r]
//
// One side of the scores is a block's own rows (queries, or keys in the key-major kernel), the other is streamed. Rows of
// both follow one another by token, so that a tile meets a band of the tables, a row for each distance: row u of the band
// is for own row r and streamed row c with u = c - r + kOwn - 1. A step of the stream moves the band by as many rows, so
// the band is kept in a ring. A warp multiplies its rows by the part of the band that they meet and picks the products
// along the diagonals out of shared memory; gradients go along the diagonals into it, and are an operand there.
//
// FLOPs beside the plain kernel's 2 d a pair for each product: 3 d for the own side's term, 4 d for the streamed side's
// (bands of 48 and 32 rows for tiles of 16 x 32 and 16 x 16 pairs), 3 d for the gradient.
#pragma once
#include "attention_tiles.cuh"

// The tables, and what else the kernels of attention_relative.cu take behind their operands.
#define RELATIVE_PARAMETERS(T) const T *relative_key, int ld_relative_key, const T *relative_query, int ld_relative_query, int span
#define RELATIVE_TABLES(T) Tables<T>{{relative_key, relative_query}, {ld_relative_key, ld_relative_query}, span}
template <class T>
struct Tables {
    const T* rows[2];  // KR, QR [2 span, heads * head_dim]; null: without that term
    int ld[2], span;
};

// A sequence's queries by token: slot r stands for the query of token `first_token + r`, which there may not be.
struct QuerySlots {
    const int* tokens;
    Sequence s;
    int first_token;

    template <class T>
    __device__ __forceinline__ QuerySlots(const Operands<T>& o, const Sequence& s, int first_token)
        : tokens(o.query_tokens), s(s), first_token(first_token) {}
    // The packed row of a slot's query, or -1.
    __device__ __forceinline__ int row(int slot) const {
        const int token = first_token + slot;
        if (s.queries == s.keys) return token < s.keys ? s.first_query + token : -1;
        int low = s.first_query, high = s.first_query + s.queries;
        while (low < high) {
            const int middle = (low + high) / 2;
            if (tokens[middle] < token) low = middle + 1;
            else high = middle;
        }
        return low < s.first_query + s.queries && tokens[low] == token ? low : -1;
    }
};

// As load_tiles, of rows by slot: from `slot` on, zeros for slots without a query.
template <class T, int kDim, int kRows, int kThreads>
__device__ __forceinline__ void load_slots(T* tile, const T* from, int ld, const QuerySlots& slots, int slot, int head_dim) {
    constexpr int kChunks = kDim / 8;
    if (rows_are_wide(from, ld)) {
#pragma unroll
        for (int start = 0; start < kRows * kChunks; start += kThreads) {
            const int i = start + threadIdx.x, row = slots.row(slot + i / kChunks), chunk = i % kChunks;
            const bool valid = row >= 0 && chunk * 8 < head_dim;
            copy_async<16>(tile + chunk_at<kDim>(i / kChunks, chunk), valid ? row_of(from, row, ld) + chunk * 8 : from, valid);
        }
    } else {
#pragma unroll 1
        for (int i = threadIdx.x; i < kRows * kDim; i += kThreads) {
            const int row = slots.row(slot + i / kDim), dim = i % kDim;
            const bool valid = row >= 0 && dim < head_dim;
            tile[chunk_at<kDim>(i / kDim, dim / 8) + dim % 8] = valid ? row_of(from, row, ld)[dim] : from_float<T>(0.0f);
        }
    }
}

// As store_rows, of the 16 slots from `slot` on.
template <class T, int kDim>
__device__ __forceinline__ void store_slots(T* tile, int slot, const float (&acc)[1][kDim / 8][4], float factor, T* to, int ld,
                                            const QuerySlots& slots, int head_dim) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i)
        *(uint32_t*)(tile + chunk_at<kDim>(slot + i % 2 * 8 + g, i / 2) + 2 * t) =
            pack_pair<T>(acc[0][i / 2][i % 2 * 2] * factor, acc[0][i / 2][i % 2 * 2 + 1] * factor);
    __syncwarp();
    const int packs = rows_are_wide(to, ld) ? head_dim / 8 : 0;
#pragma unroll 1
    for (int r = 0; r < 16; ++r) {
        const int row = slots.row(slot + r);
        if (row < 0) continue;
        T* target = row_of(to, row, ld);
        if (lane < packs) *(uint4*)(target + lane * 8) = *(const uint4*)(tile + chunk_at<kDim>(slot + r, lane));
        for (int dim = packs * 8 + lane; dim < head_dim; dim += 32) target[dim] = tile[chunk_at<kDim>(slot + r, dim / 8) + dim % 8];
    }
}

// The band of both tables that a block's rows meet, and each warp's place for products with it.
template <class T, int kDim>
struct Band {
    static constexpr int kStep = kRelative[0].step, kOwn = 16 * kRelative[0].warps, kThreads = 32 * kRelative[0].warps, N = kStep / 8;
    static constexpr int kRing = 128;   // kOwn + kStep - 1 rows for a tile, and a step more on its way
    static constexpr int kDiagonal = 15;  // where the product of own row 0 and streamed row 0 of a block of 16 rows stands
    static constexpr int kWidth = 56;   // of a row of products: 48, and 8 against bank conflicts
    static constexpr int kBytes = 2 * kRing * kDim * (int)sizeof(T) + kRelative[0].warps * 16 * kWidth * (int)sizeof(float);
    static_assert(kOwn + 2 * kStep <= kRing && kStep == 32 && kRelative[0].blocks == 1, "the ring's and the diagonals' sizes");

    T* rings[2];  // of the table that own rows meet, and of the one that streamed rows do
    float* products;
    const T* tables[2];
    int ld[2];
    const T* other;  // any address of T
    int last, origin, direction, head_dim;

    // `own` is which of the tables own rows meet: 0, KR, queries; 1, QR, keys. Own row 0 and streamed row 0 are the tokens
    // `own_token` and `streamed_token`.
    __device__ __forceinline__ Band(unsigned char* shared, const Operands<T>& o, const Tables<T>& from, int head, int own, int own_token,
                                    int streamed_token)
        : products((float*)(shared + 2 * kRing * kDim * sizeof(T)) + threadIdx.x / 32 * 16 * kWidth), other(o.query),
          last(2 * from.span - 1), direction(own ? 1 : -1), head_dim(o.head_dim) {
        const int distance = own ? streamed_token - own_token : own_token - streamed_token;  // i - j of the two rows 0
        origin = from.span + distance - direction * (kOwn - 1);
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            const int table = side ^ own;
            rings[side] = (T*)shared + side * kRing * kDim;
            tables[side] = from.rows[table] ? from.rows[table] + head * o.head_dim : nullptr;
            ld[side] = from.ld[table];
        }
    }

    // Starts loading rows from kStep * step on, as many as a step has.
    __device__ __forceinline__ void load(int step) {
        constexpr int kChunks = kDim / 8;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            const T* from = tables[side];
            if (!from || rows_are_wide(from, ld[side])) {
#pragma unroll
                for (int start = 0; start < kStep * kChunks; start += kThreads) {
                    const int i = start + threadIdx.x, u = step * kStep + i / kChunks, chunk = i % kChunks;
                    const bool valid = from && chunk * 8 < head_dim;
                    const T* row = valid ? row_of(from, min(max(origin + direction * u, 0), last), ld[side]) + chunk * 8 : other;
                    copy_async<16>(rings[side] + chunk_at<kDim>(ring_row<kRing>(u), chunk), row, valid);
                }
            } else {
#pragma unroll 1
                for (int i = threadIdx.x; i < kStep * kDim; i += kThreads) {
                    const int u = step * kStep + i / kDim, dim = i % kDim;
                    const T* row = row_of(from, min(max(origin + direction * u, 0), last), ld[side]);
                    rings[side][chunk_at<kDim>(ring_row<kRing>(u), dim / 8) + dim % 8] = dim < head_dim ? row[dim] : from_float<T>(0.0f);
                }
            }
        }
    }
    // What tile 0 needs; tile s > 0 needs load(s + 2) beside what the ones before it did.
    __device__ __forceinline__ void load_first() {
#pragma unroll
        for (int step = 0; step < (kOwn + kStep) / kStep; ++step) load(step);
    }

    // The products of 16 rows of the left operand with 8 * B rows of a ring from `u` on, for picking.
    template <int B, bool kHeld>
    __device__ __forceinline__ void multiply(const LeftRows<T, kDim, 1, kHeld>& left, int side, int u) {
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        float acc[1][B][4];
        multiply_rows<T, kDim, 1, B, kRing>(acc, left, rings[side], u);
        __syncwarp();  // everybody has picked the last ones
#pragma unroll
        for (int i = 0; i < B * 2; ++i)
            *(float2*)(products + (i % 2 * 8 + g) * kWidth + i / 2 * 8 + 2 * t) = make_float2(acc[0][i / 2][i % 2 * 2], acc[0][i / 2][i % 2 * 2 + 1]);
        __syncwarp();
    }

    // Adds both terms to the scores of the warp's own rows, from `row` of the block on, and the streamed rows of tile `s`,
    // from `first` of it on.
    template <bool kHeld>
    __device__ __forceinline__ void add(float (&scores)[1][N][4], const LeftRows<T, kDim, 1, kHeld>& own, int row, const T* streamed, int s,
                                        int first) {
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int u = s * kStep + kOwn - 1 - kDiagonal - row;  // of the warp's last own row and streamed row 0
        if (tables[0]) {
            multiply<6>(own, 0, u);
#pragma unroll
            for (int i = 0; i < N * 4; ++i) {
                const int r = i % 4 / 2 * 8 + g, c = i / 4 * 8 + 2 * t + i % 2;
                if (c >= first) scores[0][i / 4][i % 4] += products[r * kWidth + c - r + kDiagonal];
            }
        }
        if (!tables[1]) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            LeftRows<T, kDim, 1, false> left;
            left.tile = streamed;
            left.row = half * 16;
            multiply<4>(left, 1, u + half * 16);
#pragma unroll
            for (int i = 0; i < N * 2; ++i) {
                const int n = half * 2 + i / 4, r = i % 4 / 2 * 8 + g, c = i / 4 * 8 + 2 * t + i % 2;
                if (half * 16 + c >= first) scores[0][n][i % 4] += products[c * kWidth + c - r + kDiagonal];
            }
        }
    }

    // Adds to the gradients of the warp's own rows what the scores' gradients in tile `s`, rounded to T, give through the
    // table that own rows meet.
    __device__ __forceinline__ void add_gradient(float (&sums)[1][kDim / 8][4], const float (&gradients)[1][N][4], int row, int s, int first) {
        if (!tables[0]) return;
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int u = s * kStep + kOwn - 1 - kDiagonal - row;
        T* skewed = (T*)products;
        __syncwarp();
#pragma unroll
        for (int i = lane; i < 16 * kWidth / 8; i += 32) *(uint4*)(skewed + i * 8) = make_uint4(0, 0, 0, 0);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < N * 4; ++i) {
            const int r = i % 4 / 2 * 8 + g, c = i / 4 * 8 + 2 * t + i % 2;
            if (c >= first) skewed[r * kWidth + c - r + kDiagonal] = from_float<T>(gradients[0][i / 4][i % 4]);
        }
        __syncwarp();
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            uint32_t a[4];
            load_matrices(a, skewed + lane % 16 * kWidth + k * 16 + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < kDim / 8; n += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, rings[0] + chunk_at<kDim>(ring_row<kRing>(u + k * 16 + lane % 16), n + lane / 16));
                const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
                mma_m16n8k16<T>(sums[0][n], a, low);
                mma_m16n8k16<T>(sums[0][n + 1], a, high);
            }
        }
    }
};
