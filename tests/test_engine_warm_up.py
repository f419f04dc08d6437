"""What a server does before it is ready on a GPU, with an eager device in its place."""

from __future__ import annotations

import pytest
import torch

from rookery.server.engine import warm_up as module
from rookery.server.engine.engine import Engine
from rookery.server.engine.warm_up import warm_up
from rookery.server.model.exact import TokenByToken

from .checkpoints import random_model
from .devices import Eager, Late


def recordable_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "recordable", lambda device: True)
    monkeypatch.setattr(module, "CudaRecorder", Eager)
    monkeypatch.setattr(module, "CudaDevice", lambda device, rows: Late())


@pytest.mark.parametrize("version", ["4", "7"])
def test_everything_is_recorded_and_leaves_no_trace(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recordable_cpu(monkeypatch)
    model = random_model("4" if version == "4" else "7")
    engine = Engine(model, max_batch=3, max_queue=3, prefill_budget=32)
    shares: list[float] = []
    warm_up(engine, shares.append)
    assert engine.forward.graphs is not None and engine.forward.graphs.sizes == [1, 2, 3]
    assert engine.loop is not None and engine.loop.sizes == [1, 2, 3]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) >= 7
    fresh = model.new_pool(3)
    assert torch.equal(engine.pool.wkv, fresh.wkv) and torch.equal(engine.pool.shift, fresh.shift)


def test_a_cpu_and_an_exact_model_need_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Engine(random_model("7"), max_batch=2, max_queue=2, prefill_budget=32)
    warm_up(plain)
    recordable_cpu(monkeypatch)
    exact = Engine(TokenByToken(random_model("7")), max_batch=2, max_queue=2, prefill_budget=32)
    warm_up(exact)
    for engine in (plain, exact):
        assert engine.loop is None and engine.forward.graphs is None
