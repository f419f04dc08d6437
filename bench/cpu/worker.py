"""One engine in a process of its own, told what to measure by lines of JSON.

    python -m bench.cpu.worker rookery '{"path": "…", "kept": "int8", "threads": 2, "streams": 32}'

Answers leave by the standard output the process was started with; what a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from typing import Any, Protocol

import numpy as np

WARM_STEPS, LEAST_STEPS = 2, 4


class Engine(Protocol):
    """What is measured. Prompts are token ids; every choice is greedy."""

    about: dict[str, Any]
    """What the engine says of itself: versions, the instructions it uses."""

    def begin(self, streams: int, steps: int) -> None:
        """Start so many streams of one prompt token each, which `steps` steps will not end."""

    def step(self) -> None:
        """Draw one token in every stream."""

    def end(self) -> None:
        """Drop the streams."""

    def prefill(self, token_ids: list[int]) -> None:
        """Compute a prompt and draw its first token."""

    def greedy(self, token_ids: list[int], count: int) -> list[int]:
        """The next tokens after a prompt."""

    def logits(self, token_ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[tokens, vocabulary] float32, computed as one prompt."""


def decode(engine: Engine, streams: int, steps: int, seconds: float) -> float:
    """Tokens a second over all streams: of `steps` steps, or of as many as begin within `seconds`."""
    engine.begin(streams, WARM_STEPS + steps)
    for _ in range(WARM_STEPS):
        engine.step()
    start, done = time.perf_counter(), 0
    while done < steps and (done < LEAST_STEPS or time.perf_counter() - start < seconds):
        engine.step()
        done += 1
    took = time.perf_counter() - start
    engine.end()
    return streams * done / took


def prefill(engine: Engine, tokens: int) -> float:
    """Prompt tokens a second."""
    token_ids = [1 + (7 * i) % 60000 for i in range(tokens)]
    start = time.perf_counter()
    engine.prefill(token_ids)
    return tokens / (time.perf_counter() - start)


def memory_mb() -> dict[str, float]:
    """Resident size now and at its largest, in MB of 10^6 bytes; `getrusage` would tell that of whoever started it."""
    with open("/proc/self/status") as status:
        sizes = dict(line.split(":") for line in status)
    return {
        name: int(sizes[key].split()[0]) * 1024 / 1e6 for name, key in (("rss_mb", "VmRSS"), ("peak_rss_mb", "VmHWM"))
    }


def answer(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    match asked:
        case {"do": "decode", "streams": streams, "steps": steps, "seconds": seconds}:
            return {"tok_s": decode(engine, streams, steps, seconds)}
        case {"do": "prefill", "tokens": tokens}:
            return {"tok_s": prefill(engine, tokens)}
        case {"do": "memory"}:
            return memory_mb()
        case {"do": "greedy", "token_ids": token_ids, "count": count}:
            return {"token_ids": engine.greedy(token_ids, count)}
        case {"do": "logits", "token_ids": token_ids, "file": file}:
            np.save(file, engine.logits(token_ids))
            return {}
    raise ValueError(f"unknown question {asked}")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**told: Any) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    start = time.perf_counter()
    engine: Engine = import_module(f"bench.cpu.{sys.argv[1]}_engine").load(**json.loads(sys.argv[2]))
    say(load_s=time.perf_counter() - start, about=engine.about, **memory_mb())
    for line in sys.stdin:
        say(**answer(engine, json.loads(line)))


if __name__ == "__main__":
    main()
