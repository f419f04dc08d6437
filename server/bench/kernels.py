"""`rookery bench kernels`: each operator alone, and its share of what the device can move and multiply.

Where the operators are Triton kernels, also both forms of the prompts' WKV at several sizes, and from that what
`rookery.kernels.triton.forms` would hold for this device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from rookery.kernels.backend import uses_triton
from rookery.kernels.relu_squared import relu_squared
from rookery.kernels.rows import Rows
from rookery.kernels.sample import Streams, sample
from rookery.kernels.sampling import Truncation
from rookery.kernels.shift_mix import shift_mix
from rookery.kernels.wkv4 import wkv4
from rookery.kernels.wkv6 import wkv6
from rookery.kernels.wkv7 import wkv7
from rookery.kernels.wkv7_heads import HeadWeights, wkv7_heads

from .ledger import Ledger
from .machine import machine
from .roofline import measure_roof, seconds

HEAD_SIZE = 64
FORMS = ((1, 16), (1, 128), (8, 16), (8, 128), (32, 16), (32, 128), (32, 1024), (128, 128))
"""Prompts, and the tokens of each, at which the two forms are timed."""
CLEARLY = 0.9
"""A form has to take at most so much of the other's time to be chosen for it."""


OF_A_LAYER = ("wkv4", "wkv6", "wkv7", "wkv7_heads", "shift_mix", "relu_squared")
SAMPLINGS = {
    "greedy": (0.0, 0, 1.0),
    "temperature": (1.0, 0, 1.0),
    "top-p": (1.0, 0, 0.7),
    "top-k and top-p": (1.0, 50, 0.7),
}
"""Temperature, top-k, top-p."""


@dataclass(frozen=True, slots=True)
class Case:
    """One operator at one size."""

    operator: str
    run: Callable[[], object]
    size_bytes: int
    """Least that has to be moved: inputs and outputs once, states in and out."""


def bytes_of(*tensors: Tensor) -> int:
    """Memory of these tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


def decode_cases(device: torch.device, dtype: torch.dtype, width: int, vocab_size: int, rows: int) -> dict[str, Case]:
    """By name: the operators of a step that decodes so many rows."""
    cases = list(_layer_cases(device, dtype, width, Rows.pack(list(range(rows)), [1] * rows, device)))
    logits = torch.randn(rows, vocab_size, device=device)
    for name, (temperature, top_k, top_p) in SAMPLINGS.items():
        streams = Streams(*(torch.arange(rows, device=device) for _ in range(3)))
        run = partial(sample, logits, _settings(rows, device, temperature, top_k, top_p), streams)
        cases.append(Case(f"sample, {name}", run, logits.nbytes))
    return {case.operator: case for case in cases}


def prompt_cases(device: torch.device, dtype: torch.dtype, width: int, rows: int, tokens: int) -> dict[str, Case]:
    """By name: the operators of a layer on so many prompts."""
    packed = Rows.pack(list(range(rows)), [tokens] * rows, device)
    return {case.operator: case for case in _layer_cases(device, dtype, width, packed)}


def _layer_cases(device: torch.device, dtype: torch.dtype, width: int, rows: Rows) -> Iterator[Case]:
    heads, slots = width // HEAD_SIZE, len(rows.lengths)
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device=device)

    x = normal(rows.tokens, width).to(dtype)
    by_head = x.view(rows.tokens, heads, HEAD_SIZE)
    channel = normal(width)
    of_heads = channel.view(heads, HEAD_SIZE)
    state = torch.zeros(slots, heads, HEAD_SIZE, HEAD_SIZE, device=device)
    shift = torch.zeros(slots, width, dtype=dtype, device=device)
    log_decay = -0.6 * torch.sigmoid(normal(rows.tokens, heads, HEAD_SIZE))
    exact_y = 4 * x.numel()

    sums = torch.zeros(slots, 3, width, device=device)
    decay = -channel.abs()
    yield Case("wkv4", lambda: wkv4(x, x, decay, channel, sums, rows), bytes_of(x, x, sums, sums) + exact_y)
    yield Case(
        "wkv6",
        lambda: wkv6(by_head, by_head, by_head, log_decay, of_heads, state, rows),
        bytes_of(x, x, x, log_decay, state, state) + exact_y,
    )
    a = torch.sigmoid(by_head)
    kk = torch.nn.functional.normalize(by_head, dim=-1)
    yield Case(
        "wkv7",
        lambda: wkv7(by_head, log_decay, by_head, by_head, kk, a, state, rows),
        bytes_of(x, x, x, x, x, log_decay, state, state) + exact_y,
    )
    weights = HeadWeights(channel, channel, channel, channel, channel, of_heads, channel, channel)
    yield Case(
        "wkv7_heads",
        lambda: wkv7_heads(x, x, x, x, x, x, x, x, weights, state, rows),
        9 * x.nbytes + 2 * state.nbytes,
    )
    norm = channel.to(dtype)
    mu = norm.abs().expand(6, 1, width).contiguous()
    yield Case("shift_mix", lambda: shift_mix(x, x, norm, norm, mu, shift, rows), 9 * x.nbytes + 2 * shift.nbytes)
    wide = normal(rows.tokens, 4 * width).to(dtype)
    yield Case("relu_squared", lambda: relu_squared(wide), 2 * wide.nbytes)


def form_cases(
    device: torch.device, dtype: torch.dtype, *, width: int, rows: int, tokens: int
) -> dict[str, Callable[[bool], object]]:
    """By operator: it on so many prompts, by token (True) or in chunks; of Triton's kernels alone."""
    from rookery.kernels.triton.wkv6 import wkv6
    from rookery.kernels.triton.wkv7_heads import wkv7_heads

    heads = width // HEAD_SIZE
    packed = Rows.pack(list(range(rows)), [tokens] * rows, device, decode=0)
    x = torch.randn(packed.tokens, width, device=device).to(dtype)
    by_head = x.view(packed.tokens, heads, HEAD_SIZE)
    channel = torch.randn(width, device=device)
    of_heads = channel.view(heads, HEAD_SIZE)
    log_decay = -torch.sigmoid(by_head.float())
    weights = HeadWeights(channel, channel, channel, channel, channel, of_heads, channel, channel)
    state = torch.zeros(rows, heads, HEAD_SIZE, HEAD_SIZE, device=device)
    run6 = partial(wkv6, by_head, by_head, by_head, log_decay, of_heads, state, packed)
    run7 = partial(wkv7_heads, x, x, x, x, x, x, x, x, weights, state, packed)
    return {
        "wkv6": lambda by_token: run6(by_token=by_token),
        "wkv7_heads": lambda by_token: run7(by_token=by_token),
    }


def _measure_forms(
    ledger: Ledger, device: torch.device, dtype: torch.dtype, *, width: int, prompts: Sequence[tuple[int, int]],
    rounds: int,
) -> None:  # fmt: skip
    """Time both forms of the prompts' WKV."""

    def timed(operator: str, rows: int, tokens: int) -> dict[str, Any]:
        run = form_cases(device, dtype, width=width, rows=rows, tokens=tokens)[operator]
        by_token, in_chunks = (seconds(partial(run, form), device, rounds=rounds, calls=3) for form in (True, False))
        return {"by_token_us": by_token * 1e6, "in_chunks_us": in_chunks * 1e6}

    for rows, tokens in prompts:
        for operator in ("wkv6", "wkv7_heads"):
            pairs = rows * (width // HEAD_SIZE)
            ledger.add(partial(timed, operator, rows, tokens), operator=operator, pairs=pairs, tokens=tokens)


def entries(forms: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """`forms.RECURRENT` as measured, (pairs, tokens): where every operator is clearly faster by token."""
    sizes = {(form["pairs"], form["tokens"]) for form in forms}
    slower = {
        (form["pairs"], form["tokens"])
        for form in forms
        if "error" in form or form["by_token_us"] > CLEARLY * form["in_chunks_us"]
    }
    return sorted(sizes - slower)


def _settings(rows: int, device: torch.device, temperature: float, top_k: int, top_p: float) -> Truncation:
    one = torch.ones(rows, dtype=torch.float64, device=device)
    return Truncation(
        temperature=temperature * one.float(),
        top_k=torch.full((rows,), top_k, device=device),
        top_p=top_p * one,
        min_p=0 * one,
        typical_p=one,
        top_p_first=one < 0,
    )


def measure(
    device: torch.device,
    dtype: torch.dtype,
    *,
    width: int = 2048,
    vocab_size: int = 65536,
    batches: Sequence[int] = (1, 8, 32, 128, 320, 960),
    prompts: Sequence[tuple[int, int]] = ((1, 4096), (8, 1024), (32, 1024)),
    forms: Sequence[tuple[int, int]] = FORMS,
    copy_bytes: int = 2**30,
    side: int = 8192,
    rounds: int = 5,
    file: Path | None = None,
    at_most_s: float | None = None,
) -> dict[str, Any]:
    """Time every operator; the roof is measured in the same run.

    Args:
        file: where the report goes as it grows, and where an earlier one is gone on with (`Ledger`).
        at_most_s: seconds after which no further figure is begun.
    """
    with torch.inference_mode():
        roof = measure_roof(device, dtype, copy_bytes=copy_bytes, side=side, rounds=rounds)
        head = {
            "benchmark": "kernels",
            "device": device.type,
            "kernels": "triton" if uses_triton(device.type) else "torch",
            "dtype": str(dtype).removeprefix("torch."),
            "width": width,
            "machine": machine(),
            "roof": {"gb_s": roof.bytes_per_s / 1e9, "tflop_s": roof.flops_per_s / 1e12},
        }
        ledger = Ledger(head, file, seconds=at_most_s)

        def timed(made: Callable[[], dict[str, Case]], operator: str) -> dict[str, float]:
            case = made()[operator]
            took = seconds(case.run, device, rounds=rounds)
            share = roof.seconds(case.size_bytes) / took
            return {"us": took * 1e6, "gb_s": case.size_bytes / took / 1e9, "share_of_roof": share}

        for rows in batches:
            made = cache(partial(decode_cases, device, dtype, width, vocab_size, rows))
            for operator in (*OF_A_LAYER, *(f"sample, {name}" for name in SAMPLINGS)):
                ledger.add(partial(timed, made, operator), operator=operator, size=f"decode {rows}")
        for rows, tokens in prompts:
            made = cache(partial(prompt_cases, device, dtype, width, rows, tokens))
            for operator in OF_A_LAYER:
                ledger.add(partial(timed, made, operator), operator=operator, size=f"prompt {rows} x {tokens}")
        if uses_triton(device.type):
            _measure_forms(ledger, device, dtype, width=width, prompts=forms, rounds=rounds)
    return ledger.report


def render(report: dict[str, Any]) -> Table:
    """The report as a table."""
    roof = report["roof"]
    title = f"{report['kernels']} on {report['machine']['gpu'] or 'cpu'}, {report['dtype']}, width {report['width']}"
    caption = f"roof of this run: {roof['gb_s']:.0f} GB/s copied, {roof['tflop_s']:.1f} TFLOP/s"
    table = Table("operator", "size", "us", "GB/s", "of the roof", title=title, caption=caption)
    forms = [row for row in report["results"] if "pairs" in row]
    for row in report["results"]:
        size = f"{row['pairs']} pairs x {row['tokens']}" if "pairs" in row else row["size"]
        if "error" in row:
            table.add_row(row["operator"], size, "failed", row["error"].splitlines()[0][:80])
        elif "pairs" in row:
            for name in ("by_token", "in_chunks"):
                table.add_row(f"{row['operator']} {name.replace('_', ' ')}", size, f"{row[name + '_us']:.1f}")
        else:
            share = f"{100 * row['share_of_roof']:.0f} %"
            table.add_row(row["operator"], size, f"{row['us']:.1f}", f"{row['gb_s']:.0f}", share)
    if forms:
        table.caption = f"{caption}\nforms.RECURRENT for this device, as (pairs, tokens): {entries(forms)}"
    if report["left"]:
        table.caption = (
            f"{table.caption}\n{report['left']} figures are left: the same command with the same file goes on"
        )
    return table
