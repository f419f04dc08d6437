"""WKV of RWKV-7 in Triton: one recurrent kernel for decode and short rows, and the chunked form for prompts.

Verified in Triton's interpreter only. The mathematics is that of `rookery.kernels.wkv7`; the chunked form's factors
are taken relative to the decay in the middle of 16 tokens, and its triangular system is solved by substitution.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rows import Rows
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
    r_ptr, log_decay_ptr, k_ptr, v_ptr, kk_ptr, a_ptr, state_ptr, slots_ptr, starts_ptr, y_ptr, state_stride, heads,
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
    first, stop = row_range(row, starts_ptr, DECODE)
    for t in range(first, stop):
        at = (t * heads + head) * D
        r = tl.load(r_ptr + at + key, mask=in_key, other=0.0).to(tl.float32)
        decay = tl.exp(tl.load(log_decay_ptr + at + key, mask=in_key, other=0.0).to(tl.float32))
        k = tl.load(k_ptr + at + key, mask=in_key, other=0.0).to(tl.float32)
        kk = tl.load(kk_ptr + at + key, mask=in_key, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + at + key, mask=in_key, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at + value, mask=in_value, other=0.0).to(tl.float32)
        removed = tl.sum(s * kk[None, :], 1)
        s = s * decay[None, :] - removed[:, None] * (kk * a)[None, :] + v[:, None] * k[None, :]
        tl.store(y_ptr + at + value, tl.sum(s * r[None, :], 1), mask=in_value)
    tl.store(held, fit(s, state_ptr.dtype.element_ty), mask=live)


@triton.jit
def chunk_operators(r, log_decay, k, v, kk, b, operand: tl.constexpr):
    """The operators of one chunk and head, from tiles [CHUNK, channels] in float32 (v in `operand`); zeros are padding.

    Returns: read, remove, removed, write, back [CHUNK, channels] float32, and y [CHUNK, channels] without the state.
    """
    i = tl.arange(0, CHUNK)
    c = tl.cumsum(log_decay, 0)
    total = tl.sum(log_decay, 0)[None, :]
    middle = tl.sum(tl.where((i < CHUNK // 2)[:, None], log_decay, 0.0), 0)[None, :]
    kk_fore = fit(-kk * tl.exp(c - log_decay - middle), operand)
    r_fore = fit(r * tl.exp(c - middle), operand)
    b_back = tl.trans(fit(b * tl.exp(middle - c), operand))
    k_back = tl.trans(fit(k * tl.exp(middle - c), operand))
    below = i[:, None] > i[None, :]
    upto = i[:, None] >= i[None, :]
    kk_b = tl.where(below, matmul(kk_fore, b_back), 0.0)
    kk_k = tl.where(below, matmul(kk_fore, k_back), 0.0)
    r_b = tl.where(upto, matmul(r_fore, b_back), 0.0)
    r_k = tl.where(upto, matmul(r_fore, k_back), 0.0)

    # (1 - kk_b)^-1, row after row: a series of products would diverge where keys repeat
    inverse = (i[:, None] == i[None, :]).to(tl.float32)
    for n in tl.static_range(1, CHUNK):
        weights = tl.sum(tl.where((i == n)[:, None], kk_b, 0.0), 0)
        line = tl.sum(weights[:, None] * inverse, 0)
        inverse = tl.where((i == n)[:, None], inverse + line[None, :], inverse)
    inverse = fit(inverse, operand)

    remove = matmul(inverse, fit(-kk * tl.exp(c - log_decay), operand))
    removed = matmul(inverse, fit(matmul(fit(kk_k, operand), v), operand))
    r_b = fit(r_b, operand)
    read = r * tl.exp(c) + matmul(r_b, fit(remove, operand))
    y = matmul(fit(r_k, operand), v) + matmul(r_b, fit(removed, operand))
    write = k * tl.exp(total - c)
    back = b * tl.exp(total - c)
    return read, remove, removed, write, back, y


@triton.jit
def store_operators(
    read_ptr, remove_ptr, removed_ptr, write_ptr, back_ptr, y_ptr, read, remove, removed, write, back, y, at, mask
):
    """Where the scan will read them, in the types of the buffers."""
    operand: tl.constexpr = read_ptr.dtype.element_ty
    tl.store(read_ptr + at, fit(read, operand), mask=mask)
    tl.store(remove_ptr + at, fit(remove, operand), mask=mask)
    tl.store(removed_ptr + at, removed, mask=mask)
    tl.store(write_ptr + at, fit(write, operand), mask=mask)
    tl.store(back_ptr + at, fit(back, operand), mask=mask)
    tl.store(y_ptr + at, y, mask=mask)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["starts_ptr", "positions_ptr"])
def _chunk_kernel(
    r_ptr, log_decay_ptr, k_ptr, v_ptr, kk_ptr, a_ptr, starts_ptr, positions_ptr,
    read_ptr, remove_ptr, removed_ptr, write_ptr, back_ptr, kept_ptr, y_ptr, rows, heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """What a chunk does to any state S, [key, value], for one head:

        u = remove S + removed        y += read S        S' = kept S + write^T v + back^T u

    One program a (chunk, head), all at the same time.
    """
    head = tl.program_id(1)
    start, first, stop = find_chunk(tl.program_id(0), starts_ptr, positions_ptr, rows, BLOCK_ROWS)
    if start < stop:
        operand: tl.constexpr = read_ptr.dtype.element_ty
        i = tl.arange(0, CHUNK)
        channel = tl.arange(0, BLOCK_D)
        at = ((start + i).to(tl.int64) * heads + head)[:, None] * D + channel[None, :]
        mask = ((start + i >= first) & (start + i < stop))[:, None] & (channel < D)[None, :]
        r = tl.load(r_ptr + at, mask=mask, other=0.0).to(tl.float32)
        log_decay = tl.load(log_decay_ptr + at, mask=mask, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + at, mask=mask, other=0.0).to(tl.float32)
        v = fit(tl.load(v_ptr + at, mask=mask, other=0.0).to(tl.float32), operand)
        kk = tl.load(kk_ptr + at, mask=mask, other=0.0).to(tl.float32)
        b = kk * tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)

        read, remove, removed, write, back, y = chunk_operators(r, log_decay, k, v, kk, b, operand)
        store_operators(
            read_ptr, remove_ptr, removed_ptr, write_ptr, back_ptr, y_ptr,
            read, remove, removed, write, back, y, at, mask,
        )  # fmt: skip
        kept_at = (tl.program_id(0).to(tl.int64) * heads + head) * D + channel
        tl.store(kept_ptr + kept_at, tl.exp(tl.sum(log_decay, 0)), mask=channel < D)


def wkv7(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, state: Tensor, rows: Rows,
    *, by_token: bool | None = None,
) -> Tensor:  # fmt: skip
    """`rookery.kernels.wkv7.wkv7`: decode rows by the recurrence, prefill rows by it or in chunks.

    Args:
        by_token: which of the two; None as `forms` has it.
    """
    y = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    r, log_decay, k, v, kk, a = (x.contiguous() for x in (r, log_decay, k, v, kk, a))
    if rows.decode:
        recurrent(r, log_decay, k, v, kk, a, state, rows.slots[: rows.decode], None, y)
    if len(rows.lengths) > rows.decode and rows.tokens > rows.decode:
        tokens = rows.tokens - rows.decode
        slots, starts, positions = (x[rows.decode :] for x in (rows.slots, rows.starts, rows.positions))
        if forms.recurs(len(slots) * v.shape[1], max(rows.lengths[rows.decode :])) if by_token is None else by_token:
            recurrent(r, log_decay, k, v, kk, a, state, slots, starts, y)
            return y
        chunked(r, log_decay, k, v, kk, a, state, slots, starts, positions, y, tokens)
    return y


def recurrent(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor,
    state: Tensor, slots: Tensor, starts: Tensor | None, y: Tensor,
) -> None:  # fmt: skip
    """Token after token; fills y.

    Args:
        r, log_decay, k, v, kk, a: [N, H, D], contiguous.
        state: [S, H, D, D] float32 or float16, dense but for its first axis.
        slots: [R] int64.
        starts: [R + 1] int64; None when row i is token i alone.
        y: [N, H, D] float32.
    """
    _, heads, head_size = v.shape
    block_v = value_block(len(slots) * heads, head_size)
    _recurrent_kernel[(triton.cdiv(head_size, block_v), heads, len(slots))](
        r, log_decay, k, v, kk, a, state, slots, slots if starts is None else starts, y, state.stride(0), heads,
        D=head_size, BLOCK_K=key_block(head_size), BLOCK_V=block_v, DECODE=starts is None,
        num_warps=4 if block_v > 16 else 2,
    )  # fmt: skip


def chunked(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor,
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
    read, remove, write, back = (torch.empty(v.shape, dtype=operands, device=v.device) for _ in range(4))
    removed = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    chunks = chunk_count(tokens, len(slots))
    kept = torch.empty(chunks, heads, head_size, dtype=torch.float32, device=v.device)
    _chunk_kernel[(chunks, heads)](
        r, log_decay, k, v, kk, a, starts, positions, read, remove, removed, write, back, kept, y, len(slots), heads,
        D=head_size, BLOCK_D=key_block(head_size), BLOCK_ROWS=row_block(len(slots)),
        num_warps=4,
    )  # fmt: skip
    scan_chunks(read, write, v, kept, y, state, slots, starts, positions, removal=(remove, removed, back))
