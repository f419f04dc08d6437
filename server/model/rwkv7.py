"""RWKV-7 ("Goose", x070). Letters as in arXiv 2503.14456; `mu` is the share of the previous token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.kernels.token_shift import token_shift
from rookery.kernels.wkv7 import wkv7

from ..state.pool import StatePool
from .checkpoint import Checkpoint
from .shape import ModelShape
from .trunk import Trunk, Weights

LONGEST_STEP = math.exp(-0.5)
"""The largest fading a token can ask for, as an exponent: decay stays above exp(-e^-0.5) = 0.545."""


class TimeMixing:
    def __init__(self, weights: Weights, shape: ModelShape, *, first: bool) -> None:
        self.heads, self.head_size = shape.heads, shape.head_size
        self.mu = weights.mixes(*(f"x_{name}" for name in "rwkvag"))
        self.receptance = weights.linear("receptance.weight")
        self.key = weights.linear("key.weight")
        self.value = weights.linear("value.weight")
        self.output = weights.linear("output.weight")
        self.w0, self.w1, self.w2 = weights.exact("w0"), weights.low_rank("w1"), weights.low_rank("w2")
        self.a0, self.a1, self.a2 = weights.exact("a0"), weights.low_rank("a1"), weights.low_rank("a2")
        self.g1, self.g2 = weights.low_rank("g1"), weights.low_rank("g2")
        self.first = first
        if not first:  # layer 0 gives the values the others mix with; some files hold unused ones for it
            self.v0, self.v1, self.v2 = weights.exact("v0"), weights.low_rank("v1"), weights.low_rank("v2")
        self.k_k = weights.exact("k_k")
        self.k_a = weights.exact("k_a")
        self.r_k = weights.exact("r_k")
        self.ln_x = weights.group_norm("ln_x", shape.heads)

    def __call__(
        self, x: Tensor, v_first: Tensor | None, shift: Tensor, state: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """x [N, C] (after ln1), shift [S, C], state [S, H, D, D] of this layer; to [N, C] and layer 0's values."""
        heads = (len(x), self.heads, self.head_size)
        previous = token_shift(x, shift, rows)
        xr, xw, xk, xv, xa, xg = torch.lerp(x, previous, self.mu)
        r = self.receptance(xr).view(heads)
        k = self.key(xk)
        v = self.value(xv)
        log_decay = -LONGEST_STEP * torch.sigmoid(self.w0 + self.w2(torch.tanh(self.w1(xw)))).view(heads)
        a = torch.sigmoid(self.a0 + self.a2(self.a1(xa)))
        g = self.g2(torch.sigmoid(self.g1(xg)))
        if v_first is None:
            v_first = v
        else:
            v = torch.lerp(v.float(), v_first.float(), torch.sigmoid(self.v0 + self.v2(self.v1(xv))))
        kk = F.normalize((k * self.k_k).view(heads), dim=-1, eps=1e-12)
        k = (k * (1 + (a - 1) * self.k_a)).view(heads)
        v = v.view(heads)
        y = self.ln_x(wkv7(r, log_decay, k, v, kk, a.view(heads), state, rows))
        y = y + ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(1)
        return self.output(y.to(x.dtype) * g), v_first


class ChannelMixing:
    def __init__(self, weights: Weights) -> None:
        self.mu_k = weights.cast("x_k")
        self.key = weights.linear("key.weight")
        self.value = weights.linear("value.weight")

    def __call__(self, x: Tensor, shift: Tensor, rows: Rows) -> Tensor:
        """x [N, C] (after ln2), shift [S, C] of this layer; to [N, C]."""
        previous = token_shift(x, shift, rows)
        k = torch.relu(self.key(torch.lerp(x, previous, self.mu_k))).square()
        return self.value(k)


class Layer:
    def __init__(self, weights: Weights, shape: ModelShape, *, first: bool) -> None:
        self.ln1 = weights.layer_norm("ln1")
        self.ln2 = weights.layer_norm("ln2")
        self.time_mixing = TimeMixing(weights.under("att."), shape, first=first)
        self.channel_mixing = ChannelMixing(weights.under("ffn."))


class Rwkv7(Trunk):
    """RWKV-7, behind `base.Model`."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(checkpoint, dtype=dtype, device=device)
        self.layers = [Layer(w, self.shape, first=i == 0) for i, w in enumerate(self.layer_weights())]

    def forward(self, token_ids: Tensor, rows: Rows, pool: StatePool) -> Tensor:
        """See `base.Model.forward`."""
        x = self.embed(token_ids)
        v_first: Tensor | None = None
        for i, layer in enumerate(self.layers):
            mixed, v_first = layer.time_mixing(layer.ln1(x), v_first, pool.shift[:, i, 0], pool.wkv[:, i], rows)
            x = x + mixed
            x = x + layer.channel_mixing(layer.ln2(x), pool.shift[:, i, 1], rows)
        return self.ln_out(x)
