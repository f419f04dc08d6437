"""Weights and states on their way between numpy, in which they are read and stored, and torch, without copies."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.kernels.cpu.arrays import BF16, Array


def to_torch(array: Array) -> Tensor:
    """The array as a tensor in the same memory."""
    if array.dtype == BF16:
        return torch.from_numpy(array["bfloat16"].view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: Tensor) -> Array:
    """A tensor on the host as an array in the same memory."""
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(BF16)
    array: Array = tensor.detach().numpy()
    return array
