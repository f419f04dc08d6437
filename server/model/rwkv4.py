"""RWKV-4 ("Dove"). Letters as in arXiv 2305.13048; `mu` is the share of the present token."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.kernels.shift_mix import shift_mix
from rookery.kernels.wkv4 import wkv4

from .damped import DampedTrunk
from .trunk import LayerNorm, Weights


class TimeMixing:
    """Behind `damped.TimeMixing`; the state is [S, 3, C]."""

    def __init__(self, weights: Weights, norm: LayerNorm, *, divisor: int) -> None:
        self.norm = norm
        self.mu = weights.mixes("time_mix_r", "time_mix_k", "time_mix_v")
        self.projections = weights.linears("receptance.weight", "key.weight", "value.weight")
        self.output = weights.linear("output.weight", divisor=divisor)
        self.log_decay = -torch.exp(weights.exact("time_decay"))
        self.bonus = weights.exact("time_first")

    def __call__(
        self, x: Tensor, added: Tensor | None, shift: Tensor, state: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        x, mixed = shift_mix(x, added, self.norm.weight, self.norm.bias, self.mu, shift, rows, of_present=True)
        r, k, v = self.projections(mixed)
        y = wkv4(k, v, self.log_decay, self.bonus, state, rows)
        return x, self.output(torch.sigmoid(r) * y.to(x.dtype))


class Rwkv4(DampedTrunk):
    """RWKV-4, behind `base.Model`."""

    def time_mixing(self, weights: Weights, norm: LayerNorm, divisor: int) -> TimeMixing:
        return TimeMixing(weights, norm, divisor=divisor)
