"""A device that works behind the host's back: what is asked of it is done in order, later.

Everything the engine has to know of that is here: values go there and come back without waiting, and the calls that
wait are those that read. `CudaDevice` has not run on a GPU yet; tests put other devices behind the same methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

IN_FLIGHT = 2
"""Results that may be on their way at a time: of the step that runs, and of the one before it."""
SEGMENTS, SEGMENT_BYTES = 4, 2**20
"""Of the memory that values wait in for their way to the device: a step sends some ten kilobytes."""
_ALIGNMENT = 64


class Device(Protocol):
    """Ways between host and device; work in between keeps its order."""

    def send(self, values: Tensor) -> Tensor:
        """A host tensor on the device, as soon as the work before it is done; the caller may change it again."""
        ...

    def fetch(self, values: Tensor) -> Callable[[], list[int]]:
        """Copy [n] int64 to the host, once the work so far is done.

        Returns: what waits for that and gives the numbers; to be called once, before `IN_FLIGHT` further fetches.
        """
        ...

    def bring(self, values: Tensor) -> Callable[[], Tensor]:
        """Copy a tensor, which nobody changes any more, to the host, once the work so far is done; later work does not
        wait for the copy.

        Returns: what waits for that and gives the copy.
        """
        ...


class Event(Protocol):
    """A point in the work of a device."""

    def record(self) -> None:
        """Set it behind the work so far."""
        ...

    def synchronize(self) -> None:
        """Wait until it is reached."""
        ...


class Staging:
    """Memory that values wait in until a device has fetched them, filled in a circle.

    Args:
        segments: [size] uint8 each; one is filled again when the copies out of it are over.
        events: one for each.
    """

    def __init__(self, segments: Sequence[Tensor], events: Sequence[Event]) -> None:
        self._segments, self._events = segments, events
        self._current = self._used = 0

    def hold(self, values: Tensor) -> Tensor | None:
        """A copy of the values, to be fetched before the next call; None for more than a segment."""
        if values.nbytes > len(self._segments[0]):
            return None
        if self._used + values.nbytes > len(self._segments[0]):
            self._events[self._current].record()
            self._current = (self._current + 1) % len(self._segments)
            self._events[self._current].synchronize()
            self._used = 0
        place = self._segments[self._current][self._used : self._used + values.nbytes]
        self._used += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
        held = place.view(values.dtype).view(values.shape)
        held.copy_(values)
        return held


class CudaDevice:
    """The current stream of a CUDA device, a stream beside it for what is brought, and pinned memory for both ways.

    Args:
        rows: numbers that are fetched at once, at most.
    """

    def __init__(self, device: torch.device, rows: int) -> None:
        def event() -> torch.cuda.Event:
            return torch.cuda.Event()  # type: ignore[no-untyped-call]

        self._device = device
        self._ring = [torch.empty(rows, dtype=torch.int64, pin_memory=True) for _ in range(IN_FLIGHT)]
        self._events = [event() for _ in range(IN_FLIGHT)]
        self._next = 0
        segments = torch.empty(SEGMENTS, SEGMENT_BYTES, dtype=torch.uint8, pin_memory=True)
        self._staging = Staging(list(segments), [event() for _ in range(SEGMENTS)])
        self._beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, values: Tensor) -> Tensor:
        held = self._staging.hold(values)
        return (values.pin_memory() if held is None else held).to(self._device, non_blocking=True)

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

    def bring(self, values: Tensor) -> Callable[[], Tensor]:
        self._beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._beside):
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            there = self._beside.record_event()
        values.record_stream(self._beside)  # whose memory is not given to others before it is copied

        def wait() -> Tensor:
            there.synchronize()
            return host

        return wait
