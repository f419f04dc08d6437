"""llama.cpp through the low-level functions of llama-cpp-python: one batch a step, the largest logit by numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import llama_cpp
import numpy as np

BATCH = 512
"""Tokens of one call, llama.cpp's own size of a physical batch."""


class LlamaEngine:
    """See `worker.Engine`."""

    def __init__(self, path: str, kept: str, threads: int, streams: int) -> None:
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 1024 * streams
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError("llama.cpp cannot make a context")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._drawn: list[int] = []
        self._position = 0
        self.about: dict[str, Any] = {
            "llama_cpp_python": version("llama-cpp-python"),
            "system": llama_cpp.llama_print_system_info().decode(),
        }

    def _run(self, tokens: Sequence[tuple[int, int, int]], wanted: Sequence[bool]) -> np.ndarray[Any, Any]:
        """One call over (token, position, sequence); the logits of the tokens wanted, valid until the next call."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, ((token, position, sequence), want) in enumerate(zip(tokens, wanted, strict=True)):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, want
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode says {code}")
        pointer = ctypes.cast(llama_cpp.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape=(sum(wanted), self._vocabulary))

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def begin(self, streams: int, steps: int) -> None:
        self._clear()
        self._drawn, self._position = [1 + stream for stream in range(streams)], 0
        self.step()

    def step(self) -> None:
        tokens = [(token, self._position, stream) for stream, token in enumerate(self._drawn)]
        self._drawn = self._run(tokens, [True] * len(tokens)).argmax(axis=1).tolist()
        self._position += 1

    def end(self) -> None:
        self._clear()

    def prefill(self, token_ids: list[int]) -> None:
        self._clear()
        for start in range(0, len(token_ids), BATCH):
            part = token_ids[start : start + BATCH]
            last = start + len(part) == len(token_ids)
            wanted = [False] * (len(part) - 1) + [last]
            tokens = [(token, start + i, 0) for i, token in enumerate(part)]
            if last:
                self._drawn = self._run(tokens, wanted).argmax(axis=1).tolist()
            else:
                self._run(tokens, wanted)
        self._position = len(token_ids)

    def greedy(self, token_ids: list[int], count: int) -> list[int]:
        self.prefill(token_ids)
        drawn = [*self._drawn]
        while len(drawn) < count:
            self.step()
            drawn += self._drawn
        return drawn

    def logits(self, token_ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        self._clear()
        tokens = [(token, i, 0) for i, token in enumerate(token_ids)]
        return self._run(tokens, [True] * len(tokens)).copy()


def load(**settings: Any) -> LlamaEngine:
    return LlamaEngine(**settings)
