// Products of few rows, in bfloat16, with matrices that bitsandbytes packed in 4 bits. Compiled at start by NVRTC for the
// GPU at hand (sm_80 or later), without any header.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

constexpr int WARPS = 8;
constexpr int BLOCK_COLUMNS = 64;  // of bitsandbytes: columns with a common scale
constexpr int QUAD = 4;            // blocks that a warp takes at once: 128 bytes of a row
constexpr int TILE_ROWS = 16;      // of the matrix, as mma.m16n8k16 has them
constexpr int TILE_TOKENS = 8;

__device__ __forceinline__ float wide(u16 bits) { return __uint_as_float((u32)bits << 16); }

__device__ __forceinline__ u16 narrow(float number) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(number));
    return bits;
}

// One matrix as bitsandbytes packs it: two codes a byte, the first in the high bits; a scale for 64 columns, itself one
// of 256 in a table, times a scale for 256 of them, plus an offset. Without `scale_codes`, `scales` are the blocks' own.
struct Matrix {
    const u8* codes;
    const u8* scale_codes;
    const float* scales;
    const float* scale_table;
    const float* offset;
    const u16* bias;
    const u32* pairs;  // what a byte of codes means: two bfloat16, the first code's in the low half
    int rows;
    int columns;
};

// y (tokens, rows) = x (tokens, columns) times the matrix.
struct Product {
    Matrix matrix;
    const u16* x;
    u16* y;
    long tokens;
};

// Two rows' codes of a quad of blocks, as a lane of an mma holds them: 8 bytes of `near` and of `near + 8` a block.
struct Codes {
    uint2 near[QUAD], far[QUAD];
};

__device__ __forceinline__ uint2 streamed(const u8* address) {  // weights are read once: not kept in L1
    uint2 got;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(got.x), "=r"(got.y) : "l"(address));
    return got;
}

__device__ __forceinline__ void fetch(Codes& codes, const u8* near, const u8* far) {
#pragma unroll
    for (int block = 0; block < QUAD; block++) {
        codes.near[block] = streamed(near + block * (BLOCK_COLUMNS / 2));
        codes.far[block] = streamed(far + block * (BLOCK_COLUMNS / 2));
    }
}

__device__ __forceinline__ void mma(float (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four scales of a row's quad of blocks.
__device__ __forceinline__ void scales_of(float (&found)[QUAD], const Matrix& matrix, long row, int blocks, int quad) {
    const long first = row * blocks + quad * QUAD;
    if (matrix.scale_codes == nullptr) {
        const float4 own = *reinterpret_cast<const float4*>(matrix.scales + first);
        found[0] = own.x, found[1] = own.y, found[2] = own.z, found[3] = own.w;
        return;
    }
    const u32 packed = *reinterpret_cast<const u32*>(matrix.scale_codes + first);
    const float scale = __ldg(matrix.scales + (first >> 8)), offset = __ldg(matrix.offset);
#pragma unroll
    for (int block = 0; block < QUAD; block++)
        found[block] = __ldg(matrix.scale_table + ((packed >> (8 * block)) & 0xff)) * scale + offset;
}

// A block of 8 warps makes 16 rows of y for all tokens: each warp takes every eighth quad of the columns, and the sums
// meet in shared memory. In an mma, which column of the matrix is which of its 16 is free as long as both sides agree:
// lane t of four takes columns 16 t + 4 j .. + 3 of a block in mma j, so that its codes are 8 bytes in a row. Codes become
// numbers through a table of all 256 bytes, one copy a lane, so that no two lanes of a warp ever want the same bank.
template <int TILES>
__device__ __forceinline__ void multiply(const Product& p) {
    __shared__ u32 table[256 * 32];
    __shared__ float met[WARPS][TILE_ROWS][TILE_TOKENS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int group = lane >> 2, t = lane & 3;
    const Matrix& matrix = p.matrix;
    const int blocks = matrix.columns / BLOCK_COLUMNS, quads = blocks / QUAD;
    const int row_bytes = matrix.columns / 2;

    {
        const u32 mine = matrix.pairs[warp * 32 + lane];
#pragma unroll
        for (int i = 0; i < 32; i++) table[(warp * 32 + i) * 32 + lane] = __shfl_sync(0xffffffff, mine, i);
    }
    __syncthreads();
    const u32* numbers = table + lane;

    for (int tile = blockIdx.x; tile * TILE_ROWS < matrix.rows; tile += gridDim.x) {
        const int row = tile * TILE_ROWS;
        const u8* near = matrix.codes + (long)(row + group) * row_bytes + t * 8;
        const u8* far = near + 8l * row_bytes;
        float total[TILES][4] = {};
        Codes next;
        int quad = warp;
        if (quad < quads) fetch(next, near + quad * 128, far + quad * 128);
        for (; quad < quads; quad += WARPS) {
            const Codes now = next;
            if (quad + WARPS < quads) fetch(next, near + (quad + WARPS) * 128, far + (quad + WARPS) * 128);
            float near_scales[QUAD], far_scales[QUAD];
            scales_of(near_scales, matrix, row + group, blocks, quad);
            scales_of(far_scales, matrix, row + group + 8, blocks, quad);
#pragma unroll
            for (int block = 0; block < QUAD; block++) {
                u32 a[8], b[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const u32 near_word = i < 4 ? now.near[block].x : now.near[block].y;
                    const u32 far_word = i < 4 ? now.far[block].x : now.far[block].y;
                    a[i] = numbers[((near_word >> (8 * (i & 3))) & 0xff) * 32];
                    b[i] = numbers[((far_word >> (8 * (i & 3))) & 0xff) * 32];
                }
#pragma unroll
                for (int tokens = 0; tokens < TILES; tokens++) {
                    const int token = tokens * TILE_TOKENS + group;
                    uint4 x[2] = {};
                    if (token < p.tokens) {
                        const int column = (quad * QUAD + block) * BLOCK_COLUMNS + t * 16;
                        const u16* from = p.x + (long)token * matrix.columns + column;
                        x[0] = *reinterpret_cast<const uint4*>(from);
                        x[1] = *reinterpret_cast<const uint4*>(from + 8);
                    }
                    float sum[4] = {};
                    mma(sum, a[0], b[0], a[1], b[1], x[0].x, x[0].y);
                    mma(sum, a[2], b[2], a[3], b[3], x[0].z, x[0].w);
                    mma(sum, a[4], b[4], a[5], b[5], x[1].x, x[1].y);
                    mma(sum, a[6], b[6], a[7], b[7], x[1].z, x[1].w);
                    total[tokens][0] += near_scales[block] * sum[0];
                    total[tokens][1] += near_scales[block] * sum[1];
                    total[tokens][2] += far_scales[block] * sum[2];
                    total[tokens][3] += far_scales[block] * sum[3];
                }
            }
        }
#pragma unroll
        for (int tokens = 0; tokens < TILES; tokens++) {
            met[warp][group][2 * t] = total[tokens][0];
            met[warp][group][2 * t + 1] = total[tokens][1];
            met[warp][group + 8][2 * t] = total[tokens][2];
            met[warp][group + 8][2 * t + 1] = total[tokens][3];
            __syncthreads();
            const int at = threadIdx.x % TILE_ROWS, column = threadIdx.x / TILE_ROWS % TILE_TOKENS;
            const int token = tokens * TILE_TOKENS + column;
            if (threadIdx.x < TILE_ROWS * TILE_TOKENS && token < p.tokens) {
                float y = matrix.bias ? wide(matrix.bias[row + at]) : 0;
                for (int w = 0; w < WARPS; w++) y += met[w][at][column];
                p.y[(long)token * matrix.rows + row + at] = narrow(y);
            }
            __syncthreads();
        }
    }
}

#define PRODUCT(NAME, TILES) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) NAME(const Product p) { multiply<TILES>(p); }
PRODUCT(multiply_8, 1)
PRODUCT(multiply_16, 2)
PRODUCT(multiply_32, 4)
PRODUCT(multiply_64, 8)
