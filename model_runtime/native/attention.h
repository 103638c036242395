/* Causal attention of a few rows against one conversation's slab, grouped-query heads sharing every key they read.
 *
 * Keys are cut into splits of a fixed length, each with its own softmax (maximum, sum, weighted values); splits are
 * merged in their order (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2023, "Flash-Decoding"). The cut
 * depends on positions alone, so that a row's result has the same bits whatever else is computed beside it.
 */
#ifndef KEEPWARM_ATTENTION_H
#define KEEPWARM_ATTENTION_H

#include <math.h>

#include "keys.h"

#define SPLIT_KEYS 256
#define BLOCK_QUERIES 96
#define WIDE 4 /* vectors of a register block */

/* Keeps GCC from reading a vector again for each product: two reads of 64 bytes take as long as two products. */
#if defined(__AVX512F__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define IN_REGISTER(v)
#endif

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
        for (int v = 0; v < wide; v++) {
            row[v] = load_from(b, (size_t)i * b_stride + v * LANES);
            IN_REGISTER(row[v]);
        }
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

/* Scores [count][SPLIT_KEYS] of `keys` keys of a chunk. Between pieces of them, their values are prefetched: many lines asked for
 * at once would have to wait for one another, and the processor with them. */
static void score_chunk(const float *queries, int count, Numbers keys, Numbers values, int key_count, int dim,
                        float *columns, float *scores) {
    int scored = 0;
    for (int k = 0; k < key_count; k += PIECE_KEYS) {
        const int here = key_count - k < PIECE_KEYS ? key_count - k : PIECE_KEYS;
        const Numbers piece = from_number(keys, (size_t)k * dim);
        fetch(from_number(values, (size_t)k * dim), (size_t)here * dim);
        if (here == PIECE_KEYS && scored_few(count, queries, piece, dim, scores + k, SPLIT_KEYS))
            scored = k + PIECE_KEYS;
        else
            transpose_keys(piece, here, dim, columns + k);
    }
    if (scored < key_count)
        multiply_small(count, dim, (key_count - scored + LANES - 1) / LANES * LANES, queries, dim,
                       (Numbers){columns + scored, 0}, CHUNK_KEYS, scores + scored, SPLIT_KEYS, 0);
}

/* Adds the `key_count` values of a chunk, times their shares [count][SPLIT_KEYS], to weighted [count][dim], or sets it. Prefetches
 * `later` meanwhile. */
static void add_values(const float *shares, int count, Numbers values, Numbers later, int key_count, int dim,
                       float *room, float *weighted, int adds) {
    const int is_widened = values.is_half && count > FEW_QUERIES;
    for (int k = 0; k < key_count; k += PIECE_KEYS) {
        const int here = key_count - k < PIECE_KEYS ? key_count - k : PIECE_KEYS;
        const Numbers piece = from_number(values, (size_t)k * dim);
        fetch(from_number(later, (size_t)k * dim), (size_t)here * dim);
        if (is_widened)
            widened(piece, (size_t)here * dim, room + (size_t)k * dim);
        else
            multiply_small(count, here, dim, shares + k, SPLIT_KEYS, piece, dim, weighted, dim, adds || k);
    }
    if (is_widened)
        multiply_small(count, key_count, dim, shares, SPLIT_KEYS, (Numbers){room, 0}, dim, weighted, dim, adds);
}

/* Attends `count` queries [count][dim] (already scaled), of which number i sees keys 0..visible[i], or the last `window` of
 * these, over a split. Sets state[i] and weighted[i][dim]; a query that sees nothing here gets sum 0. */
static void attend_split(const float *queries, const int *visible, int window, int count, const Split *split, int dim,
                         Softmax *state, float *weighted) {
    float columns[MAX_DIM * CHUNK_KEYS] __attribute__((aligned(64)));
    float scores[BLOCK_QUERIES * SPLIT_KEYS] __attribute__((aligned(64)));
    for (int chunk = 0; chunk < split->count; chunk += CHUNK_KEYS) {
        const int here = split->count - chunk < CHUNK_KEYS ? split->count - chunk : CHUNK_KEYS;
        const size_t start = (size_t)chunk * dim;
        score_chunk(queries, count, from_number(split->keys, start), from_number(split->values, start), here, dim,
                    columns, scores + chunk);
    }
    for (int i = 0; i < count; i++) {
        const int seen = visible[i] - split->first, hidden = window ? seen - window : 0;
        state[i] = exponentials(scores + (size_t)i * SPLIT_KEYS, hidden, seen, split->count);
    }
    for (int chunk = 0; chunk < split->count; chunk += CHUNK_KEYS) { /* few enough to stay in the first-level cache */
        const int here = split->count - chunk < CHUNK_KEYS ? split->count - chunk : CHUNK_KEYS;
        const size_t start = (size_t)chunk * dim;
        add_values(scores + chunk, count, from_number(split->values, start), from_number(split->later, start), here,
                   dim, columns, weighted, chunk > 0);
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
