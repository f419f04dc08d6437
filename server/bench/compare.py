"""Runs the measurements in turn, each in its own process, and reports medians."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ..errors import StartupError
from ..model.synthetic import PRESETS, synthetic_tensors
from .machine import machine

MATRIX_DTYPE = torch.bfloat16
"""What published checkpoints are stored in."""


def _worker(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "rookery.server.bench.engine", json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise StartupError(f"measuring {job['peer']} {job['dtype']} failed: {done.stderr.strip()[-400:]}", "see above")
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def _median(results: Sequence[Any]) -> Any:
    """Medians of equal JSON trees, leaf by leaf."""
    if isinstance(results[0], dict):
        return {key: _median([result[key] for result in results]) for key in results[0]}
    return round(statistics.median(results), 3)


def write_checkpoint(preset: str, path: Path) -> None:
    """Seeded random weights of a published shape, as a `.pth` file.

    Raises:
        StartupError: an unknown preset.
    """
    if preset not in PRESETS:
        raise StartupError(f"there is no shape {preset}", f"choose one of {', '.join(PRESETS)}", exit_code=2)
    torch.save(synthetic_tensors(PRESETS[preset], dtype=MATRIX_DTYPE), path)


def compare(
    preset: str,
    *,
    dtypes: Sequence[str],
    streams: Sequence[int],
    peers: Sequence[str],
    rounds: int,
    decode_tokens: int,
    prefill_tokens: int,
    threads: int,
) -> dict[str, Any]:
    """Measure `preset` for every peer and dtype, `rounds` times in turn.

    Raises:
        StartupError: an unknown preset, or a measurement that failed.
    """
    with tempfile.TemporaryDirectory(prefix="rookery-bench-") as folder:
        path = Path(folder) / f"{preset}.pth"
        write_checkpoint(preset, path)
        jobs = [
            {
                "peer": peer,
                "path": str(path),
                "dtype": dtype,
                "threads": threads,
                "streams": list(streams),
                "decode_tokens": decode_tokens,
                "prefill_tokens": prefill_tokens,
            }
            for dtype in dtypes
            for peer in peers
            if peer == "rookery" or not dtype.startswith("int")  # the official package has no such weights
        ]
        runs: list[list[dict[str, Any]]] = [[] for _ in jobs]
        for _ in range(rounds):
            for job, results in zip(jobs, runs, strict=True):
                results.append(_worker(job))
    return {
        "benchmark": "engine",
        "shape": preset,
        "weights": "seeded random",
        "rounds": rounds,
        "decode_tokens": decode_tokens,
        "prefill_tokens": prefill_tokens,
        "machine": {**machine(), "threads": threads},
        "results": [
            {"peer": job["peer"], "dtype": job["dtype"], **_median(results)}
            for job, results in zip(jobs, runs, strict=True)
        ],
    }


def render(report: dict[str, Any]) -> Table:
    """The report as a table: one row a peer and dtype."""
    streams = max((list(row["decode_tok_s"]) for row in report["results"]), key=len)
    columns = [f"decode B={n} tok/s" for n in streams]
    table = Table("peer", "dtype", *columns, f"prefill {report['prefill_tokens']} tok/s", "peak RSS MB", "load s")
    for row in report["results"]:
        decode = [f"{row['decode_tok_s'][n]:.1f}" if n in row["decode_tok_s"] else "-" for n in streams]
        rest = [f"{row['prefill_tok_s']:.0f}", f"{row['peak_rss_mb']:.0f}", f"{row['load_s']:.1f}"]
        table.add_row(row["peer"], row["dtype"], *decode, *rest)
    return table
