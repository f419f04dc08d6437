"""Whole models through the Triton kernels, in the interpreter: the goldens of the official package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.server.model.shape import Version

from ..checkpoints import random_model
from ..test_model_goldens import MODELS, Golden, load, run

MICRO = ["micro-rwkv4", "micro-rwkv5.1", "micro-rwkv6", "micro-rwkv7"]
OF_5_2 = "tiny-rwkv5.2-730K"


def assert_golden(golden: Golden, prompt: str, *, tokens: int, chunk: int) -> None:
    """The first `tokens` of a prompt, given to the model in pieces of `chunk`."""
    positions = golden.arrays[f"pos_{prompt}"].long()
    wanted = positions[positions < tokens]
    assert len(wanted)
    got = run(golden.model, golden.arrays[f"tokens_{prompt}"][:tokens], golden.model.new_pool(2), chunk=chunk)
    torch.testing.assert_close(got[wanted], golden.arrays[f"logits_{prompt}"][: len(wanted)], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MICRO)
def test_logits_equal_the_goldens(fixtures: Path, name: str) -> None:
    """As a prompt of two chunks, and token by token."""
    golden = load(fixtures, name)
    assert_golden(golden, "medium", tokens=18, chunk=18)
    assert_golden(golden, "short", tokens=3, chunk=1)


def test_logits_of_5_2_equal_the_goldens(fixtures: Path) -> None:
    """Of twelve layers: the first tokens alone."""
    assert_golden(load(fixtures, OF_5_2), "short", tokens=2, chunk=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_goldens_over_many_chunks(fixtures: Path, name: str) -> None:
    for chunk in (10_000, 7):
        assert_golden(load(fixtures, name), "medium", tokens=70, chunk=chunk)


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
