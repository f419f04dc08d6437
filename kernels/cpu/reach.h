/* The last key that is needed for so many, or for so much weight, without sorting: by summing above some cuts at once and
   going on between two of them. */

enum { CHUNK = 2048, FEW = 48, CUTS = 8, SAMPLES = 31, SAMPLED_ROUNDS = 6 };

static float next_above(float x) { return nextafterf(x, INFINITY); }

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
