/* WKV for rows of many tokens, heads of 64: the state lies the other way round, values side by side in the lanes, and so
   no sum goes across them. Each number sees the same operations as in wkv.h, sums over the keys included: those of the
   four vectors of keys one after the other, then what were lanes there in the order of `sums_of_4`. */

#define LANE_HEAD 64
#define LANE_VALUES (2 * LANES) /* that are worked on together */

/* square[16][16] of `from` rows to the other, whose columns they become. */
INLINE void turn(const float *from, float *to) {
    vf v[LANES];
    vi lane;
    for (int i = 0; i < LANES; i++) v[i] = load(from + i * LANE_HEAD, LANES), lane[i] = i;
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        vi second = (lane & half) != 0;
        vi upper = (~second & lane) | (second & ((lane ^ half) + LANES));
        vi lower = (~second & (lane ^ half)) | (second & (lane + LANES));
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            if (i & half) continue;
            vf a = v[i], b = v[i + half];
            v[i] = __builtin_shuffle(a, b, upper);
            v[i + half] = __builtin_shuffle(a, b, lower);
        }
    }
    for (int i = 0; i < LANES; i++) store(to + i * LANE_HEAD, v[i], LANES);
}

KERNEL static void turn_head(const float *from, float *to) {
    for (int i = 0; i < LANE_HEAD; i += LANES)
        for (int j = 0; j < LANE_HEAD; j += LANES) turn(from + i * LANE_HEAD + j, to + j * LANE_HEAD + i);
}

/* Sums that are formed as `sums_of_4` does it: each gets its 16 numbers in the order of ORDER. */
typedef struct {
    vf pairs[2], quarters[2], total;
} Tree;
static const int ORDER[4] = {0, 2, 1, 3};

INLINE void grow(Tree *tree, const int quarter, const int place, vf x) {
    if (place % 2 == 0) tree->pairs[place / 2] = x;
    else tree->pairs[place / 2] += x;
    if (place < 3) return;
    x = tree->pairs[0] + tree->pairs[1];
    if (quarter % 2 == 0) tree->quarters[quarter / 2] = x;
    else tree->quarters[quarter / 2] += x;
    if (quarter == 3) tree->total = tree->quarters[0] + tree->quarters[1];
}

/* One token's step of LANE_VALUES values from `at` on; see `pass_rows`. */
INLINE void step_lanes(float *state, float *scratch, int64_t t, int64_t at, const int edits) {
    const float *w = vector_of(scratch, DECAY, t, LANE_HEAD), *kk = vector_of(scratch, REMOVAL, t, LANE_HEAD);
    const float *b = vector_of(scratch, RENEWAL, t, LANE_HEAD), *k = vector_of(scratch, KEY, t, LANE_HEAD);
    const float *r = vector_of(scratch, RECEPTANCE, t, LANE_HEAD), *v = vector_of(scratch, VALUE, t, LANE_HEAD) + at;
    Tree removed[2], seen[2];
    state += at;
    if (edits) {
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
#pragma GCC unroll 4
            for (int e = 0; e < 4; e++) {
                int j = 4 * ORDER[q] + ORDER[e];
#pragma GCC unroll 2
                for (int n = 0; n < 2; n++) {
                    vf x = load_whole(state + j * LANE_HEAD + n * LANES) * splat(kk[j]);
#pragma GCC unroll 3
                    for (int m = LANES; m < LANE_HEAD; m += LANES)
                        x = fused(load_whole(state + (j + m) * LANE_HEAD + n * LANES), splat(kk[j + m]), x);
                    grow(&removed[n], q, e, x);
                }
            }
        }
    }
    vf value[2] = {load_whole(v), load_whole(v + LANES)};
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
#pragma GCC unroll 4
        for (int e = 0; e < 4; e++) {
            vf x[2];
#pragma GCC unroll 4
            for (int m = 0; m < LANE_HEAD; m += LANES) {
                int j = 4 * ORDER[q] + ORDER[e] + m;
#pragma GCC unroll 2
                for (int n = 0; n < 2; n++) {
                    float *place = state + j * LANE_HEAD + n * LANES;
                    vf old = load_whole(place), now = fused(old, splat(w[j]), value[n] * splat(k[j]));
                    if (edits) now = fused(-removed[n].total, splat(b[j]), now);
                    vf by = edits ? now : old;
                    x[n] = m ? fused(by, splat(r[j]), x[n]) : by * splat(r[j]);
                    store(place, now, LANES);
                }
            }
            grow(&seen[0], q, e, x[0]);
            grow(&seen[1], q, e, x[1]);
        }
    }
    float *y = vector_of(scratch, RESULT, t, LANE_HEAD) + at;
    store(y, seen[0].total, LANES);
    store(y + LANES, seen[1].total, LANES);
}

INLINE void pass_lanes(float *state, float *scratch, int64_t tokens, const int edits, const Part *next) {
    for (int64_t t = 0; t < tokens; t++) {
        ask_for(next, t);
        for (int64_t at = 0; at < LANE_HEAD; at += LANE_VALUES) step_lanes(state, scratch, t, at, edits);
    }
}
