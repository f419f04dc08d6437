"""Real and random small models against stored outputs of the official package: logits, states, greedy continuations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.server.model.base import Model
from rookery.server.model.weights import read_checkpoint

from .arrays import Held, held, state_of
from .checkpoints import build_model

MODELS = [
    "micro-rwkv4",
    "micro-rwkv5.1",
    "micro-rwkv6",
    "micro-rwkv7",
    "tiny-rwkv4-660K",
    "tiny-rwkv5.2-730K",
    "tiny-rwkv6-3m",
    "tiny-rwkv7-834K",
]
SLOT = 1
WHOLE = 10_000


@dataclass(frozen=True, slots=True)
class Golden:
    """One model and the numbers stored for it."""

    model: Model
    arrays: Mapping[str, Tensor]
    info: Mapping[str, Any]


@cache
def load(fixtures: Path, name: str, dtype: torch.dtype = torch.float32) -> Golden:
    with np.load(fixtures / "golden" / f"{name}.npz") as found:
        arrays = {key: torch.from_numpy(found[key]) for key in found.files}
    info = json.loads((fixtures / "golden" / f"{name}.json").read_text())
    return Golden(build_model(read_checkpoint(fixtures / f"{name}.pth"), dtype=dtype), arrays, info)


def run(model: Model, tokens: Tensor, pool: Any, *, chunk: int) -> Tensor:
    """Logits of all tokens, given to the model in pieces of `chunk`."""
    pieces = torch.split(tokens.long(), chunk)
    hidden = [model.forward(piece, Rows.pack([SLOT], [len(piece)]), pool) for piece in pieces]
    logits: Tensor = model.logits(torch.cat(hidden))
    return logits


def assert_near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=5e-4)


def assert_state(state: Held, arrays: Mapping[str, Tensor], *, value_key: bool) -> None:
    """Compare with a golden's state; its WKV axes are value, key for RWKV-7 and key, value for 5 and 6."""
    assert_near(state.shift[:, 0], arrays["state_att_x"])
    assert_near(state.shift[:, 1], arrays["state_ffn_x"])
    if "state_wkv" in arrays:
        expected = arrays["state_wkv"] if value_key else arrays["state_wkv"].mT
        assert_near(state.wkv, expected)
    else:  # RWKV-4's three are defined up to the running maximum
        (a, b, m), (aa, bb, pp) = state.wkv.unbind(1), (arrays[f"state_{part}"] for part in ("aa", "bb", "pp"))
        assert_near(a / b, aa / bb)
        assert_near(m + b.log(), pp + bb.log())


@pytest.mark.parametrize("chunk", [1, 7, 16, 64, WHOLE])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_states_equal_the_goldens(fixtures: Path, name: str, chunk: int) -> None:
    golden = load(fixtures, name)
    for prompt in ["short", "medium"] if chunk == 1 else ["short", "medium", "long"]:
        pool = golden.model.new_pool(2)
        logits = run(golden.model, golden.arrays[f"tokens_{prompt}"], pool, chunk=chunk)
        expected = golden.arrays[f"logits_{prompt}"]
        torch.testing.assert_close(logits[golden.arrays[f"pos_{prompt}"].long()], expected, rtol=0, atol=1e-4)
        if prompt == "medium":
            assert_state(held(pool, SLOT), golden.arrays, value_key=golden.model.shape.version == "7")


@pytest.mark.parametrize("name", MODELS)
def test_greedy_continuations_are_identical(fixtures: Path, name: str) -> None:
    golden = load(fixtures, name)
    pool = golden.model.new_pool(2)
    token = run(golden.model, golden.arrays["tokens_medium"], pool, chunk=WHOLE)[-1:].argmax(-1)
    drawn = [int(token)]
    for _ in golden.arrays["greedy_tokens"][1:]:
        token = run(golden.model, token, pool, chunk=1).argmax(-1)
        drawn.append(int(token))
    assert drawn == golden.arrays["greedy_tokens"].tolist()


@pytest.mark.parametrize("name", ["micro-rwkv6", "micro-rwkv7"])
def test_tuned_states_are_read_as_value_and_key(fixtures: Path, name: str) -> None:
    golden = load(fixtures, name)
    tensors = torch.load(fixtures / f"{name}.time_state.pth", weights_only=True)
    shape = golden.model.shape
    wkv = torch.stack([tensors[f"blocks.{layer}.att.time_state"] for layer in range(shape.layers)])
    pool = golden.model.new_pool(2)
    pool.write(SLOT, state_of(torch.zeros(shape.layers, 2, shape.width), wkv.float()))
    logits = run(golden.model, golden.arrays["tokens_medium"], pool, chunk=WHOLE)[-1]
    torch.testing.assert_close(logits, golden.arrays["time_state_last_logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision_strays_no_further_than_the_official_package(
    fixtures: Path, name: str, dtype: torch.dtype
) -> None:
    golden = load(fixtures, name, dtype)
    official = golden.info["official_half_precision_vs_fp32_golden"]["bf16" if dtype == torch.bfloat16 else "fp16"]
    logits = run(golden.model, golden.arrays["tokens_medium"], golden.model.new_pool(2), chunk=WHOLE)
    error = (logits[golden.arrays["pos_medium"].long()] - golden.arrays["logits_medium"]).abs()
    assert error.max() <= 3 * official["max_abs"]
    assert error.mean() <= 3 * official["mean_abs"]
