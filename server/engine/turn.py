"""One turn of a session inside the engine, and the states that it may be committed from.

A turn is committed as the state after exactly the tokens its history is to have. What the slot has consumed is seldom
just that: the last token drawn is not consumed, a stop string is consumed and not kept, reasoning is not kept. So the
turn keeps its state at the end of the prompt and at its own end, starts from the longer one that the history begins
with, and computes the rest.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..errors import RookeryError
from ..state.pool import State
from ..state.store import Record
from .questions import Told

Answer = Callable[[Told | RookeryError], None]
"""Called once, in the engine's thread, now or later."""


@dataclass(slots=True, eq=False)
class Turn:
    """One writer's hold on one session."""

    name: str
    owner: bytes
    """The API process it belongs to."""
    record: Record
    """What the session is before the turn; of a new one, what it would be without a turn."""
    base: State | None = None
    """The state before the turn; None starts from nothing."""
    prompt_ids: tuple[int, ...] = ()
    kept: list[tuple[array[int], State]] = field(default_factory=list)
    """States on the way, with the turn's tokens that they have consumed."""
    ended: bool = False
    """Its request is done, and nothing more will be kept."""
    settling: tuple[list[int], Answer] | None = None
    """The tokens of the history, and who wants to know when they are stored."""

    @property
    def place(self) -> tuple[str, str]:
        """Tenant and id of its session."""
        return self.record.tenant, self.record.id

    def keep(self, consumed: Sequence[int], state: State) -> None:
        """Remember the state after these tokens of the turn."""
        self.kept.append((array("i", consumed), state))

    def nearest(self, token_ids: list[int]) -> tuple[int, State | None]:
        """The longest state that these tokens begin with, and how many of them it has consumed."""
        wanted = array("i", token_ids)
        best: tuple[int, State | None] = (0, self.base)
        for consumed, state in self.kept:
            if len(consumed) > best[0] and wanted[: len(consumed)] == consumed:
                best = len(consumed), state
        return best

    def record_after(self, tokens: int) -> Record:
        """What the session is once it holds this turn of so many tokens."""
        return replace(self.record, tokens=self.record.tokens + tokens, turns=self.record.turns + 1)
