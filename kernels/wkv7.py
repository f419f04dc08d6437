"""WKV of RWKV-7: a matrix state a head that is edited like a memory: fade, remove what a key held, write anew.

    S_t = S_{t-1} (diag(e^{log_decay_t}) - kk_t (kk_t a_t)^T) + v_t k_t^T        y_t = S_t r_t

with S as [value, key] and `S kk` the value that was held under kk. Source: arXiv 2503.14456. The sequence form takes
the tokens in chunks. With c the running sum of log decays in the chunk and u_t = -S_{t-1} kk_t the value that token t
removes, the u of a chunk solve one lower triangular system; states and outputs are then products of matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import uses_triton
from .chunks import from_chunks, to_chunks
from .rows import Rows
from .slots import read_slots, working_dtype, write_slots

CHUNK = 16
"""Tokens of a chunk: e^-c, at most e^(0.607 * 16) = 1.7e4 as RWKV-7 bounds its decay, is safe in float32."""


def wkv7_reference(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, state: Tensor, rows: Rows
) -> Tensor:
    """The meaning of `wkv7`, one token after the other."""
    r, k, v, kk, a = (x.to(working_dtype(state)) for x in (r, k, v, kk, a))
    y = torch.empty_like(v)
    for slot, tokens in rows.spans():
        s = read_slots(state, slot)[0].to(v.dtype)
        for t in range(tokens.start, tokens.stop):
            removed = (s @ kk[t].unsqueeze(-1)) * (kk[t] * a[t]).unsqueeze(-2)
            s = s * torch.exp(log_decay[t]).unsqueeze(-2) - removed + v[t].unsqueeze(-1) * k[t].unsqueeze(-2)
            y[t] = (s @ r[t].unsqueeze(-1)).squeeze(-1)
        write_slots(state, slot, s[None])
    return y


def wkv7(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, state: Tensor, rows: Rows
) -> Tensor:
    """Advance the RWKV-7 states of all rows by their tokens.

    Args:
        r, k, v: [N, H, D], any float dtype.
        log_decay: [N, H, D] float32, in [-e^-0.5, 0].
        kk: [N, H, D], the removal key, of length 1 in each head.
        a: [N, H, D], in-context learning rate, in (0, 1).
        state: [S, H, D, D] float32 or float16, axes -2 value, -1 key; updated in place.

    Returns: [N, H, D] float32. Slot -1 reads as zero and is not written; empty rows change nothing.
    """
    if uses_triton(state.device.type):
        from .triton import wkv7 as kernels

        return kernels.wkv7(r, log_decay, k, v, kk, a, state, rows)
    r, k, v, kk, a = (x.float() for x in (r, k, v, kk, a))
    y = torch.empty_like(v)
    if rows.decode:
        slots, now = rows.slots[: rows.decode], slice(0, rows.decode)
        s = read_slots(state, slots).float()
        y[now] = _step(r[now], log_decay[now], k[now], v[now], kk[now], a[now], s)
        write_slots(state, slots, s)
    for slot, tokens in rows.spans(rows.decode):
        s = read_slots(state, slot)[0].float()
        y[tokens], s = _sequence(r[tokens], log_decay[tokens], k[tokens], v[tokens], kk[tokens], a[tokens], s)
        write_slots(state, slot, s[None])
    return y


def _step(r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """One token for each row: r ... a [B, H, D]; s [B, H, D, D] moves on in place."""
    u = s @ -kk.unsqueeze(-1)
    s.mul_(torch.exp(log_decay).unsqueeze(-2))
    s.addcmul_(u, (kk * a).unsqueeze(-2)).addcmul_(v.unsqueeze(-1), k.unsqueeze(-2))
    return (s @ r.unsqueeze(-1)).squeeze(-1)


def _sequence(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """One row, [T, H, D], from state s [H, D, D]: its outputs and the state after it."""
    length = len(r)
    size = min(CHUNK, length)
    r, log_decay, k, v, kk, b = (to_chunks(x, size) for x in (r, log_decay, k, v, -kk, kk * a))

    c = log_decay.cumsum(-2)
    total = c[..., -1:, :]
    kk_past, r_past = kk * torch.exp(c - log_decay), r * torch.exp(c)  # as they meet the chunk's first state
    b_back, k_back = b * torch.exp(-c), k * torch.exp(-c)
    b_end, k_end = b * torch.exp(total - c), k * torch.exp(total - c)  # as they arrive in the chunk's last state
    kk_b, kk_k = torch.tril(kk_past @ b_back.mT, -1), torch.tril(kk_past @ k_back.mT, -1)
    r_b, r_k = torch.tril(r_past @ b_back.mT), torch.tril(r_past @ k_back.mT)

    # u = kk_past S^T + kk_k v + kk_b u. Forward substitution: products of powers of kk_b diverge on repeated keys.
    eye = torch.eye(size, device=r.device)
    inverse = torch.linalg.solve_triangular(eye - kk_b, eye, upper=False, unitriangular=True)
    from_state, from_values = inverse @ kk_past, inverse @ (kk_k @ v)
    added = v.mT @ k_end
    kept = torch.exp(total)

    starts, removed = [], []
    for i in range(len(kept)):
        u = torch.baddbmm(from_values[i], from_state[i], s.mT)
        starts.append(s)
        removed.append(u)
        s = torch.baddbmm(torch.addcmul(added[i], s, kept[i]), u.mT, b_end[i])
    y = r_past @ torch.stack(starts).mT + r_k @ v + r_b @ torch.stack(removed)
    return from_chunks(y, length), s
