"""Reports that grow: a figure is written as soon as it is there, fails alone, and is not measured twice."""

from __future__ import annotations

import json
from pathlib import Path

from rookery.server.bench.ledger import Ledger

HEAD = {"benchmark": "b", "dtype": "bfloat16", "machine": {"memory_gb": 1.0}, "roof": 3.0}


def no_memory() -> dict[str, float]:
    raise MemoryError("no 40 GB are free")


def test_each_figure_is_written_at_once_and_fails_alone(tmp_path: Path) -> None:
    ledger = Ledger(HEAD, tmp_path / "f.json")
    ledger.add(lambda: {"us": 1.5}, operator="a", size="1")
    assert json.loads((tmp_path / "f.json").read_text())["results"] == [{"operator": "a", "size": "1", "us": 1.5}]
    ledger.add(no_memory, operator="a", size="2")
    ledger.add(lambda: {"us": 2.5}, operator="b", size="1")
    written = json.loads((tmp_path / "f.json").read_text())
    assert written == ledger.report
    assert [row.get("error") for row in written["results"]] == [None, "MemoryError: no 40 GB are free", None]


def test_a_run_is_gone_on_with_where_it_failed_or_ended(tmp_path: Path) -> None:
    now = [0.0]
    first = Ledger(HEAD, tmp_path / "f.json", seconds=10, clock=lambda: now[0])
    first.add(lambda: {"us": 1.0}, size="1")
    first.add(no_memory, size="2")
    now[0] = 10.0
    first.add(lambda: {"us": 3.0}, size="3")
    assert first.report["left"] == 1

    measured: list[str] = []

    def again(size: str) -> dict[str, float]:
        measured.append(size)
        return {"us": 9.0}

    second = Ledger({**HEAD, "roof": 2.9}, tmp_path / "f.json")
    for size in ("1", "2", "3"):
        second.add(lambda size=size: again(size), size=size)  # type: ignore[misc]
    assert measured == ["2", "3"] and second.report["left"] == 0
    assert [row["us"] for row in second.report["results"]] == [1.0, 9.0, 9.0]


def test_figures_of_another_kind_are_not_mixed_with_these(tmp_path: Path) -> None:
    Ledger(HEAD, tmp_path / "f.json").add(lambda: {"us": 1.0}, size="1")
    assert Ledger({**HEAD, "dtype": "float16"}, tmp_path / "f.json").report["results"] == []
    assert Ledger(HEAD, tmp_path / "f.json").has(size="1")
