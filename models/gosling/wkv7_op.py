"""WKV-7 over a sequence, for training: the recurrence, its chunked matrix form, and the native operator.

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T
    y_t = S_t r_t

Shapes (B rows, T tokens, H heads, N head size): r, w, k, v, a, b are [B, T, H, N] float32; w is the decay, in
(0.54, 1), or 0 at a token that begins a document, where a must be 0 as well: the state is then wiped exactly.
State S is [B, H, N, N] float32, axes -2 value, -1 key. RWKV-7, arXiv 2503.14456; a = -kk, b = kk * learning rate.

`fastest` takes the native operator where a C++ compiler is at hand and the head size is its own, and the
chunked form elsewhere. Both compute the same; the native one trains about three times as fast.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

SOURCE = Path(__file__).with_name("wkv7_op.cpp")
CHUNK = 32

Wkv7 = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def wkv7_reference(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Token by token: the meaning of all other forms. Returns y [B, T, H, N] and the last state."""
    s = state
    ys = []
    for t in range(r.shape[1]):
        held = s @ a[:, t].unsqueeze(-1)  # [B, H, N, 1]
        s = s * w[:, t].unsqueeze(-2) + held * b[:, t].unsqueeze(-2)
        s = s + v[:, t].unsqueeze(-1) * k[:, t].unsqueeze(-2)
        ys.append((s @ r[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(ys, dim=1), s


def wkv7_chunked(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The same in matrix form, `CHUNK` tokens at a time.

    With c the running sum of log w (c- without the token itself), u_t = S_{t-1} a_t solves

        (I - M_ab) U = (a e^{c-}) S_0^T + M_ak V        M_pq[t, i] = sum (p_t e^{c_t}) (q_i e^{-c_i})

    a unit triangular system. It is solved by substitution: the inverse by repeated squaring is fast and
    wrong by orders of magnitude when a key repeats. Chunks of 32 keep e^{-c} below 3e8, safe in float32.
    A document that begins inside a chunk (w = 0) cuts the sums there.
    """
    s = state
    ys = []
    for begin in range(0, r.shape[1], CHUNK):
        # [B, H, T, N] of this chunk
        rc, wc, kc, vc, ac, bc = (x[:, begin : begin + CHUNK].transpose(1, 2) for x in (r, w, k, v, a, b))
        first = wc[..., 0] == 0  # [B, H, T]
        segment = first.cumsum(-1)
        same = segment.unsqueeze(-1) == segment.unsqueeze(-2)
        from_state = (segment == 0).unsqueeze(-1)
        to_state = (segment == segment[..., -1:]).unsqueeze(-1)

        log_w = torch.where(first.unsqueeze(-1), 1.0, wc).log()
        c = log_w.cumsum(-2)
        grow, shrink = c.exp(), (-c).exp()
        left = (c[..., -1:, :] - c).exp() * to_state  # what the chunk leaves of each token
        a_decayed, r_decayed = ac * (c - log_w).exp(), rc * grow
        b_grown, k_grown = (bc * shrink).mT, (kc * shrink).mT
        earlier, upto = (same & torch.ones_like(same).tril(d) for d in (-1, 0))

        m_ab, m_ak = (a_decayed @ x * earlier for x in (b_grown, k_grown))
        m_rb, m_rk = (r_decayed @ x * upto for x in (b_grown, k_grown))
        known = a_decayed * from_state @ s.mT + m_ak @ vc
        u = torch.linalg.solve_triangular(-m_ab, known, upper=False, unitriangular=True)
        ys.append((r_decayed * from_state @ s.mT + m_rk @ vc + m_rb @ u).transpose(1, 2))
        kept = s * grow[..., -1:, :] * (segment[..., -1:] == 0).unsqueeze(-1)
        s = kept + vc.mT @ (kc * left) + u.mT @ (bc * left)
    return torch.cat(ys, dim=1), s


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The operator, compiled for this machine once; None where there is no C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    # What -ffast-math brings, without its start-up code: that would flush subnormals to zero in the whole process.
    fast = ["-fno-math-errno", "-fno-signed-zeros", "-fno-trapping-math", "-fassociative-math", "-freciprocal-math"]
    flags = ["-O3", "-march=native", *fast, "-fopenmp", "-shared", "-fPIC", "-std=c++17"]
    # The machine is part of the name: a folder may be shared by machines of several kinds.
    cpu = Path("/proc/cpuinfo")
    machine = "".join(x for x in cpu.read_text().splitlines() if x.startswith("flags"))[:4000] if cpu.exists() else ""
    digest = hashlib.sha256((SOURCE.read_text() + machine + " ".join(flags)).encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rookery"
    built = folder / f"wkv7-{digest[:16]}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            unfinished = Path(scratch) / built.name
            result = subprocess.run(
                [compiler, *flags, str(SOURCE), "-o", str(unfinished)], capture_output=True, text=True
            )
            if result.returncode:
                return None
            unfinished.rename(built)
    return ctypes.CDLL(str(built))


def _library() -> ctypes.CDLL:
    library = native_library()
    if library is None:
        raise RuntimeError("the native WKV-7 operator needs a C++ compiler")
    return library


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(x.data_ptr()) for x in tensors]


def _sizes(x: Tensor) -> list[ctypes.c_long | ctypes.c_int]:
    rows, tokens, heads, _ = x.shape
    return [
        ctypes.c_long(rows),
        ctypes.c_long(tokens),
        ctypes.c_long(heads),
        ctypes.c_int(torch.get_num_threads()),
    ]


def _scratch(x: Tensor) -> tuple[Tensor, Tensor]:
    """What the forward pass leaves for the backward pass: S a of every token, every 16th state."""
    rows, tokens, heads, size = x.shape
    return (
        x.new_empty(rows, heads, tokens, size),
        x.new_empty(rows, heads, (tokens + 15) // 16, size, size),
    )


@torch.library.custom_op("gosling::wkv7", mutates_args=())
def _forward(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = [x.contiguous() for x in (r, w, k, v, a, b, state)]
    y, last = torch.empty_like(inputs[0]), torch.empty_like(inputs[6])
    held, saved = _scratch(r)
    _library().wkv7_forward(*_sizes(r), *_pointers(*inputs, y, held, saved, last))
    return y, last, held, saved


@_forward.register_fake
def _(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return r.new_empty(r.shape), state.new_empty(state.shape), *_scratch(r)


@torch.library.custom_op("gosling::wkv7_backward", mutates_args=())
def _backward(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    dy: Tensor, held: Tensor, saved: Tensor, dlast: Tensor,
) -> list[Tensor]:  # fmt: skip
    inputs = [x.contiguous() for x in (r, w, k, v, a, b, dy, held, saved, dlast)]
    grads = [torch.empty_like(x) for x in inputs[:6]] + [torch.empty_like(inputs[9])]
    _library().wkv7_backward(*_sizes(r), *_pointers(*inputs, *grads))
    return grads


@_backward.register_fake
def _(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    dy: Tensor, held: Tensor, saved: Tensor, dlast: Tensor,
) -> list[Tensor]:  # fmt: skip
    return [x.new_empty(x.shape) for x in (r, w, k, v, a, b, dlast)]


def _remember(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], output[2], output[3])


def _differentiate(ctx: FunctionCtx, dy: Tensor, dlast: Tensor, dheld: Tensor, dsaved: Tensor) -> tuple[Tensor, ...]:
    *inputs, held, saved = ctx.saved_tensors  # type: ignore[attr-defined]
    return tuple(_backward(*inputs, dy, held, saved, dlast))


_forward.register_autograd(_differentiate, setup_context=_remember)


def wkv7_native(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The same through the compiled operator; CPU, float32, head size 64."""
    y, last, _, _ = cast(tuple[Tensor, Tensor, Tensor, Tensor], _forward(r, w, k, v, a, b, state))
    return y, last


def fastest(head_size: int) -> Wkv7:
    """The fastest form for a CPU with or without a compiler. Chosen once, before torch.compile looks on."""
    return wkv7_native if head_size == 64 and native_library() is not None else wkv7_chunked
