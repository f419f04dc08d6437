"""RWKV-6 ("Finch", x060). Letters as in arXiv 2404.05892; `mu` is the share of the previous token, as in RWKV-7."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rookery.kernels.relu_squared import relu_squared
from rookery.kernels.rows import Rows
from rookery.kernels.token_shift import token_shift
from rookery.kernels.wkv6 import wkv6

from ..state.pool import StatePool
from .checkpoint import Checkpoint
from .shape import ModelShape
from .trunk import Damping, Trunk, Weights


class TimeMixing:
    def __init__(self, weights: Weights, shape: ModelShape, *, divisor: int) -> None:
        self.heads, self.head_size = shape.heads, shape.head_size
        self.mu_x = weights.cast("time_maa_x")
        self.mu = weights.mixes(*(f"time_maa_{name}" for name in "wkvrg"))
        self.mix_down = weights.low_rank("time_maa_w1")
        self.mix_up = weights.cast("time_maa_w2")  # [5, rank, C], in the order of `mu`
        self.receptance = weights.linear("receptance.weight")
        self.key = weights.linear("key.weight")
        self.value = weights.linear("value.weight")
        self.gate = weights.linear("gate.weight")
        self.output = weights.linear("output.weight", divisor=divisor)
        self.w0 = weights.exact("time_decay")
        self.w1 = weights.low_rank("time_decay_w1")
        self.w2 = weights.low_rank("time_decay_w2")
        self.bonus = weights.exact("time_faaaa")
        self.ln_x = weights.group_norm("ln_x", shape.heads)

    def __call__(self, x: Tensor, shift: Tensor, state: Tensor, rows: Rows) -> Tensor:
        """x [N, C] (after ln1), shift [S, C], state [S, H, D, D] of this layer; to [N, C]."""
        heads = (len(x), self.heads, self.head_size)
        previous = token_shift(x, shift, rows)
        z = torch.tanh(self.mix_down(torch.lerp(x, previous, self.mu_x)))
        shares = torch.baddbmm(self.mu, z.view(len(x), 5, self.mix_up.shape[1]).transpose(0, 1), self.mix_up)
        xw, xk, xv, xr, xg = torch.lerp(x, previous, shares)
        r = self.receptance(xr).view(heads)
        k = self.key(xk).view(heads)
        v = self.value(xv).view(heads)
        g = F.silu(self.gate(xg))
        log_decay = -torch.exp(self.w0 + self.w2(torch.tanh(self.w1(xw)))).view(heads)
        y = self.ln_x(wkv6(r, k, v, log_decay, self.bonus, state, rows))
        return self.output(y.to(x.dtype) * g)


class ChannelMixing:
    def __init__(self, weights: Weights, *, divisor: int) -> None:
        self.mu_r, self.mu_k = weights.mixes("time_maa_r", "time_maa_k")
        self.receptance = weights.linear("receptance.weight")
        self.key = weights.linear("key.weight")
        self.value = weights.linear("value.weight", divisor=divisor)

    def __call__(self, x: Tensor, shift: Tensor, rows: Rows) -> Tensor:
        """x [N, C] (after ln2), shift [S, C] of this layer; to [N, C]."""
        previous = token_shift(x, shift, rows)
        r = torch.sigmoid(self.receptance(torch.lerp(x, previous, self.mu_r)))
        k = relu_squared(self.key(torch.lerp(x, previous, self.mu_k)))
        return r * self.value(k)


class Layer:
    def __init__(self, weights: Weights, shape: ModelShape, *, divisor: int) -> None:
        self.ln1 = weights.layer_norm("ln1")
        self.ln2 = weights.layer_norm("ln2")
        self.time_mixing = TimeMixing(weights.under("att."), shape, divisor=divisor)
        self.channel_mixing = ChannelMixing(weights.under("ffn."), divisor=divisor)


class Rwkv6(Trunk):
    """RWKV-6, behind `base.Model`."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(checkpoint, dtype=dtype, device=device)
        self.damping = Damping(dtype)
        self.layers = [
            Layer(w, self.shape, divisor=self.damping.divisor(i)) for i, w in enumerate(self.layer_weights())
        ]

    def forward(self, token_ids: Tensor, rows: Rows, pool: StatePool) -> Tensor:
        """See `base.Model.forward`."""
        x = self.embed(token_ids)
        for i, layer in enumerate(self.layers):
            x = x + layer.time_mixing(layer.ln1(x), pool.shift[:, i, 0], pool.wkv[:, i], rows)
            x = x + layer.channel_mixing(layer.ln2(x), pool.shift[:, i, 1], rows)
            x = self.damping(x, i)
        return self.ln_out(x)
