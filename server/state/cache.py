"""States by the tokens they were computed from, and which prefixes have been seen before."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from .memory import Snapshot, StateMemory

MARKS = 2**17
"""Prefixes that are remembered without a state: about 20 MB."""


class PrefixCache:
    """Which prefixes of a namespace have a state, over a `StateMemory` that may drop any of them at any time."""

    def __init__(self, budget_bytes: int) -> None:
        self.memory = StateMemory(budget_bytes, self._dropped)
        self._places: dict[bytes, tuple[bytes, int]] = {}
        """Namespace and length of each key."""
        self._lengths: dict[bytes, Counter[int]] = {}
        """How many keys of each length a namespace has."""

    def lengths(self, namespace: bytes) -> Iterable[int]:
        """Lengths at which a prefix of this namespace may have a state."""
        return self._lengths.get(namespace, ())

    def peek(self, key: bytes) -> Snapshot | None:
        """The state at a prefix, without counting it as a use."""
        return self.memory.peek(key)

    def take(self, key: bytes) -> Snapshot | None:
        """The state at a prefix, for use."""
        return self.memory.get(key)

    def put(self, namespace: bytes, length: int, key: bytes, snapshot: Snapshot, *, gain: int) -> None:
        """Keep a state; `gain` is how many tokens it is ahead of the next shorter one that is kept."""
        self.discard(key)
        if self.memory.put(key, snapshot, gain=gain):
            self._places[key] = (namespace, length)
            self._lengths.setdefault(namespace, Counter())[length] += 1

    def discard(self, key: bytes) -> None:
        """Drop one, if it is there."""
        if key in self._places:
            self.memory.discard(key)
            self._forget(key)

    def _dropped(self, key: bytes, snapshot: Snapshot) -> None:
        if key in self._places:
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        namespace, length = self._places.pop(key)
        lengths = self._lengths[namespace]
        lengths[length] -= 1
        if not lengths[length]:
            del lengths[length]
        if not lengths:
            del self._lengths[namespace]


class Marks:
    """Prefixes seen lately, without states: they show where a new prompt leaves the way of an earlier one."""

    def __init__(self, size: int = MARKS) -> None:
        self._size = size
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._size:
            self._keys.popitem(last=False)
