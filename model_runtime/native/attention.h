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

/* c[rows][0..64) (+)= a[rows][k] * b[k][0..64): the register block of both products of attention. */
INLINE void multiply_block(int rows, int k, const float *a, int a_stride, const float *b, int b_stride, float *c,
                           int c_stride, int wide, int adds) {
    floats total[4][WIDE];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++)
            total[r][v] = adds ? load(c + (size_t)r * c_stride + v * LANES) : (floats){0};
    for (int i = 0; i < k; i++) {
        floats row[WIDE];
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) row[v] = load(b + (size_t)i * b_stride + v * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < wide; v++) total[r][v] = multiply_add(row[v], all(a[(size_t)r * a_stride + i]), total[r][v]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < wide; v++) store(c + (size_t)r * c_stride + v * LANES, total[r][v]);
}

#define BLOCK_CASE(n, w)                                                                                             \
    case n: multiply_block(n, k, a, a_stride, b, b_stride, c, c_stride, w, adds); break;

static void multiply_four(int rows, int k, const float *a, int a_stride, const float *b, int b_stride, float *c,
                          int c_stride, int adds) {
    switch (rows) { BLOCK_CASE(1, 4) BLOCK_CASE(2, 4) BLOCK_CASE(3, 4) BLOCK_CASE(4, 4) }
}

static void multiply_one(int rows, int k, const float *a, int a_stride, const float *b, int b_stride, float *c,
                         int c_stride, int adds) {
    switch (rows) { BLOCK_CASE(1, 1) BLOCK_CASE(2, 1) BLOCK_CASE(3, 1) BLOCK_CASE(4, 1) }
}

/* c[rows][width] (+)= a[rows][k] * b[k][width]; `width` is a multiple of LANES. */
static void multiply_small(int rows, int k, int width, const float *a, int a_stride, const float *b, int b_stride,
                           float *c, int c_stride, int adds) {
    for (int r = 0; r < rows; r += 4) {
        const int count = rows - r < 4 ? rows - r : 4;
        int n = 0;
        for (; n + WIDE * LANES <= width; n += WIDE * LANES)
            multiply_four(count, k, a + (size_t)r * a_stride, a_stride, b + n, b_stride, c + (size_t)r * c_stride + n,
                          c_stride, adds);
        for (; n < width; n += LANES)
            multiply_one(count, k, a + (size_t)r * a_stride, a_stride, b + n, b_stride, c + (size_t)r * c_stride + n,
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

/* Interleaving row i with row i + half, as often as a lane's number has bits, transposes a square. */
INLINE void transpose_block(const float *from, size_t from_stride, float *to, size_t to_stride) {
    block_row rows[BLOCK], next[BLOCK];
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; i++) memcpy(&rows[i], from + i * from_stride, sizeof rows[i]);
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

/* keys [count][dim] -> columns [dim][CHUNK_KEYS]; columns behind `count` (rounded up to a block) are left as they are.
 * Reads nothing behind the last key. */
static void transpose_keys(const float *keys, int count, int dim, float *columns) {
    float padded[BLOCK * MAX_DIM];
    for (int k = 0; k < count; k += BLOCK) {
        const float *from = keys + (size_t)k * dim;
        if (count - k < BLOCK) {
            memset(padded, 0, sizeof(float) * BLOCK * dim);
            memcpy(padded, from, sizeof(float) * (count - k) * dim);
            from = padded;
        }
        for (int d = 0; d < dim; d += BLOCK)
            transpose_block(from + d, dim, columns + (size_t)d * CHUNK_KEYS + k, CHUNK_KEYS);
    }
}

/* What one query knows of one or more splits: greatest score, sum of exponentials, weighted values [dim]. */
typedef struct {
    float largest, sum;
} Softmax;

/* Attends `count` queries [count][dim] (already scaled), of which number i sees keys 0..visible[i], over the split of
 * keys `from..to`. Sets state[i] and weighted[i][dim]; a query that sees nothing here gets sum 0. */
static void attend_split(const float *queries, const int *visible, int count, const float *keys, const float *values,
                         int from, int to, int dim, Softmax *state, float *weighted) {
    float columns[MAX_DIM * CHUNK_KEYS] __attribute__((aligned(64)));
    float scores[BLOCK_QUERIES * SPLIT_KEYS] __attribute__((aligned(64)));
    for (int chunk = from; chunk < to; chunk += CHUNK_KEYS) {
        const int keys_here = to - chunk < CHUNK_KEYS ? to - chunk : CHUNK_KEYS;
        const int width = (keys_here + LANES - 1) / LANES * LANES;
        transpose_keys(keys + (size_t)chunk * dim, keys_here, dim, columns);
        multiply_small(count, dim, width, queries, dim, columns, CHUNK_KEYS, scores + (chunk - from), SPLIT_KEYS, 0);
    }
    for (int i = 0; i < count; i++) {
        float *row = scores + (size_t)i * SPLIT_KEYS;
        const int seen = visible[i] < to ? visible[i] - from : to - from;
        const int width = (to - from + LANES - 1) / LANES * LANES;
        state[i] = (Softmax){-INFINITY, 0};
        if (seen <= 0) {
            memset(row, 0, sizeof(float) * width);
            continue;
        }
        for (int k = seen; k < width; k++) row[k] = -INFINITY;
        floats best = load(row), sum = {0};
        for (int k = LANES; k < width; k += LANES) {
            floats v = load(row + k);
            best = choose(v > best, v, best);
        }
        const float largest = largest_of(best);
        for (int k = 0; k < width; k += LANES) {
            floats p = exp_of(load(row + k) - largest);
            sum += p;
            store(row + k, p);
        }
        state[i] = (Softmax){largest, sum_of(sum)};
    }
    for (int chunk = from; chunk < to; chunk += CHUNK_KEYS) /* few enough values to stay in the first-level cache */
        multiply_small(count, to - chunk < CHUNK_KEYS ? to - chunk : CHUNK_KEYS, dim, scores + (chunk - from), SPLIT_KEYS,
                       values + (size_t)chunk * dim, dim, weighted, dim, chunk > from);
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
