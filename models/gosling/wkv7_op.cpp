// WKV-7 recurrence over a sequence and its gradient, float32, for training on a CPU.
//
//   S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T        S: [value, key]
//   y_t = S_t r_t
//
// (RWKV-7, arXiv 2503.14456; a = -kk, b = kk * in-context learning rate.) Inputs are [B, T, H, N], states
// [B, H, N(value), N(key)], all contiguous. One (batch row, head) is one work item. Plain C interface:
// called through ctypes, so no header of torch is needed.

#include <cstring>

namespace {

constexpr int N = 64;      // head size
constexpr int LANES = 16;  // floats of one vector; the compiler lowers it where registers are narrower
constexpr int PARTS = N / LANES;
constexpr int CHUNK = 16;  // the backward pass recomputes this many states at a time

typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int Index __attribute__((vector_size(LANES * sizeof(int))));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<Vec*>(p) = x; }

// One stage of a 16 x 16 transposition: within blocks of 2 HALF lanes, the low halves of x and y, or the high ones.
template <int HALF, int HIGH>
inline Vec halves(Vec x, Vec y) {
    Index lanes;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        lanes[i] = i / (2 * HALF) * 2 * HALF + i % HALF + HIGH * HALF + (i & HALF ? LANES : 0);
    return __builtin_shuffle(x, y, lanes);
}

template <int HALF>
inline void stage(Vec* x) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & HALF)) {
            const Vec a = x[i], b = x[i + HALF];
            x[i] = halves<HALF, 0>(a, b);
            x[i + HALF] = halves<HALF, 1>(a, b);
        }
}

template <int HALF>
inline void fold(Vec* x) {
#pragma GCC unroll 8
    for (int i = 0; i < HALF; i++)
        x[i] = halves<HALF, 0>(x[i], x[i + HALF]) + halves<HALF, 1>(x[i], x[i + HALF]);
}

// Sum of the lanes of each of 16 rows: the rows of their transposition, added up on the way.
inline Vec sum_rows(Vec* x) {
    fold<8>(x);
    fold<4>(x);
    fold<2>(x);
    fold<1>(x);
    return x[0];
}

void transpose(const float* from, float* to) {
    for (int i = 0; i < N; i += LANES)
        for (int j = 0; j < N; j += LANES) {
            Vec x[LANES];
#pragma GCC unroll 16
            for (int l = 0; l < LANES; l++) x[l] = load(from + (i + l) * N + j);
            stage<8>(x);
            stage<4>(x);
            stage<2>(x);
            stage<1>(x);
#pragma GCC unroll 16
            for (int l = 0; l < LANES; l++) store(to + (j + l) * N + i, x[l]);
        }
}

struct Sequence {  // the five or six inputs of one (row, head) and the step from token to token
    const float *r, *w, *k, *v, *a, *b;
    long stride;
};

// States are kept [key][value] here, so that y and the removal are sums of whole rows.
void forward_head(const Sequence& x, long T, const float* s_in, float* y, float* sa, float* saved,
                  float* s_out) {
    alignas(64) float S[N * N];
    transpose(s_in, S);
    Vec held[PARTS] = {};  // S a for the token to come
    for (int i = 0; i < N; i++)
        for (int p = 0; p < PARTS; p++) held[p] += load(S + i * N + p * LANES) * x.a[i];
    for (long t = 0; t < T; t++) {
        const long at = t * x.stride;
        if (t % CHUNK == 0) transpose(S, saved + (t / CHUNK) * N * N);
        const float *w = x.w + at, *k = x.k + at, *b = x.b + at, *r = x.r + at;
        const float* a_next = x.a + (t + 1 < T ? at + x.stride : at);
        Vec v[PARTS], out[PARTS] = {}, next[PARTS] = {};
        for (int p = 0; p < PARTS; p++) {
            v[p] = load(x.v + at + p * LANES);
            store(sa + t * N + p * LANES, held[p]);
        }
        for (int i = 0; i < N; i++)
            for (int p = 0; p < PARTS; p++) {
                float* row = S + i * N + p * LANES;
                const Vec s = load(row) * w[i] + held[p] * b[i] + v[p] * k[i];
                store(row, s);
                out[p] += s * r[i];
                next[p] += s * a_next[i];
            }
        for (int p = 0; p < PARTS; p++) {
            store(y + at + p * LANES, out[p]);
            held[p] = next[p];
        }
    }
    transpose(S, s_out);
}

struct Gradient {
    float *r, *w, *k, *v, *a, *b;
};

// States are [value][key] here: five of the seven sums then run over rows, two over lanes. A value's row
// never meets another's, so 16 rows go back through all tokens on their own, close to the processor.
void backward_rows(int first_row, const Sequence& x, long T, const float* dy, const float* sa,
                   const float* saved, const float* ds_out, const Gradient& d, float* ds_in) {
    constexpr int ROWS = LANES, SIZE = ROWS * N, Q = PARTS / 2;
    constexpr int BLOCK = SIZE + 5 * LANES;  // not 4096 bytes apart, where loads would wait for unrelated stores
    alignas(64) float S[(CHUNK + 1) * BLOCK];  // the states of a chunk, recomputed
    alignas(64) float dS[SIZE];                // gradient of the state after the token in hand
    alignas(64) float dsa[ROWS] = {};          // gradient of S a of the token after it
    const float zeros[N] = {};
    float ones[N];
    for (float& one : ones) one = 1;
    std::memcpy(dS, ds_out + first_row * N, sizeof dS);
    const bool add = first_row > 0;
    const auto gather = [add](float* to, Vec value) { store(to, add ? load(to) + value : value); };

    for (long start = (T - 1) / CHUNK * CHUNK; start >= 0; start -= CHUNK) {
        const long length = T - start < CHUNK ? T - start : CHUNK;
        std::memcpy(S, saved + start / CHUNK * N * N + first_row * N, sizeof dS);
        for (long t = 0; t < length; t++) {  // S + (t + 1) BLOCK is the state after token t
            const long at = (start + t) * x.stride;
            const float *from = S + t * BLOCK, *held = sa + (start + t) * N + first_row;
            const float* v = x.v + at + first_row;
            float* to = S + (t + 1) * BLOCK;
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) {
                const int o = p * LANES;
                const Vec w = load(x.w + at + o), k = load(x.k + at + o), b = load(x.b + at + o);
                for (int i = 0; i < ROWS; i++)
                    store(to + i * N + o, load(from + i * N + o) * w + b * held[i] + k * v[i]);
            }
        }
        for (long t = length - 1; t >= 0; t--) {
            const long at = (start + t) * x.stride;
            const bool last = start + t + 1 == T;
            const long after = at + x.stride;  // the next token's w and a carry its gradient to this state
            const float *w_next = last ? ones : x.w + after, *a_next = last ? zeros : x.a + after;
            const float *before = S + t * BLOCK, *now = before + BLOCK, *dout = dy + at + first_row;
            const float *v = x.v + at + first_row, *held = sa + (start + t) * N + first_row;
            Vec to_v[ROWS], to_sa[ROWS];
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {  // 32 keys at a time: every sum stays in a register
                const int j = half * N / 2;
                Vec w[Q], a[Q], r[Q], k[Q], b[Q], dr[Q] = {}, da[Q] = {}, dw[Q] = {}, dk[Q] = {}, db[Q] = {};
#pragma GCC unroll 2
                for (int p = 0; p < Q; p++) {
                    const int o = j + p * LANES;
                    w[p] = load(w_next + o), a[p] = load(a_next + o), r[p] = load(x.r + at + o);
                    k[p] = load(x.k + at + o), b[p] = load(x.b + at + o);
                }
                for (int i = 0; i < ROWS; i++) {
                    Vec sum_v = {}, sum_sa = {};
#pragma GCC unroll 2
                    for (int p = 0; p < Q; p++) {
                        const int o = i * N + j + p * LANES;
                        const Vec ds = load(dS + o) * w[p] + a[p] * dsa[i] + r[p] * dout[i];
                        store(dS + o, ds);
                        const Vec s = load(now + o);
                        dr[p] += s * dout[i];
                        da[p] += s * dsa[i];
                        dw[p] += load(before + o) * ds;
                        dk[p] += ds * v[i];
                        db[p] += ds * held[i];
                        sum_v += ds * k[p];
                        sum_sa += ds * b[p];
                    }
                    to_v[i] = half ? to_v[i] + sum_v : sum_v;
                    to_sa[i] = half ? to_sa[i] + sum_sa : sum_sa;
                }
#pragma GCC unroll 2
                for (int p = 0; p < Q; p++) {
                    const int o = j + p * LANES;
                    gather(d.r + at + o, dr[p]);
                    gather(d.w + at + o, dw[p]);
                    gather(d.k + at + o, dk[p]);
                    gather(d.b + at + o, db[p]);
                    if (!last) gather(d.a + after + o, da[p]);
                }
            }
            store(d.v + at + first_row, sum_rows(to_v));
            store(dsa, sum_rows(to_sa));
        }
    }
    Vec da[PARTS] = {};  // the first token, whose state before is the incoming one
    for (int i = 0; i < ROWS; i++)
        for (int p = 0; p < PARTS; p++) {
            const int o = i * N + p * LANES;
            da[p] += load(S + o) * dsa[i];
            store(ds_in + first_row * N + o,
                  load(dS + o) * load(x.w + p * LANES) + load(x.a + p * LANES) * dsa[i]);
        }
    for (int p = 0; p < PARTS; p++) gather(d.a + p * LANES, da[p]);
}

}  // namespace

extern "C" {

int wkv7_head_size() { return N; }
int wkv7_chunk() { return CHUNK; }

void wkv7_forward(long B, long T, long H, int threads, const float* r, const float* w, const float* k,
                  const float* v, const float* a, const float* b, const float* s_in, float* y, float* sa,
                  float* saved, float* s_out) {
    const long chunks = (T + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < B * H; i++) {
        const long o = (i / H) * T * H * N + (i % H) * N;
        const Sequence x{r + o, w + o, k + o, v + o, a + o, b + o, H * N};
        forward_head(x, T, s_in + i * N * N, y + o, sa + i * T * N, saved + i * chunks * N * N,
                     s_out + i * N * N);
    }
}

void wkv7_backward(long B, long T, long H, int threads, const float* r, const float* w, const float* k,
                   const float* v, const float* a, const float* b, const float* dy, const float* sa,
                   const float* saved, const float* ds_out, float* dr, float* dw, float* dk, float* dv,
                   float* da, float* db, float* ds_in) {
    const long chunks = (T + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < B * H; i++) {
        const long o = (i / H) * T * H * N + (i % H) * N;
        const Sequence x{r + o, w + o, k + o, v + o, a + o, b + o, H * N};
        const Gradient d{dr + o, dw + o, dk + o, dv + o, da + o, db + o};
        for (int row = 0; row < N; row += LANES)
            backward_rows(row, x, T, dy + o, sa + i * T * N, saved + i * chunks * N * N,
                          ds_out + i * N * N, d, ds_in + i * N * N);
    }
}
}
