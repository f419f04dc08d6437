/* Products by the matrix unit (AMX): 16 tokens x 16 outputs at once, four such tiles in flight.

   INT8 gives the same integers as the vector form, so the same floats to the last bit. */
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

/* `sums` [32][32] of up to 2 x 16 tokens and 2 panels. */
#define TILES(multiply)                                                                                                \
    _tile_zero(0);                                                                                                     \
    _tile_zero(1);                                                                                                     \
    _tile_zero(2);                                                                                                     \
    _tile_zero(3);                                                                                                     \
    for (int64_t k = 0; k < steps; k++) {                                                                              \
        _tile_loadd(4, x + k * 64, stride);                                                                            \
        _tile_loadd(6, w + k * 1024, 64);                                                                              \
        multiply(0, 4, 6);                                                                                             \
        if (panels > 1) {                                                                                              \
            _tile_loadd(7, w + (steps + k) * 1024, 64);                                                                \
            multiply(1, 4, 7);                                                                                         \
        }                                                                                                              \
        if (tokens > 16) {                                                                                             \
            _tile_loadd(5, x + 16 * stride + k * 64, stride);                                                          \
            multiply(2, 5, 6);                                                                                         \
            if (panels > 1) multiply(3, 5, 7);                                                                         \
        }                                                                                                              \
    }                                                                                                                  \
    _tile_stored(0, sums, 128);                                                                                        \
    _tile_stored(1, sums + 16, 128);                                                                                   \
    _tile_stored(2, sums + 16 * 32, 128);                                                                              \
    _tile_stored(3, sums + 16 * 32 + 16, 128);

KERNEL static void tiles_int8(const char *x, int64_t stride, const char *w, int64_t steps, int64_t tokens,
                              int64_t panels, int32_t *sums) {
    TILES(_tile_dpbsud)
}

KERNEL static void tiles_bf16(const char *x, int64_t stride, const char *w, int64_t steps, int64_t tokens,
                              int64_t panels, float *sums) {
    TILES(_tile_dpbf16ps)
}

/* Blocks of 32 tokens and 2 panels; buffers have room for whole tiles, what they hold beyond the tokens is dropped. */
#define TILED(name, tiles, number, bytes, done)                                                                        \
    KERNEL void name(const Op *op, const Call *call, int64_t unit, float *scratch) {                                   \
        number *sums = (number *)scratch;                                                                              \
        int64_t all = (op->matrix.out + PANEL - 1) / PANEL, from = unit * UNIT_PANELS, to = from + UNIT_PANELS;        \
        if (to > all) to = all;                                                                                        \
        int64_t stride = op->in[0].stride * bytes, steps = op->matrix.stride * bytes / 64;                             \
        for (int64_t t = 0; t < call->tokens; t += 32)                                                                 \
            for (int64_t p = from; p < to; p += 2) {                                                                   \
                int64_t panels = to - p < 2 ? to - p : 2, tokens = call->tokens - t < 32 ? call->tokens - t : 32;      \
                tiles((const char *)op->in[0].data + t * stride, stride,                                               \
                      (const char *)op->matrix.data + p * steps * 1024, steps, tokens, panels, sums);                  \
                for (int64_t i = 0; i < tokens; i++) done(op, t + i, p * PANEL, panels * PANEL, sums + i * 32);        \
            }                                                                                                          \
    }

TILED(amx_matmul_int8, tiles_int8, int32_t, 1, finish_int8)
TILED(amx_matmul_bf16, tiles_bf16, float, 2, finish)
#else
int amx_start(void) { return 0; }
void amx_enter(void) {}
void amx_leave(void) {}
void amx_matmul_bf16(const Op *op, const Call *call, int64_t unit, float *scratch) { (void)op, (void)call, (void)unit, (void)scratch; }
void amx_matmul_int8(const Op *op, const Call *call, int64_t unit, float *scratch) { (void)op, (void)call, (void)unit, (void)scratch; }
#endif
