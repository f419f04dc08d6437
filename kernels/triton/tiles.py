"""Block sizes, and the small device functions that several kernels share."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK: tl.constexpr = tl.constexpr(16)
"""Tokens of a chunk, which begins at a multiple of it in its sequence. The smallest side of a matrix product on tensor
cores. RWKV-7's decay over half of it stays within e^4.9, which float16 holds beside large keys."""

FEW_PROGRAMS = 400
"""Below so many (row, head) pairs a state is split over several programs, to occupy a large GPU."""


def key_block(head_size: int) -> int:
    """Power of two over the head size, at least what a matrix product takes."""
    return max(16, int(triton.next_power_of_2(head_size)))


def value_block(pairs: int, head_size: int) -> int:
    """Value rows of a state one program holds; rows are independent, so the split changes no result."""
    whole = key_block(head_size)
    return whole if pairs >= FEW_PROGRAMS else min(16, whole)


def row_block(rows: int) -> int:
    """How many rows `find_row` and `find_chunk` look at: of two sizes, lest each number of rows compile anew."""
    return 64 if rows <= 64 else max(1024, int(triton.next_power_of_2(rows)))


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
def state_block(state_ptr, slot, stride, head, value, key, D: tl.constexpr):
    """Where a state's numbers of these values and keys lie, and which of them there are; of slot -1 none.

    Args:
        stride: between two slots.
        value, key: channels, as a column and a row or the other way round.
    """
    return state_ptr + slot * stride + head * D * D + value * D + key, (value < tl.where(slot >= 0, D, 0)) & (key < D)


@triton.jit
def row_range(row, starts_ptr, DECODE: tl.constexpr):
    """A row's first token and its end."""
    first = row
    stop = row + 1
    if not DECODE:
        first = tl.load(starts_ptr + row)
        stop = tl.load(starts_ptr + row + 1)
    return first, stop


@triton.jit
def normed(y, inside, size, EPS: tl.constexpr):
    """`y`, of which `size` numbers are `inside`, with mean 0 and variance 1."""
    centred = tl.where(inside, y - tl.sum(y, 0) / size, 0.0)
    return centred / tl.sqrt(tl.sum(centred * centred, 0) / size + EPS)


@triton.jit
def find_chunk(program, starts_ptr, positions_ptr, rows, BLOCK_ROWS: tl.constexpr):
    """The chunk of a program: the token its first place stands for, its row's first token, and its row's end.

    Chunks begin at multiples of CHUNK in a sequence's own count of tokens, whatever part of it a row is; so the places
    before the row's first token may be empty, as those behind its end.

    Row i has the chunk numbers from starts[i] // CHUNK + 2 i on, which leaves room for all its chunks whatever lengths
    and positions are, and needs no table: so the grid, starts[rows] // CHUNK + 2 rows, may also be larger. A program
    without a chunk starts at its row's end or beyond.
    """
    i = tl.arange(0, BLOCK_ROWS)
    starts = tl.load(starts_ptr + i, mask=i < rows, other=0) - tl.load(starts_ptr)
    row = tl.sum(((starts // CHUNK + 2 * i <= program) & (i < rows)).to(tl.int32)) - 1
    first, stop = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    chunk = program - ((first - tl.load(starts_ptr)) // CHUNK + 2 * row)
    start = first - tl.load(positions_ptr + row) % CHUNK + chunk * CHUNK
    return tl.where(first < stop, start, stop), first, stop


@triton.jit
def find_row(token, starts_ptr, rows, BLOCK_ROWS: tl.constexpr):
    """The row of a packed token, its first token, and its end."""
    i = tl.arange(0, BLOCK_ROWS)
    stops = tl.load(starts_ptr + 1 + i, mask=i < rows, other=0)
    row = tl.sum(((stops <= token) & (i < rows)).to(tl.int32))
    return row, tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
