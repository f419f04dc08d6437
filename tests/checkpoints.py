"""Small random checkpoints with sizes no published model has, so that no size can be assumed; for any test to use."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rookery.server.model.base import Model
from rookery.server.model.checkpoint import Checkpoint
from rookery.server.model.rwkv4 import Rwkv4
from rookery.server.model.rwkv5 import Rwkv5
from rookery.server.model.rwkv6 import Rwkv6
from rookery.server.model.rwkv7 import Rwkv7
from rookery.server.model.shape import Version
from rookery.server.model.synthetic import Plan, synthetic_checkpoint, synthetic_tensors

UNUSUAL: dict[Version, Plan] = {
    "4": Plan(version="4", layers=3, width=40, ffn_width=72, vocab_size=97),
    "5.0": Plan(version="5.0", layers=2, width=36, ffn_width=52, vocab_size=97, head_size=12),
    "5.1": Plan(version="5.1", layers=3, width=30, ffn_width=44, vocab_size=97, head_size=10),
    "5.2": Plan(version="5.2", layers=3, width=48, ffn_width=100, vocab_size=97, head_size=24),
    "6": Plan(version="6", layers=3, width=48, ffn_width=76, vocab_size=97, head_size=16, ranks=(5, 11)),
    "7": Plan(version="7", layers=3, width=60, ffn_width=84, vocab_size=97, head_size=20, ranks=(7, 9, 5, 13)),
}
"""One plan a version: head size, ffn width, low ranks and vocabulary unlike those of any trained model."""


def official_tensors(plan: Plan, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A random model as training saves it: mixes, decays and low-rank offsets are [1, 1, C]."""
    tensors = synthetic_tensors(plan, seed=seed, dtype=dtype)
    padded = ["time_mix_", "time_maa_", "x_", "w0", "a0", "v0", "k_k", "k_a"]
    if plan.version == "6":
        padded.append("time_decay")
    return {
        key: tensor.view(1, 1, -1) if tensor.dim() == 1 and key.rsplit(".", 1)[-1].startswith(tuple(padded)) else tensor
        for key, tensor in tensors.items()
    }


def save_checkpoint(path: Path, plan: Plan, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random model to a `.pth` file, as training would."""
    torch.save(official_tensors(plan, seed=seed, dtype=dtype), path)
    return path


def build_model(checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Model:
    """The model class of the checkpoint's version, built."""
    match checkpoint.shape.version:
        case "4":
            return Rwkv4(checkpoint, dtype=dtype, device=device)
        case "6":
            return Rwkv6(checkpoint, dtype=dtype, device=device)
        case "7":
            return Rwkv7(checkpoint, dtype=dtype, device=device)
        case _:
            return Rwkv5(checkpoint, dtype=dtype, device=device)


def random_model(version: Version, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """The unusual random model of a version, ready to run."""
    return build_model(synthetic_checkpoint(UNUSUAL[version], seed=seed, dtype=torch.float32), dtype=dtype)
