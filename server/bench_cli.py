"""`rookery bench …`: what is measured, of which shape, and where the report goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from .errors import StartupError

app = App(
    name="bench", help="Measure: `bench engine` without HTTP, `bench kernels` each operator, `bench serve` a server."
)


@app.command(name="engine")
def bench_engine(
    *,
    preset: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    slot_dtype: Literal["float32", "float16"] = "float32",
    dtypes: tuple[Literal["float32", "bfloat16", "float16", "int8", "int4"], ...] = ("float32", "bfloat16", "int8"),
    streams: tuple[int, ...] = (1, 8, 32),
    peers: tuple[Literal["rookery", "official"], ...] = ("rookery", "official"),
    rounds: int = 3,
    decode_tokens: int = 32,
    prefill_tokens: int = 512,
    threads: int = os.cpu_count() or 1,
    minutes: float | None = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Decode and prefill speed without HTTP, beside the official `rwkv` package in the same run.

    On a GPU: beside what it can move and multiply at most, measured in the same run, for batches of 1 to 960.

    Args:
        preset: A published shape with seeded random weights; by default rwkv7-0.1b. For a GPU also several with commas;
            by default RWKV-7 from 0.1b to 7.2b.
        device: With cuda, only preset, the last of the dtypes that is a float, rounds, slot_dtype, minutes and the JSON
            file are used.
        slot_dtype: Type of WKV states between steps, on a GPU.
        dtypes: Weight types; int8 and int4 are matrices quantised at load, on a CPU.
        streams: Sequences decoded together.
        peers: What to measure, in turn.
        rounds: Measurements of each; medians are reported.
        decode_tokens: Tokens decoded per stream.
        prefill_tokens: Prompt length of the prefill measurement.
        threads: Compute threads of every peer.
        minutes: On a GPU, begin no figure after so many; the same command again measures those that are left.
        json_file: Also write the report there; on a GPU after each figure, and figures it holds are not measured again.
    """
    if device == "cuda":
        import torch

        from .bench import device as on_device

        floats = [dtype for dtype in dtypes if not dtype.startswith("int")]
        if not floats:
            raise StartupError("a GPU has no quantised matrices", "give --dtypes bfloat16 or float16", exit_code=2)
        report = on_device.measure(
            preset.split(",") if preset else on_device.SHAPES,
            device,
            getattr(torch, floats[-1]),
            wkv_dtype=getattr(torch, slot_dtype),
            rounds=rounds,
            file=json_file,
            at_most_s=None if minutes is None else 60 * minutes,
        )
        return _show(report, on_device.render(report), json_file)
    from .bench.compare import compare, render

    report = compare(
        preset or "rwkv7-0.1b",
        dtypes=dtypes,
        streams=streams,
        peers=peers,
        rounds=rounds,
        decode_tokens=decode_tokens,
        prefill_tokens=prefill_tokens,
        threads=threads,
    )
    return _show(report, render(report), json_file)


@app.command(name="kernels")
def bench_kernels(
    *,
    device: Literal["cpu", "cuda"] = "cuda",
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    width: int = 2048,
    batches: tuple[int, ...] = (1, 8, 32, 128, 320, 960),
    prompts: tuple[str, ...] = ("1x4096", "8x1024", "32x1024"),
    rounds: int = 5,
    minutes: float | None = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Speed of each operator alone, as a share of what the device can move, measured in the same run.

    Args:
        device: Where to measure.
        dtype: Type of the activations; states and decays are float32.
        width: Channels; heads have 64.
        batches: Sequences decoded together.
        prompts: Prompts and the tokens of each.
        rounds: Measurements of each; medians are reported.
        minutes: Begin no figure after so many; the same command again measures those that are left.
        json_file: Also write the report there, after each figure; figures it holds are not measured again.
    """
    import torch

    from .bench import kernels
    from .model.load import resolve_device

    report = kernels.measure(
        torch.device(resolve_device(device)),
        getattr(torch, dtype),
        width=width,
        batches=batches,
        prompts=[_load(prompt) for prompt in prompts],
        rounds=rounds,
        file=json_file,
        at_most_s=None if minutes is None else 60 * minutes,
    )
    return _show(report, kernels.render(report), json_file)


@app.command(name="precision")
def bench_precision(
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    tokens: int = 8192,
    prompt: int = 512,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """What number types cost WKV: the error of every version against float64, over a long text.

    Args:
        device: Whose operators are measured.
        tokens: Length of the text.
        prompt: Tokens a step where it is computed as prompts.
        json_file: Also write the report there.
    """
    import torch

    from .bench import precision
    from .model.load import resolve_device

    report = precision.measure(torch.device(resolve_device(device)), tokens=tokens, prompt=prompt)
    return _show(report, precision.render(report), json_file)


def _load(prompt: str) -> tuple[int, int]:
    """ "8x1024" to (8, 1024)."""
    rows, _, tokens = prompt.partition("x")
    if not rows.isdecimal() or not tokens.isdecimal() or not int(rows) * int(tokens):
        raise StartupError(f"{prompt!r} names no prompts", "write them as 8x1024: prompts x tokens", exit_code=2)
    return int(rows), int(tokens)


def _show(report: dict[str, Any], table: Table, json_file: Path | None) -> int:
    """Print a report, and write it where asked to."""
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    return 0


@app.command(name="checkpoint")
def bench_checkpoint(preset: str, target: Path, /) -> int:
    """Write a checkpoint of a published shape with seeded random weights, to measure where no weights can be had.

    Args:
        preset: Such as rwkv7-0.1b.
        target: The .pth file to write, in bfloat16.
    """
    from .bench.compare import write_checkpoint

    write_checkpoint(preset, target)
    return 0


@app.command(name="serve")
def bench_serve(
    *,
    base_url: str = "http://127.0.0.1:8000",
    streams: tuple[int, ...] = (1, 8, 32),
    requests_per_stream: int = 4,
    prompt_tokens: int = 64,
    output_tokens: int = 64,
    model: str | None = None,
    api_key: Annotated[str | None, Parameter(env_var="OPENAI_API_KEY")] = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Load a running server: TTFT, ITL and E2E percentiles, tokens per second.

    Args:
        base_url: Any server with /v1/completions.
        streams: Concurrent clients, one report each.
        requests_per_stream: Requests each client sends, one after the other.
        prompt_tokens: Random prompt tokens a request, all different.
        output_tokens: Completion tokens a request.
        model: Default: the first of /v1/models.
        api_key: Sent as a bearer token.
        json_file: Also write the reports there.
    """
    import asyncio

    from rookery.clients.bench import Load, render, run

    loads = [
        Load(base_url, n, n * requests_per_stream, prompt_tokens, output_tokens, model, api_key, seed=n)
        for n in streams
    ]
    reports = [asyncio.run(run(load)) for load in loads]
    Console().print(render(reports))
    if json_file is not None:
        from .bench.machine import machine

        report = {"benchmark": "serve", "machine": machine(), "results": reports}
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(report["failed"] for report in reports) else 0
