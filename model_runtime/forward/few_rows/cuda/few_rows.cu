// The kernels of a forward of few rows, except attention, in bfloat16: products with matrices that bitsandbytes packed in
// 4 bits, RMSNorm, and rotary positions with the writes to the KV arena. `TorchOperations` of operations.py
// defines in torch what each kernel computes.

constexpr int BLOCK_COLUMNS = 64;  // of bitsandbytes: columns that share a scale
constexpr int QUAD = 4;            // blocks that a warp multiplies at once: 128 bytes of a row
constexpr int TILE_ROWS = 16;      // of the matrix, as in mma.m16n8k16
constexpr int TILE_TOKENS = 8;
constexpr int MOST_PARTS = 3;

// One matrix as bitsandbytes packs it: two codes per byte, the first in the high bits. The scale of a block of 64 columns is
// one of 256 entries of a table, times a scale shared by 256 blocks, plus an offset. Without `scale_codes`, `scales` has the
// scale of each block.
struct Matrix {
    const u8* codes;
    const u8* scale_codes;
    const float* scales;
    const float* offset;
    const u16* bias;
    long rows;
};

// y (tokens, rows) = x (tokens, columns) times the rows of all parts, in order, plus the residual. Gated:
// silu(x part 0) * (x part 1), with `rows` columns.
struct Product {
    Matrix parts[MOST_PARTS];
    const u32* pairs;  // the value of a byte of codes: two bfloat16, the first code's in the low half
    const float* scale_table;
    const u16* x;
    const u16* residual;  // (tokens, rows), which may be y itself; or null
    const u16* norm;      // (columns): x is x / rms(x) * norm, for the kernels that normalise
    u16* y;
    int tokens;
    int columns;
    int rows;
    float epsilon;
};

__device__ __forceinline__ float squares(u32 pair) {
    const float low = wide(pair), high = wide(pair >> 16);
    return low * low + high * high;
}

__device__ __forceinline__ u32 scaled(u32 pair, u32 factors, float scale) {
    return narrow(wide(pair) * scale * wide(factors)) | (u32)narrow(wide(pair >> 16) * scale * wide(factors >> 16))
                                                            << 16;
}

// y = x / rms(x) * weight of one row, by a whole block; `width` is a multiple of 8.
template <int WARPS>
__device__ __forceinline__ void normalise_row(const u16* x, const u16* weight, u16* y, int width, float epsilon) {
    __shared__ float sums[WARPS];
    const uint4* from = reinterpret_cast<const uint4*>(x);
    const uint4* factors = reinterpret_cast<const uint4*>(weight);
    float sum = 0;
    for (int i = threadIdx.x; i < width / 8; i += WARPS * 32) {
        const uint4 eight = from[i];
        sum += squares(eight.x) + squares(eight.y) + squares(eight.z) + squares(eight.w);
    }
    sum = warp_sum(sum);
    __syncthreads();  // `sums` is still used for the previous row
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += sums[warp];
    const float scale = rsqrtf(sum / width + epsilon);
    for (int i = threadIdx.x; i < width / 8; i += WARPS * 32) {
        const uint4 eight = from[i], factor = factors[i];
        reinterpret_cast<uint4*>(y)[i] = make_uint4(scaled(eight.x, factor.x, scale), scaled(eight.y, factor.y, scale),
                                                    scaled(eight.z, factor.z, scale), scaled(eight.w, factor.w, scale));
    }
}

// A quad of two rows of a matrix (`near`, and `far`, 8 rows below it) that is being loaded, and the inputs of its blocks'
// scales. A lane's 16 bytes are a quarter of two blocks, so that a warp requests 64 bytes of a row at once: with 32, the
// L1's tags were the limit (gate and up of an 8B: 31 us instead of 28).
struct Chunk {
    uint4 near[QUAD / 2], far[QUAD / 2];
#if NESTED
    u32 near_codes, far_codes;
    float near_scale, far_scale;
#else
    float4 near_scales, far_scales;
#endif

    __device__ __forceinline__ void fetch(const Matrix& matrix, int row, int t, int blocks, int quad) {
        const int at = row * blocks + quad * QUAD, far_at = at + 8 * blocks;
        const u8* from = matrix.codes + (long)at * (BLOCK_COLUMNS / 2) + t * 16;
        const u8* far_from = matrix.codes + (long)far_at * (BLOCK_COLUMNS / 2) + t * 16;
#pragma unroll
        for (int pair = 0; pair < QUAD / 2; pair++) {
            near[pair] = streamed(from + pair * BLOCK_COLUMNS);
            far[pair] = streamed(far_from + pair * BLOCK_COLUMNS);
        }
#if NESTED
        near_codes = __ldg(reinterpret_cast<const u32*>(matrix.scale_codes + at));
        far_codes = __ldg(reinterpret_cast<const u32*>(matrix.scale_codes + far_at));
        near_scale = __ldg(matrix.scales + (at >> 8));
        far_scale = __ldg(matrix.scales + (far_at >> 8));
#else
        near_scales = __ldg(reinterpret_cast<const float4*>(matrix.scales + at));
        far_scales = __ldg(reinterpret_cast<const float4*>(matrix.scales + far_at));
#endif
    }

    __device__ __forceinline__ void scales(float (&ours)[QUAD], float (&theirs)[QUAD], const float* table,
                                           float offset) const {
#if NESTED
#pragma unroll
        for (int block = 0; block < QUAD; block++) {
            ours[block] = table[(near_codes >> (8 * block)) & 0xff] * near_scale + offset;
            theirs[block] = table[(far_codes >> (8 * block)) & 0xff] * far_scale + offset;
        }
#else
        ours[0] = near_scales.x, ours[1] = near_scales.y, ours[2] = near_scales.z, ours[3] = near_scales.w;
        theirs[0] = far_scales.x, theirs[1] = far_scales.y, theirs[2] = far_scales.z, theirs[3] = far_scales.w;
#endif
    }
};

// The two numbers of a byte of codes. An entry of the table in shared memory takes 256 bytes, 4 of which are this lane's, so
// that its address is one permutation of bytes and no two lanes of a warp access the same bank.
constexpr int ENTRY_BYTES = 256;
constexpr int TABLE_BYTES = 256 * ENTRY_BYTES;

template <int BYTE>
__device__ __forceinline__ u32 numbers_of(u32 table, u32 codes, u32 lane_bytes) {
    u32 pair;
    // Written so that the table's address becomes part of the instruction.
    asm volatile("ld.shared.u32 %0, [%1];"
                 : "=r"(pair)
                 : "r"(table + __byte_perm(codes, lane_bytes, 0x5504 | BYTE << 4)));
    return pair;
}

// Two blocks of a row: lanes 0 and 1 have the first, lanes 2 and 3 the second. They swap halves, so that each has 8 bytes of
// both: lane t those from byte 16 (t & 1) + 8 (t >> 1) on.
__device__ __forceinline__ void share(uint2& first, uint2& second, const uint4& own, bool has_first) {
    const uint2 kept = has_first ? make_uint2(own.x, own.y) : make_uint2(own.z, own.w);
    const uint2 given = has_first ? make_uint2(own.z, own.w) : make_uint2(own.x, own.y);
    const uint2 got = make_uint2(__shfl_xor_sync(0xffffffff, given.x, 2), __shfl_xor_sync(0xffffffff, given.y, 2));
    first = has_first ? kept : got;
    second = has_first ? got : kept;
}

__device__ __forceinline__ void decode(u32 (&numbers)[8], const uint2& codes, u32 table, u32 lane_bytes) {
    numbers[0] = numbers_of<0>(table, codes.x, lane_bytes), numbers[1] = numbers_of<1>(table, codes.x, lane_bytes);
    numbers[2] = numbers_of<2>(table, codes.x, lane_bytes), numbers[3] = numbers_of<3>(table, codes.x, lane_bytes);
    numbers[4] = numbers_of<0>(table, codes.y, lane_bytes), numbers[5] = numbers_of<1>(table, codes.y, lane_bytes);
    numbers[6] = numbers_of<2>(table, codes.y, lane_bytes), numbers[7] = numbers_of<3>(table, codes.y, lane_bytes);
}

// A block computes 16 rows of y for all tokens. Each warp takes every STEP-th quad of the columns; for gated products, half
// of the warps work on the gate and half on the up matrix. The sums meet in shared memory. The columns of the matrix may be
// assigned to the 16 columns of an mma in any order, if both operands use the same one: lane t of four takes 4 columns of
// its 16 of a block in each of four mmas. While a warp works on a chunk, DEPTH others are being loaded, including those of
// the next tile. The ring starts again with each tile, so that every chunk's place in it is a compile-time constant.
template <int WARPS, int TILES, int DEPTH, bool GATED, bool NORMED>
__device__ __forceinline__ void multiply(const Product& p) {
    constexpr int STEP = GATED ? WARPS / 2 : WARPS, SHARE = 256 / WARPS, AT_ONCE = SHARE < 32 ? SHARE : 32;
    extern __shared__ u8 table_bytes[];
    const u32 table = (u32)__cvta_generic_to_shared(table_bytes);
    __shared__ float scale_table[256], offsets[MOST_PARTS];
    __shared__ float met[WARPS][TILE_ROWS][TILE_TOKENS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int group = lane >> 2, t = lane & 3;
    const int blocks = p.columns / BLOCK_COLUMNS, quads = blocks / QUAD, tiles = p.rows / TILE_ROWS;
    const int first = warp % STEP;
    const int mine = quads > first ? (quads - first + STEP - 1) / STEP : 0;
    const int rounds = (mine + DEPTH - 1) / DEPTH * DEPTH;
    const u32 lane_bytes = lane * 4;

    // The part that this warp reads of a tile, and the tile's first row in it.
    auto part_of = [&](int tile, int& row) {
        row = tile * TILE_ROWS;
        int part = GATED ? warp / STEP : 0;
        if (!GATED)
            while (row >= p.parts[part].rows) row -= (int)p.parts[part++].rows;
        return part;
    };
    Chunk ring[DEPTH];
    auto fetch = [&](Chunk& chunk, int tile, int number) {
        int row;
        const int part = part_of(tile, row);
        chunk.fetch(p.parts[part], row + group, t, blocks, first + number * STEP);
    };

    let_next_begin();
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (d < mine && blockIdx.x < tiles) fetch(ring[d], blockIdx.x, d);
    for (int base = warp * SHARE; base < (warp + 1) * SHARE; base += AT_ONCE) {
        const u32 own = __ldg(p.pairs + base + lane % AT_ONCE);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            *reinterpret_cast<u32*>(table_bytes + (base + i) * ENTRY_BYTES + lane_bytes) =
                __shfl_sync(0xffffffff, own, i);
    }
#if NESTED
    for (int i = threadIdx.x; i < 256; i += WARPS * 32) scale_table[i] = __ldg(p.scale_table + i);
    if (threadIdx.x < MOST_PARTS && p.parts[threadIdx.x].offset)
        offsets[threadIdx.x] = __ldg(p.parts[threadIdx.x].offset);
#endif
    __syncthreads();
    wait_for_earlier();

    // Every block normalises all of x itself and keeps it after the table: for one or two rows, this beats another kernel.
    const u16* x_all = p.x;
    if constexpr (NORMED) {
        u16* normed = reinterpret_cast<u16*>(table_bytes + TABLE_BYTES);
        for (int token = 0; token < p.tokens; token++)
            normalise_row<WARPS>(p.x + (long)token * p.columns, p.norm, normed + token * p.columns, p.columns,
                                 p.epsilon);
        __syncthreads();
        x_all = normed;
    }
    // Missing tokens repeat the last one; their results are not used.
    const u16* x_rows[TILES];
#pragma unroll
    for (int tokens = 0; tokens < TILES; tokens++)
        x_rows[tokens] =
            x_all + (long)min(tokens * TILE_TOKENS + group, p.tokens - 1) * p.columns + (t & 1) * 32 + (t >> 1) * 16;

    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int next_tile = tile + gridDim.x;
        int row;
        const int part = part_of(tile, row);
        float total[TILES][4] = {};
        for (int begin = 0; begin < rounds; begin += DEPTH)
#pragma unroll
            for (int d = 0; d < DEPTH; d++) {
                Chunk& chunk = ring[d];
                if (begin + d < mine) {
                    const int column = (first + (begin + d) * STEP) * QUAD * BLOCK_COLUMNS;
                    float near_scales[QUAD], far_scales[QUAD];
                    uint2 near_codes[QUAD], far_codes[QUAD];
                    chunk.scales(near_scales, far_scales, scale_table, offsets[part]);
#pragma unroll
                    for (int pair = 0; pair < QUAD / 2; pair++) {
                        share(near_codes[2 * pair], near_codes[2 * pair + 1], chunk.near[pair], t < 2);
                        share(far_codes[2 * pair], far_codes[2 * pair + 1], chunk.far[pair], t < 2);
                    }
#pragma unroll
                    for (int block = 0; block < QUAD; block++) {
                        u32 a[8], b[8];
                        decode(a, near_codes[block], table, lane_bytes);
                        decode(b, far_codes[block], table, lane_bytes);
#pragma unroll
                        for (int tokens = 0; tokens < TILES; tokens++) {
                            const uint4* from = reinterpret_cast<const uint4*>(x_rows[tokens] + column);
                            const uint4 x = from[block * BLOCK_COLUMNS / 8], more = from[block * BLOCK_COLUMNS / 8 + 1];
                            float sum[4] = {};
                            mma(sum, a[0], b[0], a[1], b[1], x.x, x.y);
                            mma(sum, a[2], b[2], a[3], b[3], x.z, x.w);
                            mma(sum, a[4], b[4], a[5], b[5], more.x, more.y);
                            mma(sum, a[6], b[6], a[7], b[7], more.z, more.w);
                            total[tokens][0] += near_scales[block] * sum[0];
                            total[tokens][1] += near_scales[block] * sum[1];
                            total[tokens][2] += far_scales[block] * sum[2];
                            total[tokens][3] += far_scales[block] * sum[3];
                        }
                    }
                }
                const int ahead = begin + d + DEPTH;
                if (ahead < mine)
                    fetch(chunk, tile, ahead);
                else if (ahead >= rounds && ahead - rounds < mine && next_tile < tiles)
                    fetch(chunk, next_tile, ahead - rounds);
            }
#pragma unroll
        for (int tokens = 0; tokens < TILES; tokens++) {
            met[warp][group][2 * t] = total[tokens][0];
            met[warp][group][2 * t + 1] = total[tokens][1];
            met[warp][group + 8][2 * t] = total[tokens][2];
            met[warp][group + 8][2 * t + 1] = total[tokens][3];
            __syncthreads();
            const int at = threadIdx.x % TILE_ROWS, column = threadIdx.x / TILE_ROWS;
            const int token = tokens * TILE_TOKENS + column;
            if (threadIdx.x < TILE_ROWS * TILE_TOKENS && token < p.tokens) {
                const u16* bias = p.parts[GATED ? 0 : part].bias;
                float y = bias ? wide(bias[row + at]) : 0;
#pragma unroll
                for (int w = 0; w < STEP; w++) y += met[w][at][column];
                if (GATED) {
                    float up = p.parts[1].bias ? wide(p.parts[1].bias[row + at]) : 0;
#pragma unroll
                    for (int w = STEP; w < WARPS; w++) up += met[w][at][column];
                    y = y / (1 + __expf(-y)) * up;
                }
                const long place = (long)token * p.rows + tile * TILE_ROWS + at;
                if (p.residual) y += wide(p.residual[place]);
                p.y[place] = narrow(y);
            }
            __syncthreads();
        }
    }
}

#define PRODUCT(NAME, WARPS, TILES, DEPTH, GATED, NORMED, BLOCKS)                            \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) NAME(const Product p) { \
        multiply<WARPS, TILES, DEPTH, GATED, NORMED>(p);                                     \
    }
PRODUCT(multiply_8, 8, 1, 2, false, false, 2)
PRODUCT(multiply_16, 8, 2, 1, false, false, 2)
PRODUCT(multiply_32, 8, 4, 1, false, false, 1)
PRODUCT(multiply_64, 8, 8, 1, false, false, 1)
PRODUCT(multiply_normed, 8, 1, 2, false, true, 2)
PRODUCT(gate_8, 16, 1, 1, true, false, 1)
PRODUCT(gate_16, 16, 2, 1, true, false, 1)
PRODUCT(gate_32, 16, 4, 1, true, false, 1)
PRODUCT(gate_64, 16, 8, 1, true, false, 1)
PRODUCT(gate_normed, 16, 1, 1, true, true, 1)

// y = x / rms(x) * weight, one block per row of `width` numbers.
struct Norm {
    const u16* x;
    const u16* weight;
    u16* y;
    int width;
    float epsilon;
};

extern "C" __global__ void __launch_bounds__(256) normalise(const Norm p) {
    let_next_begin();
    wait_for_earlier();
    const long at = (long)blockIdx.x * p.width;
    normalise_row<8>(p.x + at, p.weight, p.y + at, p.width, p.epsilon);
}

// Queries, keys and values of a layer, `(tokens, heads + 2 kv_heads, dim)`. Queries and keys are rotated (and normalised if
// the model has weights for that): queries in place, while keys, and values unchanged, are written to their rows of the
// arena. One warp per head.
struct Placing {
    u16* projected;
    const u16* query_norm;
    const u16* key_norm;
    const u16* cosine;  // (tokens, dim)
    const u16* sine;
    const long long* slots;
    u16* keys;    // (rows, kv_heads, dim)
    u16* values;  // (rows, kv_heads, dim)
    int heads;
    int kv_heads;
    int dim;
    float epsilon;
};

extern "C" __global__ void __launch_bounds__(128) place(const Placing p) {
    let_next_begin();
    wait_for_earlier();
    const int lane = threadIdx.x & 31, head = blockIdx.x * 4 + (threadIdx.x >> 5), token = blockIdx.y;
    const int all = p.heads + 2 * p.kv_heads, half = p.dim / 2;
    if (head >= all) return;
    u16* in = p.projected + ((long)token * all + head) * p.dim;
    const bool is_query = head < p.heads;
    const long slot = is_query ? 0 : (long)p.slots[token];
    if (head >= p.heads + p.kv_heads) {
        u16* out = p.values + (slot * p.kv_heads + head - p.heads - p.kv_heads) * p.dim;
        for (int i = lane; i < half; i += 32) reinterpret_cast<u32*>(out)[i] = reinterpret_cast<const u32*>(in)[i];
        return;
    }
    const u16* norm = is_query ? p.query_norm : p.key_norm;
    u16* out = is_query ? in : p.keys + (slot * p.kv_heads + head - p.heads) * p.dim;
    float scale = 1;
    if (norm) {
        float sum = 0;
        for (int i = lane; i < p.dim; i += 32) sum += wide(in[i]) * wide(in[i]);
        scale = rsqrtf(warp_sum(sum) / p.dim + p.epsilon);
    }
    const u16* cosine = p.cosine + (long)token * p.dim;
    const u16* sine = p.sine + (long)token * p.dim;
    for (int i = lane; i < half; i += 32) {
        float low = wide(in[i]), high = wide(in[i + half]);
        if (norm) low *= scale * wide(norm[i]), high *= scale * wide(norm[i + half]);
        out[i] = narrow(low * wide(cosine[i]) - high * wide(sine[i]));
        out[i + half] = narrow(high * wide(cosine[i + half]) + low * wide(sine[i + half]));
    }
}
