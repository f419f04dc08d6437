"""Norm and gate after WKV in Triton. Verified in Triton's interpreter only."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..norms import HEAD_NORM_EPS
from .tiles import key_block, normed


@triton.jit
def _kernel(
    y_ptr, weight_ptr, bias_ptr, gate_ptr, out_ptr, heads,
    D: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """One program a (token, head)."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    within = tl.arange(0, BLOCK)
    inside = within < D
    channel = head * D + within
    at = token * heads * D + channel
    y = normed(tl.load(y_ptr + at, mask=inside, other=0.0), inside, D, EPS)
    y = y * tl.load(weight_ptr + channel, mask=inside, other=0.0) + tl.load(bias_ptr + channel, mask=inside, other=0.0)
    out = y.to(out_ptr.dtype.element_ty)
    if GATED:
        gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
        silu = (gate * tl.sigmoid(gate)).to(out.dtype)
        out = (out.to(tl.float32) * silu.to(tl.float32)).to(out.dtype)
    tl.store(out_ptr + at, out, mask=inside)


def head_norm(y: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`rookery.kernels.head_norm.head_norm`."""
    tokens, heads, head_size = y.shape
    out = torch.empty(tokens, heads * head_size, dtype=dtype, device=y.device)
    if tokens:
        _kernel[(tokens, heads)](
            y, weight, bias, out if gate is None else gate.contiguous(), out, heads,
            D=head_size, BLOCK=key_block(head_size), GATED=gate is not None, EPS=HEAD_NORM_EPS, num_warps=1,
        )  # fmt: skip
    return out
