"""What the engine needs of a model, whatever its version."""

from __future__ import annotations

from typing import Any, Protocol

from ..state.pool import State
from .shape import ModelShape


class Model(Protocol):
    """A loaded model: `forward` to the final hidden states, `logits` only where a row asks for them.

    Its arrays are torch's or, on the native library, numpy's; engine/arrays.py is for those who must not care.
    """

    shape: ModelShape
    piece: int | None
    """Prompt tokens of a step beyond which more cost as much a token; None where more are always cheaper."""

    def new_pool(self, slots: int) -> Any:
        """A `StatePool` of that many slots, in this model's dtype and on its device."""
        ...

    def forward(self, token_ids: Any, rows: Any, pool: Any) -> Any:
        """One pass over packed rows; the states of their slots move on in place.

        Args:
            token_ids: [N] int64, packed as `rows` says, on the model's device.
            rows: `Rows`, or `HostRows` for a model of numpy.
            pool: its own; the slots named in `rows` are updated.

        Returns:
            [N, C], the output of `ln_out`, model dtype.
        """
        ...

    def logits(self, hidden: Any) -> Any:
        """[n, C] to [n, vocab_size] float32: the head, for the rows that need it."""
        ...

    def initial_state(self, name: str | None) -> State | None:
        """The tuned state of that name (or the checkpoint's own for None); None means zero."""
        ...

    def rest(self) -> None:
        """Nothing runs: give back what memory comes again as it is used."""
        ...
