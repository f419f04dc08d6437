"""At which positions of a prompt states are looked for, computed up to, and kept.

That is at its end, at the last message boundary, every `GRID` tokens of long prompts (thinned out behind the newest),
and at junctions: where a prompt leaves the way of one that was seen before. Each place that is not the end of the
prompt ends a chunk there, and so costs a step; places closer than `WORTHWHILE` tokens to a state are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..state.cache import Marks
from ..state.digest import PrefixDigest
from .batch import Prefill

GRID = 2048
"""Tokens between the states kept along a long prompt."""
WORTHWHILE = 16
"""A state that saves fewer tokens than this is not worth a step of its own."""
MARK_STRIDE, MARKS_PER_PROMPT = 32, 256
"""Junctions are found to the multiple of a power of two, at least 32; long prompts get coarser ones."""


@dataclass(slots=True, eq=False)
class Plan:
    """What is known of one prompt that is being computed or has been."""

    prefill: Prefill
    order: int
    """Of planning: a prompt waits only for earlier ones, so that nobody waits in a circle."""
    namespace: bytes
    places: frozenset[int]
    """Positions at which other prompts may find that they go the same way."""
    keys: dict[int, bytes]
    """By position."""
    end: PrefixDigest
    saved: int = 0
    """The longest prefix that has a state."""
    stored: int = 0
    """The longest prefix that has one on disk."""
    on_grid: list[int] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether its prompt is still to be computed, in part at least."""
        choices = self.prefill.choices
        return bool(choices) and choices[0].prefill is self.prefill

    @property
    def length(self) -> int:
        """Of its prompt, in tokens."""
        return len(self.prefill.token_ids)

    def cut(self, marks: Marks) -> None:
        """Choose where chunks of the prompt end from its position on, beside its own end; `marks` knows junctions."""
        prefill = self.prefill
        first = prefill.position + WORTHWHILE
        prefill.cuts.update(range(-(-max(first, GRID) // GRID) * GRID, self.length, GRID))
        junction = max((at for at, key in self.keys.items() if first <= at < self.length and key in marks), default=0)
        boundary = max((at for at in prefill.request.boundaries if first <= at < self.length), default=0)
        prefill.cuts.update(at for at in (junction, boundary) if at)

    def kept(self, position: int) -> list[int]:
        """Its state at a position is kept: positions whose states are needed no more."""
        self.saved = position
        if position % GRID or position in self.prefill.request.boundaries:
            return []
        self.on_grid.append(position)
        gone = _thinned(self.on_grid)
        for at in gone:
            self.on_grid.remove(at)
        return gone


def grid(length: int) -> Iterator[int]:
    """Positions of a prompt at which junctions can be found, and those where long prompts are kept."""
    stride = MARK_STRIDE
    while length > stride * MARKS_PER_PROMPT:
        stride *= 2
    yield from range(stride, length, stride)
    yield from range(GRID, length, GRID)


def _thinned(positions: list[int]) -> list[int]:
    """Those of ascending multiples of GRID to be given up: twice the distance to the newest, half as many stay."""
    newest = positions[-1] // GRID
    gone = []
    for position in positions:
        number = position // GRID
        if number % (1 << max(0, (newest - number).bit_length() - 2)):
            gone.append(position)
    return gone
