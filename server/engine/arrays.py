"""The few things the engine does with the arrays of a model, whichever library they are of.

A model on the native library computes with numpy, and then nothing here needs torch; every other one with torch.
What the engine keeps of them, such as states and outputs, is numpy on the host in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from rookery.kernels.cpu.arrays import FloatArray
from rookery.kernels.cpu.rows import HostRows

from ..state.memory import Snapshot
from ..state.pool import HostPool, State, StatePool

if TYPE_CHECKING:
    from ..state.torch_pool import TorchPool


class Arrays(Protocol):
    """What models take and give; `Any` stands for arrays of their library."""

    def pack(
        self,
        token_ids: Sequence[int],
        slots: Sequence[int],
        lengths: Sequence[int],
        *,
        positions: Sequence[int] | None = None,
        decode: int | None = None,
    ) -> tuple[Any, Any]:
        """Token ids and rows, as `Model.forward` takes them; see `Rows.pack`."""
        ...

    def join(self, parts: list[Any]) -> Any:
        """[n, C] each, one after the other; at least one."""
        ...

    def empty(self) -> Any:
        """No rows of logits."""
        ...

    def from_host(self, values: FloatArray) -> Any:
        """[C] in the model's dtype on its device."""
        ...

    def to_host(self, values: Any) -> FloatArray:
        """A copy of [C] on the host."""
        ...

    def snapshot(self, state: State, hidden: Any) -> Snapshot:
        """A state with the output of its last token, [C]."""
        ...

    def computing(self) -> AbstractContextManager[None]:
        """What models run in."""
        ...


def arrays_of(pool: StatePool) -> Arrays:
    """For the model that made this pool."""
    if isinstance(pool, HostPool):
        return HostArrays()
    from .torch_arrays import TorchArrays

    return TorchArrays(cast("TorchPool", pool))


class HostArrays:
    """Arrays of numpy."""

    def pack(
        self,
        token_ids: Sequence[int],
        slots: Sequence[int],
        lengths: Sequence[int],
        *,
        positions: Sequence[int] | None = None,
        decode: int | None = None,
    ) -> tuple[Any, Any]:
        return np.array(token_ids, np.int64), HostRows.pack(slots, lengths)

    def join(self, parts: list[Any]) -> Any:
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def empty(self) -> Any:
        return np.empty((0, 0), np.float32)

    def from_host(self, values: FloatArray) -> Any:
        return values

    def to_host(self, values: Any) -> FloatArray:
        return values.copy()  # type: ignore[no-any-return]

    def snapshot(self, state: State, hidden: Any) -> Snapshot:
        return Snapshot(state, self.to_host(hidden))

    def computing(self) -> AbstractContextManager[None]:
        return nullcontext()
