"""The disk tier of the prefix cache: what is read is what was written, for the same key, or it is computed again."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.server.engine.engine import Engine
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.errors import StartupError
from rookery.server.state.digest import namespace
from rookery.server.state.disk import FILE_BYTES, DiskTier
from rookery.server.state.memory import Snapshot
from rookery.server.state.snapshot import StateFormat
from rookery.server.state.worker import Worker

from .arrays import equal, state_of
from .test_state_reuse import cold, drawn_by, text
from .test_state_store import DAMAGES
from .tiny_model import TOY_SHAPE, ToyModel

FORMAT = StateFormat.of(TOY_SHAPE, fingerprint="model", tokenizer="words")
NAMES = namespace("model", "tenant")


def snapshot(seed: int, *, complete: bool = True) -> Snapshot:
    generator = torch.Generator().manual_seed(seed)
    state = state_of(torch.randn(1, 2, 8, generator=generator), torch.randn(1, 1, 8, 8, generator=generator))
    return Snapshot(state, torch.randn(8, generator=generator).numpy() if complete else None)


def same(one: Snapshot | None, other: Snapshot) -> bool:
    assert one is not None and (one.hidden is None) == (other.hidden is None)
    hidden = one.hidden is None or other.hidden is None or equal(one.hidden, other.hidden)
    return hidden and equal(one.state.shift, other.state.shift) and equal(one.state.wkv, other.state.wkv)


def key(number: int) -> bytes:
    return bytes([number]) * 16


def tier(folder: Path, *, files: int = 100, threaded: bool = False) -> DiskTier:
    return DiskTier(folder, files * FILE_BYTES, FORMAT, dtype="float32", worker=Worker("test", threaded=threaded))


def put(disk: DiskTier, number: int, *, gain: int = 100, complete: bool = True) -> bool:
    written = disk.put(NAMES, 10 * number, key(number), snapshot(number, complete=complete), gain=gain)
    disk.poll()
    return written


def fetch(disk: DiskTier, number: int) -> Snapshot | None:
    told: list[Snapshot | None] = []
    disk.fetch(key(number), told.append)
    while not told:
        disk.poll()
    return told[0]


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "states").iterdir()}


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    disk = tier(tmp_path)
    for number in range(1, 5):
        assert put(disk, number, complete=number % 2 == 0)
    assert not disk.has(key(1), complete=True) and disk.has(key(2), complete=True) and not disk.has(key(9))
    assert put(disk, 1)  # now with the output of its last token
    disk.close()
    disk = tier(tmp_path)
    assert sorted(disk.lengths(NAMES)) == [10, 20, 30, 40]
    for number in range(1, 5):
        assert same(fetch(disk, number), snapshot(number, complete=number != 3))
    assert (disk.hits, disk.damaged, len(disk), len(files(tmp_path))) == (4, 0, 4, 4)
    disk.discard(key(2))
    disk.poll()
    assert len(files(tmp_path)) == 3 and not disk.has(key(2)) and 20 not in disk.lengths(NAMES)
    disk.close()


def test_the_budget_holds_and_what_is_worth_least_goes(tmp_path: Path) -> None:
    disk = tier(tmp_path, files=4)
    for number in range(1, 5):
        put(disk, number, gain=100 + number)
    fetch(disk, 1)
    put(disk, 5, gain=110)
    assert [disk.has(key(number)) for number in range(1, 6)] == [True, False, True, True, True]
    assert len(files(tmp_path)) == 4 and disk.evictions == 1 and disk.used_bytes == 4 * FILE_BYTES
    disk.close()
    disk = tier(tmp_path, files=2)  # a restart with a smaller budget; that the first was used is remembered
    assert len(files(tmp_path)) == 2 and disk.has(key(1)) and disk.has(key(5))
    disk.close()
    disk = tier(tmp_path, files=0)
    assert not put(disk, 6) and not files(tmp_path)
    disk.close()


def test_what_waits_to_be_written_can_be_read_and_dropped(tmp_path: Path) -> None:
    disk = tier(tmp_path, threaded=True)
    held = threading.Event()
    disk._worker.run(lambda: held.wait(30), lambda _: None, lambda _: None)
    for number in (1, 2, 3):
        disk.put(NAMES, number, key(number), snapshot(number), gain=9)
    assert same(fetch(disk, 1), snapshot(1))
    disk.discard(key(2))
    disk.put(NAMES, 3, key(3), snapshot(33), gain=9)
    held.set()
    disk.close()
    disk = tier(tmp_path)
    assert same(fetch(disk, 1), snapshot(1)) and same(fetch(disk, 3), snapshot(33)) and not disk.has(key(2))
    assert len(files(tmp_path)) == 2 and disk.skipped == 0
    disk.close()


def test_what_comes_too_fast_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rookery.server.state.disk.WAITING_BYTES", 2 * FILE_BYTES)
    disk = tier(tmp_path, threaded=True)
    held = threading.Event()
    disk._worker.run(lambda: held.wait(30), lambda _: None, lambda _: None)
    assert [disk.put(NAMES, n, key(n), snapshot(n), gain=9) for n in range(1, 6)] == [True, True, False, False, False]
    assert disk.skipped == 3
    held.set()
    disk.close()
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_damaged_file_is_dropped(tmp_path: Path, number: int) -> None:
    disk = tier(tmp_path)
    disk.put(NAMES, 7, key(1), snapshot(1), gain=9)
    put(disk, 2)
    disk.close()
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        (blob,) = index.execute("select blob from prefixes where key = ?", (key(1),)).fetchone()
    index.close()
    path = tmp_path / "states" / blob
    path.write_bytes(DAMAGES[number](path.read_bytes()))
    disk = tier(tmp_path)
    assert not disk.has(key(1)) or fetch(disk, 1) is None  # another size is seen at the start
    assert disk.damaged == 1 and not disk.has(key(1)) and same(fetch(disk, 2), snapshot(2))
    assert blob not in files(tmp_path)
    put(disk, 1)
    assert same(fetch(disk, 1), snapshot(1))
    disk.close()


def test_files_that_were_swapped_or_are_gone_are_noticed(tmp_path: Path) -> None:
    disk = tier(tmp_path)
    for number in (1, 2, 3):
        put(disk, number)
    blobs = {key: entry.blob for key, entry, _ in disk._shelf}
    paths = [tmp_path / "states" / blobs[key(number)] for number in (1, 2, 3)]
    paths[0].rename(tmp_path / "kept")
    paths[1].rename(paths[0])
    (tmp_path / "kept").rename(paths[1])
    paths[2].unlink()
    assert [fetch(disk, number) for number in (1, 2, 3)] == [None] * 3
    assert disk.damaged == 3 and len(disk) == 0
    disk.close()


def test_a_damaged_index_begins_anew_and_strays_go(tmp_path: Path) -> None:
    disk = tier(tmp_path)
    put(disk, 1)
    disk.close()
    (tmp_path / "index.sqlite").write_bytes(b"this is no database at all, whatever it was once " * 100)
    (tmp_path / "states" / "notes.txt").write_bytes(b"somebody else's")
    (tmp_path / "states" / "half.tmp").write_bytes(b"half")
    disk = tier(tmp_path)
    assert len(disk) == 0 and files(tmp_path) == {"notes.txt"}
    put(disk, 1)
    disk.close()
    with pytest.raises(StartupError, match="cannot be used"):
        tier(tmp_path / "states" / "notes.txt")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "write", "rename"])
def test_a_failing_disk_costs_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    disk = tier(tmp_path)
    put(disk, 1)

    def failing(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        put(disk, 2)
    assert not disk.has(key(2)) and disk.skipped == 1 and disk.used_bytes == FILE_BYTES and len(files(tmp_path)) == 1
    disk._index.execute("pragma query_only = on")
    put(disk, 2)
    disk._index.execute("pragma query_only = off")
    assert not disk.has(key(2)) and disk.skipped == 2 and len(files(tmp_path)) == 1
    put(disk, 2)
    assert same(fetch(disk, 1), snapshot(1)) and same(fetch(disk, 2), snapshot(2))
    disk.close()


def test_space_is_left_for_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tier(tmp_path)
    monkeypatch.setattr("rookery.server.state.disk.RESERVE_BYTES", 2**60)
    put(disk, 1)
    assert not disk.has(key(1)) and disk.skipped == 1 and not files(tmp_path)
    disk.close()


class Host:
    """An engine over the toy with a disk tier; `restart` leaves only the folder."""

    def __init__(self, folder: Path, *, memory: int = 2**20, files: int = 100, threaded: bool = False) -> None:
        self.options: dict[str, Any] = {"memory": memory, "files": files, "threaded": threaded}
        self.folder = folder
        self.number = 0
        self.start()

    def start(self, *, identity: str = "toy", tuned: float = 0.5, prefill_budget: int = 64) -> None:
        self.model = ToyModel()
        self.model.tuned = state_of(torch.zeros(1, 2, 8), torch.full((1, 1, 8, 8), tuned))
        self.model.tuned.wkv[0, 0, 1] = 0  # where the toy counts its tokens
        self.engine = Engine(
            self.model,
            max_batch=8,
            max_queue=64,
            prefill_budget=prefill_budget,
            cache_bytes=self.options["memory"],
            identity=identity,
        )
        self.disk = tier(self.folder, files=self.options["files"], threaded=self.options["threaded"])
        self.engine.keep_on(self.disk)

    def restart(self, **options: Any) -> None:
        self.engine.close()
        self.start(**options)

    def submit(self, prompt: list[int], max_tokens: int = 4, **fields: Any) -> str:
        self.number += 1
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0)
        one = Request(id=f"r{self.number}", prompt_ids=tuple(prompt), sampling=sampling)
        self.engine.submit(replace(one, **fields))
        return one.id

    def drain(self) -> dict[str, list[TokenEvent]]:
        events: dict[str, list[TokenEvent]] = {}
        while self.engine.busy:
            for event in self.engine.step():
                events.setdefault(event.request_id, []).append(event)
        return events

    def __call__(self, prompt: list[int], max_tokens: int = 4, **fields: Any) -> tuple[list[int], int]:
        """Tokens drawn, cached tokens told."""
        id = self.submit(prompt, max_tokens, **fields)
        events = self.drain()[id]
        return drawn_by(events), events[0].cached_tokens


@pytest.fixture(params=[False, True], ids=["at once", "threaded"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, threaded=request.param)
    yield host
    host.engine.close()


def test_a_chat_goes_on_after_a_restart_at_the_cost_of_its_new_turn(host: Host) -> None:
    history = text(100)
    for _ in range(4):
        drawn, _ = host(history, 20)
        history += [*drawn, *text(10, len(history))]
        host.restart()
        again, cached = host(history)
        assert cached == len(history) - 11  # the last token drawn had not been consumed
        assert again == cold(history)


def test_an_exact_repeat_after_a_restart_computes_nothing(host: Host) -> None:
    first = host(text(50))
    host.restart()
    assert host(text(50)) == (first[0], 50)
    assert host.engine.stats().disk_hits == 1 and host.engine.stats().disk_bytes > 0
    assert sum(length for lengths in host.model.passes for length in lengths) == 3


def test_what_the_memory_dropped_is_found_on_disk(tmp_path: Path) -> None:
    host = Host(tmp_path, memory=3000)
    for seed in range(20):
        host(text(60, seed))
    assert host(text(60, 0)) == (cold(text(60, 0)), 60)
    host.engine.close()


@pytest.mark.parametrize("memory", [0, 100])
def test_it_works_without_memory(tmp_path: Path, memory: int) -> None:
    host = Host(tmp_path, memory=memory)
    host(text(60))
    assert host([*text(60), 5, 6]) == (cold([*text(60), 5, 6]), 60)
    host.engine.close()


def test_nobody_finds_what_is_not_his(host: Host) -> None:
    prompt = text(60)
    host(prompt, tenant="a", tuned_state="tuned")
    for options in ({}, {"identity": "other weights"}, {"tuned": 0.25}):
        host.restart(**options)
        assert host(prompt, tenant="b", tuned_state="tuned")[1] == 0
        assert host(prompt, tenant="a")[1] == 0
        expected = 0 if options else 60
        assert host(prompt, tenant="a", tuned_state="tuned")[1] == expected
        if options:
            host.engine.close()  # which writes what it has begun to
            shutil.rmtree(host.folder / "states")
            (host.folder / "states").mkdir()
            host.start(**options)


def test_a_damaged_prefix_is_computed_again(host: Host) -> None:
    host(text(60))
    host.engine.close()
    for path in (host.folder / "states").iterdir():
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
    host.start()
    assert host([*text(60), 7]) == (cold([*text(60), 7]), 0)
    assert host.engine.stats().disk_damaged > 0


def test_prompts_that_need_the_same_file_read_it_once(host: Host) -> None:
    host(text(64))
    host.restart()
    prompts = [text(64) + text(20, seed) for seed in range(1, 5)]
    ids = [host.submit(prompt) for prompt in prompts]
    events = host.drain()
    assert [drawn_by(events[id]) for id in ids] == [cold(prompt) for prompt in prompts]
    assert all(events[id][0].cached_tokens == 64 for id in ids) and host.engine.stats().disk_hits == 1


def test_a_slow_disk_holds_up_only_who_waits_for_it(tmp_path: Path) -> None:
    host = Host(tmp_path, threaded=True)
    host(text(64))
    host.restart()
    held = threading.Event()
    host.disk._worker.run(lambda: held.wait(30), lambda _: None, lambda _: None)
    waiting = host.submit([*text(64), 9])
    dropped = host.submit([*text(64), 8])
    other = host.submit(text(20, 5))
    events: list[TokenEvent] = []
    while not any(event.finish for event in events):
        events += host.engine.step()
    assert {event.request_id for event in events} == {other}
    host.engine.cancel(dropped)
    held.set()
    later = host.drain()
    assert drawn_by(later[waiting]) == cold([*text(64), 9]) and later[waiting][0].cached_tokens == 64
    assert host.engine.scheduler.slots_free == 8
    host.engine.close()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(0, 90), st.integers(1, 60), st.integers(0, 6), st.integers(0, 20),
            st.sampled_from(["", "", "", "cancel", "restart", "damage"]),
        ),
        max_size=12,
    ),
    st.sampled_from([0, 3000, 10_000]),
    st.sampled_from([0, 2, 5, 100]),
)  # fmt: skip
def test_whatever_is_stored_tokens_are_those_of_a_cold_run(
    work: list[tuple[int, int, int, int, int, str]], memory: int, files: int
) -> None:
    folder = Path(tempfile.mkdtemp())
    host = Host(folder, memory=memory, files=files)
    prompts: dict[str, list[int]] = {}
    events: dict[str, list[TokenEvent]] = {}

    def step() -> None:
        for event in host.engine.step():
            events.setdefault(event.request_id, []).append(event)

    for trunk, common, own, steps, limit, then in work:
        prompt = text(90, trunk)[:common] + text(own, own)
        id = host.submit(prompt, limit, boundaries=(common,) if 0 < common < len(prompt) else ())
        prompts[id] = prompt
        for _ in range(steps):
            step()
        if then == "cancel":
            host.engine.cancel(id)
        elif then == "restart":
            host.restart()
        elif then == "damage":
            for path in list((folder / "states").iterdir())[:1]:
                path.write_bytes(path.read_bytes()[::-1])
        host.disk.poll()  # what was dropped while it was being written goes now
        assert len(list((folder / "states").iterdir())) <= files
    while host.engine.busy:
        step()
    host.engine.close()
    for id, prompt in prompts.items():
        drawn = drawn_by(events.get(id, []))
        assert drawn == cold(prompt, 20)[: len(drawn)]
    shutil.rmtree(folder)
