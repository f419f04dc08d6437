"""A row's tokens as equal chunks, for the sequence forms that work on all chunks at once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def to_chunks(x: Tensor, size: int) -> Tensor:
    """[T, H, D] to [chunks, H, size, D], zeros at the end: a token of zeros leaves a WKV state as it is."""
    _, heads, width = x.shape
    missing = -len(x) % size
    padded = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    return padded.reshape(-1, size, heads, width).transpose(1, 2).contiguous()  # else every product copies it anew


def from_chunks(x: Tensor, length: int) -> Tensor:
    """[chunks, H, size, D] back to [T, H, D], without what was padded."""
    return x.transpose(1, 2).flatten(0, 1)[:length]
