"""The pool of states of the models that torch runs, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rookery.kernels.cpu.arrays import BYTE, zeros
from rookery.kernels.slots import fit

from ..model.shape import ModelShape
from .pool import RWKV4_MAX_START, LateState, State


class Carrier(Protocol):
    """Ways between host and device that nobody waits for; see `engine.device`."""

    def send(self, values: Tensor) -> Tensor: ...

    def bring(self, values: Tensor) -> Callable[[], Tensor]: ...


class TorchPool:
    """A `StatePool` of tensors.

    Attributes:
        carrier: what states come and go by where a device works behind the host's back: then a state that is saved is
            on its way (`LateState`), and the steps that follow do not wait for it.

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
        self.carrier: Carrier | None = None
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
        if self.carrier is None:
            shift = self.shift[slot].to("cpu", torch.float32, copy=True)
            return State(shift=shift.numpy(), wkv=self.wkv[slot].to("cpu", copy=True).numpy())
        shift, wkv = self.shift[slot].to(torch.float32, copy=True), self.wkv[slot].clone()  # the slot may go on
        of_shift, of_wkv = self.carrier.bring(shift), self.carrier.bring(wkv)
        return LateState(shift.nbytes + wkv.nbytes, lambda: State(shift=of_shift().numpy(), wkv=of_wkv().numpy()))

    def write(self, slot: int, state: State) -> None:
        shift, wkv = torch.from_numpy(state.shift), torch.from_numpy(state.wkv)
        if self.carrier is not None:
            shift, wkv = self.carrier.send(shift), self.carrier.send(wkv)
        self.shift[slot].copy_(shift)
        self.wkv[slot].copy_(fit(wkv, self.wkv.dtype))

    def copy(self, source: int, targets: Sequence[int]) -> None:
        for target in targets:
            self.shift[target].copy_(self.shift[source])
            self.wkv[target].copy_(self.wkv[source])

    def rest(self) -> None:
        """Nothing: a device's memory is taken once."""


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the host their memory is taken page by page as it is used, so slots that nobody uses cost none."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    as_bytes = torch.from_numpy(zeros((*shape[:-1], shape[-1] * dtype.itemsize), BYTE))
    return as_bytes.view(dtype)
