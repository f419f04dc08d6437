"""`rookery bench engine --device cuda`: decode and prefill of whole models on one device, beside its roof.

Seeded random weights are drawn on the device. Decode is the engine's own step, greedy, with all that the host does for
it: on a GPU recorded, and launched before the last one is read. Prefill is one pass over the prompts, and the head for
the last token of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from rookery.kernels.backend import uses_triton
from rookery.kernels.rows import Rows
from rookery.kernels.sampling import greedy

from ..engine.device import CudaDevice
from ..engine.engine import Engine
from ..engine.graphs import CudaRecorder, recordable
from ..engine.request import Request, SamplingParams
from ..engine.scheduler import BLOCK
from ..errors import StartupError
from ..model.base import Model
from ..model.load import construct, resolve_device
from ..model.synthetic import PRESETS, synthetic_checkpoint
from ..state.torch_pool import TorchPool
from .ledger import Ledger
from .machine import machine
from .roofline import Roof, measure_roof, seconds

SHAPES = ("rwkv7-0.1b", "rwkv7-0.4b", "rwkv7-1.5b", "rwkv7-2.9b", "rwkv7-7.2b")
BATCHES = (1, 8, 32, 128, 320, 960)
PROMPTS = ((1, 4096), (8, 1024), (32, 1024))


def measure(
    presets: Sequence[str],
    device_name: str,
    dtype: torch.dtype,
    *,
    wkv_dtype: torch.dtype = torch.float32,
    batches: Sequence[int] = BATCHES,
    prompts: Sequence[tuple[int, int]] = PROMPTS,
    copy_bytes: int = 2**30,
    side: int = 8192,
    rounds: int = 5,
    file: Path | None = None,
    at_most_s: float | None = None,
) -> dict[str, Any]:
    """Measure these published shapes; the roof with a copy of `copy_bytes` and a product of matrices of `side`.

    Args:
        file: where the report goes as it grows, and where an earlier one is gone on with (`Ledger`).
        at_most_s: seconds after which no further figure is begun.

    Raises:
        StartupError: a shape that is not known, or a device that is not there.
    """
    unknown = [preset for preset in presets if preset not in PRESETS]
    if unknown:
        raise StartupError(f"there is no shape {unknown[0]}", f"choose one of {', '.join(PRESETS)}", exit_code=2)
    device = torch.device(resolve_device(device_name))
    roof = measure_roof(device, dtype, copy_bytes=copy_bytes, side=side, rounds=rounds)
    head = {
        "benchmark": "engine on a device",
        "device": device.type,
        "kernels": "triton" if uses_triton(device.type) else "torch",
        "dtype": str(dtype).removeprefix("torch."),
        "states": str(wkv_dtype).removeprefix("torch."),
        "weights": "seeded random",
        "machine": machine(),
        "roof": {"gb_s": roof.bytes_per_s / 1e9, "tflop_s": roof.flops_per_s / 1e12},
    }
    ledger = Ledger(head, file, seconds=at_most_s)
    for preset in presets:
        _measure_plan(preset, ledger, roof, device, dtype, wkv_dtype, batches=batches, prompts=prompts, rounds=rounds)
    return ledger.report


@torch.inference_mode()
def _measure_plan(
    preset: str,
    ledger: Ledger,
    roof: Roof,
    device: torch.device,
    dtype: torch.dtype,
    wkv_dtype: torch.dtype,
    *,
    batches: Sequence[int],
    prompts: Sequence[tuple[int, int]],
    rounds: int,
) -> None:
    """Tokens a second of one shape at these loads, each with its share of the roof."""
    plan = PRESETS[preset]

    @cache
    def model() -> tuple[Model, int]:
        """Made for the first figure that is not there; and how many numbers a decode step reads of it."""
        checkpoint = synthetic_checkpoint(plan, dtype=dtype, device=str(device))
        parameters = sum(tensor.size for tensor in checkpoint.tensors.values())
        return construct(checkpoint, dtype, device, wkv_dtype), parameters - head  # of the embedding, one row a token

    head = plan.vocab_size * plan.width

    def decode(rows: int) -> dict[str, float]:
        made, read = model()
        engine = _decoding(made, rows)
        took = seconds(engine.step, device, rounds=rounds)
        states = 2 * rows * engine.pool.state_bytes
        least = roof.seconds(read * dtype.itemsize, 2 * read * rows) + roof.seconds(states)
        return {"tok_s": rows / took, "share_of_roof": least / took}

    def prefill(rows: int, tokens: int) -> dict[str, float]:
        made, read = model()
        pool = made.new_pool(rows)
        took = seconds(_prompt_pass(made, rows, tokens, pool), device, rounds=rounds, calls=1)
        flops = 2 * rows * (tokens * (read - head) + head)
        least = roof.seconds(read * dtype.itemsize, flops) + roof.seconds(2 * rows * pool.state_bytes)
        return {"tok_s": rows * tokens / took, "share_of_roof": least / took}

    for rows in batches:
        ledger.add(partial(decode, rows), shape=preset, kind="decode", load=str(rows))
    for rows, tokens in prompts:
        ledger.add(partial(prefill, rows, tokens), shape=preset, kind="prefill", load=f"{rows}x{tokens}")


def _decoding(model: Model, rows: int) -> Engine:
    """An engine that does nothing but decode so many rows, and never comes to an end."""
    engine = Engine(model, max_batch=rows, max_queue=rows, prefill_budget=max(BLOCK, rows))
    device = torch.device(engine.pool.device_type)
    if recordable(device):
        loop = engine.overlap(CudaDevice(device, rows))
        loop.record(CudaRecorder(), [rows])
        assert loop.sizes == [rows], "the recorded step differs from the eager one"
    for row in range(rows):
        params = SamplingParams(max_tokens=10**9, temperature=0.0)
        engine.submit(Request(id=str(row), prompt_ids=(1 + 7 * row % 97,), sampling=params))
    while engine.scheduler.prefills or engine.scheduler.waiting:
        engine.step()
    return engine


def _prompt_pass(model: Model, rows: int, tokens: int, pool: TorchPool) -> Callable[[], Tensor]:
    device = pool.device
    ids = (1 + 7 * torch.arange(rows * tokens, device=device)) % (model.shape.vocab_size - 1)
    packed = Rows.pack(list(range(rows)), [tokens] * rows, device)
    return lambda: greedy(model.logits(model.forward(ids, packed, pool)[tokens - 1 :: tokens]))


def render(report: dict[str, Any]) -> Table:
    """The report as a table."""
    roof = report["roof"]
    name = report["machine"]["gpu"] or "cpu"
    caption = f"roof of this run: {roof['gb_s']:.0f} GB/s copied, {roof['tflop_s']:.1f} TFLOP/s"
    table = Table("shape", "load", "tok/s", "of the roof", title=f"{name}, {report['dtype']}", caption=caption)
    for row in report["results"]:
        load = f"{row['kind']} {row['load']}"
        if "error" in row:
            table.add_row(row["shape"], load, "failed", row["error"].splitlines()[0][:80])
        else:
            table.add_row(row["shape"], load, f"{row['tok_s']:.0f}", f"{100 * row['share_of_roof']:.0f} %")
    if report["left"]:
        table.caption = f"{caption}\n{report['left']} figures are left: the same command with the same file goes on"
    return table
