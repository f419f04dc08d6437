"""Whole models through the Triton kernels, in the interpreter: the goldens of the official package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.server.model.shape import Version

from ..checkpoints import random_model
from ..test_model_goldens import load, run

MICRO = ["micro-rwkv4", "micro-rwkv5.1", "micro-rwkv6", "micro-rwkv7"]


@pytest.mark.parametrize("name", MICRO)
def test_logits_equal_the_goldens(fixtures: Path, name: str) -> None:
    golden = load(fixtures, name)
    tokens = golden.arrays["tokens_medium"]
    positions = golden.arrays["pos_medium"].long()
    wanted = positions[positions < 20]
    pool = golden.model.new_pool(2)
    whole = run(golden.model, tokens[:20], pool, chunk=20)
    torch.testing.assert_close(whole[wanted], golden.arrays["logits_medium"][: len(wanted)], rtol=0, atol=1e-4)
    pool.reset([1])
    one_by_one = run(golden.model, golden.arrays["tokens_short"], pool, chunk=1)
    expected = golden.arrays["logits_short"]
    torch.testing.assert_close(one_by_one[golden.arrays["pos_short"].long()], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("version", ["5.0", "7"])
def test_unusual_sizes_in_mixed_batches(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode rows, padding, an empty row and prompts in one step, against the same step on torch."""
    from rookery.kernels import backend

    model = random_model(version)
    rows = Rows.pack([2, -1, 0, 1, 3], [1, 1, 17, 0, 3])
    tokens = torch.arange(rows.tokens) % 97
    results = []
    for kernels in ("triton", "torch"):
        monkeypatch.setenv(backend.VARIABLE, kernels)
        backend.uses_triton.cache_clear()
        pool = model.new_pool(4)
        pool.wkv += 0.1
        pool.shift += 0.1
        results.append((model.logits(model.forward(tokens, rows, pool)), pool.wkv, pool.shift))
    backend.uses_triton.cache_clear()
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
