"""How the tokens of a step are packed: which belong to which row, and where each row's state lives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one step, packed one after the other: decode rows (one token each) first, then prefill rows.

    Row i has the tokens `starts[i] : starts[i + 1]` of the packed axis N and the state in slot `slots[i]`.
    A row may be empty. Slot -1 stands for padding: its state is read as zero and never written.

    A row's first token is number `positions[i]` of its sequence, counted from 0, whatever brought the state there:
    earlier steps, a stored state, a session. Sequence forms that work in chunks begin them at multiples of the chunk
    in this count, so that their results do not depend on where a prompt was cut. Of decode rows it is not read.

    Shapes: slots [R], starts [R + 1] and positions [R], int64, on the device; lengths and begins are row sizes and
    positions on the host.
    """

    slots: Tensor
    starts: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    begins: tuple[int, ...]
    decode: int
    """So many rows at the front decode: they have exactly one token."""

    @classmethod
    def pack(
        cls,
        slots: Sequence[int],
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        positions: Sequence[int] | None = None,
        decode: int | None = None,
    ) -> Rows:
        """Rows in the order given.

        Args:
            positions: of the first tokens; 0 each where it is not given.
            decode: rows that decode; all those of one token at the front where it is not given.
        """
        begins = (0,) * len(slots) if positions is None else tuple(positions)
        starts = [0, *accumulate(lengths)]
        if decode is None:
            decode = next((i for i, length in enumerate(lengths) if length != 1), len(lengths))
        packed = torch.tensor([*slots, *begins, *starts], dtype=torch.int64, device=device)  # one copy to the device
        count = len(slots)
        return cls(packed[:count], packed[2 * count :], packed[count : 2 * count], tuple(lengths), begins, decode)

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
