"""Models small enough for a test of the engine: a toy RNN of a few lines, and a seeded RWKV-7."""

from __future__ import annotations

import torch
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.server.model.rwkv7 import Rwkv7
from rookery.server.model.shape import ModelShape
from rookery.server.model.synthetic import Plan, synthetic_checkpoint
from rookery.server.state.pool import State
from rookery.server.state.torch_pool import TorchPool

from .arrays import state_of

TOY_SHAPE = ModelShape(version="7", vocab_size=32, layers=1, width=8, mix_width=8, ffn_width=8, heads=1, head_size=8)
BOMB, NAN = 30, 31
"""Token ids the toy chokes on: forward raises when it meets a bomb, NAN makes its state and logits NaN."""


class ToyModel:
    """h ← tanh(W h + E[token]), kept in the slot's WKV state: depends on its whole history, and each row is computed
    by itself, so that a row's numbers are the same bits in any batch.

    The state also counts its tokens, and every pass checks that its rows are where they say they are; recorded steps
    say nothing of that."""

    piece: int | None = None

    def __init__(self, seed: int = 0) -> None:
        self.shape = TOY_SHAPE
        generator = torch.Generator().manual_seed(seed)
        self.recurrent = torch.randn(8, 8, generator=generator) * 0.5
        self.embedding = torch.randn(32, 8, generator=generator)
        self.head = torch.randn(32, 8, generator=generator) * 2
        self.head[[BOMB, NAN]] = 0
        self.tuned = state_of(torch.zeros(1, 2, 8), torch.full((1, 1, 8, 8), 0.5))
        self.tuned.wkv[0, 0, 1] = 0
        self.lost = False
        """Every pass fails, as on a device that is gone."""
        self.passes: list[tuple[int, ...]] = []
        """Row lengths of every pass."""

    def new_pool(self, slots: int) -> TorchPool:
        return TorchPool(self.shape, slots, dtype=torch.float32, device="cpu")

    def forward(self, token_ids: Tensor, rows: Rows, pool: TorchPool) -> Tensor:
        if self.lost:
            raise RuntimeError("the device is lost")
        lengths, begins = tuple(rows.starts.diff().tolist()), tuple(rows.positions.tolist())
        recorded = 0 in rows.lengths  # which knows no lengths but its own
        assert recorded or (lengths == rows.lengths and begins == rows.begins)
        self.passes.append(lengths)
        hidden, position = [], 0
        for slot, length, begin in zip(rows.slots.tolist(), lengths, begins, strict=True):
            if slot >= 0:
                assert begin in (0, pool.wkv[slot, 0, 0, 1, 0]) if length == 1 else pool.wkv[slot, 0, 0, 1, 0] == begin
                pool.wkv[slot, 0, 0, 1, 0] += length
            h = pool.wkv[slot, 0, 0, 0].clone() if slot >= 0 else torch.zeros(8)
            for token in token_ids[position : position + length].tolist():
                if token == BOMB:
                    raise RuntimeError("a bomb went off")
                h = torch.tanh(self.recurrent @ h + self.embedding[token])
                if token == NAN:
                    h = h * float("nan")
                if slot >= 0:  # token by token, so that a pass that fails half-way leaves spoilt states behind
                    pool.wkv[slot, 0, 0, 0] = h
                hidden.append(h)
            position += length
        return torch.stack(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.stack([self.head @ h for h in hidden])

    def rest(self) -> None:
        """It has no memory to spare."""

    def initial_state(self, name: str | None) -> State | None:
        return {None: None, "tuned": self.tuned}[name]


TINY_PLAN = Plan(version="7", layers=2, width=64, vocab_size=256, ffn_width=128, head_size=32, ranks=(16, 16, 16, 16))
"""RWKV-7: 2 layers, 2 heads of 32, bytes as its vocabulary."""


MICRO_PLAN = Plan(version="7", layers=1, width=16, vocab_size=16, ffn_width=16, head_size=16, ranks=(4, 4, 4, 4))
"""The least RWKV-7 there can be, for tests of very many steps."""


def tiny_rwkv7(plan: Plan = TINY_PLAN) -> Rwkv7:
    return Rwkv7(synthetic_checkpoint(plan, dtype=torch.float32), dtype=torch.float32, device="cpu")
