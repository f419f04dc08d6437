"""`--exact`: results that are the same bits whatever else runs and however a prompt was cut or resumed.

The products of a BLAS library depend on how many rows they have: the sums of one row are taken in another order beside
31 others than alone. The native library takes them in one order always. Everywhere else a pass has to be the same pass
every time, and the only one that fits every step is that of one token of one row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.kernels.rows import Rows

from ..state.pool import State
from ..state.torch_pool import TorchPool
from .base import Model


class TokenByToken:
    """A model, behind `base.Model`, that is given one token at a time."""

    piece: int | None = None

    def __init__(self, model: Model) -> None:
        self.shape = model.shape
        self._model = model

    def new_pool(self, slots: int) -> TorchPool:
        pool: TorchPool = self._model.new_pool(slots)
        return pool

    def rest(self) -> None:
        self._model.rest()

    def initial_state(self, name: str | None) -> State | None:
        return self._model.initial_state(name)

    def forward(self, token_ids: Tensor, rows: Rows, pool: TorchPool) -> Tensor:
        """[N] to [N, C], as `base.Model` says."""
        starts = torch.tensor([0, 1], device=token_ids.device)
        begins = {row: begin for row, begin in enumerate(rows.begins) if rows.lengths[row]}
        hidden = []
        for (slot, span), (row, begin) in zip(rows.spans(), begins.items(), strict=True):
            for offset, token in enumerate(torch.split(token_ids[span], 1)):
                here = rows.positions[row : row + 1] + offset
                one = Rows(slot.clone(), starts, here, lengths=(1,), begins=(begin + offset,), decode=1)
                hidden.append(self._model.forward(token.clone(), one, pool))
        return torch.cat(hidden or [self._model.forward(token_ids, rows, pool)])

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, C] to [n, vocab_size] float32; rows are copied first, for BLAS minds how memory is aligned."""
        rows = [self._model.logits(row.clone()) for row in torch.split(hidden, 1)] or [self._model.logits(hidden)]
        return torch.cat(rows)
