// Products of few rows with block-quantised matrices of every format, and some of their rows as numbers. One source; macros
// choose what a module reads, so that no kernel asks for a format while it runs:
//   LOW, HIGH: bits of a code in `codes` and in `high`, HIGH 0 for none. Eight columns are a unit: LOW (HIGH) bytes, the first
//     column in the lowest bits, so that a run of 16 or more columns has whole units and a warp reads 32 units side by side.
//   MEANING: what a code is. SCALES: how scales are stored, as in scales.h. NUMBER: the type of x, y and of rows as numbers.
// The arithmetic is float32, with the formulas of scales.h.

enum { WHOLE, SIGNED, LEVEL, E4M3, INT8 };                      // MEANING
enum { HALVES, SUPER, PAIRS, POWERS, FLOATS, NESTED, BRAINS };  // SCALES
enum { SINGLE, BRAIN, HALF };                                   // NUMBER

constexpr int UNIT = 8, WARPS = 4, LANES = 32, BLOCK_SHIFT = 8, NESTED_RUNS = 256;
constexpr float INT8_FACTOR = 7.874015718698502e-3f;  // 1/127, as bitsandbytes has it

struct Coded {
    const u8* codes;          // [rows][columns / UNIT] units
    const u8* high;           // likewise
    const void* scale;        // [rows][runs]
    const void* minimum;      // likewise, HALVES and SUPER; null: -offset times the scale
    const signed char* zero;  // likewise; null: `offset` for all
    const u16* super_scale;   // [rows][columns / 256] halves
    const u16* super_minimum;
    const float* levels;  // [16]
    const float* nested;  // the table [256], the offset, the factors
    const float* bias;    // [rows], or null
    const void* x;        // [tokens][columns]
    void* y;              // [tokens][rows]; of `dequantise` [count][columns]
    int rows, columns, runs, shift, tokens, first, count;
    float offset;
};

__device__ __forceinline__ float number_at(const void* numbers, long at) {
    if (NUMBER == SINGLE) return static_cast<const float*>(numbers)[at];
    const u16 bits = static_cast<const u16*>(numbers)[at];
    return NUMBER == BRAIN ? wide(bits) : wide_half(bits);
}

__device__ __forceinline__ void put_number(void* numbers, long at, float number) {
    if (NUMBER == SINGLE)
        static_cast<float*>(numbers)[at] = number;
    else
        static_cast<u16*>(numbers)[at] = NUMBER == BRAIN ? narrow(number) : narrow_half(number);
}

// Scale and minimum of the run that has a column.
__device__ __forceinline__ void read_grid(const Coded& p, int row, int column, float& scale, float& minimum) {
    const long run = (long)row * p.runs + (column >> p.shift);
    const long block = (long)row * (p.columns >> BLOCK_SHIFT) + (column >> BLOCK_SHIFT);
    if (SCALES == HALVES) {
        scale = wide_half(static_cast<const u16*>(p.scale)[run]);
        if (p.minimum) minimum = wide_half(static_cast<const u16*>(p.minimum)[run]);
    } else if (SCALES == SUPER) {
        scale = static_cast<const signed char*>(p.scale)[run] * wide_half(p.super_scale[block]);
        if (p.minimum) minimum = static_cast<const signed char*>(p.minimum)[run] * -wide_half(p.super_minimum[block]);
    } else if (SCALES == PAIRS) {
        const int pair = static_cast<const u8*>(p.scale)[run];
        scale = (pair & 15) * wide_half(p.super_scale[block]);
        minimum = (pair >> 4) * -wide_half(p.super_minimum[block]);
        return;
    } else if (SCALES == POWERS) {  // 2^(e - 128): the levels of FP4 are doubled
        const u32 e = static_cast<const u8*>(p.scale)[run];
        scale = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    } else if (SCALES == FLOATS) {
        scale = static_cast<const float*>(p.scale)[run];
    } else if (SCALES == NESTED) {  // rounded twice, as bitsandbytes does
        const float factor = p.nested[257 + run / NESTED_RUNS];
        scale = __fadd_rn(__fmul_rn(p.nested[static_cast<const u8*>(p.scale)[run]], factor), p.nested[256]);
    } else {
        scale = wide(static_cast<const u16*>(p.scale)[run]);
    }
    if (p.zero)
        minimum = scale * -(float)p.zero[run];
    else if (!p.minimum)
        minimum = scale * -p.offset;
}

__device__ __forceinline__ u32 bits_of(const u8* units, long unit, int bits, int column) {
    if (bits == 1) return units[unit] >> column & 1;
    if (bits == 2) return reinterpret_cast<const u16*>(units)[unit] >> (2 * column) & 3;
    if (bits == 4) return reinterpret_cast<const u32*>(units)[unit] >> (4 * column) & 15;
    return units[unit * UNIT + column];
}

// Its bits in place of a float's, whose exponents begin 120 lower. The largest code is no number: 480 would stand for it.
__device__ __forceinline__ float wide_e4m3(u32 code) {
    const u32 magnitude = code & 0x7f;
    if (magnitude == 0x7f) return __uint_as_float(0x7fffffff);
    return __uint_as_float((code & 0x80) << 24 | magnitude << 20) * 0x1p120f;
}

// The weights of eight columns. A load is written for each column; they are of one word, and become one.
__device__ __forceinline__ void weights_of(const Coded& p, int row, int unit, float (&weights)[UNIT]) {
    const long at = (long)row * (p.columns / UNIT) + unit;
    float scale, minimum;
    read_grid(p, row, unit * UNIT, scale, minimum);
#pragma unroll
    for (int column = 0; column < UNIT; column++) {
        u32 code = bits_of(p.codes, at, LOW, column);
        if (HIGH) code |= bits_of(p.high, at, HIGH, column) << LOW;
        if (MEANING == LEVEL)
            weights[column] = scale * p.levels[code];
        else if (MEANING == E4M3)
            weights[column] = scale * wide_e4m3(code);
        else if (MEANING == INT8)
            weights[column] = __fmul_rn(__fmul_rn(scale, (float)(signed char)code), INT8_FACTOR);
        else
            weights[column] = scale * (MEANING == SIGNED ? (float)(signed char)code : (float)code) + minimum;
    }
}

// A warp computes ROWS outputs for TOKENS tokens; missing rows and tokens repeat the last one and are not stored.
template <int ROWS, int TOKENS>
__device__ __forceinline__ void multiply(const Coded& p) {
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int row = (blockIdx.x * WARPS + warp) * ROWS, token = blockIdx.y * TOKENS;
    wait_for_earlier();
    float sums[ROWS][TOKENS] = {};
    for (int unit = lane; unit < p.columns / UNIT; unit += LANES) {
        float weights[ROWS][UNIT];
#pragma unroll
        for (int r = 0; r < ROWS; r++) weights_of(p, min(row + r, p.rows - 1), unit, weights[r]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const long from = (long)min(token + t, p.tokens - 1) * p.columns + unit * UNIT;
#pragma unroll
            for (int column = 0; column < UNIT; column++) {
                const float x = number_at(p.x, from + column);
#pragma unroll
                for (int r = 0; r < ROWS; r++) sums[r][t] += weights[r][column] * x;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const float sum = warp_sum(sums[r][t]);
            if (lane == 0 && row + r < p.rows && token + t < p.tokens)
                put_number(p.y, (long)(token + t) * p.rows + row + r, sum + (p.bias ? p.bias[row + r] : 0));
        }
}

extern "C" __global__ void __launch_bounds__(WARPS* LANES) multiply_1(const Coded p) { multiply<2, 1>(p); }
extern "C" __global__ void __launch_bounds__(WARPS* LANES) multiply_8(const Coded p) { multiply<2, 8>(p); }

// Rows from `first` on as numbers, a warp each.
extern "C" __global__ void __launch_bounds__(WARPS* LANES) dequantise(const Coded p) {
    const int lane = threadIdx.x % LANES, row = blockIdx.x * WARPS + threadIdx.x / LANES;
    wait_for_earlier();
    if (row >= p.count) return;
    for (int unit = lane; unit < p.columns / UNIT; unit += LANES) {
        float weights[UNIT];
        weights_of(p, p.first + row, unit, weights);
#pragma unroll
        for (int column = 0; column < UNIT; column++)
            put_number(p.y, (long)row * p.columns + unit * UNIT + column, weights[column]);
    }
}
