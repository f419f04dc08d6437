"""What one choice of a request remembers from token to token, so that the next one can be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rookery.kernels import random
from rookery.kernels.cpu.arrays import Array

from .constraint import Constraint
from .native_row import NativeRow
from .request import SamplingParams, TokenLogprobs

_UNIFORMS = 64
"""Random numbers made at a time for one choice."""


FaultName = Literal["nothing allowed", "not finite"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one row of logits."""

    token_id: int
    """-1 with a `fault`."""
    fault: FaultName | None = None
    logprobs: TokenLogprobs | None = None


class ChoiceSampling:
    """The draw state of one choice of one request: tokens drawn, penalty counts, random numbers, grammar.

    Penalties count generated tokens, not the prompt. Memory is bounded by the number of distinct tokens, whatever
    the length.

    Args:
        params: the request's settings.
        choice: index of the choice; with the seed, it names the random stream.
        constraint: from `Constraints.start`, when `params.grammar` is set.
        drawn: tokens this choice has already drawn (a choice that is resumed goes on in its random stream).
    """

    def __init__(
        self, params: SamplingParams, choice: int = 0, constraint: Constraint | None = None, *, drawn: int = 0
    ) -> None:
        self.params = params
        self.choice = choice
        self.constraint = constraint
        self.drawn = drawn
        self.penalized = params.presence_penalty != 0 or params.frequency_penalty != 0 or params.repetition_penalty != 1
        self.truncated = params.top_k > 0 or params.top_p < 1 or params.min_p > 0 or params.typical_p < 1
        self.native: NativeRow | None = None
        """Made when the native library draws it."""
        self._uncounted = frozenset(params.uncounted_ids)
        self._positions: dict[int, int] = {}
        self._ids = np.empty(16 if self.penalized else 0, dtype=np.int64)
        self._counts = np.empty(16 if self.penalized else 0, dtype=np.float64)
        self._uniforms: list[float] = []
        self._uniforms_start = 0

    @property
    def greedy(self) -> bool:
        """Draws the likeliest token."""
        return self.params.temperature == 0

    @property
    def edited(self) -> bool:
        """This step's logits differ from the model's (beyond `token_limit`)."""
        params = self.params
        return self.constraint is not None or bool(params.logit_bias) or bool(self._positions) or bool(self.banned_ids)

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Stop tokens, while it is too early for them."""
        return self.params.stop_token_ids if self.drawn < self.params.min_tokens else ()

    @property
    def counted(self) -> tuple[Array, Array]:
        """Distinct generated ids [m] int64 and their decayed counts [m] float64; views, until the next `advance`."""
        m = len(self._positions)
        return self._ids[:m], self._counts[:m]

    def uniform(self) -> float:
        """The random number of the next token."""
        offset = self.drawn - self._uniforms_start
        if not 0 <= offset < len(self._uniforms):
            self._uniforms_start, offset = self.drawn, 0
            numbers: list[float] = random.uniform(self.params.seed, self.choice, self.drawn, _UNIFORMS).tolist()
            self._uniforms = numbers
        return self._uniforms[offset]

    def advance(self, token_id: int) -> None:
        """Count a token that was drawn: every count decays, then this one gains 1, unless it is not counted."""
        self.drawn += 1
        if not self.penalized:
            return
        m = len(self._positions)
        if self.params.penalty_decay != 1:
            self._counts[:m] *= self.params.penalty_decay
        gain = 0 if token_id in self._uncounted else 1
        position = self._positions.setdefault(token_id, m)
        if position < m:
            self._counts[position] += gain
            return
        if m == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.empty_like(self._counts)])
        self._ids[m] = token_id
        self._counts[m] = gain
