/* The codes of weights as the integer kernels multiply them: four columns to the bytes of a lane. */
#ifndef KEEPWARM_INTEGER_CODES_H
#define KEEPWARM_INTEGER_CODES_H

#include "activations.h"
#include "dots.h"
#include "matrix.h"

#define SPAN_ROWS 96 /* that share the codes of a chunk while they are in the first cache */

INLINE int has_sign(int kind) { return kind == Q8 || kind == LEVELS; }

/* The codes, or levels, of columns 4 i to 4 i + 3 of a word, a byte each; `high` has their upper bits. Those with a
 * sign are combined with `lift`. */
INLINE words quad_of(const Matrix *m, int kind, words w, words high, int i, uint32_t lift) {
    switch (kind) {
    case Q2: return (w >> (2 * i)) & 0x03030303;
    case Q3: return ((w >> (2 * i)) & 0x03030303) | ((high >> i) & 0x01010101) << 2;
    case Q5: return ((w >> (4 * i)) & 0x0f0f0f0f) | ((high >> i) & 0x01010101) << 4;
    case Q6: return ((w >> (4 * i)) & 0x0f0f0f0f) | ((high >> (2 * i)) & 0x03030303) << 4;
    case Q8: return w ^ lift;
    case LEVELS: return looked_up(m->level_bytes, (w >> (4 * i)) & 0x0f0f0f0f) ^ lift;
    default: return (w >> (4 * i)) & 0x0f0f0f0f;
    }
}

/* The scale of the integers that a kind's levels are multiplied as. */
INLINE floats integer_scale(const Matrix *m, int kind, floats scale) {
    return kind == LEVELS ? scale * m->unit : scale;
}

/* The sum of products of activations whose parts were multiplied apart. */
INLINE ints joined_parts(ints upper, ints lower) { return (upper << PART_BITS) + lower; }

/* The largest code of a kind without sign. */
INLINE int largest_of_kind(int kind) {
    return kind == Q2 ? 3 : kind == Q3 ? 7 : kind == Q4 ? 15 : kind == Q5 ? 31 : 63;
}

/* Quads whose products a half of a lane can hold; 1: they are widened each. */
INLINE int quads_of_a_half(int kind) {
    return !HAS_PAIRS || has_sign(kind) ? 1 : INT16_MAX / (2 * LARGEST_CODE * largest_of_kind(kind));
}

/* A sum of products of codes and activations. `held` are those of the last quads, not widened yet. */
typedef struct {
    ints widened;
    pairs held;
} Sum;

INLINE Sum begun(ints from) { return (Sum){from, {0}}; }

/* Adds the products of a group's quad, the `place`-th of them. `kind` and `place` are constants wherever this is inlined. */
INLINE void add_products(Sum *sum, int kind, int place, words quad, int32_t x) {
    const int most = quads_of_a_half(kind);
    if (most == 1) {
        sum->widened = dot(sum->widened, quad, x, has_sign(kind));
        return;
    }
    sum->held = place % most ? sum->held + products_in_pairs(quad, x) : products_in_pairs(quad, x);
    if (place % most == most - 1) sum->widened += sum_of_pairs(sum->held);
}

/* The sum, once a whole group's products are in it. */
INLINE ints ended(Sum sum, int kind) {
    return (GROUP_OF(kind) / 4) % quads_of_a_half(kind) ? sum.widened + sum_of_pairs(sum.held) : sum.widened;
}

INLINE ints first_sum(int kind, const int32_t *run, int width) {
    return (LIFTS && has_sign(kind) ? run[LIFT * width] : 0) - (ints){0};
}

/* The field of `run` that has the sum of the activations' codes for its columns from `column` on. */
INLINE int sum_field(int group, int column) { return group == RUN ? SUM : column ? SECOND_SUM : FIRST_SUM; }

/* A tile's codes and scales of `CHUNK` columns, unpacked. */
typedef struct {
    words codes[CHUNK / 4];
    floats scale[CHUNK / 16], minimum[CHUNK / 16];
} Chunk;

/* Unpacks `count` columns of a tile, from `first` on; `ahead` as in `multiply_few`, `lift` as in `quad_of`. */
typedef void Unpack(const Matrix *m, int tile, int first, int count, int ahead, uint32_t lift, Chunk *to);

INLINE void unpack(const Matrix *m, int kind, int tile, int first, int count, int ahead, uint32_t lift, Chunk *to) {
    const int group = GROUP_OF(kind), per_word = PER_WORD(kind);
    floats scale = {0}, minimum = {0};
    Factors factors = no_factors();
    for (int at = 0; at < count; at += group) {
        if (at == 0 || begins_run(m, first + at)) {
            read_grid(m, kind, tile, first + at, &scale, &minimum, &factors);
            scale = integer_scale(m, kind, scale);
            if (ahead) fetch_grid(m, kind, tile + ahead, first + at);
        }
        to->scale[at / group] = scale, to->minimum[at / group] = minimum;
        for (int c = at; c < at + group; c += per_word) {
            const words w = word_of(m, kind, tile, first + c, ahead);
            const words high = has_high(kind) ? high_of(m, kind, tile, first + c, ahead) : (words){0};
#pragma GCC unroll UNROLLED
            for (int q = 0; q < per_word / 4; q++) to->codes[c / 4 + q] = quad_of(m, kind, w, high, q, lift);
        }
    }
}

#endif
