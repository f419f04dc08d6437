"""The store of finished turns: bounds, expiry, what deletion leaves, and a restart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rookery.server.errors import NotFound, SessionBusy, StartupError, StorageFailed
from rookery.server.responses.items import message
from rookery.server.responses.store import ResponseStore
from rookery.server.responses.turns import Turn

ME, OTHER = "me", "other"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(clock: Clock) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(max_turns=4, ttl_s=10_000, clock=clock)
    yield store
    await store.close()


def turn(id: str, parent: str | None = None, *, text: str = "", visible: bool = True) -> Turn:
    said = message(f"msg_{id}", "user", [{"type": "input_text", "text": text or id}])
    return Turn(
        id=id, parent=parent, input=[said], output=[], body={"id": id, "status": "completed"}, visible=visible
    )  # fmt: skip


def texts(items: list[dict[str, Any]]) -> list[str]:
    return [item["content"][0]["text"] for item in items]


async def ids(store: ResponseStore, *candidates: str, tenant: str = ME) -> set[str]:
    """Those that can be asked for; this uses them."""
    found = set()
    for id in candidates:
        try:
            await store.get(tenant, id)
        except NotFound:
            continue
        found.add(id)
    return found


async def test_a_chain_is_read_from_its_beginning(store: ResponseStore) -> None:
    for id, parent in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
        await store.put(ME, turn(id, parent))
    assert texts(await store.history(ME, "c")) == ["a", "b", "c"]
    assert texts(await store.history(ME, "d")) == ["a", "d"]


async def test_the_end_used_longest_ago_goes_first(store: ResponseStore) -> None:
    for id, parent in (("a", None), ("b", "a"), ("x", None), ("y", "x")):
        await store.put(ME, turn(id, parent))
    await store.get(ME, "b")
    await store.put(ME, turn("new"))
    assert await ids(store, "a", "b", "x", "y", "new") == {"a", "b", "x", "new"}
    assert (await store.size(ME))[0] == 4


async def test_bytes_are_bounded_and_tenants_apart(clock: Clock) -> None:
    store = ResponseStore(max_bytes=20_000, clock=clock)
    await store.put(OTHER, turn("theirs", text="x" * 9000))
    for id in "abcd":
        await store.put(ME, turn(id, text="x" * 9000))
    assert await ids(store, *"abcd") == {"c", "d"}
    assert await ids(store, "theirs", tenant=OTHER) == {"theirs"}
    assert await ids(store, "theirs") == set()
    await store.close()


async def test_what_nobody_used_for_long_expires(store: ResponseStore, clock: Clock) -> None:
    await store.put(ME, turn("old"))
    await store.put(ME, turn("root"))
    await store.create_conversation(ME, "conv", {})
    clock.now += 9_000
    await store.put(ME, turn("leaf", "root"))
    clock.now += 2_000
    assert await ids(store, "old", "leaf") == {"leaf"}
    await store.put(ME, turn("new"))
    assert (await store.size(ME))[0] == 3 and texts(await store.history(ME, "leaf")) == ["root", "leaf"]
    with pytest.raises(NotFound):
        await store.conversation(ME, "conv")


async def test_deleted_turns_stay_as_long_as_others_need_them(store: ResponseStore) -> None:
    for id, parent in (("a", None), ("b", "a"), ("c", "b")):
        await store.put(ME, turn(id, parent))
    await store.delete(ME, "a")
    await store.delete(ME, "b")
    assert await ids(store, "a", "b", "c") == {"c"} and (await store.size(ME))[0] == 3
    await store.delete(ME, "c")
    assert await store.size(ME) == (0, 0)


async def test_a_conversation_keeps_its_turns_and_moves_one_way(store: ResponseStore) -> None:
    made = await store.create_conversation(ME, "conv", {"k": "v"}, turn("first", visible=False))
    assert made.head == "first"
    await store.put(ME, turn("a", "first"), conversation="conv")
    with pytest.raises(SessionBusy):
        await store.put(ME, turn("b", "first"), conversation="conv")
    found, items = await store.conversation(ME, "conv")
    assert found.head == "a" and texts(items) == ["first", "a"] and found.metadata == {"k": "v"}
    assert (await store.size(ME))[0] == 2  # the refused turn left nothing
    await store.delete(ME, "a")
    assert texts((await store.conversation(ME, "conv"))[1]) == ["first", "a"]
    await store.delete_conversation(ME, "conv")
    assert await store.size(ME) == (0, 0)
    with pytest.raises(NotFound):
        await store.put(ME, turn("c", "a"), conversation="conv")


async def test_a_conversation_whose_newest_turn_had_to_go_is_gone(store: ResponseStore) -> None:
    await store.create_conversation(ME, "conv", {}, turn("first", visible=False))
    for id in "abcd":
        await store.put(ME, turn(id))
    with pytest.raises(NotFound):
        await store.conversation(ME, "conv")


_WRITER = """
import asyncio, sys
from pathlib import Path
from rookery.server.responses.store import ResponseStore
from rookery.server.responses.turns import Turn

async def write(path, number):
    store, parent = ResponseStore(Path(path)), None
    if number == "0":
        await store.create_conversation("me", "conv", {})
    else:
        parent = (await store.conversation("me", "conv"))[0].head
    for count in range(100_000):
        id = f"{number}-{count}"
        body = {"id": id, "status": "completed"}
        turn = Turn(id=id, parent=parent, input=[], output=[{"id": id}], body=body, visible=True)
        await store.put("me", turn, conversation="conv")
        print(id, flush=True)
        parent = id

asyncio.run(write(sys.argv[1], sys.argv[2]))
"""


async def test_what_was_answered_is_there_after_a_kill(tmp_path: Path) -> None:
    path, told = tmp_path / "responses.sqlite", []
    for number, turns in enumerate((1, 7, 2)):
        command = [sys.executable, "-c", _WRITER, str(path), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told += [writer.stdout.readline().strip() for _ in range(turns)]
            writer.kill()
            told += [line.strip() for line in writer.stdout if line.endswith("\n")]
        store = ResponseStore(path)
        head, items = await store.conversation(ME, "conv")
        kept = [item["id"] for item in items]
        assert kept[: len(told)] == told and len(kept) <= len(told) + 1  # one may have been stored and not yet told
        assert kept[-1] == head.head
        told = kept
        await store.close()


async def test_one_server_a_database(tmp_path: Path) -> None:
    path = tmp_path / "data" / "responses.sqlite"
    first, second = ResponseStore(path), ResponseStore(path)
    await first.claim()
    await first.put(ME, turn("a"))
    with pytest.raises(StartupError, match="another server"):
        await second.claim()
    with pytest.raises(StorageFailed):
        await second.get(ME, "a")
    await first.close()
    assert await second.get(ME, "a")
    await second.close()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StartupError, match="cannot be used"):
        await ResponseStore(tmp_path / "file" / "responses.sqlite").claim()


async def test_everything_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    store = ResponseStore(path)
    await store.create_conversation(ME, "conv", {"k": "v"})
    await store.put(ME, turn("a"), conversation="conv")
    await store.put(ME, turn("b", "a"), conversation="conv")
    before = [await store.get(ME, id) for id in "ab"]
    await store.close()
    assert [await store.get(ME, id) for id in "ab"] == before  # using it opens it again
    await store.close()
    again = ResponseStore(path)
    assert [await again.get(ME, id) for id in "ab"] == before
    found, items = await again.conversation(ME, "conv")
    assert found.head == "b" and texts(items) == ["a", "b"]
    await again.close()
