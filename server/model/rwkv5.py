"""RWKV-5 ("Eagle"): 5.2, and the early 5.0 (no gate) and 5.1 (one decay a head). Letters as in arXiv 2404.05892."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.kernels.token_shift import token_shift
from rookery.kernels.wkv5 import wkv5

from ..state.pool import StatePool
from .checkpoint import Checkpoint
from .rwkv4 import ChannelMixing
from .shape import ModelShape
from .trunk import Damping, Trunk, Weights


class TimeMixing:
    def __init__(self, weights: Weights, shape: ModelShape, *, divisor: int) -> None:
        self.heads, self.head_size = shape.heads, shape.head_size
        self.mu_r, self.mu_k, self.mu_v = weights.mixes("time_mix_r", "time_mix_k", "time_mix_v")
        self.receptance = weights.linear("receptance.weight")
        self.key = weights.linear("key.weight")
        self.value = weights.linear("value.weight")
        self.output = weights.linear("output.weight", divisor=divisor)
        self.ln_x = weights.group_norm("ln_x", shape.heads)
        self.log_decay = self._per_channel(-torch.exp(weights.exact("time_decay")))
        if "time_first" in weights:  # the older of the two names, under which its logarithm is stored
            self.bonus = self._per_channel(torch.exp(weights.exact("time_first")))
        else:
            self.bonus = self._per_channel(weights.exact("time_faaaa"))
        self.gated = shape.version != "5.0"
        if self.gated:
            self.mu_g = weights.cast("time_mix_g")
            self.gate = weights.linear("gate.weight")

    def _per_channel(self, x: Tensor) -> Tensor:
        """[H] (5.0 and 5.1) or [H, D] to [H, D]."""
        return x.reshape(self.heads, -1).expand(self.heads, self.head_size).contiguous()

    def __call__(self, x: Tensor, shift: Tensor, state: Tensor, rows: Rows) -> Tensor:
        """x [N, C] (after ln1), shift [S, C], state [S, H, D, D] of this layer; to [N, C]."""
        heads = (len(x), self.heads, self.head_size)
        previous = token_shift(x, shift, rows)
        r = self.receptance(torch.lerp(previous, x, self.mu_r)).view(heads)
        k = self.key(torch.lerp(previous, x, self.mu_k)).view(heads)
        v = self.value(torch.lerp(previous, x, self.mu_v)).view(heads)
        y = self.ln_x(wkv5(r, k, v, self.log_decay, self.bonus, state, rows)).to(x.dtype)
        if self.gated:
            y = y * F.silu(self.gate(torch.lerp(previous, x, self.mu_g)))
        return self.output(y)


class Layer:
    def __init__(self, weights: Weights, shape: ModelShape, *, divisor: int) -> None:
        self.ln1 = weights.layer_norm("ln1")
        self.ln2 = weights.layer_norm("ln2")
        self.time_mixing = TimeMixing(weights.under("att."), shape, divisor=divisor)
        self.channel_mixing = ChannelMixing(weights.under("ffn."), divisor=divisor)


class Rwkv5(Trunk):
    """RWKV-5.0, 5.1 and 5.2, behind `base.Model`."""

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
