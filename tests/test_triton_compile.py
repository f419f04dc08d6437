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
MAX_LOCAL_BYTES = 64
"""A thread may keep so much outside of registers: a few addresses of the kernels for float32 models."""
DECODE = Rows.pack([0, 1, -1], [1, 1, 1])
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
        elif isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32"
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
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


def launch_wkv4() -> None:
    from rookery.kernels.triton.wkv4 import wkv4

    x, channel = tokens(50, WIDTH), torch.zeros(WIDTH)
    wkv4(x, x, channel, channel, torch.zeros(SLOTS, 3, WIDTH), ROWS)


def launch_wkv6() -> None:
    from rookery.kernels.triton.wkv6 import wkv6

    x, channel = tokens(50, HEADS, HEAD_SIZE), torch.zeros(HEADS, HEAD_SIZE)
    state = torch.zeros(SLOTS, HEADS, HEAD_SIZE, HEAD_SIZE)
    wkv6(x, x, x, channel.expand(50, HEADS, HEAD_SIZE), channel, state, ROWS)


def launch_wkv7() -> None:
    from rookery.kernels.triton.wkv7 import wkv7

    x = tokens(50, HEADS, HEAD_SIZE)
    wkv7(x, x.float(), x, x, x, x, torch.zeros(SLOTS, HEADS, HEAD_SIZE, HEAD_SIZE), ROWS)


def launch_wkv7_exact() -> None:
    """A float32 model: products of float32."""
    from rookery.kernels.triton.wkv7 import wkv7

    x = tokens(50, HEADS, HEAD_SIZE, dtype=torch.float32)
    wkv7(x, x, x, x, x, x, torch.zeros(SLOTS, HEADS, HEAD_SIZE, HEAD_SIZE), ROWS)


def launch_wkv7_heads() -> None:
    from rookery.kernels.triton.wkv7_heads import wkv7_heads
    from rookery.kernels.wkv7_heads import HeadWeights

    x, channel = tokens(50, WIDTH), torch.zeros(WIDTH)
    state = torch.zeros(SLOTS, HEADS, HEAD_SIZE, HEAD_SIZE)
    r_k = channel.view(HEADS, HEAD_SIZE)
    later = HeadWeights(channel, channel, channel, channel, channel, r_k, channel, channel)
    wkv7_heads(x, x, x, x, x, x, x, x, later, state, ROWS)


def launch_shift() -> None:
    from rookery.kernels.triton.shift_mix import shift_mix

    channel, shift = tokens(WIDTH), tokens(SLOTS, WIDTH)
    for rows, of_present in ((ROWS, False), (DECODE, False), (DECODE, True)):
        x = tokens(rows.tokens, WIDTH)
        shift_mix(x, x, channel, channel, tokens(6, 1, WIDTH), shift, rows, of_present=of_present)


def launch_head_norm() -> None:
    from rookery.kernels.triton.head_norm import head_norm

    y, channel = torch.zeros(3, HEADS, HEAD_SIZE), torch.zeros(WIDTH)
    head_norm(y, channel, channel, tokens(3, WIDTH), torch.bfloat16)


def launch_relu_squared() -> None:
    from rookery.kernels.triton.relu_squared import relu_squared

    relu_squared(tokens(3, WIDTH))


def launch_sample() -> None:
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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "launch",
    [launch_wkv4, launch_wkv6, launch_wkv7, launch_wkv7_exact, launch_wkv7_heads, launch_shift, launch_head_norm,
     launch_relu_squared,
     launch_sample],
)  # fmt: skip
def test_compiles(launch: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_launch)
    launch()
