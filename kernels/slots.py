"""Reading and writing the states of a step's rows, where slot -1 is padding."""

from __future__ import annotations

import torch
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


def working_dtype(state: Tensor) -> torch.dtype:
    """What WKV computes in: float32, but float64 for a state of float64, as exact references have."""
    return torch.float64 if state.dtype == torch.float64 else torch.float32


def fit(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In a float type; what float16 cannot hold becomes its largest number, not infinity."""
    if dtype == torch.float16 and values.dtype != dtype:
        largest = torch.finfo(dtype).max
        values = values.clamp(-largest, largest)
    return values.to(dtype)


def write_slots(state: Tensor, slots: Tensor, values: Tensor) -> None:
    """Store `values` [R, ...] in the named slots of `state` [S, ...]; what belongs to slot -1 is dropped."""
    values = fit(values, state.dtype)
    live = slots >= 0
    if bool(live.all()):
        state.index_copy_(0, slots, values)
    elif bool(live.any()):
        state.index_copy_(0, slots[live], values[live])
