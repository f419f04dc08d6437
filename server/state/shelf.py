"""What a tier keeps: things by key, within a byte budget, and at which lengths of a namespace there are any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from .places import Places
from .ranking import Ranking

T = TypeVar("T")


class Shelf(Generic[T]):
    """At most `budget_bytes` of things; `ranking.py` says which ones. A key stands for a prefix of tokens.

    Attributes:
        places: where prefixes end that have something here.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.places = Places()
        self._ranking = Ranking(budget_bytes)
        self._held: dict[bytes, T] = {}

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

    def __iter__(self) -> Iterator[tuple[bytes, T, int]]:
        """Keys, what they have, and how often it was used."""
        return ((key, thing, self._ranking.hits(key)) for key, thing in self._held.items())

    def peek(self, key: bytes) -> T | None:
        """What a key has, without counting it as a use."""
        return self._held.get(key)

    def use(self, key: bytes) -> T | None:
        """What a key has; it has then proved its worth once more."""
        thing = self._held.get(key)
        if thing is not None:
            self._ranking.use(key)
        return thing

    def fits(self, size_bytes: int) -> bool:
        """Whether there is room without any eviction."""
        return self._ranking.fits(size_bytes)

    def put(
        self, namespace: bytes, length: int, key: bytes, thing: T, *, size_bytes: int, gain: int, hits: int = 0
    ) -> list[T] | None:
        """Keep a thing for a key that has none; what had to go for it, None where it is too large.

        Args:
            gain: prompt tokens that a use of it saves.
        """
        evicted = self._ranking.add(key, size_bytes, gain=gain, hits=hits)
        if evicted is None:
            return None
        self._held[key] = thing
        self.places.add(key, namespace, length)
        return [self._let_go(gone) for gone in evicted]

    def remove(self, key: bytes) -> T | None:
        """Drop what a key has, if there is anything."""
        if key not in self._held:
            return None
        self._ranking.remove(key)
        return self._let_go(key)

    def _let_go(self, key: bytes) -> T:
        self.places.remove(key)
        return self._held.pop(key)
