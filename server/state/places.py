"""At which lengths prefixes of a namespace are kept: a prompt is looked up at these, and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Places:
    """Namespace and length of each key that is kept."""

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[bytes, int]] = {}
        self._lengths: dict[bytes, Counter[int]] = {}
        """How many keys of each length a namespace has."""

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def lengths(self, namespace: bytes) -> Iterable[int]:
        """Of what is kept in a namespace."""
        return self._lengths.get(namespace, ())

    def add(self, key: bytes, namespace: bytes, length: int) -> None:
        """Take in a key that is not there."""
        self._places[key] = namespace, length
        self._lengths.setdefault(namespace, Counter())[length] += 1

    def remove(self, key: bytes) -> None:
        """Drop a key that is there."""
        namespace, length = self._places.pop(key)
        lengths = self._lengths[namespace]
        lengths[length] -= 1
        if not lengths[length]:
            del lengths[length]
        if not lengths:
            del self._lengths[namespace]
