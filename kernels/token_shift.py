"""Token shift: what each token's predecessor brought, across the ends of steps.

The models use it as a part of `shift_mix`, which alone has a Triton kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Rows
from .slots import read_slots, write_slots


def token_shift_reference(x: Tensor, shift: Tensor, rows: Rows) -> Tensor:
    """The meaning of `token_shift`, one token after the other."""
    previous = torch.empty_like(x)
    for slot, tokens in rows.spans():
        last = read_slots(shift, slot)[0]
        for t in range(tokens.start, tokens.stop):
            previous[t] = last
            last = x[t]
        write_slots(shift, slot, last[None])
    return previous


def token_shift(x: Tensor, shift: Tensor, rows: Rows) -> Tensor:
    """The vector before each token: its predecessor in the row, for a row's first token what the slot holds.

    Args:
        x: [N, C], model dtype, packed as `rows` says.
        shift: [S, C], same dtype; the slots of rows with tokens become their row's last vector, in place.

    Returns: [N, C], same dtype. Slot -1 reads as zero and is not written; empty rows change nothing.
    """
    slots, first, last = rows.slots, rows.starts[:-1], rows.starts[1:] - 1
    if rows.decode == len(rows.lengths):  # one token each: packed order is row order
        previous = read_slots(shift, slots)
        write_slots(shift, slots, x)
        return previous
    if 0 in rows.lengths:
        present = torch.tensor([row for row, length in enumerate(rows.lengths) if length], device=x.device)
        if not len(present):
            return torch.empty_like(x)
        slots, first, last = slots[present], first[present], last[present]
    previous = torch.empty_like(x)
    previous[1:] = x[:-1]
    previous[first] = read_slots(shift, slots)
    write_slots(shift, slots, x[last])
    return previous
