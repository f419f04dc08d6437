"""Reading and writing the states of a step's rows, where slot -1 is padding."""

from __future__ import annotations

from torch import Tensor


def read_slots(state: Tensor, slots: Tensor) -> Tensor:
    """A copy of the named slots of `state` [S, ...], as [R, ...]; zero where the slot is -1."""
    padding = slots < 0
    if not bool(padding.any()):
        return state[slots]
    if bool(padding.all()):
        return state.new_zeros(len(slots), *state.shape[1:])
    values = state[slots.clamp(min=0)]
    values[padding] = 0
    return values


def write_slots(state: Tensor, slots: Tensor, values: Tensor) -> None:
    """Store `values` [R, ...] in the named slots of `state` [S, ...]; what belongs to slot -1 is dropped."""
    live = slots >= 0
    if bool(live.all()):
        state.index_copy_(0, slots, values)
    elif bool(live.any()):
        state.index_copy_(0, slots[live], values[live])
