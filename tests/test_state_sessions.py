"""Sessions in the engine: turns, their ends, their owners, and what is kept in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from rookery.server.engine.questions import (
    DeleteSession,
    DropTurn,
    ExportSession,
    ForkSession,
    ImportSession,
    ListSessions,
    OpenTurn,
    SettleTurn,
    ShowSession,
)
from rookery.server.errors import (
    EngineError,
    InvalidRequest,
    NotFound,
    RookeryError,
    SessionBusy,
    SessionDamaged,
    StorageFailed,
)

from .session_host import HOT_SIZE, Host, assert_holds
from .tiny_model import BOMB, NAN


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


def test_many_sessions_need_no_memory_and_all_resume(tmp_path: Path) -> None:
    """`test_soak.py` has the same with a real server, and thousands."""
    count, held = 150, {}
    host = Host(tmp_path, cache_bytes=30_000, max_sessions=count)
    for number in range(count):
        held[number] = host.turn(f"s{number}", [1 + number % 29, 1 + number // 29 % 29, 1 + number // 841], 1)
        assert host.engine.stats().cache_bytes <= 30_000
    assert not host.engine.sessions._turns and not host.engine.sessions._writers  # type: ignore[union-attr]
    for number, tokens in held.items():
        assert_holds(host, f"s{number}", tokens + host.turn(f"s{number}", [2], 1))
    assert host.engine.stats().sessions == count
    host.close()
