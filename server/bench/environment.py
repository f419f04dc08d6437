"""What a GPU and its host can do, before any kernel of ours runs on them: the first thing to know on a new machine.

Launches, copies between host and device, and matrix products at the sizes a step has: few rows, wide matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..engine.device import CudaDevice
from ..engine.graphs import CudaRecorder
from ..model.load import resolve_device
from .ledger import Ledger
from .machine import machine
from .roofline import measure_roof, seconds

WIDTHS = (768, 1024, 2048, 2560, 4096)
ROWS = (1, 8, 32, 64, 128, 320, 960, 4096)
NODES = 200


def measure(
    device_name: str,
    dtype: torch.dtype,
    *,
    widths: Sequence[int] = WIDTHS,
    rows: Sequence[int] = ROWS,
    moved: Sequence[int] = (2**10, 2**20, 2**24),
    copy_bytes: int = 2**30,
    side: int = 8192,
    rounds: int = 5,
    file: Path | None = None,
    at_most_s: float | None = None,
) -> dict[str, Any]:
    """Measure launches, copies of so many bytes, and products [rows, width] x [width, 4 width] and back.

    Args:
        file, at_most_s: as `Ledger` has them.
    """
    device = torch.device(resolve_device(device_name))
    roof = measure_roof(device, dtype, copy_bytes=copy_bytes, side=side, rounds=rounds)
    head = {
        "benchmark": "environment",
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "machine": machine(),
        "roof": {"gb_s": roof.bytes_per_s / 1e9, "tflop_s": roof.flops_per_s / 1e12},
    }
    ledger = Ledger(head, file, seconds=at_most_s)
    clock = partial(seconds, device=device, rounds=rounds)

    def launches(*, recorded: bool) -> dict[str, float]:
        x = torch.zeros(64, device=device)

        def run() -> torch.Tensor:
            for _ in range(NODES):
                x.add_(1)
            return x

        return {"us": 1e6 / NODES * clock(CudaRecorder().record(run) if recorded else run, calls=3)}

    def moving(size: int, *, there: bool) -> dict[str, float]:
        pinned = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        on = torch.zeros(size, dtype=torch.uint8, device=device)
        target, source = (on, pinned) if there else (pinned, on)
        took = clock(lambda: target.copy_(source, non_blocking=True))
        return {"us": took * 1e6, "gb_s": size / took / 1e9}

    def sending() -> dict[str, float]:
        values = torch.arange(960)
        return {"us": 1e6 * clock(partial(CudaDevice(device, 960).send, values))}

    def product(many: int, width: int, out: int) -> dict[str, float]:
        x = torch.randn(many, width, device=device).to(dtype)
        weights = [torch.randn(out, width, device=device).to(dtype) for _ in range(_copies(width * out * x.itemsize))]
        turn = iter(range(2**62))
        took = clock(lambda: torch.nn.functional.linear(x, weights[next(turn) % len(weights)]))
        least = roof.seconds(weights[0].nbytes + (many * (width + out)) * x.itemsize, 2.0 * many * width * out)
        return {"us": took * 1e6, "share_of_roof": least / took}

    with torch.inference_mode():
        ledger.add(partial(launches, recorded=False), what="a launch")
        if device.type == "cuda":
            ledger.add(partial(launches, recorded=True), what="a launch in a graph")
            ledger.add(sending, what="960 numbers as a step sends them")
        for size in moved:
            ledger.add(partial(moving, size, there=True), what="host to device", bytes=size)
            ledger.add(partial(moving, size, there=False), what="device to host", bytes=size)
        for width in widths:
            for many in rows:
                for wide, out in ((width, width), (width, 4 * width), (4 * width, width)):
                    ledger.add(partial(product, many, wide, out), what="product", rows=many, width=wide, out=out)
    return ledger.report


def _copies(size_bytes: int) -> int:
    """So many matrices, used in turn, that none is still in a cache when its turn comes."""
    return max(1, min(64, 2**28 // size_bytes))
