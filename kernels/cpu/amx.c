/* Products by the matrix unit (AMX): 16 tokens x 16 outputs at once, four such tiles in flight.

   INT8 gives the same integers as the vector form, so the same floats to the last bit; so does INT4, expanded to INT8. */
#define _GNU_SOURCE
#include "step.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LANES 16
#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16,fma"
#define HAS_VNNI
#include "vector.h"

#include "rows.h"

#include "matmul.h"

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} Shapes;

/* Whether the unit is there and the kernel lends it (its state is large, so processes have to ask). */
int amx_start(void) {
    __builtin_cpu_init();
    unsigned a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    int present = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1); /* amx-bf16, amx-tile, amx-int8 */
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    return present && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

KERNEL void amx_enter(void) {
    Shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
    /* gcc 12 takes only 8 of the 64 bytes for read: without the barrier it may drop the stores of the others. */
    __asm__ volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}

KERNEL void amx_leave(void) { _tile_release(); }

/* Up to 16 tokens against the four panels of a unit: four streams of weights at once, each asked for in advance. */
#define FOUR_PANELS(name, multiply)                                                                                    \
    KERNEL static void name(const char *x, int64_t stride, const char *w, int64_t steps, char *sums) {                 \
        int64_t panel = steps * 1024;                                                                                  \
        _tile_zero(0);                                                                                                 \
        _tile_zero(1);                                                                                                 \
        _tile_zero(2);                                                                                                 \
        _tile_zero(3);                                                                                                 \
        for (int64_t k = 0; k < steps; k++, w += 1024) {                                                               \
            const char *next = w + distance(k * 1024, panel, UNIT_PANELS);                                             \
            for (int64_t p = 0; p < UNIT_PANELS; p++)                                                                  \
                for (int64_t i = 0; i < 1024; i += 64) _mm_prefetch(next + p * panel + i, _MM_HINT_T0);                \
            _tile_loadd(4, x + k * 64, stride);                                                                        \
            _tile_loadd(5, w, 64);                                                                                     \
            multiply(0, 4, 5);                                                                                         \
            _tile_loadd(6, w + panel, 64);                                                                             \
            multiply(1, 4, 6);                                                                                         \
            _tile_loadd(7, w + 2 * panel, 64);                                                                         \
            multiply(2, 4, 7);                                                                                         \
            _tile_loadd(5, w + 3 * panel, 64);                                                                         \
            multiply(3, 4, 5);                                                                                         \
        }                                                                                                              \
        _tile_stored(0, sums, ROW_BYTES);                                                                              \
        _tile_stored(1, sums + 64, ROW_BYTES);                                                                         \
        _tile_stored(2, sums + 128, ROW_BYTES);                                                                        \
        _tile_stored(3, sums + 192, ROW_BYTES);                                                                        \
    }

/* Up to 32 tokens against one or two panels: each tile that is loaded serves twice. */
#define TWO_PANELS(name, multiply)                                                                                     \
    KERNEL static void name(const char *x, int64_t stride, const char *w, int64_t steps, int64_t tokens,               \
                            int64_t panels, char *sums) {                                                              \
        _tile_zero(0);                                                                                                 \
        _tile_zero(1);                                                                                                 \
        _tile_zero(2);                                                                                                 \
        _tile_zero(3);                                                                                                 \
        for (int64_t k = 0; k < steps; k++) {                                                                          \
            _tile_loadd(4, x + k * 64, stride);                                                                        \
            _tile_loadd(6, w + k * 1024, 64);                                                                          \
            multiply(0, 4, 6);                                                                                         \
            if (panels > 1) {                                                                                          \
                _tile_loadd(7, w + (steps + k) * 1024, 64);                                                            \
                multiply(1, 4, 7);                                                                                     \
            }                                                                                                          \
            if (tokens > 16) {                                                                                         \
                _tile_loadd(5, x + 16 * stride + k * 64, stride);                                                      \
                multiply(2, 5, 6);                                                                                     \
                if (panels > 1) multiply(3, 5, 7);                                                                     \
            }                                                                                                          \
        }                                                                                                              \
        _tile_stored(0, sums, ROW_BYTES);                                                                              \
        _tile_stored(1, sums + 64, ROW_BYTES);                                                                         \
        _tile_stored(2, sums + 16 * ROW_BYTES, ROW_BYTES);                                                             \
        _tile_stored(3, sums + 16 * ROW_BYTES + 64, ROW_BYTES);                                                        \
    }

enum { ROW_BYTES = 4 * UNIT_PANELS * PANEL }; /* of one token's sums in scratch */

FOUR_PANELS(four_panels_int8, _tile_dpbsud)
FOUR_PANELS(four_panels_bf16, _tile_dpbf16ps)
TWO_PANELS(two_panels_int8, _tile_dpbsud)
TWO_PANELS(two_panels_bf16, _tile_dpbf16ps)

KERNEL static void ask_for(const char *from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(from + i, _MM_HINT_T1);
}

/* What `finish` and `finish_whole` do, for a block of sums [tokens][COLUMNS] and one act. */
INLINE void close_block(const Op *op, int64_t token, int64_t tokens, int64_t from, int64_t panels, const char *sums,
                        const int whole, const int act) {
    const Buffer *out = &op->out[0];
    int64_t left = op->matrix.out - from;
    vf scales[UNIT_PANELS];
    for (int64_t p = 0; whole && p < panels; p++)
        scales[p] = load((const float *)op->matrix.scale + from + p * PANEL, left - p * PANEL);
    for (int64_t i = 0; i < tokens; i++, sums += ROW_BYTES) {
        int32_t header[2] = {0};
        float scale = 0;
        if (whole) {
            memcpy(header, (const int32_t *)op->in[0].scale + (token + i) * op->in[0].scale_stride, sizeof header);
            memcpy(&scale, header, sizeof scale);
        }
        for (int64_t p = 0; p < panels; p++) {
            vf x;
            if (whole) {
                vi integers;
                memcpy(&integers, sums + p * 64, sizeof integers);
                x = __builtin_convertvector(integers - 128 * header[1], vf) * (scale * scales[p]);
            } else {
                memcpy(&x, sums + p * 64, sizeof x);
            }
            store_acted(op, out, token + i, from + p * PANEL, x, left - p * PANEL, act);
        }
    }
}

/* Asks for the lines a block's sums will go to: they lie in other pages, row by row, where no stream is foreseen. */
KERNEL static void ask_for_block(const Buffer *out, int64_t token, int64_t tokens, int64_t from, int64_t panels) {
    int64_t bytes = out->format == BF16 ? 2 : 4;
    char *row = (char *)out->data + (token * out->stride + from) * bytes;
    for (int64_t i = 0; i < tokens; i++, row += out->stride * bytes)
        for (int64_t at = 0; at < panels * PANEL * bytes; at += 64) __builtin_prefetch(row + at, 1);
}

#define CLOSE(act)                                                                                                     \
    case act: close_block(op, token, tokens, from, panels, sums, whole, act); break

INLINE void close_sums(const Op *op, int64_t token, int64_t tokens, int64_t from, int64_t panels, const char *sums,
                       const int whole) {
    switch (op->act) {
        CLOSE(ACT_TANH);
        CLOSE(ACT_SIGMOID);
        CLOSE(ACT_RELU2);
        CLOSE(ACT_ADD);
        CLOSE(ACT_ADD_GATED);
    default: close_block(op, token, tokens, from, panels, sums, whole, ACT_NONE); break;
    }
}

/* Two panels and all tokens, 32 at a time. The next two panels come in from memory meanwhile. */
#define PASS(name, two, bytes, whole)                                                                                  \
    KERNEL static void name(const Op *op, const Call *call, int64_t from, int64_t panels, const char *w,               \
                            const char *next, int64_t next_bytes, char *sums) {                                        \
        int64_t stride = op->in[0].stride * bytes, steps = op->matrix.stride * bytes / 64;                             \
        int64_t share = (next_bytes / ((call->tokens + 31) / 32) + 63) / 64 * 64;                                      \
        const char *x = op->in[0].data;                                                                                \
        for (int64_t t = 0; t < call->tokens; t += 32) {                                                               \
            int64_t tokens = call->tokens - t < 32 ? call->tokens - t : 32;                                            \
            ask_for(next + t / 32 * share, share);                                                                     \
            ask_for_block(&op->out[0], t, tokens, from, panels);                                                       \
            two(x + t * stride, stride, w, steps, tokens, panels, sums);                                               \
            close_sums(op, t, tokens, from, panels, sums, whole);                                                      \
        }                                                                                                              \
    }

PASS(pass_int8, two_panels_int8, 1, 1)
PASS(pass_bf16, two_panels_bf16, 2, 0)

/* Buffers have room for whole tiles; what they hold beyond the tokens is dropped. Few tokens: the weights are read once.
   Many: two panels stay in the nearest cache while the tokens pass. */
#define TILED(name, four, pass, bytes, whole)                                                                          \
    KERNEL void name(const Op *op, const Call *call, int64_t unit, float *scratch) {                                   \
        int64_t all = (op->matrix.out + PANEL - 1) / PANEL, from = unit * UNIT_PANELS;                                 \
        int64_t count = all - from < UNIT_PANELS ? all - from : UNIT_PANELS;                                           \
        int64_t stride = op->in[0].stride * bytes, steps = op->matrix.stride * bytes / 64, panel = steps * 1024;       \
        const char *x = op->in[0].data, *w = (const char *)op->matrix.data + from * panel;                             \
        char *sums = (char *)scratch;                                                                                  \
        if (count == UNIT_PANELS && call->tokens <= 32) {                                                              \
            for (int64_t t = 0; t < call->tokens; t += 16) {                                                           \
                int64_t tokens = call->tokens - t < 16 ? call->tokens - t : 16;                                        \
                ask_for_block(&op->out[0], t, tokens, from * PANEL, UNIT_PANELS);                                      \
                four(x + t * stride, stride, w, steps, sums);                                                          \
                close_sums(op, t, tokens, from * PANEL, UNIT_PANELS, sums, whole);                                     \
            }                                                                                                          \
            return;                                                                                                    \
        }                                                                                                              \
        for (int64_t p = 0; p < count; p += 2, w += 2 * panel)                                                         \
            pass(op, call, (from + p) * PANEL, count - p < 2 ? 1 : 2, w, w + 2 * panel,                                \
                 p + 2 < count ? 2 * panel : 0, sums);                                                                 \
    }

TILED(amx_matmul_int8, four_panels_int8, pass_int8, 1, 1)
TILED(amx_matmul_bf16, four_panels_bf16, pass_bf16, 2, 0)

/* A panel of INT4 as INT8 has it: (number - 8) * multiplier + 128, of which all is done modulo 256, bytes of even and of
   odd place in the halves of 16 bits. */
KERNEL static void expand_panel(const uint8_t *panel, int64_t groups, char *to) {
    const __m512i low_half = _mm512_set1_epi16(15), low_byte = _mm512_set1_epi16(255);
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t *batch = panel + g / 4 * BATCH_BYTES, *w = batch + g % 4 * GROUP_BYTES;
        __m512i one = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(batch + 4 * GROUP_BYTES + g % 4 * PANEL)));
        __m512i even = _mm512_or_si512(one, _mm512_slli_epi32(one, 16)), odd = _mm512_slli_epi16(even, 8);
        __m512i eight = _mm512_slli_epi16(even, 3);
        eight = _mm512_or_si512(_mm512_and_si512(eight, low_byte), _mm512_slli_epi16(eight, 8));
        __m512i offset = _mm512_sub_epi8(_mm512_set1_epi8((char)128), eight);
        for (int m = 0; m < 4; m++, w += 64, to += 128) {
            __m512i both = _mm512_loadu_si512(ahead(w, AHEAD));
            for (int half = 0; half < 2; half++) {
                __m512i low = _mm512_and_si512(half ? _mm512_srli_epi16(both, 4) : both, low_half);
                __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, half ? 12 : 8), low_half);
                low = _mm512_and_si512(_mm512_mullo_epi16(low, even), low_byte);
                low = _mm512_or_si512(low, _mm512_mullo_epi16(high, odd));
                _mm512_storeu_si512(to + half * 64, _mm512_add_epi8(low, offset));
            }
        }
    }
}

/* Panels are expanded once for all tokens. */
KERNEL void amx_matmul_int4(const Op *op, const Call *call, int64_t unit, float *scratch) {
    int64_t all = (op->matrix.out + PANEL - 1) / PANEL, from = unit * UNIT_PANELS, groups = op->matrix.stride / GROUP;
    int64_t count = all - from < UNIT_PANELS ? all - from : UNIT_PANELS, panel = groups * GROUP * PANEL;
    int64_t together = count == UNIT_PANELS && call->tokens <= 16 ? UNIT_PANELS : 2;
    int64_t bytes = (groups + 3) / 4 * BATCH_BYTES;
    const uint8_t *w = (const uint8_t *)op->matrix.data + from * bytes;
    char *sums = (char *)scratch, *expanded = sums + 32 * ROW_BYTES;
    for (int64_t p = 0; p < count; p += together) {
        int64_t panels = count - p < together ? count - p : together;
        for (int64_t i = 0; i < panels; i++, w += bytes) expand_panel(w, groups, expanded + i * panel);
        if (panels == UNIT_PANELS) {
            ask_for_block(&op->out[0], 0, call->tokens, from * PANEL, UNIT_PANELS);
            four_panels_int8(op->in[0].data, op->in[0].stride, expanded, groups / 2, sums);
            close_sums(op, 0, call->tokens, from * PANEL, UNIT_PANELS, sums, 1);
        } else {
            pass_int8(op, call, (from + p) * PANEL, panels, expanded, NULL, 0, sums);
        }
    }
}
#else
int amx_start(void) { return 0; }
void amx_enter(void) {}
void amx_leave(void) {}
void amx_matmul_bf16(const Op *op, const Call *call, int64_t unit, float *scratch) { (void)op, (void)call, (void)unit, (void)scratch; }
void amx_matmul_int8(const Op *op, const Call *call, int64_t unit, float *scratch) { (void)op, (void)call, (void)unit, (void)scratch; }
void amx_matmul_int4(const Op *op, const Call *call, int64_t unit, float *scratch) { (void)op, (void)call, (void)unit, (void)scratch; }
#endif
