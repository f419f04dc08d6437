"""Random inputs of RWKV-7's heads: two of 20 channels."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.kernels.wkv7_heads import HeadWeights

HEADS, HEAD_SIZE = 2, 20
Streams = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""r, w, k, v, a, g, v_first, v_share."""


def random_heads(tokens: int, dtype: torch.dtype, *, first: bool) -> tuple[Streams, HeadWeights, Tensor]:
    """What `wkv7_heads` takes but the rows: r … v_share, weights, and six states of a layer of three."""
    width = HEADS * HEAD_SIZE
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    r, w, k, v, a, g, v_first, v_share = (normal(tokens, width).to(dtype) for _ in range(8))
    w0, a0, v0, k_k, k_a, norm_weight, norm_bias = (normal(width) for _ in range(7))
    weights = HeadWeights(
        w0=w0, a0=a0, v0=None if first else v0, k_k=k_k, k_a=k_a, r_k=normal(HEADS, HEAD_SIZE),
        norm_weight=norm_weight, norm_bias=norm_bias,
    )  # fmt: skip
    streams = (r, w, k, v, a, g, None if first else v_first, None if first else v_share)
    return streams, weights, normal(6, 3, HEADS, HEAD_SIZE, HEAD_SIZE)[:, 1]
