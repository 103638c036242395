/* Activations as signed bytes with a scale for each 32 columns, laid out as the integer kernels read them.
 *
 * Rows are packed in blocks of `width` rows, one behind the other. A block has, for each 32 columns, FIELDS fields of
 * `width` words side by side, a word for each row: eight times four bytes of codes, then the scale and the sums of codes.
 * So a kernel reads one stream, whatever the number of rows. In blocks for AMX the codes of a row lie side by side instead.
 * A row's numbers depend on that row alone, and on nothing that processors do differently.
 */
#ifndef KEEPWARM_ACTIVATIONS_H
#define KEEPWARM_ACTIVATIONS_H

#include <float.h>
#include <math.h>

#include "amx.h"
#include "vectors.h"

#define RUN 32                            /* columns that share a scale */
#define QUADS (RUN / 4)                   /* words of codes */
#define BLOCK_ROWS (LANES == 16 ? 12 : 4) /* of a full block: a sum each in registers */
#define LARGEST_CODE 127                  /* and the smallest is -127 */
#define LEAST_ACTIVATION 1e-30f           /* what is smaller becomes 0: 127 / x would not be finite */

/* The fields: `SCALE` and the sums of codes are floats, `LIFT` is an integer, -128 times the sum. */
enum { SCALE = QUADS, SUM, FIRST_SUM, SECOND_SUM, LIFT, FIELDS };

INLINE float as_float(int32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

INLINE int32_t as_bits(float f) {
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* Whether blocks of this width are those of AMX. */
INLINE int is_for_amx(int width) { return width == AMX_ROWS; }

/* Rows of a block: fewer than `BLOCK_ROWS` where there are no more, and AMX_ROWS from so many on, where there is AMX. */
INLINE int width_of(int rows) {
    if (has_amx && rows >= AMX_ROWS) return AMX_ROWS;
    return rows < 1 ? 1 : rows < BLOCK_ROWS ? rows : BLOCK_ROWS;
}

/* Words that `rows` packed rows take. */
static size_t packed_size(int rows, int columns) {
    const int width = width_of(rows);
    return (size_t)((rows + width - 1) / width) * width * (columns / RUN) * FIELDS;
}

/* Words that `rows` packed rows take, or any number of them. Where AMX takes over, fewer rows take more blocks. */
static size_t packed_size_up_to(int rows, int columns) {
    const size_t all = packed_size(rows, columns), fewer = packed_size(AMX_ROWS - 1, columns);
    return rows >= AMX_ROWS && fewer > all ? fewer : all;
}

/* Where the fields of a row's block begin for the 32 columns from `column` on. */
INLINE size_t packed_place(int rows, int columns, int row, int column) {
    const int width = width_of(rows);
    return ((size_t)(row / width) * (columns / RUN) + column / RUN) * FIELDS * width;
}

/* Packs 32 columns x of row `row` of a block. code = round(127 x / the largest |x|), ties to even: rounded after the product is. A number
 * that is infinite or none makes the scale one that is neither finite, so that it is not lost. */
static void pack_run(const float *x, int32_t *block, int row, int width) {
    int32_t *to = block + row;
    int32_t bits[RUN], codes[RUN], most = 0, first = 0, second = 0;
    int8_t bytes[RUN];
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < RUN; i++) { /* magnitudes have the order of their bits, and numbers that are none are largest */
        const int32_t magnitude = bits[i] & 0x7fffffff;
        most = magnitude > most ? magnitude : most;
    }
    const float largest = as_float(most);
    const float inverse = largest > LEAST_ACTIVATION && largest <= FLT_MAX ? LARGEST_CODE / largest : 0;
    for (int i = 0; i < RUN; i++) codes[i] = inverse > 0 ? (int32_t)rintf(x[i] * inverse) : 0;
    for (int i = 0; i < RUN / 2; i++) first += codes[i], second += codes[i + RUN / 2];
    for (int i = 0; i < RUN; i++) bytes[i] = (int8_t)codes[i];
    if (is_for_amx(width))
        memcpy(block + row * QUADS, bytes, sizeof bytes);
    else
        for (int i = 0; i < QUADS; i++) memcpy(to + i * width, bytes + 4 * i, 4);
    to[SCALE * width] = as_bits(largest / LARGEST_CODE);
    to[SUM * width] = as_bits((float)(first + second));
    to[FIRST_SUM * width] = as_bits((float)first);
    to[SECOND_SUM * width] = as_bits((float)second);
    to[LIFT * width] = -128 * (first + second);
}

/* Packs `count` columns of row `row` of `rows`, from `column` on, both multiples of 32: x has them. */
static void pack(const float *x, int rows, int columns, int row, int column, int count, int32_t *packed) {
    const int width = width_of(rows);
    for (int c = 0; c < count; c += RUN)
        pack_run(x + c, packed + packed_place(rows, columns, row, column + c), row % width, width);
}

#endif
