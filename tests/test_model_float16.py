"""float16: what keeps the residual stream of the older generations inside its range, and changes nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.server.model import damped as damping
from rookery.server.model.base import Model
from rookery.server.model.shape import Version
from rookery.server.model.synthetic import synthetic_checkpoint

from .checkpoints import UNUSUAL, build_model

TOKENS = torch.tensor([5, 80, 13, 13, 0, 96, 41, 7])
LAYERS = 13


def deep_model(version: Version, dtype: torch.dtype, *, loudness: float = 1.0) -> Model:
    """13 layers, of which the last adds `loudness` times the usual to the residual stream."""
    checkpoint = synthetic_checkpoint(replace(UNUSUAL[version], layers=LAYERS), dtype=torch.float32)
    last = f"blocks.{LAYERS - 1}.ffn.value.weight"
    tensors = {**checkpoint.tensors, last: checkpoint.tensors[last] * loudness}
    return build_model(replace(checkpoint, tensors=tensors), dtype=dtype)


def logits(model: Model) -> torch.Tensor:
    hidden = model.forward(TOKENS, Rows.pack([0], [len(TOKENS)]), model.new_pool(1))
    logits: torch.Tensor = model.logits(hidden)
    return logits


@pytest.mark.parametrize("version", list(UNUSUAL))
def test_float16_of_many_layers_stays_near_float32(version: Version) -> None:
    error = (logits(deep_model(version, torch.float16)) - logits(deep_model(version, torch.float32))).abs()
    assert error.mean() < 0.02


@pytest.mark.parametrize("version", ["4", "5.2", "6"])
def test_a_residual_stream_beyond_float16_is_kept_inside(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    loudness = 80_000.0
    damped = logits(deep_model(version, torch.float16, loudness=loudness))
    assert damped.isfinite().all()
    monkeypatch.setattr(damping, "HALVE_EVERY", 10**6)
    assert not logits(deep_model(version, torch.float16, loudness=loudness)).isfinite().all()
