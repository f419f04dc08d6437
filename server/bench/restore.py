"""What it costs to go on from a stored state, beside computing the tokens again. See `measure`."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from rookery.kernels.cpu.threads import threads

from ..engine.arrays import arrays_of
from ..model.base import Model
from ..model.native import native_model
from ..model.rwkv7 import Rwkv7
from ..model.synthetic import PRESETS, synthetic_checkpoint
from ..state.pool import StatePool
from ..state.snapshot import StateFormat
from ..state.store import Record, StateStore
from .machine import machine

PROMPTS = (32, 512)


def measure(preset: str, dtype: str, rounds: int) -> dict[str, object]:
    """Least milliseconds over some rounds: computing prompts, and restoring a state from host memory and from disk
    (read from the page cache, checked, decoded)."""
    checkpoint = synthetic_checkpoint(PRESETS[preset], dtype=torch.float32)
    model = native_model(checkpoint, dtype) or Rwkv7(checkpoint, dtype=getattr(torch, dtype), device="cpu")
    pool: StatePool = model.new_pool(2)
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for length in PROMPTS:
            packed = arrays_of(pool).pack(range(1, 1 + length), [0], [length])
            times[f"compute_{length}_tokens_ms"] = _least(rounds, lambda: _compute(model, packed, pool))  # noqa: B023
        state = pool.save(0)
        times["restore_from_memory_ms"] = _least(rounds, lambda: pool.write(1, state))
        format = StateFormat.of(model.shape, fingerprint=checkpoint.fingerprint, tokenizer="bench")
        store = StateStore(Path(folder), format)
        record = Record(id="s", tenant="", tokens=PROMPTS[-1], turns=1, created=0, updated=0)
        times["commit_to_disk_ms"] = _least(rounds, lambda: store.commit(record, state))
        found = store.find("", "s")
        assert found is not None
        times["restore_from_disk_ms"] = _least(rounds, lambda: pool.write(1, store.load(found).state))
        store.close()
    return {
        "preset": preset,
        "dtype": dtype,
        "threads": threads(),
        "state_bytes": pool.state_bytes,
        **{name: round(value, 3) for name, value in times.items()},
        "machine": machine(),
    }


def _compute(model: Model, packed: tuple[Any, Any], pool: StatePool) -> None:
    pool.reset([0])
    model.forward(*packed, pool)


def _least(rounds: int, work: Callable[[], object]) -> float:
    times = []
    for _ in range(rounds + 1):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times[1:]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of going on from a stored state.")
    parser.add_argument("--preset", default="rwkv7-0.1b")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = json.dumps(measure(arguments.preset, arguments.dtype, arguments.rounds), indent=1)
    print(report)
    if arguments.json is not None:
        arguments.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
