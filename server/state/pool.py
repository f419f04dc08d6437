"""Recurrent states of the running requests, allocated once at start."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.kernels.slots import fit

from ..model.shape import ModelShape

RWKV4_MAX_START = -1e30
"""Initial running maximum of RWKV-4's exponents; -inf would give inf - inf."""


@dataclass(frozen=True, slots=True)
class State:
    """One session's whole memory, detached from any slot: what is cached, stored, forked and resumed.

    shift: [L, 2, C] model dtype; last input of time mixing (0) and of channel mixing (1).
    wkv: [L, H, D, D] float32 or float16, axes value, key; RWKV-4: [L, 3, C] float32, a, b, max.
    """

    shift: Tensor
    wkv: Tensor


class StatePool:
    """Slots of recurrent state. A request owns one from admission to its end; its size never changes.

    Shapes (S slots, L layers; slot-outer, so that one state is one contiguous block):
        shift: [S, L, 2, C], model dtype.
        wkv:   [S, L, H, D, D], axes -2 value, -1 key, for RWKV-5, 6 and 7; [S, L, 3, C] for RWKV-4.

    Args:
        dtype: of `shift`.
        wkv_dtype: float32, or float16, which halves the memory and rounds every state after every step. RWKV-4's has
            exponents, and is float32 whatever is asked for.
    """

    def __init__(
        self,
        shape: ModelShape,
        slots: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        wkv_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape = shape
        self.slots = slots
        self.shift = _zeros((slots, shape.layers, 2, shape.width), dtype, device)
        wkv_dtype = torch.float32 if shape.version == "4" else wkv_dtype
        self.wkv = _zeros((slots, shape.layers, *shape.wkv_shape), wkv_dtype, device)
        if shape.version == "4":
            self.reset(range(slots))

    @property
    def state_bytes(self) -> int:
        """Memory of one slot."""
        shift, wkv = self.shift[0], self.wkv[0]
        return shift.numel() * shift.element_size() + wkv.numel() * wkv.element_size()

    def reset(self, slots: Sequence[int]) -> None:
        """Set these slots to the state before any token."""
        for slot in slots:
            self.shift[slot] = 0
            self.wkv[slot] = 0
            if self.shape.version == "4":
                self.wkv[slot, :, 2] = RWKV4_MAX_START

    def read(self, slot: int) -> State:
        """A copy of one slot, on the pool's device."""
        return State(shift=self.shift[slot].clone(), wkv=self.wkv[slot].clone())

    def save(self, slot: int) -> State:
        """A copy of one slot, on the host."""
        return State(shift=self.shift[slot].to("cpu", copy=True), wkv=self.wkv[slot].to("cpu", copy=True))

    def write(self, slot: int, state: State) -> None:
        """Overwrite one slot."""
        self.shift[slot].copy_(state.shift)
        self.wkv[slot].copy_(fit(state.wkv, self.wkv.dtype))

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Fork: every target slot becomes what `source` is."""
        for target in targets:
            self.shift[target].copy_(self.shift[source])
            self.wkv[target].copy_(self.wkv[source])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros; on the host their memory is taken page by page as it is used, so slots that nobody uses cost none.

    Raises:
        MemoryError: the host has not so much.
    """
    size_bytes = torch.Size(shape).numel() * dtype.itemsize
    if torch.device(device).type != "cpu" or not size_bytes:
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no {size_bytes} bytes of memory") from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)
