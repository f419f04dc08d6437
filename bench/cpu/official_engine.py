"""The official `rwkv` package: one stream, prompts in its own chunks."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

CHUNK = 256
"""Tokens of a prompt at a time: the default of the package's own pipeline."""


class OfficialEngine:
    """See `worker.Engine`; of streams it has one."""

    def __init__(self, path: str, kept: str, threads: int, streams: int) -> None:
        torch.set_num_threads(threads)
        os.environ.update(RWKV_JIT_ON="1", RWKV_CUDA_ON="0", RWKV_V7_ON="1")
        from rwkv.model import RWKV

        strategy = {"float32": "cpu fp32", "bfloat16": "cpu bf16"}[kept]
        self._model = RWKV(model=path.removesuffix(".pth"), strategy=strategy)
        self._token = 0
        self._state: Any = None
        self.about: dict[str, Any] = {"rwkv": version("rwkv"), "torch": torch.__version__, "strategy": strategy}

    def begin(self, streams: int, steps: int) -> None:
        if streams != 1:
            raise ValueError("the official package decodes one stream")
        self._token, self._state = 1, None
        self.step()

    def step(self) -> None:
        logits, self._state = self._model.forward([self._token], self._state)
        self._token = int(torch.argmax(logits))

    def end(self) -> None:
        self._state = None

    def prefill(self, token_ids: list[int]) -> None:
        state: Any = None
        logits = torch.empty(0)
        for start in range(0, len(token_ids), CHUNK):
            logits, state = self._model.forward(token_ids[start : start + CHUNK], state)
        self._token, self._state = int(torch.argmax(logits)), state

    def greedy(self, token_ids: list[int], count: int) -> list[int]:
        self.prefill(token_ids)
        drawn = [self._token]
        while len(drawn) < count:
            self.step()
            drawn.append(self._token)
        return drawn

    def logits(self, token_ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        logits, _ = self._model.forward(token_ids, None, full_output=True)
        return np.asarray(logits.float().numpy())


def load(**settings: Any) -> OfficialEngine:
    return OfficialEngine(**settings)
