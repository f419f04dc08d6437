/* What is done token by token: embedding, norms, token shift with its mixes, conversion for the products. */

INLINE float *row_of(const Buffer *buffer, int64_t token) { return (float *)buffer->data + token * buffer->stride; }

/* x as `out` keeps it. */
KERNEL static void pack_row(const float *x, const Buffer *out, int64_t token) {
    int64_t n = out->width;
    if (out->format == F32) {
        float *to = row_of(out, token);
        if (to != x) memcpy(to, x, (size_t)n * sizeof(float));
        return;
    }
    if (out->format == BF16) {
        uint16_t *to = (uint16_t *)out->data + token * out->stride;
        for (int64_t i = 0; i < n; i += LANES) store_bf16(to + i, load(x + i, n - i), n - i);
        return;
    }
    vf most = {0}, poison = {0}; /* 0 * NaN: a NaN must not become a number here */
    for (int64_t i = 0; i < n; i += LANES) {
        vf v = load(x + i, n - i);
        most = larger(magnitude(v), most);
        poison += v * 0.0f;
    }
    float top = largest(most), inverse = top > 0x1p-119f ? 127.0f / top : 0.0f; /* of less it would be infinite */
    int8_t *to = (int8_t *)out->data + token * out->stride;
    int32_t *header = (int32_t *)out->scale + token * out->scale_stride, total = 0;
    float scale = top / 127.0f + sum(poison);
    for (int64_t group = 0; group * GROUP < n; group++) {
        vf part = {0}; /* of whole numbers, so exact */
        for (int64_t i = group * GROUP; i < (group + 1) * GROUP && i < n; i += LANES) {
            vf whole = load(x + i, n - i) * inverse + ROUND_TO_INTEGER - ROUND_TO_INTEGER;
            whole = larger(whole, splat(-127.0f)); /* a NaN has no integer; the scale keeps it */
            vb bytes = __builtin_convertvector(__builtin_convertvector(whole, vi), vb);
            memcpy(to + i, &bytes, sizeof bytes); /* behind the numbers there is room, and zeros are written there */
            part += whole;
        }
        header[2 + group] = (int32_t)sum(part);
        total += header[2 + group];
    }
    memcpy(header, &scale, sizeof scale);
    header[1] = total;
}

KERNEL static void normalize(const float *x, const float *weight, const float *bias, int64_t n, float eps, float *y) {
    vf total = {0}, squares = {0};
    for (int64_t i = 0; i < n; i += LANES) total += load(x + i, n - i);
    float mean = sum(total) / (float)n;
    for (int64_t i = 0; i < n; i += LANES) {
        vf d = load(x + i, n - i) - mean;
        if (n - i < LANES) d = only(d, n - i);
        squares += d * d;
    }
    float inverse = 1.0f / sqrtf(sum(squares) / (float)n + eps);
    for (int64_t i = 0; i < n; i += LANES) {
        vf d = (load(x + i, n - i) - mean) * inverse;
        store(y + i, d * load(weight + i, n - i) + load(bias + i, n - i), n - i);
    }
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
    float *y = scratch, *before = scratch + 16384, *mixed = scratch + 32768;
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
        for (int j = 0; j < op->count; j++) {
            const Buffer *out = &op->out[j];
            const float *share = op->vec[2 + j];
            float *to = out->format == F32 ? row_of(out, t) : mixed;
            if (share)
                for (int64_t i = 0; i < n; i += LANES) {
                    vf now = load(y + i, n - i);
                    store(to + i, now + load(share + i, n - i) * (load(before + i, n - i) - now), n - i);
                }
            else memcpy(to, y, (size_t)n * sizeof(float));
            if (out->format != F32) pack_row(mixed, out, t);
        }
    }
}

/* out_j = x + (share_j + in_{2+j}) (before - x), with x = in_0 and before = in_1. */
KERNEL static void run_lerp(const Op *op, const Call *call, int64_t unit, float *scratch) {
    int64_t n = op->in[0].width, first = unit * MIX_TOKENS, end = first + MIX_TOKENS;
    for (int64_t t = first; t < end && t < call->tokens; t++) {
        const float *x = row_of(&op->in[0], t), *before = row_of(&op->in[1], t);
        for (int j = 0; j < op->count; j++) {
            const Buffer *out = &op->out[j];
            const float *more = row_of(&op->in[2 + j], t);
            float *to = out->format == F32 ? row_of(out, t) : scratch;
            for (int64_t i = 0; i < n; i += LANES) {
                vf now = load(x + i, n - i), share = load(op->vec[j] + i, n - i) + load(more + i, n - i);
                store(to + i, now + share * (load(before + i, n - i) - now), n - i);
            }
            if (out->format != F32) pack_row(scratch, out, t);
        }
    }
}

KERNEL static void run_pack(const Op *op, const Call *call, int64_t unit, float *scratch) {
    (void)scratch;
    int64_t first = unit * MIX_TOKENS, end = first + MIX_TOKENS;
    for (int64_t t = first; t < end && t < call->tokens; t++)
        for (int j = 0; j < op->count; j++) pack_row(row_of(&op->in[j], t), &op->out[j], t);
}
