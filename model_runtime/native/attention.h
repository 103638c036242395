/* Causal attention of a few rows against one conversation's slab, grouped-query heads sharing every key they read.
 *
 * Keys are cut into splits of a fixed length, each with its own softmax (maximum, sum, weighted values); splits are
 * merged in their order (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2023, "Flash-Decoding"). The cut
 * depends on positions alone, so that a row's result has the same bits whatever else is computed beside it.
 */
#ifndef KEEPWARM_ATTENTION_H
#define KEEPWARM_ATTENTION_H

#include <math.h>

#include "vectors.h"

#define SPLIT_KEYS 256
#define CHUNK_KEYS 64 /* keys transposed and scored at a time: 16 KiB of a 64-wide head */
#define BLOCK_QUERIES 96
#define MAX_DIM 256
#define WIDE 4 /* vectors of a register block */

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

/* c[rows][0..64) (+)= a[rows][k] * b[k][0..64): the register block of both products of attention. */
INLINE void multiply_block(int rows, int k, const float *a, int a_stride, Numbers b, int b_stride, float *c,
                           int c_stride, int wide, int adds) {
    floats total[4][WIDE];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) total[r][v] = adds ? load(c + (size_t)r * c_stride + v * LANES) : (floats){0};
    for (int i = 0; i < k; i++) {
        floats row[WIDE];
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) row[v] = load_from(b, (size_t)i * b_stride + v * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < wide; v++)
                total[r][v] = multiply_add(row[v], all(a[(size_t)r * a_stride + i]), total[r][v]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) store(c + (size_t)r * c_stride + v * LANES, total[r][v]);
}

#define BLOCK_CASE(n) \
    case n: multiply_block(n, k, a, a_stride, b, b_stride, c, c_stride, wide, adds); break;

#define DEFINE_MULTIPLY_BLOCK(name, vectors, halves_)                                                                \
    static void name(int rows, int k, const float *a, int a_stride, Numbers b, int b_stride, float *c, int c_stride, \
                     int adds) {                                                                                     \
        enum { wide = vectors };                                                                                     \
        b.is_half = halves_;                                                                                         \
        switch (rows) { BLOCK_CASE(1) BLOCK_CASE(2) BLOCK_CASE(3) BLOCK_CASE(4) }                                    \
    }

DEFINE_MULTIPLY_BLOCK(multiply_four, WIDE, 0)
DEFINE_MULTIPLY_BLOCK(multiply_four_halves, WIDE, 1)
DEFINE_MULTIPLY_BLOCK(multiply_one, 1, 0)
DEFINE_MULTIPLY_BLOCK(multiply_one_halves, 1, 1)

/* c[rows][width] (+)= a[rows][k] * b[k][width]; `width` is a multiple of LANES. */
static void multiply_small(int rows, int k, int width, const float *a, int a_stride, Numbers b, int b_stride, float *c,
                           int c_stride, int adds) {
    for (int r = 0; r < rows; r += 4) {
        const int count = rows - r < 4 ? rows - r : 4;
        int n = 0;
        for (; n + WIDE * LANES <= width; n += WIDE * LANES)
            (b.is_half ? multiply_four_halves : multiply_four)(count, k, a + (size_t)r * a_stride, a_stride,
                                                               from_number(b, n), b_stride,
                                                               c + (size_t)r * c_stride + n, c_stride, adds);
        for (; n < width; n += LANES)
            (b.is_half ? multiply_one_halves : multiply_one)(count, k, a + (size_t)r * a_stride, a_stride,
                                                             from_number(b, n), b_stride, c + (size_t)r * c_stride + n,
                                                             c_stride, adds);
    }
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

/* Prefetches the first `count` numbers, so that they arrive while something else is computed. */
INLINE void fetch(Numbers from, size_t count) {
    const char *line = from.numbers, *end = from_number(from, count).numbers;
    for (; line < end; line += 64) fetch_line(line);
}

/* The first `count` numbers as floats, in `room`; `count` is a multiple of LANES. */
static Numbers widened(Numbers from, size_t count, float *room) {
    for (size_t i = 0; i < count; i += LANES) store(room + i, load_from(from, i));
    return (Numbers){room, 0};
}

INLINE void transpose_rows(Numbers keys, int dim, float *columns) {
    for (int d = 0; d < dim; d += BLOCK)
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

/* What one query knows of one or more splits: greatest score, sum of exponentials, weighted values [dim]. */
typedef struct {
    float largest, sum;
} Softmax;

/* A query's scores of the first `count` keys of a split, of which it sees those from `hidden` to `visible`, become
 * exponentials. */
static Softmax exponentials(float *scores, int hidden, int visible, int count) {
    const int seen = visible < count ? visible : count, width = (count + LANES - 1) / LANES * LANES;
    if (seen <= 0 || seen <= hidden) {
        memset(scores, 0, sizeof(float) * width);
        return (Softmax){-INFINITY, 0};
    }
    for (int k = 0; k < hidden; k++) scores[k] = -INFINITY;
    for (int k = seen; k < width; k++) scores[k] = -INFINITY;
    floats best = load(scores), sum = {0};
    for (int k = LANES; k < width; k += LANES) {
        floats v = load(scores + k);
        best = choose(v > best, v, best);
    }
    const float largest = largest_of(best);
    for (int k = 0; k < width; k += LANES) {
        floats p = exp_of(load(scores + k) - largest);
        sum += p;
        store(scores + k, p);
    }
    return (Softmax){largest, sum_of(sum)};
}

/* `count` keys and values [count][dim] of one head, the first of which is key number `first` of its conversation, and keys
 * that will be wanted later. */
typedef struct {
    Numbers keys, values, later;
    int first, count;
} Split;

/* Attends `count` queries [count][dim] (already scaled), of which number i sees keys 0..visible[i], or the last `window` of
 * these, over a split. Sets state[i] and weighted[i][dim]; a query that sees nothing here gets sum 0. */
static void attend_split(const float *queries, const int *visible, int window, int count, const Split *split, int dim,
                         Softmax *state, float *weighted) {
    float columns[MAX_DIM * CHUNK_KEYS] __attribute__((aligned(64)));
    float scores[BLOCK_QUERIES * SPLIT_KEYS] __attribute__((aligned(64)));
    for (int chunk = 0; chunk < split->count; chunk += CHUNK_KEYS) {
        const int here = split->count - chunk < CHUNK_KEYS ? split->count - chunk : CHUNK_KEYS;
        const size_t start = (size_t)chunk * dim;
        fetch(from_number(split->values, start), (size_t)here * dim);
        transpose_keys(from_number(split->keys, start), here, dim, columns);
        multiply_small(count, dim, (here + LANES - 1) / LANES * LANES, queries, dim, (Numbers){columns, 0}, CHUNK_KEYS,
                       scores + chunk, SPLIT_KEYS, 0);
    }
    for (int i = 0; i < count; i++) {
        const int seen = visible[i] - split->first, hidden = window ? seen - window : 0;
        state[i] = exponentials(scores + (size_t)i * SPLIT_KEYS, hidden, seen, split->count);
    }
    for (int chunk = 0; chunk < split->count; chunk += CHUNK_KEYS) { /* few enough to stay in the first-level cache */
        const int here = split->count - chunk < CHUNK_KEYS ? split->count - chunk : CHUNK_KEYS;
        const size_t start = (size_t)chunk * dim;
        fetch(from_number(split->later, start), (size_t)here * dim);
        Numbers values = from_number(split->values, start);
        if (values.is_half && count > 4) values = widened(values, (size_t)here * dim, columns);
        multiply_small(count, here, dim, scores + chunk, SPLIT_KEYS, values, dim, weighted, dim, chunk > 0);
    }
}

/* Adds a later split to `state` and `weighted`. */
INLINE void merge_split(Softmax *state, float *weighted, Softmax next, const float *next_weighted, int dim) {
    if (next.sum == 0) return;
    if (state->sum == 0) {
        *state = next;
        memcpy(weighted, next_weighted, sizeof(float) * dim);
        return;
    }
    const float largest = state->largest > next.largest ? state->largest : next.largest;
    const float old_share = expf(state->largest - largest), new_share = expf(next.largest - largest);
    for (int d = 0; d < dim; d += LANES)
        store(weighted + d, load(weighted + d) * old_share + load(next_weighted + d) * new_share);
    *state = (Softmax){largest, state->sum * old_share + next.sum * new_share};
}

#endif
