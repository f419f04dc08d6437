"""WKV of RWKV-6: a matrix state a head, whose key channels fade at a rate each token sets.

    y_t = S_{t-1} r_t + (sum_c r_t u k_t) v_t        S_t = S_{t-1} diag(e^{log_decay_t}) + v_t k_t^T

with S as [value, key]. Source: arXiv 2404.05892 (Finch). The sequence form takes the tokens in chunks; inside a chunk
token i reaches token t through `sum_c r_t k_i e^{c_{t-1} - c_i}`, c the running sum of log decays, as one product of
matrices. Its two factors are taken relative to half the chunk's decay, which float32 can hold up to MAX_DECAY.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import uses_triton
from .chunks import from_chunks, to_chunks
from .rows import Rows
from .slots import read_slots, working_dtype, write_slots

CHUNKS = (32, 16, 8, 4)
"""Chunk lengths, the longest first; a row takes the longest whose chunks all stay within MAX_DECAY."""

MAX_DECAY = 128.0
"""Largest decay (as an exponent) over one chunk: the factors then stay within e^-64 and e^64."""

HARDEST = -MAX_DECAY / CHUNKS[-1]
"""A log decay below this counts as this one: what is left, e^-32, is far below float32's precision."""


def wkv6_reference(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, rows: Rows
) -> Tensor:
    """The meaning of `wkv6`, one token after the other."""
    r, k, v = (x.to(working_dtype(state)) for x in (r, k, v))
    y = torch.empty_like(v)
    for slot, tokens in rows.spans():
        s = read_slots(state, slot)[0].to(v.dtype)
        for t in range(tokens.start, tokens.stop):
            kv = v[t].unsqueeze(-1) * k[t].unsqueeze(-2)
            y[t] = ((s + bonus.unsqueeze(-2) * kv) @ r[t].unsqueeze(-1)).squeeze(-1)
            s = s * torch.exp(log_decay[t]).unsqueeze(-2) + kv
        write_slots(state, slot, s[None])
    return y


def wkv6(r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, rows: Rows) -> Tensor:
    """Advance the RWKV-6 states of all rows by their tokens.

    Args:
        r, k, v: [N, H, D], any float dtype.
        log_decay: [N, H, D] float32, at most 0; -inf forgets everything.
        bonus: [H, D] float32, the weight of the current token's own key and value.
        state: [S, H, D, D] float32 or float16, axes -2 value, -1 key; updated in place.

    Returns: [N, H, D] float32. Slot -1 reads as zero and is not written; empty rows change nothing.
    """
    if uses_triton(state.device.type):
        from .triton import wkv6 as kernels

        return kernels.wkv6(r, k, v, log_decay, bonus, state, rows)
    r, k, v = r.float(), k.float(), v.float()
    y = torch.empty_like(v)
    if rows.decode:
        slots, now = rows.slots[: rows.decode], slice(0, rows.decode)
        s = read_slots(state, slots).float()
        y[now] = _step(r[now], k[now], v[now], log_decay[now], bonus, s)
        write_slots(state, slots, s)
    for slot, tokens in rows.spans(rows.decode):
        s = read_slots(state, slot)[0].float()
        y[tokens], s = _sequence(r[tokens], k[tokens], v[tokens], log_decay[tokens], bonus, s)
        write_slots(state, slot, s[None])
    return y


def _step(r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, s: Tensor) -> Tensor:
    """One token for each row: r, k, v, log_decay [B, H, D]; s [B, H, D, D] moves on in place."""
    y = (s @ r.unsqueeze(-1)).squeeze(-1) + (r * bonus * k).sum(-1, keepdim=True) * v
    s.mul_(torch.exp(log_decay).unsqueeze(-2)).addcmul_(v.unsqueeze(-1), k.unsqueeze(-2))
    return y


def _sequence(r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """One row, [T, H, D], from state s [H, D, D]: its outputs and the state after it."""
    length = len(r)
    log_decay = log_decay.clamp(min=HARDEST)
    size = _chunk_length(log_decay)
    own = (r * bonus * k).sum(-1, keepdim=True) * v
    r, k, v, log_decay = (to_chunks(x, size) for x in (r, k, v, log_decay))

    c = log_decay.cumsum(-2)
    before = c - log_decay
    total = c[..., -1:, :]
    weight = torch.tril((r * torch.exp(before - total / 2)) @ (k * torch.exp(total / 2 - c)).mT, -1)
    added = v.mT @ (k * torch.exp(total - c))
    kept = torch.exp(total)

    starts = []
    for i in range(len(kept)):
        starts.append(s)
        s = torch.addcmul(added[i], s, kept[i])
    y = (r * torch.exp(before)) @ torch.stack(starts).mT + weight @ v
    return from_chunks(y, length) + own, s


def _chunk_length(log_decay: Tensor) -> int:
    """The longest chunk that keeps this row, [T, H, D], within what float32 can hold."""
    length = len(log_decay)
    if float(log_decay.amin()) * CHUNKS[0] >= -MAX_DECAY:
        return min(CHUNKS[0], length)
    for size in CHUNKS[:-1]:
        total = to_chunks(log_decay, size).sum(-2)
        if float(total.amin()) >= -MAX_DECAY:
            return min(size, length)
    return CHUNKS[-1]
