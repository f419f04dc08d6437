"""Which of the things that are kept is worth least for its size: it goes first when there is no room.

GreedyDual-Size-Frequency (Cherkasova 1998): priority = clock + gain * (1 + hits) / size, and the clock is the priority
of the last one evicted. So what was worth much once, but is never asked for, goes in the end.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass


@dataclass(slots=True)
class _Kept:
    size_bytes: int
    gain: int
    hits: int
    priority: float = 0.0


class Ranking:
    """Keys with sizes, at most `budget_bytes` of them.

    Attributes:
        used_bytes, evictions: as the names say.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.evictions = 0
        self._kept: dict[bytes, _Kept] = {}
        self._heap: list[tuple[float, bytes]] = []
        """Priorities, with outdated ones among them: they are passed over."""
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def fits(self, size_bytes: int) -> bool:
        """Whether there is room without any eviction."""
        return self.used_bytes + size_bytes <= self.budget_bytes

    def add(self, key: bytes, size_bytes: int, *, gain: int, hits: int = 0) -> list[bytes] | None:
        """Take a key in, in place of what it was; the keys that had to go for it, None where it is too large.

        Args:
            gain: prompt tokens that a use of it saves.
        """
        self.remove(key)
        if size_bytes > self.budget_bytes:
            return None
        evicted = []
        while not self.fits(size_bytes):
            evicted.append(self._evict())
        kept = self._kept[key] = _Kept(size_bytes, max(gain, 1), hits)
        self.used_bytes += size_bytes
        self._rank(key, kept)
        return evicted

    def use(self, key: bytes) -> None:
        """It has proved its worth once more."""
        kept = self._kept[key]
        kept.hits += 1
        self._rank(key, kept)

    def hits(self, key: bytes) -> int:
        """How often it was used."""
        return self._kept[key].hits

    def remove(self, key: bytes) -> None:
        """Drop one, if it is there."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used_bytes -= kept.size_bytes

    def _rank(self, key: bytes, kept: _Kept) -> None:
        kept.priority = self._clock + kept.gain * (1 + kept.hits) / kept.size_bytes
        heapq.heappush(self._heap, (kept.priority, key))
        if len(self._heap) > 64 + 4 * len(self._kept):
            self._heap = [(one.priority, key) for key, one in self._kept.items()]
            heapq.heapify(self._heap)

    def _evict(self) -> bytes:
        """The key worth least, which is gone; there must be one."""
        while True:
            priority, key = heapq.heappop(self._heap)
            kept = self._kept.get(key)
            if kept is not None and kept.priority == priority:
                self._clock = priority
                self.remove(key)
                self.evictions += 1
                return key
