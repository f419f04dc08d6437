/* Vectors of LANES floats, the functions of them that C lacks, and sums in a fixed order. Included once per tier. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define KERNEL __attribute__((target(TARGET)))
#define INLINE KERNEL static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef int8_t vb __attribute__((vector_size(LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

INLINE vf splat(float x) { return x - (vf){0}; }

INLINE vf load_whole(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

typedef float vf_anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* `left` numbers are there from p on; what is missing reads as zero. */
INLINE vf load(const float *p, int64_t left) {
    if (left >= LANES) return (vf) * (const vf_anywhere *)p;
#if LANES == 16
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1 << left) - 1), p);
#else
    vf v = {0};
    for (int64_t i = 0; i < left; i++) v[i] = p[i];
    return v;
#endif
}

INLINE void store(float *p, vf v, int64_t left) {
    if (left >= LANES) {
        *(vf_anywhere *)p = (vf_anywhere)v;
        return;
    }
#if LANES == 16
    _mm512_mask_storeu_ps(p, (__mmask16)((1 << left) - 1), (__m512)v);
#else
    for (int64_t i = 0; i < left; i++) p[i] = v[i];
#endif
}

/* The first `left` lanes, zeros after them. */
INLINE vf only(vf v, int64_t left) {
    float a[LANES] = {0};
    store(a, v, left);
    return load(a, LANES);
}

INLINE vf choose(vi condition, vf yes, vf no) { return (vf)((condition & (vi)yes) | (~condition & (vi)no)); }
INLINE vf larger(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf smaller(vf a, vf b) { return choose(a < b, a, b); }
INLINE vf magnitude(vf a) { return (vf)((vi)a & 0x7fffffff); }

INLINE float sum(vf v) {
    float a[LANES];
    memcpy(a, &v, sizeof a);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}

#if LANES == 16
/* The sums of 16 vectors, each in the same order. */
INLINE vf sums(const vf v[16]) {
    __m512 fours[4], pairs[2];
    for (int i = 0; i < 4; i++) {
        __m512 a = (__m512)v[4 * i], b = (__m512)v[4 * i + 1], c = (__m512)v[4 * i + 2], d = (__m512)v[4 * i + 3];
        __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
        __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
        fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)) + _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    }
    for (int i = 0; i < 2; i++)
        pairs[i] = _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x44) +
                   _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xee);
    return (vf)(_mm512_shuffle_f32x4(pairs[0], pairs[1], 0x88) + _mm512_shuffle_f32x4(pairs[0], pairs[1], 0xdd));
}
#endif

INLINE float largest(vf v) {
    float a[LANES];
    memcpy(a, &v, sizeof a);
    for (int i = 1; i < LANES; i++) a[0] = a[i] > a[0] ? a[i] : a[0];
    return a[0];
}

#define ROUND_TO_INTEGER 12582912.0f /* 1.5 * 2^23: adding it pushes the fraction out */

/* To 2 units in the last place; 0 below -87.3. Cody and Waite's reduction, Cephes' polynomial. */
INLINE vf exponential(vf x) {
    vi tiny = x < -87.3f;
    x = smaller(larger(x, splat(-87.3f)), splat(88.0f));
    vf n = x * 1.44269504f + ROUND_TO_INTEGER;
    n -= ROUND_TO_INTEGER;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return choose(tiny, (vf){0}, p * (vf)power);
}

INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }
INLINE vf hyperbolic_tangent(vf x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }

/* The upper half of each float, rounded to nearest even; a NaN stays one. */
INLINE vh to_bf16(vf x) {
    vu u = (vu)x;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu quiet = (u >> 16) | 0x40;
    vu is_nan = (vu)((u & 0x7fffffff) > 0x7f800000);
    return __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), vh);
}

INLINE void store_bf16(uint16_t *p, vf v, int64_t left) {
    vh half = to_bf16(v);
    if (left >= LANES) memcpy(p, &half, sizeof half);
    else
        for (int64_t i = 0; i < left; i++) p[i] = half[i];
}
