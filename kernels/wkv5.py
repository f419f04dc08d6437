"""WKV of RWKV-5: as RWKV-6, with one decay a key channel for all tokens.

    y_t = S_{t-1} r_t + (sum_c r_t u k_t) v_t        S_t = S_{t-1} diag(e^{log_decay}) + v_t k_t^T

with S as [value, key]. Source: arXiv 2404.05892 (Eagle). RWKV-5.0 and 5.1, with one decay and one bonus a head, are
served by repeating them over the head's channels.
"""

from __future__ import annotations

from torch import Tensor

from .rows import Rows
from .wkv6 import wkv6, wkv6_reference


def wkv5_reference(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, rows: Rows
) -> Tensor:
    """The meaning of `wkv5`, one token after the other."""
    return wkv6_reference(r, k, v, log_decay.expand(r.shape), bonus, state, rows)


def wkv5(r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, rows: Rows) -> Tensor:
    """Advance the RWKV-5 states of all rows by their tokens.

    Args:
        r, k, v: [N, H, D], any float dtype.
        log_decay: [H, D] float32, at most 0.
        bonus: [H, D] float32, the weight of the current token's own key and value.
        state: [S, H, D, D] float32 or float16, axes -2 value, -1 key; updated in place.

    Returns: [N, H, D] float32. Slot -1 reads as zero and is not written; empty rows change nothing.
    """
    return wkv6(r, k, v, log_decay.expand(r.shape), bonus, state, rows)
