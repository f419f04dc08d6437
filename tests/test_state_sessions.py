"""Sessions in the engine, driven step by step against a model that keeps every session as a list of tokens."""

from __future__ import annotations

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rookery.kernels.rows import Rows
from rookery.server.engine.engine import Engine
from rookery.server.engine.questions import (
    DeleteSession,
    DropTurn,
    ExportSession,
    ForkSession,
    ImportSession,
    ListSessions,
    OpenTurn,
    Question,
    SettleTurn,
    ShowSession,
    Told,
)
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.errors import (
    EngineError,
    InvalidRequest,
    NotFound,
    RookeryError,
    SessionBusy,
    SessionDamaged,
    StorageFailed,
)
from rookery.server.state.memory import OVERHEAD_BYTES
from rookery.server.state.pool import State
from rookery.server.state.snapshot import StateFormat
from rookery.server.state.store import StateStore

from .tiny_model import BOMB, NAN, ToyModel


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
        self.store = StateStore(folder, StateFormat.of(self.engine.pool, fingerprint="toy", tokenizer="toy"))
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
    assert torch.equal(kept.wkv, expected.wkv) and torch.equal(kept.shift, expected.shift)


HOT_SIZE = OVERHEAD_BYTES + 4 * (2 * 8 + 8 * 8)
"""What the toy's session takes in memory."""


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_session_holds_the_state_after_its_tokens_whatever_was_kept_of_the_reply(host: Host) -> None:
    history: list[int] = []
    for kept in (4, 3, 1, 0):  # all that was drawn, without the last, and less
        turn = host.open("s")
        prompt = [5, 6, 7, 8 + kept]
        host.submit(turn, prompt)
        host.drain()
        added = prompt + host.drawn(turn)[:kept]
        host.settle(turn, added)
        history += added
        assert_holds(host, "s", history)
    turn = host.open("s")
    host.submit(turn, [1, 2, 3], boundaries=(2,))
    host.drain()
    host.settle(turn, [1, 2, 9, 9])  # a reply without the reasoning that its prompt asked for
    assert_holds(host, "s", [*history, 1, 2, 9, 9])


def test_a_chat_that_goes_on_does_not_read_the_store_before_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, hot_bytes=2 * HOT_SIZE)
    history = {id: host.turn(id, [1, 2, 3]) for id in "ab"}

    def read(*_: object) -> None:
        raise AssertionError("the store was read")

    for id in "abab":
        with monkeypatch.context() as patched:
            patched.setattr(host.store, "find", read)
            patched.setattr(host.store, "load", read)
            turn = host.open(id)
        host.submit(turn, [4, 5])
        host.drain()
        host.settle(turn, [4, 5, 6])
        history[id] += [4, 5, 6]
        assert_holds(host, id, history[id])
    host.turn("c", [7])
    stats = host.engine.stats()
    assert (stats.session_evictions, stats.session_memory_bytes) == (1, 2 * HOT_SIZE)
    assert_holds(host, "a", history["a"] + host.turn("a", [8]))  # from the store again
    host.close()


def test_what_is_deleted_replaced_or_left_is_not_found_in_memory(tmp_path: Path) -> None:
    host = Host(tmp_path, hot_bytes=10 * HOT_SIZE)
    for id in "abc":
        host.turn(id, [1, 2, 3])
    exported = host.ask(ExportSession(tenant="t", session="a")).data
    host.ask(DeleteSession(tenant="t", session="a"))
    assert_holds(host, "a", host.turn("a", [9]))
    host.ask(ImportSession(tenant="t", session="b", data=exported))
    assert_holds(host, "b", host.turn("x", [1, 2, 3]) + host.turn("b", [5]))  # x says what `a` held
    host.ask(ForkSession(tenant="t", session="c", new="d"))
    host.ask(DeleteSession(tenant="t", session="c"))
    assert host.ask(ShowSession(tenant="t", session="d")).sessions[0].turns == 1
    turn = host.open("d")
    host.submit(turn, [4])
    host.drain()
    host.engine.sessions.ask(SettleTurn(tenant="t", turn=turn, token_ids=[4]), lambda told: None)  # type: ignore[union-attr]
    host.engine.sessions.ask(DropTurn(tenant="t", turn=turn), lambda told: None)  # type: ignore[union-attr]
    host.drain()
    with pytest.raises(InvalidRequest):
        host.ask(OpenTurn(tenant="t", turn="tuned", session="x", tuned_state="tuned"))
    for view in host.ask(ListSessions(tenant="t", limit=9)).sessions:
        before = view.tokens
        added = host.turn(view.id, [7])
        assert host.ask(ShowSession(tenant="t", session=view.id)).sessions[0].tokens == before + len(added)
    host.close()


def test_a_turn_costs_its_own_tokens_however_long_the_session_is(host: Host) -> None:
    costs = []
    for length in (10, 5000):
        host.turn(f"s{length}", [1 + i % 29 for i in range(length)])
        before = host.computed
        host.turn(f"s{length}", [3, 4, 5, 6])
        costs.append(host.computed - before)
    assert costs == [4 + 3 + 1] * 2  # prompt, the tokens drawn but the last, and that one for the history


def test_the_first_event_tells_what_came_from_the_session(host: Host) -> None:
    added = host.turn("s", [1, 2, 3])
    turn = host.open("s")
    host.submit(turn, [4, 5])
    host.drain()
    assert host.events[turn][0].cached_tokens == len(added)


def test_a_turn_that_is_left_at_any_point_changes_nothing(host: Host) -> None:
    history = host.turn("s", [1, 2, 3])
    for steps in range(6):
        turn = host.open("s")
        host.submit(turn, list(range(1, 25)), boundaries=(20,))
        for _ in range(steps):
            host.step()
        host.engine.cancel(turn)
        host.engine.sessions.ask(DropTurn(tenant="t", turn=turn), lambda told: None)  # type: ignore[union-attr]
        host.drain()
        assert_holds(host, "s", history)
    turn = host.open("s")
    host.submit(turn, [4])
    host.drain()
    host.engine.sessions.ask(SettleTurn(tenant="t", turn=turn, token_ids=[4, 9, 9, 9]), lambda told: None)  # type: ignore[union-attr]
    host.engine.sessions.ask(DropTurn(tenant="t", turn=turn), lambda told: None)  # type: ignore[union-attr]
    host.drain()
    assert_holds(host, "s", history)
    assert host.engine.scheduler.slots_free == 4 and not host.engine._sampling and not host.engine._unheard
    assert_holds(host, "s", history + host.turn("s", [7]))


def test_a_turn_that_fails_changes_nothing(host: Host) -> None:
    history = host.turn("s", [1, 2, 3])
    turn = host.open("s")
    host.submit(turn, [4, BOMB])
    host.drain()
    assert host.events[turn][-1].finish == "error"
    host.engine.sessions.ask(DropTurn(tenant="t", turn=turn), lambda told: None)  # type: ignore[union-attr]
    for bad in (BOMB, NAN):
        turn = host.open("s")
        host.submit(turn, [4])
        host.drain()
        with pytest.raises(EngineError):
            host.settle(turn, [4, bad])
    assert_holds(host, "s", history)
    assert_holds(host, "s", history + host.turn("s", [7]))


def test_one_writer_at_a_time(host: Host) -> None:
    history = host.turn("s", [1])
    turn = host.open("s")
    for question in (
        OpenTurn(tenant="t", turn="another", session="s"),
        DeleteSession(tenant="t", session="s"),
        ImportSession(tenant="t", session="s", data=b""),
        ForkSession(tenant="t", session="x", new="s"),
    ):
        with pytest.raises(SessionBusy):
            host.ask(question)
    host.ask(ForkSession(tenant="t", session="s", new="f"))
    host.submit(turn, [2])
    host.drain()
    host.settle(turn, [2])
    assert_holds(host, "f", history)
    assert_holds(host, "s", [*history, 2])


def test_the_turns_of_a_peer_that_is_gone_are_dropped(host: Host) -> None:
    assert host.engine.sessions is not None
    host.engine.sessions.ask(OpenTurn(tenant="t", turn="x", session="s"), lambda told: None, owner=b"peer")
    host.drain()
    host.engine.sessions.forget(b"peer")
    assert host.turn("s", [1])


def test_tenants_have_sessions_of_their_own(host: Host) -> None:
    mine = host.turn("s", [1, 2, 3])
    for question in (
        ShowSession(tenant="u", session="s"),
        DeleteSession(tenant="u", session="s"),
        ForkSession(tenant="u", session="s", new="f"),
        ExportSession(tenant="u", session="s"),
    ):
        with pytest.raises(NotFound):
            host.ask(question)
    theirs = host.turn("s", [9], tenant="u")
    assert_holds(host, "s", mine)
    assert_holds(host, "s", theirs, "u")
    turn = host.open("s")
    host.submit(turn, [1])
    host.drain()
    with pytest.raises(RookeryError):
        host.settle(turn, [1], tenant="u")


def test_a_disk_that_fails_costs_the_turn_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    history = host.turn("s", [1, 2, 3])

    def full(data: bytes) -> str:
        raise OSError(28, "No space left on device")

    for _ in range(2):
        turn = host.open("s")
        host.submit(turn, [4])
        host.drain()
        with monkeypatch.context() as patched, pytest.raises(StorageFailed):
            patched.setattr(host.store._blobs, "write", full)
            host.settle(turn, [4])
        assert_holds(host, "s", history)
    assert_holds(host, "s", history + host.turn("s", [5]))
    host.close()


def test_a_damaged_session_is_refused_and_can_be_deleted(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.turn("bad", [1, 2, 3])
    well = host.turn("well", [4, 5])
    record = host.store.find("t", "bad")
    assert record is not None
    (tmp_path / "states" / record.blob).write_bytes(b"\0" * record.bytes)
    for question in (OpenTurn(tenant="t", turn="x", session="bad"), ExportSession(tenant="t", session="bad")):
        with pytest.raises(SessionDamaged):
            host.ask(question)
    assert host.engine.stats().sessions_damaged == 2
    assert_holds(host, "well", well)
    host.ask(DeleteSession(tenant="t", session="bad"))
    assert_holds(host, "bad", host.turn("bad", [6]))
    host.close()


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_many_sessions_need_no_memory_and_all_resume(tmp_path: Path, count: int) -> None:
    host = Host(tmp_path, cache_bytes=30_000, max_sessions=count)
    for number in range(count):
        host.turn(f"s{number}", [1 + number % 29, 1 + number // 29 % 29, 1 + number // 841], 1)
        assert host.engine.stats().cache_bytes <= 30_000
    assert not host.engine.sessions._turns and not host.engine.sessions._writers  # type: ignore[union-attr]
    for number in range(0, count, 7):
        view = host.ask(ShowSession(tenant="t", session=f"s{number}")).sessions[0]
        assert view.turns == 1
        host.turn(f"s{number}", [2], 1)
    assert host.engine.stats().sessions == count
    host.close()


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
        self.host = Host(self.folder, cache_bytes=8000, hot_bytes=2 * HOT_SIZE)

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
        self.host = Host(self.folder, cache_bytes=8000, hot_bytes=2 * HOT_SIZE)

    @invariant()
    def every_session_is_what_it_must_be(self) -> None:
        for tenant in ("t", "u"):
            listed = [view.id for view in self.host.ask(ListSessions(tenant=tenant, limit=99)).sessions]
            assert listed == sorted(name for owner, name in self.expected if owner == tenant)
        for (tenant, name), tokens in self.expected.items():
            record = self.host.store.find(tenant, name)
            assert record is not None and record.tokens == len(tokens)
            loaded = self.host.store.load(record).state
            assert torch.equal(loaded.wkv, state_after(tokens).wkv)


TestSessions = SessionsMachine.TestCase
TestSessions.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
