/* Weight matrices times packed activations (activations.h): codes times codes in integers, then the scales.
 *
 * Of 32 columns, part = the sum of minimum * (sum of the activations' codes) + scale * (sum of the products of codes), and
 * the total grows by the activations' scale times part. This order depends on nothing but the column, and the sums of
 * integers are exact: a row's result has the same bits whatever rows are computed beside it.
 */
#ifndef KEEPWARM_INTEGER_MATRIX_H
#define KEEPWARM_INTEGER_MATRIX_H

#include "amx_matrix.h"
#include "integer_codes.h"

/* One row of a block of `width`, packed, times two tiles from `tile` on, into y. `kind` is a constant wherever this is
 * inlined; `ahead` as in `multiply_few`. */
INLINE void product_of_row(const Matrix *m, int kind, int tile, const int32_t *run, int width, float *y, int adds,
                           int ahead) {
    const int group = GROUP_OF(kind), per_word = PER_WORD(kind), has_minimum = has_minimums(m, kind);
    floats total[2] = {{0}}, scale[2] = {{0}}, minimum[2] = {{0}};
    Factors factors[2] = {no_factors(), no_factors()};
    for (int first = 0; first < m->columns; first += RUN, run += FIELDS * width) {
        floats part[2] = {{0}};
        for (int at = 0; at < RUN; at += group)
            for (int i = 0; i < 2; i++) {
                ints sum = first_sum(kind, run, width);
                if (begins_run(m, first + at)) {
                    read_grid(m, kind, tile + i, first + at, &scale[i], &minimum[i], &factors[i]);
                    scale[i] = integer_scale(m, kind, scale[i]);
                    if (ahead) fetch_grid(m, kind, tile + i + ahead, first + at);
                }
#pragma GCC unroll 8
                for (int c = at; c < at + group; c += per_word) {
                    const words w = word_of(m, kind, tile + i, first + c, ahead);
                    const words high = has_high(kind) ? high_of(m, kind, tile + i, first + c, ahead) : (words){0};
#pragma GCC unroll 4
                    for (int q = 0; q < per_word / 4; q++) {
                        const int32_t x = run[(c / 4 + q) * width];
                        sum = dot(sum, quad_of(m, kind, w, high, q, LIFT_BITS), x, has_sign(kind));
                    }
                }
                if (has_minimum)
                    part[i] = multiply_add(minimum[i], all(as_float(run[sum_field(group, at) * width])), part[i]);
                part[i] = multiply_add(__builtin_convertvector(sum, floats), scale[i], part[i]);
            }
        for (int i = 0; i < 2; i++) total[i] = multiply_add(part[i], all(as_float(run[SCALE * width])), total[i]);
    }
    for (int i = 0; i < 2; i++) finish_tile(m, tile + i, 1, total + i, y, 0, adds);
}

/* clang-format off */
#define DEFINE_INTEGER_KIND(KIND)                                                                                    \
    static void product_of_row_##KIND(const Matrix *m, int tile, const int32_t *run, int width, float *y, int adds,    \
                                    int ahead) {                                                                     \
        product_of_row(m, KIND, tile, run, width, y, adds, ahead);                                                     \
    }                                                                                                                \
    static void unpack_##KIND(const Matrix *m, int tile, int first, int count, int ahead, uint32_t lift, Chunk *to) { \
        unpack(m, KIND, tile, first, count, ahead, lift, to);                                                        \
    }
/* clang-format on */

DEFINE_INTEGER_KIND(Q2)
DEFINE_INTEGER_KIND(Q3)
DEFINE_INTEGER_KIND(Q4)
DEFINE_INTEGER_KIND(Q5)
DEFINE_INTEGER_KIND(Q6)
DEFINE_INTEGER_KIND(Q8)
DEFINE_INTEGER_KIND(LEVELS)

typedef struct {
    void (*one)(const Matrix *, int, const int32_t *, int, float *, int, int);
    Unpack *unpack;
} IntegerLoops;

#define INTEGER_LOOPS_OF(KIND) [KIND] = {product_of_row_##KIND, unpack_##KIND}
static const IntegerLoops INTEGER_LOOPS[] = {
    INTEGER_LOOPS_OF(Q2), INTEGER_LOOPS_OF(Q3), INTEGER_LOOPS_OF(Q4),     INTEGER_LOOPS_OF(Q5),
    INTEGER_LOOPS_OF(Q6), INTEGER_LOOPS_OF(Q8), INTEGER_LOOPS_OF(LEVELS),
};

/* `rows` rows of a block, from `run` on, times `count` unpacked columns, added to total [rows]. Everything but the
 * pointers and `count` is a constant wherever this is inlined. */
INLINE void products_of_chunk(const Chunk *chunk, int count, int kind, int rows, const int32_t *run, int width,
                              floats *total) {
    const int group = GROUP_OF(kind), is_signed = has_sign(kind);
    for (int first = 0; first < count; first += RUN, run += FIELDS * width) {
        floats part[BLOCK_ROWS] = {{0}};
        for (int at = first; at < first + RUN; at += group) {
            const int field = sum_field(group, at - first);
            ints sum[BLOCK_ROWS];
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) sum[r] = first_sum(kind, run + r, width);
#pragma GCC unroll 8
            for (int q = at / 4; q < (at + group) / 4; q++)
#pragma GCC unroll 12
                for (int r = 0; r < rows; r++)
                    sum[r] = dot(sum[r], chunk->codes[q], run[(q - first / 4) * width + r], is_signed);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                part[r] = multiply_add(chunk->minimum[at / group], all(as_float(run[field * width + r])), part[r]);
                part[r] = multiply_add(__builtin_convertvector(sum[r], floats), chunk->scale[at / group], part[r]);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
            total[r] = multiply_add(part[r], all(as_float(run[SCALE * width + r])), total[r]);
    }
}

/* The same for a whole block of rows, or as many of one as there are: in pieces for which there is a loop. */
#define CHUNK_PIECE(n)                                                         \
    for (; rows - r >= n; r += n) {                                            \
        if (GROUP_OF(kind) == 16)                                              \
            products_of_chunk(chunk, count, Q6, n, run + r, width, total + r); \
        else if (has_sign(kind))                                               \
            products_of_chunk(chunk, count, Q8, n, run + r, width, total + r); \
        else                                                                   \
            products_of_chunk(chunk, count, Q4, n, run + r, width, total + r); \
    }

static void products_of_block(const Chunk *chunk, int kind, int count, int rows, const int32_t *run, int width,
                              floats *total) {
    int r = 0;
    if (rows == BLOCK_ROWS) width = BLOCK_ROWS;
    CHUNK_PIECE(BLOCK_ROWS)
    CHUNK_PIECE(4)
    CHUNK_PIECE(2)
    CHUNK_PIECE(1)
}

/* Outputs `PAIR * pair` and those up to the next pair, for `rows` packed rows. See `multiply_pair`. */
static void multiply_packed(const Matrix *m, int pair, int rows, const int32_t *packed, float *y, int y_stride,
                            int adds, int ahead) {
    const int width = width_of(rows), kind = m->kind;
    if (rows == 1) {
        INTEGER_LOOPS[kind].one(m, 2 * pair, packed, width, y, adds, 2 * ahead);
        return;
    }
    if (is_for_amx(width)) {
        multiply_in_amx(m, kind, INTEGER_LOOPS[kind].unpack, pair, rows, packed, y, y_stride, adds, ahead);
        return;
    }
    for (int tile = 2 * pair; tile < 2 * pair + 2; tile++)
        for (int start = 0; start < rows; start += SPAN_ROWS) {
            const int end = rows - start < SPAN_ROWS ? rows : start + SPAN_ROWS;
            floats total[SPAN_ROWS];
            memset(total, 0, sizeof(floats) * (end - start));
            for (int first = 0; first < m->columns; first += CHUNK) {
                const int count = m->columns - first < CHUNK ? m->columns - first : CHUNK;
                Chunk chunk;
                INTEGER_LOOPS[kind].unpack(m, tile, first, count, start ? 0 : 2 * ahead, LIFT_BITS, &chunk);
                for (int r = start; r < end; r += width)
                    products_of_block(&chunk, kind, count, end - r < width ? end - r : width,
                                      packed + packed_place(rows, m->columns, r, first), width, total + (r - start));
            }
            for (int r = start; r < end; r++)
                finish_tile(m, tile, 1, total + (r - start), y + (size_t)r * y_stride, y_stride, adds);
        }
}

#endif
