"""A device that works behind the host's back: what is asked of it is done in order, later.

Everything the engine has to know of that is here: values go there and come back without waiting, and the one call that
waits is the one that reads. `CudaDevice` has not run on a GPU yet; tests put other devices behind the same two methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

IN_FLIGHT = 2
"""Results that may be on their way at a time: of the step that runs, and of the one before it."""


class Device(Protocol):
    """Two ways between host and device; work in between keeps its order."""

    def send(self, values: Tensor) -> Tensor:
        """A host tensor on the device, as soon as the work before it is done; the caller does not change it again."""
        ...

    def fetch(self, values: Tensor) -> Callable[[], list[int]]:
        """Copy [n] int64 to the host, once the work so far is done.

        Returns: what waits for that and gives the numbers; to be called once, before `IN_FLIGHT` further fetches.
        """
        ...


class CudaDevice:
    """The current stream of a CUDA device, and a ring of pinned buffers that it copies results to.

    Args:
        rows: numbers that are fetched at once, at most.
    """

    def __init__(self, device: torch.device, rows: int) -> None:
        self._device = device
        self._ring = [torch.empty(rows, dtype=torch.int64, pin_memory=True) for _ in range(IN_FLIGHT)]
        self._events = [torch.cuda.Event() for _ in range(IN_FLIGHT)]  # type: ignore[no-untyped-call]
        self._next = 0

    def send(self, values: Tensor) -> Tensor:
        return values.pin_memory().to(self._device, non_blocking=True)

    def fetch(self, values: Tensor) -> Callable[[], list[int]]:
        buffer, event = self._ring[self._next][: len(values)], self._events[self._next]
        self._next = (self._next + 1) % IN_FLIGHT
        buffer.copy_(values, non_blocking=True)
        event.record()

        def wait() -> list[int]:
            event.synchronize()
            numbers: list[int] = buffer.tolist()
            return numbers

        return wait
