// The attention of a decode step in one kernel, in bfloat16: one new token per sequence, whose query, key and value are the
// output of the product. Query and key are normalised (if the model has weights for that) and rotated, key and value are
// written to their row of the arena, and the query heads of a group attend to all keys of their sequence. Long histories
// are split among blocks; for each sequence and key head, the last block to end merges the results of all (Dao et al. 2023,
// "Flash-Decoding"). `PlacedAttention` of placed_attention.py does the same in several kernels.

struct Attention {
    const u16* projected;   // (sequences, heads + 2 kv_heads, dim)
    const u16* query_norm;  // (dim), or null
    const u16* key_norm;
    const u16* cosine;  // (sequences, dim)
    const u16* sine;
    const long long* slots;  // (sequences): the arena's row of the new token
    u16* keys;               // (rows, kv_heads, dim)
    u16* values;
    const int* begins;  // (sequences): the arena's row of the first token
    const int* used;    // (sequences): tokens, including the new one
    u16* attended;      // (sequences, heads, dim)
    float* partial;     // (sequences, kv_heads, splits, MOST_GROUP, dim)
    float2* sums;       // (sequences, kv_heads, splits, MOST_GROUP): the largest score, the sum of exponentials
    int* arrived;       // (sequences, kv_heads): blocks that are done; 0 between launches
    int heads;
    int kv_heads;
    float scale;
    float epsilon;
};

// WARPS, MOST_GROUP and LEAST_SPAN come from decode_attention.py.
constexpr int CHUNK = 16;  // keys that a warp scores together, as in mma.m16n8k16
constexpr int STRIDE = WARPS * CHUNK;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float NOTHING = -1e30f;  // a score whose exponential is 0; finite, so that no NaN arises

__device__ __forceinline__ u32 word(const uint4& four, int place) {
    return place == 0 ? four.x : place == 1 ? four.y : place == 2 ? four.z : four.w;
}

// Rows 0 to 7 of an mma whose other rows are zero.
__device__ __forceinline__ void mma_half(float (&sum)[2], u32 a0, u32 a2, u32 b0, u32 b1) {
    [[maybe_unused]] float unused_low, unused_high;
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %5}, {%7, %8}, "
        "{%0, %1, %9, %9};"
        : "+f"(sum[0]), "+f"(sum[1]), "=f"(unused_low), "=f"(unused_high)
        : "r"(a0), "r"(0), "r"(a2), "r"(b0), "r"(b1), "f"(0.0f));
}

__device__ __forceinline__ float4 from_l2(const float4* address) {  // written by other blocks: L1 may be stale
    float4 got;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(got.x), "=f"(got.y), "=f"(got.z), "=f"(got.w)
                 : "l"(address)
                 : "memory");
    return got;
}

__device__ __forceinline__ float2 from_l2(const float2* address) {
    float2 got;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(got.x), "=f"(got.y) : "l"(address) : "memory");
    return got;
}

// A quarter of a head, normalised and rotated: lane t of four has its numbers 32 i + 8 t to 32 i + 8 t + 7, two per word. A
// number is rotated with the one half a head further on, which the same lane has.
template <int DIM>
__device__ __forceinline__ void rotated(u32 (&out)[DIM / 32][4], const u16* head, const u16* norm, const u16* cosine,
                                        const u16* sine, int t, float epsilon) {
    constexpr int LOADS = DIM / 32, APART = LOADS / 2;
    float x[LOADS][8];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const uint4 eight = *reinterpret_cast<const uint4*>(head + i * 32 + t * 8);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            x[i][e] = wide(word(eight, e / 2) >> (e % 2 * 16));
            sum += x[i][e] * x[i][e];
        }
    }
    if (norm) {
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        const float scale = rsqrtf(sum / DIM + epsilon);
#pragma unroll
        for (int i = 0; i < LOADS; i++)
#pragma unroll
            for (int e = 0; e < 8; e++) x[i][e] *= scale * wide(norm[i * 32 + t * 8 + e]);
    }
#pragma unroll
    for (int i = 0; i < APART; i++) {
        const int at = i * 32 + t * 8;
        float low[8], high[8];
#pragma unroll
        for (int e = 0; e < 8; e++) {
            low[e] = x[i][e] * wide(cosine[at + e]) - x[i + APART][e] * wide(sine[at + e]);
            high[e] = x[i + APART][e] * wide(cosine[at + DIM / 2 + e]) + x[i][e] * wide(sine[at + DIM / 2 + e]);
        }
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            out[i][pair] = packed(low[2 * pair], low[2 * pair + 1]);
            out[i + APART][pair] = packed(high[2 * pair], high[2 * pair + 1]);
        }
    }
}

// A block attends to `span` keys for the query heads of one group; its warps take turns with chunks of 16 keys. The columns
// of an mma may be assigned to numbers in any order, if both operands use the same one. The order here lets every lane read
// 16 bytes at once and keeps keys out of shared memory. In the first product, lane t of four has 8 numbers of its key and
// of its query head (g); in the second, 8 numbers of each of its four keys, with those of two keys put side by side.
template <int DIM>
__device__ __forceinline__ void attend(const Attention& p) {
    constexpr int LOADS = DIM / 32, HALVES = DIM / 64;
    __shared__ float met[WARPS][MOST_GROUP][DIM + 4];
    __shared__ float2 met_sums[WARPS][MOST_GROUP];
    __shared__ int is_last;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int split = blockIdx.x, splits = gridDim.x;
    const int kv_head = blockIdx.y % p.kv_heads, sequence = blockIdx.y / p.kv_heads;
    const int group = p.heads / p.kv_heads, all_heads = p.heads + 2 * p.kv_heads;
    let_next_begin();

    const int history = p.used[sequence] - 1;
    const int span = max(LEAST_SPAN, (history + splits * STRIDE - 1) / (splits * STRIDE) * STRIDE);
    const int active = max(1, (history + span - 1) / span);
    if (split >= active) return;
    const int end = min(history, (split + 1) * span);
    const long row_width = (long)p.kv_heads * DIM, first = p.begins[sequence] * row_width + kv_head * DIM;
    const u16* keys = p.keys + first;
    const u16* values = p.values + first;

    uint4 key[2][LOADS], value[HALVES][4];
    auto fetch_keys = [&](int base) {
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            const u16* from = keys + min(base + tile * 8 + g, end - 1) * row_width + t * 8;
#pragma unroll
            for (int i = 0; i < LOADS; i++) key[tile][i] = streamed(from + i * 32);
        }
    };
    auto fetch_values = [&](int base) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const u16* from = values + min(base + 2 * t + (n & 1) + (n >> 1) * 8, end - 1) * row_width + g * 8;
#pragma unroll
            for (int half = 0; half < HALVES; half++) value[half][n] = streamed(from + half * 64);
        }
    };
    int base = split * span + warp * CHUNK;
    if (base < end) {
        fetch_keys(base);
        fetch_values(base);
    }
    wait_for_earlier();

    const u16* cosine = p.cosine + (long)sequence * DIM;
    const u16* sine = p.sine + (long)sequence * DIM;
    const u16* heads = p.projected + (long)sequence * all_heads * DIM;
    u32 query[LOADS][4];
    rotated<DIM>(query, heads + (kv_head * group + min(g, group - 1)) * DIM, p.query_norm, cosine, sine, t, p.epsilon);
    const float scale = p.scale * LOG2_E;
    float largest = NOTHING, sum = 0, out[HALVES][8][2] = {};

    // The new token's own key and value do not come from the arena: one warp starts with them and writes them there.
    if (split == active - 1 && warp == 0) {
        u32 own[LOADS][4];
        rotated<DIM>(own, heads + (p.heads + kv_head) * DIM, p.key_norm, cosine, sine, t, p.epsilon);
        const u16* own_value = heads + (p.heads + p.kv_heads + kv_head) * DIM;
        float score = 0;
#pragma unroll
        for (int i = 0; i < LOADS; i++)
#pragma unroll
            for (int pair = 0; pair < 4; pair++)
                score +=
                    wide(query[i][pair]) * wide(own[i][pair]) + wide(query[i][pair] >> 16) * wide(own[i][pair] >> 16);
        score += __shfl_xor_sync(0xffffffff, score, 1);
        score += __shfl_xor_sync(0xffffffff, score, 2);
        largest = score * scale;
        sum = t == 0;
#pragma unroll
        for (int half = 0; half < HALVES; half++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                out[half][j][0] = wide(own_value[half * 64 + t * 16 + j]);
                out[half][j][1] = wide(own_value[half * 64 + t * 16 + 8 + j]);
            }
        const long place = p.slots[sequence] * row_width + kv_head * DIM;
        if (g == 0)
#pragma unroll
            for (int i = 0; i < LOADS; i++)
                *reinterpret_cast<uint4*>(p.keys + place + i * 32 + t * 8) =
                    make_uint4(own[i][0], own[i][1], own[i][2], own[i][3]);
        if (lane < DIM / 8)
            *reinterpret_cast<uint4*>(p.values + place + lane * 8) =
                *reinterpret_cast<const uint4*>(own_value + lane * 8);
    }

    for (; base < end; base += STRIDE) {
        float scores[2][2] = {};
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
            for (int i = 0; i < LOADS; i++) {
                mma_half(scores[tile], query[i][0], query[i][1], key[tile][i].x, key[tile][i].y);
                mma_half(scores[tile], query[i][2], query[i][3], key[tile][i].z, key[tile][i].w);
            }
        const int next = base + STRIDE;
        if (next < end) fetch_keys(next);
        float top = NOTHING;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            float& score = scores[n >> 1][n & 1];
            score = base + 2 * t + (n & 1) + (n >> 1) * 8 < end ? score * scale : NOTHING;
            top = fmaxf(top, score);
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
        const float larger = fmaxf(largest, top), fade = exp2f(largest - larger);
        largest = larger;
        sum *= fade;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            float& score = scores[n >> 1][n & 1];
            score = exp2f(score - largest);
            sum += score;
        }
        const u32 near = packed(scores[0][0], scores[0][1]), far = packed(scores[1][0], scores[1][1]);
#pragma unroll
        for (int half = 0; half < HALVES; half++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                constexpr u32 LOWS = 0x5410, HIGHS = 0x7632;
                const u32 pick = j & 1 ? HIGHS : LOWS;
                out[half][j][0] *= fade;
                out[half][j][1] *= fade;
                mma_half(out[half][j], near, far,
                         __byte_perm(word(value[half][0], j / 2), word(value[half][1], j / 2), pick),
                         __byte_perm(word(value[half][2], j / 2), word(value[half][3], j / 2), pick));
            }
        if (next < end) fetch_values(next);
    }

    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    if (t == 0) met_sums[warp][g] = make_float2(largest, sum);
#pragma unroll
    for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int side = 0; side < 2; side++)
#pragma unroll
            for (int j = 0; j < 8; j += 4)
                *reinterpret_cast<float4*>(&met[warp][g][half * 64 + t * 16 + side * 8 + j]) = make_float4(
                    out[half][j][side], out[half][j + 1][side], out[half][j + 2][side], out[half][j + 3][side]);
    __syncthreads();

    // Merges the warps' results into the block's. A block that is alone is then done.
    constexpr int FOURS = DIM / 4;
    const long block = (long)blockIdx.y * splits;
    u16* attended = p.attended + ((long)sequence * p.heads + kv_head * group) * DIM;
    auto finish = [&](int i, const float4& total, float weights) {
        const float factor = 1 / weights;
        *reinterpret_cast<uint2*>(attended + i * 4) =
            make_uint2(packed(total.x * factor, total.y * factor), packed(total.z * factor, total.w * factor));
    };
    for (int i = threadIdx.x; i < group * FOURS; i += WARPS * 32) {
        const int head = i / FOURS;
        float top = NOTHING, weights = 0;
        float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, met_sums[w][head].x);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float weight = exp2f(met_sums[w][head].x - top);
            const float4 four = *reinterpret_cast<const float4*>(&met[w][head][i % FOURS * 4]);
            weights += weight * met_sums[w][head].y;
            total.x += weight * four.x, total.y += weight * four.y;
            total.z += weight * four.z, total.w += weight * four.w;
        }
        if (active == 1) {
            finish(i, total, weights);
        } else {
            reinterpret_cast<float4*>(p.partial)[((block + split) * MOST_GROUP + head) * FOURS + i % FOURS] = total;
            if (i % FOURS == 0) p.sums[(block + split) * MOST_GROUP + head] = make_float2(top, weights);
        }
    }
    if (active == 1) return;

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(p.arrived + blockIdx.y, 1) == active - 1;
        if (is_last) p.arrived[blockIdx.y] = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (int i = threadIdx.x; i < group * FOURS; i += WARPS * 32) {
        const int head = i / FOURS;
        float top = NOTHING, weights = 0;
        float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 4
        for (int from = 0; from < active; from++) {
            const long found = (block + from) * MOST_GROUP + head;
            const float2 own = from_l2(p.sums + found);
            const float4 four = from_l2(reinterpret_cast<const float4*>(p.partial) + found * FOURS + i % FOURS);
            const float larger = fmaxf(top, own.x), fade = exp2f(top - larger), weight = exp2f(own.x - larger);
            top = larger;
            weights = weights * fade + weight * own.y;
            total.x = total.x * fade + weight * four.x, total.y = total.y * fade + weight * four.y;
            total.z = total.z * fade + weight * four.z, total.w = total.w * fade + weight * four.w;
        }
        finish(i, total, weights);
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) attend_64(const Attention p) { attend<64>(p); }
extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) attend_128(const Attention p) { attend<128>(p); }
