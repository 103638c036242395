/* Weight matrices in tiles of LANES outputs, multiplied without ever being written out as floats.
 *
 * A tile holds its outputs side by side, one to a lane, so that nothing is summed across lanes. Codes are integers of 2 to
 * 8 bits, small numbers, or places in a table of sixteen levels; a run of columns shares a scale (and a minimum), which may
 * itself be a byte times a half that a longer run shares. w = scale * code + minimum, with one rounding (INT8: two), is
 * the very float32 that de-quantising gives. Products are added up group by group, in an order that depends on nothing but
 * the column: a row's result has the same bits whatever rows are computed beside it.
 */
#ifndef KEEPWARM_MATRIX_H
#define KEEPWARM_MATRIX_H

#include <stddef.h>

#include "codes.h"

#define PAIR (2 * LANES) /* outputs computed together; rows are padded to this */
#define AHEAD 1          /* pairs further on is what a thread probably takes next: neighbours, one behind the other */
#define FEW_ROWS 4       /* activations for which codes become numbers in registers, in a loop of each kind's own */
#define MAX_ROWS 12      /* that share one pass over a tile: two sums each, in AVX-512's thirty-two registers */
#define CHUNK 256        /* columns that become numbers in the first cache, for more rows than a few */

/* Sets y [rows][y_stride] at a tile's outputs, or adds to it. `rows` is a constant wherever this is inlined. */
INLINE void finish_tile(const Matrix *m, int tile, int rows, const floats *total, float *y, int y_stride, int adds) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        float *to = y + (size_t)r * y_stride + tile * LANES;
        const floats v = m->bias ? total[r] + load(m->bias + tile * LANES) : total[r];
        store(to, adds ? load(to) + v : v);
    }
}

/* `rows` activations x [rows][stride] times two tiles from `tile` on, into y [rows][y_stride]. `kind` and `rows` are
 * constants wherever this is inlined. Few rows wait for memory: meanwhile it brings the codes and scales of the tiles
 * `ahead` of these, which this thread probably takes next (nothing is read behind the last one). */
INLINE void multiply_few(const Matrix *m, int kind, int tile, int rows, const float *x, int stride, float *y,
                         int y_stride, int adds, int ahead) {
    const int group = GROUP_OF(kind), groups = m->columns / group, per_word = PER_WORD(kind), is_coded = kind < HALF;
    const int further = is_coded ? ahead : 0;
    floats total[2][FEW_ROWS] = {{{0}}}, scale[2] = {{0}}, minimum[2] = {{0}};
    Factors factors[2] = {no_factors(), no_factors()};
    for (int g = 0; g < groups; g++) {
        floats part[2][FEW_ROWS];
        for (int i = 0; i < 2; i++) {
            if (is_coded && begins_run(m, g * group)) {
                read_grid(m, kind, tile + i, g * group, &scale[i], &minimum[i], &factors[i]);
                if (further) fetch_grid(m, kind, tile + i + further, g * group);
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) part[i][r] = (floats){0};
        }
        for (int column = g * group; column < (g + 1) * group; column += per_word) {
            const float *at = x + column;
            words w[2], high[2];
            for (int i = 0; i < 2 && is_coded; i++) {
                w[i] = word_of(m, kind, tile + i, column, further);
                if (has_high(kind)) high[i] = high_of(m, kind, tile + i, column, further);
            }
#pragma GCC unroll 16
            for (int j = 0; j < per_word; j++)
                for (int i = 0; i < 2; i++) {
                    const floats weight = is_coded ? weight_of(m, kind, w[i], high[i], j, scale[i], minimum[i])
                                                   : number_of(m, kind, tile + i, column);
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++)
                        part[i][r] = multiply_add(weight, all(at[(size_t)r * stride + j]), part[i][r]);
                }
        }
        for (int i = 0; i < 2; i++)
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) total[i][r] += part[i][r];
    }
    for (int i = 0; i < 2; i++) finish_tile(m, tile + i, rows, total[i], y, y_stride, adds);
}

/* The weights of a tile, columns `first..first + count`, as numbers [count][LANES]: those that `multiply_few` sees. */
INLINE void write_numbers(const Matrix *m, int kind, int tile, int first, int count, float *to) {
    const int per_word = PER_WORD(kind), is_coded = kind < HALF;
    floats scale = {0}, minimum = {0};
    Factors factors = no_factors();
    for (int column = first; column < first + count; column += per_word) {
        words w = {0}, high = {0};
        if (is_coded) {
            if (column == first || begins_run(m, column)) read_grid(m, kind, tile, column, &scale, &minimum, &factors);
            w = word_of(m, kind, tile, column, 0);
            if (has_high(kind)) high = high_of(m, kind, tile, column, 0);
        }
#pragma GCC unroll 16
        for (int j = 0; j < per_word; j++, to += LANES)
            store(to, is_coded ? weight_of(m, kind, w, high, j, scale, minimum) : number_of(m, kind, tile, column));
    }
}

/* The same for one row. GGUF's formats have a half, or a byte times a half, for each 32 columns: with that as constants nothing
 * is left to ask in the loop, which takes half as long then. */
INLINE void multiply_one_row(const Matrix *m, int kind, int tile, const float *x, float *y, int adds, int ahead) {
    Matrix known = *m;
    known.shift = 5, known.zero = NULL;
    const int is_known = m->shift == 5 && !m->zero;
    if ((kind == Q4 || kind == Q5 || kind == Q8) && is_known && m->scales == HALVES) {
        known.scales = HALVES;
        multiply_few(&known, kind, tile, 1, x, 0, y, 0, adds, ahead);
    } else if ((kind == Q4 || kind == Q5) && is_known && m->scales == SUPER) {
        known.scales = SUPER;
        multiply_few(&known, kind, tile, 1, x, 0, y, 0, adds, ahead);
    } else {
        multiply_few(m, kind, tile, 1, x, 0, y, 0, adds, ahead);
    }
}

/* Two lines of cases, where the formatter would run them all together. */
/* clang-format off */
#define DEFINE_KIND(KIND)                                                                                            \
    static void multiply_##KIND(const Matrix *m, int tile, int rows, const float *x, int stride, float *y,           \
                                int y_stride, int adds, int ahead) {                                                 \
        switch (rows) {                                                                                              \
        case 1: multiply_one_row(m, KIND, tile, x, y, adds, ahead); break;                                           \
        case 2: multiply_few(m, KIND, tile, 2, x, stride, y, y_stride, adds, ahead); break;                          \
        case 3: multiply_few(m, KIND, tile, 3, x, stride, y, y_stride, adds, ahead); break;                          \
        case 4: multiply_few(m, KIND, tile, 4, x, stride, y, y_stride, adds, ahead); break;                          \
        }                                                                                                            \
    }                                                                                                                \
    static void numbers_##KIND(const Matrix *m, int tile, int first, int count, float *to) {                         \
        write_numbers(m, KIND, tile, first, count, to);                                                              \
    }
/* clang-format on */

DEFINE_KIND(Q2)
DEFINE_KIND(Q3)
DEFINE_KIND(Q4)
DEFINE_KIND(Q5)
DEFINE_KIND(Q6)
DEFINE_KIND(Q8)
DEFINE_KIND(LEVELS)
DEFINE_KIND(FP8)
DEFINE_KIND(INT8)
DEFINE_KIND(LEVELS16)
DEFINE_KIND(HALF)
DEFINE_KIND(BRAIN)
DEFINE_KIND(SINGLE)

typedef struct {
    void (*multiply)(const Matrix *, int, int, const float *, int, float *, int, int, int);
    void (*numbers)(const Matrix *, int, int, int, float *);
} KindLoops;

#define LOOPS_OF(KIND) [KIND] = {multiply_##KIND, numbers_##KIND}
static const KindLoops LOOPS[] = {
    LOOPS_OF(Q2),   LOOPS_OF(Q3),     LOOPS_OF(Q4),     LOOPS_OF(Q5),   LOOPS_OF(Q6),
    LOOPS_OF(Q8),   LOOPS_OF(LEVELS), LOOPS_OF(FP8),    LOOPS_OF(INT8), LOOPS_OF(LEVELS16),
    LOOPS_OF(HALF), LOOPS_OF(BRAIN),  LOOPS_OF(SINGLE),
};

/* More than a few activations times one tile, whatever its kind: the same additions in the same order. */
INLINE void multiply_many(const Matrix *m, int tile, int rows, const float *x, int stride, float *y, int y_stride,
                          int adds) {
    float numbers[CHUNK * LANES] __attribute__((aligned(64)));
    floats total[MAX_ROWS] = {{0}};
    const int group = GROUP_OF(m->kind);
    for (int first = 0; first < m->columns; first += CHUNK) {
        const int count = m->columns - first < CHUNK ? m->columns - first : CHUNK;
        LOOPS[m->kind].numbers(m, tile, first, count, numbers);
        for (int c = 0; c < count; c += group) {
            floats part[MAX_ROWS];
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) part[r] = (floats){0};
            const float *at = x + first + c, *weight = numbers + c * LANES;
#pragma GCC unroll 4
            for (int j = 0; j < group; j++, weight += LANES)
#pragma GCC unroll 12
                for (int r = 0; r < rows; r++)
                    part[r] = multiply_add(load(weight), all(at[(size_t)r * stride + j]), part[r]);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) total[r] += part[r];
        }
    }
    finish_tile(m, tile, rows, total, y, y_stride, adds);
}

#define MANY_CASE(n) \
    case n: multiply_many(m, tile, n, x, stride, y, y_stride, adds); break;

static void multiply_tile(const Matrix *m, int tile, int rows, const float *x, int stride, float *y, int y_stride,
                          int adds) {
    switch (rows) {
        MANY_CASE(5)
        MANY_CASE(6)
        MANY_CASE(7)
        MANY_CASE(8)
        MANY_CASE(9)
        MANY_CASE(10)
        MANY_CASE(11)
        MANY_CASE(12)
    }
}

/* Outputs `PAIR * pair` and those up to the next pair, for any number of activations. `ahead` pairs further on is the one
 * that this thread probably takes next. */
static void multiply_pair(const Matrix *m, int pair, int rows, const float *x, int stride, float *y, int y_stride,
                          int adds, int ahead) {
    for (int r = 0; r < rows; r += MAX_ROWS) {
        const int count = rows - r < MAX_ROWS ? rows - r : MAX_ROWS;
        const float *at = x + (size_t)r * stride;
        float *to = y + (size_t)r * y_stride;
        if (count <= FEW_ROWS)
            LOOPS[m->kind].multiply(m, 2 * pair, count, at, stride, to, y_stride, adds, 2 * ahead);
        else
            for (int i = 0; i < 2; i++) multiply_tile(m, 2 * pair + i, count, at, stride, to, y_stride, adds);
    }
}

/* Row `row` of the matrix as numbers, y [columns]. */
static void write_row(const Matrix *m, int row, float *y) {
    float numbers[CHUNK * LANES] __attribute__((aligned(64)));
    for (int first = 0; first < m->columns; first += CHUNK) {
        const int count = m->columns - first < CHUNK ? m->columns - first : CHUNK;
        LOOPS[m->kind].numbers(m, row / LANES, first, count, numbers);
        for (int c = 0; c < count; c++) y[first + c] = numbers[c * LANES + row % LANES];
    }
}

static int pairs_of(const Matrix *m) { return (m->rows + PAIR - 1) / PAIR; }

#endif
