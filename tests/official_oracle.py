"""Runs the official `rwkv` package, in a process of its own: it takes its settings from the environment at import.

    python tests/official_oracle.py JOBS.json OUT.npz

JOBS is a list of {"name", "model" (path without .pth), "strategy", "tokens"}. OUT gets, for each name, `logits` of all
tokens, [T, vocab_size], and the state after them: `shift` [L, 2, C], and `wkv` as [L, H, value, key] or [L, 3, C].
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Job:
    """One model file and the tokens to run through it."""

    model: Path
    strategy: str
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the official package computes for a job; shapes as in the module docstring."""

    logits: Tensor
    shift: Tensor
    wkv: Tensor


def ask_official(jobs: Sequence[Job], folder: Path, *, version_7: bool) -> list[Answer]:
    """Run jobs in the official package; RWKV-7 and the older versions cannot share a process."""
    settings = {"RWKV_V7_ON": "1" if version_7 else "0", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    named = [
        {"name": str(i), "model": str(job.model.with_suffix("")), "strategy": job.strategy, "tokens": list(job.tokens)}
        for i, job in enumerate(jobs)
    ]
    task, out = folder / f"jobs-{version_7}.json", folder / f"out-{version_7}.npz"
    task.write_text(json.dumps(named))
    subprocess.run(
        [sys.executable, str(Path(__file__)), str(task), str(out)],
        check=True,
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
    )
    with np.load(out) as found:
        return [
            Answer(*(torch.from_numpy(found[f"{i}.{part}"]) for part in ("logits", "shift", "wkv")))
            for i in range(len(jobs))
        ]


def _main() -> None:
    from rwkv.model import RWKV

    found = {}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        model = RWKV(model=job["model"], strategy=job["strategy"])
        logits, state = [], None
        with torch.no_grad():
            for token in job["tokens"]:
                row, state = model.forward([token], state)
                logits.append(row.float())
        parts = [part.float() for part in state or ()]
        if parts[1].dim() == 1:  # RWKV-4: att_x, aa, bb, pp, ffn_x
            layers = [parts[i : i + 5] for i in range(0, len(parts), 5)]
            wkv = torch.stack([torch.stack(layer[1:4]) for layer in layers])
        else:
            layers = [parts[i : i + 3] for i in range(0, len(parts), 3)]
            wkv = torch.stack([layer[1] for layer in layers])
            if os.environ["RWKV_V7_ON"] != "1":
                wkv = wkv.mT.contiguous()
        found[f"{job['name']}.logits"] = torch.stack(logits).numpy()
        found[f"{job['name']}.shift"] = torch.stack([torch.stack((layer[0], layer[-1])) for layer in layers]).numpy()
        found[f"{job['name']}.wkv"] = wkv.numpy()
    np.savez(sys.argv[2], allow_pickle=False, **found)


if __name__ == "__main__":
    _main()
