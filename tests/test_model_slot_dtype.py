"""WKV states kept in float16 between steps: half the memory, outputs near, refused where there is no such form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rookery.kernels.backend import VARIABLE, uses_triton
from rookery.kernels.cpu.library import library
from rookery.kernels.rows import Rows
from rookery.server.errors import StartupError
from rookery.server.model.load import construct, load_model
from rookery.server.model.shape import Version
from rookery.server.model.synthetic import synthetic_checkpoint
from rookery.server.state.pool import HostPool, State
from rookery.server.state.torch_pool import TorchPool

from .arrays import held, state_of
from .checkpoints import UNUSUAL, save_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("version", ["4", "5.1", "6", "7"])
def test_outputs_stay_near_those_of_float32(version: Version) -> None:
    checkpoint = synthetic_checkpoint(UNUSUAL[version], dtype=torch.float32)
    tokens = torch.arange(42) % 97
    outcomes, sizes = [], []
    for wkv_dtype in (torch.float32, torch.float16):
        model = construct(checkpoint, torch.float32, CPU, wkv_dtype)
        pool = model.new_pool(4)
        assert pool.wkv.dtype == (torch.float32 if version == "4" else wkv_dtype)
        sizes.append(pool.wkv.nbytes)
        first = model.forward(tokens[:36], Rows.pack([2, 0, -1, 1], [1, 1, 1, 33]), pool)
        second = model.forward(tokens[36:], Rows.pack([1, 2], [1, 5]), pool)
        outcomes.append(torch.cat([first, second]))
    assert sizes[1] == (sizes[0] if version == "4" else sizes[0] // 2)
    assert torch.equal(*outcomes) == (version == "4")
    torch.testing.assert_close(*outcomes, rtol=1e-2, atol=1e-2)


def test_what_float16_cannot_hold_is_its_largest_number() -> None:
    model = construct(synthetic_checkpoint(UNUSUAL["7"], dtype=torch.float32), torch.float32, CPU, torch.float16)
    pool = model.new_pool(1)
    state = held(pool, 0)
    pool.write(0, state_of(state.shift, torch.full(state.wkv.shape, -1e6)))
    assert set(pool.wkv.flatten().tolist()) == {-65504.0}


def test_states_of_another_type_are_continued() -> None:
    """As when a session goes on after the flag has changed."""
    model = construct(synthetic_checkpoint(UNUSUAL["6"], dtype=torch.float32), torch.float32, CPU, torch.float16)
    pool = model.new_pool(2)
    model.forward(torch.arange(9), Rows.pack([0], [9]), pool)
    saved = pool.save(0)
    pool.write(1, State(shift=saved.shift, wkv=saved.wkv.astype(np.float32)))
    assert torch.equal(pool.wkv[1], pool.wkv[0])


@pytest.mark.skipif(library() is None, reason="the native library is not built")
def test_the_native_library_refuses_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"])
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(StartupError, match="keeps states in float32") as refused:
        load_model(path, device="cpu", slot_dtype="float16")
    assert "--slot-dtype float32" in refused.value.mend
    monkeypatch.setenv(VARIABLE, "torch")
    uses_triton.cache_clear()
    model, info = load_model(path, device="cpu", slot_dtype="float16")
    assert model.new_pool(1).wkv.dtype == torch.float16
    assert info.state_bytes == model.new_pool(1).state_bytes < load_model(path, device="cpu")[1].state_bytes


@pytest.mark.parametrize("version", ["5.1", "6", "7"])
def test_slots_take_memory_when_they_are_used(version: Version) -> None:
    shape = synthetic_checkpoint(UNUSUAL[version], dtype=torch.float32).shape
    before = anonymous_bytes()
    for pool in (HostPool(shape, 20_000), TorchPool(shape, 20_000, dtype=torch.bfloat16, device="cpu")):
        assert pool.wkv.nbytes > 50e6 and anonymous_bytes() - before < 10e6
    assert not pool.wkv.any() and not pool.shift.any()


def test_more_slots_than_any_machine_has_memory_for() -> None:
    shape = synthetic_checkpoint(UNUSUAL["7"], dtype=torch.float32).shape
    with pytest.raises(MemoryError):
        HostPool(shape, 2**50)
    with pytest.raises(MemoryError):
        TorchPool(shape, 2**50, dtype=torch.float32, device="cpu")


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
