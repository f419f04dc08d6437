"""`Arrays` of torch, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rookery.kernels.cpu.arrays import FloatArray
from rookery.kernels.rows import Rows

from ..state.torch_pool import TorchPool


class TorchArrays:
    """On a pool's device, in its model's dtype."""

    def __init__(self, pool: TorchPool) -> None:
        self._device, self._dtype = pool.device, pool.shift.dtype

    def pack(
        self,
        token_ids: Sequence[int],
        slots: Sequence[int],
        lengths: Sequence[int],
        *,
        positions: Sequence[int] | None = None,
        decode: int | None = None,
    ) -> tuple[Tensor, Rows]:
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self._device)
        return ids, Rows.pack(slots, lengths, self._device, positions=positions, decode=decode)

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def empty(self) -> Tensor:
        return torch.empty(0, 0, device=self._device)

    def from_host(self, values: FloatArray) -> Tensor:
        return torch.from_numpy(values).to(self._device, self._dtype)

    def to_host(self, values: Tensor) -> FloatArray:
        copied: FloatArray = values.to("cpu", torch.float32, copy=True).numpy()
        return copied

    def computing(self) -> AbstractContextManager[None]:
        return torch.inference_mode()
