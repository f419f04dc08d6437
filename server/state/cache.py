"""States by the tokens they were computed from, and which prefixes have been seen before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from .disk import DiskTier
from .memory import StateMemory

MARKS = 2**17
"""Prefixes that are remembered without a state: about 20 MB."""


class PrefixCache:
    """Which prefixes of a namespace have a state. The tiers may drop any of them at any time.

    Attributes:
        memory: states that can be used at once.
        disk: more of them, which must be read first; None without a folder.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.memory = StateMemory(budget_bytes)
        self.disk: DiskTier | None = None

    def lengths(self, namespace: bytes) -> set[int]:
        """Lengths at which a prefix of this namespace may have a state."""
        lengths = set(self.memory.places.lengths(namespace))
        return lengths if self.disk is None else lengths.union(self.disk.lengths(namespace))

    def discard(self, key: bytes) -> None:
        """Drop one wherever it is, if it is there."""
        self.memory.remove(key)
        if self.disk is not None:
            self.disk.discard(key)


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
