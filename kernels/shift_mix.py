"""What stands between two matrices of RWKV: the residual sum, layer norm, token shift and the mixes.

One operator, because on a GPU its parts would each read and write the whole stream.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import uses_triton
from .norms import LAYER_NORM_EPS
from .rows import Rows
from .token_shift import token_shift, token_shift_reference


def shift_mix_reference(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, mu: Tensor, shift: Tensor, rows: Rows,
    *, of_present: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The meaning of `shift_mix`, with the shift one token after the other."""
    x = x if added is None else x + added
    h = F.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPS)
    return x, _mix(h, token_shift_reference(h, shift, rows), mu, of_present)


def shift_mix(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, mu: Tensor, shift: Tensor, rows: Rows,
    *, of_present: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mix each token's normed vector with its predecessor's, in n ways.

    Args:
        x: [N, C], the residual stream, and
        added: [N, C], what the last block adds to it; None for nothing.
        weight, bias: [C], of the layer norm.
        mu: [n, 1, C], the predecessor's share: 0 is the vector itself, 1 its predecessor's.
        shift: [S, C], as in `token_shift`; updated in place.
        of_present: mu is the present token's share instead, as RWKV-4 and 5 have it.

    Returns: the stream with the sum, [N, C], and the mixes, [n, N, C]; all in the dtype of x.
    """
    if uses_triton(shift.device.type):
        from .triton import shift_mix as kernels

        return kernels.shift_mix(x, added, weight, bias, mu, shift, rows, of_present=of_present)
    x = x if added is None else x + added
    h = F.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPS)
    return x, _mix(h, token_shift(h, shift, rows), mu, of_present)


def _mix(h: Tensor, previous: Tensor, mu: Tensor, of_present: bool) -> Tensor:
    return torch.lerp(previous, h, mu) if of_present else torch.lerp(h, previous, mu)
