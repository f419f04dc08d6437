/* The whole of the kernels for one kind of processor. The file that includes this defines TIER, LANES, TARGET and how
   many tokens a product takes at once. */
#include "step.h"

#include "vector.h"

#include "rows.h"

#include "wkv.h"

#include "matmul.h"

#include "sample.h"

/* All tokens and panels of a unit by `block`: UNIT_PANELS at once for up to `wide` tokens, else panel by panel with up
   to `narrow` tokens. */
#define PRODUCT(name, block, wide, narrow)                                                                             \
    KERNEL static void name(const Op *op, const Call *call, int64_t unit, float *scratch) {                            \
        (void)scratch;                                                                                                 \
        int64_t all = (op->matrix.out + PANEL - 1) / PANEL, from = unit * UNIT_PANELS, to = from + UNIT_PANELS;        \
        if (to > all) to = all;                                                                                        \
        int64_t tokens = call->tokens, t = 0;                                                                          \
        if (to - from == UNIT_PANELS && (wide >= 4 || tokens <= wide)) {                                               \
            for (; wide >= 6 && tokens - t >= 6; t += 6) block(op, t, from, wide >= 6 ? 6 : 1, UNIT_PANELS);           \
            for (; wide >= 4 && tokens - t >= 4; t += 4) block(op, t, from, wide >= 4 ? 4 : 1, UNIT_PANELS);           \
            for (; wide >= 2 && tokens - t >= 2; t += 2) block(op, t, from, wide >= 2 ? 2 : 1, UNIT_PANELS);           \
            for (; t < tokens; t++) block(op, t, from, 1, UNIT_PANELS);                                                \
            return;                                                                                                    \
        }                                                                                                              \
        for (int64_t p = from; p < to; p++) {                                                                          \
            t = 0;                                                                                                     \
            for (; narrow >= 8 && tokens - t >= 8; t += 8) block(op, t, p, narrow >= 8 ? 8 : 1, 1);                    \
            for (; narrow >= 6 && tokens - t >= 6; t += 6) block(op, t, p, narrow >= 6 ? 6 : 1, 1);                    \
            for (; narrow >= 4 && tokens - t >= 4; t += 4) block(op, t, p, narrow >= 4 ? 4 : 1, 1);                    \
            for (; narrow >= 2 && tokens - t >= 2; t += 2) block(op, t, p, narrow >= 2 ? 2 : 1, 1);                    \
            for (; t < tokens; t++) block(op, t, p, 1, 1);                                                             \
        }                                                                                                              \
    }

PRODUCT(run_matmul_f32, block_f32, WIDE, NARROW)
PRODUCT(run_matmul_bf16, block_bf16, WIDE, NARROW)
PRODUCT(run_matmul_int8, block_int8, WIDE, NARROW)
PRODUCT(run_matmul_int4, block_int4, WIDE_INT4, NARROW_INT4)

#define JOIN(a, b) a##b
#define NAME(a, b) JOIN(a, b)
#define TEXT(a) #a
#define QUOTE(a) TEXT(a)

const Tier NAME(tier_, TIER) = {
    .name = QUOTE(TIER),
    .embed = run_embed,
    .mix = run_mix,
    .lerp = run_lerp,
    .pack = run_pack,
    .wkv4 = run_wkv4,
    .wkv6 = run_wkv6,
    .wkv7 = run_wkv7,
    .sample = run_sample,
    .matmul = {[F32] = run_matmul_f32, [BF16] = run_matmul_bf16, [INT8] = run_matmul_int8, [INT4] = run_matmul_int4},
};
