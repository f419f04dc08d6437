"""From a model file to a `Checkpoint`: read, named officially, checked, fingerprinted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from .checkpoint import Checkpoint
from .shape import ModelShape, Version


def read_checkpoint(path: Path, progress: Callable[[float], None] | None = None) -> Checkpoint:
    """The weights of a `.pth` file."""
    raw = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    tensors = {key: t.reshape(-1) if t.dim() == 3 and t.shape[:2] == (1, 1) else t for key, t in raw.items()}
    vocab_size, width = tensors["emb.weight"].shape
    version: Version
    decay = tensors.get("blocks.0.att.time_decay")
    if "blocks.0.att.r_k" in tensors:
        version, heads = "7", tensors["blocks.0.att.r_k"].shape[0]
    elif "blocks.0.att.time_maa_x" in tensors:
        version, heads = "6", tensors["blocks.0.att.time_faaaa"].shape[0]
    elif decay is not None and "blocks.0.att.ln_x.weight" in tensors:
        version = ("5.2" if decay.dim() == 2 else "5.1") if "blocks.0.att.gate.weight" in tensors else "5.0"
        heads = decay.shape[0]
    else:
        version, heads = "4", 0
    mix_width = tensors["blocks.0.att.key.weight"].shape[0]
    shape = ModelShape(
        version=version,
        vocab_size=vocab_size,
        layers=1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")),
        width=width,
        mix_width=mix_width,
        ffn_width=tensors["blocks.0.ffn.key.weight"].shape[0],
        heads=heads,
        head_size=mix_width // heads if heads else 0,
    )
    return Checkpoint(path=path, tensors=tensors, shape=shape)
