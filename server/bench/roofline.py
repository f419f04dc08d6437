"""What a device can do at most, measured in the same run as what is compared with it, and the clock for both."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch


def seconds(run: Callable[[], object], device: torch.device, *, rounds: int = 5, calls: int = 10) -> float:
    """Median over the rounds of the time one call takes, after one call that is not counted.

    On CUDA by events around a row of calls, so that the host's own time counts only where it is the limit.
    """
    run()
    if device.type != "cuda":
        return statistics.median(_wall(run, calls) for _ in range(rounds))
    measured: list[float] = []
    for _ in range(rounds):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            run()
        stop.record()
        torch.cuda.synchronize()
        measured.append(start.elapsed_time(stop) / 1000 / calls)
    return statistics.median(measured)


def _wall(run: Callable[[], object], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        run()
    return (perf_counter() - start) / calls


@dataclass(frozen=True, slots=True)
class Roof:
    """Limits of a device."""

    bytes_per_s: float
    """Read and written together, by a copy."""
    flops_per_s: float
    """Of a large matrix product."""

    def seconds(self, size_bytes: float, flops: float = 0.0) -> float:
        """The shortest time in which so much can be moved and computed, both at once."""
        return max(size_bytes / self.bytes_per_s, flops / self.flops_per_s)


def measure_roof(
    device: torch.device, dtype: torch.dtype, *, copy_bytes: int = 2**30, side: int = 8192, rounds: int = 5
) -> Roof:
    """Measure both limits.

    Args:
        copy_bytes: of the buffer copied; far more than the caches hold.
        side: of the square matrices multiplied.
    """
    copy_s = _copy(device, copy_bytes, rounds)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    matmul_s = seconds(lambda: a @ b, device, rounds=rounds)
    return Roof(bytes_per_s=2 * copy_bytes / copy_s, flops_per_s=2 * side**3 / matmul_s)


def _copy(device: torch.device, size_bytes: int, rounds: int) -> float:
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source), device, rounds=rounds)
