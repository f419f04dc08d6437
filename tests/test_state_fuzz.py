"""The reader of state files under bytes of any kind: it refuses with a reason, or gives back the very state."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rookery.server.state.snapshot import Loaded, SnapshotError, read_snapshot, write_snapshot
from rookery.server.state.store import StateStore

from .arrays import equal
from .test_state_store import FORMAT, found, record, same, state

WHOLE = write_snapshot(
    state(1), FORMAT, tokens=7, tuned_state="calm", dtype="float32", hidden=np.arange(8, dtype=np.float32)
)
SMALL = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(data: bytes) -> Loaded | None:
    """What the bytes hold; None where they are refused. Nothing else may happen, and no memory be taken on a word."""
    tracemalloc.start()
    try:
        return read_snapshot(data, FORMAT)
    except SnapshotError as error:
        assert str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20 + 16 * len(data)


def is_the_written_one(loaded: Loaded) -> bool:
    assert loaded.hidden is not None
    values = same(loaded.state, state(1)) and equal(loaded.hidden, torch.arange(8, dtype=torch.float32))
    return values and (loaded.tokens, loaded.tuned_state) == (7, "calm")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The written file after some changes: bytes, cuts, pieces moved, copied or made up."""
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 64))
        match draw(st.sampled_from(["flip", "cut", "insert", "move", "end", "number"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at : at + length]
            case "insert":
                data[at:at] = draw(st.binary(max_size=64))
            case "move":
                piece = data[at : at + length]
                del data[at : at + length]
                to = draw(st.integers(0, len(data)))
                data[to:to] = piece
            case "end":
                del data[at:]
            case "number":
                data[:8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    return bytes(data)


@SMALL
@given(mutated())
def test_a_file_that_was_changed_is_refused_or_says_the_same(data: bytes) -> None:
    loaded = read(data)
    assert loaded is None or is_the_written_one(loaded)


@SMALL
@given(st.binary(max_size=400))
def test_bytes_of_no_kind_are_refused(data: bytes) -> None:
    assert read(data) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "X", ""]) | JSON,
        "shape": st.lists(st.integers(-2, 2**63), max_size=5) | JSON,
        "data_offsets": st.lists(st.integers(0, 2**63), min_size=2, max_size=2) | JSON,
    }
)


@settings(SMALL, max_examples=120)
@given(
    about=st.dictionaries(
        st.sampled_from(["format", "fingerprint", "tokenizer", "version", "tokens", "tuned_state", "checksum", "x"]),
        st.sampled_from(["rookery-state-1", "model", "words", "7", "-1", "9" * 99, ""]) | JSON,
    )
    | JSON,
    tensors=st.dictionaries(st.sampled_from(["shift", "wkv", "hidden", "more"]), TENSOR | JSON, max_size=4),
    body=st.binary(max_size=600),
)
def test_a_made_up_header_is_refused(about: Any, tensors: dict[str, Any], body: bytes) -> None:
    header = json.dumps({"__metadata__": about, **tensors}).encode()
    assert read(len(header).to_bytes(8, "little") + header + body) is None


@SMALL
@given(name=st.sampled_from(["fingerprint", "tokenizer", "version", "format", "tokens", "checksum"]), value=JSON)
def test_no_word_of_the_header_can_be_changed(name: str, value: Any) -> None:
    size = int.from_bytes(WHOLE[:8], "little")
    header = json.loads(WHOLE[8 : 8 + size])
    if header["__metadata__"][name] == value:
        return
    header["__metadata__"][name] = value
    changed = json.dumps(header).encode()
    assert read(len(changed).to_bytes(8, "little") + changed + WHOLE[8 + size :]) is None


def test_what_a_header_claims_is_not_believed() -> None:
    """Sizes that no memory has, nesting that no stack has, names without end."""
    deep = b'{"__metadata__":' + b"[" * 100_000
    for header in (
        b'{"wkv":{"dtype":"F32","shape":[1099511627776,1048576],"data_offsets":[0,4]}}',
        b'{"wkv":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,0]}}',
        b'{"__metadata__":{"format":"rookery-state-1"},"wkv":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        deep,
        deep[:16_000],
        b'{"' + b"a" * 2**20 + b'":1}',
    ):
        for size in (len(header), 2**63, 2**64 - 1, 0):
            assert read(size.to_bytes(8, "little") + header + bytes(64)) is None


@settings(max_examples=30, deadline=None)
@given(mutated())
def test_a_stored_file_that_was_changed_costs_its_own_session(data: bytes) -> None:
    """The store knows the checksum of the bytes: even a change that means nothing is damage."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = StateStore(folder, FORMAT)
        blob = store.put("t", "s", WHOLE).blob
        store.commit(record("well"), state(2))
        store.close()
        (folder / "states" / blob).write_bytes(data)
        store = StateStore(folder, FORMAT)
        if data == WHOLE:
            assert same(store.load(found(store)).state, state(1))
        else:
            with pytest.raises(SnapshotError):
                store.load(found(store))
            assert store.damaged
        assert same(store.load(found(store, "well")).state, state(2))
        store.close()
