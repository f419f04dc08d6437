"""Stored states: what is read is what was written, or it is said to be damaged; failures change nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from rookery.server.errors import StartupError
from rookery.server.state.pool import State
from rookery.server.state.snapshot import SnapshotError, StateFormat, read_snapshot, write_snapshot
from rookery.server.state.store import Record, StateStore

from .arrays import equal, state_of, tensor
from .tiny_model import TOY_SHAPE

FORMAT = StateFormat.of(TOY_SHAPE, fingerprint="model", tokenizer="words")
OTHER = StateFormat.of(TOY_SHAPE, fingerprint="another", tokenizer="words")


def state(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return state_of(torch.randn(1, 2, 8, generator=generator), torch.randn(1, 1, 8, 8, generator=generator) * 100)


def record(id: str = "s", tenant: str = "t", tokens: int = 7, turns: int = 1) -> Record:
    return Record(id=id, tenant=tenant, tokens=tokens, turns=turns, created=0, updated=0)


def same(one: State, other: State) -> bool:
    return equal(one.shift, other.shift) and equal(one.wkv, other.wkv)


def found(store: StateStore, id: str = "s") -> Record:
    one = store.find("t", id)
    assert one is not None
    return one


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "states").iterdir()}


@pytest.mark.parametrize("durable", [True, False])
def test_a_store_gives_back_bit_for_bit_what_it_was_given(tmp_path: Path, durable: bool) -> None:
    store = StateStore(tmp_path if durable else None, FORMAT)
    first = store.commit(record(), state(1))
    assert same(store.load(first).state, state(1))
    second = store.commit(record(tokens=9, turns=2), state(2))
    assert same(store.load(found(store)).state, state(2)) and second.created == first.created
    fork = store.fork(second, "f")
    store.delete(found(store))
    assert store.find("t", "s") is None and same(store.load(fork).state, state(2))
    assert store.find("u", "f") is None
    store.delete(fork)
    assert store.count() == store.size_bytes() == 0
    store.close()
    assert not durable or not files(tmp_path)


def test_a_restart_finds_everything_and_clears_up_after_turns_that_did_not_end(tmp_path: Path) -> None:
    store = StateStore(tmp_path, FORMAT)
    store.commit(record(), state(1))
    store.close()
    stray = tmp_path / "states" / f"{'0' * 32}.safetensors"
    stray.write_bytes(b"a turn that never ended")
    (tmp_path / "states" / "half.tmp").write_bytes(b"half")
    (tmp_path / "states" / "notes.txt").write_bytes(b"somebody else's")
    store = StateStore(tmp_path, FORMAT)
    assert same(store.load(found(store)).state, state(1)) and store.damaged == 0
    store.close()
    assert len(files(tmp_path)) == 2 and "notes.txt" in files(tmp_path)


def test_models_do_not_see_each_others_sessions(tmp_path: Path) -> None:
    store = StateStore(tmp_path, FORMAT)
    store.commit(record(), state(1))
    store.close()
    store = StateStore(tmp_path, OTHER)
    assert store.find("t", "s") is None and store.count() == 0
    store.commit(record(), state(2))
    store.close()
    store = StateStore(tmp_path, FORMAT)
    assert same(store.load(found(store)).state, state(1))
    store.close()


def test_one_server_a_folder(tmp_path: Path) -> None:
    store = StateStore(tmp_path, FORMAT)
    with pytest.raises(StartupError, match="another server"):
        StateStore(tmp_path, FORMAT)
    store.close()
    StateStore(tmp_path, FORMAT).close()


def test_a_folder_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StartupError, match="cannot be used"):
        StateStore(tmp_path / "file", FORMAT)


def cut(data: bytes) -> bytes:
    return data[:-5]


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: b"",
    lambda data: data[:4],
    lambda data: data[:8],
    lambda data: data[:100],
    cut,
    lambda data: data + b"\0",
    lambda data: bytes(len(data)),
    lambda data: b"\xff" * len(data),
    lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    lambda data: data[::-1],
    lambda data: b"\x80\x04cposix\nsystem\n(S'touch /tmp/pickled'\ntR." + data,
    lambda data: (2**63).to_bytes(8, "little") + data[8:],
    lambda data: (5).to_bytes(8, "little") + b'{"a":' + data[13:],
    lambda data: data.replace(b"F32", b"I32", 1),
    lambda data: data.replace(b"wkv", b"vkw"),
    lambda data: data.replace(b"model", b"madel"),
    lambda data: data.replace(b'"tokens":"7"', b'"tokens":"8"'),
    lambda data: data.replace(b"checksum", b"checkmum"),
    *(lambda data, at=at: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in (-1, -100, -300, 20)),
]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_damaged_file_costs_its_own_session_only(tmp_path: Path, number: int) -> None:
    store = StateStore(tmp_path, FORMAT)
    store.commit(record(), state(1))
    store.commit(record("well"), state(2))
    store.close()
    path = tmp_path / "states" / found_blob(tmp_path, "s")
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[number](whole))
    assert path.read_bytes() != whole
    with pytest.raises(SnapshotError):
        read_snapshot(path.read_bytes(), FORMAT)
    store = StateStore(tmp_path, FORMAT)
    with pytest.raises(SnapshotError):
        store.load(found(store))
    assert store.damaged > 0
    assert same(store.load(found(store, "well")).state, state(2))
    store.delete(found(store))
    store.commit(record(), state(3))
    assert same(store.load(found(store)).state, state(3))
    store.close()


def found_blob(folder: Path, id: str) -> str:
    with sqlite3.connect(folder / "index.sqlite") as index:
        (blob,) = index.execute("select blob from sessions where id = ?", (id,)).fetchone()
    index.close()
    return str(blob)


def test_files_that_were_swapped_or_are_gone_are_noticed(tmp_path: Path) -> None:
    store = StateStore(tmp_path, FORMAT)
    for number, id in enumerate("abc"):
        store.commit(record(id), state(number))
    paths = {id: tmp_path / "states" / found(store, id).blob for id in "abc"}
    shutil.copy(paths["a"], tmp_path / "kept")
    shutil.copy(paths["b"], paths["a"])
    shutil.copy(tmp_path / "kept", paths["b"])
    paths["c"].unlink()
    for id in "abc":
        with pytest.raises(SnapshotError):
            store.load(found(store, id))
    store.close()


def test_a_damaged_index_is_set_aside_and_no_file_is_lost(tmp_path: Path) -> None:
    store = StateStore(tmp_path, FORMAT)
    one = store.commit(record(), state(1))
    store.close()
    (tmp_path / "index.sqlite").write_bytes(b"this is no database at all, whatever it was once " * 100)
    store = StateStore(tmp_path, FORMAT)
    assert store.count() == 0 and one.blob in files(tmp_path)
    store.put("t", "back", (tmp_path / "states" / one.blob).read_bytes())
    assert same(store.load(found(store, "back")).state, state(1))
    store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_failing_disk_leaves_the_session_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    store = StateStore(tmp_path, FORMAT)
    store.commit(record(), state(1))
    before = files(tmp_path)
    real = getattr(os, call)
    for broken in range(4):  # the first, second … time it is called in a commit
        calls = 0

        def failing(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == broken + 1:  # noqa: B023  # called within this round only
                raise OSError(code, os.strerror(code))
            return real(*arguments, **named)

        monkeypatch.setattr(os, call, failing)
        try:
            store.commit(record(tokens=9, turns=2), state(2))
        except OSError as error:
            assert error.errno == code
        else:
            monkeypatch.undo()
            break
        monkeypatch.undo()
        assert found(store).tokens == 7 and same(store.load(found(store)).state, state(1))
        assert files(tmp_path) == before
    assert broken > 0 and same(store.load(found(store)).state, state(2))
    store.close()


def test_an_index_that_cannot_be_written_leaves_the_session_as_it_was(tmp_path: Path) -> None:
    store = StateStore(tmp_path, FORMAT)
    store.commit(record(), state(1))
    before = files(tmp_path)
    store._index.execute("pragma query_only = on")
    with pytest.raises(sqlite3.Error):
        store.commit(record(tokens=9), state(2))
    with pytest.raises(sqlite3.Error):
        store.fork(found(store), "f")
    store._index.execute("pragma query_only = off")
    assert files(tmp_path) == before and store.find("t", "f") is None
    assert same(store.load(found(store)).state, state(1))
    store.close()


def test_memory_for_sessions_is_bounded() -> None:
    store = StateStore(None, FORMAT, memory_bytes=5000)
    with pytest.raises(OSError, match="full"):
        for number in range(100):
            store.commit(record(str(number)), state(number))
    assert 0 < store.size_bytes() <= 5000
    store.commit(record("0"), state(5)) if store.size_bytes() < 3500 else store.delete(found(store, "0"))
    store.close()


def test_unused_sessions_expire(tmp_path: Path) -> None:
    now = 1000.0
    store = StateStore(tmp_path, FORMAT, clock=lambda: now)
    for id in "abc":
        store.commit(record(id), state(1))
    now = 2000.0
    store.commit(record("b"), state(2))
    assert [one.id for one in store.expire(500, keep=lambda one: one.id == "c")] == ["a"]
    assert [one.id for one in store.page("t", limit=9)] == ["b", "c"]
    store.close()


def test_float16_halves_the_file_and_rounds_as_promised() -> None:
    given = state_of(torch.zeros(1, 2, 8), torch.randn(1, 1, 8, 8) * torch.logspace(-6, 4, 8))
    sizes, states = [], []
    for dtype in ("float32", "float16"):
        data = write_snapshot(given, FORMAT, tokens=1, tuned_state=None, dtype=dtype)
        sizes.append(len(data))
        states.append(read_snapshot(data, FORMAT).state)
    assert same(states[0], given) and sizes[0] - sizes[1] > 64 * 2 - 16
    error = abs(states[1].wkv - given.wkv)
    assert (error <= abs(given.wkv) * 2**-11 + 2**-25).all() and error.max() > 0


def test_states_of_other_models_are_refused() -> None:
    data = write_snapshot(state(1), OTHER, tokens=1, tuned_state=None, dtype="float32")
    with pytest.raises(SnapshotError, match="another model"):
        read_snapshot(data, FORMAT)
    data = write_snapshot(
        state_of(torch.zeros(1, 2, 16), torch.zeros(1, 1, 8, 8)), FORMAT, tokens=1, tuned_state=None, dtype="float32"
    )
    with pytest.raises(SnapshotError, match="shapes"):
        read_snapshot(data, FORMAT)
    nan = state_of(torch.zeros(1, 2, 8), torch.full((1, 1, 8, 8), float("nan")))
    with pytest.raises(SnapshotError, match="values"):
        read_snapshot(write_snapshot(nan, FORMAT, tokens=1, tuned_state=None, dtype="float32"), FORMAT)


def test_files_of_earlier_versions_are_continued() -> None:
    """They have the token shift in the model's dtype, and were written by torch."""
    tensors = {"shift": tensor(state(3).shift).bfloat16(), "wkv": tensor(state(3).wkv)}
    about = {"format": "rookery-state-1", "fingerprint": "model", "tokenizer": "words", "version": "7"}
    about |= {"tokens": "9", "tuned_state": ""}
    digest = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=32)
    for name, one in tensors.items():
        digest.update(f"{name} {one.dtype} {tuple(one.shape)}".encode() + one.view(torch.uint8).numpy().tobytes())
    loaded = read_snapshot(save(tensors, {**about, "checksum": digest.hexdigest()}), FORMAT)
    assert loaded.tokens == 9 and equal(loaded.state.wkv, tensors["wkv"])
    assert equal(loaded.state.shift, tensors["shift"].float())
