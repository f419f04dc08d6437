"""Sessions whose states are in host memory as well as in the store: those that were used last."""

from __future__ import annotations

from collections import OrderedDict

from .memory import OVERHEAD_BYTES
from .pool import State
from .store import Record

Place = tuple[str, str]
"""Tenant and id of a session."""


class HotSessions:
    """Sessions and their states, at most `budget_bytes` of them; the one unused for longest goes first.

    What is here is what the store holds, or will hold before it is asked again: a session is taken out while a turn
    may change it, and put back when it is known what has become of it.

    Attributes:
        used_bytes, evictions: as the names say.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.used_bytes = 0
        self.evictions = 0
        self._budget_bytes = budget_bytes
        self._held: OrderedDict[Place, tuple[Record, State]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def take(self, place: Place) -> tuple[Record, State] | None:
        """A session, which is here no longer."""
        held = self._held.pop(place, None)
        if held is not None:
            self.used_bytes -= _size(held[1])
        return held

    def put(self, record: Record, state: State) -> None:
        """Hold a session, as the one that was used last."""
        place = record.tenant, record.id
        self.take(place)
        if _size(state) > self._budget_bytes:
            return
        self._held[place] = record, state
        self.used_bytes += _size(state)
        while self.used_bytes > self._budget_bytes:
            _, (_, dropped) = self._held.popitem(last=False)
            self.used_bytes -= _size(dropped)
            self.evictions += 1


def _size(state: State) -> int:
    return OVERHEAD_BYTES + state.nbytes
