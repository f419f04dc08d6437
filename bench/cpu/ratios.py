"""Ours against theirs at equal bits, and what is asked of the ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

LLAMA_PAIRS = (("bfloat16", "bf16"), ("int8", "Q8_0"), ("int4", "Q4_0"))
ENGINE_TARGETS = {"decode 1": 1.2, "decode 8": 2.0, "decode 32": 2.0, "prefill": 4.0}
HTTP_TARGETS = {"http 32 tok/s": 3.0, "http 8 ttft": 3.0}
OFFICIAL_TARGETS = {"decode 1": 1.2}

Figures = Callable[[dict[str, Any]], Iterator[tuple[str, float]]]
"""The figures of a row of medians; more is better."""


def _engine(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for streams, tok_s in row["decode_tok_s"].items():
        yield f"decode {streams}", tok_s
    yield "prefill", row["prefill_tok_s"]


def _http(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for clients, load in row["clients"].items():
        yield f"http {clients} tok/s", load["tok_s"]
        yield f"http {clients} ttft", 1 / load["ttft_p50_ms"]


def ratios(medians: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One line a figure that both sides have; above 1 ours is better. `target` is null where nothing is asked."""
    engines, servers = medians["engine"], medians["http"]
    pairs: list[tuple[str, str, dict[str, Any], Figures, Mapping[str, float | None]]] = [
        ("rookery float32", "official float32", engines, _engine, OFFICIAL_TARGETS),
        *((f"rookery {a}", f"llama.cpp {b}", engines, _engine, ENGINE_TARGETS) for a, b in LLAMA_PAIRS),
        *((f"rookery {a}", f"llama-server {b}", servers, _http, HTTP_TARGETS) for a, b in LLAMA_PAIRS),
        ("rookery int8", "llama-cpp-python Q8_0", servers, _http, {}),
    ]
    found = []
    for ours, theirs, rows, figures, targets in pairs:
        if ours not in rows or theirs not in rows:
            continue
        their_figures = dict(figures(rows[theirs]))
        for figure, value in figures(rows[ours]):
            if figure in their_figures:
                ratio, target = value / their_figures[figure], targets.get(figure)
                met = None if target is None else ratio >= target
                found.append(
                    {"ours": ours, "theirs": theirs, "figure": figure, "ratio": ratio, "target": target, "met": met}
                )
    return found
