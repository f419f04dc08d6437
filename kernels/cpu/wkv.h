/* WKV of RWKV-4 to 7. One unit is one row and one head (RWKV-4: some channels), all tokens of the row in turn; the
   equations and their sources stand in kernels/wkv4.py to wkv7.py. */

#define MAX_HEAD 256

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

/* Group norm of one head, in place; what lies between d and the next whole vector must be zero. */
INLINE void norm_head(float *y, const float *weight, const float *bias, int64_t d, float eps) {
    normalize(y, weight, bias, d, eps, y);
}

/* Value rows whose sums over the keys are made together, and those sums. */
#if LANES == 16
#define TOGETHER 16
#define SUMS(to, vectors) store(to, sums(vectors), LANES)
#else
#define TOGETHER 4
#define SUMS(to, vectors)                                                                                              \
    for (int n = 0; n < TOGETHER; n++) (to)[n] = sum((vectors)[n])
#endif

/* S <- S w - (S kk) b + v k, y = S r, for d key channels in whole vectors and `rows` value rows from `i` on. */
INLINE void edit_rows(float *s, int64_t stride, int64_t padded, const float *w, const float *kk, const float *b,
                      const float *k, const float *r, const float *v, float *y, const int rows) {
    vf part[TOGETHER] = {{0}};
    float removed[TOGETHER];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < padded; j += LANES) part[i] += load(s + i * stride + j, LANES) * load(kk + j, LANES);
    SUMS(removed, part);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        part[i] = (vf){0};
        for (int64_t j = 0; j < padded; j += LANES) {
            vf now = load(s + i * stride + j, LANES) * load(w + j, LANES) + v[i] * load(k + j, LANES);
            now -= removed[i] * load(b + j, LANES);
            store(s + i * stride + j, now, LANES);
            part[i] += now * load(r + j, LANES);
        }
    }
    float seen[TOGETHER];
    SUMS(seen, part);
    memcpy(y, seen, (size_t)rows * sizeof(float));
}

INLINE void edit_state(Square state, int64_t d, int64_t padded, const float *w, const float *kk, const float *b,
                       const float *k, const float *r, const float *v, float *y) {
    int64_t i = 0;
    for (; i + TOGETHER <= d; i += TOGETHER)
        edit_rows(state.s + i * state.stride, state.stride, padded, w, kk, b, k, r, v + i, y + i, TOGETHER);
    for (; i < d; i++) edit_rows(state.s + i * state.stride, state.stride, padded, w, kk, b, k, r, v + i, y + i, 1);
}

/* in: r, w, k, v, a, g (what their matrices gave), v's share and layer 0's v (neither in layer 0).
   vec: w0, a0, k_k, k_a, r_k, ln_x weight and bias, v0. out: gated. */
KERNEL static void run_wkv7(const Op *op, const Call *call, int64_t unit, float *scratch) {
    int64_t row = unit / op->heads, head = unit % op->heads, d = op->head_size, at = head * d;
    int64_t padded = (d + LANES - 1) / LANES * LANES, slot = call->slots[row];
    if (call->starts[row] == call->starts[row + 1]) return;
    Square state = open_state(op, call, slot, head, scratch);
    float w[MAX_HEAD], kk[MAX_HEAD], b[MAX_HEAD], k[MAX_HEAD], v[MAX_HEAD], r[MAX_HEAD], y[MAX_HEAD];
    for (int64_t t = call->starts[row]; t < call->starts[row + 1]; t++) {
        const float *in[8];
        for (int i = 0; i < 8; i++) in[i] = op->in[i].data ? row_of(&op->in[i], t) + at : NULL;
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
        float length = sqrtf(sum(squares)), bonus = sum(own);
        float inverse = 1.0f / (length > 1e-12f ? length : 1e-12f);
        for (int64_t i = 0; i < padded; i += LANES) {
            vf unit_key = load(kk + i, LANES) * inverse;
            store(kk + i, unit_key, LANES);
            store(b + i, unit_key * load(b + i, LANES), LANES);
        }
        if (d == 64) edit_state(state, 64, 64, w, kk, b, k, r, v, y);
        else edit_state(state, d, padded, w, kk, b, k, r, v, y);
        norm_head(y, op->vec[5] + at, op->vec[6] + at, d, op->eps);
        float *out = row_of(&op->out[0], t) + at;
        for (int64_t i = 0; i < d; i += LANES) {
            vf gated = (load(y + i, d - i) + bonus * load(v + i, LANES)) * load(in[5] + i, d - i);
            store(out + i, gated, d - i);
        }
    }
    close_state(op, call, slot, head, state);
}

/* y = S r + (r u k) v, S <- S w + v k. */
INLINE void fade_rows(float *s, int64_t stride, int64_t padded, const float *w, const float *k, const float *r,
                      const float *v, float bonus, float *y, const int rows) {
    vf part[TOGETHER] = {{0}};
    float seen[TOGETHER];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < padded; j += LANES) {
            vf now = load(s + i * stride + j, LANES);
            part[i] += now * load(r + j, LANES);
            store(s + i * stride + j, now * load(w + j, LANES) + v[i] * load(k + j, LANES), LANES);
        }
    SUMS(seen, part);
    for (int i = 0; i < rows; i++) y[i] = seen[i] + bonus * v[i];
}

INLINE void fade_state(Square state, int64_t d, int64_t padded, const float *w, const float *k, const float *r,
                       const float *v, float bonus, float *y) {
    int64_t i = 0;
    for (; i + TOGETHER <= d; i += TOGETHER)
        fade_rows(state.s + i * state.stride, state.stride, padded, w, k, r, v + i, bonus, y + i, TOGETHER);
    for (; i < d; i++) fade_rows(state.s + i * state.stride, state.stride, padded, w, k, r, v + i, bonus, y + i, 1);
}

/* Of RWKV-5 and 6. in: r, k, v, gate (none in 5.0), what RWKV-6 adds to the logarithm of the log decay.
   vec: decay as the checkpoint stores it, bonus, ln_x weight and bias. */
KERNEL static void run_wkv6(const Op *op, const Call *call, int64_t unit, float *scratch) {
    int64_t row = unit / op->heads, head = unit % op->heads, d = op->head_size, at = head * d;
    int64_t padded = (d + LANES - 1) / LANES * LANES, slot = call->slots[row];
    if (call->starts[row] == call->starts[row + 1]) return;
    Square state = open_state(op, call, slot, head, scratch);
    float w[MAX_HEAD], k[MAX_HEAD], v[MAX_HEAD], r[MAX_HEAD], y[MAX_HEAD];
    for (int64_t t = call->starts[row]; t < call->starts[row + 1]; t++) {
        const float *in[5];
        for (int i = 0; i < 5; i++) in[i] = op->in[i].data ? row_of(&op->in[i], t) + at : NULL;
        vf own = {0};
        for (int64_t i = 0; i < d; i += LANES) {
            int64_t left = d - i;
            vf speed = load(op->vec[0] + at + i, left);
            if (in[4]) speed += load(in[4] + i, left);
            vf receptance = load(in[0] + i, left), key = load(in[1] + i, left);
            own += receptance * load(op->vec[1] + at + i, left) * key;
            store(w + i, exponential(-exponential(speed)), LANES);
            store(r + i, receptance, LANES);
            store(k + i, key, LANES);
            store(v + i, load(in[2] + i, left), LANES);
        }
        float bonus = sum(own);
        if (d == 64) fade_state(state, 64, 64, w, k, r, v, bonus, y);
        else fade_state(state, d, padded, w, k, r, v, bonus, y);
        norm_head(y, op->vec[2] + at, op->vec[3] + at, d, op->eps);
        float *out = row_of(&op->out[0], t) + at;
        for (int64_t i = 0; i < d; i += LANES) {
            vf result = load(y + i, d - i);
            if (in[3]) {
                vf gate = load(in[3] + i, d - i);
                result *= gate * sigmoid(gate);
            }
            store(out + i, result, d - i);
        }
    }
    close_state(op, call, slot, head, state);
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
