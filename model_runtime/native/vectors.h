/* As many float lanes as a register of the processor has, but at least eight: GCC and clang lower the vector types to what
 * the machine has. Types wider than a register go through memory: sixteen lanes took four times as long with AVX2. */
#ifndef KEEPWARM_VECTORS_H
#define KEEPWARM_VECTORS_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__F16C__) || defined(__FMA__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES)));

#define INLINE static inline __attribute__((always_inline))

#if LANES == 16
#define LANE_NUMBERS ((ints){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#else
#define LANE_NUMBERS ((ints){0, 1, 2, 3, 4, 5, 6, 7})
#endif

INLINE floats load(const float *from) {
    floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* Prefetches the cache line of this address, which may be outside our memory. */
INLINE void fetch_line(const void *address) { __builtin_prefetch(address, 0, 2); }

INLINE void store(float *to, floats v) { memcpy(to, &v, sizeof v); }

/* a where the mask's lanes are all ones, b where they are 0. */
INLINE floats choose(ints mask, floats a, floats b) { return (floats)(((ints)a & mask) | ((ints)b & ~mask)); }

INLINE floats all(float x) { return x - (floats){0}; }

/* a * b + c, rounded once where the processor can. Left to the compiler it is rounded once in one place and twice in
 * another (GCC 12 with AVX2), and a row's bits would depend on the rows beside it. */
INLINE floats multiply_add(floats a, floats b, floats c) {
#if defined(__AVX512F__)
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    float32x4_t left[2], right[2], sum[2];
    memcpy(left, &a, sizeof a), memcpy(right, &b, sizeof b), memcpy(sum, &c, sizeof c);
    for (int i = 0; i < 2; i++) sum[i] = vfmaq_f32(sum[i], left[i], right[i]);
    memcpy(&c, sum, sizeof c);
    return c;
#else
    return a * b + c;
#endif
}

/* IEEE half-precision numbers. */
INLINE floats load_halves(const uint16_t *from) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__F16C__)
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    halves h;
    memcpy(&h, from, sizeof h);
    words w = __builtin_convertvector(h, words);
    /* Exponent and fraction keep their order when moved up by 13 bits; the factor mends the bias, subnormals too. */
    words magnitude = (w & 0x7fff) << 13;
    floats value = (floats)magnitude * 0x1p112f;
    return (floats)((words)value | ((w & 0x8000) << 16));
#endif
}

/* bfloat16: the upper half of a float. */
INLINE floats load_brains(const uint16_t *from) {
    halves h;
    memcpy(&h, from, sizeof h);
    return (floats)(__builtin_convertvector(h, words) << 16);
}

/* Signed bytes. */
INLINE ints load_integers(const int8_t *from) {
#if defined(__AVX512F__)
    return (ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif defined(__AVX2__)
    return (ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    bytes b;
    memcpy(&b, from, sizeof b);
    return __builtin_convertvector(b, ints);
#endif
}

/* from[place] of every lane. */
INLINE floats gathered(const float *from, ints place) {
#if defined(__AVX512F__)
    return (floats)_mm512_i32gather_ps((__m512i)place, from, 4);
#elif defined(__AVX2__)
    return (floats)_mm256_i32gather_ps(from, (__m256i)place, 4);
#else
    floats v;
    for (int i = 0; i < LANES; i++) v[i] = from[place[i]];
    return v;
#endif
}

/* from[place], of 256 numbers: sixteen places take 64 steps of a gather, and half as many of these. */
INLINE floats looked_up_256(const float *from, ints place) {
#if defined(__AVX512F__)
    __m512 found[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        found[i] =
            _mm512_permutex2var_ps(_mm512_loadu_ps(from + 32 * i), (__m512i)place, _mm512_loadu_ps(from + 32 * i + 16));
#pragma GCC unroll 3
    for (int bit = 5, left = 4; left; bit++, left /= 2) {
        const __mmask16 upper = _mm512_test_epi32_mask((__m512i)place, _mm512_set1_epi32(1 << bit));
        for (int i = 0; i < left; i++) found[i] = _mm512_mask_blend_ps(upper, found[2 * i], found[2 * i + 1]);
    }
    return (floats)found[0];
#else
    floats v;
    for (int i = 0; i < LANES; i++) v[i] = from[place[i]];
    return v;
#endif
}

/* Whether any lane differs. */
INLINE int differ(ints a, ints b) {
#if defined(__AVX512F__)
    return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8(_mm256_cmpeq_epi32((__m256i)a, (__m256i)b)) != -1;
#else
    return memcmp(&a, &b, sizeof a) != 0;
#endif
}

INLINE floats load_bytes(const int8_t *from) { return __builtin_convertvector(load_integers(from), floats); }

/* Rounded to the nearest half, ties to even; what lies outside its range becomes its largest number. */
INLINE void store_halves(uint16_t *to, floats v) {
    const floats most = all(65504.0f);
    v = choose(v > most, most, choose(v < -most, -most, v));
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    const words sign = (words)v & 0x80000000, magnitude = (words)v & 0x7fffffff;
    /* Below 2^-14 the sum with 0.5 leaves a subnormal half in the low bits, rounded by the addition itself. */
    const words tiny = (words)((floats)magnitude + 0.5f) - 0x3f000000;
    const words usual = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const words is_tiny = (words)(magnitude < 0x38800000);
    const halves h = __builtin_convertvector((tiny & is_tiny) | (usual & ~is_tiny) | (sign >> 16), halves);
    memcpy(to, &h, sizeof h);
#endif
}

/* e^x for x <= 0, relative error below 3e-7; 0 below -87. Cephes' polynomial on [-ln2/2, ln2/2] (S. L. Moshier). */
INLINE floats exp_of(floats x) {
    ints tiny = x < -87.0f;
    floats n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's low bits are the rounded integer */
    ints power = (ints)n << 23;
    n = n - 12582912.0f;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = x * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
    return (floats)(((ints)p + power) & ~tiny);
}

INLINE float sum_of(floats v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

INLINE float largest_of(floats v) {
    float best = v[0];
    for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
    return best;
}

#endif
