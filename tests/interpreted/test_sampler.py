"""The sampler on the Triton path, in the interpreter: the same tokens, errors and counts as on torch."""

from __future__ import annotations

import pytest
import torch

from rookery.kernels import backend
from rookery.server.engine.request import SamplingParams
from rookery.server.engine.sampler import ChoiceSampling, Draw, Sampler

PARAMS = [
    SamplingParams(max_tokens=9, temperature=0.0, seed=1),
    SamplingParams(max_tokens=9, temperature=1.0, seed=2**64 - 5),
    SamplingParams(max_tokens=9, temperature=0.8, top_k=5, top_p=0.9, seed=3),
    SamplingParams(max_tokens=9, temperature=1.2, top_p=0.7, sampling_order="top_p_first", seed=4),
    SamplingParams(
        max_tokens=9, temperature=1.0, presence_penalty=1.0, frequency_penalty=0.5, penalty_decay=0.9, seed=5
    ),
    SamplingParams(max_tokens=9, temperature=1.0, logit_bias={7: 100.0}, seed=6),
    SamplingParams(max_tokens=9, temperature=1.0, seed=7),
]


def test_the_draws_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 2 * torch.randn(len(PARAMS), 60, generator=torch.Generator().manual_seed(0))
    logits[-1] = -torch.inf
    drawn: list[list[list[Draw]]] = []
    for kernels in ("triton", "torch"):
        monkeypatch.setenv(backend.VARIABLE, kernels)
        backend.uses_triton.cache_clear()
        choices = [ChoiceSampling(params, number % 2) for number, params in enumerate(PARAMS)]
        drawn.append([Sampler().sample(logits, choices) for _ in range(2)])
    backend.uses_triton.cache_clear()
    assert drawn[0] == drawn[1]
    assert drawn[0][0][5].token_id == 7
    assert drawn[0][0][-1].error is not None
