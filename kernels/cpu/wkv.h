/* WKV of RWKV-4 to 7. One unit is one row and one head (RWKV-4: some channels), all tokens of the row in turn; the
   equations and their sources stand in kernels/wkv4.py to wkv7.py.

   With a matrix for a state, tokens go in blocks: first the vectors of all of them are made, then some value rows of the
   state go through the whole block in registers, then the next; last comes what follows the state. Each number of the
   state sees the same operations wherever a block begins or ends. */

#define MAX_HEAD 256
#define SQUARE (MAX_HEAD * MAX_HEAD)
#define BLOCK 16

/* The vectors of a block's tokens, in scratch behind the state: [kind][token][head]. */
enum { DECAY, REMOVAL, RENEWAL, KEY, VALUE, RECEPTANCE, RESULT, KINDS };
#define LANES_AT (SQUARE + KINDS * BLOCK * MAX_HEAD) /* where wkv_lanes.h has its state in scratch */
_Static_assert(LANES_AT + 64 * 64 <= SCRATCH_FLOATS, "a block has to fit the scratch");

INLINE float *vector_of(float *scratch, int kind, int64_t token, int64_t padded) {
    return scratch + SQUARE + (kind * BLOCK + token) * padded;
}

/* Where a head's state is worked on: in its slot, or in scratch where there is no slot or rows are no whole vectors. */
typedef struct {
    float *s;
    int64_t stride;
} Square;

KERNEL static Square open_state(const Op *op, const Call *call, int64_t slot, int64_t head, float *scratch) {
    int64_t d = op->head_size, padded = (d + LANES - 1) / LANES * LANES;
    float *stored = call->wkv + slot * call->wkv_stride + op->offset + head * d * d;
    if (slot >= 0 && d == padded) return (Square){stored, d};
    memset(scratch, 0, (size_t)(d * padded) * sizeof(float));
    if (slot >= 0)
        for (int64_t i = 0; i < d; i++) memcpy(scratch + i * padded, stored + i * d, (size_t)d * sizeof(float));
    return (Square){scratch, padded};
}

KERNEL static void close_state(const Op *op, const Call *call, int64_t slot, int64_t head, Square state) {
    int64_t d = op->head_size;
    float *stored = call->wkv + slot * call->wkv_stride + op->offset + head * d * d;
    if (slot < 0 || state.s == stored) return;
    for (int64_t i = 0; i < d; i++) memcpy(stored + i * d, state.s + i * state.stride, (size_t)d * sizeof(float));
}

/* Value rows that are in registers together; with 16 of a processor's 32 vectors they leave room for the rest. */
#if LANES == 16
#define TOGETHER 4
#else
#define TOGETHER 1
#endif

/* Each vector's sum, in all lanes of a vector. */
INLINE void spread_sums(vf *v, const int rows) {
#if LANES == 16
    if (rows == 4) {
        vf all = sums_of_4(v);
        v[0] = (vf)_mm512_permute_ps((__m512)all, 0x00);
        v[1] = (vf)_mm512_permute_ps((__m512)all, 0x55);
        v[2] = (vf)_mm512_permute_ps((__m512)all, 0xaa);
        v[3] = (vf)_mm512_permute_ps((__m512)all, 0xff);
        return;
    }
#endif
    for (int i = 0; i < rows; i++) v[i] = splat(sum(v[i]));
}

/* The vectors' sums, side by side. */
INLINE void store_sums(float *to, const vf *v, const int rows) {
#if LANES == 16
    if (rows == 4) {
        _mm_storeu_ps(to, _mm512_castps512_ps128((__m512)sums_of_4(v)));
        return;
    }
#endif
    for (int i = 0; i < rows; i++) to[i] = sum(v[i]);
}

/* y = S r after S <- S w - (S kk) b + v k (`edits`), or before S <- S w + v k, for `rows` value rows from `i` on. */
INLINE void pass_rows(Square state, int64_t i, float *scratch, int64_t tokens, int64_t padded, const int edits,
                      const int rows) {
    vf s[TOGETHER][MAX_HEAD / LANES];
    int64_t vectors = padded / LANES;
    for (int r = 0; r < rows; r++)
        for (int64_t j = 0; j < vectors; j++) s[r][j] = load_whole(ahead(state.s + (i + r) * state.stride + j * LANES, AHEAD));
    for (int64_t t = 0; t < tokens; t++) {
        const float *w = vector_of(scratch, DECAY, t, padded), *kk = vector_of(scratch, REMOVAL, t, padded);
        const float *b = vector_of(scratch, RENEWAL, t, padded), *k = vector_of(scratch, KEY, t, padded);
        const float *v = vector_of(scratch, VALUE, t, padded), *r = vector_of(scratch, RECEPTANCE, t, padded);
        vf removed[TOGETHER], seen[TOGETHER];
        if (edits) {
            for (int n = 0; n < rows; n++) {
                removed[n] = s[n][0] * load_whole(kk);
                for (int64_t j = 1; j < vectors; j++) removed[n] = fused(s[n][j], load_whole(kk + j * LANES), removed[n]);
            }
            spread_sums(removed, rows);
        }
        for (int n = 0; n < rows; n++) {
            vf value = splat(v[i + n]);
            for (int64_t j = 0; j < vectors; j++) {
                vf now = fused(s[n][j], load_whole(w + j * LANES), value * load_whole(k + j * LANES));
                if (edits) now = fused(-removed[n], load_whole(b + j * LANES), now);
                vf by = edits ? now : s[n][j], receptance = load_whole(r + j * LANES);
                seen[n] = j ? fused(by, receptance, seen[n]) : by * receptance;
                s[n][j] = now;
            }
        }
        store_sums(vector_of(scratch, RESULT, t, padded) + i, seen, rows);
    }
    for (int r = 0; r < rows; r++)
        for (int64_t j = 0; j < vectors; j++) store(state.s + (i + r) * state.stride + j * LANES, s[r][j], LANES);
}

/* Tokens of a row from `first` up to `end`, and where a head lies in their rows. */
typedef struct {
    const Op *op;
    int64_t first, end, at, d;
} Part;

/* Asks for a head's numbers of one token: they lie in as many pages as there are buffers, where no stream is foreseen.
   Time for that is while a block is passed, which itself reads nothing. */
INLINE void ask_for(const Part *part, int64_t i) {
    const Op *op = part->op;
    int64_t token = part->first + i, at = part->at, d = part->d;
    if (token >= part->end) return;
    for (int i = 0; i < 8; i++)
        for (int64_t j = 0; op->in[i].data && j < d; j += 16) __builtin_prefetch(row_of(&op->in[i], token) + at + j);
    for (int64_t j = 0; j < d; j += 16) __builtin_prefetch(row_of(&op->out[0], token) + at + j, 1);
}

INLINE void pass_block(Square state, float *scratch, int64_t tokens, int64_t padded, const int edits, const Part *next) {
    int64_t i = 0, d = next->d;
    for (; i + TOGETHER <= d; i += TOGETHER) {
        if (i < TOGETHER * BLOCK) ask_for(next, i / TOGETHER);
        pass_rows(state, i, scratch, tokens, padded, edits, TOGETHER);
    }
    for (; i < d; i++) pass_rows(state, i, scratch, tokens, padded, edits, 1);
}

#if LANES == 16
#include "wkv_lanes.h"
enum { MANY_TOKENS = 8 }; /* of a row, from which on it pays to turn the state and back */
#endif

/* in: r, w, k, v, a, g (what their matrices gave), v's share and layer 0's v (neither in layer 0).
   vec: w0, a0, k_k, k_a, r_k, ln_x weight and bias, v0. Returns r k r_k, the bonus of the token's own value. */
INLINE float prepare_wkv7(const Op *op, int64_t token, int64_t t, int64_t at, int64_t d, int64_t padded, float *scratch) {
    const float *in[8];
    for (int i = 0; i < 8; i++) in[i] = op->in[i].data ? row_of(&op->in[i], token) + at : NULL;
    float *w = vector_of(scratch, DECAY, t, padded), *kk = vector_of(scratch, REMOVAL, t, padded);
    float *b = vector_of(scratch, RENEWAL, t, padded), *k = vector_of(scratch, KEY, t, padded);
    float *v = vector_of(scratch, VALUE, t, padded), *r = vector_of(scratch, RECEPTANCE, t, padded);
    vf squares = {0}, own = {0};
    for (int64_t i = 0; i < d; i += LANES) {
        int64_t left = d - i;
        vf decay = -0.606530660f * sigmoid(load(op->vec[0] + at + i, left) + load(in[1] + i, left));
        vf rate = sigmoid(load(op->vec[1] + at + i, left) + load(in[4] + i, left));
        vf key = load(in[2] + i, left), value = load(in[3] + i, left), receptance = load(in[0] + i, left);
        if (in[6]) {
            vf share = sigmoid(load(op->vec[7] + at + i, left) + load(in[6] + i, left));
            value += share * (load(in[7] + i, left) - value);
        }
        vf removal = key * load(op->vec[2] + at + i, left);
        key *= 1.0f + (rate - 1.0f) * load(op->vec[3] + at + i, left);
        squares += removal * removal;
        own += receptance * key * load(op->vec[4] + at + i, left);
        store(w + i, exponential(decay), LANES);
        store(kk + i, removal, LANES);
        store(b + i, rate, LANES);
        store(k + i, key, LANES);
        store(v + i, value, LANES);
        store(r + i, receptance, LANES);
    }
    float length = sqrtf(sum(squares)), inverse = 1.0f / (length > 1e-12f ? length : 1e-12f);
    for (int64_t i = 0; i < padded; i += LANES) {
        vf unit_key = load_whole(kk + i) * inverse;
        store(kk + i, unit_key, LANES);
        store(b + i, unit_key * load_whole(b + i), LANES);
    }
    return sum(own);
}

/* in: r, k, v, gate (none in 5.0), what RWKV-6 adds to the logarithm of the log decay.
   vec: decay as the checkpoint stores it, bonus, ln_x weight and bias. Returns r u k. */
INLINE float prepare_wkv6(const Op *op, int64_t token, int64_t t, int64_t at, int64_t d, int64_t padded, float *scratch) {
    const float *in[5];
    for (int i = 0; i < 5; i++) in[i] = op->in[i].data ? row_of(&op->in[i], token) + at : NULL;
    vf own = {0};
    for (int64_t i = 0; i < d; i += LANES) {
        int64_t left = d - i;
        vf speed = load(op->vec[0] + at + i, left);
        if (in[4]) speed += load(in[4] + i, left);
        vf receptance = load(in[0] + i, left), key = load(in[1] + i, left);
        own += receptance * load(op->vec[1] + at + i, left) * key;
        store(vector_of(scratch, DECAY, t, padded) + i, exponential(-exponential(speed)), LANES);
        store(vector_of(scratch, RECEPTANCE, t, padded) + i, receptance, LANES);
        store(vector_of(scratch, KEY, t, padded) + i, key, LANES);
        store(vector_of(scratch, VALUE, t, padded) + i, load(in[2] + i, left), LANES);
    }
    return sum(own);
}

/* Group norm of the result and the gate. RWKV-7 adds the bonus after the norm and has a plain gate. */
INLINE void finish_head(const Op *op, int64_t token, int64_t t, int64_t at, int64_t d, int64_t padded, float *scratch,
                        float bonus, const int seven) {
    float *y = vector_of(scratch, RESULT, t, padded), *out = row_of(&op->out[0], token) + at;
    const float *v = vector_of(scratch, VALUE, t, padded), *const *norm = op->vec + (seven ? 5 : 2);
    const Buffer *gate = &op->in[seven ? 5 : 3];
    if (!seven)
        for (int64_t i = 0; i < d; i += LANES) store(y + i, load_whole(y + i) + bonus * load_whole(v + i), d - i);
    normalize(y, norm[0] + at, norm[1] + at, d, op->eps, y);
    for (int64_t i = 0; i < d; i += LANES) {
        vf result = load(y + i, d - i);
        if (seven) result += bonus * load_whole(v + i);
        if (gate->data) {
            vf by = load(row_of(gate, token) + at + i, d - i);
            result *= seven ? by : by * sigmoid(by);
        }
        store(out + i, result, d - i);
    }
}

INLINE void run_head(const Op *op, const Call *call, int64_t unit, float *scratch, int64_t d, const int seven) {
    int64_t row = unit / op->heads, head = unit % op->heads, at = head * d, slot = call->slots[row];
    int64_t padded = (d + LANES - 1) / LANES * LANES, end = call->starts[row + 1];
    if (call->starts[row] == end) return;
    Part whole = {op, call->starts[row], end, at, d};
    for (int64_t t = 0; t < BLOCK; t++) ask_for(&whole, t);
    Square state = open_state(op, call, slot, head, scratch);
#if LANES == 16
    float *lanes = d == LANE_HEAD && end - call->starts[row] >= MANY_TOKENS ? scratch + LANES_AT : NULL;
    if (lanes) turn_head(state.s, lanes);
#endif
    for (int64_t first = call->starts[row]; first < end; first += BLOCK) {
        int64_t tokens = end - first < BLOCK ? end - first : BLOCK;
        float bonus[BLOCK];
        Part next = {op, first + BLOCK, end, at, d};
        for (int64_t t = 0; t < tokens; t++)
            bonus[t] = seven ? prepare_wkv7(op, first + t, t, at, d, padded, scratch)
                             : prepare_wkv6(op, first + t, t, at, d, padded, scratch);
#if LANES == 16
        if (lanes) pass_lanes(lanes, scratch, tokens, seven, &next);
        else
#endif
            pass_block(state, scratch, tokens, padded, seven, &next);
        for (int64_t t = 0; t < tokens; t++) finish_head(op, first + t, t, at, d, padded, scratch, bonus[t], seven);
    }
#if LANES == 16
    if (lanes) turn_head(lanes, state.s);
#endif
    close_state(op, call, slot, head, state);
}

/* Sizes known to the compiler keep the rows in registers. */
KERNEL static void run_wkv7(const Op *op, const Call *call, int64_t unit, float *scratch) {
    if (op->head_size == 64) run_head(op, call, unit, scratch, 64, 1);
    else run_head(op, call, unit, scratch, op->head_size, 1);
}

/* Of RWKV-5 and 6. */
KERNEL static void run_wkv6(const Op *op, const Call *call, int64_t unit, float *scratch) {
    if (op->head_size == 64) run_head(op, call, unit, scratch, 64, 0);
    else run_head(op, call, unit, scratch, op->head_size, 0);
}

/* in: r (after its sigmoid), k, v. vec: log decay, bonus. State [3][C]: weighted sum, sum of weights, largest exponent.
   out: r times the average. */
KERNEL static void run_wkv4(const Op *op, const Call *call, int64_t unit, float *scratch) {
    (void)scratch;
    int64_t n = op->in[0].width, parts = (n + CHANNELS - 1) / CHANNELS, row = unit / parts, slot = call->slots[row];
    int64_t from = unit % parts * CHANNELS, to = from + CHANNELS < n ? from + CHANNELS : n;
    float *stored = call->wkv + slot * call->wkv_stride + op->offset;
    for (int64_t i = from; i < to; i += LANES) {
        int64_t left = to - i;
        vf a = {0}, b = {0}, m = {0};
        if (slot >= 0) a = load(stored + i, left), b = load(stored + n + i, left), m = load(stored + 2 * n + i, left);
        vf log_decay = load(op->vec[0] + i, left), bonus = load(op->vec[1] + i, left);
        for (int64_t t = call->starts[row]; t < call->starts[row + 1]; t++) {
            vf k = load(row_of(&op->in[1], t) + i, left), v = load(row_of(&op->in[2], t) + i, left);
            vf q = larger(m, bonus + k), past = exponential(m - q), present = exponential(bonus + k - q);
            vf y = (past * a + present * v) / (past * b + present);
            store(row_of(&op->out[0], t) + i, load(row_of(&op->in[0], t) + i, left) * y, left);
            q = larger(m + log_decay, k);
            past = exponential(m + log_decay - q), present = exponential(k - q);
            a = past * a + present * v;
            b = past * b + present;
            m = q;
        }
        if (slot >= 0) store(stored + i, a, left), store(stored + n + i, b, left), store(stored + 2 * n + i, m, left);
    }
}
