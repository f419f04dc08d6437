"""Every Triton kernel, with the arguments it is launched with, compiles for an H200 and keeps to its registers.

No GPU is needed: the launches are caught and only compiled. What the interpreter overlooks (types, layouts, shapes a
tensor core does not take) fails here.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rookery.kernels.rows import Rows

triton = pytest.importorskip("triton")

HEADS, HEAD_SIZE, SLOTS = 32, 64, 8
WIDTH = HEADS * HEAD_SIZE
ROWS = Rows.pack([0, 1, -1, 2, 3], [1, 1, 1, 40, 7])
SHARED_BYTES = 227 * 1024
"""Of a multiprocessor, that one program can have."""
MAX_LOCAL_BYTES = 64
"""A thread may keep so much outside of registers: a few addresses of the kernels for float32 models."""
DECODE = Rows.pack([0, 1, -1], [1, 1, 1])
MANY = Rows.pack([*range(1, SLOTS), *[-1] * 13], [1] * (SLOTS + 12))
"""Enough for a whole state in each program."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64",
    torch.int64: "*i64", torch.int32: "*i32", torch.uint8: "*u8",
}  # fmt: skip


def compile_launch(kernel: Any, *args: Any, grid: object, warmup: bool, **options: Any) -> None:
    """Stands for `JITFunction.run`: compile for compute capability 9.0, look at the registers, run nothing."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    num_warps = options.pop("num_warps", 4)
    values = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
    constants = {(i,): values[p.name] for i, p in enumerate(kernel.params) if p.is_constexpr}
    signature, attributes = {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            continue
        if isinstance(value, Tensor):
            signature[parameter.name], aligned = TYPES[value.dtype], not parameter.do_not_specialize_on_alignment
        else:
            signature[parameter.name], aligned = "i32", value % 16 == 0 and not parameter.do_not_specialize
        if aligned:  # as a launch finds it, and specialises the kernel for it
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    assert compiled.metadata.shared <= SHARED_BYTES
    spilled = local_bytes(compiled.asm["cubin"])
    assert spilled <= MAX_LOCAL_BYTES, f"{kernel.__name__} keeps {spilled} bytes a thread outside of registers"


def local_bytes(cubin: bytes) -> int:
    """Local memory a thread of the kernel uses, from the tool that comes with triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(report.split("LOCAL:")[1].split()[0]) + int(report.split("STACK:")[1].split()[0])


def tokens(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def states(dtype: torch.dtype, slots: int = SLOTS) -> Tensor:
    return torch.zeros(slots, HEADS, HEAD_SIZE, HEAD_SIZE, dtype=dtype)


def launch_wkv4(dtype: torch.dtype, kept: torch.dtype) -> None:
    from rookery.kernels.triton.wkv4 import wkv4

    x, channel = tokens(50, WIDTH, dtype=dtype), torch.zeros(WIDTH)
    wkv4(x, x, channel, channel, torch.zeros(SLOTS, 3, WIDTH), ROWS)  # whose states are always float32


def launch_wkv6(dtype: torch.dtype, kept: torch.dtype) -> None:
    from rookery.kernels.triton.wkv6 import wkv6

    channel = torch.zeros(HEADS, HEAD_SIZE)
    for rows in (ROWS, MANY):
        x = tokens(rows.tokens, HEADS, HEAD_SIZE, dtype=dtype)
        wkv6(x, x, x, channel.expand(x.shape), channel, states(kept), rows)
    wkv6(x, x, x, channel.expand(x.shape).contiguous(), channel, states(kept), MANY)


def launch_wkv7(dtype: torch.dtype, kept: torch.dtype) -> None:
    from rookery.kernels.triton.wkv7 import wkv7

    for rows in (ROWS, MANY):
        x = tokens(rows.tokens, HEADS, HEAD_SIZE, dtype=dtype)
        wkv7(x, x.float(), x, x, x, x, states(kept), rows)


def launch_wkv7_heads(dtype: torch.dtype, kept: torch.dtype) -> None:
    from rookery.kernels.triton.wkv7_heads import wkv7_heads
    from rookery.kernels.wkv7_heads import HeadWeights

    x, channel = tokens(50, WIDTH, dtype=dtype), torch.zeros(WIDTH)
    r_k = channel.view(HEADS, HEAD_SIZE)
    for v0 in (None, channel):
        weights = HeadWeights(channel, channel, v0, channel, channel, r_k, channel, channel)
        first = None if v0 is None else x
        wkv7_heads(x, x, x, x, x, x, first, first, weights, states(kept), ROWS)
    wkv7_heads(x, x, x, x, x, x, x, x, weights, states(kept), ROWS, by_token=True)


def launch_shift(dtype: torch.dtype, kept: torch.dtype) -> None:
    from rookery.kernels.triton.shift_mix import shift_mix

    for width in (WIDTH, 4096):
        channel, shift = tokens(width, dtype=dtype), tokens(SLOTS, width, dtype=dtype)
        for rows, of_present in ((ROWS, False), (DECODE, False), (DECODE, True)):
            x, mu = tokens(rows.tokens, width, dtype=dtype), tokens(6, 1, width, dtype=dtype)
            shift_mix(x, x, channel, channel, mu, shift, rows, of_present=of_present)


def launch_head_norm(dtype: torch.dtype, kept: torch.dtype) -> None:
    from rookery.kernels.triton.head_norm import head_norm

    y, channel = torch.zeros(3, HEADS, HEAD_SIZE), torch.zeros(WIDTH)
    head_norm(y, channel, channel, tokens(3, WIDTH, dtype=dtype), dtype)


def launch_relu_squared(dtype: torch.dtype, kept: torch.dtype) -> None:
    from rookery.kernels.triton.relu_squared import relu_squared

    relu_squared(tokens(3, WIDTH, dtype=dtype))


def launch_sample(dtype: torch.dtype, kept: torch.dtype) -> None:
    from rookery.kernels.sample import Penalties, Streams
    from rookery.kernels.sampling import Truncation
    from rookery.kernels.triton.sample import sample

    row = torch.zeros(2)
    whole, double = row.long(), row.double()
    settings = Truncation(row, whole, double, double, double, row.bool())
    counts = torch.zeros(2, 65536, dtype=torch.float64)
    penalties = Penalties(counts, counts.byte(), whole, row, row, row, double)
    sample(torch.zeros(2, 65536), settings, Streams(whole, whole, whole), penalties, whole)
    sample(torch.zeros(2, 65536), settings, Streams(whole, whole, whole))


LAUNCHES = [
    launch_wkv4,
    launch_wkv6,
    launch_wkv7,
    launch_wkv7_heads,
    launch_shift,
    launch_head_norm,
    launch_relu_squared,
]
KEEP_STATES = [launch_wkv6, launch_wkv7, launch_wkv7_heads]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("launch", "dtype", "kept"),
    [(launch, dtype, torch.float32) for launch in LAUNCHES for dtype in FLOATS]
    + [(launch, torch.bfloat16, torch.float16) for launch in KEEP_STATES]
    + [(launch_sample, torch.float32, torch.float32)],
)
def test_compiles(
    launch: Callable[[torch.dtype, torch.dtype], None],
    dtype: torch.dtype,
    kept: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """For activations of this type, and states kept in that one."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_launch)
    launch(dtype, kept)
