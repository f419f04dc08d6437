"""RWKV-5 ("Eagle"): 5.2, and the early 5.0 (no gate) and 5.1 (one decay a head). Letters as in arXiv 2404.05892."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.kernels.shift_mix import shift_mix
from rookery.kernels.wkv5 import wkv5

from .damped import DampedTrunk
from .shape import ModelShape
from .trunk import LayerNorm, Weights


class TimeMixing:
    """Behind `damped.TimeMixing`; `mu` is the share of the present token, the state is [S, H, D, D]."""

    def __init__(self, weights: Weights, norm: LayerNorm, shape: ModelShape, *, divisor: int) -> None:
        self.heads, self.head_size = shape.heads, shape.head_size
        self.norm = norm
        self.gated = shape.version != "5.0"
        self.mu = weights.mixes(*(f"time_mix_{name}" for name in ("rkvg" if self.gated else "rkv")))
        names = ("receptance", "key", "value", *(("gate",) if self.gated else ()))
        self.projections = weights.linears(*(f"{name}.weight" for name in names))
        self.output = weights.linear("output.weight", divisor=divisor)
        self.ln_x = weights.head_norm("ln_x")
        self.log_decay = self._per_channel(-torch.exp(weights.exact("time_decay")))
        if "time_first" in weights:  # the older of the two names, under which its logarithm is stored
            self.bonus = self._per_channel(torch.exp(weights.exact("time_first")))
        else:
            self.bonus = self._per_channel(weights.exact("time_faaaa"))

    def _per_channel(self, x: Tensor) -> Tensor:
        """[H] (5.0 and 5.1) or [H, D] to [H, D]."""
        return x.reshape(self.heads, -1).expand(self.heads, self.head_size).contiguous()

    def __call__(
        self, x: Tensor, added: Tensor | None, shift: Tensor, state: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        heads = (len(x), self.heads, self.head_size)
        x, mixed = shift_mix(x, added, self.norm.weight, self.norm.bias, self.mu, shift, rows, of_present=True)
        r, k, v, *g = self.projections(mixed)
        y = wkv5(r.view(heads), k.view(heads), v.view(heads), self.log_decay, self.bonus, state, rows)
        return x, self.output(self.ln_x(y, g[0] if g else None, x.dtype))


class Rwkv5(DampedTrunk):
    """RWKV-5.0, 5.1 and 5.2, behind `base.Model`."""

    def time_mixing(self, weights: Weights, norm: LayerNorm, divisor: int) -> TimeMixing:
        return TimeMixing(weights, norm, self.shape, divisor=divisor)
