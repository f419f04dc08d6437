"""Recurrent states of the running requests, allocated once at start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rookery.kernels.cpu.arrays import F32, Array, forget, zeros

from ..model.shape import ModelShape

RWKV4_MAX_START = -1e30
"""Initial running maximum of RWKV-4's exponents; -inf would give inf - inf."""


@dataclass(frozen=True, slots=True)
class State:
    """One session's whole memory, on the host, detached from any slot: what is cached, stored, forked and resumed.

    shift: [L, 2, C] float32, which holds any model dtype; last input of time mixing (0) and of channel mixing (1).
    wkv: [L, H, D, D] float32 or float16, axes value, key; RWKV-4: [L, 3, C] float32, a, b, max.
    """

    shift: Array
    wkv: Array

    @property
    def nbytes(self) -> int:
        """Memory of both."""
        return int(self.shift.nbytes + self.wkv.nbytes)


class LateState(State):
    """A state that is on its way from a device: whoever reads it waits until it is there.

    Args:
        nbytes: of the state.
        arrive: waits for it; may be called often, and by any thread.
    """

    __slots__ = ("_arrive", "_nbytes")

    def __init__(self, nbytes: int, arrive: Callable[[], State]) -> None:
        object.__setattr__(self, "_nbytes", nbytes)
        object.__setattr__(self, "_arrive", arrive)

    @property
    def shift(self) -> Array:
        return self._arrive().shift  # type: ignore[attr-defined,no-any-return]

    @property
    def wkv(self) -> Array:
        return self._arrive().wkv  # type: ignore[attr-defined,no-any-return]

    @property
    def nbytes(self) -> int:
        return self._nbytes  # type: ignore[attr-defined,no-any-return]


class StatePool(Protocol):
    """Slots of recurrent state. A request owns one from admission to its end; its size never changes.

    Shapes (S slots, L layers; slot-outer, so that one state is one contiguous block):
        shift: [S, L, 2, C], model dtype.
        wkv:   [S, L, H, D, D], axes -2 value, -1 key, for RWKV-5, 6 and 7; [S, L, 3, C] for RWKV-4.
    """

    shape: ModelShape
    slots: int

    @property
    def state_bytes(self) -> int:
        """Memory of one slot."""
        ...

    @property
    def device_type(self) -> str:
        """Where it lies: "cpu" or "cuda"."""
        ...

    def reset(self, slots: Sequence[int]) -> None:
        """Set these slots to the state before any token."""
        ...

    def save(self, slot: int) -> State:
        """A copy of one slot, on the host."""
        ...

    def write(self, slot: int, state: State) -> None:
        """Overwrite one slot."""
        ...

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Fork: every target slot becomes what `source` is."""
        ...

    def rest(self) -> None:
        """No slot is owned: let go of what they hold, and of the memory it takes where that can be given back."""
        ...


class HostPool:
    """A `StatePool` of numpy arrays, all float32, whose memory is taken page by page as it is used.

    Raises:
        MemoryError: the host has not so much.
    """

    device_type = "cpu"

    def __init__(self, shape: ModelShape, slots: int) -> None:
        self.shape = shape
        self.slots = slots
        self.shift = zeros((slots, shape.layers, 2, shape.width), F32)
        self.wkv = zeros((slots, shape.layers, *shape.wkv_shape), F32)
        if shape.version == "4":
            self.reset(range(slots))

    @property
    def state_bytes(self) -> int:
        return int(self.shift[0].nbytes + self.wkv[0].nbytes)

    def reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.shift[slot] = 0
            self.wkv[slot] = 0
            if self.shape.version == "4":
                self.wkv[slot, :, 2] = RWKV4_MAX_START

    def save(self, slot: int) -> State:
        return State(self.shift[slot].copy(), self.wkv[slot].copy())

    def write(self, slot: int, state: State) -> None:
        self.shift[slot] = state.shift
        self.wkv[slot] = state.wkv

    def copy(self, source: int, targets: Sequence[int]) -> None:
        for target in targets:
            self.shift[target] = self.shift[source]
            self.wkv[target] = self.wkv[source]

    def rest(self) -> None:
        forget(self.shift)
        forget(self.wkv)
