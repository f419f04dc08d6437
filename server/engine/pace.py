"""How many prompt tokens a step may compute, so that a step takes about as long as it should."""

from __future__ import annotations

from .scheduler import BLOCK

_START = 64
"""Tokens of the first steps, whose cost is not known yet."""


class Pace:
    """Follows what steps really take: halves the budget at most when a step was too long, doubles it at most when a
    full one was short. What decoding takes beside the prompts is thereby counted too.

    Args:
        most: tokens at most.
        target_s: what a step should take, in seconds; None always gives `most`.
    """

    def __init__(self, most: int, target_s: float | None = None) -> None:
        self._most = most
        self._least = min(BLOCK, most)
        self._target_s = target_s
        self.tokens = most if target_s is None else min(most, _START)
        """The budget of the next step."""

    def took(self, tokens: int, seconds: float) -> None:
        """A step computed so many prompt tokens, beside whatever decoded."""
        if self._target_s is None or not tokens:
            return
        ratio = min(2.0, max(0.5, self._target_s / seconds)) if seconds > 0 else 2.0
        if ratio >= 1 and tokens <= self.tokens - BLOCK:
            return  # it could have been longer: nothing is known of a full one
        wanted = int((self.tokens if ratio >= 1 else tokens) * ratio) // BLOCK * BLOCK
        self.tokens = max(self._least, min(self._most, wanted))
