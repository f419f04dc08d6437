"""How the tokens of a step are packed, for the native library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from .arrays import Array


@dataclass(frozen=True, slots=True)
class HostRows:
    """As `rookery.kernels.rows.Rows` has them, but for what only kernels that work in chunks need.

    Shapes: slots [R] and starts [R + 1], int64; lengths on their own.
    """

    slots: Array
    starts: Array
    lengths: tuple[int, ...]

    @classmethod
    def pack(cls, slots: Sequence[int], lengths: Sequence[int]) -> HostRows:
        """Rows in the order given."""
        return cls(np.array(slots, np.int64), np.array([0, *accumulate(lengths)], np.int64), tuple(lengths))

    @property
    def tokens(self) -> int:
        """N, the number of packed tokens."""
        return sum(self.lengths)
