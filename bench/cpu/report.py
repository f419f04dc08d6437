"""The report of one shape: every run as it was measured, medians over them, written after each."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .ratios import ratios


def median(results: Sequence[Any]) -> Any:
    """Medians of equal JSON trees, leaf by leaf."""
    first = results[0]
    if isinstance(first, dict):
        return {key: median([result[key] for result in results]) for key in first}
    if isinstance(first, (int, float)):
        return float(f"{statistics.median(results):.4g}")
    return first


class Report:
    """Runs by part ("engine", "http") and name.

    Args:
        head: what the runs have in common: shape, machine, settings.
        resume: go on with the runs that the file holds, if they were measured in the same way.
    """

    def __init__(self, path: Path, head: dict[str, Any], *, resume: bool) -> None:
        self._path = path
        self.head = head
        self.agreement: dict[str, Any] | None = None
        self.runs: dict[str, dict[str, list[dict[str, Any]]]] = {"engine": {}, "http": {}}
        self.failures: dict[str, str] = {}
        if resume and path.exists():
            old = json.loads(path.read_text())
            if old["settings"] == head["settings"]:
                self.runs, self.agreement = old["runs"], old["agreement"]
            else:
                print(f"{path} was measured with other settings: it is measured anew", flush=True)

    def add(self, part: str, name: str, run: dict[str, Any]) -> None:
        """A run, with the machine's load of the last minute beside it."""
        self.runs[part].setdefault(name, []).append({**run, "load_average": os.getloadavg()[0]})
        self.failures.pop(f"{part} {name}", None)
        self.save()

    def fail(self, part: str, name: str, why: str) -> None:
        """Why there is no run."""
        self.failures[f"{part} {name}"] = why
        self.save()

    @property
    def medians(self) -> dict[str, dict[str, Any]]:
        return {part: {name: median(runs) for name, runs in rows.items()} for part, rows in self.runs.items()}

    def save(self) -> None:
        """Write the whole report; a reader sees the old one or this."""
        medians = self.medians
        whole = {
            **self.head,
            "agreement": self.agreement,
            "failures": self.failures,
            "medians": medians,
            "ratios": [{**line, "ratio": float(f"{line['ratio']:.3g}")} for line in ratios(medians)],
            "runs": self.runs,
        }
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(whole, indent=1) + "\n")
        part.rename(self._path)

    def ratio_lines(self) -> list[str]:
        """The ratios in words, the targets beside them."""
        lines = []
        for line in ratios(self.medians):
            asked = (
                "" if line["target"] is None else f" (asked: {line['target']}, {'met' if line['met'] else 'MISSED'})"
            )
            lines.append(f"{line['figure']}: {line['ours']} / {line['theirs']} = {line['ratio']:.2f}{asked}")
        return lines
