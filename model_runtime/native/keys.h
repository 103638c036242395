/* Keys of a slab for scoring: transposed, so that a lane has a key and sums run along the dimensions in one order, whatever is
 * computed beside them.
 */
#ifndef KEEPWARM_KEYS_H
#define KEEPWARM_KEYS_H

#include "vectors.h"

#define CHUNK_KEYS 64 /* keys transposed and scored at a time: 16 KiB of a 64-wide head */
#define PIECE_KEYS 16 /* of these, between which other keys or values are prefetched */
#define MAX_DIM 256

/* Numbers of a slab or of a buffer: floats, or halves. */
typedef struct {
    const void *numbers;
    int is_half;
} Numbers;

INLINE floats load_from(Numbers from, size_t at) {
    return from.is_half ? load_halves((const uint16_t *)from.numbers + at) : load((const float *)from.numbers + at);
}

INLINE Numbers from_number(Numbers numbers, size_t start) {
    const size_t width = numbers.is_half ? sizeof(uint16_t) : sizeof(float);
    return (Numbers){(const char *)numbers.numbers + start * width, numbers.is_half};
}

/* Prefetches the first `count` numbers, so that they arrive while something else is computed. */
INLINE void fetch(Numbers from, size_t count) {
    const char *line = from.numbers, *end = from_number(from, count).numbers;
    for (; line < end; line += 64) fetch_line(line);
}

#if defined(__AVX512F__)
#define BLOCK 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX__)
#define BLOCK 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define BLOCK 4
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif

typedef float block_row __attribute__((vector_size(4 * BLOCK)));
typedef int32_t block_places __attribute__((vector_size(4 * BLOCK)));

#if defined(__clang__)
#define INTERLEAVE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define INTERLEAVE(a, b, ...) __builtin_shuffle(a, b, (block_places){__VA_ARGS__})
#endif

#if BLOCK == LANES
#define load_block load_from
#else
INLINE block_row load_block(Numbers from, size_t at) {
    block_row row;
    memcpy(&row, (const float *)from.numbers + at, sizeof row);
    return row;
}
#endif

/* Interleaving row i with row i + half, as often as a lane's number has bits, transposes a square. */
INLINE void transpose_block(Numbers from, size_t from_stride, float *to, size_t to_stride) {
    block_row rows[BLOCK], next[BLOCK];
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; i++) rows[i] = load_block(from, i * from_stride);
#pragma GCC unroll 4
    for (int step = 1; step < BLOCK; step *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < BLOCK / 2; i++) {
            next[2 * i] = INTERLEAVE(rows[i], rows[i + BLOCK / 2], LOW);
            next[2 * i + 1] = INTERLEAVE(rows[i], rows[i + BLOCK / 2], HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK; i++) rows[i] = next[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; i++) memcpy(to + i * to_stride, &rows[i], sizeof rows[i]);
}

/* The first `count` numbers as floats, in `room`; `count` is a multiple of LANES. */
static Numbers widened(Numbers from, size_t count, float *room) {
    for (size_t i = 0; i < count; i += LANES) store(room + i, load_from(from, i));
    return (Numbers){room, 0};
}

#if defined(__AVX512BW__)
/* Places in two rows of pairs: the even halves of both, then the odd ones, of their lower and of their upper lanes. */
static const uint16_t LOW_HALVES[32] = {0, 32, 2, 34, 4, 36, 6, 38, 8, 40, 10, 42, 12, 44, 14, 46,
                                        1, 33, 3, 35, 5, 37, 7, 39, 9, 41, 11, 43, 13, 45, 15, 47};
static const uint16_t HIGH_HALVES[32] = {16, 48, 18, 50, 20, 52, 22, 54, 24, 56, 26, 58, 28, 60, 30, 62,
                                         17, 49, 19, 51, 21, 53, 23, 55, 25, 57, 27, 59, 29, 61, 31, 63};

/* The same for sixteen rows of 32 halves, two neighbours of which are moved together: half the steps that floats take. The last
 * step takes them apart: columns[i] has column 2 i in its lower half and 2 i + 1 in its upper one. */
INLINE void transpose_halves(const uint16_t *from, size_t from_stride, __m512i *columns) {
    const __m512i low = _mm512_loadu_si512(LOW_HALVES), high = _mm512_loadu_si512(HIGH_HALVES);
    block_row rows[BLOCK], next[BLOCK];
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; i++) memcpy(&rows[i], from + i * from_stride, sizeof rows[i]);
#pragma GCC unroll 3
    for (int step = 0; step < 3; step++) {
#pragma GCC unroll 8
        for (int i = 0; i < BLOCK / 2; i++) {
            next[2 * i] = INTERLEAVE(rows[i], rows[i + BLOCK / 2], LOW);
            next[2 * i + 1] = INTERLEAVE(rows[i], rows[i + BLOCK / 2], HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK; i++) rows[i] = next[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK / 2; i++) {
        const __m512i a = (__m512i)rows[i], b = (__m512i)rows[i + BLOCK / 2];
        columns[2 * i] = _mm512_permutex2var_epi16(a, low, b);
        columns[2 * i + 1] = _mm512_permutex2var_epi16(a, high, b);
    }
}

INLINE floats even_column(__m512i two) { return (floats)_mm512_cvtph_ps(_mm512_castsi512_si256(two)); }
INLINE floats odd_column(__m512i two) { return (floats)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(two, 1)); }
#endif

INLINE void transpose_rows(Numbers keys, int dim, float *columns) {
    int d = 0;
#if defined(__AVX512BW__)
    for (; keys.is_half && d + 2 * BLOCK <= dim; d += 2 * BLOCK) {
        __m512i pairs[BLOCK];
        transpose_halves((const uint16_t *)keys.numbers + d, dim, pairs);
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK; i++) {
            float *to = columns + (size_t)(d + 2 * i) * CHUNK_KEYS;
            store(to, even_column(pairs[i])), store(to + CHUNK_KEYS, odd_column(pairs[i]));
        }
    }
#endif
    for (; d < dim; d += BLOCK)
        transpose_block(from_number(keys, d), dim, columns + (size_t)d * CHUNK_KEYS, CHUNK_KEYS);
}

/* Keys [count][dim] -> columns [dim][CHUNK_KEYS]; columns behind `count` (rounded up to a block) are left as they are.
 * Reads nothing behind the last key. */
static void transpose_keys(Numbers keys, int count, int dim, float *columns) {
    float padded[BLOCK * MAX_DIM] __attribute__((aligned(64)));
    for (int k = 0; k < count; k += BLOCK) {
        const int here = count - k < BLOCK ? count - k : BLOCK;
        Numbers rows = from_number(keys, (size_t)k * dim);
        if (here < BLOCK || (rows.is_half && BLOCK != LANES)) {
            rows = widened(rows, (size_t)here * dim, padded);
            memset(padded + (size_t)here * dim, 0, sizeof(float) * (BLOCK - here) * dim);
        }
        if (rows.is_half)
            transpose_rows((Numbers){rows.numbers, 1}, dim, columns + k);
        else
            transpose_rows((Numbers){rows.numbers, 0}, dim, columns + k);
    }
}

/* Queries that are few enough to score keys as they are transposed, without columns in memory. */
#if defined(__AVX512BW__)
#define FEW_QUERIES 8

/* Scores [count][stride] of sixteen keys by `count` queries [count][dim]: the sums of columns times queries, in the same order.
 * `count` is a constant wherever this is inlined. */
INLINE void score_keys(int count, const float *queries, const uint16_t *keys, int dim, float *scores, int stride) {
    floats total[FEW_QUERIES] = {{0}};
    for (int d = 0; d < dim; d += 2 * BLOCK) {
        __m512i pairs[BLOCK];
        transpose_halves(keys + d, dim, pairs);
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK; i++) {
            const floats even = even_column(pairs[i]), odd = odd_column(pairs[i]);
            const float *query = queries + d + 2 * i;
#pragma GCC unroll 8
            for (int r = 0; r < count; r++) total[r] = multiply_add(even, all(query[(size_t)r * dim]), total[r]);
#pragma GCC unroll 8
            for (int r = 0; r < count; r++) total[r] = multiply_add(odd, all(query[(size_t)r * dim + 1]), total[r]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) store(scores + (size_t)r * stride, total[r]);
}

#define SCORE_CASE(n) \
    case n: score_keys(n, queries, keys.numbers, dim, scores, stride); return 1;

/* Scores sixteen keys if there is a loop for so many queries and such keys. Whether there is. */
static int scored_few(int count, const float *queries, Numbers keys, int dim, float *scores, int stride) {
    if (!keys.is_half || dim % (2 * BLOCK)) return 0;
    switch (count) {
        SCORE_CASE(1)
        SCORE_CASE(2)
        SCORE_CASE(3)
        SCORE_CASE(4)
        SCORE_CASE(5)
        SCORE_CASE(6)
        SCORE_CASE(7)
        SCORE_CASE(8)
    }
    return 0;
}
#else
#define FEW_QUERIES 4

static int scored_few(int count, const float *queries, Numbers keys, int dim, float *scores, int stride) { return 0; }
#endif

#endif
