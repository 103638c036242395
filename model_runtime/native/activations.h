/* Activations as whole numbers of one byte or two, with a scale for each 32 columns, as the integer kernels read them.
 *
 * Rows are packed in blocks of `width` rows, one behind the other. A block has, for each 32 columns, FIELDS fields of
 * `width` words side by side, a word for each row: eight times four bytes of codes, then the scale and the sums of codes,
 * and for codes of two bytes eight times four of their lower parts: a code is PART times the upper part plus the lower one.
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
#define LARGEST_CODE 127                  /* of one byte, and the smallest is -127 */
#define PART_BITS 7
#define PART (1 << PART_BITS)
#define LARGEST_WIDE 16319 /* of two bytes: 127 * PART + 63. Neither part is ever -128, which no product could take */
#define LEAST_ACTIVATION 1e-30f /* what is smaller becomes 0: a code / x would not be finite */

/* The fields: `SCALE` and the sums of codes are floats, `LIFT` is an integer, -128 times the sum. */
enum { SCALE = QUADS, SUM, FIRST_SUM, SECOND_SUM, LIFT, FIELDS, LOWER = FIELDS, WIDE_FIELDS = LOWER + QUADS };

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

/* Fields of a block whose codes have so many bytes. */
INLINE int fields_of(int bytes) { return bytes == 2 ? WIDE_FIELDS : FIELDS; }

/* Rows of a block: fewer than `BLOCK_ROWS` where there are no more, and AMX_ROWS of one byte from so many on, where there
 * is AMX. */
INLINE int width_of(int rows, int bytes) {
    if (has_amx && rows >= AMX_ROWS && bytes == 1) return AMX_ROWS;
    return rows < 1 ? 1 : rows < BLOCK_ROWS ? rows : BLOCK_ROWS;
}

/* Words that `rows` packed rows take. */
static size_t packed_size(int rows, int columns, int bytes) {
    const int width = width_of(rows, bytes);
    return (size_t)((rows + width - 1) / width) * width * (columns / RUN) * fields_of(bytes);
}

/* Words that `rows` packed rows take, or any number of them. Where AMX takes over, fewer rows take more blocks. */
static size_t packed_size_up_to(int rows, int columns, int bytes) {
    const size_t all = packed_size(rows, columns, bytes), fewer = packed_size(AMX_ROWS - 1, columns, bytes);
    return rows >= AMX_ROWS && fewer > all ? fewer : all;
}

/* Where the fields of a row's block begin for the 32 columns from `column` on. */
INLINE size_t packed_place(int rows, int columns, int row, int column, int bytes) {
    const int width = width_of(rows, bytes);
    return ((size_t)(row / width) * (columns / RUN) + column / RUN) * fields_of(bytes) * width;
}

/* Packs 32 columns x of row `row` of a block. code = round(the largest code * x / the largest |x|), ties to even: rounded after
 * the product is. A number that is infinite or none makes the scale one that is neither finite, so that it is not lost.
 * `bytes` is a constant wherever this is inlined. */
INLINE void pack_run(const float *x, int32_t *block, int row, int width, int bytes) {
    const int largest_code = bytes == 2 ? LARGEST_WIDE : LARGEST_CODE;
    int32_t *to = block + row;
    int32_t bits[RUN], codes[RUN], most = 0, first = 0, second = 0;
    int8_t parts[RUN], lower[RUN];
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < RUN; i++) { /* magnitudes have the order of their bits, and numbers that are none are largest */
        const int32_t magnitude = bits[i] & 0x7fffffff;
        most = magnitude > most ? magnitude : most;
    }
    const float largest = as_float(most);
    const float inverse = largest > LEAST_ACTIVATION && largest <= FLT_MAX ? largest_code / largest : 0;
    for (int i = 0; i < RUN; i++) codes[i] = inverse > 0 ? (int32_t)rintf(x[i] * inverse) : 0;
    for (int i = 0; i < RUN / 2; i++) first += codes[i], second += codes[i + RUN / 2];
    if (bytes == 2) {
        for (int i = 0; i < RUN; i++) parts[i] = (int8_t)((codes[i] + PART / 2) >> PART_BITS);
        for (int i = 0; i < RUN; i++) lower[i] = (int8_t)(codes[i] - parts[i] * PART);
        for (int i = 0; i < QUADS; i++) memcpy(to + (LOWER + i) * width, lower + 4 * i, 4);
    } else {
        for (int i = 0; i < RUN; i++) parts[i] = (int8_t)codes[i];
    }
    if (bytes == 1 && is_for_amx(width))
        memcpy(block + row * QUADS, parts, sizeof parts);
    else
        for (int i = 0; i < QUADS; i++) memcpy(to + i * width, parts + 4 * i, 4);
    to[SCALE * width] = as_bits(largest / largest_code);
    to[SUM * width] = as_bits((float)(first + second));
    to[FIRST_SUM * width] = as_bits((float)first);
    to[SECOND_SUM * width] = as_bits((float)second);
    to[LIFT * width] = -128 * (first + second);
}

static void pack_byte_run(const float *x, int32_t *block, int row, int width) { pack_run(x, block, row, width, 1); }

static void pack_wide_run(const float *x, int32_t *block, int row, int width) { pack_run(x, block, row, width, 2); }

/* Packs `count` columns of row `row` of `rows`, from `column` on, both multiples of 32: x has them. */
static void pack(const float *x, int rows, int columns, int row, int column, int count, int bytes, int32_t *packed) {
    const int width = width_of(rows, bytes);
    for (int c = 0; c < count; c += RUN)
        (bytes == 2 ? pack_wide_run : pack_byte_run)(
            x + c, packed + packed_place(rows, columns, row, column + c, bytes), row % width, width);
}

#endif
