/* Weight matrices times blocks of sixteen packed rows in AMX's registers. Sums of integers are exact, and what follows is
 * what the other integer kernels do (integer_matrix.h): the bits are the same.
 */
#ifndef KEEPWARM_AMX_MATRIX_H
#define KEEPWARM_AMX_MATRIX_H

#include "integer_codes.h"

#if CAN_USE_AMX
/* sum += activations times codes; `codes` [columns / 4][LANES] come from memory. */
#define AMX_STEP(sum, activations, codes_register, codes) \
    do {                                                  \
        _tile_loadd(codes_register, codes, 64);           \
        _tile_dpbssd(sum, activations, codes_register);   \
    } while (0)

/* Sums [2][2][AMX_ROWS] of 32 columns of two tiles. The second ones of a tile are those of the last sixteen columns. */
INLINE void amx_sums(const Chunk *chunks, int kind, int first, const int32_t *run, ints (*sums)[2][AMX_ROWS]) {
    const words *codes[2] = {chunks[0].codes + first / 4, chunks[1].codes + first / 4};
    _tile_zero(0);
    _tile_zero(1);
    if (GROUP_OF(kind) == 16) {
        _tile_zero(2);
        _tile_zero(3);
        _tile_loadd(6, run, 4 * QUADS);
        AMX_STEP(0, 6, 7, codes[0]);
        AMX_STEP(1, 6, 7, codes[1]);
        _tile_loadd(6, run + QUADS / 2, 4 * QUADS);
        AMX_STEP(2, 6, 7, codes[0] + QUADS / 2);
        AMX_STEP(3, 6, 7, codes[1] + QUADS / 2);
    } else {
        _tile_loadd(4, run, 4 * QUADS);
        AMX_STEP(0, 4, 5, codes[0]);
        AMX_STEP(1, 4, 5, codes[1]);
    }
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(1, sums[1][0], 64);
    if (GROUP_OF(kind) == 16) {
        _tile_stored(2, sums[0][1], 64);
        _tile_stored(3, sums[1][1], 64);
    }
}

/* A block of rows, from `run` on, times `count` unpacked columns of two tiles, added to total [2][SPAN_ROWS]. Rows that there
 * are not get numbers that are never read. `kind` and `has_minimum` are constants wherever this is inlined. */
INLINE void amx_products_of_chunks(const Chunk *chunks, int kind, int has_minimum, int count, const int32_t *run,
                                   floats (*total)[SPAN_ROWS]) {
    const int group = GROUP_OF(kind);
    ints sums[2][2][AMX_ROWS] __attribute__((aligned(64)));
    for (int first = 0; first < count; first += RUN, run += FIELDS * AMX_ROWS) {
        amx_sums(chunks, kind, first, run, sums);
#pragma GCC unroll 16
        for (int r = 0; r < AMX_ROWS; r++)
            for (int i = 0; i < 2; i++) {
                floats part = {0};
                for (int at = 0; at < RUN; at += group) {
                    const int field = sum_field(group, at), place = (first + at) / group;
                    const ints sum = sums[i][at / group][r];
                    if (has_minimum)
                        part = multiply_add(chunks[i].minimum[place], all(as_float(run[field * AMX_ROWS + r])), part);
                    part = multiply_add(__builtin_convertvector(sum, floats), chunks[i].scale[place], part);
                }
                total[i][r] = multiply_add(part, all(as_float(run[SCALE * AMX_ROWS + r])), total[i][r]);
            }
    }
}

/* See `multiply_packed`. */
static void multiply_in_amx(const Matrix *m, int kind, Unpack *unpack, int pair, int rows, const int32_t *packed,
                            float *y, int y_stride, int adds, int ahead) {
    for (int start = 0; start < rows; start += SPAN_ROWS) {
        const int end = rows - start < SPAN_ROWS ? rows : start + SPAN_ROWS;
        floats total[2][SPAN_ROWS] = {{{0}}};
        for (int first = 0; first < m->columns; first += CHUNK) {
            const int count = m->columns - first < CHUNK ? m->columns - first : CHUNK;
            Chunk chunks[2];
            for (int i = 0; i < 2; i++) unpack(m, 2 * pair + i, first, count, start ? 0 : 2 * ahead, 0, chunks + i);
            for (int r = start; r < end; r += AMX_ROWS) {
                const int32_t *run = packed + packed_place(rows, m->columns, r, first, 1);
                floats(*to)[SPAN_ROWS] = (floats(*)[SPAN_ROWS])(total[0] + r - start);
                if (GROUP_OF(kind) == 16)
                    amx_products_of_chunks(chunks, Q6, 1, count, run, to);
                else if (has_minimums(m, kind))
                    amx_products_of_chunks(chunks, Q4, 1, count, run, to);
                else
                    amx_products_of_chunks(chunks, Q4, 0, count, run, to);
            }
        }
        for (int i = 0; i < 2; i++)
            for (int r = start; r < end; r++)
                finish_tile(m, 2 * pair + i, 1, total[i] + (r - start), y + (size_t)r * y_stride, y_stride, adds);
    }
}
#else
static void multiply_in_amx(const Matrix *m, int kind, Unpack *unpack, int pair, int rows, const int32_t *packed,
                            float *y, int y_stride, int adds, int ahead) {}
#endif

#endif
