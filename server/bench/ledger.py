"""Figures as they are measured: each is written down at once, and one that is there is not measured again.

A GPU is lent for minutes. A load that does not fit into its memory, a kernel that fails, the end of the time: each
costs its own figure, which then says why, and no other.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

_HEAD = ("roof", "machine", "left")
"""What of a report may differ when its measurement is gone on with."""


class Ledger:
    """A report that grows.

    Args:
        head: what all figures have in common: the benchmark, device, types, machine, roof.
        file: written after each figure; figures it holds of the same head are kept, and not measured again.
        seconds: after so many no further figure is begun.
        clock: in seconds.
    """

    def __init__(
        self,
        head: Mapping[str, Any],
        file: Path | None = None,
        *,
        seconds: float | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._file, self._clock = file, clock
        self._deadline = None if seconds is None else clock() + seconds
        self.report: dict[str, Any] = {**head, "left": 0, "results": []}
        if file is not None and file.exists():
            earlier = json.loads(file.read_text())
            same = json.loads(json.dumps(dict(head)))
            if all(earlier.get(name) == value for name, value in same.items() if name not in _HEAD):
                self.report["results"] = [row for row in earlier["results"] if "error" not in row]

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self._deadline is not None and self._clock() >= self._deadline

    def has(self, **what: str | int) -> bool:
        """Whether this figure is there."""
        return any(what.items() <= row.items() for row in self.report["results"])

    def add(self, run: Callable[[], Mapping[str, Any]], **what: str | int) -> None:
        """Measure one figure, unless it is there or the time is up.

        Args:
            run: gives it; when it raises, what it raised is noted instead.
            what: names it.
        """
        if self.has(**what):
            return
        if self.over:
            self.report["left"] += 1
            return
        try:
            row = {**what, **run()}
        except Exception as error:  # whatever it is costs this figure alone
            row = {**what, "error": f"{type(error).__name__}: {error}"[:2000]}
        if torch.cuda.is_available():  # engines and tracebacks are rings, and hold on to gigabytes there
            gc.collect()
            torch.cuda.empty_cache()
        self.report["results"].append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if self._file is not None:
            _replace(self._file, self.report)


def _replace(file: Path, report: Mapping[str, Any]) -> None:
    """Write the report; whoever reads the file finds this one or the last one, whole."""
    beside = file.with_name(file.name + ".new")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    beside.replace(file)
