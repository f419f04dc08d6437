"""Block sizes, and the small device functions that several kernels share."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK: tl.constexpr = tl.constexpr(16)
"""Tokens of a chunk, the smallest side of a matrix product on tensor cores. RWKV-7's decay over half of it stays
within e^4.9, which float16 holds beside large keys."""

FEW_PROGRAMS = 400
"""Below so many (row, head) pairs a state is split over several programs, to occupy a large GPU."""


def key_block(head_size: int) -> int:
    """Power of two over the head size, at least what a matrix product takes."""
    return max(16, int(triton.next_power_of_2(head_size)))


def value_block(pairs: int, head_size: int) -> int:
    """Value rows of a state one program holds; rows are independent, so the split changes no result."""
    whole = key_block(head_size)
    return whole if pairs >= FEW_PROGRAMS else min(16, whole)


def operand_dtype(x: Tensor) -> torch.dtype:
    """What chunked products take: float32 for float32 models, else float16 (bfloat16's products err 8 times more)."""
    return torch.float32 if x.dtype == torch.float32 else torch.float16


@triton.jit
def fit(x, dtype: tl.constexpr):
    """`x` in `dtype`; what float16 cannot hold becomes its largest number, not infinity."""
    if dtype == tl.float16:
        x = tl.minimum(tl.maximum(x, -65504.0), 65504.0)
    return x.to(dtype)


@triton.jit
def matmul(a, b):
    """Product with float32 sums; float32 operands as three products of tf32, which keep float32's precision."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def find_chunk(program, starts_ptr, rows, BLOCK_ROWS: tl.constexpr):
    """The chunk of a program: its first token and the end of its row; an empty range where there is none.

    Row i has the chunk numbers from starts[i] // CHUNK + i on, which leaves room for all its chunks whatever the
    lengths are, and needs no table: so the grid, starts[rows] // CHUNK + rows, may also be larger.
    """
    i = tl.arange(0, BLOCK_ROWS)
    starts = tl.load(starts_ptr + i, mask=i < rows, other=0) - tl.load(starts_ptr)
    row = tl.sum(((starts // CHUNK + i <= program) & (i < rows)).to(tl.int32)) - 1
    first = tl.load(starts_ptr + row)
    chunk = program - ((first - tl.load(starts_ptr)) // CHUNK + row)
    return first + chunk * CHUNK, tl.load(starts_ptr + row + 1)


@triton.jit
def find_row(token, starts_ptr, rows, BLOCK_ROWS: tl.constexpr):
    """The row of a packed token, its first token, and its end."""
    i = tl.arange(0, BLOCK_ROWS)
    stops = tl.load(starts_ptr + 1 + i, mask=i < rows, other=0)
    row = tl.sum(((stops <= token) & (i < rows)).to(tl.int32))
    return row, tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
