"""Seeded random checkpoints of published shapes: for benchmarks and tests, where no weights can be had.

The numbers mean nothing as language; the scales keep activations, states and logits finite and lively over long
sequences. Each tensor is drawn from a generator of its own, seeded by (seed, key), so it does not depend on the others.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .shape import ModelShape, Version
from .torch_arrays import from_torch

PILE, WORLD = 50277, 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of a synthetic model. `ranks` are (w, a, v, g) for RWKV-7 and (mix, decay) for RWKV-6."""

    version: Version
    layers: int
    width: int
    vocab_size: int = WORLD
    ffn_width: int
    head_size: int = 64
    ranks: tuple[int, ...] = ()


PRESETS: dict[str, Plan] = {
    "rwkv4-169m": Plan(version="4", layers=12, width=768, ffn_width=3072, vocab_size=PILE),
    "rwkv4-430m": Plan(version="4", layers=24, width=1024, ffn_width=4096, vocab_size=PILE),
    "rwkv5-0.4b": Plan(version="5.2", layers=24, width=1024, ffn_width=3584),
    "rwkv5-1.5b": Plan(version="5.2", layers=24, width=2048, ffn_width=7168),
    "rwkv6-0.4b": Plan(version="6", layers=24, width=1024, ffn_width=3584, ranks=(32, 64)),
    "rwkv6-1.6b": Plan(version="6", layers=24, width=2048, ffn_width=7168, ranks=(32, 64)),
    "rwkv7-0.1b": Plan(version="7", layers=12, width=768, ffn_width=3072, ranks=(64, 64, 32, 128)),
    "rwkv7-0.4b": Plan(version="7", layers=24, width=1024, ffn_width=4096, ranks=(64, 64, 32, 128)),
    "rwkv7-1.5b": Plan(version="7", layers=24, width=2048, ffn_width=8192, ranks=(96, 96, 64, 256)),
    "rwkv7-2.9b": Plan(version="7", layers=32, width=2560, ffn_width=10240, ranks=(96, 96, 64, 320)),
    "rwkv7-7.2b": Plan(version="7", layers=32, width=4096, ffn_width=16384, ranks=(128, 128, 96, 480)),
}
"""Published shapes; rwkv6-0.4b is the 0.4B width in RWKV-6's form (no such model was published)."""


class _Draw:
    """Named tensors, each from its own generator on `device`."""

    def __init__(self, seed: int, dtype: torch.dtype, device: str) -> None:
        self.seed, self.dtype, self.device = seed, dtype, device
        self.tensors: dict[str, Tensor] = {}

    def _put(self, key: str, shape: tuple[int, ...], fill: Callable[[Tensor, torch.Generator], Tensor]) -> None:
        generator = torch.Generator(self.device)
        generator.manual_seed((self.seed * 1_000_003 + zlib.crc32(key.encode())) % 2**63)
        self.tensors[key] = fill(torch.empty(shape, device=self.device), generator).to(self.dtype)

    def normal(self, key: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> None:
        self._put(key, shape, lambda t, g: t.normal_(mean, std, generator=g))

    def uniform(self, key: str, shape: tuple[int, ...], low: float, high: float) -> None:
        self._put(key, shape, lambda t, g: t.uniform_(low, high, generator=g))

    def matrix(self, key: str, outputs: int, inputs: int, gain: float = 1.0) -> None:
        self.normal(f"{key}.weight", (outputs, inputs), gain / math.sqrt(inputs))

    def norm(self, key: str, size: int, scale: float = 1.0) -> None:
        self.normal(f"{key}.weight", (size,), 0.1 * scale, scale)
        self.normal(f"{key}.bias", (size,), 0.05)


def synthetic_tensors(plan: Plan, *, seed: int = 0, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """Official keys, vectors already squeezed to one axis, as `weights.py` hands them on."""
    draw = _Draw(seed, dtype, device)
    width, layers = plan.width, plan.layers
    draw.normal("emb.weight", (plan.vocab_size, width), 0.5)
    draw.norm("blocks.0.ln0", width)
    residual = 1.0 / math.sqrt(2 * layers)  # keeps the residual stream at unit order for any depth
    for layer in range(layers):
        block = f"blocks.{layer}"
        draw.norm(f"{block}.ln1", width)
        draw.norm(f"{block}.ln2", width)
        (_rwkv7_block if plan.version == "7" else _older_block)(draw, plan, layer, residual)
    draw.norm("ln_out", width)
    draw.matrix("head", plan.vocab_size, width, 2.5)
    return draw.tensors


def _rwkv7_block(draw: _Draw, plan: Plan, layer: int, residual: float) -> None:
    att, ffn, width = f"blocks.{layer}.att", f"blocks.{layer}.ffn", plan.width
    rank_w, rank_a, rank_v, rank_g = plan.ranks
    for name in "rwkvag":
        draw.uniform(f"{att}.x_{name}", (width,), 0.0, 1.0)
    draw.uniform(f"{att}.w0", (width,), -6.0, -0.5)
    draw.normal(f"{att}.a0", (width,), 0.5)
    pairs = [("w", rank_w, 1.0), ("a", rank_a, 1.0), ("g", rank_g, 2.0)]
    if layer > 0:
        draw.normal(f"{att}.v0", (width,), 0.3, 0.5)
        pairs.append(("v", rank_v, 1.0))
    for name, rank, gain in pairs:
        draw.normal(f"{att}.{name}1", (width, rank), 1 / math.sqrt(width))
        draw.normal(f"{att}.{name}2", (rank, width), gain / math.sqrt(rank))
    draw.normal(f"{att}.k_k", (width,), 0.1, 0.85)
    draw.normal(f"{att}.k_a", (width,), 0.1, 1.0)
    draw.normal(f"{att}.r_k", (width // plan.head_size, plan.head_size), 0.1, -0.04)
    for name, gain in (("receptance", 1.0), ("key", 0.5), ("value", 1.0), ("output", 2 * residual)):
        draw.matrix(f"{att}.{name}", width, width, gain)
    draw.norm(f"{att}.ln_x", width, max(((1 + layer) / plan.layers) ** 0.7, 0.2))
    draw.uniform(f"{ffn}.x_k", (width,), 0.0, 1.0)
    draw.matrix(f"{ffn}.key", plan.ffn_width, width)
    draw.matrix(f"{ffn}.value", width, plan.ffn_width, residual)


def _older_block(draw: _Draw, plan: Plan, layer: int, residual: float) -> None:
    att, ffn, width, version = f"blocks.{layer}.att", f"blocks.{layer}.ffn", plan.width, plan.version
    heads = width // plan.head_size
    mix = "time_maa" if version == "6" else "time_mix"
    for name in {"4": "kvr", "5.0": "kvr", "5.1": "kvrg", "5.2": "kvrg", "6": "xwkvrg"}[version]:
        draw.uniform(f"{att}.{mix}_{name}", (width,), 0.0, 1.0)
    if version == "4":
        draw.uniform(f"{att}.time_decay", (width,), -5.0, 2.0)
        draw.normal(f"{att}.time_first", (width,), 0.5, math.log(0.3))
    elif version in ("5.0", "5.1"):
        draw.uniform(f"{att}.time_decay", (heads,), -5.0, 0.0)
        if version == "5.0":  # the older of the two keys: the logarithm of the bonus
            draw.normal(f"{att}.time_first", (heads,), 0.5, -0.5)
        else:
            draw.normal(f"{att}.time_faaaa", (heads,), 0.4)
    else:
        shape = (width,) if version == "6" else (heads, plan.head_size)
        draw.uniform(f"{att}.time_decay", shape, -5.0, 0.0)
        draw.normal(f"{att}.time_faaaa", (heads, plan.head_size), 0.4)
    if version == "6":
        rank_mix, rank_decay = plan.ranks
        draw.normal(f"{att}.time_maa_w1", (width, 5 * rank_mix), 0.5 / math.sqrt(width))
        draw.normal(f"{att}.time_maa_w2", (5, rank_mix, width), 0.3 / math.sqrt(rank_mix))
        draw.normal(f"{att}.time_decay_w1", (width, rank_decay), 1 / math.sqrt(width))
        draw.normal(f"{att}.time_decay_w2", (rank_decay, width), 0.7 / math.sqrt(rank_decay))
    draw.matrix(f"{att}.receptance", width, width)
    draw.matrix(f"{att}.key", width, width, 1.0 if version == "4" else 0.5)
    draw.matrix(f"{att}.value", width, width)
    draw.matrix(f"{att}.output", width, width, (3 if version == "4" else 2) * residual)
    if version in ("5.1", "5.2", "6"):
        draw.matrix(f"{att}.gate", width, width, 2.0)
    if version != "4":
        draw.norm(f"{att}.ln_x", width, max(((1 + layer) / plan.layers) ** 0.7, 0.2))
    draw.uniform(f"{ffn}.{mix}_k", (width,), 0.0, 1.0)
    draw.uniform(f"{ffn}.{mix}_r", (width,), 0.0, 1.0)
    draw.matrix(f"{ffn}.key", plan.ffn_width, width)
    draw.matrix(f"{ffn}.receptance", width, width)
    draw.matrix(f"{ffn}.value", width, plan.ffn_width, 2 * residual)


def synthetic_checkpoint(plan: Plan, *, seed: int = 0, dtype: torch.dtype, device: str = "cpu") -> Checkpoint:
    """A checkpoint in memory, ready for a model's constructor."""
    heads = 0 if plan.version == "4" else plan.width // plan.head_size
    shape = ModelShape(
        version=plan.version,
        vocab_size=plan.vocab_size,
        layers=plan.layers,
        width=plan.width,
        mix_width=plan.width,
        ffn_width=plan.ffn_width,
        heads=heads,
        head_size=plan.head_size if heads else 0,
    )
    drawn = synthetic_tensors(plan, seed=seed, dtype=dtype, device=device)
    tensors = {key: from_torch(tensor.cpu()) for key, tensor in drawn.items()}
    name = f"synthetic-{plan.version}-{plan.layers}x{plan.width}-{seed}"
    return Checkpoint(path=Path(name), tensors=tensors, shape=shape, tuned_state=None, fingerprint=name)
