"""Steps launched ahead, through the Triton kernels in the interpreter: the tokens of the engine that runs on torch."""

from __future__ import annotations

import pytest

from rookery.kernels import backend
from rookery.server.engine.engine import Engine
from rookery.server.engine.request import Request, SamplingParams, TokenEvent

from ..checkpoints import random_model
from ..devices import Eager, Late

KINDS = (
    SamplingParams(max_tokens=3, temperature=0.0, logit_bias={3: 9.0}, min_tokens=2, stop_token_ids=(3,)),
    SamplingParams(max_tokens=2, seed=2**64 - 9, top_k=9, top_p=0.9, temperature=1.3, token_limit=90),
    SamplingParams(max_tokens=3, seed=3, presence_penalty=0.5, frequency_penalty=0.3, penalty_decay=0.9),
)


@pytest.mark.timeout(850)
def test_the_tokens_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("7")
    drawn: list[dict[str, list[TokenEvent]]] = []
    for kernels in ("triton", "torch"):
        monkeypatch.setenv(backend.VARIABLE, kernels)
        backend.uses_triton.cache_clear()
        engine = Engine(model, max_batch=4, max_queue=9, prefill_budget=16)
        if kernels == "triton":
            engine.overlap(Late()).record(Eager(), [2], mixed=[(2, 16)])
            assert engine.loop is not None and engine.loop.mixed.sizes == [(2, 16)]
        for number, params in enumerate(KINDS):
            prompt = tuple((7 * number + i) % 90 for i in range(1 + 4 * number))
            engine.submit(Request(id=str(number), prompt_ids=prompt, sampling=params))
        events: dict[str, list[TokenEvent]] = {}
        while engine.busy:
            for event in engine.step():
                events.setdefault(event.request_id, []).append(event)
        drawn.append(events)
    backend.uses_triton.cache_clear()
    assert drawn[0] == drawn[1]
    assert drawn[0]["0"][-1].finish == "stop"
