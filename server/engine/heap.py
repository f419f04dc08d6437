"""Memory that evicted states and finished work leave free goes back to the system.

States come and go for as long as a server runs, and glibc keeps what is free between those that stay: with thousands of
sessions that came to 0.6 of the budget.
"""

from __future__ import annotations

import ctypes


class Heap:
    """The allocator of this process; where it is not glibc's, nothing is done."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._evictions = 0

    def give_back(self, evictions: int) -> None:
        """Return free pages, if states have been evicted since the last call; `evictions` counts them all."""
        if evictions != self._evictions:
            self.trim()
        self._evictions = evictions

    def trim(self) -> None:
        """Return free pages now."""
        if self._trim is not None:
            self._trim(0)
