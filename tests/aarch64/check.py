"""The native kernels compiled for aarch64 and run by qemu, against this machine's: python -m tests.aarch64.check

Every version's program with every kind of weights is written down with all memory it points to, run there, and the
logits and states are compared. Needs aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu, qemu-user).
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from rookery.kernels.cpu.arrays import BYTE, Array
from rookery.kernels.cpu.library import CCall, COp, Format, Team
from rookery.kernels.cpu.packed import Activations, Packed
from rookery.kernels.cpu.rows import HostRows
from rookery.server.model.kept import FORMATS
from rookery.server.model.native import NativeModel
from rookery.server.model.native_program import Program
from rookery.server.model.shape import Version
from rookery.server.model.synthetic import synthetic_checkpoint

from ..checkpoints import UNUSUAL

HERE = Path(__file__).parent
KERNELS = HERE.parent.parent / "kernels/cpu"
COMPILER = (
    "aarch64-linux-gnu-gcc",
    "-std=gnu11",
    "-O3",
    "-ffp-contract=fast",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
)
MACHINE = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
SLOTS, LENGTHS = [2, -1, 0, 1], [1, 3, 37, 5]
BOUNDS = {Format.F32: 1e-5, Format.BF16: 1e-2, Format.INT8: 5e-2, Format.INT4: 5e-2}
"""Largest difference, of the largest number: sums are rounded in other places, and what is rounded to less may flip."""


def build(target: Path) -> None:
    """Raises CalledProcessError for any warning of the compiler."""
    sources = [*sorted(KERNELS.glob("*.c")), HERE / "replay.c"]
    command = [*COMPILER, "-Wno-psabi", "-static", *map(str, sources), "-lm", "-o", str(target)]
    subprocess.run(command, check=True)


def memory(program: Program) -> Iterator[Array]:
    """Every array that a program's ops point to."""
    for entry in program._kept:
        inputs, outputs, vectors, matrix = cast("tuple[Any, Any, Any, Packed | None]", entry)
        for operand in (*inputs, *outputs):
            if isinstance(operand, Activations):
                yield from (operand.data, *([] if operand.scale is None else [operand.scale]))
        yield from (vector for vector in vectors if vector is not None)
        if matrix is not None:
            yield from (matrix.data, *([] if matrix.scale is None else [matrix.scale]))


def write(path: Path, ops: ctypes.Array[COp], call: CCall, pieces: list[Array]) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<4q", ctypes.sizeof(COp), ctypes.sizeof(CCall), len(ops), len(pieces)))
        file.write(bytes(call) + bytes(ops))
        for piece in pieces:
            file.write(struct.pack("<QQ", piece.ctypes.data, piece.nbytes))
            file.write(piece.tobytes())


def read_back(path: Path, ops: int, pieces: list[Array]) -> None:
    """The pieces as the other machine left them."""
    content = path.read_bytes()
    at = 32 + ctypes.sizeof(CCall) + ops * ctypes.sizeof(COp)
    for piece in pieces:
        data = content[at + 16 : at + 16 + piece.nbytes]
        piece.view(BYTE).reshape(-1)[:] = memoryview(data)
        at += 16 + piece.nbytes


def compare(version: Version, kept: str, replay: Path, folder: Path, team: Team) -> float:
    """Largest difference of logits and states, of the largest of them."""
    model = NativeModel(synthetic_checkpoint(UNUSUAL[version], dtype=torch.float32), weights=FORMATS[kept], team=team)
    tokens, rows = np.arange(sum(LENGTHS)) * 7 % 97, HostRows.pack(SLOTS, LENGTHS)
    pool, there = model.new_pool(3), model.new_pool(3)
    expected = model.logits(model.forward(tokens, rows, pool))

    hidden, logits = np.zeros((len(tokens), model.shape.width), np.float32), np.zeros_like(expected)
    model._hidden.data = model._head_in.data = hidden.ctypes.data
    model._head_out.data = logits.ctypes.data
    parts = [*model._step, *model._head]
    ops = (COp * len(parts))(*parts)
    call = CCall(
        tokens=rows.tokens,
        rows=len(LENGTHS),
        ids=tokens.ctypes.data,
        slots=rows.slots.ctypes.data,
        starts=rows.starts.ctypes.data,
        shift=there.shift.ctypes.data,
        wkv=there.wkv.ctypes.data,
        shift_stride=there.shift[0].size,
        wkv_stride=there.wkv[0].size,
    )
    given = [tokens, rows.slots, rows.starts, there.shift, there.wkv, hidden, logits]
    pieces = list({piece.ctypes.data: piece for program in model._kept for piece in memory(program)}.values()) + given
    path = folder / f"{version}-{kept}.run"
    write(path, ops, call, pieces)
    subprocess.run([*MACHINE, str(replay), str(path), "2"], check=True, stdout=subprocess.DEVNULL)
    read_back(path, len(ops), pieces)
    path.unlink()
    pairs = [(logits, expected), (there.wkv, pool.wkv), (there.shift, pool.shift)]
    return max(float(abs(got - wanted).max() / abs(wanted).max()) for got, wanted in pairs)


def main() -> int:
    failed = 0
    team = Team(1, "portable")
    with tempfile.TemporaryDirectory() as name:
        replay = Path(name) / "replay"
        build(replay)
        for version in UNUSUAL:
            for kept, format in FORMATS.items():
                difference = compare(version, kept, replay, Path(name), team)
                failed += not difference < BOUNDS[format]
                print(f"RWKV-{version} {kept}: {difference:.1e}{'' if difference < BOUNDS[format] else ' FAILED'}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
