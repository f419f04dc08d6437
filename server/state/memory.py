"""States in host memory under a byte budget. What is worth least for its size goes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rookery.kernels.cpu.arrays import FloatArray

from .pool import State
from .shelf import Shelf

OVERHEAD_BYTES = 1024
"""What an entry costs beside its arrays: the objects that hold them, its key in several tables."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state on the host, where some run of tokens ends."""

    state: State
    hidden: FloatArray | None = None
    """[C]: output of `ln_out` at the last token. With it, the next token can be drawn at once."""

    @property
    def size_bytes(self) -> int:
        return OVERHEAD_BYTES + self.state.nbytes + (0 if self.hidden is None else int(self.hidden.nbytes))


class LateSnapshot(Snapshot):
    """One whose state and output are on their way from a device: whoever reads them waits.

    Args:
        nbytes: of the output.
        arrive: waits for it; may be called often, and by any thread.
    """

    __slots__ = ("_arrive", "_nbytes")

    def __init__(self, state: State, nbytes: int, arrive: Callable[[], FloatArray]) -> None:
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "_nbytes", nbytes)
        object.__setattr__(self, "_arrive", arrive)

    @property
    def hidden(self) -> FloatArray:
        return self._arrive()  # type: ignore[attr-defined,no-any-return]

    @property
    def size_bytes(self) -> int:
        return OVERHEAD_BYTES + self.state.nbytes + self._nbytes  # type: ignore[attr-defined,no-any-return]


class StateMemory(Shelf[Snapshot]):
    """Snapshots by key, in host memory.

    Attributes:
        hits: uses of what was held.
    """

    def __init__(self, budget_bytes: int) -> None:
        super().__init__(budget_bytes)
        self.hits = 0

    def take(self, key: bytes) -> Snapshot | None:
        """What is held, for use."""
        snapshot = self.use(key)
        self.hits += snapshot is not None
        return snapshot

    def keep(self, namespace: bytes, length: int, key: bytes, snapshot: Snapshot, *, gain: int) -> bool:
        """Hold a snapshot, in place of what the key had; whether there was room.

        Args:
            gain: prompt tokens that a use of it saves.
        """
        self.remove(key)
        return self.put(namespace, length, key, snapshot, size_bytes=snapshot.size_bytes, gain=gain) is not None
