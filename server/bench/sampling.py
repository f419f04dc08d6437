"""What drawing costs on a processor: the native sampler and the torch one, turn by turn on the same logits.

    python -m rookery.server.bench.sampling [--threads N] [--json FILE]

Rows of 65,536 logits, normally distributed: a spread of 1 is flat (top-p 0.9 keeps some 40,000 tokens), of 8 is peaked
(it keeps a few). The figure is the median time of a row, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from rookery.kernels.cpu.threads import set_threads

from ..engine.request import SamplingParams
from ..engine.sampler import ChoiceSampling, Sampler
from .machine import machine

VOCAB_SIZE, TURNS = 65536, 9
SPREADS = {"flat": 1.0, "peaked": 8.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {},
    "top-p 0.9": {"top_p": 0.9},
    "top-k 40, top-p 0.9": {"top_k": 40, "top_p": 0.9},
    "penalties, top-p 0.9": {"top_p": 0.9, "presence_penalty": 0.3, "frequency_penalty": 0.3, "penalty_decay": 0.996},
}


def measure(samplers: Mapping[str, Sampler], logits: Tensor, setting: dict[str, Any]) -> dict[str, float]:
    """Median microseconds of a row by each sampler; both draw the same tokens, but for what rounding decides."""
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    choices = {
        name: [ChoiceSampling(SamplingParams(max_tokens=99, seed=i, **setting)) for i in range(len(logits))]
        for name in samplers
    }
    for _ in range(TURNS):
        for name, sampler in samplers.items():
            start = perf_counter()
            sampler.sample(logits, choices[name])
            seconds[name].append(perf_counter() - start)
    return {name: round(1e6 * statistics.median(each[1:]) / len(logits), 1) for name, each in seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="of this machine's, when not all")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    given = parser.parse_args(argv)
    if given.threads:
        set_threads(given.threads)
        torch.set_num_threads(given.threads)
    samplers = {"native": Sampler(), "torch": Sampler(native=False)}
    found = []
    for rows in given.rows:
        for shape, spread in SPREADS.items():
            logits = torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(rows)) * spread
            for name, setting in SETTINGS.items():
                us = measure(samplers, logits, setting)
                found.append({"rows": rows, "logits": shape, "setting": name, "us_a_row": us})
                print(f"{rows:3d} rows, {shape:6s} {name:22s} {us['native']:8.1f} {us['torch']:8.1f}")
    if given.json is not None:
        result = {
            "vocab_size": VOCAB_SIZE,
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
            "cases": found,
            "machine": machine(),
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
