"""Logits to token ids, for rows with different settings.

The mathematics is in `rookery.kernels.sampling`. On a processor the native library does it, one call for all rows;
elsewhere, and where it is not built, torch does. A row's draw depends on its own logits, settings, seed, choice and
token index alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rookery.kernels.backend import VARIABLE
from rookery.kernels.cpu.arrays import Array, FloatArray
from rookery.kernels.cpu.library import Team, library, shared_team
from rookery.kernels.cpu.sample import Fault, sample_rows

from .choice_sampling import ChoiceSampling, FaultName, Outcome
from .constraint import ConstraintError
from .native_row import NativeRow
from .request import SamplingParams, TokenLogprobs

__all__ = ["ChoiceSampling", "Draw", "Sampler"]

_SCORED_ROWS = 16
"""Rows of logits worked on at a time when a prompt is scored, which bounds the memory for it."""

_FAULTS: dict[Fault, FaultName] = {Fault.NOTHING_ALLOWED: "nothing allowed", Fault.NOT_FINITE: "not finite"}


@dataclass(frozen=True, slots=True)
class Draw:
    """What one step drew for one choice."""

    token_id: int
    """-1 with an `error`."""
    logprobs: TokenLogprobs | None = None
    ended: bool = False
    """A stop token was drawn, or the grammar is complete."""
    error: str | None = None
    """One sentence for the client: this choice cannot go on; its neighbours can."""
    refused: bool = False
    """What the request asks for is at fault, not the engine."""


class Sampler:
    """Draws the next token of each row of a step. Holds no state: what a choice remembers is in `ChoiceSampling`.

    Args:
        native: whether to use the native library where it is built; False leaves everything to torch.
    """

    def __init__(self, *, native: bool = True) -> None:
        native = native and not os.environ.get(VARIABLE) and library() is not None
        self._team = shared_team() if native else None

    def sample(self, logits: Any, choices: Sequence[ChoiceSampling]) -> list[Draw]:
        """One token for each choice; each choice advances by it.

        Args:
            logits: [n, V] float32 of numpy or torch, read only; several rows may share memory.
            choices: n, all different.

        Returns: n draws in order. A row that cannot be drawn (its grammar failed, nothing is allowed, the logits are
        not finite) has an `error`; the others are unaffected.
        """
        draws: dict[int, Draw] = {}
        masks: dict[int, Array | None] = {}
        for i, choice in enumerate(choices):
            try:
                masks[i] = None if choice.constraint is None else choice.constraint.allowed()
            except ConstraintError as error:
                draws[i] = _refused(error)
        if masks:
            for i, outcome in zip(masks, self._outcomes(logits, choices, masks), strict=True):
                draws[i] = commit(choices[i], outcome)
        for i, draw in draws.items():
            constraint = choices[i].constraint
            if constraint is not None and draw.error is None and not draw.ended:
                constraint.prepare()  # now that all are drawn: the thread that makes masks would hold up the others
        return [draws[i] for i in range(len(choices))]

    def score_prompt(
        self, logits: Any, next_ids: Sequence[int], top: int, *, token_limit: int | None = None
    ) -> list[TokenLogprobs]:
        """Log-probabilities of the tokens that follow.

        Args:
            logits: [T, V] float32 of numpy or torch.
            next_ids: T; the token after each position.
            top: so many of the likeliest at each position.
            token_limit: ids from here on are not listed among the likeliest.
        """
        here = _on_host(logits)
        if here is not None and self._team is not None:
            return _score_natively(self._team, here, next_ids, top, token_limit)
        from . import torch_rows

        scored: list[TokenLogprobs] = []
        for start in range(0, len(next_ids), _SCORED_ROWS):
            stop = start + _SCORED_ROWS
            scored += torch_rows.score(logits[start:stop], next_ids[start:stop], top, token_limit)
        return scored

    def _outcomes(
        self, logits: Any, choices: Sequence[ChoiceSampling], masks: dict[int, Array | None]
    ) -> list[Outcome]:
        """What came of the rows that have a mask or None."""
        here = _on_host(logits)
        if here is not None and self._team is not None:
            return _draw_natively(self._team, here, {i: choices[i] for i in masks}, masks)
        from . import torch_rows

        rows = logits if len(masks) == len(choices) else logits[list(masks)]
        return torch_rows.draw_rows(rows, [choices[i] for i in masks], list(masks.values()))


def _on_host(logits: Any) -> FloatArray | None:
    """The same memory as an array of numpy, where that is possible."""
    if isinstance(logits, np.ndarray):
        return logits
    return logits.numpy() if logits.device.type == "cpu" else None


def _draw_natively(
    team: Team, logits: FloatArray, choices: dict[int, ChoiceSampling], masks: dict[int, Array | None]
) -> list[Outcome]:
    """`torch_rows.draw_rows` for some of the rows of [n, V] logits."""
    first, stride, vocab_size = logits.ctypes.data, logits.strides[0], logits.shape[-1]
    rows = []
    for i, choice in choices.items():
        row = choice.native
        if row is None:
            row = choice.native = NativeRow(choice.params, choice.choice)
        row.place(first + i * stride, vocab_size, drawn=choice.drawn)
        row.edit(masks[i], choice.counted if choice.penalized else None, banned=bool(choice.banned_ids))
        rows.append(row)
    sample_rows(team, [row.struct for row in rows], vocab_size)
    return [_outcome(row, choice.params) for row, choice in zip(rows, choices.values(), strict=True)]


def _outcome(row: NativeRow, params: SamplingParams) -> Outcome:
    """Of a row that has been through the library."""
    if row.struct.fault:
        return Outcome(-1, _FAULTS[Fault(row.struct.fault)])
    return Outcome(row.struct.token, logprobs=None if params.logprobs is None else row.logprobs())


def _score_natively(
    team: Team, logits: FloatArray, ids: Sequence[int], top: int, token_limit: int | None
) -> list[TokenLogprobs]:
    """`torch_rows.score`."""
    params = SamplingParams(max_tokens=0, logprobs=top, token_limit=token_limit)
    rows = [NativeRow(params, 0) for _ in ids]
    for row, logit, token_id in zip(rows, logits, ids, strict=True):
        row.place(logit.ctypes.data, logits.shape[-1], token_id=token_id)
    sample_rows(team, [row.struct for row in rows], logits.shape[-1])
    return [row.logprobs() for row in rows]


def commit(choice: ChoiceSampling, outcome: Outcome) -> Draw:
    """Move the choice on by what came of its row."""
    if outcome.fault == "nothing allowed":
        error = "no token is allowed here by the grammar and the settings together"
        return Draw(-1, error=error, refused=True)
    if outcome.fault is not None:
        return Draw(-1, error="the model's output is not finite")
    token_id = outcome.token_id
    choice.advance(token_id)
    if token_id in choice.params.stop_token_ids:
        return Draw(token_id, outcome.logprobs, ended=True)
    if choice.constraint is None:
        return Draw(token_id, outcome.logprobs)
    try:
        choice.constraint.accept(token_id)
    except ConstraintError as error:
        return _refused(error)
    return Draw(token_id, outcome.logprobs, ended=choice.constraint.complete)


def _refused(error: ConstraintError) -> Draw:
    return Draw(-1, error=str(error), refused=True)
