"""The activation of channel mixing in every generation: relu, squared."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import uses_triton


def relu_squared_reference(x: Tensor) -> Tensor:
    """The meaning of `relu_squared`."""
    return torch.relu(x).square()


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2, any shape, in the dtype of x."""
    if uses_triton(x.device.type):
        from .triton import relu_squared as kernels

        return kernels.relu_squared(x)
    return torch.relu(x).square()
