"""Which form computes the prompts of a step: chunks as products of matrices, or the recurrence, token after token.

Decode rows always take the recurrence. For prompts it is the simpler kernel: no buffers, one launch. It may win where
rows are short, or so many that they occupy the device by themselves; `rookery bench kernels` times both and prints the
entries that would have won on that device.

Chunks lie on an absolute grid, so their results do not depend on where a prompt was cut. The recurrence rounds
otherwise: with an entry here, the last bits of a prompt's outputs depend on the step it is computed in. So there is
none until a measurement shows that one is worth that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """Steps whose prompts the recurrence takes."""

    pairs: int
    """At least so many pairs of a prompt and a head."""
    tokens: int
    """The longest of its prompts has at most so many tokens."""


RECURRENT: tuple[Entry, ...] = ()


def recurs(pairs: int, tokens: int, entries: tuple[Entry, ...] | None = None) -> bool:
    """Whether prompts of at most `tokens` tokens, in so many pairs, take the recurrence."""
    return any(pairs >= entry.pairs and tokens <= entry.tokens for entry in (RECURRENT if entries is None else entries))
