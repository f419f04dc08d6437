/* What is done token by token: embedding, norms, token shift with its mixes, conversion for the products. */

INLINE float *row_of(const Buffer *buffer, int64_t token) { return (float *)buffer->data + token * buffer->stride; }

/* The larger of magnitudes as integers, which have the same order; a NaN is above all numbers. */
INLINE vi wider(vi most, vf x) {
    vi bits = (vi)magnitude(x);
#if LANES == 16
    return (vi)_mm512_max_epi32((__m512i)most, (__m512i)bits);
#else
    return (vi)choose(most > bits, (vf)most, (vf)bits);
#endif
}

INLINE float widest(vi most) {
    int32_t bits[LANES];
    float top;
    memcpy(bits, &most, sizeof bits);
    for (int i = 1; i < LANES; i++) bits[0] = bits[i] > bits[0] ? bits[i] : bits[0];
    memcpy(&top, bits, sizeof top);
    return top;
}

/* x, whose largest magnitude is `top`, as INT8; where that is no number, neither is the scale. */
KERNEL static void quantize_row(const float *x, float top, const Buffer *out, int64_t token) {
    int64_t n = out->width;
    float inverse = top > 0x1p-119f ? 127.0f / top : 0.0f; /* of less it would be infinite */
    int8_t *to = (int8_t *)out->data + token * out->stride;
    int32_t *header = (int32_t *)out->scale + token * out->scale_stride;
    float scale = top / 127.0f + top * 0.0f;
    memcpy(header, &scale, sizeof scale);
    header[1] = 0;
#if LANES == 16
    /* The packs leave a quarter of each vector in a quarter of the line. A NaN becomes the least integer, and then -127. */
    const __m512i sorted = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t i = 0; i < n; i += 2 * GROUP) {
        __m512i v[4];
        for (int j = 0; j < 4; j++) {
            int64_t left = n - i - j * LANES;
            vf scaled = left > 0 ? load(x + i + j * LANES, left) * inverse : (vf){0};
            v[j] = _mm512_max_epi32(_mm512_cvtps_epi32((__m512)scaled), _mm512_set1_epi32(-127));
        }
        __m512i line = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
        line = _mm512_permutexvar_epi32(sorted, line);
        _mm512_storeu_si512(to + i, line); /* behind the numbers there is room, and zeros are written there */
        __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), line);
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, 0x4e));
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, 0xb1));
        sums = _mm512_add_epi32(sums, _mm512_shuffle_i64x2(sums, sums, 0xb1));
        header[2 + i / GROUP] = _mm_cvtsi128_si32(_mm512_castsi512_si128(sums));
        header[3 + i / GROUP] = _mm_cvtsi128_si32(_mm512_extracti32x4_epi32(sums, 2));
        header[1] += header[2 + i / GROUP] + header[3 + i / GROUP];
    }
#else
    for (int64_t group = 0; group * GROUP < n; group++) {
        vf part = {0}; /* of whole numbers, so exact */
        for (int64_t i = group * GROUP; i < (group + 1) * GROUP && i < n; i += LANES) {
            vf integer = load(x + i, n - i) * inverse + ROUND_TO_INTEGER - ROUND_TO_INTEGER;
            integer = larger(integer, splat(-127.0f)); /* a NaN has no integer */
            vb bytes = __builtin_convertvector(__builtin_convertvector(integer, vi), vb);
            memcpy(to + i, &bytes, sizeof bytes); /* behind the numbers there is room, and zeros are written there */
            part += integer;
        }
        header[2 + group] = (int32_t)sum(part);
        header[1] += header[2 + group];
    }
#endif
}

/* x as `out` keeps it. */
KERNEL static void pack_row(const float *x, const Buffer *out, int64_t token) {
    int64_t n = out->width;
    if (out->format == F32) {
        float *to = row_of(out, token);
        if (to != x) memcpy(to, x, (size_t)n * sizeof(float));
    } else if (out->format == BF16) {
        uint16_t *to = (uint16_t *)out->data + token * out->stride;
        EACH_VECTOR(i, left, n, store_bf16(to + i, load(x + i, left), left););
    } else {
        vi most = {0};
        EACH_VECTOR(i, left, n, most = wider(most, load(x + i, left)););
        quantize_row(x, widest(most), out, token);
    }
}

/* y + share * change, as `out` keeps it. */
KERNEL static void mix_row(const float *y, const float *change, const float *share, const Buffer *out, int64_t token,
                           float *scratch) {
    int64_t n = out->width;
    if (out->format == BF16) {
        uint16_t *to = (uint16_t *)out->data + token * out->stride;
        EACH_VECTOR(i, left, n, {
            vf mixed = fused(load(share + i, left), load(change + i, left), load(y + i, left));
            store_bf16(to + i, mixed, left);
        });
        return;
    }
    vi most = {0};
    float *to = out->format == F32 ? row_of(out, token) : scratch;
    EACH_VECTOR(i, left, n, {
        vf mixed = fused(load(share + i, left), load(change + i, left), load(y + i, left));
        store(to + i, mixed, left);
        most = wider(most, mixed);
    });
    if (out->format == INT8) quantize_row(scratch, widest(most), out, token);
}

KERNEL static void normalize(const float *x, const float *weight, const float *bias, int64_t n, float eps, float *y) {
    vf total[4] = {{0}}, squares[4] = {{0}}; /* four sums, because each waits for its last number */
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) total[j] += load(x + i + j * LANES, LANES);
    for (; i < n; i += LANES) total[0] += load(x + i, n - i);
    float mean = sum((total[0] + total[1]) + (total[2] + total[3])) / (float)n;
    for (i = 0; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) {
            vf d = load(x + i + j * LANES, LANES) - mean;
            squares[j] += d * d;
        }
    for (; i < n; i += LANES) {
        vf d = load(x + i, n - i) - mean;
        if (n - i < LANES) d = only(d, n - i);
        squares[0] += d * d;
    }
    float inverse = 1.0f / sqrtf(sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)n + eps);
    EACH_VECTOR(i, left, n, {
        vf d = (load(x + i, left) - mean) * inverse;
        store(y + i, d * load(weight + i, left) + load(bias + i, left), left);
    });
}

KERNEL static void run_embed(const Op *op, const Call *call, int64_t unit, float *scratch) {
    int64_t n = op->matrix.in, first = unit * MIX_TOKENS, end = first + MIX_TOKENS;
    for (int64_t t = first; t < end && t < call->tokens; t++) {
        int64_t at = call->ids[t] * n;
        const float *x = scratch;
        if (op->matrix.format == F32) x = (const float *)op->matrix.data + at;
        else if (op->matrix.format == BF16)
            for (int64_t i = 0; i < n; i++) {
                uint32_t bits = (uint32_t)((const uint16_t *)op->matrix.data)[at + i] << 16;
                memcpy(scratch + i, &bits, sizeof bits);
            }
        else
            for (int64_t i = 0; i < n; i++) { /* float16: shifted into place, then its exponent's bias made up for */
                uint32_t half = ((const uint16_t *)op->matrix.data)[at + i], bits = (half & 0x7fff) << 13;
                float value;
                memcpy(&value, &bits, sizeof bits);
                scratch[i] = half & 0x8000 ? value * -0x1p112f : value * 0x1p112f;
            }
        normalize(x, op->vec[0], op->vec[1], n, op->eps, row_of(&op->out[0], t));
    }
}

INLINE int64_t row_with(const Call *call, int64_t token) {
    int64_t low = 0, high = call->rows;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (call->starts[middle] <= token) low = middle;
        else high = middle;
    }
    return low;
}

/* Layer norm, then for each output j the norm itself or its mix with the token before: y + share_j (before - y). The
   unit with a row's first token reads what the slot holds and leaves the row's last norm in it, so that nobody else
   touches it. */
KERNEL static void run_mix(const Op *op, const Call *call, int64_t unit, float *scratch) {
    int64_t n = op->in[0].width, first = unit * MIX_TOKENS, end = first + MIX_TOKENS;
    float *y = scratch, *before = scratch + 16384, *change = scratch + 32768, *mixed = scratch + 49152;
    int64_t row = op->offset < 0 ? 0 : row_with(call, first);
    for (int64_t t = first; t < end && t < call->tokens; t++) {
        if (op->offset >= 0) {
            while (t >= call->starts[row + 1]) row++;
            int64_t slot = call->slots[row], last = call->starts[row + 1] - 1;
            float *shift = call->shift + slot * call->shift_stride + op->offset;
            if (t > call->starts[row]) {
                if (t == first) normalize(row_of(&op->in[0], t - 1), op->vec[0], op->vec[1], n, op->eps, y);
                float *swap = y;
                y = before;
                before = swap;
            } else if (slot >= 0) {
                memcpy(before, shift, (size_t)n * sizeof(float));
                normalize(row_of(&op->in[0], last), op->vec[0], op->vec[1], n, op->eps, shift);
            } else {
                memset(before, 0, (size_t)n * sizeof(float));
            }
        }
        normalize(row_of(&op->in[0], t), op->vec[0], op->vec[1], n, op->eps, y);
        EACH_VECTOR(i, left, n, store(change + i, load(before + i, left) - load(y + i, left), left););
        for (int j = 0; j < op->count; j++) {
            const float *share = op->vec[2 + j];
            if (share) mix_row(y, change, share, &op->out[j], t, mixed);
            else pack_row(y, &op->out[j], t);
        }
    }
}

/* out_j = x + (share_j + in_{2+j}) (before - x), with x = in_0 and before = in_1. */
KERNEL static void run_lerp(const Op *op, const Call *call, int64_t unit, float *scratch) {
    int64_t n = op->in[0].width, first = unit * MIX_TOKENS, end = first + MIX_TOKENS;
    float *change = scratch, *shares = scratch + 16384, *mixed = scratch + 32768;
    for (int64_t t = first; t < end && t < call->tokens; t++) {
        const float *x = row_of(&op->in[0], t), *before = row_of(&op->in[1], t);
        EACH_VECTOR(i, left, n, store(change + i, load(before + i, left) - load(x + i, left), left););
        for (int j = 0; j < op->count; j++) {
            const float *more = row_of(&op->in[2 + j], t);
            EACH_VECTOR(i, left, n, store(shares + i, load(op->vec[j] + i, left) + load(more + i, left), left););
            mix_row(x, change, shares, &op->out[j], t, mixed);
        }
    }
}

KERNEL static void run_pack(const Op *op, const Call *call, int64_t unit, float *scratch) {
    (void)scratch;
    int64_t first = unit * MIX_TOKENS, end = first + MIX_TOKENS;
    for (int64_t t = first; t < end && t < call->tokens; t++)
        for (int j = 0; j < op->count; j++) pack_row(row_of(&op->in[j], t), &op->out[j], t);
}
