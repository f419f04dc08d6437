"""RWKV-7's time mixing between its matrices: everything that a head computes by itself, around WKV.

Letters as in arXiv 2503.14456. One operator, because on a GPU it is one kernel for decode rows where its parts would
be ten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import uses_triton
from .norms import HEAD_NORM_EPS
from .rows import Rows
from .wkv7 import wkv7, wkv7_reference

LONGEST_STEP = math.exp(-0.5)
"""The largest fading a token can ask for, as an exponent: decay stays above exp(-e^-0.5) = 0.545."""


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """One layer's vectors, all float32: [C], but r_k [H, D]. Layer 0 has no v0."""

    w0: Tensor
    a0: Tensor
    v0: Tensor | None
    k_k: Tensor
    k_a: Tensor
    r_k: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


def wkv7_heads_reference(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, g: Tensor, v_first: Tensor | None, v_share: Tensor | None,
    weights: HeadWeights, state: Tensor, rows: Rows,
) -> Tensor:  # fmt: skip
    """The meaning of `wkv7_heads`, with WKV one token after the other."""
    return _wkv7_heads(r, w, k, v, a, g, v_first, v_share, weights, state, rows, reference=True)


def wkv7_heads(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, g: Tensor, v_first: Tensor | None, v_share: Tensor | None,
    weights: HeadWeights, state: Tensor, rows: Rows,
) -> Tensor:  # fmt: skip
    """Advance the RWKV-7 states of all rows by their tokens; normed, with the bonus added, gated.

    Args:
        r, k, v: [N, C], model dtype; receptance, key and value as their matrices give them.
        w, a: [N, C], what the low-rank pairs add to w0 and a0, before the sigmoids.
        g: [N, C], the gate.
        v_first: [N, C], the values of layer 0, and
        v_share: [N, C], what the low-rank pair adds to v0, before the sigmoid; None in layer 0.
        state: [S, H, D, D] float32 or float16, axes -2 value, -1 key; updated in place.

    Returns: [N, C], model dtype: what the output matrix takes.
    """
    if uses_triton(state.device.type):
        from .triton import wkv7_heads as kernels

        return kernels.wkv7_heads(r, w, k, v, a, g, v_first, v_share, weights, state, rows)
    return _wkv7_heads(r, w, k, v, a, g, v_first, v_share, weights, state, rows, reference=False)


def _wkv7_heads(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, g: Tensor, v_first: Tensor | None, v_share: Tensor | None,
    weights: HeadWeights, state: Tensor, rows: Rows, *, reference: bool,
) -> Tensor:  # fmt: skip
    dtype, heads = r.dtype, (len(r), *weights.r_k.shape)
    log_decay = -LONGEST_STEP * torch.sigmoid(weights.w0 + w).view(heads)
    a = torch.sigmoid(weights.a0 + a)
    if v_first is not None and v_share is not None and weights.v0 is not None:
        v = torch.lerp(v.float(), v_first.float(), torch.sigmoid(weights.v0 + v_share))
    kk = F.normalize((k * weights.k_k).view(heads), dim=-1, eps=1e-12)
    k = (k * (1 + (a - 1) * weights.k_a)).view(heads)
    r, v, a = r.view(heads), v.view(heads), a.view(heads)
    y = (wkv7_reference if reference else wkv7)(r, log_decay, k, v, kk, a, state, rows)
    y = F.group_norm(y.flatten(1), heads[1], weights.norm_weight, weights.norm_bias, HEAD_NORM_EPS)
    y = y + ((r * k * weights.r_k).sum(-1, keepdim=True) * v).flatten(1)
    return y.to(dtype) * g
