"""`Arrays` of torch, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rookery.kernels.cpu.arrays import FloatArray
from rookery.kernels.rows import Rows

from ..state.memory import LateSnapshot, Snapshot
from ..state.pool import State
from ..state.torch_pool import TorchPool


class TorchArrays:
    """On a pool's device, in its model's dtype."""

    def __init__(self, pool: TorchPool) -> None:
        self._pool, self._device, self._dtype = pool, pool.device, pool.shift.dtype

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

    def snapshot(self, state: State, hidden: Tensor) -> Snapshot:
        if self._pool.carrier is None:
            return Snapshot(state, self.to_host(hidden))
        values = hidden.to(torch.float32, copy=True)  # the next step may overwrite a recorded one's outputs
        arrive = self._pool.carrier.bring(values)
        return LateSnapshot(state, values.nbytes, lambda: arrive().numpy())

    def computing(self) -> AbstractContextManager[None]:
        return torch.inference_mode()
