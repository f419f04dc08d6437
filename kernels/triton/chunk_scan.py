"""The serial part of the chunked WKV forms: a state walks the chunks that were prepared side by side.

Verified in Triton's interpreter only.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import CHUNK, fit, key_block, matmul, state_block


@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "starts_ptr", "positions_ptr"])
def _scan_kernel(
    read_ptr, write_ptr, v_ptr, kept_ptr, remove_ptr, removed_ptr, back_ptr, y_ptr,
    state_ptr, slots_ptr, starts_ptr, positions_ptr, state_stride, heads,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, REMOVES: tl.constexpr,
):  # fmt: skip
    """One program a (row, head, block of values): `y += read S`, then the state's next form, chunk after chunk."""
    row, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots_ptr + row)
    operand = read_ptr.dtype.element_ty
    i = tl.arange(0, CHUNK)
    key = tl.arange(0, BLOCK_K)
    value = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_key, in_value = key < D, value < D
    held, live = state_block(state_ptr, slot, state_stride, head, value[None, :], key[:, None], D)
    s = tl.load(held, mask=live, other=0.0).to(tl.float32)  # [key, value]

    first = tl.load(starts_ptr + row)
    stop = tl.load(starts_ptr + row + 1)
    start = first - tl.load(positions_ptr + row) % CHUNK
    chunk = (first - tl.load(starts_ptr)) // CHUNK + 2 * row
    for n in range(0, tl.where(first < stop, (stop - start + CHUNK - 1) // CHUNK, 0)):
        token = start + n * CHUNK + i
        at = (token * heads + head) * D
        inside = (token >= first) & (token < stop)
        tokens_keys = inside[:, None] & in_key[None, :]
        keys_tokens = in_key[:, None] & inside[None, :]
        tokens_values = inside[:, None] & in_value[None, :]
        values_at = at[:, None] + value[None, :]
        read = tl.load(read_ptr + at[:, None] + key[None, :], mask=tokens_keys, other=0.0)
        write = tl.load(write_ptr + at[None, :] + key[:, None], mask=keys_tokens, other=0.0)
        v = fit(tl.load(v_ptr + values_at, mask=tokens_values, other=0.0).to(tl.float32), operand)
        kept = tl.load(kept_ptr + ((chunk + n) * heads + head) * D + key, mask=in_key, other=0.0)
        y = tl.load(y_ptr + values_at, mask=tokens_values, other=0.0)
        rounded = fit(s, operand)
        tl.store(y_ptr + values_at, y + matmul(read, rounded), mask=tokens_values)
        s = s * kept[:, None] + matmul(write, v)
        if REMOVES:
            remove = tl.load(remove_ptr + at[:, None] + key[None, :], mask=tokens_keys, other=0.0)
            back = tl.load(back_ptr + at[None, :] + key[:, None], mask=keys_tokens, other=0.0)
            u = tl.load(removed_ptr + values_at, mask=tokens_values, other=0.0) + matmul(remove, rounded)
            s += matmul(back, fit(u, operand))
    tl.store(held, fit(s, state_ptr.dtype.element_ty), mask=live)


def chunk_count(tokens: int, rows: int) -> int:
    """Chunk numbers that rows with so many tokens together can have."""
    return tokens // int(CHUNK.value) + 2 * rows


def scan_chunks(
    read: Tensor, write: Tensor, v: Tensor, kept: Tensor, y: Tensor, state: Tensor, slots: Tensor, starts: Tensor,
    positions: Tensor, *, removal: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Carry the states of all rows over their chunks.

    Args:
        read, write: [N, H, D] float32 or float16: how tokens meet the state at their chunk's start, and how their
            keys arrive at its end.
        v: [N, H, D].
        kept: [chunks, H, D] float32: what a chunk leaves of each key channel.
        y: [N, H, D] float32: what the chunk alone gives; the state's part is added.
        state: [S, H, D, D], updated in place; slots, positions: [R]; starts: [R + 1].
        removal: remove, removed and back of RWKV-7.
    """
    _, heads, head_size = v.shape
    block = key_block(head_size)
    # prompts are few, so states are split: more programs, and less of each chunk's chain of products in each
    block_v = min(16, block)
    remove, removed, back = removal or (read, y, write)
    _scan_kernel[(triton.cdiv(head_size, block_v), heads, len(slots))](
        read, write, v, kept, remove, removed, back, y, state, slots, starts, positions, state.stride(0), heads,
        D=head_size, BLOCK_K=block, BLOCK_V=block_v, REMOVES=removal is not None,
        num_warps=2 if read.dtype == torch.float16 else 4,
    )  # fmt: skip
