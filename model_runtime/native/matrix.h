/* Weight matrices in tiles of LANES outputs, multiplied without ever being written out as floats.
 *
 * A tile holds its outputs side by side, one to a lane, so that nothing is summed across lanes. Columns come in groups of
 * 32 with a scale (and a minimum) of their own: w = scale * code + minimum, with one rounding, is the very float32 that
 * de-quantising gives. Products are added up group by group, in an order that depends on nothing but the column: a row's
 * result has the same bits whatever rows are computed beside it.
 */
#ifndef KEEPWARM_MATRIX_H
#define KEEPWARM_MATRIX_H

#include "vectors.h"

#define GROUP 32
#define PAIR (2 * LANES) /* outputs computed together; rows are padded to this */
#define FETCHING_ROWS 4
#define MAX_ROWS 12 /* activations that share one pass over a tile: two sums each, in AVX-512's thirty-two registers */

enum { Q4 = 0, Q8 = 1, HALF = 2, SINGLE = 3 };

typedef struct {
    const void *codes;       /* Q4: words [N/LANES][K/8][LANES], eight nibbles a word, the first column lowest
                                Q8: words [N/LANES][K/4][LANES], four signed bytes a word
                                HALF, SINGLE: numbers [N/LANES][K][LANES] */
    const uint16_t *scale;   /* Q4, Q8: halves [N/LANES][K/32][LANES] */
    const uint16_t *minimum; /* Q4: halves like scale */
    const float *bias;       /* [N], or NULL */
    int32_t kind, rows, columns;
} Matrix;

INLINE floats nibble_of(words w, int j) {
#if defined(__AVX512F__)
    /* A table look-up takes the low four bits of a lane and ignores the others: no mask, no conversion. */
    const floats table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (floats)_mm512_permutexvar_ps((__m512i)(w >> (4 * j)), (__m512)table);
#else
    return __builtin_convertvector((ints)((w >> (4 * j)) & 15), floats);
#endif
}

INLINE floats byte_of(words w, int j) { return __builtin_convertvector((ints)(w << (24 - 8 * j)) >> 24, floats); }

/* `rows` activations x [rows][stride] times `tiles` tiles from `tile` on; y [rows][y_stride] is set, or added to. `kind`,
 * `tiles` and `rows` are constants wherever this is inlined. Few rows wait for memory: meanwhile it brings the codes and
 * scales of the tiles `ahead` of these, which this thread probably takes next (nothing is read behind the last one). */
INLINE void multiply_tiles(const Matrix *m, int kind, int tile, int tiles, int rows, const float *x, int stride,
                           float *y, int y_stride, int adds, int ahead) {
    const int columns = m->columns, groups = columns / GROUP;
    const int per_word = kind == Q4 ? 8 : kind == Q8 ? 4 : 1, fetches = rows <= FETCHING_ROWS && kind <= Q8;
    floats total[2][MAX_ROWS] = {{{0}}};
    for (int g = 0; g < groups; g++) {
        floats part[2][MAX_ROWS], scale[2], minimum[2];
        for (int i = 0; i < tiles; i++) {
            const size_t place = ((size_t)(tile + i) * groups + g) * LANES;
            if (kind <= Q8) scale[i] = load_halves(m->scale + place);
            if (kind == Q4) minimum[i] = load_halves(m->minimum + place);
            if (fetches) fetch_line(m->scale + place + (size_t)ahead * groups * LANES);
            if (fetches && kind == Q4) fetch_line(m->minimum + place + (size_t)ahead * groups * LANES);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) part[i][r] = (floats){0};
        }
        for (int c = 0; c < GROUP / per_word; c++) {
            const float *at = x + g * GROUP + c * per_word;
            words w[2];
            for (int i = 0; i < tiles && kind <= Q8; i++) {
                const size_t tile_words = columns / per_word;
                const size_t place = (tile + i) * tile_words + g * (GROUP / per_word) + c;
                memcpy(&w[i], (const uint32_t *)m->codes + place * LANES, sizeof w[i]);
                if (fetches) fetch_line((const uint32_t *)m->codes + (place + ahead * tile_words) * LANES);
            }
#pragma GCC unroll 8
            for (int j = 0; j < per_word; j++)
                for (int i = 0; i < tiles; i++) {
                    const size_t place = ((size_t)(tile + i) * columns + g * GROUP + c) * LANES;
                    const floats weight = kind == Q4     ? multiply_add(nibble_of(w[i], j), scale[i], minimum[i])
                                          : kind == Q8   ? byte_of(w[i], j) * scale[i]
                                          : kind == HALF ? load_halves((const uint16_t *)m->codes + place)
                                                         : load((const float *)m->codes + place);
#pragma GCC unroll 12
                    for (int r = 0; r < rows; r++)
                        part[i][r] = multiply_add(weight, all(at[(size_t)r * stride + j]), part[i][r]);
                }
        }
        for (int i = 0; i < tiles; i++)
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) total[i][r] += part[i][r];
    }
    for (int i = 0; i < tiles; i++)
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const int n = (tile + i) * LANES;
            float *to = y + (size_t)r * y_stride + n;
            const floats v = m->bias ? total[i][r] + load(m->bias + n) : total[i][r];
            store(to, adds ? load(to) + v : v);
        }
}

#define ROWS_CASE(n)                                                                                              \
    case n:                                                                                                       \
        if (n <= 4)                                                                                               \
            multiply_tiles(m, kind, tile, 2, n, x, stride, y, y_stride, adds, ahead);                             \
        else                                                                                                      \
            for (int i = 0; i < 2; i++) multiply_tiles(m, kind, tile + i, 1, n, x, stride, y, y_stride, adds, 0); \
        break;

/* Two lines of cases, where the formatter would run them all together. */
/* clang-format off */
#define DEFINE_MULTIPLY(name, constant)                                                                              \
    static void name(const Matrix *m, int tile, int rows, const float *x, int stride, float *y, int y_stride,        \
                     int adds, int ahead) {                                                                          \
        enum { kind = constant };                                                                                    \
        switch (rows) {                                                                                              \
            ROWS_CASE(1) ROWS_CASE(2) ROWS_CASE(3) ROWS_CASE(4) ROWS_CASE(5) ROWS_CASE(6)                            \
            ROWS_CASE(7) ROWS_CASE(8) ROWS_CASE(9) ROWS_CASE(10) ROWS_CASE(11) ROWS_CASE(12)                         \
        }                                                                                                            \
    }
/* clang-format on */

DEFINE_MULTIPLY(multiply_q4, Q4)
DEFINE_MULTIPLY(multiply_q8, Q8)
DEFINE_MULTIPLY(multiply_half, HALF)
DEFINE_MULTIPLY(multiply_single, SINGLE)

/* Outputs `PAIR * pair` and those up to the next pair, for any number of activations. `ahead` pairs further on is the one
 * that this thread probably takes next. */
static void multiply_pair(const Matrix *m, int pair, int rows, const float *x, int stride, float *y, int y_stride,
                          int adds, int ahead) {
    for (int r = 0; r < rows; r += MAX_ROWS) {
        const int count = rows - r < MAX_ROWS ? rows - r : MAX_ROWS;
        const float *at = x + (size_t)r * stride;
        float *to = y + (size_t)r * y_stride;
        switch (m->kind) {
        case Q4: multiply_q4(m, 2 * pair, count, at, stride, to, y_stride, adds, 2 * ahead); break;
        case Q8: multiply_q8(m, 2 * pair, count, at, stride, to, y_stride, adds, 2 * ahead); break;
        case HALF: multiply_half(m, 2 * pair, count, at, stride, to, y_stride, adds, 2 * ahead); break;
        default: multiply_single(m, 2 * pair, count, at, stride, to, y_stride, adds, 2 * ahead);
        }
    }
}

static int pairs_of(const Matrix *m) { return (m->rows + PAIR - 1) / PAIR; }

#endif
