"""The run for a lent GPU, without one: every part at small sizes, its time, its resumption, and what the gate says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import part, run
from bench.gpu.run import Part, parts
from rookery.server.bench import device
from rookery.server.model.synthetic import PRESETS

from .devices import Eager, Late

ROOT = Path(__file__).parent.parent
ABSENT = ["cyclopts", "llguidance", "msgspec", "zmq", "orjson", "fastapi", "starlette", "uvicorn", "pydantic", "rwkv"]
"""What a machine with a GPU need not have."""


def measured(name: str, folder: Path, *more: str) -> dict[str, object]:
    file = folder / f"{name}.json"
    arguments = [name, "--device", "cpu", "--tiny", "--file", str(file), "--minutes", "5", *more]
    assert part.main(arguments) == 0
    report: dict[str, object] = json.loads(file.read_text())
    return report


@pytest.mark.parametrize("name", ["environment", "operators", "precision", "model"])
def test_every_part_measures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "rwkv7-1.5b", PRESETS["rwkv7-1.5b"])  # which tiny sizes replace
    report = measured(name, tmp_path)
    results = report["results"]
    assert isinstance(results, list) and len(results) >= 3
    assert not [row for row in results if "error" in row] and report["left"] == 0


def test_models_are_measured_as_a_device_that_records_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "rwkv7-1.5b", PRESETS["rwkv7-1.5b"])
    monkeypatch.setattr(device, "recordable", lambda where: True)
    monkeypatch.setattr(device, "CudaRecorder", Eager)
    monkeypatch.setattr(device, "CudaDevice", lambda where, rows: Late())
    results = measured("model", tmp_path)["results"]
    assert isinstance(results, list) and not [row for row in results if "error" in row]


def python(name: str, code: str, limit_s: float = 60.0, *, tests: bool = False) -> Part:
    return Part(name, ("-c", code, "{file}", "{minutes}"), limit_s, "" if tests else f"{name}.json")


WRITES = "import json, sys; json.dump({'left': LEFT, 'results': [{'us': 1}]}, open(sys.argv[1], 'w'))"


def test_what_fails_or_hangs_costs_no_other_and_is_done_again(tmp_path: Path) -> None:
    now = [0.0]
    todo = [
        python("whole", WRITES.replace("LEFT", "0")),
        python("left", WRITES.replace("LEFT", "3")),
        python("broken", "raise SystemExit('no such kernel')"),
        Part("hangs", ("-c", "import time; time.sleep(60)"), 21.0, "hangs.json"),
    ]
    todo[3] = Part("hangs", todo[3].arguments, 0.2, "hangs.json")
    spare, run.SPARE_S = run.SPARE_S, 0.1
    try:
        done = run.run(todo, tmp_path, 1.0, clock=lambda: now[0])
    finally:
        run.SPARE_S = spare
    assert {name: one["ended"] for name, one in done.items()} == {
        "whole": "whole", "left": "left", "broken": "failed", "hangs": "stopped",
    }  # fmt: skip
    assert "no such kernel" in done["broken"]["said"]
    (tmp_path / "whole.json").unlink()
    again = run.run([todo[0], python("broken", WRITES.replace("LEFT", "0"))], tmp_path, 1.0)
    assert again["broken"]["ended"] == "whole" and not (tmp_path / "whole.json").exists()
    assert run.run([python("late", "")], tmp_path, 0.1).keys() == done.keys()


def test_speeds_are_claimed_behind_passed_tests_alone() -> None:
    todo = [Part("kernels", (), 1.0), Part("models", (), 1.0), Part("operators", (), 1.0, "f.json")]
    passed = {"ended": "whole", "passed": 9}
    assert run.gate({"kernels": passed, "models": passed}, todo) == "passed"
    assert run.gate({"kernels": passed, "models": {"ended": "whole", "skipped": 9}}, todo) == "not run"
    assert run.gate({"kernels": passed}, todo) == "not run"
    assert run.gate({"kernels": {"ended": "failed", "failed": 1, "passed": 8}}, todo) == "failed"


def test_results_are_few_files() -> None:
    """As many as are brought back from a machine that is lent."""
    assert len({part.file for part in parts("cuda") if part.file} | {"run.json", "log.txt"}) <= 8


def without(folder: Path) -> dict[str, str]:
    """An environment in which what a machine with a GPU need not have cannot be imported."""
    for name in ABSENT:
        (folder / f"{name}.py").write_text("raise ImportError('not on this machine')\n")
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}


def test_nothing_of_the_server_is_needed(tmp_path: Path) -> None:
    code = "import bench.gpu.part, tests.test_gpu_kernels, tests.test_gpu_models, rookery.server.engine.warm_up"
    done = subprocess.run([sys.executable, "-c", code], env=without(tmp_path), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton has no build for this system")
def test_the_command_does_all_of_it_and_then_has_nothing_left_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu.run", "--device", "cpu", "--tiny", "--out", str(tmp_path / "out")]
    first = subprocess.run(command, cwd=ROOT, env=without(tmp_path), capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "gate: not run" in first.stdout  # its tests skip without a GPU
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0 and "operators: " not in second.stdout
