"""An engine with sessions that tests drive step by step, and the state that a session of given tokens must hold."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from rookery.kernels.rows import Rows
from rookery.server.engine.engine import Engine
from rookery.server.engine.questions import (
    OpenTurn,
    Question,
    SettleTurn,
    ShowSession,
    Told,
)
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.errors import (
    RookeryError,
)
from rookery.server.state.memory import OVERHEAD_BYTES
from rookery.server.state.pool import State
from rookery.server.state.snapshot import StateFormat
from rookery.server.state.store import StateStore

from .arrays import equal
from .tiny_model import ToyModel


def state_after(tokens: list[int]) -> State:
    """By the plain recurrence, from nothing."""
    return _state_after(tuple(tokens))


@lru_cache(maxsize=4096)
def _state_after(tokens: tuple[int, ...]) -> State:
    model = ToyModel()
    pool = model.new_pool(1)
    if tokens:
        model.forward(torch.tensor(tokens), Rows.pack([0], [len(tokens)]), pool)
    return pool.save(0)


class Host:
    """An engine with sessions, and the HTTP side's part of a turn."""

    def __init__(
        self, folder: Path | None = None, *, cache_bytes: int = 2**20, hot_bytes: int = 0, max_sessions: int = 1000
    ) -> None:
        self.model = ToyModel()
        self.engine = Engine(self.model, max_batch=4, max_queue=64, prefill_budget=16, cache_bytes=cache_bytes)
        self.store = StateStore(folder, StateFormat.of(self.model.shape, fingerprint="toy", tokenizer="toy"))
        self.engine.attach(self.store, max_sessions=max_sessions, hot_bytes=hot_bytes, threaded=False)
        self.number = 0
        self.events: dict[str, list[TokenEvent]] = {}

    def ask(self, question: Question, steps: int = 1000) -> Told:
        told: list[Told | RookeryError] = []
        assert self.engine.sessions is not None
        self.engine.sessions.ask(question, told.append)
        for _ in range(steps):
            if told:
                break
            self.step()
        (answer,) = told
        if isinstance(answer, RookeryError):
            raise answer
        return answer

    def step(self) -> None:
        for event in self.engine.step():
            self.events.setdefault(event.request_id, []).append(event)

    def drain(self) -> None:
        while self.engine.busy:
            self.step()

    def open(self, session: str, tenant: str = "t") -> str:
        self.number += 1
        turn = f"turn-{self.number}"
        self.ask(OpenTurn(tenant=tenant, turn=turn, session=session))
        return turn

    def submit(self, turn: str, prompt: list[int], max_tokens: int = 4, **fields: Any) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0)
        tenant = fields.pop("tenant", "t")
        self.engine.submit(
            Request(id=turn, prompt_ids=tuple(prompt), sampling=sampling, tenant=tenant, session=True, **fields)
        )

    def drawn(self, turn: str) -> list[int]:
        return [event.token_id for event in self.events.get(turn, []) if event.token_id is not None]

    def settle(self, turn: str, tokens: list[int], tenant: str = "t") -> Told:
        return self.ask(SettleTurn(tenant=tenant, turn=turn, token_ids=tokens))

    def turn(self, session: str, prompt: list[int], max_tokens: int = 4, tenant: str = "t") -> list[int]:
        """A whole turn; what it adds to the session."""
        turn = self.open(session, tenant)
        self.submit(turn, prompt, max_tokens, tenant=tenant)
        self.drain()
        added = prompt + self.drawn(turn)
        self.settle(turn, added, tenant)
        return added

    def state(self, session: str, tenant: str = "t") -> State:
        record = self.store.find(tenant, session)
        assert record is not None
        return self.store.load(record).state

    def close(self) -> None:
        self.engine.close()

    @property
    def computed(self) -> int:
        return sum(length for lengths in self.model.passes for length in lengths)


def assert_holds(host: Host, session: str, tokens: list[int], tenant: str = "t") -> None:
    (view,) = host.ask(ShowSession(tenant=tenant, session=session)).sessions
    assert view.tokens == len(tokens)
    kept, expected = host.state(session, tenant), state_after(tokens)
    assert equal(kept.wkv, expected.wkv) and equal(kept.shift, expected.shift)


HOT_SIZE = OVERHEAD_BYTES + 4 * (2 * 8 + 8 * 8)
"""What the toy's session takes in memory."""
