"""Train Gosling from nothing: python -m rookery.models.gosling.train --tokens 80e6 --out models/gosling/runs/main

Two cosines over all tokens; the dialogues grow longer from phase to phase, with all skills in each. Rows are endless:
dialogues follow one another, the state is carried from step to step (gradients are not), and wiped where
a dialogue begins. Two runs with the same arguments on the same machine and thread count see the same data and
take the same steps; a run that was interrupted continues from its last checkpoint.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .corpus.conversation import Document, corpus, far_corpus
from .model import Gosling, Shape, State, save
from .vocabulary import Vocabulary

IGNORED = -100  # no loss on this token


@dataclass(frozen=True, slots=True)
class Phase:
    """Until this share of all tokens: rows of so many tokens a step, dialogues of so many tokens.

    Of the dialogues, `drills` are nothing but exercises and `tools` are short ones with tools. Where `far` is set,
    every second row has dialogues of `longest` to `far` tokens instead; most ask at the end for what was told first.
    """

    until: float
    rows: int
    tokens: int
    shortest: int
    longest: int
    drills: float = 0.0
    tools: float = 0.0
    far: int = 0


PHASES = (
    Phase(0.058, rows=8, tokens=512, shortest=60, longest=512),
    Phase(0.115, rows=2, tokens=2048, shortest=60, longest=2500),
    Phase(0.230, rows=2, tokens=2048, shortest=60, longest=2500, drills=0.15, tools=0.10),
    Phase(0.575, rows=2, tokens=2048, shortest=300, longest=12000, drills=0.12, tools=0.25),
    Phase(1.000, rows=2, tokens=2048, shortest=60, longest=2500, drills=0.35, tools=0.15, far=24000),
)
SMOKE_PHASES = (Phase(1.0, rows=8, tokens=512, shortest=60, longest=400),)

# Until which share of all tokens each cosine lasts, and the part of the peak rate at which it begins.
COSINES = ((0.575, 1.0), (1.0, 0.5))
SMOKE_COSINES = ((1.0, 1.0),)

AVERAGED = 1000  # steps that the average of the weights reaches back, about


def phase_at(phases: tuple[Phase, ...], progress: float) -> int:
    return next((i for i, p in enumerate(phases) if progress < p.until), len(phases) - 1)


class Row:
    """One endless row of the batch: dialogue after dialogue, cut into steps."""

    def __init__(self, seed: str, vocabulary: Vocabulary, phase: Phase, *, far: bool = False) -> None:
        self.rng = Random(seed)
        self.documents: Iterator[Document] = (
            far_corpus(self.rng, vocabulary, phase.longest, phase.far)
            if far
            else corpus(self.rng, vocabulary, phase.shortest, phase.longest, phase.drills, phase.tools)
        )
        self.tokens: list[int] = []
        self.targets: list[int] = []
        self.starts: list[bool] = []

    def take(self, count: int) -> tuple[list[int], list[int], list[bool]]:
        while len(self.tokens) < count:
            document = next(self.documents)
            inputs = document.tokens[:-1]
            self.tokens += inputs
            self.starts += [True] + [False] * (len(inputs) - 1)
            self.targets += [
                token if learned else IGNORED
                for token, learned in zip(document.tokens[1:], document.learned[1:], strict=True)
            ]
        taken = self.tokens[:count], self.targets[:count], self.starts[:count]
        self.tokens, self.targets = self.tokens[count:], self.targets[count:]
        self.starts = self.starts[count:]
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self.rng.getstate(),
            "tokens": self.tokens,
            "targets": self.targets,
            "starts": self.starts,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        version, internal, gauss = saved["rng"]
        self.rng.setstate((version, tuple(internal), gauss))
        self.tokens, self.targets = saved["tokens"], saved["targets"]
        self.starts = saved["starts"]


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens int64 and starts bool [B, T]; the learned places of the flattened batch and their targets, [K]."""

    tokens: Tensor
    starts: Tensor
    places: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(x.to(device) for x in (self.tokens, self.starts, self.places, self.targets)))


def batch(rows: list[Row], count: int) -> Batch:
    """The next step of all rows. The head is a good part of the cost, so it only sees what is learned.

    K is fixed, as compiled code likes it: 9/16 of the tokens, padded; what is beyond (rare) is not learned.
    """
    tokens, targets, starts = zip(*(row.take(count) for row in rows), strict=True)
    flat = torch.tensor(targets).flatten()
    limit = flat.numel() * 9 // 16
    places = (flat != IGNORED).nonzero().squeeze(1)[:limit]
    padding = limit - places.numel()
    return Batch(
        torch.tensor(tokens),
        torch.tensor(starts),
        F.pad(places, (0, padding)),
        F.pad(flat[places], (0, padding), value=IGNORED),
    )


def optimizer_for(model: Gosling, learning_rate: float) -> torch.optim.AdamW:
    """Weight decay on the big matrices only, twice the rate for the decay's base, as officially."""
    decayed, plain, double = [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith("att.w0"):
            double.append(parameter)
        elif name.endswith(".weight") and parameter.dim() == 2:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": 0.1, "scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "scale": 1.0},
        {"params": double, "weight_decay": 0.0, "scale": 2.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), eps=1e-18, fused=True)


def rate_at(cosines: tuple[tuple[float, float], ...], progress: float, step: int, peak: float) -> float:
    """Each cosine falls to a twentieth. The first warms up over 100 steps, a later one over its first hundredth."""
    at = next((i for i, (until, _) in enumerate(cosines) if progress < until), len(cosines) - 1)
    begin = cosines[at - 1][0] if at else 0.0
    until, part = cosines[at]
    within = min((progress - begin) / (until - begin), 1.0)
    cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * within))
    warm = min(1.0, max(0.05, 100 * within) if at else (step + 1) / 100)
    return peak * part * cosine * warm


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.device = torch.device(args.device)
        self.phases = SMOKE_PHASES if args.smoke else PHASES
        self.cosines = SMOKE_COSINES if args.smoke else COSINES
        self.vocabulary = Vocabulary.load()
        self.model = Gosling(Shape(self.vocabulary.size, width=args.width, layers=args.layers)).to(self.device)
        averaging = get_ema_multi_avg_fn(1 - 1 / AVERAGED)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.model, multi_avg_fn=averaging)
        self.optimizer = optimizer_for(self.model, args.learning_rate)
        self.seen = self.step = 0
        self.enter(0)

    def enter(self, phase: int) -> None:
        """Begin a phase: new rows, empty states."""
        self.phase = phase
        spec = self.phases[phase]
        self.rows = [
            Row(f"{self.args.seed}/{phase}/{row}", self.vocabulary, spec, far=spec.far > 0 and row % 2 == 1)
            for row in range(spec.rows)
        ]
        self.state = State.empty(self.model.shape, spec.rows, self.device)

    @property
    def progress(self) -> float:
        return self.seen / float(self.args.tokens)

    def loss(
        self, tokens: Tensor, starts: Tensor, places: Tensor, targets: Tensor, state: State
    ) -> tuple[Tensor, State]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            x, state = self.model.hidden(tokens, starts, state)
            logits = self.model.head(x.flatten(0, 1)[places])
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED), state

    def run(self) -> None:
        compute = torch.compile(self.loss, dynamic=False) if self.args.compile else self.loss
        self.model.train()
        began = reported = saved_at = time.perf_counter()
        seen_at_report, losses = self.seen, []
        while self.progress < 1 and time.perf_counter() - began < self.args.minutes * 60:
            if self.phase != (due := phase_at(self.phases, self.progress)):
                self.enter(due)
            spec = self.phases[self.phase]
            for group in self.optimizer.param_groups:
                group["lr"] = group["scale"] * rate_at(self.cosines, self.progress, self.step, self.args.learning_rate)
            b = batch(self.rows, spec.tokens).to(self.device)
            loss, state = compute(b.tokens, b.starts, b.places, b.targets, self.state)
            self.state = state.detach()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.average.update_parameters(self.model)
            losses.append(loss.detach())
            self.seen += b.tokens.numel()
            self.step += 1

            now = time.perf_counter()
            if now - reported > self.args.report_s:
                speed = (self.seen - seen_at_report) / (now - reported)
                print(
                    f"{self.seen / 1e6:8.3f} Mtok  loss {torch.stack(losses).mean():.4f}  "
                    f"{speed:6.0f} tok/s  phase {self.phase}  {(now - began) / 60:.1f} min",
                    flush=True,
                )
                reported, seen_at_report, losses = now, self.seen, []
            if now - saved_at > self.args.save_s:
                self.save()
                saved_at = now
        self.save()

    def save(self) -> None:
        """Everything a later process needs to go on, and the weights alone, as they are and averaged."""
        out: Path = self.args.out
        out.mkdir(parents=True, exist_ok=True)
        unfinished = out / "checkpoint.unfinished"
        torch.save(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rows": [row.state_dict() for row in self.rows],
                "state": (self.state.time_shift, self.state.channel_shift, self.state.wkv),
                "phase": self.phase,
                "seen": self.seen,
                "step": self.step,
            },
            unfinished,
        )
        unfinished.rename(out / "checkpoint.pt")
        save(self.model, out / "gosling.safetensors", torch.float32)
        averaged = self.average.module
        assert isinstance(averaged, Gosling)
        save(averaged, out / "average.safetensors", torch.float32)

    def resume(self) -> None:
        checkpoint = torch.load(self.args.out / "checkpoint.pt", weights_only=True, map_location=self.device)
        self.model.load_state_dict(checkpoint["model"])
        self.average.load_state_dict(checkpoint["average"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.enter(checkpoint["phase"])
        for row, saved in zip(self.rows, checkpoint["rows"], strict=True):
            row.load_state_dict(saved)
        self.state = State(*checkpoint["state"])
        self.seen, self.step = checkpoint["seen"], checkpoint["step"]


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, default=80e6, help="length of the cosine, in tokens")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop here, to be resumed")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints; resumed if it has one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the chunked form on a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report-s", type=float, default=30)
    parser.add_argument("--save-s", type=float, default=180)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--smoke", action="store_true", help="short dialogues only, for a run of minutes")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    if (args.out / "checkpoint.pt").exists():
        trainer.resume()
    print(f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters", flush=True)
    trainer.run()


if __name__ == "__main__":
    main()
