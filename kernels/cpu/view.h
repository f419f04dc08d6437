/* A row of logits or a part of it, moved together: the weights of what is left, and what a floor or a cutoff keeps. */

#include <float.h>

enum { NEAR = 256 };

typedef struct {
    const float *x;     /* logits, in the order of ids */
    const int32_t *ids; /* NULL: of the row itself */
    int64_t n;
} View;

typedef struct {
    float *x, *w, *keys, *peaks; /* logits moved together; weights; what is searched; the largest of each block */
    int32_t *ids;
    double *sums; /* weights of each block */
} Work;

/* --- what vector.h lacks ------------------------------------------------------------------------------------------ */

/* One bit a lane. */
INLINE uint32_t bits_of(vi condition) {
#if LANES == 16
    return _mm512_movepi32_mask((__m512i)condition);
#elif LANES == 8
    return (uint32_t)_mm256_movemask_ps((__m256)condition);
#else
    uint32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint32_t)(condition[i] & 1) << i;
    return bits;
#endif
}

INLINE uint32_t first_lanes(int64_t left) { return left >= LANES ? (1u << (LANES - 1) << 1) - 1 : (1u << left) - 1; }

/* The lanes of the bits, moved together; writes up to LANES, and says how many count. */
INLINE int64_t squeeze(int32_t *to, vi v, uint32_t bits) {
#if LANES == 16
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)v));
#else
    int32_t lanes[LANES];
    memcpy(lanes, &v, sizeof lanes);
    int64_t at = 0;
    for (uint32_t rest = bits; rest; rest &= rest - 1) memcpy(to + at++, lanes + __builtin_ctz(rest), sizeof *to);
#endif
    return __builtin_popcount(bits);
}

INLINE vi lane_numbers(void) {
    vi v;
    for (int i = 0; i < LANES; i++) v[i] = i;
    return v;
}

/* v where the bit is 1, elsewhere impossible. */
INLINE vf only_bits(vf v, uint32_t bits) {
#if LANES == 16
    return (vf)_mm512_mask_blend_ps((__mmask16)bits, (__m512)splat(-INFINITY), (__m512)v);
#else
    vi own = ((vi){0} + 1) << lane_numbers();
    return choose((own & (int32_t)bits) != 0, v, splat(-INFINITY));
#endif
}

static int64_t blocks_of(int64_t n) { return (n + NEAR - 1) / NEAR; }

/* --- moving together ---------------------------------------------------------------------------------------------- */

/* Logits and ids of the bits, from the view's i on, to the work's `kept` on; how many. What is written has been read
   before, so the view may be the work's own. */
INLINE int64_t move(const View *view, int64_t i, int64_t left, vi lanes, uint32_t bits, int64_t kept, Work *work) {
    vi ids = view->ids ? (vi)load((const float *)(view->ids + i), left) : lanes + (int32_t)i;
    squeeze((int32_t *)work->x + kept, (vi)load(view->x + i, left), bits);
    return squeeze(work->ids + kept, ids, bits);
}

/* Logits from `floor` on, moved together. */
KERNEL static void narrow(View *view, Work *work, float floor) {
    vi lanes = lane_numbers();
    int64_t kept = 0, n = view->n;
    for (int64_t start = 0; start < n; start += NEAR) {
        if (!(work->peaks[start / NEAR] >= floor)) continue;
        int64_t stop = start + NEAR < n ? start + NEAR : n;
        for (int64_t i = start; i < stop; i += LANES) {
            uint32_t bits = bits_of(load(view->x + i, stop - i) >= floor) & first_lanes(stop - i);
            if (bits) kept += move(view, i, stop - i, lanes, bits, kept, work);
        }
    }
    *view = (View){work->x, work->ids, kept};
}

/* What has a key, of [n], from `cutoff` on, moved together. */
KERNEL static void keep_from(View *view, const float *keys, float cutoff, Work *work) {
    vi lanes = lane_numbers();
    int64_t kept = 0, n = view->n;
    for (int64_t i = 0; i < n; i += LANES) {
        uint32_t bits = bits_of(load(keys + i, n - i) >= cutoff) & first_lanes(n - i);
        if (bits) kept += move(view, i, n - i, lanes, bits, kept, work);
    }
    *view = (View){work->x, work->ids, kept};
}

/* --- weights ------------------------------------------------------------------------------------------------------ */

/* w = exp((x - peak) * inverse) and the sums of its blocks; their total. */
KERNEL static __attribute__((noinline)) double weigh(const View *view, float peak, float inverse, Work *work) {
    double total = 0;
    for (int64_t start = 0; start < view->n; start += NEAR) {
        int64_t stop = start + NEAR < view->n ? start + NEAR : view->n;
        vf part = {0};
        for (int64_t i = start; i < stop; i += LANES) {
            vf w = exponential((load(view->x + i, stop - i) - peak) * inverse);
            if (stop - i < LANES) w = only(w, stop - i);
            store(work->w + i, w, stop - i);
            part += w;
        }
        work->sums[start / NEAR] = sum(part);
        total += work->sums[start / NEAR];
    }
    return total;
}

/* The sums of blocks again, of weights from `cutoff` on. */
KERNEL static void sum_kept(int64_t n, float cutoff, Work *work) {
    for (int64_t start = 0; start < n; start += NEAR) {
        int64_t stop = start + NEAR < n ? start + NEAR : n;
        vf part = {0};
        for (int64_t i = start; i < stop; i += LANES) {
            vf w = load(work->w + i, stop - i);
            part += (vf)((w >= cutoff) & (vi)w);
        }
        work->sums[start / NEAR] = sum(part);
    }
}
