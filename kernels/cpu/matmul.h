/* Products with packed weights. A unit is UNIT_PANELS panels and all tokens; the tokens go in blocks, whose size is
   chosen by the registers there are. Each output is one sum over the inputs in their order, whatever the block. */

#define MAX_ROWS 8

/* Stores one vector of a token's sums, from output `at` on, after its act. */
INLINE void store_acted(const Op *op, const Buffer *out, int64_t token, int64_t at, vf x, int64_t left, const int act) {
    if (act == ACT_TANH) x = hyperbolic_tangent(x);
    if (act == ACT_SIGMOID) x = sigmoid(x);
    if (act == ACT_RELU2) x = larger(x, (vf){0}), x *= x;
    if (out->format == BF16) {
        store_bf16((uint16_t *)out->data + token * out->stride + at, x, left);
        return;
    }
    float *to = row_of(out, token) + at;
    if (act == ACT_ADD) x += load(to, left);
    if (act == ACT_ADD_GATED) x = load(to, left) + load(row_of(&op->in[1], token) + at, left) * x;
    store(to, x, left);
}

/* What becomes of one token's sums `acc` for `n` outputs from `from` on. */
KERNEL static __attribute__((noinline)) void finish(const Op *op, int64_t token, int64_t from, int64_t n, const float *acc) {
    if (from + n > op->matrix.out) n = op->matrix.out - from;
    const Buffer *out = &op->out[0];
    for (int64_t i = 0; i < n; i += LANES) {
        vf x = load(acc + i, n - i);
        switch (op->act) {
        case ACT_TANH: store_acted(op, out, token, from + i, x, n - i, ACT_TANH); break;
        case ACT_SIGMOID: store_acted(op, out, token, from + i, x, n - i, ACT_SIGMOID); break;
        case ACT_RELU2: store_acted(op, out, token, from + i, x, n - i, ACT_RELU2); break;
        case ACT_ADD: store_acted(op, out, token, from + i, x, n - i, ACT_ADD); break;
        case ACT_ADD_GATED: store_acted(op, out, token, from + i, x, n - i, ACT_ADD_GATED); break;
        default: store_acted(op, out, token, from + i, x, n - i, ACT_NONE); break;
        }
    }
}

#define VECTORS (PANEL / LANES) /* of a panel */

/* How far ahead to ask for weights, `done` bytes into a panel of so many: behind its end comes the same panel of the next
   unit, which the same thread is likely to take. */
INLINE int64_t distance(int64_t done, int64_t bytes, const int panels) {
    return panels < UNIT_PANELS || done + AHEAD < bytes ? AHEAD : AHEAD + (UNIT_PANELS - 1) * bytes;
}

INLINE void block_f32(const Op *op, int64_t token, int64_t panel, const int rows, const int panels) {
    int64_t k_end = op->matrix.in, step = k_end * PANEL;
    const float *w = (const float *)op->matrix.data + panel * step;
    const float *x = row_of(&op->in[0], token);
    int64_t stride = op->in[0].stride;
    vf acc[MAX_ROWS][UNIT_PANELS * VECTORS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels * VECTORS; p++) acc[r][p] = (vf){0};
    for (int64_t k = 0; k < k_end; k++) {
        int64_t further = distance(k * PANEL * 4, step * 4, panels);
        vf weight[UNIT_PANELS * VECTORS];
        for (int p = 0; p < panels; p++)
            for (int v = 0; v < VECTORS; v++)
                weight[p * VECTORS + v] = load_whole(ahead(w + p * step + k * PANEL + v * LANES, further));
        for (int r = 0; r < rows; r++) {
            vf one = splat(x[r * stride + k]);
            for (int p = 0; p < panels * VECTORS; p++) acc[r][p] += one * weight[p];
        }
    }
    for (int r = 0; r < rows; r++) {
        float sums[UNIT_PANELS * PANEL];
        for (int p = 0; p < panels * VECTORS; p++) store(sums + p * LANES, acc[r][p], LANES);
        finish(op, token + r, panel * PANEL, panels * PANEL, sums);
    }
}

#ifdef HAS_VNNI
INLINE void block_bf16(const Op *op, int64_t token, int64_t panel, const int rows, const int panels) {
    int64_t pairs = op->matrix.stride / 2, step = pairs * PANEL, stride = op->in[0].stride / 2;
    const uint32_t *w = (const uint32_t *)op->matrix.data + panel * step;
    const uint32_t *x = (const uint32_t *)op->in[0].data + token * stride;
    __m512 acc[MAX_ROWS][UNIT_PANELS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) acc[r][p] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++) {
        int64_t further = distance(k * PANEL * 4, step * 4, panels);
        __m512i weight[UNIT_PANELS];
        for (int p = 0; p < panels; p++) weight[p] = _mm512_loadu_si512(ahead(w + p * step + k * PANEL, further));
        for (int r = 0; r < rows; r++) {
            __m512i two = _mm512_set1_epi32((int)x[r * stride + k]);
            for (int p = 0; p < panels; p++) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], (__m512bh)two, (__m512bh)weight[p]);
        }
    }
    for (int r = 0; r < rows; r++) {
        float sums[UNIT_PANELS * PANEL];
        for (int p = 0; p < panels; p++) _mm512_storeu_ps(sums + p * PANEL, acc[r][p]);
        finish(op, token + r, panel * PANEL, panels * PANEL, sums);
    }
}
#else
INLINE void block_bf16(const Op *op, int64_t token, int64_t panel, const int rows, const int panels) {
    int64_t pairs = op->matrix.stride / 2, step = pairs * PANEL, stride = op->in[0].stride;
    const uint32_t *w = (const uint32_t *)op->matrix.data + panel * step;
    const uint16_t *x = (const uint16_t *)op->in[0].data + token * stride;
    vf acc[MAX_ROWS][UNIT_PANELS * VECTORS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels * VECTORS; p++) acc[r][p] = (vf){0};
    for (int64_t k = 0; k < pairs; k++)
        for (int r = 0; r < rows; r++) {
            uint32_t bits[2] = {(uint32_t)x[r * stride + 2 * k] << 16, (uint32_t)x[r * stride + 2 * k + 1] << 16};
            float two[2];
            memcpy(two, bits, sizeof two);
            for (int p = 0; p < panels; p++)
                for (int v = 0; v < VECTORS; v++) {
                    vu pair;
                    memcpy(&pair, w + p * step + k * PANEL + v * LANES, sizeof pair);
                    acc[r][p * VECTORS + v] += splat(two[0]) * (vf)(pair << 16);
                    acc[r][p * VECTORS + v] += splat(two[1]) * (vf)(pair & 0xffff0000u);
                }
        }
    for (int r = 0; r < rows; r++) {
        float sums[UNIT_PANELS * PANEL];
        for (int p = 0; p < panels * VECTORS; p++) store(sums + p * LANES, acc[r][p], LANES);
        finish(op, token + r, panel * PANEL, panels * PANEL, sums);
    }
}
#endif

/* Scales one token's integer sums of weights that are stored `higher` than they are. */
KERNEL static __attribute__((noinline)) void finish_whole(const Op *op, int64_t token, int64_t from, int64_t n, const int32_t *sums,
                                                          int32_t higher) {
    const int32_t *header = (const int32_t *)op->in[0].scale + token * op->in[0].scale_stride;
    const float *scales = (const float *)op->matrix.scale + from;
    float scale, acc[UNIT_PANELS * PANEL];
    memcpy(&scale, header, sizeof scale);
    int32_t excess = higher * header[1];
    if (from + n > op->matrix.out) n = op->matrix.out - from;
    for (int64_t i = 0; i < n; i++) acc[i] = (float)(sums[i] - excess) * (scale * scales[i]);
    finish(op, token, from, n, acc);
}

#ifdef HAS_VNNI
INLINE void block_int8(const Op *op, int64_t token, int64_t panel, const int rows, const int panels) {
    int64_t fours = op->matrix.stride / 4, step = fours * PANEL, stride = op->in[0].stride / 4;
    const uint32_t *w = (const uint32_t *)op->matrix.data + panel * step;
    const uint32_t *x = (const uint32_t *)op->in[0].data + token * stride;
    __m512i acc[MAX_ROWS][UNIT_PANELS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) acc[r][p] = _mm512_setzero_si512();
    for (int64_t k = 0; k < fours; k++) {
        int64_t further = distance(k * PANEL * 4, step * 4, panels);
        __m512i weight[UNIT_PANELS];
        for (int p = 0; p < panels; p++) weight[p] = _mm512_loadu_si512(ahead(w + p * step + k * PANEL, further));
        for (int r = 0; r < rows; r++) {
            __m512i four = _mm512_set1_epi32((int)x[r * stride + k]);
            for (int p = 0; p < panels; p++) acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], weight[p], four);
        }
    }
    for (int r = 0; r < rows; r++) {
        int32_t sums[UNIT_PANELS * PANEL];
        for (int p = 0; p < panels; p++) _mm512_storeu_si512(sums + p * PANEL, acc[r][p]);
        finish_whole(op, token + r, panel * PANEL, panels * PANEL, sums, 128);
    }
}

INLINE void block_int4(const Op *op, int64_t token, int64_t panel, const int rows, const int panels) {
    int64_t groups = op->matrix.stride / GROUP, step = (groups + 3) / 4 * BATCH_BYTES, stride = op->in[0].stride / 4;
    const uint8_t *w = (const uint8_t *)op->matrix.data + panel * step;
    const uint32_t *x = (const uint32_t *)op->in[0].data + token * stride;
    const int32_t *header = (const int32_t *)op->in[0].scale + token * op->in[0].scale_stride;
    const __m512i low_half = _mm512_set1_epi8(15), low_word = _mm512_set1_epi32(0xffff);
    __m512i acc[MAX_ROWS][UNIT_PANELS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) acc[r][p] = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; g++) {
        int64_t at = g / 4 * BATCH_BYTES, further = distance(at, step, panels);
        __m512i sums[MAX_ROWS][UNIT_PANELS];
        for (int r = 0; r < rows; r++) {
            __m512i excess = _mm512_set1_epi32(-8 * header[r * op->in[0].scale_stride + 2 + g]);
            for (int p = 0; p < panels; p++) sums[r][p] = excess;
        }
        for (int m = 0; m < 4; m++)
            for (int p = 0; p < panels; p++) {
                __m512i both = _mm512_loadu_si512(ahead(w + p * step + at + g % 4 * GROUP_BYTES + m * 64, further));
                __m512i low = _mm512_and_si512(both, low_half);
                __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
                for (int r = 0; r < rows; r++) {
                    const uint32_t *fours = x + r * stride + g * 8 + m * 2;
                    sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], low, _mm512_set1_epi32((int)fours[0]));
                    sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], high, _mm512_set1_epi32((int)fours[1]));
                }
            }
        for (int p = 0; p < panels; p++) { /* a group's sum is at most 32 * 127 * 8, so 16 bits of it are enough */
            __m128i few = _mm_loadu_si128((const void *)(w + p * step + at + 4 * GROUP_BYTES + g % 4 * PANEL));
            __m512i multiplier = _mm512_and_si512(_mm512_cvtepi8_epi32(few), low_word);
            for (int r = 0; r < rows; r++) acc[r][p] = _mm512_dpwssd_epi32(acc[r][p], sums[r][p], multiplier);
        }
    }
    for (int r = 0; r < rows; r++) {
        int32_t sums[UNIT_PANELS * PANEL];
        for (int p = 0; p < panels; p++) _mm512_storeu_si512(sums + p * PANEL, acc[r][p]);
        finish_whole(op, token + r, panel * PANEL, panels * PANEL, sums, 0);
    }
}
#else
INLINE void block_int8(const Op *op, int64_t token, int64_t panel, const int rows, const int panels) {
    int64_t fours = op->matrix.stride / 4, step = fours * PANEL * 4, stride = op->in[0].stride;
    for (int r = 0; r < rows; r++) {
        int32_t acc[UNIT_PANELS * PANEL] = {0};
        const int8_t *x = (const int8_t *)op->in[0].data + (token + r) * stride;
        for (int p = 0; p < panels; p++) {
            const uint8_t *w = (const uint8_t *)op->matrix.data + (panel + p) * step;
            for (int64_t k = 0; k < fours; k++, w += PANEL * 4)
                for (int o = 0; o < PANEL; o++)
                    for (int j = 0; j < 4; j++) acc[p * PANEL + o] += (int32_t)w[o * 4 + j] * x[k * 4 + j];
        }
        finish_whole(op, token + r, panel * PANEL, panels * PANEL, acc, 128);
    }
}

INLINE void block_int4(const Op *op, int64_t token, int64_t panel, const int rows, const int panels) {
    int64_t groups = op->matrix.stride / GROUP, step = (groups + 3) / 4 * BATCH_BYTES, stride = op->in[0].stride;
    for (int r = 0; r < rows; r++) {
        const int32_t *header = (const int32_t *)op->in[0].scale + (token + r) * op->in[0].scale_stride;
        const int8_t *x = (const int8_t *)op->in[0].data + (token + r) * stride;
        int32_t acc[UNIT_PANELS * PANEL] = {0};
        for (int p = 0; p < panels; p++)
            for (int64_t g = 0; g < groups; g++) {
                const uint8_t *batch = (const uint8_t *)op->matrix.data + (panel + p) * step + g / 4 * BATCH_BYTES;
                const uint8_t *w = batch + g % 4 * GROUP_BYTES;
                const int8_t *multipliers = (const int8_t *)batch + 4 * GROUP_BYTES + g % 4 * PANEL;
                int32_t sums[PANEL];
                for (int o = 0; o < PANEL; o++) sums[o] = -8 * header[2 + g];
                for (int m = 0; m < 4; m++)
                    for (int o = 0; o < PANEL; o++)
                        for (int j = 0; j < 4; j++) {
                            int32_t both = w[m * 64 + o * 4 + j];
                            sums[o] += (both & 15) * x[g * 32 + m * 8 + j] + (both >> 4) * x[g * 32 + m * 8 + 4 + j];
                        }
                for (int o = 0; o < PANEL; o++) acc[p * PANEL + o] += sums[o] * multipliers[o];
            }
        finish_whole(op, token + r, panel * PANEL, panels * PANEL, acc, 0);
    }
}
#endif
