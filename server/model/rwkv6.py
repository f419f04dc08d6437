"""RWKV-6 ("Finch", x060). Letters as in arXiv 2404.05892; `mu` is the share of the previous token, as in RWKV-7."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.kernels.shift_mix import shift_mix
from rookery.kernels.wkv6 import wkv6

from .damped import DampedTrunk
from .shape import ModelShape
from .trunk import LayerNorm, Weights


class TimeMixing:
    """Behind `damped.TimeMixing`; the state is [S, H, D, D]."""

    def __init__(self, weights: Weights, norm: LayerNorm, shape: ModelShape, *, divisor: int) -> None:
        self.heads, self.head_size = shape.heads, shape.head_size
        self.norm = norm
        share = weights.mixes("time_maa_x")
        self.mu_x = torch.cat([share, torch.zeros_like(share), torch.ones_like(share)])
        """The mix that the shares of the others come from; beside it the token itself and its predecessor."""
        self.mu = weights.mixes(*(f"time_maa_{name}" for name in "wkvrg"))
        self.mix_down = weights.low_rank("time_maa_w1")
        self.mix_up = weights.cast("time_maa_w2")  # [5, rank, C], in the order of `mu`
        self.projections = weights.linears(*(f"{name}.weight" for name in ("key", "value", "receptance", "gate")))
        self.output = weights.linear("output.weight", divisor=divisor)
        self.w0 = weights.exact("time_decay")
        self.w1 = weights.low_rank("time_decay_w1")
        self.w2 = weights.low_rank("time_decay_w2")
        self.bonus = weights.exact("time_faaaa")
        self.ln_x = weights.head_norm("ln_x")

    def __call__(
        self, x: Tensor, added: Tensor | None, shift: Tensor, state: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        heads = (len(x), self.heads, self.head_size)
        x, (xx, h, previous) = shift_mix(x, added, self.norm.weight, self.norm.bias, self.mu_x, shift, rows)
        z = torch.tanh(self.mix_down(xx))
        shares = torch.baddbmm(self.mu, z.view(len(x), 5, self.mix_up.shape[1]).transpose(0, 1), self.mix_up)
        mixed = torch.lerp(h, previous, shares)
        k, v, r, g = self.projections(mixed[1:])
        log_decay = -torch.exp(self.w0 + self.w2(torch.tanh(self.w1(mixed[0])))).view(heads)
        y = wkv6(r.view(heads), k.view(heads), v.view(heads), log_decay, self.bonus, state, rows)
        return x, self.output(self.ln_x(y, g, x.dtype))


class Rwkv6(DampedTrunk):
    """RWKV-6, behind `base.Model`."""

    mix = "time_maa"

    def time_mixing(self, weights: Weights, norm: LayerNorm, divisor: int) -> TimeMixing:
        return TimeMixing(weights, norm, self.shape, divisor=divisor)
