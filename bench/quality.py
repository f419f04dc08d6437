"""What rounding the large matrices costs: python -m bench.quality --json bench/quality-cpu.json

Each model reads a text with weights as they are (float32), and with weights kept in less: as the native library serves
them, where activations are rounded to 8 bits too, and with the weights alone rounded and everything else in float32.
The latter is done by Rookery's rules and by those of llama.cpp's Q8_0 and Q4_0, on the same matrices: blocks of 32
inputs with one float16 scale each; Q8_0 to the nearest of 127 steps, Q4_0 with the number of largest magnitude at -8.
The head, which int4 keeps in 8 bits, is Q8_0 beside Q4_0.

Texts: for Gosling, held-out dialogues of all its skills, of which the answers' tokens count; for the models of 256
bytes, the beginning of the licence in this repository (a zero byte before each of its bytes for the RWKV-6, which was
trained on such). Figures are means over the tokens that count: divergence in nats from float32's distribution (KL), the
share of tokens whose likeliest one is float32's, and the perplexity of the text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rookery.kernels.cpu.library import Format, Team, shared_team
from rookery.kernels.cpu.packed import quantize_int4, quantize_int8
from rookery.kernels.cpu.rows import HostRows
from rookery.models.gosling.evaluate import SKILLS, WEIGHTS, exams
from rookery.models.gosling.vocabulary import Vocabulary
from rookery.server.bench.machine import machine
from rookery.server.model.checkpoint import Checkpoint
from rookery.server.model.kept import matrices
from rookery.server.model.native import NativeModel
from rookery.server.model.torch_arrays import from_torch, to_torch
from rookery.server.model.weights import read_checkpoint

from .cpu.child import ROOT

BYTE_MODELS = ("tiny-rwkv4-660K", "tiny-rwkv5.2-730K", "tiny-rwkv6-3m", "tiny-rwkv7-834K")
TEXT_BYTES, ROW = 6144, 1024
CASES = 8
"""Answers of each of Gosling's skills."""
LONGEST = 3000
"""Tokens of a dialogue; longer ones are left out."""

Rule = Callable[[Tensor], Tensor]
"""A weight [out, in] float32 to what its rounded form stands for."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One sequence; `counts` are the places whose next token counts."""

    tokens: Tensor
    counts: Tensor


def rounded_int8(weight: Tensor) -> Tensor:
    whole, scale = map(torch.from_numpy, quantize_int8(weight.numpy()))
    return whole * scale.unsqueeze(1)


def rounded_int4(weight: Tensor) -> Tensor:
    whole, multipliers, scale = map(torch.from_numpy, quantize_int4(weight.numpy()))
    return (_blocks(whole) * (multipliers * scale.unsqueeze(1)).unsqueeze(2)).view_as(weight)


def rounded_q8_0(weight: Tensor) -> Tensor:
    blocks = _blocks(weight)
    scale = blocks.abs().amax(2, keepdim=True) / 127
    steps = blocks * torch.where(scale > 0, 1 / scale, 0)
    whole = (steps.abs() + 0.5).floor() * steps.sign()
    return (whole * scale.half().float()).view_as(weight)


def rounded_q4_0(weight: Tensor) -> Tensor:
    blocks = _blocks(weight)
    scale = blocks.gather(2, blocks.abs().argmax(2, keepdim=True)) / -8
    steps = blocks * torch.where(scale != 0, 1 / scale, 0)
    whole = (steps + 8.5).floor().clamp(0, 15) - 8
    return (whole * scale.half().float()).view_as(weight)


def _blocks(weight: Tensor) -> Tensor:
    return weight.view(len(weight), -1, 32)


WEIGHTS_ALONE: Mapping[str, tuple[Rule, Rule]] = {
    "int8, weights alone": (rounded_int8, rounded_int8),
    "Q8_0, weights alone": (rounded_q8_0, rounded_q8_0),
    "int4, weights alone": (rounded_int4, rounded_int8),
    "Q4_0, weights alone": (rounded_q4_0, rounded_q8_0),
}
"""Rules for what int4 keeps in 4 bits, and for what it keeps in 8."""
SERVED = {"bfloat16": Format.BF16, "int8": Format.INT8, "int4": Format.INT4}
FORMS = ("bfloat16", "int8", *list(WEIGHTS_ALONE)[:2], "int4", *list(WEIGHTS_ALONE)[2:])
"""Columns, each beside what it is compared with."""


def with_rounded(checkpoint: Checkpoint, rules: tuple[Rule, Rule]) -> Checkpoint:
    """The checkpoint with its large matrices replaced by what their rounded forms stand for."""
    tensors = dict(checkpoint.tensors)
    for key, tensor in checkpoint.tensors.items():
        kind = matrices(key, tensor, Format.INT4).get(key)
        if kind is not None and kind[1] in (Format.INT4, Format.INT8):
            tensors[key] = from_torch(rules[kind[1] == Format.INT8](to_torch(tensor).float()))
    return replace(checkpoint, tensors=tensors)


def read(checkpoint: Checkpoint, readings: list[Reading], kept: Format, team: Team) -> list[Tensor]:
    """Log-probabilities [places that count, vocabulary] of each reading."""
    model = NativeModel(checkpoint, weights=kept, team=team)
    told = []
    for reading in readings:
        length = len(reading.tokens)
        hidden = model.forward(reading.tokens.numpy(), HostRows.pack([0], [length]), model.new_pool(1))
        told.append(torch.from_numpy(model.logits(hidden[reading.counts.numpy()])).log_softmax(-1))
    return told


def compared(exact: list[Tensor], near: list[Tensor], readings: list[Reading]) -> dict[str, float]:
    """Means over all places; see the module."""
    p, q = torch.cat(exact), torch.cat(near)
    came = torch.cat([reading.tokens[reading.counts + 1] for reading in readings])
    figures = {
        "kl": (p.exp() * (p - q)).sum(-1).mean(),
        "same_top": (p.argmax(-1) == q.argmax(-1)).float().mean(),
        "perplexity": (-q.gather(1, came.unsqueeze(1)).mean()).exp(),
    }
    return {name: float(f"{float(value):.4g}") for name, value in figures.items()}


def gosling_readings() -> list[Reading]:
    vocabulary = Vocabulary.load()
    papers = [exam for skill in SKILLS for exam in exams(skill, vocabulary, 0, CASES) if exam.allowed is None]
    readings = []
    for paper in papers:
        if len(paper.tokens) <= LONGEST:
            places = [place - 1 for answer in paper.answers for place in range(answer.start, answer.stop)]
            readings.append(Reading(torch.tensor(paper.tokens), torch.tensor(places)))
    return readings


def byte_readings(text: bytes) -> list[Reading]:
    rows = (torch.tensor(list(text[start : start + ROW])) for start in range(0, len(text), ROW))
    return [Reading(row, torch.arange(len(row) - 1)) for row in rows]


def measured(path: Path, readings: list[Reading], team: Team) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    exact = read(checkpoint, readings, Format.F32, team)
    figures = {"float32": compared(exact, exact, readings)}
    for form in FORMS:
        if form in SERVED:
            near = read(checkpoint, readings, SERVED[form], team)
        else:
            near = read(with_rounded(checkpoint, WEIGHTS_ALONE[form]), readings, Format.F32, team)
        figures[form] = compared(exact, near, readings)
    return {
        "version": checkpoint.shape.version,
        "parameters": sum(tensor.size for tensor in checkpoint.tensors.values()),
        "tokens": sum(len(reading.counts) for reading in readings),
        "figures": figures,
    }


def tables(report: Mapping[str, Any]) -> str:
    """The report as it stands in docs/precision.md."""
    lines = []
    for name, title in (("kl", "KL from float32"), ("same_top", "same likeliest token"), ("perplexity", "perplexity")):
        forms = (("float32",) if name == "perplexity" else ()) + FORMS
        lines += ["", f"| {title} | " + " | ".join(forms) + " |", "|---|" + "---|" * len(forms)]
        for model, told in report["models"].items():
            values = [told["figures"][form][name] for form in forms]
            cells = [f"{100 * value:.1f} %" if name == "same_top" else f"{value:.4g}" for value in values]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, default=ROOT / "../shared/fixtures", help="of the byte models")
    parser.add_argument("--json", type=Path, help="write the report there")
    arguments = parser.parse_args()
    team = shared_team()
    models = {"gosling": measured(WEIGHTS, gosling_readings(), team)}
    text = (ROOT / "LICENSE").read_bytes()[:TEXT_BYTES]
    for name in BYTE_MODELS:
        seen = b"".join(bytes((0, byte)) for byte in text[: TEXT_BYTES // 2]) if name == "tiny-rwkv6-3m" else text
        models[name] = measured(arguments.fixtures / f"{name}.pth", byte_readings(seen), team)
    report = {"benchmark": "rounded weights against float32", "machine": machine(), "tier": team.tier, "models": models}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(tables(report))


if __name__ == "__main__":
    main()
