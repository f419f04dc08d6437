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

enum { ROW_BYTES = 4 * UNIT_PANELS * PANEL, BLOCK_TOKENS = 32, BLOCK_BYTES = BLOCK_TOKENS * ROW_BYTES }; /* of sums */

#define MULTIPLY(sums, x, w)                                                                                           \
    do {                                                                                                               \
        if (whole) _tile_dpbsud(sums, x, w);                                                                           \
        else _tile_dpbf16ps(sums, x, w);                                                                               \
    } while (0)

/* Up to 16 tokens against the four panels of a unit: four streams of weights at once, each asked for in advance. */
INLINE void four_panels(const char *x, int64_t stride, const char *w, int64_t steps, char *sums, const int whole) {
    int64_t panel = steps * 1024;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < steps; k++, w += 1024) {
        const char *next = w + distance(k * 1024, panel, UNIT_PANELS);
        for (int64_t p = 0; p < UNIT_PANELS; p++)
            for (int64_t i = 0; i < 1024; i += 64) _mm_prefetch(next + p * panel + i, _MM_HINT_T0);
        _tile_loadd(4, x + k * 64, stride);
        _tile_loadd(5, w, 64);
        MULTIPLY(0, 4, 5);
        _tile_loadd(6, w + panel, 64);
        MULTIPLY(1, 4, 6);
        _tile_loadd(7, w + 2 * panel, 64);
        MULTIPLY(2, 4, 7);
        _tile_loadd(5, w + 3 * panel, 64);
        MULTIPLY(3, 4, 5);
    }
    _tile_stored(0, sums, ROW_BYTES);
    _tile_stored(1, sums + 64, ROW_BYTES);
    _tile_stored(2, sums + 128, ROW_BYTES);
    _tile_stored(3, sums + 192, ROW_BYTES);
}

/* A block of sums [tokens][COLUMNS] in scratch, `left` of whose tokens are still to be stored. */
typedef struct {
    int64_t token, left, from, panels;
    const char *sums;
} Block;

/* What `finish` and `finish_whole` do, for the next tokens of a block and one act. */
INLINE void close_tokens(const Op *op, Block *block, int64_t tokens, const int whole, const int act) {
    const Buffer *out = &op->out[0];
    int64_t beyond = op->matrix.out - block->from;
    vf scales[UNIT_PANELS];
    for (int64_t p = 0; whole && p < block->panels; p++)
        scales[p] = load((const float *)op->matrix.scale + block->from + p * PANEL, beyond - p * PANEL);
    for (; tokens && block->left; tokens--, block->left--, block->token++, block->sums += ROW_BYTES) {
        int32_t header[2] = {0};
        float scale = 0;
        if (whole) {
            memcpy(header, (const int32_t *)op->in[0].scale + block->token * op->in[0].scale_stride, sizeof header);
            memcpy(&scale, header, sizeof scale);
        }
        for (int64_t p = 0; p < block->panels; p++) {
            vf x;
            if (whole) {
                vi integers;
                memcpy(&integers, block->sums + p * 64, sizeof integers);
                x = __builtin_convertvector(integers - 128 * header[1], vf) * (scale * scales[p]);
            } else {
                memcpy(&x, block->sums + p * 64, sizeof x);
            }
            store_acted(op, out, block->token, block->from + p * PANEL, x, beyond - p * PANEL, act);
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

#define BY_ACT(run)                                                                                                    \
    switch (op->act) {                                                                                                 \
    case ACT_TANH: run(ACT_TANH); break;                                                                               \
    case ACT_SIGMOID: run(ACT_SIGMOID); break;                                                                         \
    case ACT_RELU2: run(ACT_RELU2); break;                                                                             \
    case ACT_ADD: run(ACT_ADD); break;                                                                                 \
    case ACT_ADD_GATED: run(ACT_ADD_GATED); break;                                                                     \
    default: run(ACT_NONE); break;                                                                                     \
    }

INLINE void close_block(const Op *op, Block block, const int whole) {
#define CLOSE(act) close_tokens(op, &block, block.left, whole, act)
    BY_ACT(CLOSE)
}

/* Panels from `first` on, two by two, and all tokens, 32 at a time: each tile that is loaded serves twice. While the
   products wait for each other, the block before is stored and the next two panels are asked for, of which there are
   `ready` behind w. */
INLINE void pass(const Op *op, const Call *call, int64_t first, int64_t panels, const char *w, int64_t ready, char *scratch,
                 const int whole, const int act) {
    int64_t bytes = whole ? 1 : 2, stride = op->in[0].stride * bytes, steps = op->matrix.stride * bytes / 64;
    int64_t blocks = (call->tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS, lines = (2 * 16 + blocks - 1) / blocks, turn = 0;
    Block before = {0};
    for (int64_t p = 0; p < panels; p += 2, w += 2 * steps * 1024) {
        int two = panels - p > 1;
        const char *next = p + 2 < ready ? w + 2 * steps * 1024 : NULL;
        for (int64_t t = 0; t < call->tokens; t += BLOCK_TOKENS) {
            int64_t tokens = call->tokens - t < BLOCK_TOKENS ? call->tokens - t : BLOCK_TOKENS;
            const char *x = (const char *)op->in[0].data + t * stride;
            char *sums = scratch + turn++ % 2 * BLOCK_BYTES;
            Block block = {t, tokens, (first + p) * PANEL, two + 1, sums};
            int64_t at_once = (before.left + steps - 1) / steps;
            ask_for_block(&op->out[0], t, tokens, block.from, block.panels);
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t k = 0; k < steps; k++) {
                _tile_loadd(4, x + k * 64, stride);
                _tile_loadd(6, w + k * 1024, 64);
                MULTIPLY(0, 4, 6);
                if (two) {
                    _tile_loadd(7, w + (steps + k) * 1024, 64);
                    MULTIPLY(1, 4, 7);
                }
                if (tokens > 16) {
                    _tile_loadd(5, x + 16 * stride + k * 64, stride);
                    MULTIPLY(2, 5, 6);
                    if (two) MULTIPLY(3, 5, 7);
                }
                for (int64_t i = 0; next && i < lines; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
                close_tokens(op, &before, at_once, whole, act);
            }
            _tile_stored(0, sums, ROW_BYTES);
            _tile_stored(1, sums + 64, ROW_BYTES);
            _tile_stored(2, sums + 16 * ROW_BYTES, ROW_BYTES);
            _tile_stored(3, sums + 16 * ROW_BYTES + 64, ROW_BYTES);
            before = block;
        }
    }
    close_tokens(op, &before, before.left, whole, act);
}

/* Buffers have room for whole tiles; what they hold beyond the tokens is dropped. Few tokens: the weights are read once.
   Many: two panels stay in the nearest cache while the tokens pass. */
INLINE void multiply_unit(const Op *op, const Call *call, int64_t unit, char *scratch, const int whole) {
    int64_t all = (op->matrix.out + PANEL - 1) / PANEL, from = unit * UNIT_PANELS;
    int64_t count = all - from < UNIT_PANELS ? all - from : UNIT_PANELS, bytes = whole ? 1 : 2;
    int64_t stride = op->in[0].stride * bytes, steps = op->matrix.stride * bytes / 64;
    const char *x = op->in[0].data, *w = (const char *)op->matrix.data + from * steps * 1024;
    if (count == UNIT_PANELS && call->tokens <= 32) {
        for (int64_t t = 0; t < call->tokens; t += 16) {
            int64_t tokens = call->tokens - t < 16 ? call->tokens - t : 16;
            ask_for_block(&op->out[0], t, tokens, from * PANEL, UNIT_PANELS);
            four_panels(x + t * stride, stride, w, steps, scratch, whole);
            close_block(op, (Block){t, tokens, from * PANEL, UNIT_PANELS, scratch}, whole);
        }
        return;
    }
#define PASS(act) pass(op, call, from, count, w, all - from, scratch, whole, act)
    BY_ACT(PASS)
}

KERNEL void amx_matmul_int8(const Op *op, const Call *call, int64_t unit, float *scratch) {
    multiply_unit(op, call, unit, (char *)scratch, 1);
}

KERNEL void amx_matmul_bf16(const Op *op, const Call *call, int64_t unit, float *scratch) {
    multiply_unit(op, call, unit, (char *)scratch, 0);
}

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
    int64_t bytes = (groups + 3) / 4 * BATCH_BYTES;
    const uint8_t *w = (const uint8_t *)op->matrix.data + from * bytes;
    char *sums = (char *)scratch, *expanded = sums + 2 * BLOCK_BYTES;
    for (int64_t p = 0; p < count; p++) expand_panel(w + p * bytes, groups, expanded + p * panel);
    if (count == UNIT_PANELS && call->tokens <= 16) {
        ask_for_block(&op->out[0], 0, call->tokens, from * PANEL, UNIT_PANELS);
        four_panels(op->in[0].data, op->in[0].stride, expanded, groups / 2, sums, 1);
        close_block(op, (Block){0, call->tokens, from * PANEL, UNIT_PANELS, sums}, 1);
        return;
    }
#define PASS_EXPANDED(act) pass(op, call, from, count, expanded, 0, sums, 1, act)
    BY_ACT(PASS_EXPANDED)
}
#else
int amx_start(void) { return 0; }
void amx_enter(void) {}
void amx_leave(void) {}
void amx_matmul_bf16(const Op *op, const Call *call, int64_t unit, float *scratch) { (void)op, (void)call, (void)unit, (void)scratch; }
void amx_matmul_int8(const Op *op, const Call *call, int64_t unit, float *scratch) { (void)op, (void)call, (void)unit, (void)scratch; }
void amx_matmul_int4(const Op *op, const Call *call, int64_t unit, float *scratch) { (void)op, (void)call, (void)unit, (void)scratch; }
#endif
