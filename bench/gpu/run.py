"""Everything that is to be done on a GPU that is lent for minutes, the most important first; see bench/README.md.

    python -m bench.gpu.run --out build/gpu --minutes 9

Correctness comes before speed: the GPU's tests, then the device by itself, operators, number types, whole models. Each
part is a process of its own with a time of its own, so that one that hangs or loses the device costs no other. What it
found is in a file as soon as it is there; the same command again goes on with what is left. Nothing here needs more
than torch, triton, numpy, safetensors, rich and pytest: no package of the server.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
PYTEST = ("-m", "pytest", "-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", "-m", "gpu")
"""The project's settings name plugins that need not be here, and make every warning an error."""
TESTS = {
    "kernels": ("kernels", "", 400.0),
    "goldens": ("models", "golden or official", 240.0),
    "recorded": ("models", "recorded or float16", 240.0),
    "loop": ("models", "not (golden or official or recorded or float16)", 300.0),
}
"""Files, which of their tests, and their time: the first use of each kernel compiles it. A part that is stopped begins
anew, so they are small."""
SPARE_S = 20.0
"""A part that has less than this is left for the next time."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process.

    Attributes:
        arguments: of python; `{file}` stands for the path of `file`, `{minutes}` for the time it has.
        limit_s: after which it is stopped.
    """

    name: str
    arguments: tuple[str, ...]
    limit_s: float
    file: str = ""
    """Of its figures, in the folder of the results; several parts may share one. None for tests, whose success is the
    gate before speeds."""

    @property
    def tests(self) -> bool:
        return not self.file


@dataclass(slots=True)
class Run:
    """What has been done: `run.json` in the folder of the results.

    Attributes:
        done: by part, how it ended.
    """

    folder: Path
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Run:
        """The one in this folder, or a new one."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "run.json"
        return cls(folder, json.loads(file.read_text()) if file.exists() else {})

    def note(self, part: str, outcome: dict[str, Any]) -> None:
        """Write down how a part ended."""
        self.done[part] = outcome
        (self.folder / "run.json").write_text(json.dumps(self.done, indent=1) + "\n")


def parts(device: str, *, tiny: bool = False) -> list[Part]:
    """All of them, in their order; `tiny` sizes show that everything runs."""
    tests = [
        Part(name, (*PYTEST, "--timeout=300", f"tests/test_gpu_{file}.py", "-k", which), limit_s)
        for name, (file, which, limit_s) in TESTS.items()
    ]
    measured = ["environment", "operators", "precision"]
    shapes = ["rwkv7-1.5b", "rwkv7-7.2b", "rwkv7-0.1b", "rwkv7-0.4b", "rwkv7-2.9b"]
    states = [("float32", shapes), ("float16", shapes[:2])]
    models = [(f"{shape}-{kept}", shape, kept) for kept, some in states for shape in some]
    size = ("--tiny",) if tiny else ()
    common = ("--device", device, *size, "--file", "{file}", "--minutes", "{minutes}")
    return [
        *tests,
        *(Part(name, ("-m", "bench.gpu.part", name, *common), 300.0, f"{name}.json") for name in measured),
        *(
            Part(
                name,
                ("-m", "bench.gpu.part", "model", "--shape", shape, "--states", kept, *common),
                300.0,
                f"models-{kept}.json",
            )
            for name, shape, kept in models
        ),
    ]


def run(
    todo: Sequence[Part], folder: Path, minutes: float, *, clock: Callable[[], float] = time.monotonic
) -> dict[str, dict[str, Any]]:
    """Do what is not done yet, as far as the time goes; how each part ended, also of earlier runs."""
    end = clock() + 60 * minutes
    state = Run.of(folder)
    with (folder / "log.txt").open("a") as log:
        for part in todo:
            if state.done.get(part.name, {}).get("ended") == "whole":
                continue
            left = min(part.limit_s, end - clock())
            if left < SPARE_S:
                print(f"{part.name}: left for the next run", flush=True)
                continue
            started = clock()
            outcome = _child(part, folder, left, log)
            state.note(part.name, {**outcome, "seconds": round(clock() - started, 1)})
            print(f"{part.name}: {_sentence(state.done[part.name])}", flush=True)
    return state.done


def _child(part: Part, folder: Path, seconds: float, log: TextIO) -> dict[str, Any]:
    """Run a part; how it ended."""
    file = folder / part.file
    words = {"{file}": str(file), "{minutes}": str(max(seconds - SPARE_S / 2, 1) / 60)}
    command = [sys.executable, *(words.get(word, word) for word in part.arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    log.write(f"\n=== {part.name}\n")
    log.flush()
    at = log.tell()
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        code: int | None = child.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        code = None
    with (folder / "log.txt").open() as written:
        written.seek(at)
        said = written.read()
    if code is None:
        return {"ended": "stopped", "said": said[-1500:]}
    if part.tests:
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", said[-300:])}
        found = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        return {"ended": "whole" if code == 0 else "failed", **counts, "tests": found[:40]}
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"left": 1, "results": []}
    errors = sum("error" in row for row in report["results"])
    ended = "failed" if code or errors else "left" if report["left"] else "whole"
    outcome = {"ended": ended, "figures": len(report["results"]), "errors": errors, "left": report["left"]}
    return {**outcome, "said": said[-1500:]} if code else outcome


def gate(done: dict[str, dict[str, Any]], todo: Sequence[Part]) -> str:
    """What may be said of speeds: nothing, before all tests have passed on this machine."""
    tests = [done.get(part.name, {}) for part in todo if part.tests]
    if any(one.get("failed") or one.get("error") for one in tests):
        return "failed"
    return "passed" if all(one.get("ended") == "whole" and one.get("passed") for one in tests) else "not run"


def _sentence(outcome: dict[str, Any]) -> str:
    said = outcome.get("said", "")
    words = [f"{value} {name}" for name, value in outcome.items() if isinstance(value, int) and value]
    return f"{outcome['ended']}, {', '.join(words)} in {outcome['seconds']} s" + (f"\n{said}" if said else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu", help="folder of the results; gone on with")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after so many")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that all of it runs")
    parser.add_argument("--only", default="", help="a regular expression over the names of the parts")
    asked = parser.parse_args(arguments)
    todo = [part for part in parts(asked.device, tiny=asked.tiny) if re.search(asked.only, part.name)]
    done = run(todo, asked.out, asked.minutes)
    print(f"gate: {gate(done, todo)}")
    for part in todo:
        print(f"{part.name:24}{done.get(part.name, {}).get('ended', 'not run')}")
    return 0 if all(done.get(part.name, {}).get("ended") == "whole" for part in todo) else 1


if __name__ == "__main__":
    sys.exit(main())
