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

#include "scales.h"

#define PAIR (2 * LANES) /* outputs computed together; rows are padded to this */
#define FEW_ROWS 4       /* activations for which codes become numbers in registers, in a loop of each kind's own */
#define MAX_ROWS 12      /* that share one pass over a tile: two sums each, in AVX-512's thirty-two registers */
#define CHUNK 256        /* columns that become numbers in the first cache, for more rows than a few */

/* Of a kind: columns whose products are summed before they join the total, and columns of a word of its codes. */
#define GROUP_OF(kind) ((kind) == Q2 || (kind) == Q3 || (kind) == Q6 || (kind) == LEVELS16 ? 16 : 32)
#define PER_WORD(kind) \
    ((kind) >= HALF ? 1 : (kind) == Q8 || (kind) == FP8 || (kind) == INT8 ? 4 : (kind) == Q2 || (kind) == Q3 ? 16 : 8)

INLINE floats float_of(words w) { return __builtin_convertvector((ints)w, floats); }

/* Where the code of a word's j-th column begins: four columns lie in its four bytes, at the lowest bits, the next four
 * behind them, and so on. So one shift and one mask take out four columns, a byte each. */
INLINE int shift_of(int bits, int j) { return 8 * (j % 4) + bits * (j / 4); }

INLINE floats nibble_of(words w, int j) {
#if defined(__AVX512F__)
    /* A table look-up takes the low four bits of a lane and ignores the others: no mask, no conversion. */
    const floats table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (floats)_mm512_permutexvar_ps((__m512i)(w >> shift_of(4, j)), (__m512)table);
#else
    return float_of((w >> shift_of(4, j)) & 15);
#endif
}

INLINE floats byte_of(words w, int j) { return float_of((words)((ints)(w << (24 - 8 * j)) >> 24)); }

/* E4M3: exponents are 120 less than a float's; those of 0 have no hidden bit. */
INLINE floats fp8_of(words w, int j) {
    const words byte = w >> (8 * j), magnitude = (byte & 0x7f) << 20;
    const floats usual = (floats)(magnitude + (120u << 23)), tiny = (floats)(magnitude + (121u << 23)) - 0x1p-6f;
    const floats value = choose((ints)(magnitude < (1u << 23)), tiny, usual);
    return (floats)((words)value | (byte & 0x80) << 24);
}

INLINE floats level_of(const float *levels, words w, int j) {
    const words places = w >> shift_of(4, j);
#if defined(__AVX512F__)
    return (floats)_mm512_permutexvar_ps((__m512i)places, (__m512)load(levels));
#elif defined(__AVX2__)
    const __m256 low = _mm256_permutevar8x32_ps((__m256)load(levels), (__m256i)places);
    const __m256 high = _mm256_permutevar8x32_ps((__m256)load(levels + 8), (__m256i)places);
    return (floats)_mm256_blendv_ps(low, high, (__m256)(places << 28));
#else
    floats v;
    for (int i = 0; i < LANES; i++) v[i] = levels[places[i] & 15];
    return v;
#endif
}

/* Moves the bits `mask` of a word that stand at bit `from` to bit `to`. */
INLINE words moved(words w, int from, int to, uint32_t mask) {
    return (from < to ? w << (to - from) : w >> (from - to)) & (mask << to);
}

/* The code, or the level, of the j-th column of a word; `high` has its upper bits where a kind keeps them apart. */
INLINE floats code_of(const Matrix *m, int kind, words w, words high, int j) {
    switch (kind) {
    case Q2: return float_of((w >> shift_of(2, j)) & 3);
    case Q3: return float_of(((w >> shift_of(2, j)) & 3) | moved(high, shift_of(1, j), 2, 1));
    case Q5: return float_of(((w >> shift_of(4, j)) & 15) | moved(high, shift_of(1, j), 4, 1));
    case Q6: return float_of(((w >> shift_of(4, j)) & 15) | moved(high, shift_of(2, j), 4, 3));
    case Q8:
    case INT8: return byte_of(w, j);
    case FP8: return fp8_of(w, j);
    case LEVELS:
    case LEVELS16: return level_of(m->levels, w, j);
    default: return nibble_of(w, j);
    }
}

/* The weight of the j-th column of a word, as the format's own library rounds it. */
INLINE floats weight_of(const Matrix *m, int kind, words w, words high, int j, floats scale, floats minimum) {
    const floats weight = multiply_add(code_of(m, kind, w, high, j), scale, minimum);
    return kind == INT8 ? weight * 0x1.020408p-7f : weight;
}

/* The numbers of a matrix that has no codes. */
INLINE floats number_of(const Matrix *m, int kind, int tile, int column) {
    const size_t place = ((size_t)tile * m->columns + column) * LANES;
    return kind == HALF    ? load_halves((const uint16_t *)m->codes + place)
           : kind == BRAIN ? load_brains((const uint16_t *)m->codes + place)
                           : load((const float *)m->codes + place);
}

/* The word of codes that begins with a column. With `ahead`, brings that of a tile further on. */
INLINE words word_of(const Matrix *m, int kind, int tile, int column, int ahead) {
    const size_t tile_words = m->columns / PER_WORD(kind), place = tile * tile_words + column / PER_WORD(kind);
    words w;
    memcpy(&w, (const uint32_t *)m->codes + place * LANES, sizeof w);
    if (ahead) fetch_line((const uint32_t *)m->codes + (place + ahead * tile_words) * LANES);
    return w;
}

/* The upper bits of codes from `column` on, a multiple of 4; those of that column lowest. */
INLINE words high_of(const Matrix *m, int kind, int tile, int column, int ahead) {
    const int bits = kind == Q6 ? 2 : 1, per_word = 32 / bits;
    const size_t tile_words = m->columns / per_word, place = tile * tile_words + column / per_word;
    words w;
    memcpy(&w, m->high + place * LANES, sizeof w);
    if (ahead) fetch_line(m->high + (place + ahead * tile_words) * LANES);
    return w >> (bits * (column % per_word / 4));
}

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
    for (int g = 0; g < groups; g++) {
        floats part[2][FEW_ROWS];
        for (int i = 0; i < 2; i++) {
            if (is_coded && begins_run(m, g * group)) {
                read_grid(m, kind, tile + i, g * group, &scale[i], &minimum[i]);
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
    for (int column = first; column < first + count; column += per_word) {
        words w = {0}, high = {0};
        if (is_coded) {
            if (column == first || begins_run(m, column)) read_grid(m, kind, tile, column, &scale, &minimum);
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
