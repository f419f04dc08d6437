"""Where the time of a native step goes: each phase of the program is run alone, over and over, and its ops are named.

    python -m bench.cpu.ops build/bench-cpu/rwkv7-0.1b/rwkv7-0.1b-int8-3.safetensors --tokens 512

A phase alone costs some microseconds more than within its program, which wakes the threads once for all of them. Times
are the shortest of all rounds: on a machine with other work, the only ones that can be compared.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np

from rookery.kernels.cpu.arrays import address
from rookery.kernels.cpu.library import CCall, COp, Format, Kind
from rookery.kernels.cpu.rows import HostRows
from rookery.kernels.cpu.threads import set_threads
from rookery.server.model.load import load_model
from rookery.server.model.native import TOKENS, NativeModel


def phases(ops: list[COp]) -> Iterator[list[COp]]:
    """The ops that run side by side, run by run."""
    together: list[COp] = []
    for op in ops:
        together.append(op)
        if op.last:
            yield together
            together = []


def name_of(phase: list[COp]) -> str:
    """What a phase does, as equal ones of other layers do it."""
    parts = []
    for op in phase:
        sizes = f" {op.matrix.out}x{op.matrix.in_} {Format(op.matrix.format).name}" if op.kind == Kind.MATMUL else ""
        parts.append(f"{Kind(op.kind).name}{sizes}")
    return " + ".join(sorted(parts))


def step_times(model: NativeModel, tokens: int, rows: int, rounds: int) -> dict[str, tuple[int, float]]:
    """Phases by name: how many a step has, and their seconds together (the shortest of the rounds)."""
    pool = model.new_pool(rows)
    packed = HostRows.pack(list(range(rows)), [tokens // rows] * rows)
    ids = np.arange(packed.tokens) % model.shape.vocab_size
    hidden = np.empty((packed.tokens, model.shape.width), np.float32)
    call = CCall(
        tokens=packed.tokens,
        rows=rows,
        ids=ids.ctypes.data,
        slots=address(packed.slots),
        starts=address(packed.starts),
        shift=address(pool.shift),
        wkv=address(pool.wkv),
        shift_stride=pool.shift[0].size,
        wkv_stride=pool.wkv[0].size,
    )
    model._hidden.data = hidden.ctypes.data
    program = [(name_of(phase), (COp * len(phase))(*phase)) for phase in phases(list(model._step))]
    seconds: list[list[float]] = [[] for _ in program]
    for _ in range(rounds + 1):
        for taken, (_, ops) in zip(seconds, program, strict=True):
            start = perf_counter()
            model.team.run(ops, call)
            taken.append(perf_counter() - start)
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for taken, (name, _) in zip(seconds, program, strict=True):
        count, total = found[name]
        found[name] = count + 1, total + min(taken[1:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the step, at most those of one native call")
    parser.add_argument("--rows", type=int, default=1, help="that share the tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    model, _ = load_model(arguments.model, device="cpu")
    assert isinstance(model, NativeModel)
    found = step_times(model, min(arguments.tokens, TOKENS), arguments.rows, arguments.rounds)
    for name, (count, total) in sorted(found.items(), key=lambda item: -item[1][1]):
        print(f"{1000 * total:8.2f} ms  {count:3} x {1e6 * total / count:6.0f} us  {name}")
    print(f"{1000 * sum(total for _, total in found.values()):8.2f} ms together")


if __name__ == "__main__":
    main()
