"""What constrained decoding costs: the step time of 8 streams with and without a JSON schema.

    python -m rookery.server.bench.constrained [PRESET] [--dtype float32] [--threads N] [--json FILE]

Three kinds of batch take turns in one process, on a random model of a published shape with the World vocabulary: all
streams free, all following a schema, and half of each. The schema's array is endless, so that no stream ends. The
figures are the median step of each kind, and how far the two others are from the free one of the same round: the median
over the rounds, because what else a machine does changes from round to round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rookery.kernels.cpu.threads import set_threads

from ..engine.constraint import Constraints
from ..engine.engine import Engine
from ..engine.request import Request, SamplingParams
from ..model.load import load_model
from ..text.chat_template import Prompt
from ..text.grammar import response_grammar
from ..text.tokenizer import load_tokenizer
from .compare import write_checkpoint
from .machine import machine

STREAMS, STEPS, ROUNDS = 8, 20, 15
ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {}}},
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ITEM, "minItems": 1000}
KINDS = {"free": 0, "half": STREAMS // 2, "constrained": STREAMS}
"""How many of the streams follow the schema."""


def grammar() -> str:
    """The schema as the server hands it to the engine."""
    asked = {"type": "json_schema", "json_schema": {"name": "rows", "schema": SCHEMA, "strict": True}}
    found = response_grammar(asked, Prompt(""))
    assert found is not None
    return found


def measure(engine: Engine, constrained: int, follow: str) -> list[float]:
    """Seconds of each decode step of STREAMS streams, the first so many of which follow the schema."""
    for number in range(STREAMS):
        params = SamplingParams(
            max_tokens=STEPS + 2,
            seed=number,
            token_limit=65530,
            grammar=follow if number < constrained else None,
        )
        engine.submit(Request(id=f"{time.perf_counter_ns()}-{number}", prompt_ids=(number + 1,), sampling=params))
    while engine.scheduler.prefills or engine.stats().waiting:
        engine.step()
    steps = []
    while engine.busy:
        start = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - start)
    assert len(steps) >= STEPS, "a stream ended early"
    return steps[1:STEPS]


def added(medians: list[float], free: list[float]) -> float:
    """Percent that steps take more than the free ones of the same round."""
    return 100 * (statistics.median(one / other for one, other in zip(medians, free, strict=True)) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="rwkv7-0.1b")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    given = parser.parse_args()
    if given.threads:
        set_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="rookery-bench-") as folder:
        path = Path(folder) / f"{given.preset}.pth"
        write_checkpoint(given.preset, path)
        model, _ = load_model(path, dtype=given.dtype, device="cpu")  # the path that serves, native where it is built
    tokenizer = load_tokenizer(None, model_path=Path("none.pth"), vocab_size=model.shape.vocab_size)
    engine = Engine(
        model,
        max_batch=STREAMS,
        max_queue=1,
        prefill_budget=64,
        constraints=Constraints(lambda: tokenizer.llguidance),
    )
    follow = grammar()
    seconds: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    measure(engine, STREAMS, follow)  # warm-up: compiles the grammar, allocates
    for _ in range(ROUNDS):
        for kind, constrained in KINDS.items():
            seconds[kind].append(measure(engine, constrained, follow))
    engine.close()
    medians = {kind: [statistics.median(steps) for steps in rounds] for kind, rounds in seconds.items()}
    result: dict[str, Any] = {
        "preset": given.preset,
        "dtype": given.dtype,
        "streams": STREAMS,
        "rounds": ROUNDS,
        "steps_of_each_kind": sum(map(len, seconds["free"])),
        "median_step_ms": {kind: round(1000 * statistics.median(each), 3) for kind, each in medians.items()},
        "added_percent": {kind: round(added(medians[kind], medians["free"]), 2) for kind in ("half", "constrained")},
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
