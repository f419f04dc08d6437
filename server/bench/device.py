"""`rookery bench engine --device cuda`: decode and prefill of whole models on one device, beside its roof.

Seeded random weights are drawn on the device. Decode is the engine's own step, greedy, with all that the host does for
it: on a GPU recorded, and launched before the last one is read. Prefill is one pass over the prompts, and the head for
the last token of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from ..model.synthetic import PRESETS, Plan, synthetic_checkpoint
from ..state.pool import StatePool
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
) -> dict[str, Any]:
    """Measure these published shapes; the roof with a copy of `copy_bytes` and a product of matrices of `side`.

    Raises:
        StartupError: a shape that is not known, or a device that is not there.
    """
    unknown = [preset for preset in presets if preset not in PRESETS]
    if unknown:
        raise StartupError(f"there is no shape {unknown[0]}", f"choose one of {', '.join(PRESETS)}", exit_code=2)
    device = resolve_device(device_name)
    roof = measure_roof(device, dtype, copy_bytes=copy_bytes, side=side, rounds=rounds)
    return {
        "benchmark": "engine on a device",
        "device": device.type,
        "kernels": "triton" if uses_triton(device.type) else "torch",
        "dtype": str(dtype).removeprefix("torch."),
        "states": str(wkv_dtype).removeprefix("torch."),
        "weights": "seeded random",
        "machine": machine(),
        "roof": {"gb_s": roof.bytes_per_s / 1e9, "tflop_s": roof.flops_per_s / 1e12},
        "results": [
            {
                "shape": preset,
                **measure_plan(
                    PRESETS[preset], roof, device, dtype, wkv_dtype, batches=batches, prompts=prompts, rounds=rounds
                ),
            }
            for preset in presets
        ],
    }


@torch.inference_mode()
def measure_plan(
    plan: Plan,
    roof: Roof,
    device: torch.device,
    dtype: torch.dtype,
    wkv_dtype: torch.dtype,
    *,
    batches: Sequence[int],
    prompts: Sequence[tuple[int, int]],
    rounds: int,
) -> dict[str, Any]:
    """Tokens a second of one shape at these loads, each with its share of the roof."""
    checkpoint = synthetic_checkpoint(plan, dtype=dtype, device=str(device))
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    read = parameters - plan.vocab_size * plan.width  # of the embedding, one row a token
    head = plan.vocab_size * plan.width
    model = construct(checkpoint, dtype, device, wkv_dtype)
    del checkpoint
    decode, prefill = {}, {}
    for rows in batches:
        engine = _decoding(model, rows)
        took = seconds(engine.step, device, rounds=rounds)
        states = 2 * rows * engine.pool.state_bytes
        least = roof.seconds(read * dtype.itemsize, 2 * read * rows) + roof.seconds(states)
        decode[str(rows)] = {"tok_s": rows / took, "share_of_roof": least / took}
        del engine
    for rows, tokens in prompts:
        pool = model.new_pool(rows)
        took = seconds(_prompt_pass(model, rows, tokens, pool), device, rounds=rounds, calls=1)
        flops = 2 * rows * (tokens * (read - head) + head)
        least = roof.seconds(read * dtype.itemsize, flops) + roof.seconds(2 * rows * pool.state_bytes)
        prefill[f"{rows}x{tokens}"] = {"tok_s": rows * tokens / took, "share_of_roof": least / took}
        del pool
    return {"parameters": parameters, "decode": decode, "prefill": prefill}


def _decoding(model: Model, rows: int) -> Engine:
    """An engine that does nothing but decode so many rows, and never comes to an end."""
    engine = Engine(model, max_batch=rows, max_queue=rows, prefill_budget=max(BLOCK, rows))
    device = engine.pool.wkv.device
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


def _prompt_pass(model: Model, rows: int, tokens: int, pool: StatePool) -> Callable[[], Tensor]:
    device = pool.wkv.device
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
        for kind in ("decode", "prefill"):
            for load, measured in row[kind].items():
                share = f"{100 * measured['share_of_roof']:.0f} %"
                table.add_row(row["shape"], f"{kind} {load}", f"{measured['tok_s']:.0f}", share)
    return table
