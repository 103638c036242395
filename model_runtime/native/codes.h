/* The codes of a tile's columns as they lie in words, and the numbers that they stand for. */
#ifndef KEEPWARM_CODES_H
#define KEEPWARM_CODES_H

#include "scales.h"

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

#endif
