/* Products of four codes of weights and four of activations, summed in a lane: exact, the same on every processor. */
#ifndef KEEPWARM_DOTS_H
#define KEEPWARM_DOTS_H

#include "vectors.h"
/* Processors that multiply bytes without sign by bytes with one: codes with a sign are lifted by 128, and the sum begins
 * with what that adds too much. */
#if defined(__AVX512VNNI__) || (LANES == 8 && defined(__AVXVNNI__))
#define LIFTS 1
#else
#define LIFTS 0
#endif
#define LIFT_BITS (LIFTS ? 0x80808080u : 0)

#if defined(__AVX2__) || defined(__AVX512BW__) || defined(__ARM_FEATURE_DOTPROD)
#define HAS_BYTE_PRODUCTS 1
#else
#define HAS_BYTE_PRODUCTS 0
#endif

/* Steps of the loops around products: all of them. Where products take many instructions, that only takes long to compile. */
enum { UNROLLED = HAS_BYTE_PRODUCTS ? 12 : 1 };

/* sum + the products. `codes` are four bytes a lane: 0 to 127, or with a sign if `is_signed` (lifted if LIFTS); `x` has
 * four signed bytes, none of which is -128. */
INLINE ints dot(ints sum, words codes, int32_t x, int is_signed) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(x));
#elif defined(__AVX512BW__)
    __m512i left = (__m512i)codes, right = _mm512_set1_epi32(x);
    if (is_signed) { /* 2 * 128 * 127 fits into sixteen bits */
        right = _mm512_mask_sub_epi8(right, _mm512_movepi8_mask(left), _mm512_setzero_si512(), right);
        left = _mm512_abs_epi8(left);
    }
    const __m512i pairs = _mm512_maddubs_epi16(left, right);
    return sum + (ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif LANES == 8 && defined(__AVXVNNI__)
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, _mm256_set1_epi32(x));
#elif LANES == 8 && defined(__AVX2__)
    __m256i left = (__m256i)codes, right = _mm256_set1_epi32(x);
    if (is_signed) {
        right = _mm256_sign_epi8(right, left);
        left = _mm256_abs_epi8(left);
    }
    const __m256i pairs = _mm256_maddubs_epi16(left, right);
    return sum + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
    int32x4_t sums[2];
    int8x16_t left[2];
    const int8x16_t right = vreinterpretq_s8_s32(vdupq_n_s32(x));
    memcpy(sums, &sum, sizeof sum), memcpy(left, &codes, sizeof codes);
    for (int i = 0; i < 2; i++) sums[i] = vdotq_s32(sums[i], left[i], right);
    memcpy(&sum, sums, sizeof sum);
    return sum;
#else
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++)
        sum += ((ints)(codes << (24 - 8 * b)) >> 24) * ((int32_t)((uint32_t)x << (24 - 8 * b)) >> 24);
    return sum;
#endif
}

/* Where bytes are multiplied in pairs, into the halves of a lane, a half holds the sum of more than one pair of small
 * codes: they are widened together. */
#if (defined(__AVX512BW__) && !defined(__AVX512VNNI__)) || (LANES == 8 && defined(__AVX2__) && !defined(__AVXVNNI__))
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif

typedef int16_t pairs __attribute__((vector_size(4 * LANES)));

/* Products of codes without sign and activations, each two added up. */
INLINE pairs products_in_pairs(words codes, int32_t x) {
#if HAS_PAIRS && LANES == 16
    return (pairs)_mm512_maddubs_epi16((__m512i)codes, _mm512_set1_epi32(x));
#elif HAS_PAIRS
    return (pairs)_mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(x));
#else
    return (pairs){0};
#endif
}

/* The two halves of each lane, added up. */
INLINE ints sum_of_pairs(pairs sums) {
#if HAS_PAIRS && LANES == 16
    return (ints)_mm512_madd_epi16((__m512i)sums, _mm512_set1_epi16(1));
#elif HAS_PAIRS
    return (ints)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1));
#else
    return (ints){0};
#endif
}

/* table[place] of the four places a lane, which are 0 to 15. `table` has sixteen bytes. */
INLINE words looked_up(const int8_t *table, words places) {
#if defined(__AVX512BW__)
    const __m512i all_lanes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
    return (words)_mm512_shuffle_epi8(all_lanes, (__m512i)places);
#elif LANES == 8 && defined(__AVX2__)
    const __m256i all_lanes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return (words)_mm256_shuffle_epi8(all_lanes, (__m256i)places);
#else
    uint8_t bytes[4 * LANES];
    memcpy(bytes, &places, sizeof bytes);
    for (int i = 0; i < 4 * LANES; i++) bytes[i] = (uint8_t)table[bytes[i]];
    memcpy(&places, bytes, sizeof bytes);
    return places;
#endif
}

#endif
