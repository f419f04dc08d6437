"""Decode steps recorded as CUDA graphs: one launch for a step instead of some hundred.

A graph has a fixed number of rows, so there is one for each of a ladder of sizes; a step takes the smallest that
holds its rows, and the rows left over are padding (slot -1). All graphs share one memory pool. Every graph is compared
with the step it recorded, bit for bit, before it is used: a graph that was recorded wrongly runs, and lies.

The recorder for CUDA has not run on a GPU yet; everything around it is tested on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rookery.kernels.backend import uses_triton
from rookery.kernels.rows import Rows

from ..model.base import Model
from ..state.torch_pool import TorchPool

logger = logging.getLogger(__name__)

Outcome = TypeVar("Outcome", Tensor, tuple[Tensor, Tensor])
"""Of a step: one tensor, or two."""

_WARM_UPS = 2
"""Eager runs before a recording: the first compiles kernels, which a recording does not allow."""
_COMPARED_STEPS = 2
"""The second step reads what the first left in the states."""


class Recorder(Protocol):
    """Turns work on fixed buffers into something that repeats it."""

    def record(self, run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        """A callable that does what `run` does, on the same buffers; its result lies in a buffer of its own."""
        ...


class CudaRecorder:
    """Records CUDA graphs into one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()

        def replay() -> Outcome:
            graph.replay()
            return result

        return replay


def record_checked(
    recorder: Recorder, run: Callable[[], Outcome], prepare: Callable[[int], None], name: str
) -> Callable[[], Outcome] | None:
    """Record a step, and see whether it does exactly what it recorded: else None.

    Args:
        prepare: called before each of the two steps that are compared, with its number; before step 0 it sets all that
            the step reads, and step 1 reads what step 0 left.
        name: of the step, for the log.
    """
    replay = recorder.record(run)
    outcomes: list[list[Tensor]] = []
    for step in (run, replay):
        outcomes.append([])
        for number in range(_COMPARED_STEPS):
            prepare(number)
            outcome = step()
            outcomes[-1] += [one.clone() for one in ((outcome,) if isinstance(outcome, Tensor) else outcome)]
    if all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True)):
        return replay
    logger.error("the graph for %s differs from the step it recorded; it will not be used", name)
    return None


def buckets(max_rows: int) -> list[int]:
    """Sizes of the graphs, growing; the last is `max_rows`."""
    ladder = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, *range(128, 512, 32), *range(512, 961, 64)]
    return [*(size for size in ladder if size < max_rows), max_rows] if max_rows <= 960 else ladder


def recordable(device: torch.device) -> bool:
    """Whether steps on this device can be recorded: the torch form of the operators waits for the host."""
    return device.type == "cuda" and uses_triton(device.type)


class DecodeGraphs:
    """Recorded decode steps of one model and one pool of states.

    Args:
        sizes: rows of the graphs; all slots named in a step have to be in `pool`.
        progress: called with the share of the recordings done.
    """

    def __init__(
        self,
        model: Model,
        pool: TorchPool,
        recorder: Recorder,
        sizes: Sequence[int],
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.model = model
        self.pool = pool
        self._device = pool.device
        self._packed = torch.zeros(2, max(sizes), dtype=torch.int64, device=self._device)
        """Token ids and slots, as one buffer: one copy a step."""
        self._steps: dict[int, Callable[[], Tensor]] = {}
        for done, size in enumerate(sorted(sizes, reverse=True), 1):  # the largest first: the others fit in its memory
            self._record(size, recorder)
            if progress is not None:
                progress(done / len(sizes))
        self._steps = dict(sorted(self._steps.items()))

    @property
    def sizes(self) -> list[int]:
        """Rows of the graphs that can be used, growing."""
        return list(self._steps)

    def forward(self, token_ids: Sequence[int], slots: Sequence[int]) -> Tensor | None:
        """`Model.forward` for decode rows: [rows, C]; None when no graph has so many rows."""
        rows = len(slots)
        size = next((size for size in self._steps if size >= rows), None)
        if size is None:
            return None
        self._fill(size, token_ids, slots)
        return self._steps[size]()[:rows].clone()

    def _fill(self, size: int, token_ids: Sequence[int], slots: Sequence[int]) -> None:
        padding = size - len(slots)
        packed = torch.tensor(
            [[*token_ids, *(0,) * padding], [*slots, *(-1,) * padding]], pin_memory=self._device.type == "cuda"
        )
        self._packed[:, :size].copy_(packed, non_blocking=True)

    @torch.inference_mode()
    def _record(self, size: int, recorder: Recorder) -> None:
        """Record one size, and keep it if it does exactly what it recorded."""
        token_ids, slots = self._packed[0, :size], self._packed[1, :size]
        starts = torch.arange(size + 1, device=self._device)
        rows = Rows(slots, starts, torch.zeros_like(slots), (1,) * size, (0,) * size, size)

        def run() -> Tensor:
            hidden: Tensor = self.model.forward(token_ids, rows, self.pool)
            return hidden

        live = range(min(size, self.pool.slots))

        def prepare(number: int) -> None:
            if number == 0:
                self.pool.reset(live)
            self._fill(size, [(7 + 13 * row + 31 * number) % self.model.shape.vocab_size for row in live], live)

        self._fill(size, [], [])  # recording runs the step: on padding alone, it changes no state
        replay = record_checked(recorder, run, prepare, f"{size} rows")
        self.pool.reset(live)
        if replay is not None:
            self._steps[size] = replay
