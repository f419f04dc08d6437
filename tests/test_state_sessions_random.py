"""Sessions in the engine, driven at random against a model that keeps every session as a list of tokens."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rookery.server.engine.questions import (
    DeleteSession,
    DropTurn,
    ExportSession,
    ForkSession,
    ImportSession,
    ListSessions,
)
from rookery.server.errors import (
    RookeryError,
    SessionBusy,
)

from .arrays import equal
from .session_host import HOT_SIZE, Host, state_after

NAMES = st.sampled_from(["a", "b", "c"])
TENANTS = st.sampled_from(["t", "u"])
TOKENS = st.lists(st.integers(1, 29), min_size=1, max_size=20)


class SessionsMachine(RuleBasedStateMachine):
    """Random turns, forks, deletes, exports and restarts, with room for two sessions in memory; a dictionary of token
    lists says what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.expected: dict[tuple[str, str], list[int]] = {}
        self.open: dict[tuple[str, str], tuple[str, list[int]]] = {}
        self.exported: list[tuple[bytes, list[int]]] = []
        self.host = self.new_host()

    def new_host(self) -> Host:
        return Host(self.folder, cache_bytes=8000, hot_bytes=2 * HOT_SIZE)

    def teardown(self) -> None:
        self.host.close()
        shutil.rmtree(self.folder)

    @rule(tenant=TENANTS, name=NAMES, prompt=TOKENS, max_tokens=st.integers(0, 5))
    def begin(self, tenant: str, name: str, prompt: list[int], max_tokens: int) -> None:
        place = tenant, name
        if place in self.open:
            with pytest.raises(SessionBusy):
                self.host.open(name, tenant)
            return
        turn = self.host.open(name, tenant)
        self.host.submit(turn, prompt, max_tokens, tenant=tenant, boundaries=(len(prompt) // 2,))
        self.open[place] = turn, prompt

    @rule(steps=st.integers(1, 4))
    def run_on(self, steps: int) -> None:
        for _ in range(steps):
            self.host.step()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), keep=st.integers(0, 6), other=st.booleans())
    def finish(self, data: st.DataObject, keep: int, other: bool) -> None:
        place = data.draw(st.sampled_from(sorted(self.open)))
        turn, prompt = self.open.pop(place)
        self.host.drain()
        drawn = self.host.drawn(turn)
        added = prompt + drawn[:keep] if not other else [*prompt[: len(prompt) // 2], 7, 7]
        self.host.settle(turn, added, place[0])
        self.expected[place] = self.expected.get(place, []) + added

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.open)))
        turn, _ = self.open.pop(place)
        self.host.engine.cancel(turn)
        self.host.engine.sessions.ask(DropTurn(tenant=place[0], turn=turn), lambda told: None)  # type: ignore[union-attr]

    @rule(tenant=TENANTS, source=NAMES, new_name=NAMES)
    def fork(self, tenant: str, source: str, new_name: str) -> None:
        old, new = (tenant, source), (tenant, new_name)
        try:
            self.host.ask(ForkSession(tenant=tenant, session=source, new=new_name))
        except RookeryError:
            assert old not in self.expected or new in self.expected or new in self.open
        else:
            assert old in self.expected and new not in self.expected
            self.expected[new] = self.expected[old]

    @rule(tenant=TENANTS, name=NAMES)
    def delete(self, tenant: str, name: str) -> None:
        place = tenant, name
        try:
            self.host.ask(DeleteSession(tenant=tenant, session=name))
        except RookeryError:
            assert place in self.open or place not in self.expected
        else:
            del self.expected[place]

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def export(self, data: st.DataObject) -> None:
        tenant, name = place = data.draw(st.sampled_from(sorted(self.expected)))
        told = self.host.ask(ExportSession(tenant=tenant, session=name))
        self.exported.append((told.data, self.expected[place]))

    @precondition(lambda self: self.exported)
    @rule(tenant=TENANTS, name=NAMES)
    def bring_in(self, tenant: str, name: str) -> None:
        if (tenant, name) not in self.open:
            data, tokens = self.exported[-1]
            self.host.ask(ImportSession(tenant=tenant, session=name, data=data))
            self.expected[tenant, name] = tokens

    @rule()
    def restart(self) -> None:
        """Without any farewell to the store: what is open is lost, what was settled is there."""
        self.host.store.close()
        self.open.clear()
        self.host = self.new_host()

    @invariant()
    def every_session_is_what_it_must_be(self) -> None:
        for tenant in ("t", "u"):
            listed = [view.id for view in self.host.ask(ListSessions(tenant=tenant, limit=99)).sessions]
            assert listed == sorted(name for owner, name in self.expected if owner == tenant)
        for (tenant, name), tokens in self.expected.items():
            record = self.host.store.find(tenant, name)
            assert record is not None and record.tokens == len(tokens)
            loaded = self.host.store.load(record).state
            assert equal(loaded.wkv, state_after(tokens).wkv)


TestSessions = SessionsMachine.TestCase
TestSessions.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
