/* Drawing a token from a row of logits; the meaning is that of rookery.kernels.sampling, which says it in torch.

   Nothing is sorted. The largest of each NEAR neighbours tells which blocks can hold what a truncation keeps; what
   they hold is moved together, in the order of ids. Where that is no help, because much is kept, the last token that
   top-p or top-k needs is found by summing above eight thresholds at once and going on between two of them. Sums are
   kept in double over short sums in float, all in an order that depends on the row alone. */

#include <float.h>

enum { NEAR = 256, CHUNK = 2048, FEW = 48, CUTS = 8, SAMPLES = 31, SAMPLED_ROUNDS = 6 };

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
static float next_above(float x) { return nextafterf(x, INFINITY); }

/* --- random numbers ----------------------------------------------------------------------------------------------- */

/* `rookery.kernels.random.uniform`: Philox4x32-10 of the counter (drawn, choice, 0, 0) under the seed. */
static double uniform(uint64_t seed, uint32_t choice, uint32_t drawn) {
    uint32_t c0 = drawn, c1 = choice, c2 = 0, c3 = 0, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c0 * 0xD2511F53u, b = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)((uint64_t)c0 << 21 | c1 >> 11) * 0x1p-53;
}

/* --- logits ------------------------------------------------------------------------------------------------------- */

/* Bias, then bans, then penalties, on a copy. */
static void edit(const Sample *row, float *x, int64_t n) {
    for (int64_t i = 0; i < row->biases; i++)
        if ((uint64_t)row->bias_ids[i] < (uint64_t)n) x[row->bias_ids[i]] += row->bias[i];
    for (int64_t i = 0; i < row->bans; i++)
        if ((uint64_t)row->ban_ids[i] < (uint64_t)n) x[row->ban_ids[i]] = -INFINITY;
    for (int64_t i = 0; i < row->seen; i++) {
        if ((uint64_t)row->seen_ids[i] >= (uint64_t)n) continue;
        float *value = x + row->seen_ids[i];
        volatile float often = (float)row->counts[i] * row->frequency; /* rounded here, as the reference has it */
        volatile float scaled = *value > 0 ? *value / row->repetition : *value * row->repetition;
        *value = scaled - (row->presence + often);
    }
}

/* What the grammar allows of LANES tokens. */
INLINE uint32_t allowed_at(const Sample *row, int64_t i) { return i / 32 < row->words ? row->mask[i / 32] >> i % 32 : 0; }

/* How many tokens the grammar allows; ids past the row count too. */
KERNEL static int64_t count_allowed(const Sample *row) {
    int64_t count = 0;
    for (int64_t i = 0; i < row->words; i++) count += __builtin_popcount(row->mask[i]);
    return count;
}

/* What the grammar allows, moved together; whether all of the row are numbers below infinity. */
KERNEL static int select_allowed(const Sample *row, View *view, Work *work) {
    const float *x = view->x;
    vi sound = ~(vi){0}, lanes = lane_numbers();
    int64_t kept = 0, n = view->n;
    for (int64_t i = 0; i < n; i += LANES) {
        vf v = load(x + i, n - i);
        sound &= v < INFINITY;
        uint32_t bits = allowed_at(row, i) & first_lanes(n - i);
        if (!bits) continue;
        squeeze((int32_t *)work->x + kept, (vi)v, bits);
        kept += squeeze(work->ids + kept, lanes + (int32_t)i, bits);
    }
    *view = (View){work->x, work->ids, kept};
    return bits_of(sound) == first_lanes(LANES);
}

/* LANES logits of the view; if `row` is given, what its grammar bans becomes impossible, in `to` as well. */
INLINE vf look(const View *view, const Sample *row, float *to, int64_t i, int64_t left, vi *sound) {
    vf v = load(view->x + i, left);
    *sound &= v < INFINITY;
    if (row) {
        v = only_bits(v, allowed_at(row, i));
        store(to + i, v, left);
    }
    return left < LANES ? only_bits(v, first_lanes(left)) : v;
}

INLINE int peaks_of(const View *view, const Sample *row, float *to, float *peaks, float *peak) {
    float highest = -INFINITY;
    vi sound = ~(vi){0};
    for (int64_t start = 0; start < view->n; start += NEAR) {
        int64_t left = view->n - start;
        vf top[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
        if (left >= NEAR) {
            for (int i = 0; i < NEAR; i += 4 * LANES)
                for (int j = 0; j < 4; j++)
                    top[j] = larger(top[j], look(view, row, to, start + i + j * LANES, LANES, &sound));
        } else {
            for (int64_t i = 0; i < left; i += LANES)
                top[0] = larger(top[0], look(view, row, to, start + i, left - i, &sound));
        }
        float block = largest(larger(larger(top[0], top[1]), larger(top[2], top[3])));
        peaks[start / NEAR] = block;
        highest = block > highest ? block : highest;
    }
    *peak = highest;
    return bits_of(sound) == first_lanes(LANES);
}

/* The largest logit, and that of each block; whether all are numbers below infinity. */
KERNEL static int find_peaks(const View *view, float *peaks, float *peak) {
    return peaks_of(view, NULL, NULL, peaks, peak);
}

/* The same of what the grammar allows, which becomes the view: of few moved together, else the whole row. */
KERNEL static int find_allowed_peaks(const Sample *row, View *view, Work *work, float *peak) {
    if (count_allowed(row) * 2 < view->n) {
        int sound = select_allowed(row, view, work);
        find_peaks(view, work->peaks, peak);
        return sound;
    }
    int sound = peaks_of(view, row, work->x, work->peaks, peak);
    view->x = work->x;
    return sound;
}

/* Where the largest stands first. */
static int64_t first_peak(const View *view, const float *peaks, float peak) {
    int64_t i = 0;
    while (peaks[i] != peak) i++;
    for (i *= NEAR; view->x[i] != peak; i++) {}
    return i;
}

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

/* --- the last one needed ------------------------------------------------------------------------------------------ */

/* For each cut, descending, the weight of the keys from it on: each key's own, or 1. */
KERNEL static void weigh_above(const float *keys, int64_t n, int by_key, const float *cuts, double *above) {
    for (int j = 0; j < CUTS; j++) above[j] = 0;
    for (int64_t start = 0; start < n; start += CHUNK) {
        int64_t stop = start + CHUNK < n ? start + CHUNK : n;
        vf part[CUTS] = {{0}};
        for (int64_t i = start; i < stop; i += LANES) {
            vf key = load(keys + i, stop - i), weight = by_key ? key : splat(1.0f);
            if (stop - i < LANES) weight = only(weight, stop - i);
            for (int j = 0; j < CUTS; j++) {
#if LANES == 16
                __mmask16 from = _mm512_cmp_ps_mask((__m512)key, _mm512_set1_ps(cuts[j]), _CMP_GE_OQ);
                part[j] = (vf)_mm512_mask_add_ps((__m512)part[j], from, (__m512)part[j], (__m512)weight);
#else
                part[j] += (vf)((key >= cuts[j]) & (vi)weight);
#endif
            }
        }
        for (int j = 0; j < CUTS; j++) above[j] += sum(part[j]);
    }
}

KERNEL static int64_t keep_between(const float *keys, int64_t n, float low, float high, float *to) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        vf key = load(keys + i, n - i);
        uint32_t bits = bits_of((key >= low) & (key < high)) & first_lanes(n - i);
        if (bits) kept += squeeze((int32_t *)to + kept, (vi)key, bits);
    }
    return kept;
}

static void sort_descending(float *x, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        float v = x[i];
        int64_t j = i;
        for (; j > 0 && x[j - 1] < v; j--) x[j] = x[j - 1];
        x[j] = v;
    }
}

/* A float's place among all floats. */
static int64_t place_of(float x) {
    int32_t bits;
    x += 0.0f; /* -0 is 0 */
    memcpy(&bits, &x, sizeof bits);
    return bits < 0 ? -(int64_t)(bits & 0x7fffffff) : bits;
}

static float float_at(int64_t place) {
    int32_t bits = (int32_t)(place < 0 ? -place : place);
    float x;
    memcpy(&x, &bits, sizeof x);
    return place < 0 ? -x : x;
}

/* Cuts, descending, that leave few of the keys between two: keys themselves at first, and later, so that it comes to
   an end whatever the keys are, floats at equal distances. */
static void choose_cuts(const float *keys, int64_t n, int round, float low, float high, float *cuts) {
    if (round >= SAMPLED_ROUNDS) {
        int64_t from = place_of(low), to = place_of(high);
        for (int j = 0; j < CUTS; j++) cuts[j] = float_at(to - (to - from) * (j + 1) / (CUTS + 1));
        return;
    }
    float sample[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) sample[i] = keys[(2 * i + 1) * n / (2 * SAMPLES)];
    sort_descending(sample, SAMPLES);
    for (int j = 0; j < CUTS; j++) cuts[j] = sample[SAMPLES * (2 * j + 1) / (2 * CUTS)];
    for (int j = CUTS - 2; j >= 0; j--) /* many are equal: what is above them */
        if (cuts[j] <= cuts[j + 1]) cuts[j] = next_above(cuts[j + 1]);
}

/* The largest key such that it and those above it have `wanted` together (0 is more than nothing); if they never do,
   one that no key is below. */
KERNEL static float reach(const float *keys, int64_t n, int by_key, double wanted, float *room) {
    float low = -INFINITY, high = INFINITY; /* it is in [low, high) */
    double above = 0, of_cuts[CUTS];
    for (int round = 0; n > FEW; round++) {
        float cuts[CUTS];
        choose_cuts(keys, n, round, low, high, cuts);
        weigh_above(keys, n, by_key, cuts, of_cuts);
        int j = 0;
        while (j < CUTS && !(of_cuts[j] > 0 && above + of_cuts[j] >= wanted)) j++;
        if (j > 0) high = cuts[j - 1], above += of_cuts[j - 1];
        if (j < CUTS) low = cuts[j];
        if (j < CUTS && !(next_above(low) < high)) return low;
        n = keep_between(keys, n, low, high, room);
        keys = room;
    }
    if (keys != room) memcpy(room, keys, (size_t)n * sizeof(float));
    sort_descending(room, n);
    for (int64_t i = 0; i < n; i++) {
        above += by_key ? room[i] : 1.0f;
        if (above >= wanted) return room[i];
    }
    return n ? room[n - 1] : high;
}

/* --- truncations -------------------------------------------------------------------------------------------------- */

/* Exactly the k largest, lower ids first among equals; `peaks` must be the view's. */
KERNEL KERNEL static void cut_to(View *view, int64_t k, Work *work) {
    int64_t blocks = blocks_of(view->n), kept = 0, ties = k;
    if (k <= blocks) narrow(view, work, reach(work->peaks, blocks, 0, (double)k, work->keys));
    float last = reach(view->x, view->n, 0, (double)k, work->keys);
    keep_from(view, view->x, last, work);
    if (view->n == k) return;
    for (int64_t i = 0; i < view->n; i++) ties -= view->x[i] > last;
    for (int64_t i = 0; i < view->n; i++) {
        if (!(view->x[i] > last || ties-- > 0)) continue;
        work->ids[kept] = work->ids[i];
        work->x[kept++] = work->x[i];
    }
    view->n = kept;
}

/* Weighs the view, and finds the weight of the last token that top-p needs. Narrows the view to what can be kept where
   few blocks hold it: tokens under some share of the mass are left out if the others have enough of it. */
KERNEL static float nucleus(View *view, float peak, float inverse, double top_p, Work *work) {
    double total = weigh(view, peak, inverse, work), wanted = top_p * total;
    int64_t blocks = blocks_of(view->n);
    for (double share = 1e-2; share > 1e-6; share /= 8) {
        if (share * total > 1) continue; /* nothing has as much: the likeliest weighs 1 */
        float least = (float)(share * total), floor = peak + (logf(least) - 1e-3f) / inverse;
        int64_t near = 0;
        for (int64_t b = 0; b < blocks; b++) near += work->peaks[b] >= floor;
        if (4 * near > blocks) break;
        double mass = 0;
        for (int64_t b = 0; b < blocks; b++) {
            if (!(work->peaks[b] >= floor)) continue;
            int64_t stop = (b + 1) * NEAR < view->n ? (b + 1) * NEAR : view->n;
            vf part = {0};
            for (int64_t i = b * NEAR; i < stop; i += LANES) {
                vf w = load(work->w + i, stop - i);
                part += (vf)((w >= least) & (vi)w);
            }
            mass += sum(part);
        }
        if (mass < wanted * (1 + 1e-5)) continue;
        narrow(view, work, floor);
        weigh(view, peak, inverse, work);
        break;
    }
    return reach(work->w, view->n, 1, wanted, work->keys);
}

/* The first of the weights from `cutoff` on at which their running sum passes a share of the whole. */
KERNEL static int64_t pick(int64_t n, float cutoff, double share, const Work *work) {
    int64_t blocks = blocks_of(n), block = -1, found = 0;
    double total = 0, before = 0, mass = 0;
    for (int64_t b = 0; b < blocks; b++) total += work->sums[b];
    for (int64_t b = 0; b < blocks && mass <= share * total; b++) {
        if (!(work->sums[b] > 0)) continue;
        block = b;
        before = mass;
        mass += work->sums[b];
    }
    int64_t stop = (block + 1) * NEAR < n ? (block + 1) * NEAR : n;
    for (int64_t i = block * NEAR; i < stop; i++) {
        if (!(work->w[i] >= cutoff)) continue;
        found = i;
        before += work->w[i];
        if (before > share * total) break;
    }
    return found;
}

/* A token by the row's settings; its place in the view. */
KERNEL static int64_t draw(const Sample *row, View *view, float peak, Work *work) {
    const float never = 1.0f / row->temperature, tempered = never < FLT_MAX ? never : FLT_MAX;
    int by_k = row->top_k > 0 && row->top_k < view->n, of_all = row->top_p < 1 && (row->top_p_first || !by_k);
    float inverse = row->top_p_first ? 1.0f : tempered, cutoff = FLT_MIN;
    float least = (float)row->min_p;
    if (least < row->min_p) least = next_above(least);
    if (of_all) cutoff = nucleus(view, peak, inverse, row->top_p, work);
    if (by_k && row->top_k < view->n) {
        float highest;
        if (view->x == work->x) find_peaks(view, work->peaks, &highest);
        cut_to(view, row->top_k, work);
    } else if (least > 0 && !of_all) narrow(view, work, peak + (logf(least) - 1e-3f) / inverse);
    if (by_k || !of_all) {
        double total = weigh(view, peak, inverse, work);
        if (row->top_p < 1 && !of_all) cutoff = reach(work->w, view->n, 1, row->top_p * total, work->keys);
    }
    if (least > cutoff) cutoff = least;
    if (cutoff < FLT_MIN) cutoff = FLT_MIN;
    if (cutoff > FLT_MIN) sum_kept(view->n, cutoff, work);
    if (row->top_p_first && tempered != 1.0f) { /* what is kept, weighed again */
        keep_from(view, work->w, cutoff, work);
        weigh(view, peak, tempered, work);
        cutoff = FLT_MIN;
    }
    return pick(view->n, cutoff, uniform(row->seed, row->choice, row->drawn), work);
}

/* Log-probabilities of the raw logits: of the token, and of the likeliest that can be drawn. */
static void score(Sample *row, Work *work) {
    View view = {row->logits, NULL, row->vocabulary};
    float peak;
    int sound = find_peaks(&view, work->peaks, &peak);
    double norm = sound ? peak + log(weigh(&view, peak, 1.0f, work)) : NAN;
    row->logprob = row->logits[row->token] - norm;
    view.n = row->limit;
    if (row->top <= 0) return;
    find_peaks(&view, work->peaks, &peak);
    if (row->top < view.n) cut_to(&view, row->top, work);
    for (int64_t i = 0; i < view.n; i++) { /* by insertion: they are few, and equals come in the order of ids */
        double logprob = view.x[i] - norm;
        int64_t j = i;
        for (; j > 0 && row->top_logprobs[j - 1] < logprob; j--) {
            row->top_logprobs[j] = row->top_logprobs[j - 1];
            row->top_ids[j] = row->top_ids[j - 1];
        }
        row->top_logprobs[j] = logprob;
        row->top_ids[j] = view.ids ? view.ids[i] : i;
    }
}

static void run_sample(const Op *op, const Call *call, int64_t unit, float *scratch) {
    (void)call;
    Sample *row = ((Sample *const *)op->matrix.data)[unit];
    int64_t room = SAMPLE_ROOM(op->matrix.in);
    Work work = {.x = scratch, .w = scratch + room, .keys = scratch + 2 * room, .ids = (int32_t *)scratch + 3 * room};
    work.peaks = scratch + 4 * room;
    work.sums = (double *)(work.peaks + room / 2);
    if (row->token < 0) {
        View view = {row->logits, NULL, row->limit};
        if (row->biases || row->bans || row->seen) {
            memcpy(work.x, row->logits, (size_t)row->limit * sizeof(float));
            edit(row, work.x, row->limit);
            view.x = work.x;
        }
        float peak;
        int sound = row->mask ? find_allowed_peaks(row, &view, &work, &peak) : find_peaks(&view, work.peaks, &peak);
        row->fault = !sound ? SAMPLE_NOT_FINITE : peak == -INFINITY ? SAMPLE_NOTHING_ALLOWED : SAMPLE_DRAWN;
        if (row->fault != SAMPLE_DRAWN) return;
        int64_t at = row->temperature > 0 ? draw(row, &view, peak, &work) : first_peak(&view, work.peaks, peak);
        row->token = view.ids ? view.ids[at] : at;
    }
    if (row->top >= 0) score(row, &work);
}
