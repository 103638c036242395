/* A weight matrix as it lies in memory, and the scales of its codes.
 *
 * Everything is in tiles of LANES outputs, which lie side by side: an array "of runs" is [N/LANES][runs][LANES], one entry
 * for each run of 1 << shift columns, the last one of which may be shorter; one "of blocks" has an entry for each 256
 * columns.
 */
#ifndef KEEPWARM_SCALES_H
#define KEEPWARM_SCALES_H

#include "vectors.h"

#define BLOCK_SHIFT 8   /* super-blocks have 256 columns */
#define NESTED_RUNS 256 /* scales that share a factor, counted along the rows (bitsandbytes) */

/* Codes of so many bits; LEVELS: places in a table of sixteen numbers, LEVELS16 where 16 columns share a scale; FP8: numbers of eight bits (E4M3); INT8: codes of
 * eight bits whose products with the scale are rounded, and then times 1/127 (bitsandbytes); HALF, BRAIN (bfloat16),
 * SINGLE: numbers. */
enum { Q2, Q3, Q4, Q5, Q6, Q8, LEVELS, FP8, INT8, LEVELS16, HALF, BRAIN, SINGLE };

/* How scales are stored. HALVES: as halves. SUPER: a signed byte times its block's half. PAIRS: the low four bits of a byte
 * times the block's half, the minimum in its high ones. POWERS: exponents of 2 (E8M0, less one). FLOATS: as floats.
 * NESTED: places in a table of 256 numbers, times a factor that 256 scales share, plus an offset. BRAINS: as bfloat16. */
enum { HALVES, SUPER, PAIRS, POWERS, FLOATS, NESTED, BRAINS };

typedef struct {
    const void *codes;    /* words [N/LANES][..][LANES], in the order of `shift_of`. Q2, Q3: two bits of sixteen columns
                                 a word; Q4, Q5, Q6, LEVELS: four bits of eight; Q8, FP8, INT8: four bytes.
                                 HALF, BRAIN, SINGLE: numbers [N/LANES][K][LANES] */
    const uint32_t *high; /* upper bits of codes, words like codes. Q3, Q5: one bit of 32 columns; Q6: two of sixteen */
    const void *scale;    /* of runs */
    const void *minimum;  /* of runs, as scale is; NULL: -offset times the scale */
    const int8_t *zero;   /* of runs: codes that mean 0, where each run has its own; NULL: `offset` for all */
    const uint16_t *super_scale, *super_minimum; /* SUPER, PAIRS: halves of blocks */
    const float *levels;                         /* [16] */
    const int8_t *level_bytes;                   /* [16]: the nearest multiples of `unit`, from -127 to 127 */
    const float *nested;                         /* NESTED: the table [256], the offset, then the factors */
    const float *bias;                           /* [N], or NULL */
    const int32_t *order;                        /* [columns], or NULL: which input each column belongs to */
    float offset;                                /* what is taken off a code, where there are no minimums */
    float unit;                                  /* 1 where levels are whole numbers */
    int32_t kind, scales, shift, rows, columns;
    int32_t takes_bytes; /* that activations are packed in (activations.h), 1 or 2; 0: they are floats */
} Matrix;

INLINE int has_high(int kind) { return kind == Q3 || kind == Q5 || kind == Q6; }

/* How a kind's scales are stored: known where the kind has one way only. */
INLINE int scales_of(const Matrix *m, int kind) {
    return kind == Q2 ? PAIRS : kind == Q3 || kind == Q6 || kind == LEVELS16 ? SUPER : m->scales;
}

INLINE int scale_bytes(int scales) { return scales == HALVES || scales == BRAINS ? 2 : scales == FLOATS ? 4 : 1; }

/* Whether a column is the first one of its scale's. */
INLINE int begins_run(const Matrix *m, int column) { return !(column & ((1 << m->shift) - 1)); }

/* Runs of a row. */
INLINE int runs_of(const Matrix *m) { return ((m->columns - 1) >> m->shift) + 1; }

/* Whether any of its minimums is not 0. */
INLINE int has_minimums(const Matrix *m, int kind) { return kind == Q2 || m->minimum || m->zero || m->offset != 0; }

/* 2^(e - 128): half of what E8M0 says, since the levels of FP4 are doubled. */
INLINE floats power_of(words e) {
    const words normal = (e - 1) << 23, tiny = (words){0} + 0x00200000;
    const ints is_tiny = (ints)(e < 2);
    return choose(is_tiny, (floats)(tiny << (e & 1)), (floats)normal);
}

/* Of NESTED scales: the factors of a tile that were read last, and their places: most runs have those of the run before. */
typedef struct {
    ints place;
    floats value;
} Factors;

INLINE Factors no_factors(void) { return (Factors){(ints){0} - 1, {0}}; }

/* Rounded twice, as bitsandbytes does: a sum with zero rounds the product on every processor. */
INLINE floats nested_scale(const Matrix *m, const uint8_t *places, int tile, int run, Factors *last) {
    const ints place = load_integers((const int8_t *)places) & 255;
    const ints factor_place = ((tile * LANES + LANE_NUMBERS) * runs_of(m) + run) / NESTED_RUNS;
    if (differ(factor_place, last->place)) *last = (Factors){factor_place, gathered(m->nested + 257, factor_place)};
    return multiply_add(looked_up_256(m->nested, place), last->value, (floats){0}) + all(m->nested[256]);
}

/* Scale and minimum of a tile's outputs for the run that has `column`. Every product here is exact in float32: a half has
 * 11 bits, a byte 8, an offset is a power of two. */
INLINE void read_grid(const Matrix *m, int kind, int tile, int column, floats *scale, floats *minimum, Factors *last) {
    const size_t run = ((size_t)tile * runs_of(m) + (column >> m->shift)) * LANES;
    const size_t block = ((size_t)tile * (m->columns >> BLOCK_SHIFT) + (column >> BLOCK_SHIFT)) * LANES;
    const uint8_t *bytes = (const uint8_t *)m->scale + run;
    switch (scales_of(m, kind)) {
    case HALVES:
        *scale = load_halves((const uint16_t *)m->scale + run);
        if (m->minimum) *minimum = load_halves((const uint16_t *)m->minimum + run);
        break;
    case SUPER:
        *scale = load_bytes((const int8_t *)bytes) * load_halves(m->super_scale + block);
        if (m->minimum)
            *minimum = load_bytes((const int8_t *)m->minimum + run) * -load_halves(m->super_minimum + block);
        break;
    case PAIRS: {
        const words pair = (words)load_integers((const int8_t *)bytes);
        *scale = __builtin_convertvector((ints)(pair & 15), floats) * load_halves(m->super_scale + block);
        *minimum = __builtin_convertvector((ints)((pair >> 4) & 15), floats) * -load_halves(m->super_minimum + block);
        return;
    }
    case POWERS: *scale = power_of((words)load_integers((const int8_t *)bytes) & 255); break;
    case FLOATS: *scale = load((const float *)m->scale + run); break;
    case BRAINS: *scale = load_brains((const uint16_t *)m->scale + run); break;
    default: *scale = nested_scale(m, bytes, tile, column >> m->shift, last);
    }
    if (m->zero)
        *minimum = *scale * -load_bytes(m->zero + run);
    else if (!m->minimum)
        *minimum = *scale * -m->offset;
}

/* Prefetches what `read_grid` will read. */
INLINE void fetch_grid(const Matrix *m, int kind, int tile, int column) {
    const int scales = scales_of(m, kind);
    const size_t run = ((size_t)tile * runs_of(m) + (column >> m->shift)) * LANES;
    const size_t block = ((size_t)tile * (m->columns >> BLOCK_SHIFT) + (column >> BLOCK_SHIFT)) * LANES;
    fetch_line((const char *)m->scale + run * scale_bytes(scales));
    if (m->minimum) fetch_line((const char *)m->minimum + run * scale_bytes(scales));
    if (m->zero) fetch_line(m->zero + run);
    if (scales == SUPER || scales == PAIRS) fetch_line(m->super_scale + block);
    if (scales == PAIRS || (scales == SUPER && m->super_minimum)) fetch_line(m->super_minimum + block);
}

#endif
