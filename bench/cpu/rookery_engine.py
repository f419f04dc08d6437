"""Rookery's engine, without HTTP: the scheduler, the model and the sampler as they serve."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from rookery import __version__
from rookery.kernels.cpu.arrays import FloatArray
from rookery.kernels.cpu.threads import set_threads
from rookery.server.engine.engine import Engine
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.model.load import load_model


class RookeryEngine:
    """See `worker.Engine`."""

    def __init__(self, path: str, kept: str, threads: int, streams: int) -> None:
        set_threads(threads)
        quantised = kept.startswith("int")
        self._model, self._info = load_model(
            Path(path), dtype="auto" if quantised else kept, quantize=kept if quantised else "none", device="cpu"
        )
        self._engine = Engine(self._model, max_batch=streams, max_queue=streams, prefill_budget=512)
        self._numbers = count()
        self._live: list[str] = []
        self.about: dict[str, Any] = {"rookery": __version__, "dtype": self._info.dtype}

    def _submit(self, token_ids: list[int], max_tokens: int) -> str:
        request_id = f"bench-{next(self._numbers)}"
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        self._engine.submit(Request(id=request_id, prompt_ids=tuple(token_ids), sampling=params))
        return request_id

    def _step(self) -> list[TokenEvent]:
        """One step. A stream that fails would leave an engine that is idle, and so very fast.

        Raises:
            RuntimeError: a request ended with an error.
        """
        events = self._engine.step()
        for event in events:
            if event.finish == "error":
                raise RuntimeError(event.error)
        return events

    def _drain(self) -> list[int]:
        drawn: list[int] = []
        while self._engine.busy:
            drawn += [event.token_id for event in self._step() if event.token_id is not None]
        return drawn

    def begin(self, streams: int, steps: int) -> None:
        self._live = [self._submit([1 + stream], steps + 2) for stream in range(streams)]
        self._step()

    def step(self) -> None:
        if len(self._step()) != len(self._live):
            raise RuntimeError(f"a step drew no token in some of {len(self._live)} streams")

    def end(self) -> None:
        for request_id in self._live:
            self._engine.cancel(request_id)
        self._drain()

    def prefill(self, token_ids: list[int]) -> None:
        self._submit(token_ids, 1)
        self._drain()

    def greedy(self, token_ids: list[int], count: int) -> list[int]:
        self._submit(token_ids, count)
        return self._drain()

    def logits(self, token_ids: list[int]) -> FloatArray:
        pool = self._model.new_pool(1)
        arrays = self._engine.forward.arrays
        with arrays.computing():
            hidden = self._model.forward(*arrays.pack(token_ids, [0], [len(token_ids)]), pool)
            logits: FloatArray = np.asarray(self._model.logits(hidden))
        return logits


def load(**settings: Any) -> RookeryEngine:
    return RookeryEngine(**settings)
