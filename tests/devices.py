"""Devices for the overlapping loop on a CPU: what a GPU does later, they do at once, or only when it is waited for."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rookery.server.engine.device import IN_FLIGHT
from rookery.server.engine.graphs import Outcome

POISON = -(2**40)


class Eager:
    """A recorder that repeats a step by running it."""

    def record(self, run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        return run


class Prompt:
    """A device that has done everything by the time it is asked."""

    def send(self, values: Tensor) -> Tensor:
        return values.clone()

    def fetch(self, values: Tensor) -> Callable[[], list[int]]:
        found: list[int] = values.tolist()
        return lambda: found

    def bring(self, values: Tensor) -> Callable[[], Tensor]:
        """Whoever changes the values before they are waited for changes what arrives."""
        return values.clone


class Late(Prompt):
    """A device with a ring of buffers that are filled when they are waited for, and useless once they are due again.

    Attributes:
        most: results that were on their way at once.
    """

    def __init__(self) -> None:
        self._under_way: list[list[int]] = []
        self.most = 0

    def fetch(self, values: Tensor) -> Callable[[], list[int]]:
        buffer = [POISON] * len(values)
        arriving: list[int] = values.tolist()
        self._under_way.append(buffer)
        self.most = max(self.most, len(self._under_way))
        assert len(self._under_way) <= IN_FLIGHT, "a buffer of the ring is used before it has been read"

        def wait() -> list[int]:
            assert self._under_way.pop(0) is buffer, "results are read in the order of the steps, and once"
            buffer[:] = arriving
            return buffer

        return wait
