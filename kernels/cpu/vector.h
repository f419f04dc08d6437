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

enum { AHEAD = 2048 }; /* bytes of a stream that are asked for before they are needed */

/* Asks for what a stream will need a little later: memory is slow, and does several streams at once. */
INLINE const void *ahead(const void *p, int64_t further) {
    __builtin_prefetch((const char *)p + further);
    return p;
}

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

/* The statements for each vector of n numbers: at `i`, of which `left` are there; all LANES, so that the compiler knows,
   but for the last one. */
#define EACH_VECTOR(i, left, n, ...)                                                                                   \
    do {                                                                                                               \
        int64_t i = 0;                                                                                                 \
        for (; i + LANES <= (n); i += LANES) {                                                                         \
            const int64_t left = LANES;                                                                                \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
        if (i < (n)) {                                                                                                 \
            const int64_t left = (n)-i;                                                                                \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } while (0)

/* The first `left` lanes, zeros after them. */
INLINE vf only(vf v, int64_t left) {
    float a[LANES] = {0};
    store(a, v, left);
    return load(a, LANES);
}

INLINE vf choose(vi condition, vf yes, vf no) { return (vf)((condition & (vi)yes) | (~condition & (vi)no)); }
/* The second where one is NaN. */
#if LANES == 16
INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf smaller(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif LANES == 8
INLINE vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf smaller(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE vf larger(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf smaller(vf a, vf b) { return choose(a < b, a, b); }
#endif
/* a * b + c, rounded once where the processor can. */
INLINE vf fused(vf a, vf b, vf c) {
#if LANES == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}
INLINE vf magnitude(vf a) { return (vf)((vi)a & 0x7fffffff); }

/* Halves are added to each other until one number is left. */
INLINE float sum(vf v) {
    vi lane = {0};
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int half = LANES / 2; half; half /= 2) v += __builtin_shuffle(v, lane + half);
    return v[0];
}

#if LANES == 16
/* The sums of 4 vectors, side by side in each quarter of the result. */
INLINE vf sums_of_4(const vf v[4]) {
    __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
    __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
    __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
    __m512 all = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)) + _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    all += _mm512_shuffle_f32x4(all, all, 0x4e);
    return (vf)(all + _mm512_shuffle_f32x4(all, all, 0xb1));
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
#if LANES == 16
    __mmask16 tiny = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.3f), _CMP_LT_OQ);
#else
    vi tiny = x < -87.3f;
#endif
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
#if LANES == 16
    return (vf)_mm512_maskz_scalef_ps((__mmask16)~tiny, (__m512)p, (__m512)n);
#else
    vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return (vf)(~tiny & (vi)(p * (vf)power));
#endif
}

/* 1 / x to 2 units in the last place, for 1 <= x < 2^127. */
INLINE vf reciprocal(vf x) {
#if LANES == 16
    vf near = (vf)_mm512_rcp14_ps((__m512)x); /* a division takes longer than all the rest of a sigmoid */
    return near + near * (1.0f - x * near);
#else
    return 1.0f / x;
#endif
}

INLINE vf sigmoid(vf x) { return reciprocal(1.0f + exponential(-x)); }
INLINE vf hyperbolic_tangent(vf x) { return 1.0f - 2.0f * reciprocal(exponential(x + x) + 1.0f); }

/* The upper half of each float, rounded to nearest even; a NaN stays one. */
INLINE vh to_bf16(vf x) {
#if LANES == 16
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    vu u = (vu)x;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu quiet = (u >> 16) | 0x40;
    vu is_nan = (vu)((u & 0x7fffffff) > 0x7f800000);
    return __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), vh);
#endif
}

INLINE void store_bf16(uint16_t *p, vf v, int64_t left) {
    vh half = to_bf16(v);
    if (left >= LANES) memcpy(p, &half, sizeof half);
    else
        for (int64_t i = 0; i < left; i++) p[i] = half[i];
}
