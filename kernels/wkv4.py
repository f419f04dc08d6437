"""WKV of RWKV-4: a running average of values, weighted by exp(key) and a decay a channel.

All weights are kept relative to the largest exponent met, so nothing overflows. Source: arXiv 2305.13048, appendix D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import uses_triton
from .rows import Rows
from .slots import read_slots, working_dtype, write_slots

BLOCK = 16
"""Tokens of a block in the sequence form; all blocks walk their tokens together."""

EMPTY_MAX = -1e30
"""Largest exponent of a state that has seen nothing; -inf would give inf - inf."""


def wkv4_reference(k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, rows: Rows) -> Tensor:
    """The meaning of `wkv4`, one token after the other."""
    k, v = (x.to(working_dtype(state)) for x in (k, v))
    y = torch.empty_like(v)
    for slot, tokens in rows.spans():
        a, b, m = read_slots(state, slot)[0]
        for t in range(tokens.start, tokens.stop):
            q = torch.maximum(m, bonus + k[t])
            e1, e2 = torch.exp(m - q), torch.exp(bonus + k[t] - q)
            y[t] = (e1 * a + e2 * v[t]) / (e1 * b + e2)
            q = torch.maximum(m + log_decay, k[t])
            e1, e2 = torch.exp(m + log_decay - q), torch.exp(k[t] - q)
            a, b, m = e1 * a + e2 * v[t], e1 * b + e2, q
        write_slots(state, slot, torch.stack((a, b, m))[None])
    return y


def wkv4(k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor, rows: Rows) -> Tensor:
    """Advance the RWKV-4 states of all rows by their tokens.

    Args:
        k, v: [N, C], any float dtype.
        log_decay: [C] float32, negative: what is added to the exponent of everything remembered, per token.
        bonus: [C] float32, added to the exponent of the current token alone.
        state: [S, 3, C] float32: weighted sum of values, sum of weights, their largest exponent; updated in place.

    Returns: [N, C] float32. Slot -1 reads as zero and is not written; empty rows change nothing.
    """
    if uses_triton(state.device.type):
        from .triton import wkv4 as kernels

        return kernels.wkv4(k, v, log_decay, bonus, state, rows)
    k, v = k.float(), v.float()
    y = torch.empty_like(v)
    if rows.decode:
        slots, now = rows.slots[: rows.decode], slice(0, rows.decode)
        a, b, m = read_slots(state, slots).unbind(1)
        y[now] = _read(k[now], v[now], bonus, a, b, m)
        write_slots(state, slots, torch.stack(_step(k[now], v[now], log_decay, a, b, m), 1))
    for slot, tokens in rows.spans(rows.decode):
        a, b, m = read_slots(state, slot)[0]
        after = _sequence(k[tokens], v[tokens], log_decay, bonus, a, b, m, y[tokens])
        write_slots(state, slot, torch.stack(after)[None])
    return y


def _read(k: Tensor, v: Tensor, bonus: Tensor, a: Tensor, b: Tensor, m: Tensor) -> Tensor:
    """The average over what is remembered and the current token, all [..., C]."""
    current = bonus + k
    q = torch.maximum(m, current)
    past, present = torch.exp(m - q), torch.exp(current - q)
    return (past * a + present * v) / (past * b + present)


def _step(k: Tensor, v: Tensor, log_decay: Tensor, a: Tensor, b: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The state after one token more, all [..., C]."""
    faded = m + log_decay
    q = torch.maximum(faded, k)
    past, present = torch.exp(faded - q), torch.exp(k - q)
    return past * a + present * v, past * b + present, q


def _sequence(
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, a: Tensor, b: Tensor, m: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One row, [T, C], from state a, b, m [C]: fills `y` and returns the state after it.

    Whole blocks first find what each would remember alone, all side by side; that is folded into the states at the
    blocks' starts, from which they walk their tokens once more, again side by side. The tail goes token by token.
    """
    length, width = k.shape
    blocks = length // BLOCK
    if blocks > 1:
        whole = blocks * BLOCK
        kb, vb, yb = (x[:whole].view(blocks, BLOCK, width) for x in (k, v, y))
        alone = (torch.zeros_like(kb[:, 0]), torch.zeros_like(kb[:, 0]), torch.full_like(kb[:, 0], EMPTY_MAX))
        for t in range(BLOCK):
            alone = _step(kb[:, t], vb[:, t], log_decay, *alone)
        before = []
        for a_alone, b_alone, m_alone in zip(*alone, strict=True):
            before.append((a, b, m))
            faded = m + BLOCK * log_decay
            q = torch.maximum(faded, m_alone)
            past, present = torch.exp(faded - q), torch.exp(m_alone - q)
            a, b, m = past * a + present * a_alone, past * b + present * b_alone, q
        a_all, b_all, m_all = (torch.stack(part) for part in zip(*before, strict=True))
        for t in range(BLOCK):
            yb[:, t] = _read(kb[:, t], vb[:, t], bonus, a_all, b_all, m_all)
            a_all, b_all, m_all = _step(kb[:, t], vb[:, t], log_decay, a_all, b_all, m_all)
        k, v, y = k[whole:], v[whole:], y[whole:]
    for t in range(len(k)):
        y[t] = _read(k[t], v[t], bonus, a, b, m)
        a, b, m = _step(k[t], v[t], log_decay, a, b, m)
    return a, b, m
