"""WKV of RWKV-4 in Triton: every channel walks its row's tokens by itself. Verified in Triton's interpreter only."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rows import Rows
from .tiles import row_range

CHANNELS = 64
"""Channels of a program: few, so that a prompt alone still occupies the device."""


@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "starts_ptr"])
def _kernel(
    k_ptr, v_ptr, log_decay_ptr, bonus_ptr, state_ptr, slots_ptr, starts_ptr, y_ptr, state_stride, width,
    BLOCK: tl.constexpr, DECODE: tl.constexpr,
):  # fmt: skip
    """One program a (row, block of channels)."""
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < width
    live = channel < tl.where(slot >= 0, width, 0)
    held = state_ptr + slot * state_stride + channel
    a = tl.load(held, mask=live, other=0.0)
    b = tl.load(held + width, mask=live, other=0.0)
    m = tl.load(held + 2 * width, mask=live, other=0.0)
    log_decay = tl.load(log_decay_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    bonus = tl.load(bonus_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    first, stop = row_range(row, starts_ptr, DECODE)
    for t in range(first, stop):
        at = t * width + channel
        k = tl.load(k_ptr + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
        q = tl.maximum(m, bonus + k)
        past = tl.exp(m - q)
        present = tl.exp(bonus + k - q)
        tl.store(y_ptr + at, (past * a + present * v) / (past * b + present), mask=inside)
        q = tl.maximum(m + log_decay, k)
        past = tl.exp(m + log_decay - q)
        present = tl.exp(k - q)
        a = past * a + present * v
        b = past * b + present
        m = q
    tl.store(held, a, mask=live)
    tl.store(held + width, b, mask=live)
    tl.store(held + 2 * width, m, mask=live)


def wkv4(k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, rows: Rows) -> Tensor:
    """`rookery.kernels.wkv4.wkv4`; the state is dense but for its first axis."""
    y = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    k, v, log_decay, bonus = (x.contiguous() for x in (k, v, log_decay, bonus))
    if rows.decode:
        _launch(k, v, log_decay, bonus, state, rows.slots[: rows.decode], None, y)
    if len(rows.lengths) > rows.decode:
        _launch(k, v, log_decay, bonus, state, rows.slots[rows.decode :], rows.starts[rows.decode :], y)
    return y


def _launch(
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, slots: Tensor, starts: Tensor | None,
    y: Tensor,
) -> None:  # fmt: skip
    """Fill y for these rows; without `starts`, row i is token i alone."""
    _, width = v.shape
    _kernel[(triton.cdiv(width, CHANNELS), len(slots))](
        k, v, log_decay, bonus, state, slots, slots if starts is None else starts, y, state.stride(0), width,
        BLOCK=CHANNELS, DECODE=starts is None, num_warps=2,
    )  # fmt: skip
