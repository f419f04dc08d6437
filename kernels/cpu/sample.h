/* Drawing a token from a row of logits; the meaning is that of rookery.kernels.sampling, which says it in torch.

   Nothing is sorted. The largest of each NEAR neighbours tells which blocks can hold what a truncation keeps; what
   they hold is moved together, in the order of ids. Where that is no help, because much is kept, the last token that
   top-p or top-k needs is found by summing above eight thresholds at once and going on between two of them. Sums are
   kept in double over short sums in float, all in an order that depends on the row alone. */

#include "view.h"
#include "reach.h"

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

/* Of the weights from `cutoff` on, those whose surprise is nearest to their entropy, until they have a share of the mass;
   narrows the view to them. */
KERNEL static void typical(View *view, float peak, float inverse, float cutoff, double share, Work *work) {
    keep_from(view, work->w, cutoff, work);
    double total = weigh(view, peak, inverse, work), shift = log(total), entropy = 0;
    float farthest = 0;
    for (int64_t i = 0; i < view->n; i++)
        entropy += work->w[i] / total * (shift - ((double)view->x[i] - peak) * inverse);
    for (int64_t i = 0; i < view->n; i++) {
        float away = (float)fabs(shift - ((double)view->x[i] - peak) * inverse - entropy);
        work->keys[i] = -away;
        farthest = away > farthest ? away : farthest;
    }
    int64_t low = -1, high = place_of(farthest); /* too few are within low, enough within high */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        float nearest = -float_at(middle);
        double mass = 0;
        for (int64_t i = 0; i < view->n; i++) mass += work->keys[i] >= nearest ? work->w[i] : 0;
        if (mass > 0 && mass >= share * total) high = middle;
        else low = middle;
    }
    keep_from(view, work->keys, -float_at(high), work);
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
    if (row->typical_p < 1) {
        typical(view, peak, inverse, cutoff, row->typical_p, work);
        find_peaks(view, work->peaks, &peak); /* the likeliest need not be among them */
        weigh(view, peak, tempered, work);
        return pick(view->n, FLT_MIN, uniform(row->seed, row->choice, row->drawn), work);
    }
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
