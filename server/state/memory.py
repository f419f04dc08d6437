"""States in host memory under a byte budget. What is worth least for its size goes first."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .pool import State

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


@dataclass(slots=True)
class _Held:
    snapshot: Snapshot
    size_bytes: int
    gain: int
    pinned: bool
    hits: int = 0
    priority: float = 0.0


class StateMemory:
    """Snapshots by key, at most `budget_bytes` of them.

    Eviction is GreedyDual-Size-Frequency (Cherkasova 1998): priority = clock + gain * (1 + hits) / size, and the clock
    is the priority of the last one evicted. So what was worth much once, but is never asked for, goes in the end.

    Args:
        evicted: told key and snapshot of each that is dropped to make room.

    Attributes:
        used_bytes, evictions: as the names say.
    """

    def __init__(self, budget_bytes: int, evicted: Callable[[bytes, Snapshot], None] | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.evictions = 0
        self._evicted = evicted
        self._held: dict[bytes, _Held] = {}
        self._heap: list[tuple[float, bytes]] = []
        """Priorities, with outdated ones among them: they are passed over."""
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    def peek(self, key: bytes) -> Snapshot | None:
        """What is held, without counting it as a use."""
        held = self._held.get(key)
        return None if held is None else held.snapshot

    def get(self, key: bytes) -> Snapshot | None:
        """What is held; it has then proved its worth once more."""
        held = self._held.get(key)
        if held is None:
            return None
        held.hits += 1
        self._rank(key, held)
        return held.snapshot

    def put(self, key: bytes, snapshot: Snapshot, *, gain: int, pinned: bool = False) -> bool:
        """Hold a snapshot, in place of what the key had; whether there was room.

        Args:
            gain: prompt tokens that a use of it saves.
            pinned: it is never evicted, only discarded.
        """
        self.discard(key)
        held = _Held(snapshot, snapshot.size_bytes, max(gain, 1), pinned)
        if not self._make_room(held.size_bytes):
            return False
        self._held[key] = held
        self.used_bytes += held.size_bytes
        self._rank(key, held)
        return True

    def discard(self, key: bytes) -> None:
        """Drop one, if it is there."""
        held = self._held.pop(key, None)
        if held is not None:
            self.used_bytes -= held.size_bytes

    def _rank(self, key: bytes, held: _Held) -> None:
        held.priority = self._clock + held.gain * (1 + held.hits) / held.size_bytes
        if held.pinned:
            return
        heapq.heappush(self._heap, (held.priority, key))
        if len(self._heap) > 64 + 4 * len(self._held):
            self._heap = [(one.priority, key) for key, one in self._held.items() if not one.pinned]
            heapq.heapify(self._heap)

    def _make_room(self, size_bytes: int) -> bool:
        if size_bytes > self.budget_bytes:
            return False
        while self.used_bytes + size_bytes > self.budget_bytes:
            if not self._heap:
                return False
            priority, key = heapq.heappop(self._heap)
            held = self._held.get(key)
            if held is None or held.pinned or held.priority != priority:
                continue
            self._clock = priority
            self.discard(key)
            self.evictions += 1
            if self._evicted is not None:
                self._evicted(key, held.snapshot)
        return True
