"""WKV of RWKV-6, and of RWKV-5 as the case of one decay for all tokens, in Triton: recurrent and chunked.

Verified in Triton's interpreter only. The mathematics is that of `rookery.kernels.wkv6`. RWKV-6 sets no bound to a
token's decay, so inside a chunk every exponent is formed as a difference that is at most 0, pair by pair.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rows import Rows
from ..wkv6 import HARDEST
from . import forms
from .chunk_scan import chunk_count, scan_chunks
from .tiles import (
    CHUNK,
    find_chunk,
    fit,
    key_block,
    matmul,
    operand_dtype,
    row_block,
    row_range,
    state_block,
    value_block,
)


@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "starts_ptr"])
def _recurrent_kernel(
    r_ptr, k_ptr, v_ptr, log_decay_ptr, bonus_ptr, state_ptr, slots_ptr, starts_ptr, y_ptr,
    decay_stride, state_stride, heads,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, DECODE: tl.constexpr,
):  # fmt: skip
    """One program a (row, head, block of values): its part of the state stays in registers over the row's tokens."""
    row, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots_ptr + row)
    key = tl.arange(0, BLOCK_K)
    value = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_key, in_value = key < D, value < D
    held, live = state_block(state_ptr, slot, state_stride, head, value[:, None], key[None, :], D)
    s = tl.load(held, mask=live, other=0.0).to(tl.float32)
    bonus = tl.load(bonus_ptr + head * D + key, mask=in_key, other=0.0).to(tl.float32)
    first, stop = row_range(row, starts_ptr, DECODE)
    for t in range(first, stop):
        at = (t * heads + head) * D
        decay_at = t * decay_stride + head * D + key
        r = tl.load(r_ptr + at + key, mask=in_key, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + at + key, mask=in_key, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at + value, mask=in_value, other=0.0).to(tl.float32)
        decay = tl.exp(tl.load(log_decay_ptr + decay_at, mask=in_key, other=0.0).to(tl.float32))
        y = tl.sum(s * r[None, :], 1) + tl.sum(r * bonus * k, 0) * v
        s = s * decay[None, :] + v[:, None] * k[None, :]
        tl.store(y_ptr + at + value, y, mask=in_value)
    tl.store(held, fit(s, state_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["starts_ptr", "positions_ptr"])
def _chunk_kernel(
    r_ptr, k_ptr, v_ptr, log_decay_ptr, bonus_ptr, starts_ptr, positions_ptr, read_ptr, write_ptr, kept_ptr, y_ptr,
    decay_stride, rows, heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr, HARDEST: tl.constexpr,
):  # fmt: skip
    """What a chunk does to any state S, [key, value], for one head: `y += read S` and `S' = kept S + write^T v`.

    One program a (chunk, head), all at the same time.
    """
    head = tl.program_id(1)
    start, first, stop = find_chunk(tl.program_id(0), starts_ptr, positions_ptr, rows, BLOCK_ROWS)
    if start < stop:
        operand = read_ptr.dtype.element_ty
        i = tl.arange(0, CHUNK)
        channel = tl.arange(0, BLOCK_D)
        in_head = channel < D
        at = ((start + i).to(tl.int64) * heads + head)[:, None] * D + channel[None, :]
        mask = ((start + i >= first) & (start + i < stop))[:, None] & in_head[None, :]
        r = tl.load(r_ptr + at, mask=mask, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at, mask=mask, other=0.0).to(tl.float32)
        decay_at = (start + i)[:, None] * decay_stride + head * D + channel[None, :]
        log_decay = tl.maximum(tl.load(log_decay_ptr + decay_at, mask=mask, other=0.0).to(tl.float32), HARDEST)
        bonus = tl.load(bonus_ptr + head * D + channel, mask=in_head, other=0.0).to(tl.float32)

        c = tl.cumsum(log_decay, 0)
        before = c - log_decay
        weight = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        for n in tl.static_range(0, CHUNK):
            this = (i == n)[:, None]
            k_n = tl.sum(tl.where(this, k, 0.0), 0)[None, :]
            c_n = tl.sum(tl.where(this, c, 0.0), 0)[None, :]
            column = tl.sum(r * k_n * tl.exp(tl.minimum(before - c_n, 0.0)), 1)
            weight = tl.where((i[:, None] > n) & (i[None, :] == n), column[:, None], weight)
        own = tl.sum(r * bonus[None, :] * k, 1)
        y = matmul(fit(weight, operand), fit(v, operand)) + own[:, None] * v

        total = tl.sum(log_decay, 0)[None, :]
        tl.store(read_ptr + at, fit(r * tl.exp(before), operand), mask=mask)
        tl.store(write_ptr + at, fit(k * tl.exp(total - c), operand), mask=mask)
        tl.store(y_ptr + at, y, mask=mask)
        kept_at = (tl.program_id(0).to(tl.int64) * heads + head) * D + channel
        tl.store(kept_ptr + kept_at, tl.exp(tl.sum(log_decay, 0)), mask=in_head)


def wkv6(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, rows: Rows,
    *, by_token: bool | None = None,
) -> Tensor:  # fmt: skip
    """`rookery.kernels.wkv6.wkv6`: decode rows by the recurrence, prefill rows by it or in chunks.

    Args:
        by_token: which of the two; None as `forms` has it.

    A decay expanded over the tokens (RWKV-5) is read where it is.
    """
    y = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    r, k, v, bonus = (x.contiguous() for x in (r, k, v, bonus))
    if rows.decode:
        recurrent(r, k, v, log_decay, bonus, state, rows.slots[: rows.decode], None, y)
    if len(rows.lengths) > rows.decode and rows.tokens > rows.decode:
        tokens = rows.tokens - rows.decode
        slots, starts, positions = (x[rows.decode :] for x in (rows.slots, rows.starts, rows.positions))
        if forms.recurs(len(slots) * v.shape[1], max(rows.lengths[rows.decode :])) if by_token is None else by_token:
            recurrent(r, k, v, log_decay, bonus, state, slots, starts, y)
            return y
        chunked(r, k, v, log_decay, bonus, state, slots, starts, positions, y, tokens)
    return y


def recurrent(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor,
    state: Tensor, slots: Tensor, starts: Tensor | None, y: Tensor,
) -> None:  # fmt: skip
    """Token after token; fills y.

    Args:
        r, k, v: [N, H, D], contiguous.
        log_decay: [N, H, D], dense but for its first axis.
        bonus: [H, D].
        state: [S, H, D, D] float32 or float16, dense but for its first axis.
        slots: [R] int64.
        starts: [R + 1] int64; None when row i is token i alone.
        y: [N, H, D] float32.
    """
    _, heads, head_size = v.shape
    block_v = value_block(len(slots) * heads, head_size)
    _recurrent_kernel[(triton.cdiv(head_size, block_v), heads, len(slots))](
        r, k, v, log_decay, bonus, state, slots, slots if starts is None else starts, y,
        log_decay.stride(0), state.stride(0), heads,
        D=head_size, BLOCK_K=key_block(head_size), BLOCK_V=block_v, DECODE=starts is None,
        num_warps=4 if block_v > 16 else 2,
    )  # fmt: skip


def chunked(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor,
    state: Tensor, slots: Tensor, starts: Tensor, positions: Tensor, y: Tensor, tokens: int,
    operands: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Sixteen tokens at a time, on the absolute grid; fills y. Arguments as `recurrent`.

    Args:
        positions: [R] int64; the number of each row's first token in its sequence.
        tokens: at least starts[-1] - starts[0].
        operands: float32 or float16, what the products take; by default as the inputs ask for.
    """
    _, heads, head_size = v.shape
    operands = operands or operand_dtype(r)
    read, write = (torch.empty(v.shape, dtype=operands, device=v.device) for _ in range(2))
    chunks = chunk_count(tokens, len(slots))
    kept = torch.empty(chunks, heads, head_size, dtype=torch.float32, device=v.device)
    _chunk_kernel[(chunks, heads)](
        r, k, v, log_decay, bonus, starts, positions, read, write, kept, y, log_decay.stride(0), len(slots), heads,
        D=head_size, BLOCK_D=key_block(head_size), BLOCK_ROWS=row_block(len(slots)), HARDEST=HARDEST,
        num_warps=4,
    )  # fmt: skip
    scan_chunks(read, write, v, kept, y, state, slots, starts, positions)
