"""RWKV-7's heads in Triton: one kernel token by token; in chunks, one before their scan and one after.

Verified in Triton's interpreter only.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..norms import HEAD_NORM_EPS
from ..rows import Rows
from ..wkv7_heads import LONGEST_STEP, HeadWeights
from . import forms
from .chunk_scan import chunk_count, scan_chunks
from .tiles import CHUNK, find_chunk, fit, key_block, normed, operand_dtype, row_block, row_range, state_block
from .wkv7 import chunk_operators, store_operators


@triton.jit
def _value(v_ptr, v_first_ptr, v_share_ptr, v0_ptr, at, channel, mask, inside, FIRST: tl.constexpr):
    """The value after its mix with layer 0's."""
    v = tl.load(v_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if not FIRST:
        share = tl.load(v_share_ptr + at, mask=mask, other=0.0).to(tl.float32)
        share = tl.sigmoid(share + tl.load(v0_ptr + channel, mask=inside, other=0.0))
        v += share * (tl.load(v_first_ptr + at, mask=mask, other=0.0).to(tl.float32) - v)
    return v


@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "starts_ptr"])
def _recurrent_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, g_ptr, v_first_ptr, v_share_ptr,
    w0_ptr, a0_ptr, v0_ptr, k_k_ptr, k_a_ptr, r_k_ptr, norm_weight_ptr, norm_bias_ptr,
    state_ptr, slots_ptr, starts_ptr, out_ptr, state_stride, heads,
    D: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr, LONGEST_STEP: tl.constexpr, NORM_EPS: tl.constexpr,
    DECODE: tl.constexpr,
):  # fmt: skip
    """One program a (row, head): the state stays in registers over the row's tokens."""
    row, head = tl.program_id(1).to(tl.int64), tl.program_id(0)
    slot = tl.load(slots_ptr + row)
    key = tl.arange(0, BLOCK)
    value = tl.arange(0, BLOCK)
    in_key, in_value = key < D, value < D
    held, live = state_block(state_ptr, slot, state_stride, head, value[:, None], key[None, :], D)
    s = tl.load(held, mask=live, other=0.0).to(tl.float32)
    channel = head * D + key
    out = head * D + value
    w0 = tl.load(w0_ptr + channel, mask=in_key, other=0.0)
    a0 = tl.load(a0_ptr + channel, mask=in_key, other=0.0)
    k_k = tl.load(k_k_ptr + channel, mask=in_key, other=0.0)
    k_a = tl.load(k_a_ptr + channel, mask=in_key, other=0.0)
    r_k = tl.load(r_k_ptr + channel, mask=in_key, other=0.0)
    norm_weight = tl.load(norm_weight_ptr + out, mask=in_value, other=0.0)
    norm_bias = tl.load(norm_bias_ptr + out, mask=in_value, other=0.0)

    first, stop = row_range(row, starts_ptr, DECODE)
    for t in range(first, stop):
        at = t * heads * D + channel
        r = tl.load(r_ptr + at, mask=in_key, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + at, mask=in_key, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + at, mask=in_key, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + at, mask=in_key, other=0.0).to(tl.float32)
        decay = tl.exp(-LONGEST_STEP * tl.sigmoid(w + w0))
        a = tl.sigmoid(a + a0)
        kk = k * k_k
        kk = kk / tl.maximum(tl.sqrt(tl.sum(kk * kk, 0)), 1e-12)
        k = k * (1 + (a - 1) * k_a)
        own = tl.sum(r * k * r_k, 0)

        out_at = t * heads * D + out
        v = _value(v_ptr, v_first_ptr, v_share_ptr, v0_ptr, out_at, out, in_value, in_value, FIRST)
        removed = tl.sum(s * kk[None, :], 1)
        s = s * decay[None, :] - removed[:, None] * (kk * a)[None, :] + v[:, None] * k[None, :]
        y = normed(tl.sum(s * r[None, :], 1), in_value, D, NORM_EPS) * norm_weight + norm_bias + own * v
        g = tl.load(g_ptr + out_at, mask=in_value, other=0.0)
        rounded = y.to(g.dtype).to(tl.float32)
        tl.store(out_ptr + out_at, (rounded * g.to(tl.float32)).to(g.dtype), mask=in_value)
    tl.store(held, fit(s, state_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["starts_ptr", "positions_ptr"])
def _chunk_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, v_first_ptr, v_share_ptr,
    w0_ptr, a0_ptr, v0_ptr, k_k_ptr, k_a_ptr, r_k_ptr, starts_ptr, positions_ptr,
    read_ptr, remove_ptr, removed_ptr, write_ptr, back_ptr, kept_ptr, y_ptr, mixed_v_ptr, own_ptr, rows, heads,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_ROWS: tl.constexpr, FIRST: tl.constexpr, LONGEST_STEP: tl.constexpr,
):  # fmt: skip
    """One program a (chunk, head): its operators as `wkv7` has them, the mixed values, the bonus's weights."""
    head = tl.program_id(1)
    start, first, stop = find_chunk(tl.program_id(0), starts_ptr, positions_ptr, rows, BLOCK_ROWS)
    if start < stop:
        operand: tl.constexpr = read_ptr.dtype.element_ty
        token = (start + tl.arange(0, CHUNK)).to(tl.int64)
        within = tl.arange(0, BLOCK)
        inside = within < D
        channel = head * D + within
        at = token[:, None] * heads * D + channel[None, :]
        present = (token >= first) & (token < stop)
        mask = present[:, None] & inside[None, :]
        r = tl.load(r_ptr + at, mask=mask, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + at, mask=mask, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)
        w = tl.sigmoid(w + tl.load(w0_ptr + channel, mask=inside, other=0.0)[None, :])
        log_decay = tl.where(mask, -LONGEST_STEP * w, 0.0)
        a = tl.sigmoid(a + tl.load(a0_ptr + channel, mask=inside, other=0.0)[None, :])
        kk = k * tl.load(k_k_ptr + channel, mask=inside, other=0.0)[None, :]
        kk = kk / tl.maximum(tl.sqrt(tl.sum(kk * kk, 1)), 1e-12)[:, None]
        k = k * (1 + (a - 1) * tl.load(k_a_ptr + channel, mask=inside, other=0.0)[None, :])
        own = tl.sum(r * k * tl.load(r_k_ptr + channel, mask=inside, other=0.0)[None, :], 1)
        v = _value(v_ptr, v_first_ptr, v_share_ptr, v0_ptr, at, channel[None, :], mask, inside[None, :], FIRST)
        tl.store(mixed_v_ptr + at, v, mask=mask)
        tl.store(own_ptr + token * heads + head, own, mask=present)
        read, remove, removed, write, back, y = chunk_operators(
            r, log_decay, k, fit(v, operand), kk, kk * a, operand
        )  # fmt: skip
        store_operators(
            read_ptr, remove_ptr, removed_ptr, write_ptr, back_ptr, y_ptr,
            read, remove, removed, write, back, y, at, mask,
        )  # fmt: skip
        kept_at = tl.program_id(0).to(tl.int64) * heads * D + channel
        tl.store(kept_ptr + kept_at, tl.exp(tl.sum(log_decay, 0)), mask=inside)


@triton.jit
def _finish_kernel(
    y_ptr, v_ptr, own_ptr, g_ptr, norm_weight_ptr, norm_bias_ptr, out_ptr, heads,
    D: tl.constexpr, BLOCK: tl.constexpr, NORM_EPS: tl.constexpr,
):  # fmt: skip
    """One program a (token, head): group norm, bonus, gate."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    within = tl.arange(0, BLOCK)
    inside = within < D
    channel = head * D + within
    at = token * heads * D + channel
    y = normed(tl.load(y_ptr + at, mask=inside, other=0.0), inside, D, NORM_EPS)
    y = y * tl.load(norm_weight_ptr + channel, mask=inside, other=0.0)
    own = tl.load(own_ptr + token * heads + head) * tl.load(v_ptr + at, mask=inside, other=0.0)
    y = y + tl.load(norm_bias_ptr + channel, mask=inside, other=0.0) + own
    g = tl.load(g_ptr + at, mask=inside, other=0.0)
    tl.store(out_ptr + at, (y.to(g.dtype).to(tl.float32) * g.to(tl.float32)).to(g.dtype), mask=inside)


def wkv7_heads(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, g: Tensor, v_first: Tensor | None, v_share: Tensor | None,
    weights: HeadWeights, state: Tensor, rows: Rows, *, by_token: bool | None = None,
) -> Tensor:  # fmt: skip
    """`rookery.kernels.wkv7_heads.wkv7_heads`: decode rows by the recurrence, prefill rows by it or in chunks.

    Args:
        by_token: which of the two; None as `forms` has it.
    """
    r, w, k, v, a, g = (x.contiguous() for x in (r, w, k, v, a, g))
    first = v_first is None
    v_first, v_share = (v if x is None else x.contiguous() for x in (v_first, v_share))
    v0 = weights.w0 if weights.v0 is None else weights.v0
    heads, head_size = weights.r_k.shape
    block = key_block(head_size)
    out = torch.empty_like(g)
    mixes = (weights.w0, weights.a0, v0, weights.k_k, weights.k_a, weights.r_k)

    def recurrent(slots: Tensor, starts: Tensor | None) -> None:
        _recurrent_kernel[(heads, len(slots))](
            r, w, k, v, a, g, v_first, v_share, *mixes, weights.norm_weight, weights.norm_bias,
            state, slots, slots if starts is None else starts, out, state.stride(0), heads,
            D=head_size, BLOCK=block, FIRST=first, LONGEST_STEP=LONGEST_STEP, NORM_EPS=HEAD_NORM_EPS,
            DECODE=starts is None, num_warps=4,
        )  # fmt: skip

    if rows.decode:
        recurrent(rows.slots[: rows.decode], None)
    tokens = rows.tokens - rows.decode
    if not tokens:
        return out
    slots, starts, positions = (x[rows.decode :] for x in (rows.slots, rows.starts, rows.positions))
    if forms.recurs(len(slots) * heads, max(rows.lengths[rows.decode :])) if by_token is None else by_token:
        recurrent(slots, starts)
        return out
    chunks = chunk_count(tokens, len(slots))
    operands, full = operand_dtype(r), torch.float32
    read, remove, write, back = (torch.empty(v.shape, dtype=operands, device=v.device) for _ in range(4))
    removed, y, mixed_v = (torch.empty(v.shape, dtype=full, device=v.device) for _ in range(3))
    kept = torch.empty(chunks, heads, head_size, dtype=full, device=v.device)
    own = torch.empty(len(v), heads, dtype=full, device=v.device)
    _chunk_kernel[(chunks, heads)](
        r, w, k, v, a, v_first, v_share, *mixes, starts, positions,
        read, remove, removed, write, back, kept, y, mixed_v, own, len(slots), heads,
        D=head_size, BLOCK=block, BLOCK_ROWS=row_block(len(slots)), FIRST=first,
        LONGEST_STEP=LONGEST_STEP, num_warps=4,
    )  # fmt: skip
    by_head = (len(v), heads, head_size)
    scan_chunks(
        read.view(by_head), write, mixed_v.view(by_head), kept, y, state, slots, starts, positions,
        removal=(remove, removed, back),
    )  # fmt: skip
    after = slice(rows.decode, None)
    _finish_kernel[(tokens, heads)](
        y[after], mixed_v[after], own[after], g[after], weights.norm_weight, weights.norm_bias, out[after], heads,
        D=head_size, BLOCK=block, NORM_EPS=HEAD_NORM_EPS, num_warps=1,
    )  # fmt: skip
    return out
