"""RWKV-7 ("Goose", x070). Letters as in arXiv 2503.14456; `mu` is the share of the previous token."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.kernels.relu_squared import relu_squared
from rookery.kernels.rows import Rows
from rookery.kernels.shift_mix import shift_mix
from rookery.kernels.wkv7_heads import HeadWeights, wkv7_heads

from ..state.torch_pool import TorchPool
from .checkpoint import Checkpoint
from .shape import ModelShape
from .trunk import LayerNorm, Trunk, Weights


class TimeMixing:
    def __init__(self, weights: Weights, shape: ModelShape, norm: LayerNorm, *, first: bool) -> None:
        self.norm = norm
        self.mu = weights.mixes(*(f"x_{name}" for name in "rkvwag"))
        self.projections = weights.linears("receptance.weight", "key.weight", "value.weight")
        self.output = weights.linear("output.weight")
        # layer 0 gives the values the others mix with; some files hold an unused pair for it
        self.low_ranks = weights.low_ranks(*("wa" if first else "vwa"), bent="w")
        self.g1, self.g2 = weights.low_rank("g1"), weights.low_rank("g2")
        self.heads = HeadWeights(
            w0=weights.exact("w0"),
            a0=weights.exact("a0"),
            v0=None if first else weights.exact("v0"),
            k_k=weights.exact("k_k"),
            k_a=weights.exact("k_a"),
            r_k=weights.exact("r_k").view(shape.heads, shape.head_size),
            norm_weight=weights.exact("ln_x.weight"),
            norm_bias=weights.exact("ln_x.bias"),
        )

    def __call__(
        self, x: Tensor, added: Tensor | None, v_first: Tensor | None, shift: Tensor, state: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream x and what is to be added to it, [N, C]; shift [S, C], state [S, H, D, D] of this layer.

        Returns: the stream with that added, what this block adds to it, and layer 0's values, all [N, C].
        """
        x, mixed = shift_mix(x, added, self.norm.weight, self.norm.bias, self.mu, shift, rows)
        r, k, v = self.projections(mixed[:3])
        *v_share, w, a = self.low_ranks(mixed[3 if v_first is None else 2 : 5])  # of x_v, x_w, x_a
        g = self.g2(torch.sigmoid(self.g1(mixed[5])))
        y = wkv7_heads(r, w, k, v, a, g, v_first, v_share[0] if v_share else None, self.heads, state, rows)
        return x, self.output(y), v if v_first is None else v_first


class ChannelMixing:
    def __init__(self, weights: Weights, norm: LayerNorm) -> None:
        self.norm = norm
        self.mu = weights.mixes("x_k")
        self.key = weights.linear("key.weight")
        self.value = weights.linear("value.weight")

    def __call__(self, x: Tensor, added: Tensor, shift: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """As `TimeMixing`: the stream with `added`, and what this block adds to it."""
        x, (xk,) = shift_mix(x, added, self.norm.weight, self.norm.bias, self.mu, shift, rows)
        return x, self.value(relu_squared(self.key(xk)))


class Layer:
    def __init__(self, weights: Weights, shape: ModelShape, *, first: bool) -> None:
        self.time_mixing = TimeMixing(weights.under("att."), shape, weights.layer_norm("ln1"), first=first)
        self.channel_mixing = ChannelMixing(weights.under("ffn."), weights.layer_norm("ln2"))


class Rwkv7(Trunk):
    """RWKV-7, behind `base.Model`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        wkv_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(checkpoint, dtype=dtype, device=device, wkv_dtype=wkv_dtype)
        self.layers = [Layer(w, self.shape, first=i == 0) for i, w in enumerate(self.layer_weights())]

    def forward(self, token_ids: Tensor, rows: Rows, pool: TorchPool) -> Tensor:
        """See `base.Model.forward`."""
        x = self.embed(token_ids)
        added: Tensor | None = None
        v_first: Tensor | None = None
        for i, layer in enumerate(self.layers):
            x, added, v_first = layer.time_mixing(x, added, v_first, pool.shift[:, i, 0], pool.wkv[:, i], rows)
            x, added = layer.channel_mixing(x, added, pool.shift[:, i, 1], rows)
        return self.ln_out(x if added is None else x + added)
