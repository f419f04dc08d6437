"""What follows WKV in RWKV-5 and 6: each head normed by itself, and gated.

RWKV-7 has it inside `wkv7_heads`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import uses_triton
from .norms import HEAD_NORM_EPS


def head_norm_reference(y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The meaning of `head_norm`."""
    normed = F.group_norm(y.flatten(1), y.shape[1], weight, bias, HEAD_NORM_EPS).to(dtype)
    return normed if gate is None else normed * F.silu(gate)


def head_norm(y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Norm over each head, then weight and bias a channel, then the gate.

    Args:
        y: [N, H, D] float32, what WKV gives.
        weight, bias: [C] float32.
        gate: [N, C] in `dtype`, before its silu; None for RWKV-5.0, which has none.
        dtype: the model's.

    Returns: [N, C] in `dtype`: what the output matrix takes.
    """
    if uses_triton(y.device.type):
        from .triton import head_norm as kernels

        return kernels.head_norm(y, weight, bias, gate, dtype)
    return head_norm_reference(y, weight, bias, gate, dtype)
