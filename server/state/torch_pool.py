"""The pool of states of the models that torch runs, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rookery.kernels.cpu.arrays import BYTE, zeros
from rookery.kernels.slots import fit

from ..model.shape import ModelShape
from .pool import RWKV4_MAX_START, State


class TorchPool:
    """A `StatePool` of tensors.

    Args:
        dtype: of `shift`.
        wkv_dtype: float32, or float16, which halves the memory and rounds every state after every step. RWKV-4's has
            exponents, and is float32 whatever is asked for.

    Raises:
        MemoryError: the host has not so much.
        torch.OutOfMemoryError: the device has not.
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
        self.device = torch.device(device)
        self.shift = _zeros((slots, shape.layers, 2, shape.width), dtype, self.device)
        wkv_dtype = torch.float32 if shape.version == "4" else wkv_dtype
        self.wkv = _zeros((slots, shape.layers, *shape.wkv_shape), wkv_dtype, self.device)
        if shape.version == "4":
            self.reset(range(slots))

    @property
    def device_type(self) -> str:
        return self.device.type

    @property
    def state_bytes(self) -> int:
        return self.shift[0].nbytes + self.wkv[0].nbytes

    def reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.shift[slot] = 0
            self.wkv[slot] = 0
            if self.shape.version == "4":
                self.wkv[slot, :, 2] = RWKV4_MAX_START

    def save(self, slot: int) -> State:
        shift = self.shift[slot].to("cpu", torch.float32, copy=True)
        return State(shift=shift.numpy(), wkv=self.wkv[slot].to("cpu", copy=True).numpy())

    def write(self, slot: int, state: State) -> None:
        self.shift[slot].copy_(torch.from_numpy(state.shift))
        self.wkv[slot].copy_(fit(torch.from_numpy(state.wkv), self.wkv.dtype))

    def copy(self, source: int, targets: Sequence[int]) -> None:
        for target in targets:
            self.shift[target].copy_(self.shift[source])
            self.wkv[target].copy_(self.wkv[source])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the host their memory is taken page by page as it is used, so slots that nobody uses cost none."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    as_bytes = torch.from_numpy(zeros((*shape[:-1], shape[-1] * dtype.itemsize), BYTE))
    return as_bytes.view(dtype)
