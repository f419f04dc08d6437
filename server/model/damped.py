"""What RWKV-4, 5 and 6 share: their layers one after the other, channel mixing, and the damping of float16."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from rookery.kernels.relu_squared import relu_squared
from rookery.kernels.rows import Rows
from rookery.kernels.shift_mix import shift_mix

from ..state.torch_pool import TorchPool
from .checkpoint import Checkpoint
from .trunk import LayerNorm, Trunk, Weights

HALVE_EVERY = 6
"""float16: the residual stream is halved after so many layers, lest it leave float16's range."""


class Damping:
    """Keeps the residual stream within float16; does nothing in other dtypes.

    What layer l adds is divided by 2^(l // HALVE_EVERY), and the stream is halved whenever that exponent grows. Layer
    norms undo the scale, so the model computes the same.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.active = dtype == torch.float16

    def divisor(self, layer: int) -> int:
        """By what the two output matrices of this layer are divided."""
        return int(2 ** (layer // HALVE_EVERY)) if self.active else 1

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """The residual stream as it leaves this layer, or a summand of it."""
        return x / 2 if self.active and (layer + 1) % HALVE_EVERY == 0 else x


class TimeMixing(Protocol):
    """One generation's own."""

    def __call__(
        self, x: Tensor, added: Tensor | None, shift: Tensor, state: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """The residual stream x and what is to be added to it, [N, C]; shift [S, C] and state of this layer.

        Returns: the stream with that added, and what this block adds to it, both [N, C].
        """
        ...


class ChannelMixing:
    """Of RWKV-4, 5 and 6.

    Args:
        mix: how its mixes are named, `time_mix` or, where they are the share of the previous token, `time_maa`.
    """

    def __init__(self, weights: Weights, norm: LayerNorm, *, mix: str, divisor: int) -> None:
        self.norm = norm
        self.mu = weights.mixes(f"{mix}_r", f"{mix}_k")
        self.of_present = mix == "time_mix"
        self.receptance = weights.linear("receptance.weight")
        self.key = weights.linear("key.weight")
        self.value = weights.linear("value.weight", divisor=divisor)

    def __call__(self, x: Tensor, added: Tensor, shift: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """As `TimeMixing`, without a state of its own but the shift."""
        x, (xr, xk) = shift_mix(
            x, added, self.norm.weight, self.norm.bias, self.mu, shift, rows, of_present=self.of_present
        )
        r = torch.sigmoid(self.receptance(xr))
        k = relu_squared(self.key(xk))
        return x, r * self.value(k)


class DampedTrunk(Trunk):
    """A model of two blocks a layer, behind `base.Model`; a generation says what its time mixing is."""

    mix = "time_mix"
    """As `ChannelMixing` has it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        wkv_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(checkpoint, dtype=dtype, device=device, wkv_dtype=wkv_dtype)
        self.damping = Damping(dtype)
        self.layers: list[tuple[TimeMixing, ChannelMixing]] = []
        for i, weights in enumerate(self.layer_weights()):
            divisor = self.damping.divisor(i)
            time_mixing = self.time_mixing(weights.under("att."), weights.layer_norm("ln1"), divisor)
            channel_mixing = ChannelMixing(
                weights.under("ffn."), weights.layer_norm("ln2"), mix=self.mix, divisor=divisor
            )
            self.layers.append((time_mixing, channel_mixing))

    @abstractmethod
    def time_mixing(self, weights: Weights, norm: LayerNorm, divisor: int) -> TimeMixing:
        """The first block of a layer, its output matrix divided by `divisor`."""

    def forward(self, token_ids: Tensor, rows: Rows, pool: TorchPool) -> Tensor:
        """See `base.Model.forward`."""
        x = self.embed(token_ids)
        added: Tensor | None = None
        for i, (time_mixing, channel_mixing) in enumerate(self.layers):
            x, added = time_mixing(x, added, pool.shift[:, i, 0], pool.wkv[:, i], rows)
            x, added = channel_mixing(x, added, pool.shift[:, i, 1], rows)
            x, added = self.damping(x, i), self.damping(added, i)
        return self.ln_out(x if added is None else x + added)
