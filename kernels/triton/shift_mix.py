"""Residual sum, layer norm, token shift and mixes as one Triton kernel. Verified in Triton's interpreter only."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..norms import LAYER_NORM_EPS
from ..rows import Rows
from .tiles import find_row, normed, row_block


@triton.jit
def _stream(x_ptr, added_ptr, token, channel, inside, width, ADDS: tl.constexpr):
    """A token's vector of the residual stream, as its dtype rounds it."""
    x = tl.load(x_ptr + token * width + channel, mask=inside, other=0.0)
    if ADDS:
        added = tl.load(added_ptr + token * width + channel, mask=inside, other=0.0)
        x = (x.to(tl.float32) + added.to(tl.float32)).to(x.dtype)
    return x


@triton.jit
def _norm(x, weight, bias, inside, width, EPS: tl.constexpr):
    """Layer norm, rounded to the stream's dtype."""
    return (normed(x.to(tl.float32), inside, width, EPS) * weight + bias).to(x.dtype)


@triton.jit(do_not_specialize=["rows", "tokens"], do_not_specialize_on_alignment=["slots_ptr", "starts_ptr"])
def _kernel(
    x_ptr, added_ptr, weight_ptr, bias_ptr, mu_ptr, shift_ptr, slots_ptr, starts_ptr, sum_ptr, mixed_ptr,
    shift_stride, rows, width, tokens,
    MIXES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_ROWS: tl.constexpr, ADDS: tl.constexpr, DECODE: tl.constexpr,
    OF_PRESENT: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """One program a token. It norms its predecessor again rather than wait for it; a row's first token reads the slot
    and fills it with its row's last vector."""
    token = tl.program_id(0).to(tl.int64)
    if DECODE:
        row, first, stop = token, token, token + 1
    else:
        row, first, stop = find_row(token, starts_ptr, rows, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    x = _stream(x_ptr, added_ptr, token, channel, inside, width, ADDS)
    if ADDS:
        tl.store(sum_ptr + token * width + channel, x, mask=inside)
    h = _norm(x, weight, bias, inside, width, EPS)

    slot = tl.load(slots_ptr + row)
    held = shift_ptr + slot * shift_stride + channel
    live = channel < tl.where((token == first) & (slot >= 0), width, 0)
    previous = tl.load(held, mask=live, other=0.0).to(h.dtype)
    if DECODE:
        tl.store(held, h, mask=live)
    else:
        if token > first:
            before = _stream(x_ptr, added_ptr, token - 1, channel, inside, width, ADDS)
            previous = _norm(before, weight, bias, inside, width, EPS)
        else:
            end = _stream(x_ptr, added_ptr, stop - 1, channel, inside, width, ADDS)
            tl.store(held, _norm(end, weight, bias, inside, width, EPS), mask=live)

    base = (previous if OF_PRESENT else h).to(tl.float32)
    difference = (h if OF_PRESENT else previous).to(tl.float32) - base
    for n in tl.static_range(MIXES):
        mu = tl.load(mu_ptr + n * width + channel, mask=inside, other=0.0).to(tl.float32)
        mixed = (base + mu * difference).to(h.dtype)
        tl.store(mixed_ptr + (n * tokens + token) * width + channel, mixed, mask=inside)


def shift_mix(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, mu: Tensor, shift: Tensor, rows: Rows,
    *, of_present: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`rookery.kernels.shift_mix.shift_mix`; `shift` is dense but for its first axis."""
    x = x.contiguous()
    tokens, width = x.shape
    total = x if added is None else torch.empty_like(x)
    mixed = torch.empty(len(mu), tokens, width, dtype=x.dtype, device=x.device)
    if tokens:
        block = triton.next_power_of_2(width)
        _kernel[(tokens,)](
            x, x if added is None else added.contiguous(), weight, bias, mu, shift, rows.slots, rows.starts, total,
            mixed, shift.stride(0), len(rows.lengths), width, tokens,
            MIXES=len(mu), BLOCK=block, BLOCK_ROWS=row_block(len(rows.lengths)), ADDS=added is not None,
            DECODE=rows.decode == len(rows.lengths), OF_PRESENT=of_present, EPS=LAYER_NORM_EPS,
            num_warps=8 if block > 1024 else 4,
        )  # fmt: skip
    return total, mixed
