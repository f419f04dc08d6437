"""`rookery bench precision`: what number types cost WKV, against float64, over a long text.

The inputs are seeded random numbers of the kind models give: decays from a few tokens to some hundred, removal keys of
length 1. The error at n tokens is the largest among the last `WINDOW` outputs up to there, relative to the largest of
those outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from rookery.kernels.backend import uses_triton
from rookery.kernels.rows import Rows
from rookery.kernels.wkv4 import EMPTY_MAX, wkv4, wkv4_reference
from rookery.kernels.wkv5 import wkv5, wkv5_reference
from rookery.kernels.wkv6 import wkv6, wkv6_reference
from rookery.kernels.wkv7 import wkv7, wkv7_reference
from rookery.kernels.wkv7_heads import LONGEST_STEP

from .machine import machine

HEADS, HEAD_SIZE = 2, 64
WINDOW = 512
VERSIONS = ("4", "5.2", "6", "7")
TYPES = (
    (torch.float32, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
)
"""Of activations and of states between steps."""


@dataclass(frozen=True, slots=True)
class Text:
    """One operator, and its inputs in float64."""

    operator: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    rounded: frozenset[int]
    """Which inputs a model gives in its own dtype; the others are float32."""
    by_token: frozenset[int]
    """Which inputs have a token axis."""
    state: Tensor
    """[1, ...], before the first token."""


def text_of(version: str, tokens: int) -> Text:
    """Seeded inputs of this many tokens."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=random, dtype=torch.float64)

    channel = (HEADS, HEAD_SIZE)
    width = HEADS * HEAD_SIZE
    state = torch.zeros(1, *channel, HEAD_SIZE, dtype=torch.float64)
    if version == "4":
        state = torch.zeros(1, 3, width, dtype=torch.float64)
        state[:, 2] = EMPTY_MAX
        inputs = normal(tokens, width), normal(tokens, width), -torch.exp(uniform(-5, 2, width)), normal(width)
        return Text(wkv4, wkv4_reference, inputs, frozenset({0, 1}), frozenset({0, 1}), state)
    r, k, v = (normal(tokens, *channel) for _ in range(3))
    k = 0.5 * k
    if version.startswith("5"):
        inputs5 = r, k, v, -torch.exp(uniform(-5, 0, *channel)), 0.4 * normal(*channel)
        return Text(wkv5, wkv5_reference, inputs5, frozenset({0, 1, 2}), frozenset({0, 1, 2}), state)
    if version == "6":
        log_decay = -torch.exp(uniform(-5, 0, *channel) + 0.7 * normal(tokens, *channel))
        inputs6 = r, k, v, log_decay, 0.4 * normal(*channel)
        return Text(wkv6, wkv6_reference, inputs6, frozenset({0, 1, 2}), frozenset({0, 1, 2, 3}), state)
    log_decay = -LONGEST_STEP * torch.sigmoid(uniform(-6, -0.5, *channel) + normal(tokens, *channel))
    kk = F.normalize(normal(tokens, *channel), dim=-1)
    inputs7 = r, log_decay, k, v, kk, torch.sigmoid(normal(tokens, *channel))
    return Text(wkv7, wkv7_reference, inputs7, frozenset({0, 2, 3}), frozenset(range(6)), state)


@torch.inference_mode()
def measure(
    device: torch.device, *, tokens: int = 8192, prompt: int = 512, versions: Sequence[str] = VERSIONS
) -> dict[str, Any]:
    """Errors of each version and type, decoded token by token and as prompts of `prompt` tokens a step."""
    marks = sorted({min(mark, tokens) for mark in (1024, 4096, tokens)})
    results = []
    for version in versions:
        text = text_of(version, tokens)
        exact = text.reference(*text.inputs, text.state.clone(), Rows.pack([0], [tokens]))
        for activations, states in TYPES:
            if version == "4" and states != torch.float32:
                continue  # its exponents do not fit
            for form, step in (("decode", 1), ("prompt", prompt)):
                y = _computed(text, step, activations, states, device).double()
                results.append(
                    {
                        "version": version,
                        "form": form,
                        "activations": str(activations).removeprefix("torch."),
                        "states": str(states).removeprefix("torch."),
                        "error": {str(mark): _error(y, exact, mark) for mark in marks},
                    }
                )
    return {
        "benchmark": "precision of WKV",
        "device": device.type,
        "kernels": "triton" if uses_triton(device.type) else "torch",
        "tokens": tokens,
        "prompt": prompt,
        "machine": machine(),
        "results": results,
    }


def _computed(text: Text, step: int, activations: torch.dtype, states: torch.dtype, device: torch.device) -> Tensor:
    """Outputs of the whole text, `step` tokens at a time."""
    inputs = [x.to(device, activations if i in text.rounded else torch.float32) for i, x in enumerate(text.inputs)]
    state = text.state.to(device, states)
    tokens = len(inputs[0])
    pieces = []
    for start in range(0, tokens, step):
        stop = min(start + step, tokens)
        rows = Rows.pack([0], [stop - start], device, positions=[start], decode=int(step == 1))
        part = (x[start:stop] if i in text.by_token else x for i, x in enumerate(inputs))
        pieces.append(text.operator(*part, state, rows))
    return torch.cat(pieces).cpu()


def _error(y: Tensor, exact: Tensor, mark: int) -> float:
    window = slice(max(mark - WINDOW, 0), mark)
    return float((y[window] - exact[window]).abs().max() / exact[window].abs().max())


def render(report: dict[str, Any]) -> Table:
    """The report as a table."""
    marks = list(report["results"][0]["error"])
    title = f"largest error of WKV against float64, {report['kernels']} on {report['machine']['gpu'] or 'cpu'}"
    table = Table("version", "form", "activations", "states", *(f"at {mark}" for mark in marks), title=title)
    for row in report["results"]:
        errors = (f"{row['error'][mark]:.1e}" for mark in marks)
        table.add_row(row["version"], row["form"], row["activations"], row["states"], *errors)
    return table
