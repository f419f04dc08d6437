"""A checkpoint as the models take it: named tensors, and what was read from their keys.

Every reader of files (server/model/weights.py) makes one of these, and every model is built from one; the class
stands in a module of its own so that neither has to import the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rookery.kernels.cpu.arrays import Array
from rookery.kernels.cpu.packed import Packed

from ..state.pool import State
from .shape import ModelShape

BLANK = np.dtype([])
"""Type of arrays that have a shape and no numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The contents of one model file, checked, in the official layout.

    tensors: official keys (`blocks.0.att.key.weight`), stored dtype, singleton axes squeezed: vectors are [C].
    tuned_state: the initial state found inside the file (its `time_state` keys), None where there is none.
    named_states: further initial states by name, each from a file of its own.
    fingerprint: hex digest of the contents, which ties stored states to the weights that made them.
    kept, packed, checksum: of a file whose matrices were packed for the native library, how ("int8"), the matrices by
        name as `kept.matrices` has them, and its checksum; in `tensors` matrices then have a shape only: `BLANK`.
    """

    path: Path
    tensors: Mapping[str, Array]
    shape: ModelShape
    tuned_state: State | None = None
    named_states: Mapping[str, State] = field(default_factory=dict)
    fingerprint: str = ""
    kept: str | None = None
    packed: Mapping[str, Packed] = field(default_factory=dict)
    checksum: str = ""

    def initial_state(self, name: str | None) -> State | None:
        """What `Model.initial_state` answers: the state of that name, the file's own for None; None means zero.

        Raises:
            KeyError: there is no state of that name.
        """
        return self.tuned_state if name is None else self.named_states[name]
