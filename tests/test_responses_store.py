"""The store of finished turns: bounds, expiry, what deletion leaves, and a restart."""

from __future__ import annotations

import random
import resource
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rookery.server.errors import NotFound, ResponseDamaged, SessionBusy, StartupError, StorageFailed
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


def open_store(path: Path | None = None, **bounds: Any) -> ResponseStore:
    return ResponseStore(path, **{"max_turns": 1000, "max_bytes": 2**26, **bounds})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(clock: Clock) -> AsyncIterator[ResponseStore]:
    store = open_store(max_turns=4, ttl_s=10_000, clock=clock)
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
    store = open_store(max_bytes=20_000, clock=clock)
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
    store, parent = ResponseStore(Path(path), max_turns=10**6, max_bytes=2**30), None
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
        store = open_store(path)
        head, items = await store.conversation(ME, "conv")
        kept = [item["id"] for item in items]
        assert kept[: len(told)] == told and len(kept) <= len(told) + 1  # one may have been stored and not yet told
        assert kept[-1] == head.head
        told = kept
        await store.close()


async def test_one_server_a_database(tmp_path: Path) -> None:
    path = tmp_path / "data" / "responses.sqlite"
    first, second = open_store(path), open_store(path)
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
        await open_store(tmp_path / "file" / "responses.sqlite").claim()


async def test_everything_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    store = open_store(path)
    await store.create_conversation(ME, "conv", {"k": "v"})
    await store.put(ME, turn("a"), conversation="conv")
    await store.put(ME, turn("b", "a"), conversation="conv")
    before = [await store.get(ME, id) for id in "ab"]
    await store.close()
    assert [await store.get(ME, id) for id in "ab"] == before  # using it opens it again
    await store.close()
    again = open_store(path)
    assert [await again.get(ME, id) for id in "ab"] == before
    found, items = await again.conversation(ME, "conv")
    assert found.head == "b" and texts(items) == ["a", "b"]
    await again.close()


def spoilt(data: bytes, seed: int) -> bytes:
    """One bit, or 64 bytes, somewhere that is in use."""
    at = random.Random(seed).choice([at for at, byte in enumerate(data) if byte])
    length = 64 if seed % 2 else 0
    return data[:at] + bytes([data[at] ^ 4] * (not length) + [0] * length) + data[at + (length or 1) :]


BROKEN: list[Callable[[bytes], bytes]] = [
    lambda data: b"",
    lambda data: data[:100],
    lambda data: data[: len(data) // 2],
    lambda data: bytes(len(data)),
    lambda data: data[::-1],
    lambda data: b"\x80\x04cposix\nsystem\n(S'touch /tmp/pickled'\ntR." + data,
    lambda data: data.replace(b"a chat about rooks", b"a chat about doves"),
    lambda data: data.replace(b"completed", b"cancelled"),
    lambda data: data.replace(b"CREATE TABLE turns", b"CREATE TABLE tunes"),
    *(lambda data, seed=seed: spoilt(data, seed) for seed in range(8)),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
async def test_a_damaged_database_never_says_what_was_not_said(tmp_path: Path, number: int) -> None:
    path = tmp_path / "responses.sqlite"
    store = open_store(path)
    for count in range(40):
        await store.put(
            ME, turn(f"t{count}", f"t{count - 1}" if count % 8 else None, text=f"a chat about rooks {count}")
        )
    told = {f"t{count}": await store.get(ME, f"t{count}") for count in range(40)}
    said = {id: await store.history(ME, id) for id in told}
    await store.close()
    whole = path.read_bytes()
    path.write_bytes(BROKEN[number](whole))
    assert path.read_bytes() != whole
    store = open_store(path)
    for id in told:
        try:
            assert await store.get(ME, id) == told[id] and await store.history(ME, id) == said[id]
        except (NotFound, ResponseDamaged, StorageFailed):
            continue
    await store.close()


async def test_a_database_that_is_none_is_set_aside_and_a_new_one_begins(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    path.write_bytes(b"this is no database at all, whatever it was once " * 100)
    store = open_store(path)
    await store.put(ME, turn("a"))
    assert await ids(store, "a") == {"a"}
    await store.close()
    (aside,) = tmp_path.glob("responses.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"this is no database") and path.stat().st_mode & 0o77 == 0


async def test_one_damaged_turn_costs_its_own_chain_only(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    store = open_store(path)
    for id, parent in (("a", None), ("b", "a"), ("c", "b"), ("x", None), ("y", "x")):
        await store.put(ME, turn(id, parent))
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE turns SET input = CAST(replace(CAST(input AS TEXT), 'b', 'd') AS BLOB) WHERE id = 'b'")
        db.execute("DELETE FROM turns WHERE id = 'x'")
    db.close()
    store = open_store(path)
    for id in "bcy":
        with pytest.raises(ResponseDamaged):
            await store.history(ME, id)
    assert texts(await store.history(ME, "a")) == ["a"] and (await store.get(ME, "c"))["id"] == "c"
    await store.put(ME, turn("n", "a"))
    assert texts(await store.history(ME, "n")) == ["a", "n"]
    await store.delete(ME, "b")
    await store.close()


async def test_a_disk_that_is_full_at_any_write_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """A limit on the size of files: writes beyond it fail, as on a full disk, each time a little later."""
    store = open_store(tmp_path / "responses.sqlite")
    await store.create_conversation(ME, "conv", {})
    await store.put(ME, turn("a"), conversation="conv")
    before = await store.size()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    try:
        for pages in range(200):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048 * pages, hard))
            try:
                await store.put(ME, turn("b", "a", text="x" * 20_000), conversation="conv")
            except StorageFailed:
                refused += 1
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
                assert await store.size() == before and texts(await store.history(ME, "a")) == ["a"]
                assert (await store.conversation(ME, "conv"))[0].head == "a"
            else:
                break
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert 5 < refused < 199
    assert len(texts(await store.history(ME, "b"))) == 2
    await store.close()
    store = open_store(tmp_path / "responses.sqlite")
    assert (await store.conversation(ME, "conv"))[0].head == "b"
    await store.close()


async def test_what_had_to_go_is_counted(clock: Clock) -> None:
    gone: list[int] = []
    store = open_store(max_turns=2, ttl_s=None, forgotten=gone.append, clock=clock)
    for id, parent in (("a", None), ("b", "a"), ("c", "b"), ("d", None)):
        await store.put(ME, turn(id, parent))
        clock.now += 10**9  # nothing expires
    assert sum(gone) == 2 and (await store.size())[0] == 2
    await store.put(OTHER, turn("theirs"))
    assert (await store.size())[0] == 3 and (await store.size(OTHER))[0] == 1
    await store.close()
