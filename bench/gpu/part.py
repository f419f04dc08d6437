"""One part of a GPU's run, in a process of its own: `run.py` starts it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rookery.server.bench import device as models
from rookery.server.bench import environment, kernels, precision
from rookery.server.bench.ledger import Ledger
from rookery.server.bench.machine import machine
from rookery.server.model.load import resolve_device
from rookery.server.model.synthetic import PRESETS, Plan

TINY: dict[str, dict[str, Any]] = {
    "environment": {"widths": [64], "rows": [1, 3], "moved": [2**10], "copy_bytes": 2**16, "side": 32, "rounds": 1},
    "operators": {
        "width": 64, "vocab_size": 100, "batches": [1, 3], "prompts": [(2, 20)], "forms": [(1, 16)],
        "copy_bytes": 2**16, "side": 32, "rounds": 1,
    },
    "model": {"batches": [1, 3], "prompts": [(2, 20)], "copy_bytes": 2**16, "side": 32, "rounds": 1},
}  # fmt: skip
TINY_PLAN = Plan(version="7", layers=2, width=64, ffn_width=96, vocab_size=120, ranks=(4, 4, 4, 4))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the part named, into its file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("environment", "operators", "precision", "model"))
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--shape", default="rwkv7-1.5b")
    parser.add_argument("--states", choices=("float32", "float16"), default="float32")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args(arguments)
    sizes = TINY.get(asked.part, {}) if asked.tiny else {}
    common = {**sizes, "file": asked.file, "at_most_s": 60 * asked.minutes}
    dtype = torch.bfloat16
    if asked.part == "precision":
        _precision(asked.device, asked.file, asked.minutes, tokens=40 if asked.tiny else 8192)
    elif asked.part == "environment":
        environment.measure(asked.device, dtype, **common)
    elif asked.part == "operators":
        Console(width=120).print(
            kernels.render(kernels.measure(torch.device(resolve_device(asked.device)), dtype, **common))
        )
    else:
        if asked.tiny:
            PRESETS[asked.shape] = TINY_PLAN
        kept = getattr(torch, asked.states)
        report = models.measure([asked.shape], asked.device, dtype, wkv_dtype=kept, **common)
        Console(width=120).print(models.render(report))
    return 0


def _precision(device_name: str, file: Path, minutes: float, *, tokens: int) -> None:
    """The errors of each version, as figures of a report like the others."""
    device = torch.device(resolve_device(device_name))
    ledger = Ledger(
        {"benchmark": "precision of WKV", "device": device.type, "tokens": tokens, "machine": machine()},
        file,
        seconds=60 * minutes,
    )

    def errors(version: str) -> dict[str, Any]:
        return {"errors": precision.measure(device, tokens=tokens, versions=[version])["results"]}

    for version in precision.VERSIONS:
        ledger.add(partial(errors, version), version=version)


if __name__ == "__main__":
    sys.exit(main())
