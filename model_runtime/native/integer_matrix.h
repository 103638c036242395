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

/* One row, packed as `bytes` says, times two tiles from `tile` on, into y. `kind` and `bytes` are constants wherever this is
 * inlined. */
INLINE void product_of_row(const Matrix *m, int kind, int bytes, int tile, const int32_t *run, float *y, int adds) {
    const int group = GROUP_OF(kind), per_word = PER_WORD(kind), has_minimum = has_minimums(m, kind);
    const int ahead = 2 * AHEAD;
    floats total[2] = {{0}}, scale[2] = {{0}}, minimum[2] = {{0}};
    Factors factors[2] = {no_factors(), no_factors()};
    for (int first = 0; first < m->columns; first += RUN, run += fields_of(bytes)) {
        floats part[2] = {{0}};
#pragma GCC unroll UNROLLED
        for (int at = 0; at < RUN; at += group)
#pragma GCC unroll UNROLLED
            for (int i = 0; i < 2; i++) {
                Sum upper = begun(bytes == 2 ? (ints){0} : first_sum(kind, run, 1)),
                    lower = begun(first_sum(kind, run, 1));
                if (begins_run(m, first + at)) {
                    read_grid(m, kind, tile + i, first + at, &scale[i], &minimum[i], &factors[i]);
                    scale[i] = integer_scale(m, kind, scale[i]);
                    fetch_grid(m, kind, tile + i + ahead, first + at);
                }
#pragma GCC unroll UNROLLED
                for (int c = at; c < at + group; c += per_word) {
                    const words w = word_of(m, kind, tile + i, first + c, ahead);
                    const words high = has_high(kind) ? high_of(m, kind, tile + i, first + c, ahead) : (words){0};
#pragma GCC unroll UNROLLED
                    for (int q = c / 4; q < (c + per_word) / 4; q++) {
                        const words quad = quad_of(m, kind, w, high, q - c / 4, LIFT_BITS);
                        add_products(&upper, kind, q - at / 4, quad, run[q]);
                        if (bytes == 2) add_products(&lower, kind, q - at / 4, quad, run[LOWER + q]);
                    }
                }
                ints sum = ended(upper, kind);
                if (bytes == 2) sum = joined_parts(sum, ended(lower, kind));
                if (has_minimum) part[i] = multiply_add(minimum[i], all(as_float(run[sum_field(group, at)])), part[i]);
                part[i] = multiply_add(__builtin_convertvector(sum, floats), scale[i], part[i]);
            }
        for (int i = 0; i < 2; i++) total[i] = multiply_add(part[i], all(as_float(run[SCALE])), total[i]);
    }
    for (int i = 0; i < 2; i++) finish_tile(m, tile + i, 1, total + i, y, 0, adds);
}

/* The same, with the ways in which GGUF's formats and bitsandbytes store scales as constants: nothing is left to ask in the
 * loop. Without products of bytes that would not show. */
#if HAS_BYTE_PRODUCTS
INLINE void product_of_known_row(const Matrix *m, int kind, int bytes, int tile, const int32_t *run, float *y,
                                 int adds) {
    const int scales = scales_of(m, kind), has_short_runs = GROUP_OF(kind) == 16, is_plain = !m->zero && !m->minimum;
    Matrix known = *m;
    known.zero = NULL, known.minimum = NULL;
    if (has_short_runs && m->shift == 4) { /* these have one way each */
        known.shift = 4;
        product_of_row(&known, kind, bytes, tile, run, y, adds);
    } else if (!has_short_runs && scales == HALVES && m->shift == 5 && is_plain) {
        known.shift = 5, known.scales = HALVES;
        product_of_row(&known, kind, bytes, tile, run, y, adds);
    } else if ((kind == Q4 || kind == Q5) && scales == HALVES && m->shift == 5 && !m->zero) {
        known.shift = 5, known.scales = HALVES, known.minimum = m->minimum;
        product_of_row(&known, kind, bytes, tile, run, y, adds);
    } else if ((kind == Q4 || kind == Q5) && scales == SUPER && m->shift == 5 && !m->zero) {
        known.shift = 5, known.scales = SUPER, known.minimum = m->minimum;
        product_of_row(&known, kind, bytes, tile, run, y, adds);
    } else if (kind == LEVELS && scales == SUPER && m->shift == 5 && is_plain) {
        known.shift = 5, known.scales = SUPER;
        product_of_row(&known, kind, bytes, tile, run, y, adds);
    } else if (kind == LEVELS && bytes == 1 && scales == NESTED && m->shift == 6 && is_plain) {
        known.shift = 6, known.scales = NESTED, known.offset = 0;
        product_of_row(&known, kind, bytes, tile, run, y, adds);
    } else {
        product_of_row(m, kind, bytes, tile, run, y, adds);
    }
}
#else
#define product_of_known_row product_of_row
#endif

/* clang-format off */
#define DEFINE_PRODUCT_OF_ROW(KIND, BYTES)                                                                           \
    static void product_of_row_##KIND##_##BYTES(const Matrix *m, int tile, const int32_t *run, float *y, int adds) { \
        product_of_known_row(m, KIND, BYTES, tile, run, y, adds);                                                    \
    }
#define DEFINE_UNPACK(KIND)                                                                                          \
    static void unpack_##KIND(const Matrix *m, int tile, int first, int count, int ahead, uint32_t lift, Chunk *to) { \
        unpack(m, KIND, tile, first, count, ahead, lift, to);                                                        \
    }
#define DEFINE_INTEGER_KIND(KIND)  \
    DEFINE_PRODUCT_OF_ROW(KIND, 1) \
    DEFINE_PRODUCT_OF_ROW(KIND, 2) \
    DEFINE_UNPACK(KIND)
/* clang-format on */

DEFINE_INTEGER_KIND(Q2)
DEFINE_INTEGER_KIND(Q3)
DEFINE_INTEGER_KIND(Q4)
DEFINE_INTEGER_KIND(Q5)
DEFINE_INTEGER_KIND(Q6)
DEFINE_INTEGER_KIND(Q8)
DEFINE_INTEGER_KIND(LEVELS)

typedef void ProductOfRow(const Matrix *, int, const int32_t *, float *, int);

typedef struct {
    ProductOfRow *one, *one_wide; /* of activations of one byte, of two */
    Unpack *unpack;
} IntegerLoops;

#define INTEGER_LOOPS_OF(KIND) [KIND] = {product_of_row_##KIND##_1, product_of_row_##KIND##_2, unpack_##KIND}
static const IntegerLoops INTEGER_LOOPS[] = {
    INTEGER_LOOPS_OF(Q2), INTEGER_LOOPS_OF(Q3), INTEGER_LOOPS_OF(Q4),     INTEGER_LOOPS_OF(Q5),
    INTEGER_LOOPS_OF(Q6), INTEGER_LOOPS_OF(Q8), INTEGER_LOOPS_OF(LEVELS),
};

/* sum + the products of one or two quads of codes. */
INLINE ints dot_of(ints sum, int quads, int is_signed, const words *codes, const int32_t *x, int width) {
    if (quads == 1) return dot(sum, codes[0], x[0], is_signed);
    return sum + sum_of_pairs(products_in_pairs(codes[0], x[0]) + products_in_pairs(codes[1], x[width]));
}

/* `rows` rows of a block, from `run` on, times `count` unpacked columns, added to total [rows]. Everything but the
 * pointers and `count` is a constant wherever this is inlined. */
INLINE void products_of_chunk(const Chunk *chunk, int count, int kind, int bytes, int rows, const int32_t *run,
                              int width, floats *total) {
    const int group = GROUP_OF(kind), is_signed = has_sign(kind), step = quads_of_a_half(kind) > 1 ? 2 : 1;
    for (int first = 0; first < count; first += RUN, run += fields_of(bytes) * width) {
        floats part[BLOCK_ROWS] = {{0}};
        for (int at = first; at < first + RUN; at += group) {
            const int field = sum_field(group, at - first);
            const int last_parts = bytes == 2 ? LOWER : 0; /* the field where these begin */
            ints sum[BLOCK_ROWS];
            if (bytes == 2) {
#pragma GCC unroll UNROLLED
                for (int r = 0; r < rows; r++) sum[r] = (ints){0};
#pragma GCC unroll UNROLLED
                for (int q = at / 4; q < (at + group) / 4; q += step)
#pragma GCC unroll UNROLLED
                    for (int r = 0; r < rows; r++)
                        sum[r] =
                            dot_of(sum[r], step, is_signed, chunk->codes + q, run + (q - first / 4) * width + r, width);
#pragma GCC unroll UNROLLED
                for (int r = 0; r < rows; r++) sum[r] = joined_parts(sum[r], first_sum(kind, run + r, width));
            } else {
#pragma GCC unroll UNROLLED
                for (int r = 0; r < rows; r++) sum[r] = first_sum(kind, run + r, width);
            }
#pragma GCC unroll UNROLLED
            for (int q = at / 4; q < (at + group) / 4; q += step)
#pragma GCC unroll UNROLLED
                for (int r = 0; r < rows; r++)
                    sum[r] = dot_of(sum[r], step, is_signed, chunk->codes + q,
                                    run + (last_parts + q - first / 4) * width + r, width);
#pragma GCC unroll UNROLLED
            for (int r = 0; r < rows; r++) {
                part[r] = multiply_add(chunk->minimum[at / group], all(as_float(run[field * width + r])), part[r]);
                part[r] = multiply_add(__builtin_convertvector(sum[r], floats), chunk->scale[at / group], part[r]);
            }
        }
#pragma GCC unroll UNROLLED
        for (int r = 0; r < rows; r++)
            total[r] = multiply_add(part[r], all(as_float(run[SCALE * width + r])), total[r]);
    }
}

/* The same for a whole block of rows, or as many of one as there are: in pieces for which there is a loop. */
#define PIECES_OF(kind, bytes, n) \
    for (; rows - r >= n; r += n) products_of_chunk(chunk, count, kind, bytes, n, run + r, width, total + r)

#define DEFINE_PRODUCTS_OF_BLOCK(KIND, BYTES)                                                                   \
    static void products_of_block_##KIND##_##BYTES(const Chunk *chunk, int count, int rows, const int32_t *run, \
                                                   int width, floats *total) {                                  \
        int r = 0;                                                                                              \
        if (rows == BLOCK_ROWS) width = BLOCK_ROWS;                                                             \
        PIECES_OF(KIND, BYTES, BLOCK_ROWS);                                                                     \
        PIECES_OF(KIND, BYTES, 4);                                                                              \
        PIECES_OF(KIND, BYTES, 2);                                                                              \
        PIECES_OF(KIND, BYTES, 1);                                                                              \
    }

DEFINE_PRODUCTS_OF_BLOCK(Q5, 1)
DEFINE_PRODUCTS_OF_BLOCK(Q6, 1)
DEFINE_PRODUCTS_OF_BLOCK(Q8, 1)
DEFINE_PRODUCTS_OF_BLOCK(Q5, 2)
DEFINE_PRODUCTS_OF_BLOCK(Q6, 2)
DEFINE_PRODUCTS_OF_BLOCK(Q8, 2)

typedef void ProductsOfBlock(const Chunk *, int, int, const int32_t *, int, floats *);

/* The loop that a kind shares with others: those with as many columns to a scale and with a sign or none, of which the one
 * with the largest codes names it. */
static ProductsOfBlock *products_for(int kind, int bytes) {
    if (GROUP_OF(kind) == 16) return bytes == 2 ? products_of_block_Q6_2 : products_of_block_Q6_1;
    if (has_sign(kind)) return bytes == 2 ? products_of_block_Q8_2 : products_of_block_Q8_1;
    return bytes == 2 ? products_of_block_Q5_2 : products_of_block_Q5_1;
}

/* Outputs `PAIR * pair` and those up to the next pair, for `rows` packed rows. See `multiply_pair`. */
static void multiply_packed(const Matrix *m, int pair, int rows, const int32_t *packed, float *y, int y_stride,
                            int adds, int ahead) {
    const int bytes = m->takes_bytes, width = width_of(rows, bytes), kind = m->kind;
    if (rows == 1) {
        (bytes == 2 ? INTEGER_LOOPS[kind].one_wide : INTEGER_LOOPS[kind].one)(m, 2 * pair, packed, y, adds);
        return;
    }
    if (is_for_amx(width)) {
        multiply_in_amx(m, kind, INTEGER_LOOPS[kind].unpack, pair, rows, packed, y, y_stride, adds, ahead);
        return;
    }
    ProductsOfBlock *const products = products_for(kind, bytes);
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
                    products(&chunk, count, end - r < width ? end - r : width,
                             packed + packed_place(rows, m->columns, r, first, bytes), width, total + (r - start));
            }
            for (int r = start; r < end; r++)
                finish_tile(m, tile, 1, total + (r - start), y + (size_t)r * y_stride, y_stride, adds);
        }
}

#endif
