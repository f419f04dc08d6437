"""Token shift in Triton. Verified in Triton's interpreter only."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rows import Rows
from .tiles import find_row

CHANNELS = 1024


@triton.jit
def _kernel(
    x_ptr, shift_ptr, slots_ptr, starts_ptr, previous_ptr, shift_stride, rows, width,
    BLOCK: tl.constexpr, BLOCK_ROWS: tl.constexpr, DECODE: tl.constexpr,
):  # fmt: skip
    """One program a (token, block of channels); a row's first token reads the slot and fills it anew."""
    token = tl.program_id(1).to(tl.int64)
    if DECODE:
        row, first, stop = token, token, token + 1
    else:
        row, first, stop = find_row(token, starts_ptr, rows, BLOCK_ROWS)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < width
    slot = tl.load(slots_ptr + row)
    held = shift_ptr + slot * shift_stride + channel
    live = channel < tl.where((token == first) & (slot >= 0), width, 0)
    carried = tl.load(held, mask=live, other=0.0)
    follows = channel < tl.where(token > first, width, 0)
    neighbour = tl.load(x_ptr + (token - 1) * width + channel, mask=follows, other=0.0)
    tl.store(previous_ptr + token * width + channel, tl.where(token > first, neighbour, carried), mask=inside)
    last = tl.load(x_ptr + (stop - 1) * width + channel, mask=live, other=0.0)
    tl.store(held, last, mask=live)


def token_shift(x: Tensor, shift: Tensor, rows: Rows) -> Tensor:
    """`rookery.kernels.token_shift.token_shift`; `shift` is dense but for its first axis."""
    x = x.contiguous()
    previous = torch.empty_like(x)
    tokens, width = x.shape
    if tokens:
        block = min(CHANNELS, triton.next_power_of_2(width))
        _kernel[(triton.cdiv(width, block), tokens)](
            x, shift, rows.slots, rows.starts, previous, shift.stride(0), len(rows.lengths), width,
            BLOCK=block, BLOCK_ROWS=triton.next_power_of_2(len(rows.lengths)),
            DECODE=rows.decode == len(rows.lengths), num_warps=4,
        )  # fmt: skip
    return previous
