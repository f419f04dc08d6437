"""States in host memory under a byte budget. What is worth least for its size goes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .pool import State
from .ranking import Ranking

OVERHEAD_BYTES = 1024
"""What an entry costs beside its tensors: the objects that hold them, its key in several tables."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state on the host, where some run of tokens ends."""

    state: State
    hidden: Tensor | None = None
    """[C], model dtype: output of `ln_out` at the last token. With it, the next token can be drawn at once."""

    @property
    def size_bytes(self) -> int:
        tensors = (self.state.shift, self.state.wkv, *(() if self.hidden is None else (self.hidden,)))
        return OVERHEAD_BYTES + sum(int(tensor.nbytes) for tensor in tensors)


class StateMemory:
    """Snapshots by key, at most `budget_bytes` of them (`ranking.py` says which ones).

    Args:
        evicted: told key and snapshot of each that is dropped to make room.

    Attributes:
        hits: uses of what was held.
    """

    def __init__(self, budget_bytes: int, evicted: Callable[[bytes, Snapshot], None] | None = None) -> None:
        self.hits = 0
        self._ranking = Ranking(budget_bytes)
        self._evicted = evicted
        self._held: dict[bytes, Snapshot] = {}

    @property
    def budget_bytes(self) -> int:
        return self._ranking.budget_bytes

    @property
    def used_bytes(self) -> int:
        return self._ranking.used_bytes

    @property
    def evictions(self) -> int:
        return self._ranking.evictions

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    def peek(self, key: bytes) -> Snapshot | None:
        """What is held, without counting it as a use."""
        return self._held.get(key)

    def get(self, key: bytes) -> Snapshot | None:
        """What is held; it has then proved its worth once more."""
        snapshot = self._held.get(key)
        if snapshot is not None:
            self.hits += 1
            self._ranking.use(key)
        return snapshot

    def put(self, key: bytes, snapshot: Snapshot, *, gain: int) -> bool:
        """Hold a snapshot, in place of what the key had; whether there was room.

        Args:
            gain: prompt tokens that a use of it saves.
        """
        self._held.pop(key, None)
        evicted = self._ranking.add(key, snapshot.size_bytes, gain=gain)
        if evicted is None:
            return False
        self._held[key] = snapshot
        for gone in evicted:
            dropped = self._held.pop(gone)
            if self._evicted is not None:
                self._evicted(gone, dropped)
        return True

    def discard(self, key: bytes) -> None:
        """Drop one, if it is there."""
        if self._held.pop(key, None) is not None:
            self._ranking.remove(key)
