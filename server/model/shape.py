"""The sizes of a checkpoint, as read from its keys, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Version = Literal["4", "5.0", "5.1", "5.2", "6", "7"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Version and sizes of one RWKV model. Nothing here is assumed: every number is a tensor's axis."""

    version: Version
    vocab_size: int
    layers: int
    width: int
    """C, the residual stream."""
    mix_width: int
    """Width of time mixing (`dim_att`); equals C in every published model."""
    ffn_width: int
    heads: int
    """H; 0 for RWKV-4, whose state is one value a channel."""
    head_size: int
    """D; 0 for RWKV-4."""

    @property
    def wkv_shape(self) -> tuple[int, ...]:
        """Shape of one layer's WKV state: [H, D, D] (value, key), or [3, C] (a, b, max) for RWKV-4."""
        if self.version == "4":
            return (3, self.mix_width)
        return (self.heads, self.head_size, self.head_size)

    @property
    def state_values(self) -> int:
        """Numbers in the whole recurrent state of one session."""
        wkv = 1
        for size in self.wkv_shape:
            wkv *= size
        return self.layers * (2 * self.width + wkv)
