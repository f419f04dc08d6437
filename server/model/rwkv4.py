"""RWKV-4. Letters as in arXiv 2305.13048; `mu` is the share of the present token."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.kernels.relu_squared import relu_squared
from rookery.kernels.rows import Rows
from rookery.kernels.token_shift import token_shift
from rookery.kernels.wkv4 import wkv4

from ..state.pool import StatePool
from .checkpoint import Checkpoint
from .trunk import Damping, Trunk, Weights


class TimeMixing:
    def __init__(self, weights: Weights, *, divisor: int) -> None:
        self.mu_r, self.mu_k, self.mu_v = weights.mixes("time_mix_r", "time_mix_k", "time_mix_v")
        self.receptance = weights.linear("receptance.weight")
        self.key = weights.linear("key.weight")
        self.value = weights.linear("value.weight")
        self.output = weights.linear("output.weight", divisor=divisor)
        self.log_decay = -torch.exp(weights.exact("time_decay"))
        self.bonus = weights.exact("time_first")

    def __call__(self, x: Tensor, shift: Tensor, state: Tensor, rows: Rows) -> Tensor:
        """x [N, C] (after ln1), shift [S, C], state [S, 3, C] of this layer; to [N, C]."""
        previous = token_shift(x, shift, rows)
        r = torch.sigmoid(self.receptance(torch.lerp(previous, x, self.mu_r)))
        k = self.key(torch.lerp(previous, x, self.mu_k))
        v = self.value(torch.lerp(previous, x, self.mu_v))
        y = wkv4(k, v, self.log_decay, self.bonus, state, rows)
        return self.output(r * y.to(x.dtype))


class ChannelMixing:
    """Of RWKV-4 and 5."""

    def __init__(self, weights: Weights, *, divisor: int) -> None:
        self.mu_r, self.mu_k = weights.mixes("time_mix_r", "time_mix_k")
        self.receptance = weights.linear("receptance.weight")
        self.key = weights.linear("key.weight")
        self.value = weights.linear("value.weight", divisor=divisor)

    def __call__(self, x: Tensor, shift: Tensor, rows: Rows) -> Tensor:
        """x [N, C] (after ln2), shift [S, C] of this layer; to [N, C]."""
        previous = token_shift(x, shift, rows)
        r = torch.sigmoid(self.receptance(torch.lerp(previous, x, self.mu_r)))
        k = relu_squared(self.key(torch.lerp(previous, x, self.mu_k)))
        return r * self.value(k)


class Layer:
    def __init__(self, weights: Weights, *, divisor: int) -> None:
        self.ln1 = weights.layer_norm("ln1")
        self.ln2 = weights.layer_norm("ln2")
        self.time_mixing = TimeMixing(weights.under("att."), divisor=divisor)
        self.channel_mixing = ChannelMixing(weights.under("ffn."), divisor=divisor)


class Rwkv4(Trunk):
    """RWKV-4 ("Dove"), behind `base.Model`."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(checkpoint, dtype=dtype, device=device)
        self.damping = Damping(dtype)
        self.layers = [Layer(w, divisor=self.damping.divisor(i)) for i, w in enumerate(self.layer_weights())]

    def forward(self, token_ids: Tensor, rows: Rows, pool: StatePool) -> Tensor:
        """See `base.Model.forward`."""
        x = self.embed(token_ids)
        for i, layer in enumerate(self.layers):
            x = x + layer.time_mixing(layer.ln1(x), pool.shift[:, i, 0], pool.wkv[:, i], rows)
            x = x + layer.channel_mixing(layer.ln2(x), pool.shift[:, i, 1], rows)
            x = self.damping(x, i)
        return self.ln_out(x)
