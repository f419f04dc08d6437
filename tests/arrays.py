"""The server's arrays beside tensors, in which tests compute what they expect."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.kernels.cpu.arrays import Array
from rookery.kernels.cpu.rows import HostRows
from rookery.kernels.rows import Rows
from rookery.server.model.base import Model
from rookery.server.model.native import NativeModel
from rookery.server.model.torch_arrays import from_torch, to_torch
from rookery.server.state.pool import HostPool, State, StatePool


def tensor(array: Array | Tensor) -> Tensor:
    """The same memory as a tensor."""
    return array if isinstance(array, Tensor) else to_torch(array)


def equal(one: Array | Tensor, other: Array | Tensor) -> bool:
    """Type, shape and bits."""
    one, other = tensor(one), tensor(other)
    return one.dtype == other.dtype and torch.equal(one, other)


def state_of(shift: Tensor, wkv: Tensor) -> State:
    return State(shift=from_torch(shift), wkv=from_torch(wkv))


@dataclass(frozen=True)
class Held:
    """A state in tensors."""

    shift: Tensor
    wkv: Tensor


def held(pool: StatePool, slot: int) -> Held:
    """What a slot holds."""
    state = pool.save(slot)
    return Held(tensor(state.shift), tensor(state.wkv))


class InTensors:
    """A native model that takes and gives tensors."""

    def __init__(self, model: NativeModel) -> None:
        self.model = model
        self.shape, self.piece = model.shape, model.piece

    def new_pool(self, slots: int) -> HostPool:
        return self.model.new_pool(slots)

    def rest(self) -> None:
        self.model.rest()

    def initial_state(self, name: str | None) -> State | None:
        return self.model.initial_state(name)

    def forward(self, token_ids: Tensor, rows: Rows, pool: HostPool) -> Tensor:
        packed = HostRows.pack(rows.slots.tolist(), rows.lengths)
        return tensor(self.model.forward(token_ids.numpy(), packed, pool))

    def logits(self, hidden: Tensor) -> Tensor:
        return tensor(self.model.logits(hidden.numpy()))


def in_tensors(model: Model) -> Model:
    """The model, such that it takes and gives tensors."""
    return InTensors(model) if isinstance(model, NativeModel) else model
