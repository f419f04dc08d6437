"""How much of what the processor can do each version of RWKV reaches, beside RWKV-7 at the same size.

    python -m bench.cpu.versions --json bench/versions-cpu.json

Models of one size take turns within a round, and the shortest time of all rounds counts: on a machine with other work,
the only one that can be compared. The limit of a step of decoding is to read all its weights once, and the states once
and write them; of a prompt, the products with its matrices without the head. What memory and products give is measured
in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rookery.kernels.cpu.library import CCall, COp, Kind, shared_team
from rookery.kernels.cpu.packed import MEETS, Activations, pack
from rookery.kernels.cpu.rows import HostRows
from rookery.server.bench.machine import machine
from rookery.server.model.kept import FORMATS, matrices
from rookery.server.model.native import NativeModel
from rookery.server.model.synthetic import PILE, PRESETS, Plan, synthetic_checkpoint

SIZES: dict[str, tuple[Plan, ...]] = {
    "0.1B": (
        PRESETS["rwkv7-0.1b"],
        Plan(version="4", layers=12, width=768, ffn_width=3072, vocab_size=PILE),
        Plan(version="5.2", layers=12, width=768, ffn_width=2688),
        Plan(version="6", layers=12, width=768, ffn_width=2688, ranks=(32, 64)),
    ),
    "0.4B": (PRESETS["rwkv7-0.4b"], PRESETS["rwkv4-430m"], PRESETS["rwkv5-0.4b"], PRESETS["rwkv6-0.4b"]),
}
"""Shapes by size, RWKV-7 first."""

STREAMS, PROMPT, STEPS = (1, 8), 512, 4
SIDE, TOKENS = 2048, 128
"""Of the product that shows what products give."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and what the limits follow from."""

    model: NativeModel
    weight_bytes: int
    """That a step of decoding reads: all but the embedding."""
    products: int
    """Numbers in the matrices of the layers."""

    @classmethod
    def of(cls, plan: Plan, kept: str, threads: int) -> Subject:
        checkpoint = synthetic_checkpoint(plan, dtype=torch.bfloat16)
        model = NativeModel(checkpoint, weights=FORMATS[kept], team=shared_team(threads))
        layers = [(key, tensor) for key, tensor in checkpoint.tensors.items() if key != "head.weight"]
        parts = [part for key, tensor in layers for part, _ in matrices(key, tensor, FORMATS[kept]).values()]
        embedding = checkpoint.tensors["emb.weight"].nbytes
        return cls(model, model.weight_bytes - embedding, sum(part.size for part in parts))


def decode(model: NativeModel, streams: int) -> Callable[[], object]:
    """One step of so many streams, logits included."""
    pool, rows = model.new_pool(streams), HostRows.pack(list(range(streams)), [1] * streams)
    ids = np.arange(streams)
    return lambda: model.logits(model.forward(ids, rows, pool))


def prompt(model: NativeModel) -> Callable[[], object]:
    """A prompt up to its first logits."""
    pool, rows = model.new_pool(1), HostRows.pack([0], [PROMPT])
    ids = np.arange(PROMPT)
    return lambda: model.logits(model.forward(ids, rows, pool)[-1:])


def multiply(kept: str, tokens: int, outputs: int, threads: int) -> Callable[[], object]:
    """A product of rows with a matrix of SIDE inputs: one row shows what memory gives, many show what products give."""
    x, out = Activations(tokens, SIDE, MEETS[FORMATS[kept]]), Activations(tokens, outputs)
    weight = pack(np.zeros((outputs, SIDE), np.float32), FORMATS[kept])
    op = COp(kind=Kind.MATMUL, last=1, count=1, matrix=weight.struct())
    op.in_[0], op.out[0] = x.struct(), out.struct()
    ops, call, held = (COp * 1)(op), CCall(tokens=tokens), (weight, x, out)

    def run() -> object:
        shared_team(threads).run(ops, call)
        return held

    return run


def shortest(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, the runs taking turns; the first round is not counted."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds + 1):
        for name, run in runs.items():
            for _ in range(1 if name.endswith("prompt") else STEPS):
                start = perf_counter()
                run()
                seconds[name].append(perf_counter() - start)
    return {name: min(taken[len(taken) // (rounds + 1) :]) for name, taken in seconds.items()}


def figures(subjects: list[Subject], kept: str, rounds: int, threads: int) -> Iterator[dict[str, Any]]:
    """For each model, RWKV-7 first: tokens a second, shares of the limit, and those beside RWKV-7's."""
    largest = max(subject.weight_bytes for subject in subjects)
    read_bytes = largest // SIDE * SIDE
    runs = {
        "read": multiply("int8", 1, read_bytes // SIDE, threads),
        "multiply": multiply(kept, TOKENS, SIDE, threads),
    }
    for subject in subjects:
        version = subject.model.shape.version
        runs |= {f"{version} {streams}": decode(subject.model, streams) for streams in STREAMS}
        runs[f"{version} prompt"] = prompt(subject.model)
    took = shortest(runs, rounds)
    bandwidth, rate = read_bytes / took["read"], 2 * TOKENS * SIDE**2 / took["multiply"]
    first: dict[str, float] = {}
    for subject in subjects:
        shape, pool = subject.model.shape, subject.model.new_pool(1)
        state, version = pool.shift.nbytes + pool.wkv.nbytes, shape.version
        shares = {"prefill": 2 * PROMPT * subject.products / rate / took[f"{version} prompt"]}
        speeds = {"prefill": PROMPT / took[f"{version} prompt"]}
        for streams in STREAMS:
            seconds = took[f"{version} {streams}"]
            shares[f"decode {streams}"] = (subject.weight_bytes + 2 * streams * state) / bandwidth / seconds
            speeds[f"decode {streams}"] = streams / seconds
        first = first or shares
        yield {
            "version": version,
            "layers": shape.layers,
            "width": shape.width,
            "weight_mb": round(subject.weight_bytes / 1e6, 1),
            "tok_s": {name: round(speed, 1) for name, speed in speeds.items()},
            "share_of_limit": {name: round(share, 3) for name, share in shares.items()},
            "beside_rwkv7": {name: round(share / first[name], 2) for name, share in shares.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.1B,0.4B")
    parser.add_argument("--kept", default="int8", help="with commas: " + ", ".join(FORMATS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": {**machine(), "threads": given.threads}, "sizes": {}}
    for size in given.sizes.split(","):
        for kept in given.kept.split(","):
            subjects = [Subject.of(plan, kept, given.threads) for plan in SIZES[size]]
            rows = list(figures(subjects, kept, given.rounds, given.threads))
            about = {"rounds": given.rounds, "load_average": round(os.getloadavg()[1], 2)}
            found["sizes"][f"{size} {kept}"] = {**about, "models": rows}
            for row in rows:
                print(size, kept, json.dumps(row), flush=True)
            if given.json is not None:
                given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
