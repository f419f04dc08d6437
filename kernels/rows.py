"""How the tokens of a step are packed: which belong to which row, and where each row's state lives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one step, packed one after the other: decode rows (one token each) first, then prefill rows.

    Row i has the tokens `starts[i] : starts[i + 1]` of the packed axis N and the state in slot `slots[i]`.
    A row may be empty. Slot -1 stands for padding: its state is read as zero and never written.

    Shapes: slots [R] int64 and starts [R + 1] int64 on the device; lengths are the same row sizes on the host.
    """

    slots: Tensor
    starts: Tensor
    lengths: tuple[int, ...]
    decode: int
    """So many rows at the front have exactly one token."""

    @classmethod
    def pack(cls, slots: list[int], lengths: list[int], device: torch.device | str = "cpu") -> Rows:
        """Rows in the order given; those of one token at the front count as decode rows."""
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        decode = next((i for i, length in enumerate(lengths) if length != 1), len(lengths))
        return cls(
            slots=torch.tensor(slots, dtype=torch.int64, device=device),
            starts=torch.tensor(starts, dtype=torch.int64, device=device),
            lengths=tuple(lengths),
            decode=decode,
        )

    @property
    def tokens(self) -> int:
        """N, the number of packed tokens."""
        return sum(self.lengths)

    def spans(self, first: int = 0) -> Iterator[tuple[Tensor, slice]]:
        """The rows from `first` on that have tokens: the row's slot, [1], and where its tokens lie."""
        start = sum(self.lengths[:first])
        for row, length in enumerate(self.lengths[first:], first):
            if length:
                yield self.slots[row : row + 1], slice(start, start + length)
            start += length
